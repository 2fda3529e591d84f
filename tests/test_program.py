"""The captured program: stable names, SiLU in two, and nothing that writes in place."""

from __future__ import annotations

import pytest
import torch
from conftest import (
    SMALL,
    TinyDecode,
    TinyDetector,
    captured,
    demo_checkpoint,
    demo_image,
    seeded,
    synthetic_statistics,
)
from torch import Tensor, nn

from qexport.errors import ConversionError, InputError
from qexport.lowering.onnx.half_graph import halve
from qexport.planning.planner import make_plan
from qexport.planning.runtime_profiles import TFLITE
from qexport.programs.capture import capture
from qexport.programs.captured_graph import copied, module_of
from qexport.programs.heads import split_head
from qexport.programs.naming import OPERATION_NAMES
from qexport.programs.program import Program, Region, observed_sources

aten = torch.ops.aten


def test_the_tiny_program_by_hand(tiny: Program) -> None:
    assert [(v.name, v.operation, v.inputs) for v in tiny.values.values() if v.region == "body"][:10] == [
        ("images", "input", ()),
        ("stem_conv", "conv", ("images",)),
        ("stem_sigmoid", "sigmoid", ("stem_conv",)),
        ("stem_mul", "mul", ("stem_conv", "stem_sigmoid")),
        ("program_part", "part", ("stem_mul",)),
        ("program_part_2", "part", ("stem_mul",)),
        ("left_conv", "conv", ("program_part_2",)),
        ("left_sigmoid", "sigmoid", ("left_conv",)),
        ("left_mul", "mul", ("left_conv", "left_sigmoid")),
        ("program_add", "add", ("program_part_2", "left_mul")),
    ]
    assert tiny.raw.boxes == ("box_conv",)
    assert tiny.raw.scores == ("cls_conv",)
    assert tiny.layout.head == "one2many"
    assert (tiny.input.imgsz, tiny.input.batch) == ((8, 8), 1)


