"""Show where the time of a run goes in each runtime, FP32 beside INT8, and how far its convolutions are from the peak.

    make bench-profile    (or: .venv/bin/python benchmarks/profile_runtimes.py [--shared DIR] [--keep DIR] [MODEL …])

Exports each model with `--effort none` and lets the runtimes' own profilers time every node of both files in turns,
each format in a process of its own: ONNX Runtime's trace, OpenVINO's counters, and of LiteRT the profiler of its C
interface, which XNNPACK tells its operators to. Profilers slow a run: what one takes without them stands beside. The
peak is what `qexport doctor` times, convolutions of 3 by 3 with 128 channels. Of everything the quickest of some rounds
counts: other programs make it longer, never shorter. With --keep the files are kept, and a second call takes what is
there. With --keep-float INT8 files with some operations in float are timed in turns with the INT8 file instead.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from litert_profiler import LiteRTProfiler
from numpy.typing import NDArray
from profile_nodes import DEPTHWISE, FIRST, LAYERS, PARTS, POINTWISE, WIDE, Node, of_counters, of_events, of_trace

from qexport.backends.protocol import RunsConvolutions
from qexport.backends.registry import find_backend
from qexport.compat.quiet import quiet_libraries
from qexport.data.images import letterbox, read_image, to_tensor
from qexport.lowering.convolutions import ConvolutionStack
from qexport.measurement.latency import PAUSE, in_turns, measure_latency
from qexport.measurement.peaks import FP32, INT8
from qexport.programs.program import INPUT, Program
from qexport.system.machine import cpu_kind, processor_name

QEXPORT = Path(sys.executable).with_name("qexport")
MODELS = ("yolo26n", "yolo11n", "yolov8n")
FORMATS = ("onnx", "openvino", "tflite")
PRECISIONS = ("fp32", "int8")
SIZE = (640, 640)
ROUNDS = 15
SHOWN = 0.01
"""Milliseconds from which on an operator has a line; what is below counts in its part."""


@dataclass(frozen=True)
class Side:
    """One file of a pair: its nodes, and the milliseconds of a run without a profiler."""

    nodes: tuple[Node, ...]
    run: float

    @property
    def milliseconds(self) -> float:
        """Of all nodes together."""
        return sum(node.milliseconds for node in self.nodes)

    def of(self, part: str, operator: str = "", kernel: str | None = None) -> list[Node]:
        """Nodes of a part, an operator, a kernel."""
        kept = (node for node in self.nodes if node.part == part and operator in ("", node.operator))
        return [node for node in kept if kernel in (None, node.kernel)]


def main() -> int:
    """Export, and print the tables of each model and format."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=list(MODELS))
    parser.add_argument("--shared", type=Path, default=Path(__file__).resolve().parents[2] / "shared")
    parser.add_argument("--keep", type=Path, help="folder of the exports")
    parser.add_argument("--formats", nargs="*", default=list(FORMATS), choices=FORMATS)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--keep-float", nargs="*", default=[], metavar="NAME,…", help="time these INT8 files instead")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        (print_variants if given.keep_float else print_profile)(given, given.one)
        return 0
    print(f"{processor_name()} ({cpu_kind()}), {given.threads} thread(s), {time.strftime('%Y-%m-%d')}", flush=True)
    if given.keep_float:
        print("\n| model | format | in float | INT8, ms | these in float | ratio | median of the rounds' | won |")
        print("| --- | --- | --- | --- | --- | --- | --- | --- |", flush=True)
    with tempfile.TemporaryDirectory(prefix="qexport-bench-") as scratch:
        given.keep = (given.keep or Path(scratch)).resolve()
        for model in given.models:
            for precision, floats in [("int8", name) for name in ("", *given.keep_float)] + [("fp32", "")]:
                export(given, model, precision, floats)
            for name in given.formats:
                words = [sys.executable, __file__, model, "--one", name, "--keep", str(given.keep)]
                words += ["--threads", str(given.threads), "--rounds", str(given.rounds)]
                words += ["--keep-float", *given.keep_float, "--shared", str(given.shared)]
                subprocess.run(words, check=True)
    return 0


