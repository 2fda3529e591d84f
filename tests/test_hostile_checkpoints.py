"""Checkpoints that try to run code: refused, and nothing of theirs is made, called or left behind.

Every sample would have been loaded, or run something, where a list of names alone is asked.
"""

from __future__ import annotations

import functools
import inspect
import io
import operator
import os
import subprocess
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from small_models import Call, saved, small_model
from torch import nn

from qexport.checkpoints.checkpoint import load_checkpoint
from qexport.checkpoints.rebuild import Rebuilder, UnprovenError
from qexport.checkpoints.unpickle import Noted, names_in, unpickled
from qexport.errors import InputError


@contextmanager
def nothing_called() -> Iterator[list[str]]:
    """No function of layers or models runs in the block, but what makes an empty module and sets its state."""
    called: list[str] = []
    harmless = {"__init__", "__setstate__", "__setattr__", "__getattr__", "<module>", "__build_class__"}

    def watch(frame: FrameType, event: str, _argument: Any) -> None:
        file, name = frame.f_code.co_filename, frame.f_code.co_name
        if event != "call" or not any(place in file for place in ("ultralytics/nn", "torch/nn/modules", "torchvision")):
            return
        if name not in harmless or (name == "__init__" and not file.endswith("torch/nn/modules/module.py")):
            called.append(f"{Path(file).name}: {name}")

    sys.setprofile(watch)
    try:
        yield called
    finally:
        sys.setprofile(None)


def refusal(path: Path) -> str:
    """The line that a file is refused with; nothing of it is called on the way."""
    __import__("ultralytics.nn.tasks")
    with nothing_called() as called, pytest.raises(InputError) as caught:
        load_checkpoint(path)
    assert called == []
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    return str(caught.value)


Change = Callable[[Any, Path], Any]
"""Spoils a model, or returns what is saved in its place."""


def shadowed(name: str, value: Callable[[], Any]) -> Change:
    def change(model: Any, _canary: Path) -> None:
        model.__dict__[name] = value()

    return change


def hooked(kind: str) -> Change:
    def change(model: Any, _canary: Path) -> None:
        vars(model.model[0])[kind] = OrderedDict({0: nn.ModuleDict()})

    return change


def called(function: Callable[..., Any], *arguments: Any) -> Change:
    return lambda _model, _canary: Call(function, *arguments)


def _model_class() -> Any:
    from ultralytics.nn.tasks import DetectionModel

    return DetectionModel


def _built_by_a_call(_model: Any, canary: Path) -> Any:
    rows = [[-1, 1, "Conv", [8, 3, 2]]]
    return Call(_model_class(), {"nc": 1, "activation": f"open({str(canary)!r}, 'w')", "backbone": rows, "head": rows})


def _downloads(model: Any, _canary: Path) -> None:
    from ultralytics.nn.modules.block import TorchVision

    model.model[0]._modules["conv"] = Call(TorchVision, "resnet18", "DEFAULT")


def _evaluated(text: str) -> Change:
    def change(model: Any, canary: Path) -> None:
        model.yaml["activation"] = text.replace("CANARY", repr(str(canary)))

    return change


def _row(name: str) -> Change:
    def change(model: Any, _canary: Path) -> None:
        model.yaml["head"] = [[-1, 1, name, []]]

    return change


def _layer_in_place_of_a_method(model: Any, _canary: Path) -> None:
    shadow = nn.ModuleDict()
    shadow.__dict__["forward"] = _model_class()
    model.__dict__["float"] = shadow


def _class_as_activation(model: Any, _canary: Path) -> None:
    model.model[0].__dict__["act"] = _model_class()


def _foreign_forward(model: Any, _canary: Path) -> None:
    model.model[0].__dict__["forward"] = Call(getattr, model.model[1], "forward_fuse")


def _another_method(model: Any, _canary: Path) -> None:
    model.model[0].__dict__["forward"] = Call(getattr, model.model[0], "share_memory")


def _tensor_hook(model: Any, _canary: Path) -> None:
    weight = model.model[0].conv.weight.detach()
    hooks = OrderedDict({0: nn.ModuleDict()})
    storage = weight._typed_storage()
    given = storage, 0, tuple(weight.shape), weight.stride(), False, hooks
    model.model[0].conv._buffers["extra"] = Call(torch._utils._rebuild_tensor_v2, *given)


def _beyond_its_storage(model: Any, _canary: Path) -> None:
    storage = torch.zeros(4)._typed_storage()
    model.stride = Call(torch._utils._rebuild_tensor_v2, storage, 0, (1000,), (1,), False, OrderedDict())


def _lazy(model: Any, _canary: Path) -> None:
    model.model[0]._modules["conv"] = nn.LazyConv2d(3, 1)


