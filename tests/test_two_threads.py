"""Two exports in two threads of one process write the bytes of two runs."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from refusals import DATA, MODEL

from qexport.job.options import make_job
from qexport.pipeline import export

SIZES = 64, 96
QUICK = {"int8": True, "calib_images": 2, "effort": "none", "no_eval": True, "no_latency": True}


def exported(size: int, out: Path) -> dict[str, bytes]:
    job = make_job({"model": str(MODEL), "data": DATA, "format": "onnx", "imgsz": size, "out": out, **QUICK})
    export(job)
    return {name: (out / name).read_bytes() for name in ("shapes26_int8.onnx", "plan.json")}


@pytest.mark.slow
def test_two_threads_write_the_bytes_of_two_runs(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="needs the extra qexport[onnx]")
    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(exported, size, tmp_path / f"beside {size}") for size in SIZES]
        beside = [each.result() for each in both]
    assert beside[0] == exported(SIZES[0], tmp_path / "alone")