def test_shapes_and_multiply_accumulates_by_hand(tiny: Program) -> None:
    values = tiny.values
    assert values["stem_conv"].shape == (1, 8, 4, 4)
    assert values["stem_conv"].macs == 8 * 4 * 4 * (3 * 3 * 3)
    assert values["left_conv"].macs == 4 * 4 * 4 * (4 // 2)  # two groups: each output sees two channels
    assert values["deep_conv"].macs == 8 * 2 * 2 * (8 * 3 * 3)
    # Four tokens of eight: (4, 8) @ (8, 4), then (8, 4) @ (4, 4).
    assert [v.macs for v in values.values() if v.operation == "matmul"] == [4 * 4 * 8, 8 * 4 * 4]
    assert values["stem_sigmoid"].macs == values["program_add"].macs == 0
    assert values["stem_conv"].weight == "stem.weight"
    assert values["stem_mul"].weight == ""


def test_the_program_computes_what_the_module_does() -> None:
    module = seeded(TinyDetector())
    images = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        torch.testing.assert_close(captured(module).graph(images), module(images))


def test_the_demo_program_computes_what_the_module_does(demo_program: Program) -> None:
    images = demo_image(SMALL)
    with torch.no_grad():
        expected = split_head(demo_checkpoint().module, "end2end", SMALL)(images)
        actual = demo_program.graph(images)
    torch.testing.assert_close(actual[0, :5], expected[0, :5], rtol=1e-4, atol=1e-3)


def test_two_captures_give_the_same_names_and_fingerprint(demo_program: Program) -> None:
    again = capture(split_head(demo_checkpoint().module, "end2end", SMALL), SMALL)
    assert list(again.values.values()) == list(demo_program.values.values())
    assert again.fingerprint == demo_program.fingerprint


def test_names_are_unique_and_those_of_the_nodes(demo_program: Program) -> None:
    nodes = [n.name for n in module_of(demo_program).graph.nodes if n.op in ("call_function", "placeholder")]
    assert len(set(nodes)) == len(nodes)
    assert set(demo_program.values) <= set(nodes)
    for value in demo_program.values.values():
        assert set(value.inputs) <= set(demo_program.values)


@pytest.mark.parametrize("change", ["weight", "bias", "size", "batch", "head"])
def test_the_fingerprint_changes_with_what_is_computed(change: str, tiny: Program) -> None:
    if change in ("weight", "bias"):
        module = seeded(TinyDetector())
        assert isinstance(module, TinyDetector)
        getattr(module.neck, change).data.view(-1)[0] += 0.001
        assert captured(module).fingerprint != tiny.fingerprint
        return
    model, imgsz, batch = demo_checkpoint().module, (64, 64), 1
    base = capture(split_head(demo_checkpoint().module, "end2end", imgsz), imgsz)
    head = "one2many" if change == "head" else "end2end"
    imgsz = (64, 96) if change == "size" else imgsz
    batch = 2 if change == "batch" else batch
    assert capture(split_head(model, head, imgsz), imgsz, batch).fingerprint != base.fingerprint


def test_silu_is_a_sigmoid_and_a_product(demo_program: Program) -> None:
    nodes = list(module_of(demo_program).graph.nodes)
    assert not [n for n in nodes if n.target in (aten.silu.default, aten.silu_.default)]
    body = [v for v in demo_program.values.values() if v.region == "body"]
    gates = [v for v in body if v.operation == "sigmoid"]
    silus = sum(isinstance(m, nn.SiLU) for m in split_head(demo_checkpoint().module, "end2end", SMALL).modules())
    assert silus >= 1
    assert len(gates) > 50
    for gate in gates:
        readers = demo_program.readers[gate.name]
        assert [(r.operation, set(r.inputs)) for r in readers] == [("mul", {gate.name, *gate.inputs})]


def test_nothing_writes_in_place(demo_program: Program, demo_one2many: Program) -> None:
    for program in (demo_program, demo_one2many):
        for node in module_of(program).graph.nodes:
            schema = getattr(node.target, "_schema", None)
            assert schema is None or not schema.is_mutable, node.name


class Overwritten(TinyDetector):
    """Reads a view of a convolution after an activation has overwritten it: both are the activation."""

    def forward(self, images: Tensor) -> Tensor:
        before = self.stem(images)
        view = before.reshape(before.shape)[:, :8]
        neck = self.act(before) + view
        decoded: Tensor = self.decode(self.box(neck), self.cls(neck))
        return decoded


def test_a_view_of_an_overwritten_value_is_one_of_the_new_value() -> None:
    values = captured(seeded(Overwritten())).values
    assert values["program_add"].inputs == ("stem_mul",)  # twice
    assert "program_reshape" not in values


class Reread(TinyDetector):
    """Reads a convolution by name after an activation has overwritten it: both names are the activation."""

    def forward(self, images: Tensor) -> Tensor:
        before = self.stem(images)
        after = self.act(before)
        neck = torch.cat((before, after), 1)
        decoded: Tensor = self.decode(self.box(neck[:, :8]), self.cls(neck[:, 8:]))
        return decoded


def test_an_overwritten_value_read_by_its_old_name_is_the_new_one() -> None:
    values = captured(seeded(Reread())).values
    assert values["program_cat"].inputs == ("stem_mul",)


class Branching(TinyDetector):
    """Cannot be traced: control flow depends on the image."""

    def forward(self, images: Tensor) -> Tensor:
        if images.sum() > 1:
            images = images + 1
        return super().forward(images)


def test_a_model_that_cannot_be_traced_is_one_line() -> None:
    with pytest.raises(InputError, match="cannot be traced") as caught:
        captured(seeded(Branching()))
    assert "\n" not in str(caught.value)


class Restless(TinyDetector):
    """Computes something else on every call, as a model with a fault of its own might."""

    calls = 0

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(images) + self.calls


def test_a_program_that_differs_from_its_model_is_refused() -> None:
    with pytest.raises(ConversionError, match="differs from the model by 1"):
        captured(seeded(Restless()))


def test_the_region_behind_the_raw_outputs_is_the_decode(demo_one2many: Program) -> None:
    values = demo_one2many.values
    assert [values[n].shape[1:] for n in demo_one2many.raw.boxes] == [(4, 40, 40), (4, 20, 20), (4, 10, 10)]
    assert [values[n].shape[1:] for n in demo_one2many.raw.scores] == [(6, 40, 40), (6, 20, 20), (6, 10, 10)]
    raw = {*demo_one2many.raw.boxes, *demo_one2many.raw.scores}
    for value in values.values():
        if value.region == "body" and value.name not in raw:
            assert all(reader.region == "body" for reader in demo_one2many.readers[value.name])
        if value.region == "decode":
            assert not value.weight
    assert values[list(values)[-1]].shape == (1, 10, 2100)


class Namesake(TinyDetector):
    """A user's modules that are called as ours are: names say nothing of where a program's parts begin."""

    def __init__(self, outer: str, inner: str) -> None:
        super().__init__()
        self.outer, self.inner = outer, inner
        setattr(self, outer, nn.ModuleDict({inner: nn.Conv2d(8, 8, 1)}))

    def forward(self, images: Tensor) -> Tensor:
        neck = self.act(getattr(self, self.outer)[self.inner](self.act(self.stem(images))))
        decoded: Tensor = self.decode(self.box(neck), self.cls(neck))
        return decoded


@pytest.mark.parametrize(
    ("outer", "inner"),
    [("exact_head", "point"), ("block", "exact_head"), ("decode_neck", "conv1"), ("exact", "decode")],
)
def test_modules_of_any_name_are_quantised(outer: str, inner: str) -> None:
    program = captured(seeded(Namesake(outer, inner)))
    layer = f"{outer}_{inner}"
    assert program.values[f"{layer}_conv"].weight == f"{outer}.{inner}.weight"
    plan = make_plan(program, synthetic_statistics(program.values), TFLITE)
    for name in (f"{layer}_conv", f"{layer}_sigmoid", f"{layer}_mul"):
        assert program.values[name].region is Region.BODY
        assert plan.tensors[name].dtype == "int8", plan.tensors[name].why
    tail = {value.operation for value in program.values.values() if value.region is Region.DECODE}
    assert tail == {"reshape", "sigmoid", "cat"}
    graph = copied(program)
    halve(graph)
    assert dict(graph.named_parameters())[f"{outer}.{inner}.weight"].dtype == torch.float16


def test_sources_are_followed_through_operations_that_move_data(tiny: Program) -> None:
    assert observed_sources(tiny, "stem_conv") == ("stem_conv",)
    assert observed_sources(tiny, "program_part_2") == ("stem_mul",)
    assert observed_sources(tiny, "program_cat") == ("stem_mul", "program_add")
    pooled = next(v.name for v in tiny.values.values() if v.operation == "max_pool")
    reshaped = next(v.name for v in tiny.values.values() if v.operation == "reshape")
    assert observed_sources(tiny, pooled) == ("deep_conv",)
    assert observed_sources(tiny, reshaped) == ("deep_conv",)
    # The resized sum of convolution and attention is itself computed: cat(shallow, resize(add)).
    added = [v.name for v in tiny.values.values() if v.operation == "add"][-1]
    assert observed_sources(tiny, "program_cat_2") == ("stem_mul", "program_add", added)


def test_readers_are_the_inverse_of_inputs(demo_program: Program) -> None:
    pairs = {(s, v.name) for v in demo_program.values.values() for s in v.inputs}
    assert pairs == {(name, r.name) for name, readers in demo_program.readers.items() for r in readers}


class Unusual(TinyDetector):
    """One operation that no table knows."""

    def forward(self, images: Tensor) -> Tensor:
        neck = torch.erf(self.stem(images))
        decoded: Tensor = self.decode(self.box(neck), self.cls(neck))
        return decoded


def test_an_operation_that_no_table_knows_keeps_its_aten_name() -> None:
    values = captured(seeded(Unusual())).values
    assert [v.operation for v in values.values() if v.inputs == ("stem_conv",)] == ["erf"]
    assert "erf" not in TFLITE.operations
    assert "erf" not in OPERATION_NAMES.values()


def test_the_tiny_decode_is_only_a_stand_in() -> None:
    decoded = TinyDecode()(torch.ones(1, 4, 2, 2), torch.zeros(1, 2, 2, 2))
    assert decoded.shape == (1, 6, 4)
    assert decoded[0, :, 0].tolist() == [1, 1, 1, 1, 0.5, 0.5]