SAMPLES: dict[str, tuple[Change, str]] = {
    "layer in place of a method": (_layer_in_place_of_a_method, "float"),
    "container in place of eval": (shadowed("eval", nn.ModuleDict), "eval"),
    "list in place of parameters": (shadowed("parameters", nn.ModuleList), "parameters"),
    "number in place of fuse": (shadowed("fuse", lambda: 1), "fuse"),
    "class of its own": (shadowed("__class__", lambda: "x"), "__class__"),
    "__call__": (shadowed("__call__", nn.ModuleDict), "__call__"),
    "_call_impl": (shadowed("_call_impl", nn.ModuleDict), "_call_impl"),
    "type that is no name": (shadowed("type", nn.ModuleDict), "type"),
    "forward of a container": (shadowed("forward", nn.ModuleDict), "forward"),
    "forward of another layer": (_foreign_forward, "forward"),
    "another method as forward": (_another_method, "forward"),
    "forward hook": (hooked("_forward_hooks"), "hooks"),
    "forward hook with keywords": (hooked("_forward_hooks_with_kwargs"), "hooks"),
    "hook before forward": (hooked("_forward_pre_hooks"), "hooks"),
    "backward hook": (hooked("_backward_hooks"), "hooks"),
    "hook of the state": (hooked("_state_dict_hooks"), "hooks"),
    "hook before the state": (hooked("_state_dict_pre_hooks"), "hooks"),
    "hook of loading": (hooked("_load_state_dict_pre_hooks"), "hooks"),
    "hook of a tensor": (_tensor_hook, "hooks"),
    "class as a layer": (_class_as_activation, "DetectionModel itself"),
    "layer that becomes another": (_lazy, "LazyConv2d"),
    "tensor beyond its storage": (_beyond_its_storage, "beyond what is stored"),
    "model by a call": (_built_by_a_call, "by a call"),
    "download in a constructor": (_downloads, "by a call"),
    "activation that is code": (_evaluated("open(CANARY, 'w')"), "activation"),
    "activation with code in it": (_evaluated("nn.SiLU(open(CANARY, 'w'))"), "activation"),
    "activation through an attribute": (_evaluated("nn.modules.os.system(CANARY)"), "activation"),
    "activation and more": (_evaluated("nn.SiLU() or open(CANARY, 'w')"), "activation"),
    "activation that is a function": (_evaluated("nn.factory_kwargs({})"), "activation"),
    "row that is a function": (_row("torch_load"), "torch_load"),
    "row of a module": (_row("pickle"), "pickle"),
    "row of torch that is no layer": (_row("nn.factory_kwargs"), "factory_kwargs"),
    "system": (called(os.system, "true"), "system"),
    "process": (called(subprocess.Popen, "true"), "Popen"),
    "eval": (called(eval, "1"), "eval"),
    "exec": (called(exec, "1"), "exec"),
    "import": (called(__import__, "os"), "__import__"),
    "partial": (called(functools.partial, print), "functools.partial"),
    "attrgetter": (called(operator.attrgetter, "a"), "operator.attrgetter"),
    "methodcaller": (called(operator.methodcaller, "a"), "operator.methodcaller"),
    "any attribute": (called(getattr, _model_class, "__globals__"), "_model_class"),
    "loader of torch": (called(torch.load, "x.pt"), "torch.serialization.load"),
    "loader of a hub": (called(torch.hub.load, "a/b", "c"), "torch.hub.load"),
    "bytes of a pickle": (called(torch.storage._load_from_bytes, b""), "_load_from_bytes"),
}


WORDS = {
    "code": 'x" if not open("CANARY", "w") else "x',
    "code of the other quotation mark": "x' if not open('CANARY', 'w') else 'x",
    "a keyword": "class",
    "a constant": "None",
    "a letter that Python takes for others": "\ufb01",
    "a path": "a.b",
    "two lines": "x\ny",
    "nothing": "",
}
"""Names of parts of a layer: torch writes them between quotation marks, into code."""


@pytest.mark.parametrize("where", ["_modules", "_parameters", "_buffers", "__dict__"])
@pytest.mark.parametrize("word", WORDS)
def test_a_name_is_a_word(word: str, where: str, tmp_path: Path) -> None:
    name, model = WORDS[word].replace("CANARY", str(tmp_path / "canary")), small_model("Classify")
    layer = model.model[0]
    values = {"_modules": nn.Identity(), "_parameters": nn.Parameter(torch.ones(1))}
    parts = layer.__dict__ if where == "__dict__" else getattr(layer, where)
    parts[name] = values.get(where, torch.ones(1))
    assert "which is no name that a layer gives" in refusal(saved(model, tmp_path / "named.pt"))
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("sample", SAMPLES)
def test_is_refused_and_nothing_is_called(sample: str, tmp_path: Path) -> None:
    change, word = SAMPLES[sample]
    canary = tmp_path / "canary"
    model = small_model("Classify")
    path = saved(change(model, canary) or model, tmp_path / "hostile.pt")
    assert word in refusal(path)
    assert not canary.exists()


@pytest.mark.parametrize("layer", ["DetectionModel", "Conv", "Detect", "ModuleList"])
def test_no_method_of_a_class_can_be_replaced(layer: str) -> None:
    """Every callable of a layer's class, under every name, with a value of every kind that is allowed elsewhere."""
    model = small_model()
    found = {"DetectionModel": model, "Conv": model.model[0], "Detect": model.model[-1], "ModuleList": nn.ModuleList()}
    kind = type(found[layer])
    methods = [name for name in dir(kind) if callable(inspect.getattr_static(kind, name))]
    assert len(methods) > 60
    for name in methods:
        values: tuple[Any, ...] = (1, "text", [], {}) if name != "type" else (1, [], {})
        for value in values:
            noted = _noted(kind, {name: value})
            assert _refuses(noted), f"{name} = {value!r}"


