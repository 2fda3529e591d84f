"""Small checkpoints that would take all of a machine's time or memory: refused in one line, and at once."""

from __future__ import annotations

import lzma
import tarfile
from pathlib import Path
from typing import Any

import pytest
from small_models import saved, small_model
from test_hostile_inputs import refusal
from torch import nn

from qexport.checkpoints.allowed import layer_class
from qexport.checkpoints.checkpoint import load_checkpoint


def _shared(levels: int) -> nn.Module:
    """Each layer holds the two before it, so that paths double with every second level."""
    last, before = nn.Identity(), nn.Identity()
    for _ in range(levels):
        layer = nn.Module()
        layer._modules.update(a=last, b=before)
        last, before = layer, last  # type: ignore[assignment]
    return last


def _endless_layers() -> nn.Module:
    layer = nn.RNN(1, 1)
    layer.__dict__["_all_weights"], layer.__dict__["num_layers"] = [[0]], 10**12
    return layer


LAYERS: dict[str, tuple[Any, str]] = {
    "10^12 paths to 60 layers": (lambda: _shared(60), "stands for more than 100,000"),
    "10^12 layers of a recurrent one": (_endless_layers, "torch.nn.modules.rnn.RNN"),
}


@pytest.mark.parametrize("sample", LAYERS)
def test_layers(sample: str, tmp_path: Path) -> None:
    make, words = LAYERS[sample]
    model = small_model("Classify")
    model.model[0]._modules["extra"] = make()
    assert words in refusal(load_checkpoint, saved(model, tmp_path / "x.pt"))


def test_few_paths_to_a_shared_layer(tmp_path: Path) -> None:
    model = small_model("Classify")
    model.model[0]._modules["extra"] = _shared(10)
    assert load_checkpoint(saved(model, tmp_path / "x.pt")).task == "classify"


def test_no_layer_does_more_with_an_attribute_than_to_keep_it() -> None:
    from ultralytics.nn import modules

    names = [
        f"{each.__module__}.{each.__name__}"
        for each in [*vars(nn).values(), *vars(modules).values()]
        if isinstance(each, type)
    ]
    kinds = [kind for kind in map(layer_class, names) if kind]
    assert len(kinds) > 150
    assert {kind for kind in kinds if kind.__setattr__ is not nn.Module.__setattr__} == set()
    for name in ("torch.nn.modules.rnn.LSTM", "torchvision.models.feature_extraction.DualGraphModule"):
        assert layer_class(name) is None


def test_an_archive_is_told_by_its_first_bytes(tmp_path: Path) -> None:
    """A name that says that it is of 2^30 bytes, packed to 0.2 MB."""
    header = tarfile.TarInfo("x")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, 2**30
    content = header.tobuf(tarfile.GNU_FORMAT) + bytes(2**20)
    (tmp_path / "x.pt").write_bytes(content)
    assert "is a tar archive" in refusal(load_checkpoint, tmp_path / "x.pt")
    (tmp_path / "x.pt").write_bytes(lzma.compress(content, lzma.FORMAT_ALONE))
    assert "is not a checkpoint" in refusal(load_checkpoint, tmp_path / "x.pt")
