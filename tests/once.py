"""What exporters of other packages make of one network is asked for once, which is most of what tests wait for.

Only whole networks are remembered, by everything that goes in: small ones are exported anew wherever they occur. So is
everything in processes of its own, such as whole runs of the command, and where a test asks for the fixture `anew`.
"""

from __future__ import annotations

import copy
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import is_dataclass
from enum import Enum
from functools import wraps
from importlib.util import find_spec
from inspect import unwrap
from pathlib import Path
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from qexport.programs import capture
from qexport.programs.program import Program

LAYERS = 60
"""Convolutions that make a whole network: the demo models have more than 80, small ones of tests a dozen."""

TRACED = 12
"""Networks that a process remembers, those that it met last: each takes ten megabytes."""
PLAIN = (str, bytes, bool, int, float, torch.dtype, torch.device, Enum)


class Kept:
    """Bytes by key, in a folder that the processes of one test run share."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)

    def get(self, key: str, make: Callable[[], bytes]) -> bytes:
        """What is there, or what is made now; whoever comes second writes the same."""
        path = self.folder / key
        if not path.exists():
            made = self.folder / f"{key}.{os.getpid()}"
            made.write_bytes(make())
            made.replace(path)
        return path.read_bytes()


def digest(parts: Iterable[object]) -> str:
    """A name for what texts, bytes and tensors say."""
    total = hashlib.sha256()
    for part in parts:
        if isinstance(part, Tensor):
            part = f"{part.dtype} {tuple(part.shape)}".encode() + part.detach().contiguous().numpy().tobytes()
        content = part if isinstance(part, bytes) else str(part).encode()
        total.update(f"{len(content)} ".encode() + content)
    return total.hexdigest()


def contents(value: Any) -> Iterator[object]:
    """What a module, or another value, is made of, in an order that copies have, too.

    Raises:
        TypeError: it holds something that nobody can tell what it does by.
    """
    if isinstance(value, Tensor) or value is None or isinstance(value, PLAIN):
        yield from (type(value), value)
    elif isinstance(value, list | tuple | dict):
        yield from (type(value), len(value))
        for each in (part for pair in value.items() for part in pair) if isinstance(value, dict) else value:
            yield from contents(each)
    elif isinstance(value, set | frozenset):
        yield from (type(value), sorted(map(repr, value)))
    elif isinstance(value, nn.Module) or is_dataclass(value):
        yield type(value)
        own = {
            name: each for name, each in vars(value).items() if isinstance(each, MethodType) and each.__self__ is value
        }
        yield from contents({**vars(value), **{name: each.__func__ for name, each in own.items()}})
    elif isinstance(value, type | FunctionType | BuiltinFunctionType) and "<locals>" not in value.__qualname__:
        yield value.__module__, value.__qualname__
    else:
        raise TypeError(type(value))


def traced_once(trace: Callable[..., GraphModule]) -> Callable[..., GraphModule]:
    """`torch.export` of a module and an example, in this process."""
    known: dict[str, GraphModule] = {}

    @wraps(trace)
    def once(module: nn.Module, example: Tensor, dynamic: bool) -> GraphModule:
        if sum(isinstance(each, nn.Conv2d) for each in module.modules()) < LAYERS:
            return trace(module, example, dynamic)
        try:
            key = digest((*contents(module), example, dynamic))
        except (TypeError, RecursionError):  # something unknown, or in a circle
            return trace(module, example, dynamic)
        known[key] = known.pop(key) if key in known else trace(module, example, dynamic)
        if len(known) > TRACED:
            del known[next(iter(known))]
        return copy.deepcopy(known[key])

    return once


class Content:
    """What is used of a model of LiteRT's converter."""

    def __init__(self, content: bytes) -> None:
        self.model_content = lambda: content


def converted_once(convert: Callable[..., Any], kept: Kept) -> Callable[..., Any]:
    """LiteRT's converter of a graph, an example and whether it is quantised."""

    @wraps(convert)
    def once(graph: GraphModule, example: Tensor, quantised: bool, warn: Callable[[str], None]) -> Any:
        called = [node for node in graph.graph.nodes if node.op == "call_function"]
        whole = sum(node.target is torch.ops.aten.conv2d.default for node in called) >= LAYERS
        if not whole or any(node.op == "call_module" for node in graph.graph.nodes):
            return convert(graph, example, quantised, warn)
        tensors = {**dict(graph.named_parameters()), **dict(graph.named_buffers())}
        stacks = [node.meta.get("nn_module_stack") for node in graph.graph.nodes]
        nodes = [(node.name, node.op, node.target, node.args, node.kwargs) for node in graph.graph.nodes]
        parts = (nodes, stacks, example, quantised, *(part for pair in sorted(tensors.items()) for part in pair))
        notes: list[str] = []
        content = kept.get(
            digest(parts), lambda: bytes(convert(graph, example, quantised, notes.append).model_content())
        )
        assert notes == [], "what is remembered is what came out without remarks"
        return Content(content)

    return once


def exported_once(export: Callable[..., Any], kept: Kept) -> Callable[..., Any]:
    """`torch.onnx` of a program, which its fingerprint and its input tell from others."""
    import onnx
    from onnx_ir import serde

    @wraps(export)
    def once(program: Program, opset: int, half: bool, full: frozenset[str], warn: Callable[[str], None]) -> Any:
        def made() -> bytes:
            model = serde.serialize_model(export(program, opset, half, full, warn))
            content: bytes = model.SerializeToString()
            return content

        key = digest((program.fingerprint, program.input, opset, half, sorted(full)))
        return serde.deserialize_model(onnx.ModelProto.FromString(kept.get(key, made)))

    return once


def replaced() -> dict[tuple[ModuleType, str], Callable[[Any, Kept], Any]]:
    """What there is to be remembered of packages that are installed: where it is called → what remembers it."""
    found: dict[tuple[ModuleType, str], Callable[[Any, Kept], Any]] = {
        (capture, "_trace"): lambda trace, _: traced_once(trace)
    }
    if find_spec("onnx_ir"):
        from qexport.lowering.onnx import export

        found[export, "_export"] = exported_once
    if find_spec("litert_torch"):
        from qexport.backends.tflite import write

        found[write, "convert"] = converted_once
    return found


def remember(patch: pytest.MonkeyPatch, folder: Path) -> None:
    """Ask once from now on."""
    for (module, name), once in replaced().items():
        patch.setattr(module, name, once(getattr(module, name), Kept(folder)))


def forget(patch: pytest.MonkeyPatch) -> None:
    """Ask anew from now on."""
    for module, name in replaced():
        patch.setattr(module, name, unwrap(getattr(module, name)))