def export(given: argparse.Namespace, model: str, precision: str, floats: str = "") -> None:
    """Write what is not there yet of one precision, with the operations `floats` in float."""
    files = {name: file_of(given.keep, model, name, precision, floats) for name in given.formats}
    missing = [name for name, path in files.items() if not path.exists()]
    if missing:
        words = [str(QEXPORT), str(given.shared / f"models/{model}.pt"), "--precision", precision, "--quiet"]
        words += ["--format", ",".join(missing), "--effort", "none", "--no-eval", "--no-latency"]
        words += ["--data", str(given.shared / "datasets/coco128/coco128.yaml")] * (precision == "int8")
        words += ["--keep-float", floats] * bool(floats)
        subprocess.run([*words, "--out", str(files[missing[0]].parent)], check=True)


def file_of(folder: Path, model: str, name: str, precision: str, floats: str = "") -> Path:
    """Where `export` leaves a file."""
    kind = "+".join([precision, *filter(None, floats.split(","))])
    return folder / model / kind / f"{model}_{precision}{find_backend(name).info.suffix}"


def print_variants(given: argparse.Namespace, name: str) -> None:
    """Time INT8 files with more in float in turns with the one that has none, and print what the rounds say."""
    quiet_libraries()
    (model,) = given.models
    names = ["", *given.keep_float]
    backend = find_backend(name)
    runners = {each: backend.runner(file_of(given.keep, model, name, "int8", each), given.threads) for each in names}
    rounds = [turn for turn in in_turns(runners, image_of(given, SIZE), given.rounds) if turn]
    quickest = [{each: min(turn[each]) for each in names} for turn in rounds]
    for each in names[1:]:
        ratios = [turn[each] / turn[""] for turn in quickest]
        least = [min(turn[kind] for turn in quickest) for kind in ("", each)]
        print(
            f"| {model} | {backend.info.title} | {each} | {least[0]:.1f} | {least[1]:.1f} | {least[1] / least[0]:.3f} "
            f"| {statistics.median(ratios):.3f} | {sum(ratio < 1 for ratio in ratios)} of {len(ratios)} |",
            flush=True,
        )


def image_of(given: argparse.Namespace, size: tuple[int, int]) -> NDArray[np.float32]:
    """One image of coco-val100, (1, 3, height, width) in 0..1."""
    image = sorted((given.shared / "datasets/coco-val100/images").rglob("*.jpg"))[0]
    return to_tensor(letterbox(read_image(image), size))[None]


def print_profile(given: argparse.Namespace, name: str) -> None:
    """Profile the two files of one model and format, and print what is found."""
    from qexport import read_model

    quiet_libraries()
    (model,) = given.models
    program = read_model(given.shared / f"models/{model}.pt").program
    batch = image_of(given, program.input.imgsz)
    files = {precision: file_of(given.keep, model, name, precision) for precision in PRECISIONS}
    sides = profiled(files, name, batch, given, kernels_of(program))
    peaks = peak_rates(name, given)
    before, after = (sides[precision] for precision in PRECISIONS)
    print(f"\n### {model}, {find_backend(name).info.runtime}\n")
    print("\n".join(operator_rows(before, after)), "\n")
    print("\n".join(rate_rows(macs_of(program), before, after, peaks)), "\n")
    print("\n".join(sentences(before, after, peaks, macs_of(program))), flush=True)


def profiled(
    files: dict[str, Path], name: str, batch: NDArray[np.float32], given: argparse.Namespace, kernels: dict[str, str]
) -> dict[str, Side]:
    """Each file's nodes and latency, the files in turns."""
    backend = find_backend(name)
    runners = {precision: backend.runner(path, given.threads) for precision, path in files.items()}
    latencies = measure_latency(runners, batch, given.rounds)
    del runners
    with tempfile.TemporaryDirectory(prefix="qexport-bench-") as scratch:
        kind = PROFILERS[name]
        profilers = {
            precision: kind(path, given.threads, batch, Path(scratch) / precision) for precision, path in files.items()
        }
        for round_ in range(given.rounds):
            for profiler in list(profilers.values())[:: -1 if round_ % 2 else 1]:
                time.sleep(PAUSE)
                profiler.run()
        nodes = {precision: tuple(each.nodes(kernels)) for precision, each in profilers.items()}
    return {precision: Side(nodes[precision], latencies[precision].min) for precision in files}


