"""What each part costs, against what graphs without switches give; and planted faults that are named and mended."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import pytest
import torch
from conftest import TinyDecode, captured, demo_images, seeded, synthetic_statistics
from torch import Tensor, nn

from qexport.calibration.calibrate import calibrate
from qexport.calibration.statistics import Statistics
from qexport.errors import InputError
from qexport.optimisation.candidate import Candidate
from qexport.optimisation.distance import HeldOut, distance, distance_of, hold_out, raw_outputs
from qexport.optimisation.layers import parts_of
from qexport.optimisation.mixed_precision import Replan, carried_over
from qexport.optimisation.sensitivity import sensitivity
from qexport.planning.plan import QuantPlan, TensorQuant, check_plan
from qexport.planning.planner import make_plan
from qexport.planning.runtime_profiles import TFLITE, RuntimeProfile
from qexport.programs.program import Program, RawNames
from qexport.progress import Silent
from qexport.simulation.fused import Fused
from qexport.simulation.insert import insert
from qexport.steps.sensitivity import sensitivity as measure_sensitivity

IMAGES = demo_images("val", 3)


@dataclass(frozen=True)
class Case:
    """A candidate, what it is judged by, and how to plan it again."""

    candidate: Candidate
    held_out: HeldOut
    replan: Replan


def case(program: Program, profile: RuntimeProfile, statistics: Mapping[str, Statistics] | None) -> Case:
    def replan(floats: Mapping[str, str]) -> QuantPlan:
        return make_plan(program, statistics, profile, float_values=floats)

    return Case(Candidate(program, replan({}), program), hold_out(program, IMAGES), replan)


@pytest.fixture(scope="module")
def small(tiny: Program) -> Case:
    return case(tiny, TFLITE, calibrate(tiny, IMAGES, lambda: None, 1).statistics)


def only(given: Case, kept: Collection[str]) -> float:
    """The distance of a graph that was built with nothing but some tensors quantised."""

    def make(tensor: TensorQuant, name: str) -> nn.Module:
        return Fused(tensor, name) if name in kept else nn.Identity()

    program = given.candidate.program
    graph = raw_outputs(program, insert(program, given.candidate.plan, make))
    return distance_of(program, graph, given.held_out).mean


def test_parts_share_out_everything_that_is_quantised(tiny: Program, small: Case) -> None:
    parts = parts_of(tiny, small.candidate.plan)
    quantised = {name for name in small.candidate.plan.tensors if small.candidate.plan.is_quantised(name)}
    for kinds in (("block",), ("layer", "value")):
        owned = {name for part in parts if part.kind in kinds for name in part.tensors}
        assert quantised - owned <= ({"images"} if kinds == ("block",) else set())
    by_name = {part.name: part for part in parts}
    stem = by_name["stem_conv"]
    assert (stem.kind, stem.operation, stem.block) == ("layer", "conv", "stem")
    assert {"stem_conv", "stem_sigmoid", "stem_mul", "stem.weight"} <= stem.tensors
    joined = by_name["program_cat"]
    assert (joined.kind, joined.macs) == ("value", 0)
    assert joined.values == ("program_add", "program_cat", "program_cat_2")
    assert joined.tensors >= {n for n, t in small.candidate.plan.tensors.items() if t.group == "stem_mul"}
    assert sum(part.macs for part in parts if part.kind != "block") == sum(v.macs for v in tiny.values.values())


def test_branches_and_levels_of_a_head_are_blocks_of_their_own(demo_program: Program) -> None:
    plan = make_plan(demo_program, synthetic_statistics(demo_program.values), replace(TFLITE, float_boxes=0.0))
    blocks = {part.name for part in parts_of(demo_program, plan) if part.kind == "block"}
    levels = {f"model.23.one2one_cv{branch}.{level}" for branch in (2, 3) for level in range(3)}
    assert {name for name in blocks if name.startswith("model.23")} == levels
    assert {"model.0", "model.22", "model.12"} <= blocks


def test_alone_and_left_out_are_what_graphs_without_switches_give(small: Case) -> None:
    candidate = small.candidate
    found = sensitivity(candidate, small.held_out, Silent())
    rows = {row.name: row for row in found.rows}
    everything = {name for name in candidate.plan.tensors if candidate.plan.is_quantised(name)}
    left = {"left.weight", "left_conv", "left_sigmoid", "left_mul"} & everything
    assert len(left) == 4
    assert rows["left_conv"].alone == pytest.approx(only(small, left))
    assert rows["left_conv"].left_out == pytest.approx(only(small, everything - left))
    assert found.whole == pytest.approx(distance(candidate, small.held_out).mean)
    assert found.images == len(IMAGES)
    assert [row.alone for row in found.single] == sorted((row.alone for row in found.single), reverse=True)


def test_a_small_budget_measures_the_worst_blocks(small: Case) -> None:
    every = sensitivity(small.candidate, small.held_out, Silent())
    blocks = [row for row in every.rows if row.kind == "block"]
    few = sensitivity(small.candidate, small.held_out, Silent(), 2 * len(blocks) + 3)
    assert [row for row in few.rows if row.kind == "block"] == blocks
    assert few.skipped == len(every.rows) - len(few.rows) > 0
    assert {row.block for row in few.single} == {blocks[0].name}


class Joined(nn.Module):
    """Boxes in pixels and logits in one tensor, as careless exports have them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 16, 3, 2, 1), nn.Conv2d(16, 16, 3, 1, 1)
        self.box, self.cls = nn.Conv2d(16, 4, 1), nn.Conv2d(16, 2, 1)
        self.decode = TinyDecode()

    def forward(self, images: Tensor) -> Tensor:
        deep = self.second(self.first(images).relu()).relu()
        boxes, scores = torch.cat((100 + self.box(deep), self.cls(deep)), 1).split((4, 2), 1)
        decoded: Tensor = self.decode(boxes, scores)
        return decoded


