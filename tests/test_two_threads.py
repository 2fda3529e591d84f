"""Two exports in two threads of one process write the bytes of two runs."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from refusals import DATA
from small_models import saved, small_model

from qexport.job.options import make_job
from qexport.pipeline import export

SIZES = 64, 96
QUICK = {"int8": True, "calib_images": 2, "effort": "none", "no_eval": True, "no_latency": True}


def exported(model: Path, size: int, out: Path) -> dict[str, bytes]:
    job = make_job({"model": str(model), "data": DATA, "format": "onnx", "imgsz": size, "out": out, **QUICK})
    export(job)
    return {name: (out / name).read_bytes() for name in ("small_int8.onnx", "plan.json")}


@pytest.mark.slow
@pytest.mark.usefixtures("anew")
def test_two_threads_write_the_bytes_of_two_runs(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="needs the extra qexport[onnx]")
    model = saved(small_model("Detect", end2end=True, reg_max=1), tmp_path / "small.pt")
    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(exported, model, size, tmp_path / f"beside {size}") for size in SIZES]
        beside = [each.result() for each in both]
    assert beside[0] == exported(model, SIZES[0], tmp_path / "alone")
