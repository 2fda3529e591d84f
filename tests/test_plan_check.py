"""The one comparison of a plan with a file, on plans and files by hand."""

from __future__ import annotations

from dataclasses import asdict, replace

import numpy as np
import pytest
from conftest import Rectified, TinyDecode, captured, seeded
from numpy.typing import NDArray
from torch import Tensor, nn

from qexport.lowering.stored import StoredGraph, StoredTensor
from qexport.planning.plan import QuantPlan, TensorQuant
from qexport.verification.plan_check import WeightNames, compare_plan, own_names, weight_names

NAMES = WeightNames({"conv": "net.conv.weight"}, {"conv": "relu"})
PLANNED = {
    "conv": TensorQuant("int8", (0.5,), (3,)),
    "net.conv.weight": TensorQuant("int8", (0.5, 0.25, 0.125), (0, 0, 0), 0),
    "float": TensorQuant("float32"),
    "read": TensorQuant("int8", (0.1,), (0,)),
}
PLAN = QuantPlan("tflite", "", frozenset({"conv"}), PLANNED)
ACTIVATION = StoredTensor("int8", (0.5,), (3,))
WEIGHT = StoredTensor("int8", (0.5, 0.25, 0.125), (0, 0, 0))
INTEGERS = np.array([[127, 1], [-127, 2], [0, 127]], np.int8)


def stored(**tensors: StoredTensor) -> StoredGraph:
    """A file; two underscores in a name stand for a point."""
    return StoredGraph({key.replace("__", "."): tensor for key, tensor in tensors.items()}, 0, 0, {})


def weight(_: str) -> NDArray[np.float32]:
    return INTEGERS.astype(np.float32) * np.array([[0.5], [0.25], [0.125]], np.float32)


@pytest.mark.parametrize("key", ["conv__weight", "net__conv__weight", "relu__weight"])
def test_a_weight_is_found_by_each_of_its_names(key: str) -> None:
    """By its layer's, by the parameter's path, and by that of the ReLU that the kernel computes, too."""
    same = compare_plan(PLAN, stored(conv=ACTIVATION, **{key: WEIGHT}), NAMES)
    assert same.found == {"conv", "net.conv.weight"}
    assert same.wrong == ()
    doubled = replace(WEIGHT, scale=(0.5, 0.5, 0.125))
    wrong = compare_plan(PLAN, stored(conv=ACTIVATION, **{key: doubled}), NAMES)
    assert wrong.summary == "net.conv.weight: scale of channel 1 0.5 instead of 0.25"


def test_the_layers_own_name_goes_before_that_of_its_activation() -> None:
    other = replace(WEIGHT, scale=(9.0, 9.0, 9.0))
    assert compare_plan(PLAN, stored(conv__weight=WEIGHT, relu__weight=other), NAMES).wrong == ()


@pytest.mark.parametrize("channel", [0, 1, 2])
@pytest.mark.parametrize(("planned", "written"), [(1e-9, 7.9e-12), (7.9e-12, 1e-9), (1e-9, 1e-9)])
def test_the_scale_of_a_channel_of_zeros_is_free(channel: int, planned: float, written: float) -> None:
    scales, kept = list(WEIGHT.scale), list(WEIGHT.scale)
    scales[channel], kept[channel] = planned, written
    tensors = {**PLANNED, "net.conv.weight": replace(PLANNED["net.conv.weight"], scale=tuple(scales))}
    plan = replace(PLAN, tensors=tensors)
    file = stored(conv=ACTIVATION, conv__weight=replace(WEIGHT, scale=tuple(kept)))
    same = compare_plan(plan, file, NAMES)
    assert (len(same.found), same.wrong) == (2, ())
    kept[channel] = 1e-8
    wrong = compare_plan(plan, stored(conv__weight=replace(WEIGHT, scale=tuple(kept))), NAMES)
    shown = f"{planned:.8g}"
    assert wrong.summary == f"net.conv.weight: scale of channel {channel} 1e-08 instead of {shown}"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dtype": "uint8"}, "uint8 instead of int8"),
        ({"scale": (0.5, 0.25, 0.126)}, "scale of channel 2 0.126 instead of 0.125"),
        ({"scale": (0.5,)}, "scale of 1 channels instead of 3"),
        ({"zero_point": (0, 1, 0)}, "zero point of channel 1 1 instead of 0"),
        ({"integers": -INTEGERS}, "weights are 254.00 steps away in channel 0"),
        ({"integers": INTEGERS + np.array([[0], [0], [-1]], np.int8)}, "weights are 1.00 steps away in channel 2"),
    ],
)
def test_the_channel_that_differs_is_shown(changes: dict[str, object], message: str) -> None:
    file = stored(conv__weight=replace(WEIGHT, **changes))  # type: ignore[arg-type]
    assert compare_plan(PLAN, file, NAMES, weight).wrong == (f"net.conv.weight: {message}",)