def joined() -> Case:
    module = seeded(Joined())
    module.get_parameter("cls.weight").mul_(0.2)
    program = captured(module)
    return case(program, TFLITE, calibrate(program, IMAGES, lambda: None, 1).statistics)


def test_boxes_and_scores_under_one_scale_are_named_first() -> None:
    planted = joined()
    found = sensitivity(planted.candidate, planted.held_out, Silent())
    assert found.single[0].operation == "cat"
    assert found.share(found.single[0]) > 0.8


class Chain(nn.Module):
    """Seven convolutions with SiLU; one output channel of the fourth is huge, which its reader makes up for."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(3 if i == 0 else 16, 16, 3, 2 if i == 0 else 1, 1) for i in range(7))
        self.act = nn.SiLU()
        self.box, self.cls = nn.Conv2d(16, 4, 1), nn.Conv2d(16, 2, 1)
        self.decode = TinyDecode()

    def forward(self, images: Tensor) -> Tensor:
        deep = images
        for layer in self.layers:
            deep = self.act(layer(deep))
        decoded: Tensor = self.decode(self.box(deep), self.cls(deep))
        return decoded


def seeded_chain() -> nn.Module:
    """Values stay of one size from layer to layer, and boxes are some cells large."""
    module = seeded(Chain())
    for parameter in module.parameters():
        parameter.mul_(0.22)
    module.get_parameter("box.bias").fill_(4)
    return module


def chain(factor: float) -> Case:
    module = seeded_chain()
    huge, reader = module.get_submodule("layers.3"), module.get_submodule("layers.4")
    huge.get_parameter("weight")[0].mul_(factor)
    huge.get_parameter("bias")[0].mul_(factor)
    reader.get_parameter("weight")[:, 0].div_(factor)
    program = captured(module)
    return case(program, TFLITE, calibrate(program, IMAGES, lambda: None, 1).statistics)


def test_a_layer_with_one_huge_channel_is_named_first() -> None:
    planted = chain(300)
    found = sensitivity(planted.candidate, planted.held_out, Silent())
    assert found.single[0].name == "layers_3_conv"
    assert found.share(found.single[0]) > 0.8


def test_scales_that_passes_have_tuned_stay_where_groups_do(small: Case) -> None:
    old = small.candidate.plan
    tuned = {
        name: replace(t, scale=tuple(s * 0.75 for s in t.scale)) if t.rule in ("own", "shared") and t.scale else t
        for name, t in old.tensors.items()
    }
    new = carried_over(small.replan({"deep_conv": "asked"}), replace(old, tensors=tuned))
    assert new.tensors["deep_conv"].why == "asked"
    assert new.tensors["neck.weight"] == tuned["neck.weight"]
    assert new.tensors["left_conv"].scale == tuned["left_conv"].scale
    assert new.tensors["images"] == old.tensors["images"]
    check_plan(new, small.candidate.program, "new")


def test_what_cannot_be_measured_is_refused(small: Case) -> None:
    floats = small.replan(dict.fromkeys(small.candidate.program.values, "asked"))
    with pytest.raises(InputError, match="the plan quantises nothing"):
        sensitivity(replace(small.candidate, plan=floats), small.held_out, Silent())
    unknown = replace(small.candidate.program, raw=RawNames((), ()))
    closed = replace(small.candidate, program=unknown)
    with pytest.raises(InputError, match="errors inside of the graph cannot be measured: "):
        sensitivity(closed, small.held_out, Silent())
    with pytest.raises(InputError, match="errors inside of the graph cannot be measured: "):
        measure_sensitivity(closed, IMAGES)