def peak_rates(name: str, given: argparse.Namespace) -> dict[str, float]:
    """Type of arithmetic → multiply-accumulates in a second, of bare convolutions."""
    backend, stack = find_backend(name), ConvolutionStack()
    assert isinstance(backend, RunsConvolutions)
    runs = {kind: partial(_run, run) for kind, run in backend.convolutions(stack, given.threads).items()}
    found = measure_latency(runs, stack.batch(), given.rounds)
    return {kind: stack.macs / each.min * 1e3 for kind, each in found.items()}


def _run(convolutions: Callable[[], object], _: object) -> tuple[()]:
    """One run as `measure_latency` makes it: the batch is there already."""
    convolutions()
    return ()


class Trace:
    """ONNX Runtime, whose trace is written when a session ends."""

    def __init__(self, path: Path, threads: int, batch: NDArray[np.float32], scratch: Path) -> None:
        import onnxruntime

        from qexport.programs.onnx.session import session_options

        options = session_options(threads)
        options.enable_profiling, options.profile_file_prefix = True, str(scratch)
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self._given = {self._session.get_inputs()[0].name: batch}

    def run(self) -> None:
        """Run once and once more, as every turn does."""
        for _ in range(2):
            self._session.run(None, self._given)

    def nodes(self, kernels: dict[str, str]) -> list[Node]:
        """What the trace says, by the median of all runs."""
        return of_trace(json.loads(Path(self._session.end_profiling()).read_text(encoding="utf-8")), kernels)


class Counters:
    """OpenVINO, compiled with counters and as `OpenVINOBackend` compiles it in all else."""

    def __init__(self, path: Path, threads: int, batch: NDArray[np.float32], scratch: Path) -> None:
        import openvino

        from qexport.backends.openvino.backend import EXACT, MODEL

        settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads, "PERF_COUNT": True}
        settings |= EXACT if scratch.name == "fp32" else {}
        self._request = openvino.Core().compile_model(path / MODEL, "CPU", settings).create_infer_request()
        self._batch, self._runs = batch, list[list[tuple[str, str, str, float]]]()

    def run(self) -> None:
        """Run twice, and keep the counters of the second run."""
        for _ in range(2):
            self._request.infer({0: self._batch})
        done = (each for each in self._request.get_profiling_info() if each.status.name == "EXECUTED")
        self._runs.append(
            [(each.node_name, each.node_type, each.exec_type, each.real_time.total_seconds() * 1e3) for each in done]
        )

    def nodes(self, _: dict[str, str]) -> list[Node]:
        """What the counters say."""
        return of_counters(self._runs)


class Events:
    """LiteRT, through its C interface."""

    def __init__(self, path: Path, threads: int, batch: NDArray[np.float32], _: Path) -> None:
        self._profiler = LiteRTProfiler(path, threads)
        self._profiler.fill(batch)
        self._runs = list[list[tuple[str, float]]]()

    def run(self) -> None:
        """Run twice, and keep the events of the second run."""
        self._profiler.run()
        self._runs.append(self._profiler.profiled())

    def nodes(self, _: dict[str, str]) -> list[Node]:
        """What the events say."""
        return of_events(self._runs)


PROFILERS: Mapping[str, type[Trace] | type[Counters] | type[Events]] = {
    "onnx": Trace,
    "openvino": Counters,
    "tflite": Events,
}


def operator_rows(before: Side, after: Side) -> Iterator[str]:
    """A Markdown table: part by part, and in each operator by operator, the longest in INT8 first."""
    yield "| | FP32: nodes | ms | share | INT8: nodes | of these on bytes | ms | share |"
    yield "| --- | --- | --- | --- | --- | --- | --- | --- |"
    for part in PARTS:
        floats, integers = before.of(part), after.of(part)
        if floats or integers:
            yield _row(f"**{part}**", before, floats, after, integers)
            names = {(node.operator, node.kernel) for node in (*floats, *integers)}
            kinds = [(before.of(part, *name), after.of(part, *name), ", ".join(filter(None, name))) for name in names]
            for one, other, title in sorted(kinds, key=lambda kind: (-total(kind[1]), -total(kind[0]), kind[2])):
                if max(total(one), total(other)) >= SHOWN:
                    yield _row(title, before, one, after, other)
    yield _row("**all nodes**", before, before.nodes, after, after.nodes)