def test_integers_are_compared_where_the_float_weights_are_there() -> None:
    file = stored(conv__weight=replace(WEIGHT, integers=INTEGERS))
    assert compare_plan(PLAN, file, NAMES, weight).wrong == ()
    rotated = stored(conv__weight=replace(WEIGHT, integers=-INTEGERS))
    assert compare_plan(PLAN, rotated, NAMES).wrong == ()


def test_a_complete_file_lacks_nothing() -> None:
    read = StoredTensor("int8", (0.1,), (0,))
    whole = replace(stored(conv=ACTIVATION, conv__weight=WEIGHT, read=read), complete=True)
    assert compare_plan(PLAN, whole, NAMES).found == {"conv", "net.conv.weight", "read"}
    lacking = replace(stored(conv=ACTIVATION), complete=True)
    assert compare_plan(PLAN, lacking, NAMES).wrong == ("read: missing", "net.conv.weight: missing")
    # Without a manifest nobody knows what a file calls its weights: they are not missed.
    assert compare_plan(PLAN, lacking, WeightNames()).wrong == ("read: missing",)


class Twice(nn.Module):
    """One layer that is used two times: its weight is one tensor in the plan, two in the file."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.box, self.cls = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 4, 1), nn.Conv2d(3, 2, 1)
        self.decode = TinyDecode()

    def forward(self, images: Tensor) -> Tensor:
        found = self.conv(self.conv(images))
        decoded: Tensor = self.decode(self.box(found), self.cls(found))
        return decoded


def test_a_layer_that_is_used_twice_is_one_tensor_and_both_places_are_compared() -> None:
    names = weight_names(captured(seeded(Twice())))
    places = [value for value, name in names.weights.items() if name == "conv.weight"]
    assert len(places) == 2
    # What reads the first use has a weight of its own, so that its name says nothing of this one.
    assert places[0] not in names.merged
    tensors = {**dict.fromkeys(places, PLANNED["conv"]), "conv.weight": PLANNED["net.conv.weight"]}
    plan = QuantPlan("tflite", "", frozenset(places), tensors)
    both = {f"{place}.weight": WEIGHT for place in places}
    same = compare_plan(plan, StoredGraph(both, 0, 0, {}), names)
    assert same.found == {"conv.weight"}
    assert same.wrong == ()
    both[f"{places[1]}.weight"] = replace(WEIGHT, zero_point=(0, 0, 7))
    assert compare_plan(plan, StoredGraph(both, 0, 0, {}), names).summary == (
        "conv.weight: zero point of channel 2 7 instead of 0"
    )


def test_the_manifest_holds_what_leads_to_weights() -> None:
    """`verify` reads it later, without the program."""
    names = weight_names(captured(seeded(Rectified(joined_with_negatives=False))))
    assert {value: names.merged[value] for value in ("first_conv", "second_conv")} == {
        "first_conv": "first_relu",
        "second_conv": "second_relu",
    }
    assert names.weights["first_conv"] == "first.weight"
    assert WeightNames(**asdict(names)) == names


def test_files_of_two_formats_call_a_weight_the_same() -> None:
    onnx, tflite = {"conv": ACTIVATION, "conv.weight": WEIGHT}, {"conv": ACTIVATION, "relu.weight": WEIGHT}
    assert own_names(tflite, NAMES) == own_names(onnx, NAMES) == onnx
    assert own_names(tflite, WeightNames()) == tflite
