"""Signal to quantisation noise: in closed form, and against both programs run by themselves."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import TinyDetector, captured, seeded, statistics_of, synthetic_statistics
from torch import Tensor, nn
from torch.fx import GraphModule, Interpreter

from qexport.calibration.statistics import BINS
from qexport.detections.layout import HeadLayout
from qexport.measurement.evidence.histograms import chosen_range, rebinned, worst_histograms
from qexport.measurement.evidence.layers import layers
from qexport.planning.plan import QuantPlan, TensorQuant
from qexport.planning.planner import make_plan
from qexport.planning.runtime_profiles import OPENVINO, TFLITE, RuntimeProfile
from qexport.programs.captured_graph import copied
from qexport.programs.program import Program
from qexport.simulation.meters import MAX_DB, metered, sqnr_of
from qexport.simulation.rewrite import simulated


class Kept(Interpreter):
    """Keeps every value of a run."""

    def __init__(self, graph: GraphModule) -> None:
        super().__init__(graph, garbage_collect_values=False)

    def values(self, batch: Tensor) -> dict[str, Tensor]:
        self.run(batch)
        return {node.name: made for node, made in self.env.items() if isinstance(made, Tensor)}


class Ranked(nn.Module):
    """A decode that puts rows in the order of their scores, though they have none in them."""

    layout = HeadLayout(strides=(1,), imgsz=(64, 64), classes=2, head="one2many")

    def forward(self, boxes: Tensor, scores: Tensor) -> Tensor:
        """(1, 5, 4): boxes of the five best."""
        best = scores.flatten(2).amax(dim=1).topk(5).indices[0]
        return boxes.flatten(2).transpose(1, 2)[:, best]


@pytest.fixture(scope="module")
def wide() -> Program:
    """The tiny program at a size that makes averages of its values."""
    return captured(seeded(TinyDetector()), (64, 64))


def planned(program: Program, profile: RuntimeProfile) -> QuantPlan:
    return make_plan(program, synthetic_statistics(program.values), profile)


def noise(seed: int, size: int = 64) -> Tensor:
    return torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(seed))


def only(program: Program, name: str, quant: TensorQuant) -> QuantPlan:
    """A plan that quantises one value and nothing else."""
    tensors = {each: quant if each == name else TensorQuant("float32") for each in program.values}
    return QuantPlan("by hand", program.fingerprint, frozenset({name}), tensors)


@pytest.mark.parametrize(("steps", "decibels"), [(255, 54.15), (15, 29.54)])
def test_a_uniform_quantiser_has_the_noise_of_its_step(wide: Program, steps: int, decibels: float) -> None:
    # Uniform in 0..1: signal 1/3, noise (1 / steps)^2 / 12, so 10 log10(4 steps^2).
    assert 10 * math.log10(4 * steps**2) == pytest.approx(decibels, abs=0.01)
    graph = metered(wide, only(wide, "images", TensorQuant("uint8", (1 / steps,), (0,))))
    for seed in range(2):
        graph(noise(seed))
    found = sqnr_of(graph)
    assert found["images"] == pytest.approx(decibels, abs=0.1)
    assert found["stem_conv"] is not None
    assert found["stem_conv"] < MAX_DB


def test_clipping_is_noise_too(wide: Program) -> None:
    # Everything above 0.5 becomes 0.5: the error is x - 0.5 there, a third of 0.5^3 on average, against a third.
    graph = metered(wide, only(wide, "images", TensorQuant("int16", (2.0**-16,), (0,))))
    graph(noise(0))
    assert sqnr_of(graph)["images"] == pytest.approx(10 * math.log10(8), abs=0.1)


def test_what_nothing_rounds_has_the_best_figure_there_is(wide: Program) -> None:
    graph = metered(wide, only(wide, "neck_conv", TensorQuant("int8", (0.1,), (0,))))
    graph(noise(0))
    found = sqnr_of(graph)
    assert found["images"] == found["stem_conv"] == MAX_DB
    assert found["neck_conv"] is not None
    assert found["neck_conv"] < 60
    graph = metered(wide, only(wide, "neck_conv", TensorQuant("int8", (0.1,), (0,))))
    graph(torch.zeros(1, 3, 64, 64))
    assert sqnr_of(graph)["images"] is None  # no signal at all


@pytest.mark.parametrize("profile", [TFLITE, OPENVINO])
def test_every_value_is_compared_as_its_readers_see_it(wide: Program, profile: RuntimeProfile) -> None:
    plan = planned(wide, profile)
    graph = metered(wide, plan)
    batches = [noise(seed) for seed in range(3)]
    outputs = [graph(batch) for batch in batches]
    plain = simulated(wide, plan)
    for batch, output in zip(batches, outputs, strict=True):
        assert torch.equal(plain(batch), output)  # it is the simulated program to its caller
    found = sqnr_of(graph)
    assert list(found) == list(wide.values)
    seen = dict.fromkeys(wide.values, (0.0, 0.0))
    for batch in batches:
        real, approximate = Kept(copied(wide)).values(batch), Kept(plain).values(batch)
        for name, (signal, error) in seen.items():
            one, other = real[name].double(), approximate[name].double()
            if plan.is_quantised(name):
                quant, low = plan.tensors[name], 0 if plan.tensors[name].dtype == "uint8" else -128
                integers = (other / quant.scale[0]).round() + quant.zero_point[0]
                other = (integers.clamp(low, low + 255) - quant.zero_point[0]) * quant.scale[0]
            seen[name] = signal + float((one**2).sum()), error + float(((one - other) ** 2).sum())
    for name, (signal, error) in seen.items():
        assert found[name] == pytest.approx(10 * math.log10(signal / error), abs=0.02), name


def test_nothing_is_compared_behind_a_ranking() -> None:
    module = seeded(TinyDetector())
    module.decode = Ranked()
    program = captured(module)
    graph = metered(program, planned(program, TFLITE))
    graph(noise(0, 8))
    assert set(program.values) - set(sqnr_of(graph)) == {"decode_part", "decode_select", "decode_index"}
    assert "decode_amax" in sqnr_of(graph)


def test_layers_are_the_plans_values_with_their_noise(tiny: Program) -> None:
    plan = planned(tiny, TFLITE)
    found = layers(tiny, plan, {"stem_conv": 31.23456, "images": None})
    assert [layer.name for layer in found] == list(tiny.values)
    by_name = {layer.name: layer for layer in found}
    stem, quant = by_name["stem_conv"], plan.tensors["stem_conv"]
    assert (stem.operation, stem.dtype, stem.sqnr_db) == ("conv", "int8", 31.23)
    assert (stem.scale, stem.zero_point, stem.why) == (quant.scale[0], quant.zero_point[0], quant.why)
    assert stem.macs == 4 * 4 * 8 * 27  # 4 x 4 positions, 8 channels, 3 x 3 x 3 inputs
    assert by_name["images"].sqnr_db is by_name["neck_conv"].sqnr_db is None
    softmax = next(layer for layer in found if layer.operation == "softmax")
    assert (softmax.dtype, softmax.scale, softmax.zero_point) == ("float32", None, None)


@pytest.mark.parametrize(("low", "high"), [(-3.9, 3.9), (0.0, 3.0), (-0.01, 2.5), (0.26, 0.2601), (3.99, 3.999)])
def test_bins_are_merged_without_an_estimate(low: float, high: float) -> None:
    data = np.random.default_rng(0).uniform(low, high, 5000)
    edges, counts = rebinned(statistics_of(data, 4.0))
    assert len(edges) == len(counts) + 1 <= 65
    expected, _ = np.histogram(data, bins=np.array(edges))
    assert list(counts) == expected.tolist()
    assert sum(counts) == 5000
    assert counts[0] > 0 < counts[-1]
    width = (edges[-1] - edges[0]) / len(counts)
    assert np.log2(width / (8 / BINS)) == int(np.log2(width / (8 / BINS)))
    assert len(counts) > 32 or width == 8 / BINS  # no coarser than it has to be


def test_the_chosen_range_is_that_of_the_integers() -> None:
    assert chosen_range(TensorQuant("int8", (0.5,), (-28,))) == (-50.0, 77.5)
    assert chosen_range(TensorQuant("uint8", (0.5,), (28,))) == (-14.0, 113.5)


def test_histograms_are_of_the_noisiest_watched_values(tiny: Program) -> None:
    plan, statistics = planned(tiny, TFLITE), synthetic_statistics(tiny.values)
    names = [name for name in tiny.values if plan.is_quantised(name)]
    sqnr = {name: 40.0 - index for index, name in enumerate(names)}
    found = worst_histograms(tiny, plan, statistics, {**sqnr, "images": None})
    watched = [name for name in reversed(names) if "sigmoid" not in name]
    assert [each.name for each in found] == watched[:8]
    assert [each.sqnr_db for each in found] == sorted(each.sqnr_db for each in found)
    own = next(each for each in found if each.name == "box_conv")
    assert sum(own.counts) == 20_001
    assert (own.low, own.high) == chosen_range(plan.tensors["box_conv"])
    unplanned = replace(plan, tensors={name: TensorQuant("float32") for name in plan.tensors})
    assert worst_histograms(tiny, unplanned, statistics, sqnr) == ()
