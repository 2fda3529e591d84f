"""What artifacts find in a run's samples: run once for the same file and images, each loss told of its file alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from qexport.backends.artifact import describe_artifact
from qexport.backends.registry import find_backend
from qexport.inspection.run_samples import keep_samples
from qexport.inspection.samples import load_samples
from qexport.measurement.attempt import Unmeasured
from qexport.programs.program import Program
from qexport.system.cache import Cache
from qexport.verification.result import ArtifactResult

ASKED, FLOAT = "m_int8.onnx", "m_fp32.onnx"


class Bench:
    """Two files that find one box each, as far left as they are long, and counts of what is run."""

    def __init__(self, program: Program, folder: Path) -> None:
        self.program, self.folder, self.cache, self.threads = program, folder, Cache(folder / "cache"), 2
        self.broken = ""
        self.ran: list[str] = []
        self.images = (folder / "a.png",)
        Image.new("RGB", (64, 64), (90, 20, 9)).save(self.images[0])
        for name in (ASKED, FLOAT):
            (folder / name).write_bytes(name.encode())

    def runner(self, path: Path, _: int) -> Any:
        if path.name == self.broken:
            raise RuntimeError("no kernel")
        self.ran.append(path.name)
        return lambda batch: [self.detected(batch, float(path.stat().st_size))]

    def detected(self, batch: NDArray[np.float32], left: float) -> NDArray[np.float32]:
        return np.array([[[left, 2, 40, 50, 0.9, 1]]] * len(batch), np.float32)

    def run(self) -> tuple[dict[str, list[float]], list[Unmeasured]]:
        """The left side of each file's box."""
        described = [describe_artifact(self.folder / name, "onnx", name[2:6]) for name in (ASKED, FLOAT)]
        items = [ArtifactResult(each, find_backend("onnx")) for each in described]
        lost: list[Unmeasured] = []
        name = keep_samples(self.program, self.images, items, self.folder, self.threads, lost, self.cache)
        assert name
        found = load_samples(self.folder / name).found
        return {key: each[0].detections.boxes[:, 0].tolist() for key, each in found.items()}, lost


@pytest.fixture
def bench(demo_program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    made = Bench(demo_program, tmp_path)
    monkeypatch.setattr(type(find_backend("onnx")), "runner", lambda _, path, threads: made.runner(path, threads))
    return made


LEFT = {ASKED: [11.0], FLOAT: [11.0]}


def test_files_are_run_on_samples_once(bench: Bench) -> None:
    assert bench.run() == bench.run() == (LEFT, [])
    assert bench.ran == [ASKED, FLOAT]


def test_what_differs_is_run_again(bench: Bench) -> None:
    bench.run()
    bench.ran.clear()
    (bench.folder / ASKED).write_bytes(b"twelve bytes")
    assert bench.run() == ({**LEFT, ASKED: [12.0]}, [])
    assert bench.ran == [ASKED]
    Image.new("RGB", (64, 64), (1, 2, 3)).save(bench.images[0])
    bench.run()
    bench.threads = 1
    bench.run()
    bench.cache = replace(bench.cache, conditions={"onnxruntime": "another"})
    bench.run()
    assert bench.ran == [ASKED, *(ASKED, FLOAT) * 3]


def test_a_file_that_cannot_be_run_is_told_of_and_tried_again(bench: Bench) -> None:
    bench.broken = ASKED
    found, lost = bench.run()
    assert found == {FLOAT: [11.0]}
    assert [(each.artifact, each.what) for each in lost] == [(ASKED, "samples")]
    bench.broken = ""
    assert bench.run() == (LEFT, [])