def test_no_module_has_a_hook_left_that_is_not_looked_at() -> None:
    """Whatever torch calls a hook, now or later: nothing that is not empty passes."""
    kinds = [name for name in vars(nn.Module()) if "hook" in name]
    assert len(kinds) >= 12
    for name in kinds:
        with pytest.raises(UnprovenError, match="hooks"):
            Rebuilder().value(_noted(nn.Identity, {name: {0: "x"}}), "model")


def test_no_layer_stands_where_torch_keeps_what_it_compiled() -> None:
    assert _refuses(_noted(nn.Identity, {"_compiled_call_impl": _noted(nn.ModuleDict, {})}))
    assert not _refuses(_noted(nn.Identity, {"_compiled_call_impl": None, "other": _noted(nn.ModuleDict, {})}))


def _refuses(noted: Noted) -> bool:
    try:
        Rebuilder().value(noted, "model")
    except UnprovenError:
        return True
    return False


def _noted(kind: type[nn.Module], state: dict[str, Any]) -> Noted:
    from qexport.checkpoints.unpickle import _standing_for

    noted = _standing_for(kind.__module__, kind.__name__)
    made = noted.__new__(noted)
    made.state = state
    return made


OPCODES = {
    "state in slots": b"(N}\x8c\x07forwardK\x01stb",
    "state set twice": b"}b}b",
    "state of a list": b"]b",
}


@pytest.mark.parametrize("sample", OPCODES)
def test_states_that_only_a_forger_writes(sample: str, tmp_path: Path) -> None:
    layer = b"\x80\x02}\x8c\x05modelctorch.nn.modules.linear\nIdentity\n)\x81" + OPCODES[sample] + b"s."
    path = _archive(tmp_path / "forged.pt", layer)
    refusal(path)


def test_a_script_that_only_torch_sees_is_read_as_data(tmp_path: Path) -> None:
    """Python's reader goes by the end of an archive alone, and might be shown another list of files than torch's."""
    path = _archive(tmp_path / "script.pt", b"\x80\x02}.")
    with zipfile.ZipFile(path, "a") as script:
        script.writestr(script.namelist()[0].partition("/")[0] + "/constants.pkl", b"\x80\x02).")
    assert unpickled(path.read_bytes()) == {}


def test_names_with_dots_lead_nowhere(tmp_path: Path) -> None:
    """Protocol 4 reaches attributes of classes by a dotted name."""
    name = b"\x80\x04}\x8c\x05model\x8c\x15ultralytics.nn.tasks.\x8c\x13DetectionModel.fuse\x93)Rs."
    path = _archive(tmp_path / "dotted.pt", name.replace(b"\x15ultralytics.nn.tasks.", b"\x14ultralytics.nn.tasks"))
    assert "DetectionModel.fuse" in refusal(path)


def _archive(path: Path, content: bytes) -> Path:
    """A file as torch.save writes one, around a pickle of our own."""
    stream = io.BytesIO()
    torch.save({}, stream)
    with zipfile.ZipFile(stream) as plain, zipfile.ZipFile(path, "w") as forged:
        for item in plain.infolist():
            forged.writestr(item.filename, content if item.filename.endswith("data.pkl") else plain.read(item))
    return path


def test_unpickling_makes_and_calls_nothing_even_where_it_is_not_checked(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    stream = io.BytesIO()
    torch.save([Call(os.system, f"touch {canary}"), Call(exec, f"open({str(canary)!r}, 'w')"), small_model()], stream)
    with nothing_called() as called:
        content = unpickled(stream.getvalue())
    assert called == []
    assert not canary.exists()
    assert {type(each).__name__ for each in content} == {"Noted"}
    assert {"posix.system", "builtins.exec", "ultralytics.nn.tasks.DetectionModel"} <= set(names_in(content))


@pytest.mark.parametrize("place", ["optimizer", "train_args", "date", "anything"])
def test_a_call_beside_the_model_is_refused_too(place: str, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    path = saved(small_model("Classify"), tmp_path / "hostile.pt", **{place: Call(os.system, f"touch {canary}")})
    assert "system" in refusal(path)
    assert not canary.exists()


def test_a_trusted_file_may_hold_anything(tmp_path: Path) -> None:
    path = saved(small_model(), tmp_path / "trusted.pt", date=Call(os.path.join, "a", "b"))
    assert load_checkpoint(path, trust=True).names == {index: str(index) for index in range(4)}


def test_torchs_own_switch_does_not_stop_the_stricter_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "1")
    assert load_checkpoint(saved(small_model(), tmp_path / "good.pt")).task == "detect"
    assert os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] == "1"
    with pytest.raises(InputError, match="system"):
        load_checkpoint(saved(Call(os.system, "true"), tmp_path / "bad.pt"))
