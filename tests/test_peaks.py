"""What arithmetic is worth here: the convolutions that are timed, the timing, and what is kept of it."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from doctored import Killed, Raising, waits
from numpy.typing import NDArray
from torch.nn.functional import conv2d, relu

from qexport.backends.protocol import RunsConvolutions
from qexport.backends.registry import find_backend
from qexport.lowering.convolutions import ConvolutionStack
from qexport.measurement import latency, peaks
from qexport.measurement.peaks import Peaks, RuntimePeaks, measurable, peaks_apart, peaks_of
from qexport.reporting import kept_peaks as keeping
from qexport.reporting.diagnosis import verdict
from qexport.reporting.kept_peaks import keep_peaks, kept_peaks
from qexport.system.apart import ApartError, text_from
from qexport.testing import FakeBackend, registered

TINY = ConvolutionStack(channels=8, size=6, depth=2)
FOUND = Peaks(2, (RuntimePeaks("onnx", {"FP32": 4e10, "INT8": 1e11}), RuntimePeaks("tflite", {}, "it fails")), 0.25)


def expected(batch: NDArray[np.float32]) -> NDArray[np.float32]:
    """What the stack computes, by PyTorch."""
    value = torch.from_numpy(batch)
    for integers in TINY.weights():
        value = relu(conv2d(value, torch.from_numpy(integers).float() * TINY.weight_scale, padding=1))
    return value.numpy()


def distance(actual: NDArray[np.float32], wanted: NDArray[np.float32]) -> float:
    return float(np.linalg.norm(actual - wanted) / np.linalg.norm(wanted))


@pytest.mark.parametrize(("precision", "allowed"), [("fp32", 1e-6), ("fp16", 2e-3), ("int8", 0.03)])
def test_the_onnx_graph_is_the_stack(precision: str, allowed: float, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    from qexport.lowering.onnx.convolutions import convolution_model
    from qexport.programs.onnx.session import OnnxRunner

    model = convolution_model(TINY, precision)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, tmp_path / "a.onnx")
    (made,) = OnnxRunner(tmp_path / "a.onnx", 1)(TINY.batch())
    assert distance(made, expected(TINY.batch())) < allowed


@pytest.mark.parametrize("integers", [False, True])
def test_the_tflite_file_is_the_stack(integers: bool, tmp_path: Path) -> None:
    pytest.importorskip("ai_edge_litert")
    from qexport.backends.tflite.backend import interpreter
    from qexport.backends.tflite.convolutions import write_convolutions
    from qexport.backends.tflite.read import read_file

    write_convolutions(TINY, tmp_path / "a.tflite", integers)
    loaded = interpreter(tmp_path / "a.tflite", 1)
    given, result = loaded.get_input_details()[0], loaded.get_output_details()[0]
    batch = TINY.batch().transpose(0, 2, 3, 1)
    step, zero = given["quantization"]
    loaded.set_tensor(given["index"], np.round(batch / step + zero).astype(np.int8) if integers else batch)
    loaded.invoke()
    made = loaded.get_tensor(result["index"]).astype(np.float32)
    made = (made - zero) * step if integers else made
    assert distance(made.transpose(0, 3, 1, 2), expected(TINY.batch())) < (0.03 if integers else 1e-6)
    stored = read_file(tmp_path / "a.tflite")
    assert (stored.total_macs, stored.arithmetic) == (TINY.macs, {"INT8" if integers else "FP32": TINY.macs})


def test_activations_use_their_range() -> None:
    """Otherwise integers would be zeros, or all clipped."""
    made = expected(TINY.batch())
    assert 1.0 < made.max() < 8.0
    assert 0.2 < (made > 0).mean() < 0.8


def test_openvino_tells_types_apart() -> None:
    pytest.importorskip("openvino")
    backend = find_backend("openvino")
    assert isinstance(backend, RunsConvolutions)
    stack = ConvolutionStack(channels=32, size=16, depth=2)  # fewer channels than a register run in float
    runs = backend.convolutions(stack, 1)
    assert {"FP32", "INT8"} <= runs.keys() <= {"FP32", "BF16", "FP16", "INT8"}
    assert all(next(iter(run().values())).shape == stack.batch().shape for run in runs.values())  # type: ignore[attr-defined]


def test_one_runtime_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(latency, "PAUSE", 0.0)
    found = peaks_of(find_backend("onnx"), 1, TINY)
    assert {"FP32", "INT8"} <= found.peaks.keys()
    assert all(1e6 < figure < 1e14 for figure in found.peaks.values())
    assert found.int8_gain == found.peaks["INT8"] / found.peaks["FP32"]


def test_a_peak_is_arithmetic_by_the_median_run(monkeypatch: pytest.MonkeyPatch) -> None:
    medians = iter((2.0, 0.5))

    class Timed(FakeBackend):
        def convolutions(self, stack: ConvolutionStack, threads: int) -> dict[str, object]:
            return {"FP32": lambda: None, "INT8": lambda: None}

    def measured(runners: dict[str, object], *_: object) -> dict[str, latency.Latency]:
        return {name: latency.Latency(next(medians), 9.0, 0.1, 9) for name in runners}

    monkeypatch.setattr(peaks, "measure_latency", measured)
    found = peaks_of(Timed(), 1, ConvolutionStack(10, 10, 2))
    # 2 layers × 100 pixels × 10 channels out × 90 products, in 2 ms and in 0.5 ms
    assert found.peaks == {"FP32": 90e6, "INT8": 360e6}
    assert found.int8_gain == 4.0


def test_slow_runtimes_get_fewer_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]

    def taking(seconds: float) -> object:
        def run() -> None:
            now[0] += seconds

        return run

    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    quick, middle, slow = (peaks._rounds([taking(seconds)]) for seconds in (0.001, 0.1, 5.0))  # type: ignore[list-item]
    assert (quick, slow) == (peaks.MAX_ROUNDS, peaks.MIN_ROUNDS)
    assert middle == 2  # 1.5 s for rounds of a pause and four runs, one round of them to warm up


def test_a_runtime_that_raises_or_is_killed_says_so_in_its_line() -> None:
    for backend, reason in ((Raising, "RuntimeError: no kernel for 128 channels"), (Killed, "killed by SIGILL")):
        with registered(backend):
            assert measurable(["fake"]) == ("fake",)
            found = peaks_apart("fake", 1)
        assert (found.format, found.peaks) == ("fake", {})
        assert reason in found.failure
        assert "\n" not in found.failure
        assert verdict(found, None) == f"not measured: {found.failure}"


def test_a_backend_that_does_not_offer_it_is_left_out() -> None:
    with registered(FakeBackend):
        assert measurable(["fake"]) == ()


def test_a_process_that_hangs_is_ended() -> None:
    with pytest.raises(ApartError, match=r"it did not finish in 0\.5 s"):
        text_from(waits, 60, seconds=0.5)


NO_DOT_PRODUCTS = {"AVX2": True, "AVX512-VNNI": False, "AVX-VNNI": False, "AMX-INT8": False}
OLD_ARM = {"NEON": True, "dotprod": False, "i8mm": False}


@pytest.mark.parametrize(
    ("figures", "features", "told"),
    [
        ({"FP32": 10, "INT8": 27}, None, "INT8 is 2.7× as fast as FP32"),
        ({"FP32": 10, "INT8": 11}, NO_DOT_PRODUCTS, "hardly faster than FP32 (1.10×): this CPU has no VNNI"),
        ({"FP32": 10, "INT8": 9}, OLD_ARM, "INT8 is slower than FP32 (0.90×): this CPU has no dotprod"),
        ({"FP32": 10, "INT8": 11}, {**OLD_ARM, "dotprod": True}, "INT8 is hardly faster than FP32 (1.10×)"),
        ({"FP32": 10, "INT8": 11}, None, "INT8 is hardly faster than FP32 (1.10×)"),
        ({"FP32": 10, "BF16": 20, "INT8": 30}, None, "INT8 is 3.0× as fast as FP32, 1.5× as fast as BF16"),
        ({"FP32": 10}, None, "INT8 or FP32 does not run"),
    ],
)
def test_what_int8_is_worth_is_a_plain_sentence(
    figures: dict[str, float], features: dict[str, bool] | None, told: str
) -> None:
    assert verdict(RuntimePeaks("onnx", figures), features).endswith(told)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_what_was_measured_is_found_again_for_the_same_threads(cache: Path) -> None:
    assert kept_peaks(2) is None
    path = keep_peaks(FOUND)
    assert path is not None
    assert path.is_relative_to(cache / "qexport")
    assert kept_peaks(2) == FOUND
    assert kept_peaks(4) is None
    assert [each.name for each in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("changed", ["cpu_flags", "cores", "environment"])
def test_another_machine_or_version_finds_nothing(changed: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep_peaks(FOUND)
    monkeypatch.setattr(keeping, changed, lambda *_: {"cpu_flags": {"new"}, "cores": 77, "environment": {}}[changed])
    assert kept_peaks(2) is None


@pytest.mark.parametrize(
    "content",
    ["", "{", '{"schema": 9}', '{"schema": 1, "threads": "two"}']
    + [
        f'{{"schema": 1, "threads": 2, "runtimes": [{{"format": "onnx", "peaks": {{"INT8": {figure}}}}}]}}'
        for figure in ("0", "-1.0", "null", "1e999", '"x"')
    ],
)
def test_a_damaged_file_counts_as_none(content: str, cache: Path) -> None:
    path = keep_peaks(FOUND)
    assert path is not None
    path.write_text(content)
    assert kept_peaks(2) is None


def test_a_cache_that_cannot_be_written_or_is_nowhere_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file" / "below"))
    assert (keep_peaks(FOUND), kept_peaks(2)) == (None, None)
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # counts as unset
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    path = keep_peaks(FOUND)
    assert path is not None
    assert path.is_relative_to(tmp_path / "home" / ".cache" / "qexport")

    def nobody() -> Path:
        raise RuntimeError("no home")

    monkeypatch.setattr(Path, "home", nobody)
    assert (keep_peaks(FOUND), kept_peaks(2)) == (None, None)


def test_only_whole_figures_count() -> None:
    assert FOUND.of("tflite") is None
    assert FOUND.of("openvino") is None
    found = FOUND.of("onnx")
    assert found is not None
    assert math.isclose(found.int8_gain or 0, 2.5)