def _row(title: str, before: Side, floats: Sequence[Node], after: Side, integers: Sequence[Node]) -> str:
    one, other = total(floats), total(integers)
    on_bytes = sum(node.integer for node in integers)
    return (
        f"| {title} | {len(floats)} | {one:.2f} | {one / before.milliseconds:.1%} "
        f"| {len(integers)} | {on_bytes} | {other:.2f} | {other / after.milliseconds:.1%} |"
    )


def total(nodes: Iterable[Node]) -> float:
    """Milliseconds of some nodes together."""
    return sum(node.milliseconds for node in nodes)


def kernels_of(program: Program) -> dict[str, str]:
    """Name of each layer → kind of its kernel."""
    found = {}
    for value in program.values.values():
        if value.weight and value.macs:
            shape = program.graph.parameter(value.weight).shape
            wide = any(size > 1 for size in shape[2:])
            kind = DEPTHWISE if value.operation == "conv" and shape[0] > 1 == shape[1] else WIDE if wide else POINTWISE
            found[value.name] = FIRST if INPUT in value.inputs else kind
    return found


def macs_of(program: Program) -> dict[str, int]:
    """Multiply-accumulates of one run, by the kind of the convolution."""
    found: defaultdict[str, int] = defaultdict(int)
    for name, kind in kernels_of(program).items():
        found[kind] += program.values[name].macs
    return dict(found)


def rate_rows(macs: dict[str, int], before: Side, after: Side, peaks: Mapping[str, float]) -> Iterator[str]:
    """A Markdown table: what convolutions do in a second, by their kind, and as a share of the measured peak."""
    top = tuple(peaks[kind] for kind in (FP32, INT8))
    yield "| convolutions | 10⁶ MACs | FP32: 10⁹/s | of the peak | INT8: 10⁹/s | of the peak | INT8 / FP32 time |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    yield f"| measured peak | | {top[0] / 1e9:.1f} | | {top[1] / 1e9:.1f} | | {top[0] / top[1]:.2f} |"
    kinds = [kind for kind in (FIRST, WIDE, POINTWISE, DEPTHWISE) if macs.get(kind)]
    groups = {kind: (macs[kind], before.of(LAYERS, kernel=kind), after.of(LAYERS, kernel=kind)) for kind in kinds}
    groups["all"] = sum(macs.values()), before.of(LAYERS), after.of(LAYERS)
    for kind, (count, *nodes) in groups.items():
        rates = [count / total(each) * 1e3 for each in nodes]
        shares = " | ".join(f"{rate / 1e9:.1f} | {rate / peak:.0%}" for rate, peak in zip(rates, top, strict=True))
        yield f"| {kind} | {count / 1e6:.0f} | {shares} | {rates[0] / rates[1]:.2f} |"


def sentences(before: Side, after: Side, peaks: Mapping[str, float], macs: dict[str, int]) -> Iterator[str]:
    """What a run takes without a profiler, and what it would take if the convolutions ran at the peak."""
    one, other = before.run, after.run
    yield f"A run takes {one:.1f} ms in FP32 and {other:.1f} ms in INT8 ({other / one:.2f}) without a profiler;"
    yield f"all nodes together {before.milliseconds:.1f} and {after.milliseconds:.1f} ms."
    rest = [side.milliseconds - total(side.of(LAYERS)) for side in (before, after)]
    least = [sum(macs.values()) / peaks[kind] * 1e3 for kind in (FP32, INT8)]
    bound = [each + spent for each, spent in zip(least, rest, strict=True)]
    yield f"All convolutions at the peak would take {least[0]:.1f} and {least[1]:.1f} ms, a run with all else as it is"
    yield f"{bound[0]:.1f} and {bound[1]:.1f} ms ({bound[1] / bound[0]:.2f})."


if __name__ == "__main__":
    sys.exit(main())
