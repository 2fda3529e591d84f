"""In-place operators: the captured program is that of the model written out of place, and computes what PyTorch does.

Random programs write through views of views, and read overwritten tensors by every name; PyTorch itself runs them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TinyDetector, captured, lowering, seeded, synthetic_statistics
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn import functional

from qexport.errors import InputError
from qexport.planning.planner import make_plan
from qexport.planning.runtime_profiles import ONNXRUNTIME
from qexport.programs.captured_graph import module_of
from qexport.programs.functionalise import functionalise
from qexport.programs.normalise import normalise

SHAPE = (2, 4, 6, 4)
aten = torch.ops.aten


def traced(module: nn.Module, example: Tensor, dynamic: bool = False) -> GraphModule:
    shapes = ({0: torch.export.Dim("batch", min=1, max=9)},) if dynamic else None
    with torch.no_grad():
        exported = torch.export.export(module, (example,), dynamic_shapes=shapes, strict=False)
    graph = exported.module(check_guards=False)
    assert isinstance(graph, GraphModule)
    return graph


def mutable(graph: GraphModule) -> list[str]:
    nodes = [node for node in graph.graph.nodes if node.op == "call_function"]
    return [str(n.target) for n in nodes if getattr(n.target, "_schema", None) and n.target._schema.is_mutable]


VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "same": lambda x: x.detach(),
    "flat": lambda x: x.reshape(-1),
    "rows": lambda x: x.reshape(x.shape[0], -1),
    "turned": lambda x: x.transpose(0, -1),
    "all turned": lambda x: x.permute(*reversed(range(x.ndim))),
    "first": lambda x: x.chunk(2, 0)[0],
    "second": lambda x: x.chunk(2, -1)[-1],
    "one": lambda x: x.select(-1, x.shape[-1] // 2) if x.ndim > 1 else x,
    "unbound": lambda x: x.unbind(0)[-1] if x.ndim > 1 else x,
    "middle": lambda x: x[..., 1:-1] if x.shape[-1] > 2 else x,
    "every other": lambda x: x[..., ::2],
    "longer": lambda x: x.unsqueeze(1),
    "contiguous": lambda x: x.transpose(0, -1).contiguous(),
}
WRITES: dict[str, Callable[[Tensor], object]] = {
    "relu": lambda x: x.relu_(),
    "relu6": lambda x: functional.relu6(x, inplace=True),
    "silu": lambda x: functional.silu(x, inplace=True),
    "hardswish": lambda x: functional.hardswish(x, inplace=True),
    "leaky": lambda x: functional.leaky_relu(x, 0.3, inplace=True),
    "add": lambda x: x.add_(1.5),
    "itself": lambda x: x.mul_(x.sigmoid()),
    "clamp": lambda x: x.clamp_(-0.5, 0.75),
    "zero": lambda x: x.zero_(),
    "fill": lambda x: x.fill_(0.25),
    "double": lambda x: x.add_(x),
    "masked": lambda x: x.masked_fill_(x > 0.5, -2.0),
    "copy": lambda x: x.copy_(x.amax(dim=-1, keepdim=True)),
    "out": lambda x: torch.mul(x, 0.5, out=x),
    "negated": lambda x: x.__isub__(2 * x),
}
Step = tuple[str, int]


class Steps(nn.Module):
    """Views, writes and sums in any order; every tensor is read once more at the end."""

    def __init__(self, steps: Sequence[Step]) -> None:
        super().__init__()
        self.steps = steps

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        tensors = [images * 2.0 - 1.0]
        for name, index in self.steps:
            chosen = tensors[index % len(tensors)]
            if name in VIEWS:
                tensors.append(VIEWS[name](chosen))
            elif name in WRITES:
                WRITES[name](chosen)
            else:
                tensors.append(chosen + 1.0)
        return tuple(tensor + 0.0 for tensor in tensors)


steps = st.lists(st.tuples(st.sampled_from([*VIEWS, *WRITES, *WRITES, "new"]), st.integers(0, 9)), max_size=9)


@given(steps, st.booleans())
@settings(max_examples=60, deadline=None)
def test_whatever_is_written_through_whatever_view_is_what_pytorch_computes(given: list[Step], normal: bool) -> None:
    module = Steps(given)
    images = torch.rand(SHAPE, generator=torch.Generator().manual_seed(len(given)))
    graph = traced(module, images.clone())
    normalise(graph, "images") if normal else functionalise(graph)
    assert mutable(graph) == []
    for actual, expected in zip(graph(images.clone()), module(images.clone()), strict=True):
        torch.testing.assert_close(actual, expected)


FUNCTIONS: tuple[Any, ...] = (
    *(functional.silu, functional.relu, functional.relu6, functional.hardswish, functional.hardsigmoid),
    *(functional.hardtanh, functional.leaky_relu, functional.elu, functional.celu, functional.selu, functional.mish),
)
UNARY: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    **{function.__name__: (partial(function, inplace=True), function) for function in FUNCTIONS},
    "sigmoid": (lambda x: x.sigmoid_(), lambda x: x.sigmoid()),
    "tanh": (lambda x: x.tanh_(), lambda x: x.tanh()),
    "clamp": (lambda x: x.clamp_(0, 6), lambda x: x.clamp(0, 6)),
    "add": (lambda x: x.add_(1), lambda x: x + 1),
    "sum": (lambda x: x.__iadd__(x.sigmoid()), lambda x: x + x.sigmoid()),
    "mul": (lambda x: x.mul_(x.sigmoid()), lambda x: x * x.sigmoid()),
    "sub": (lambda x: x.__isub__(0.5), lambda x: x - 0.5),
    "div": (lambda x: x.div_(2), lambda x: x / 2),
}


class ArtifactResult(TinyDetector):
    """The tiny detector with activations of its own, in place or not; both read the value by its old name."""

    def __init__(self, names: Sequence[str], in_place: bool) -> None:
        super().__init__()
        self.calls = [UNARY[name][0 if in_place else 1] for name in names]
        self.in_place = in_place

    def forward(self, images: Tensor) -> Tensor:
        neck = self.stem(images)
        for call in self.calls:
            result = call(neck)
            neck = neck if self.in_place else result
        decoded: Tensor = self.decode(self.box(neck), self.cls(neck))
        return decoded


@given(st.lists(st.sampled_from(sorted(UNARY)), min_size=1, max_size=4))
@settings(max_examples=20, deadline=None)
def test_a_model_in_place_is_the_same_program_as_out_of_place(names: list[str]) -> None:
    one, other = (captured(seeded(ArtifactResult(names, in_place))) for in_place in (True, False))
    assert str(module_of(one).graph) == str(module_of(other).graph)
    assert list(one.values.values()) == list(other.values.values())
    assert one.fingerprint == other.fingerprint


def test_files_of_a_model_in_place_are_those_of_it_out_of_place(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="needs the extra qexport[onnx]")
    from qexport.backends.onnxruntime.backend import OnnxBackend

    contents = []
    for in_place in (True, False):
        program = captured(seeded(ArtifactResult(["leaky_relu", "sum", "hardswish", "silu"], in_place)))
        plan = make_plan(program, synthetic_statistics(program.values), ONNXRUNTIME)
        path = tmp_path / f"{in_place}.onnx"
        OnnxBackend().lower(lowering(program, "int8", plan, {"end2end": False}), path)
        contents.append(path.read_bytes())
    assert contents[0] == contents[1]


class Halves(TinyDetector):
    """Activations of parts, as a model writes them that saves memory, or one that does not."""

    in_place = True

    def forward(self, images: Tensor) -> Tensor:
        first, second = self.stem(images).chunk(2, 1)
        if self.in_place:
            first.relu_()
            second += first
        else:
            first = first.relu()
            second = second + first
        neck = torch.cat((first, second), 1)
        decoded: Tensor = self.decode(self.box(neck), self.cls(neck))
        return decoded


class OutOfPlaceHalves(Halves):
    in_place = False


def test_parts_that_do_not_overlap_are_left_alone() -> None:
    one, other = (captured(seeded(cls())) for cls in (Halves, OutOfPlaceHalves))
    assert one.fingerprint == other.fingerprint


def test_a_slice_that_is_written_is_concatenated_with_the_rest() -> None:
    class Sliced(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            values = images * 2
            values[:, 1:3] = images[:, :2]
            return values

    images = torch.rand(SHAPE)
    graph = traced(Sliced(), images)
    functionalise(graph)
    torch.testing.assert_close(graph(images), torch.cat((images[:, :1] * 2, images[:, :2], images[:, 3:] * 2), 1))
    assert [n.target for n in graph.graph.nodes if n.op == "call_function"][-1] is aten.cat.default


def test_an_open_number_of_images() -> None:
    class Both(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            values = images * 2
            rows = values.flatten(1)
            values.select(1, 0).relu_()
            rows.sub_(1)
            return values

    graph = traced(Both(), torch.rand(SHAPE), dynamic=True)
    functionalise(graph)
    images = torch.rand(5, *SHAPE[1:]) - 0.5
    torch.testing.assert_close(graph(images), Both()(images.clone()))


def test_a_model_that_keeps_something_of_earlier_images_is_refused() -> None:
    class Counting(TinyDetector):
        seen: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("seen", torch.zeros(1))

        def forward(self, images: Tensor) -> Tensor:
            self.seen += 1
            return super().forward(images + self.seen)

    with pytest.raises(InputError, match=r"writes into its own seen"):
        captured(seeded(Counting()))


def _through_windows(values: Tensor) -> object:
    return values.unfold(3, 2, 2).relu_()


def _sorted_into(values: Tensor) -> object:
    return torch.sort(values * 1, out=(values, torch.zeros(SHAPE, dtype=torch.int64)))


@pytest.mark.parametrize(("write", "named"), [(_through_windows, "aten.unfold"), (_sorted_into, "aten.sort")])
def test_what_has_no_form_out_of_place_is_refused_by_name(write: Callable[[Tensor], object], named: str) -> None:
    class Odd(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            values = images * 2
            write(values)
            return values

    graph = traced(Odd(), torch.rand(SHAPE))
    with pytest.raises(InputError) as caught:
        functionalise(graph)
    assert named in str(caught.value)


def test_the_input_of_the_caller_is_not_touched() -> None:
    class Scaling(TinyDetector):
        def forward(self, images: Tensor) -> Tensor:
            images *= 2
            return super().forward(images)

    program = captured(seeded(Scaling()))
    images = torch.rand(1, 3, 8, 8)
    before = images.clone()
    with torch.no_grad():
        actual = program.graph(images)
        torch.testing.assert_close(actual, seeded(Scaling())(images.clone()))
    assert torch.equal(images, before)


def test_copies_and_dropouts_are_no_part_of_a_program() -> None:
    class Idle(TinyDetector):
        def forward(self, images: Tensor) -> Tensor:
            same = images.clone().detach().contiguous()
            return super().forward(functional.dropout(same, 0.3, training=False))

    assert captured(seeded(Idle())).fingerprint == captured(seeded(TinyDetector())).fingerprint
