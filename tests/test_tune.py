"""`--tune latency`: searches among plans whose latencies are planted, and whole runs of a backend that sleeps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import DEMO, demo_images
from planted_backend import PlantedBackend
from planted_time import BATCH, PlantedTime
from test_repair import Workshop
from test_sensitivity import IMAGES, Case, case

from qexport.backends.protocol import Runner
from qexport.calibration.calibrate import calibrate
from qexport.errors import ConversionError
from qexport.job.options import make_job
from qexport.measurement.paired import Paired, compare_latency
from qexport.optimisation.candidate import Candidate
from qexport.optimisation.distance import Distance
from qexport.optimisation.tune_record import TuneRecord
from qexport.optimisation.variations import Variation, variations
from qexport.pipeline import export
from qexport.planning.plan import QuantPlan, load_plan
from qexport.planning.planner import make_plan
from qexport.planning.runtime_profiles import ONNXRUNTIME, ONNXRUNTIME_ARM, OPENVINO, TFLITE, Alternative
from qexport.programs.program import Program
from qexport.progress import Silent
from qexport.reporting.load import load_report
from qexport.reporting.report import ArtifactReport
from qexport.steps import tune
from qexport.steps.build import BuildRequest
from qexport.steps.plan import make_target
from qexport.steps.repair import repaired
from qexport.steps.tune_search import FARTHER, KEPT, Budget, Contender, fastest
from qexport.system.cache import VARIABLE, Cache
from qexport.testing import registered
from qexport.verification.result import ArtifactResult

Price = Callable[[QuantPlan], float]
"""Milliseconds that a plan takes."""


@pytest.fixture(scope="module")
def small(tiny: Program) -> Case:
    return case(tiny, TFLITE, calibrate(tiny, IMAGES, lambda: None, 1).statistics)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> PlantedTime:
    return PlantedTime.installed(monkeypatch)


@dataclass
class Bench:
    """Times plans by what they are said to take, and judges them by what they are said to lose."""

    clock: PlantedTime
    price: Price
    noise: float = 0.0
    lost: Callable[[QuantPlan], float] = lambda _: 0.2
    unwritable: Callable[[QuantPlan], bool] = lambda _: False
    lowering: float = 0.0
    random: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))
    written: int = 0

    def distance(self, candidate: Candidate, /) -> Distance:
        each = self.lost(candidate.plan) * np.array([0.9, 1.0, 1.1, 1.3])
        return Distance(each, np.zeros(4), np.zeros(4))

    def runner(self, candidate: Candidate, alternatives: tuple[Alternative, ...], /) -> Runner:
        self.clock.now += self.lowering
        if self.unwritable(candidate.plan):
            raise ConversionError("no")
        self.written += 1
        return self.timed(candidate.plan)

    def timed(self, plan: QuantPlan) -> Runner:
        taken = self.price(plan)
        return self.clock.runner(lambda: float(taken * np.exp(self.noise * self.random.standard_normal())))

    def compare(self, first: Runner, second: Runner, stop: Callable[[], bool], /) -> Paired:
        return compare_latency(first, second, BATCH, stop=stop)


def searched(given: Case, bench: Bench, seconds: float = 1e9) -> tuple[Contender, TuneRecord]:
    candidate = given.candidate

    def planned(alternatives: tuple[Alternative, ...], floats: Mapping[str, str]) -> Candidate:
        return replace(candidate, plan=given.replan(floats))

    first = Contender(candidate, bench.timed(candidate.plan))
    budget = Budget(seconds, lambda: bench.clock.now)
    return fastest(first, tried(given), planned, bench, budget, lambda _="": None)


def tried(given: Case) -> list[Variation]:
    return list(variations(given.candidate, replace(TFLITE, alternatives=())))


def priced(given: Case, seed: int) -> Price:
    """Each operation takes some time in integers and another in float; most are faster in integers."""
    random = np.random.default_rng(seed)
    costs = {name: random.uniform(0.2, 2.0, 2) * (1.0, 1.5) for name in sorted(given.candidate.plan.integer)}
    return lambda plan: sum(float(each[int(name not in plan.integer)]) for name, each in costs.items())


@pytest.mark.parametrize("seed", range(4))
def test_the_fastest_of_all_combinations_is_found(small: Case, clock: PlantedTime, seed: int) -> None:
    price, choices = priced(small, seed), [each.floats for each in tried(small)]
    groups = [each for n, each in enumerate(choices) if not any(each & other for other in choices[:n])]
    found, record = searched(small, Bench(clock, price))
    start = price(small.candidate.plan)
    every = [
        price(small.replan(dict.fromkeys(frozenset[str]().union(*some), "asked")))
        for count in range(len(groups) + 1)
        for some in combinations(groups, count)
    ]
    assert len(every) >= 16
    assert price(found.candidate.plan) <= min(each if each < start / 1.01 else start for each in every) * 1.01
    assert record.speedup == pytest.approx(start / price(found.candidate.plan))
    assert [each.name for each in record.curve if each.chosen] == [
        next(each.name for each in reversed(record.curve) if each.outcome in (KEPT, ""))
    ]


def test_what_was_found_says_why(small: Case, clock: PlantedTime) -> None:
    """The first convolution takes 3 of 10 ms in integers and 1 in float."""
    found, record = searched(small, Bench(clock, lambda plan: 7.0 + (3.0 if "stem_conv" in plan.integer else 1.0)))
    assert "stem_conv" not in found.candidate.plan.integer
    assert record.floats["stem_conv"] == "float: 1.25x faster here (--tune latency: first convolution)"
    assert record.reason == "1.25 times as fast as without, in 15 of 15 rounds, by first convolution"
    before, chosen = record.curve[0], next(each for each in record.curve if each.chosen)
    assert before.latency_ms == pytest.approx(10.0)
    assert chosen.latency_ms == pytest.approx(8.0)
    assert chosen.float_macs > before.float_macs
    assert chosen.speedup == pytest.approx(1.25)


def test_what_is_farther_from_fp32_is_no_candidate(small: Case, clock: PlantedTime) -> None:
    def price(plan: QuantPlan) -> float:
        return 10.0 if "stem_conv" in plan.integer else 5.0

    bench = Bench(clock, price, lost=lambda plan: 0.2 if "stem_conv" in plan.integer else 0.25)
    found, record = searched(small, bench)
    assert found.candidate is small.candidate
    assert record.speedup == 1.0
    assert record.curve[0].chosen
    assert {each.name: each.outcome for each in record.curve}["first convolution"] == FARTHER
    assert record.reason.startswith(f"the plan stays: none of {len(record.curve) - 1} others is faster beyond noise")


@pytest.mark.parametrize("noise", [0.05, 0.4])
def test_noise_is_not_taken_for_gain(small: Case, clock: PlantedTime, noise: float) -> None:
    bench = Bench(clock, lambda _: 10.0, noise)
    for _ in range(8):
        found, record = searched(small, bench)
        assert found.candidate is small.candidate
        assert not record.floats
        assert record.speedup == 1.0


def test_nothing_slower_than_the_plan_before_is_chosen(small: Case, clock: PlantedTime) -> None:
    gains = list[float]()
    for seed in range(20):
        price = priced(small, seed)
        found, _ = searched(small, Bench(clock, price, noise=0.04, random=np.random.default_rng(seed)))
        gains.append(price(small.candidate.plan) / price(found.candidate.plan))
    assert min(gains) == 1.0
    assert max(gains) > 1.1


def test_what_was_lucky_is_timed_once_more(small: Case, clock: PlantedTime) -> None:
    """Everything that is written is fast while it is compared for the first time, and never again."""
    bench, compared = Bench(clock, lambda _: 10.0), list[float]()

    def compare(first: Runner, second: Runner, stop: Callable[[], bool], /) -> Paired:
        compared.append(0)
        rounds = ((10.0, 9.0),) if len(compared) == 1 else ((10.0, 10.0),)
        return Paired(rounds * 15, 13)

    bench.compare = compare  # type: ignore[method-assign]
    found, record = searched(small, bench)
    assert found.candidate is small.candidate
    assert record.reason == (
        "the plan stays: what seemed 1.11 times as fast was faster in 0 of 15 rounds when timed once more"
    )
    assert (record.speedup, record.floats, record.curve[0].chosen) == (1.0, {}, True)


def test_a_plan_that_cannot_be_written_does_not_end_the_search(small: Case, clock: PlantedTime) -> None:
    bench = Bench(
        clock,
        lambda plan: 10.0 - len(small.candidate.plan.integer - plan.integer) / 10,
        unwritable=lambda plan: "stem_conv" not in plan.integer,
    )
    found, record = searched(small, bench)
    outcomes = {each.name: each.outcome for each in record.curve}
    assert outcomes["first convolution"].startswith("could not be tried: no")
    assert "stem_conv" in found.candidate.plan.integer
    assert record.speedup > 1


@pytest.mark.parametrize(("seconds", "written"), [(0.001, 1), (30.0, 1), (75.0, 3)])
def test_the_search_ends_in_time(small: Case, clock: PlantedTime, seconds: float, written: int) -> None:
    """Each takes 20 s to be written: behind the first none is begun that there is no time for."""
    bench = Bench(clock, lambda _: 10.0, lowering=20.0)
    _, record = searched(small, bench, seconds)
    assert bench.written == written
    assert written == 1 or record.seconds <= seconds
    assert record.limit == seconds
    left = len(tried(small)) - (len(record.curve) - 1)
    assert record.reason.endswith(f"; there was no time for {left} more")


def test_groups_are_what_their_names_say(demo_program: Program) -> None:
    table = calibrate(demo_program, demo_images("val", 1), lambda: None, 1)

    def of(profile: Any) -> dict[str, Variation]:
        plan = make_plan(demo_program, table.statistics, profile)
        return {each.name: each for each in variations(Candidate(demo_program, plan, demo_program), profile)}

    groups, values = of(TFLITE), demo_program.values
    stem = groups["first convolution"].floats
    assert {values[name].weight for name in stem} - {""} == {"model.0.conv.weight"}
    assert {values[name].operation for name in stem} == {"conv", "sigmoid", "mul"}
    shapes = {name: demo_program.graph.parameter(value.weight).shape for name, value in values.items() if value.weight}
    deep = {name for name in groups["depthwise convolutions"].floats if name in shapes}
    plan = make_plan(demo_program, table.statistics, TFLITE)
    assert deep == {name for name, shape in shapes.items() if shape[1] == 1 and shape[0] > 1} & plan.integer
    attention = {values[name].weight for name in groups["attention"].floats} - {""}
    assert attention
    assert all(".attn.qkv." in name or ".attn.proj." in name for name in attention)
    assert {values[name].operation for name in groups["concatenations"].floats} == {"cat"}
    assert {values[name].operation for name in groups["sums"].floats} <= {"add", "sub"}
    assert not {values[name].weight for name in groups["activations"].floats} - {""}
    assert "activations" not in of(OPENVINO)
    assert next(iter(of(ONNXRUNTIME))) == "first convolution in integers"
    assert next(iter(of(ONNXRUNTIME_ARM))) == "signed activations"
    assert all(each.floats <= plan.integer for each in groups.values())


def test_a_runtimes_other_choices_make_other_plans(demo_program: Program) -> None:
    statistics = calibrate(demo_program, demo_images("val", 1), lambda: None, 1).statistics
    signed, stem = ONNXRUNTIME_ARM.alternatives
    profile = replace(ONNXRUNTIME_ARM, float_stem=0.5)  # of so small a model it is more than the usual share
    plain = make_plan(demo_program, statistics, profile)
    made = make_plan(demo_program, statistics, profile.changed((signed,)))
    assert {each.dtype for each in made.tensors.values()} == {"int8", "float32"}
    assert {each.dtype for each in plain.tensors.values()} == {"uint8", "int8", "float32"}
    gates = [name for name in made.integer if demo_program.values[name].operation == "sigmoid"]
    assert {(made.tensors[name].scale, made.tensors[name].zero_point) for name in gates} == {((1 / 256,), (-128,))}
    more = make_plan(demo_program, statistics, profile.changed((stem,))).integer - plain.integer
    assert {demo_program.values[name].weight for name in more} - {""} == {"model.0.conv.weight"}


@pytest.fixture
def shop(tmp_path: Path) -> Workshop:
    made = Workshop(tmp_path, lambda _: 0.0)
    made.request = replace(made.request, target=make_target("onnx"))
    return made


def tuned_by(shop: Workshop, record: TuneRecord, **changes: Any) -> tuple[ArtifactResult, BuildRequest]:
    source: Any = SimpleNamespace(program=shop.program)
    request = replace(shop.request, **changes)
    return tune.tuned(request, shop.first, source, shop.build, lambda *_: record, shop.request.path.parent)


def test_what_was_found_is_built_with_its_reasons(shop: Workshop) -> None:
    record = TuneRecord(floats={"layers_0_conv": "float: 1.25x faster here"}, changes=("nobody's",))
    made, built_by = tuned_by(shop, record)
    assert made.tuning == record
    assert shop.written.integer == shop.plan.integer - {"layers_0_conv"}
    assert shop.written == built_by.plan
    assert built_by.plan_path == shop.request.plan_path


def test_where_nothing_is_faster_nothing_is_built(shop: Workshop) -> None:
    built = list[BuildRequest]()
    shop.build = built.append  # type: ignore[assignment, method-assign]
    made, built_by = tuned_by(shop, TuneRecord(reason="the plan stays"))
    assert (made.tuning, built_by, built) == (TuneRecord(reason="the plan stays"), shop.request, [])


def test_a_tuned_file_that_is_refused_leaves_the_one_before(shop: Workshop) -> None:
    build, asked_for = shop.build, list[BuildRequest]()

    def refuse(asked: BuildRequest) -> ArtifactResult:
        asked_for.append(asked)
        made = build(asked)
        if asked.plan:
            raise ConversionError("it is refused")
        return made

    shop.build = refuse  # type: ignore[method-assign]
    made, built_by = tuned_by(shop, TuneRecord(floats={"layers_0_conv": "float: 1.25x faster here"}))
    assert made.warnings == ("not tuned: it is refused",)
    assert made.tuning is None
    assert asked_for[-1] == built_by == shop.request
    assert shop.written == shop.plan


def test_what_cannot_be_tuned_says_why(shop: Workshop) -> None:
    found = TuneRecord(floats={"layers_0_conv": "no"})
    other = "arm" if make_target("onnx", cpu="arm").profile != make_target("onnx").profile else "avx2"
    foreign, _ = tuned_by(shop, found, target=make_target("onnx", cpu=other))
    assert foreign.warnings == (f"not tuned: the file is for {other} CPUs, which this machine is not",)
    given, _ = tuned_by(shop, found, plan=shop.plan)
    assert given.warnings == ("not tuned: its plan is given",)


def test_repair_goes_on_from_what_was_tuned(shop: Workshop) -> None:
    record = TuneRecord(floats={"layers_0_conv": "float: 1.25x faster here"})
    made, built_by = tuned_by(shop, record)
    losses = iter((5.0, 5.0, 0.5))
    shop.lost = lambda _: next(losses, 0.5)
    asked = (shop.request, made, shop.program, 1.0, shop.score, shop.build, Silent())
    mended = repaired(*asked, built_by)
    assert mended.tuning == record
    assert mended.repair is not None
    assert "layers_0_conv" not in shop.written.integer
    assert shop.written.integer < built_by.plan.integer if built_by.plan else False


def test_the_key_is_of_everything_that_a_search_depends_on(shop: Workshop, tmp_path: Path) -> None:
    cache, first = Cache(tmp_path, {"cpu": "one"}), shop.first

    def key(artifact: str = "a", sha256: str = "", seconds: float = 120.0, threads: int = 2, of: Cache = cache) -> str:
        file = replace(first, artifact=replace(first.artifact, sha256=sha256))
        return tune.tuning_key(of, artifact, file, replace(shop.request, threads=threads), seconds)

    other = key(artifact="b"), key(sha256="c"), key(seconds=60.0), key(threads=1), key(of=Cache(tmp_path, {"cpu": "x"}))
    assert len({key(), *other}) == 6
    assert key() == key()
    assert key(artifact="") == ""


@pytest.fixture
def options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A run of the demo model for a backend that takes longer for a first convolution in integers; few are tried."""
    pytest.importorskip("torchao", reason="needs the extra qexport[tflite]")
    monkeypatch.setenv(VARIABLE, str(tmp_path / "cache"))
    clock = PlantedTime.installed(monkeypatch)
    monkeypatch.setattr(PlantedBackend, "clock", clock)
    monkeypatch.setattr(tune, "MAX_TRIED", 2)
    for split, count in (("train", 3), ("val", 2)):
        lines = "\n".join(str(each) for each in demo_images(split, count))
        (tmp_path / f"{split}.txt").write_text(lines, encoding="utf-8")
    names = yaml.safe_load((DEMO / "shapes" / "shapes.yaml").read_text(encoding="utf-8"))["names"]
    data = tmp_path / "few.yaml"
    data.write_text(yaml.safe_dump({"path": str(tmp_path), "train": "train.txt", "val": "val.txt", "names": names}))
    return {
        "model": str(DEMO / "shapes26.pt"),
        "data": str(data),
        "format": "planted",
        "int8": True,
        "imgsz": 64,
        "effort": "none",
        "no_eval": True,
        "tune": "latency",
        "out": tmp_path / "out",
    }


