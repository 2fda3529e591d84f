"""Ranges that Ultralytics' quantisation-aware training (`quantize=8`) keeps beside a model, read as data.

Its checkpoints have a key `modelopt` of two parts. `ranges` has buffers by name, `model.0.conv.input_quantizer._amax`
and so on: the largest magnitude that eight symmetric bits stand for. `modelopt` is what NVIDIA ModelOpt makes its
layers of again, the settings of each quantiser among it. Weights have a range for each output channel, from before
batch normalisation is folded into them; `fuse_conv_and_bn` of `ultralytics.utils.torch_utils` scales it like the
weight.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from qexport.checkpoints.rebuild import Rebuilder, UnprovenError

AMAX, INPUT, WEIGHT = "._amax", ".input_quantizer", ".weight_quantizer"
EIGHT_BITS: Mapping[str, object] = {
    "_num_bits": 8,
    "_unsigned": False,
    "_block_sizes": None,
    "_bias": None,
    "_dynamic": False,
    "_rotate": False,
}
"""Settings of a quantiser whose range says all of it; what a version does not write has these values."""
MERGED = ("RepConv", "RepVGGDW", "Conv2")
"""Blocks of Ultralytics whose branches become one convolution: no range of a branch is its."""


@dataclass(frozen=True)
class LayerRanges:
    """Largest magnitudes that 127 symmetric steps stand for, by path of the convolution or linear layer.

    Attributes:
        inputs: of what a layer reads.
        weights: of its weight, batch normalisation folded in: one for each output channel.
        left_out: quantisers whose range means something else here, by path.
    """

    inputs: Mapping[str, float]
    weights: Mapping[str, tuple[float, ...]]
    left_out: tuple[str, ...] = ()


class UnreadableRangesError(Exception):
    """What a checkpoint has under `modelopt` is something else; the message says what."""


def read_ranges(noted: Any, model: nn.Module) -> LayerRanges:
    """The ranges of a checkpoint; nothing of it is made but tensors.

    Args:
        noted: what the checkpoint has under `modelopt`, from `unpickle`.
        model: the checkpoint's, before its normalisation is folded.

    Raises:
        UnreadableRangesError: it is of another form.
    """
    try:
        amax = _buffers(noted)
        settings = _settings(noted)
    except (UnprovenError, TypeError, KeyError, IndexError, ValueError, AttributeError) as error:
        raise UnreadableRangesError(" ".join(f"{type(error).__name__}: {error}".split())) from error
    if not amax:
        raise UnreadableRangesError("there are none")
    inputs, weights, left_out = dict[str, float](), dict[str, tuple[float, ...]](), list[str]()
    layers = dict(model.named_modules())
    for name, tensor in amax.items():
        setting = settings.get(name)
        if setting is not None and setting.get("_disabled"):
            continue
        path, kind = name.rpartition(".")[0], f".{name.rpartition('.')[2]}"
        found = _folded(layers, path, tensor) if kind == WEIGHT else _single(tensor) if kind == INPUT else ()
        if not found or not _eight_bits(setting):
            left_out.append(name)
        elif kind == WEIGHT:
            weights[path] = found
        else:
            inputs[path] = found[0]
    return LayerRanges(inputs, weights, tuple(left_out))


def _buffers(noted: Any) -> dict[str, Tensor]:
    """Ranges by quantiser, float32."""
    found = Rebuilder().value(noted["ranges"], "modelopt.ranges")
    named = {name.removesuffix(AMAX): tensor for name, tensor in found.items() if name.endswith(AMAX)}
    return {name: tensor.detach().float() for name, tensor in named.items()}


def _settings(noted: Any) -> dict[str, Mapping[str, object]]:
    """Settings by quantiser, the last that were kept."""
    found: dict[str, Mapping[str, object]] = {}
    for _, mode in noted["modelopt"]["modelopt_state_dict"]:
        for name, state in mode["metadata"]["quantizer_state"].items():
            found[name] = {key: state[key] for key in (*EIGHT_BITS, "_disabled") if key in state}
    return found


def _eight_bits(setting: Mapping[str, object] | None) -> bool:
    if setting is None or "_num_bits" not in setting:
        return False
    return all(setting.get(key, value) == value for key, value in EIGHT_BITS.items())


def _single(tensor: Tensor) -> tuple[float, ...]:
    """A range of a whole tensor, () where it is none."""
    return _magnitudes(tensor) if tensor.numel() == 1 else ()


def _magnitudes(tensor: Tensor) -> tuple[float, ...]:
    numbers = tuple(float(each) for each in tensor.reshape(-1).tolist())
    return numbers if all(0 <= each < math.inf for each in numbers) else ()


def _folded(layers: Mapping[str, nn.Module], path: str, tensor: Tensor) -> tuple[float, ...]:
    """Ranges of a weight's output channels as its normalisation scales them, () where they are not that."""
    layer = layers.get(path)
    if not isinstance(layer, nn.Conv2d | nn.Linear) or any(
        type(each).__name__ in MERGED for each in _around(layers, path)
    ):
        return ()
    channels = len(layer.weight)
    if tensor.numel() not in (1, channels) or (tensor.dim() and tensor.shape[0] not in (1, channels)):
        return ()
    ranges = tensor.reshape(-1).expand(channels)
    bn = getattr(layers.get(path.rpartition(".")[0]), "bn", None)
    if isinstance(bn, nn.BatchNorm2d) and path.endswith(".conv"):
        assert bn.running_var is not None
        ranges = ranges * (bn.weight / torch.sqrt(bn.running_var + bn.eps)).abs()
    return _magnitudes(ranges)


def _around(layers: Mapping[str, nn.Module], path: str) -> Iterator[nn.Module]:
    """The modules that a module is in."""
    while path:
        path = path.rpartition(".")[0]
        if path in layers:
            yield layers[path]
