"""The repair of torchvision, each in a process of its own: it changes what torch knows for good."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from qexport.compat.torchvision import advice, remedy

ROOT = Path(__file__).parents[1]

REPAIR = """
import json
from qexport.compat.torchvision import repair
first, second = repair(), repair()
import torch, torchvision
boxes = torch.tensor([[0., 0., 10., 10.], [0., 0., 10., 8.], [0., 0., 10., 4.], [20., 20., 30., 30.]])
scores = torch.tensor([0.6, 0.9, 0.8, 0.1])
nms = lambda threshold: torchvision.ops.nms(boxes, scores, threshold).tolist()
batched = torchvision.ops.batched_nms(boxes, scores, torch.tensor([0, 1, 1, 1]), 0.45).tolist()
print(json.dumps([first, second, nms(0.45), nms(0.7), nms(0.85), batched]))
"""

HEALTHY = """
import json, sys, types
fake = sys.modules["torchvision"] = types.ModuleType("torchvision")
from qexport.compat import torchvision as torchvision_repair
declared = torchvision_repair.repair()
print(json.dumps([
    declared, sys.modules["torchvision"] is fake, sorted(vars(fake)), "torch" in sys.modules,
    len(torchvision_repair._kept_alive),
]))
"""

BROKEN_OTHERWISE = """
import sys
class Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == "torchvision":
            raise RuntimeError("something else is wrong")
sys.meta_path.insert(0, Finder)
from qexport.compat.torchvision import repair
try:
    repair()
except RuntimeError as error:
    print('"%s"' % error)
"""


def _run(program: str) -> Any:
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_nms_gives_the_right_boxes_after_the_repair() -> None:
    first, second, at_45, at_70, at_85, batched = _run(REPAIR)
    assert isinstance(first, list)
    assert second == []
    # IoU with box 1 (area 80, best score): box 0 has 80/100 = 0.8, box 2 has 40/80 = 0.5, box 3 is apart.
    # Box 2 (second best) has 40/100 = 0.4 with box 0.
    assert at_45 == [1, 3]
    assert at_70 == [1, 2, 3]
    assert at_85 == [1, 2, 0, 3]
    # In a class of its own, box 0 is no longer suppressed by box 1.
    assert batched == [1, 0, 3]


def test_a_healthy_installation_is_left_alone() -> None:
    declared, same_module, attributes, torch_imported, kept_alive = _run(HEALTHY)
    assert declared == []
    assert same_module
    assert attributes == ["__doc__", "__loader__", "__name__", "__package__", "__spec__"]
    # Without torch in the process there is nothing that an operator could have been declared to.
    assert not torch_imported
    assert kept_alive == 0


def test_another_failure_is_not_hidden() -> None:
    assert _run(BROKEN_OTHERWISE) == "something else is wrong"


def _raised(error: Exception) -> Any:
    def nms(*_: Any) -> Any:
        raise error

    return nms


@pytest.mark.parametrize(
    ("nms", "fault"),
    [
        (lambda boxes, scores, iou: scores.argsort()[1:].flip(0), "nms keeps [0, 1] of three boxes, not 0 and 2"),
        (_raised(RuntimeError("operator torchvision::nms does not exist\n at line 7")), "nms does not exist)"),
        (_raised(OSError("libcudart.so.13: cannot open")), "libcudart.so.13: cannot open"),
        (None, "'NoneType' object is not callable"),
        (lambda boxes, scores, iou: scores.argsort()[[2, 0]].abs(), ""),
    ],
)
def test_what_does_not_fit_is_said_with_what_helps(nms: Any, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fake: Any = ModuleType("torchvision")
    fake.ops = SimpleNamespace(nms=nms)
    monkeypatch.setitem(sys.modules, "torchvision", fake)
    line = advice()
    assert "\n" not in line
    if not fault:
        assert line == "torchvision's nms works"
        return
    assert line.startswith("torchvision does not fit this torch (")
    assert fault in line
    assert "pip install --force-reinstall torch==" in line
    assert line.endswith(" --index-url https://download.pytorch.org/whl/cpu")


@pytest.mark.parametrize(
    ("wanted", "pinned"),
    [
        (["numpy", "torch (==2.13.0)"], "torchvision==0.28.0"),
        (["torch==2.13.0"], "torchvision==0.28.0"),
        (["torch==2.12.0"], "torchvision"),
        (None, "torchvision"),
    ],
)
def test_the_remedy_pins_torchvision_where_it_is_the_one_for_this_torch(
    wanted: list[str] | None, pinned: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions = {"torch": "2.13.0+cu130", "torchvision": "0.28.0+cpu"}
    monkeypatch.setattr("qexport.compat.torchvision.version", versions.__getitem__)
    monkeypatch.setattr("qexport.compat.torchvision.requires", lambda _: wanted)
    index = "--index-url https://download.pytorch.org/whl/cpu"
    assert remedy() == f"pip install --force-reinstall torch==2.13.0 {pinned} {index}"


UNREPAIRED = """
import json
from qexport.compat.torchvision import advice
line = advice()
try:
    import torchvision
    met = ""
except Exception as error:
    met = str(error)
print(json.dumps([line, met]))
"""


def test_the_advice_is_about_what_programs_meet_in_this_environment() -> None:
    line, met = _run(UNREPAIRED)
    assert (f"({met})" in line) if met else (line == "torchvision's nms works")