def run(options: Mapping[str, Any], **changes: Any) -> ArtifactReport:
    with registered(PlantedBackend):
        job = make_job({**options, **changes})
        report = export(job)
        assert load_report(job.report_json) == report
    return report.artifacts[0]


@pytest.mark.slow
def test_a_run_writes_what_is_fastest_and_the_next_one_takes_it(options: dict[str, Any]) -> None:
    made = run(options)
    assert made.tuning is not None
    assert made.tuning.speedup == pytest.approx(8 / 3)
    assert made.plan is not None
    plan = load_plan(made.plan)
    assert made.tuning.floats
    floats = {name: why for name, why in made.tuning.floats.items() if not plan.is_quantised(name)}
    assert floats
    assert {plan.tensors[name].why for name in floats} == {
        "float: 2.67x faster here (--tune latency: first convolution)"
    }
    assert not plan.integer & made.tuning.floats.keys()
    assert made.verification is not None
    assert made.verification.planned_coverage == pytest.approx(1 - made.tuning.curve[1].float_macs)
    assert made.latency_ms is not None
    assert made.latency_ms.p50 == pytest.approx(3.0)
    content = Path(made.path).read_bytes()

    timed = PlantedBackend.loaded
    again = run(options)
    assert again.tuning == replace(made.tuning, taken=again.taken["tuning"])
    assert again.taken.keys() == {"file", "tuning", "latency"}
    assert Path(again.path).read_bytes() == content
    assert PlantedBackend.loaded - timed <= 2  # samples; nothing is timed
