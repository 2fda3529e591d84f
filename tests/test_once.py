"""What tests are given in place of another export is what the exporters gave, and only where nothing has changed."""

from __future__ import annotations

from collections.abc import Callable
from inspect import unwrap
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import SMALL, demo_checkpoint
from once import Kept, contents, converted_once, digest, replaced
from torch import nn
from torch.fx import GraphModule, symbolic_trace

from qexport.programs import capture
from qexport.programs.captured_graph import module_of
from qexport.programs.heads import split_head
from qexport.programs.program import Program
from qexport.programs.tags import tag_values


def captured(imgsz: tuple[int, int] = SMALL) -> Program:
    return capture.capture(split_head(demo_checkpoint().module, "end2end", imgsz), imgsz)


def test_a_network_that_was_traced_before_is_the_same_program(anew: None, demo_program: Program) -> None:
    again = captured()
    assert (again.fingerprint, again.values, again.raw) == (
        demo_program.fingerprint,
        demo_program.values,
        demo_program.raw,
    )
    assert module_of(again).code == module_of(demo_program).code


def test_graphs_that_are_given_twice_are_not_the_same_object(demo_program: Program) -> None:
    nodes = list(module_of(demo_program).graph.nodes)
    assert not set(nodes) & set(module_of(captured()).graph.nodes)


def test_everything_is_asked_anew_where_a_test_says_so(request: pytest.FixtureRequest) -> None:
    assert all(getattr(module, name) is not unwrap(getattr(module, name)) for module, name in replaced())
    request.getfixturevalue("anew")
    assert all(getattr(module, name) is unwrap(getattr(module, name)) for module, name in replaced())


def blocked() -> nn.Module:
    module: nn.Module = split_head(demo_checkpoint().module, "end2end", SMALL)
    return module


def changes() -> list[Callable[[nn.Module], object]]:
    """What makes another network of one: a weight, a number, a layer's kind, a hook, another forward."""

    def first(module: nn.Module) -> Any:
        return next(each for each in module.modules() if isinstance(each, nn.Conv2d))

    def activation(module: nn.Module) -> Any:
        return next(each for each in module.modules() if hasattr(each, "act"))

    return [
        lambda module: first(module).weight.data.view(-1)[0].add_(1.0),
        lambda module: setattr(first(module), "stride", (1, 1)),
        lambda module: setattr(activation(module), "act", nn.ReLU()),
        lambda module: setattr(first(module), "forward", first(module)._conv_forward),
        lambda module: first(module).register_forward_hook(blocked),
    ]


def test_networks_are_told_apart_by_all_that_they_are_made_of() -> None:
    made = [blocked() for _ in changes()]
    plain = digest(contents(blocked()))
    assert {digest(contents(each)) for each in made} == {plain}
    for change, module in zip(changes(), made, strict=True):
        change(module)
    assert len({plain, *(digest(contents(each)) for each in made)}) == 1 + len(made)
    first, *_ = (each for each in made[0].modules() if isinstance(each, nn.Conv2d))
    for unknown in (object(), lambda: None, first.register_buffer):
        made[0].extra = unknown  # type: ignore[assignment]
        with pytest.raises(TypeError):
            digest(contents(made[0]))


class Deep(nn.Module):
    """As many convolutions as a whole network has."""

    def __init__(self, count: int = 60) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(nn.Conv2d(1, 1, 1) for _ in range(count)))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            images = torch.ops.aten.conv2d.default(images, layer.weight, layer.bias)
        return images


def graph(change: Callable[[GraphModule], object] = lambda _: None, count: int = 60) -> GraphModule:
    module = Deep(count)
    for parameter in module.parameters():
        nn.init.constant_(parameter, 0.5)
    made = symbolic_trace(module)
    tag_values(made, SimpleNamespace(values=dict.fromkeys(node.name for node in made.graph.nodes)))  # type: ignore[arg-type]
    change(made)
    return made


def weight(made: GraphModule) -> None:
    with torch.no_grad():
        next(made.parameters()).fill_(0.25)


def name(made: GraphModule) -> None:
    made.graph.find_nodes(op="call_function", target=torch.ops.aten.conv2d.default)[3]._rename("other")


def stack(made: GraphModule) -> None:
    made.graph.find_nodes(op="call_function", target=torch.ops.aten.conv2d.default)[3].meta["nn_module_stack"] = {}


def stride(made: GraphModule) -> None:
    last = made.graph.find_nodes(op="call_function", target=torch.ops.aten.conv2d.default)[-1]
    last.args = (*last.args, [1, 1])


IMAGE = torch.zeros(1, 1, 4, 4)


@pytest.mark.parametrize(
    ("given", "asked"),
    [
        ((graph(), IMAGE, True), 1),
        ((graph(), IMAGE, False), 2),
        ((graph(), IMAGE[..., :2], True), 2),
        *(((graph(change), IMAGE, True), 2) for change in (weight, name, stack, stride)),
        ((graph(count=59), IMAGE, True), 3),
    ],
)
def test_a_converter_is_asked_anew_for_whatever_differs(given: tuple[Any, ...], asked: int, tmp_path: Path) -> None:
    """Nothing is remembered of small graphs."""
    count: list[str] = []

    def convert(*given: Any) -> Any:
        count.append("")
        return SimpleNamespace(model_content=lambda: f"file {len(count)}".encode())

    for _ in range(2):  # another process finds what the first has left
        once = converted_once(convert, Kept(tmp_path / "kept"))
        first = once(graph(), IMAGE, True, lambda _: None).model_content()
        found = once(*given, lambda _: None).model_content()
    assert len(count) == asked
    assert first == b"file 1"
    assert found == f"file {asked}".encode()


def test_what_says_something_else_has_another_name() -> None:
    one, other = torch.tensor([1.0, 2.0]), torch.tensor([[1.0, 2.0]])
    parts = [(), ("",), ("ab", "c"), ("a", "bc"), (one,), (other,), (one.double(),), (b"ab", "c", 0), ((1, "a"),)]
    assert len({digest(each) for each in parts}) == len(parts)
