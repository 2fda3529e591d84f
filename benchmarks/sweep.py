"""Does a sweep come to the same table here and on a cluster of Ray that loses one of its two workers?

    .venv/bin/python benchmarks/sweep.py [--formats tflite,onnx,openvino] [--quick] [--keep FOLDER]

Three demo models in three formats and two precisions at 64 pixels: once in two processes of this machine, once on two
workers that are started here, one of which is killed with a run on it. Exits with 1 where a run is not done, or where a
figure that does not depend on time differs. Needs the extra qexport[ray].
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml

QEXPORT = Path(sys.executable).with_name("qexport")
DEMO = Path(__file__).resolve().parents[1] / "calibration_data"
MODELS = {"shapes26.pt": "shapes.yaml", "shapes26-obb.pt": "shapes-obb.yaml", "shapes26-cls.pt": "crops"}
"""Demo model → its data set."""
COMMON = {"precisions": ["int8", "fp16"], "imgsz": 64, "effort": "none", "calib-images": 4, "no-build": True}
UNMEASURED = {"no-eval": True, "no-latency": True}
BEFORE_KILL = 9
"""Runs that are done before a worker is killed: half of them."""
OF_TIME = ("latency_ms", "speedup", "warned")
"""Figures that another run of the same file has others of."""


def main() -> int:
    """Run both sweeps, print what they came to, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", type=Path, help="leave everything in this folder")
    parser.add_argument("--formats", default="tflite,onnx,openvino")
    parser.add_argument("--quick", action="store_true", help="measure nothing: compare the files alone")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="qexport-sweep-") as scratch:
        folder = (given.keep or Path(scratch)).absolute()
        file = write(folder, given.formats.split(","), UNMEASURED if given.quick else {})
        local = here(file, folder / "local")
        cluster = on_ray(file, folder / "ray")
    return compare(local, cluster)


def write(folder: Path, formats: list[str], more: dict[str, bool]) -> Path:
    """A sweep of demo models, each on its own data set."""
    folder.mkdir(parents=True, exist_ok=True)
    own = {str(DEMO / model): str(DEMO / "shapes" / data) for model, data in MODELS.items()}
    others = [{"model": model, "data": data} for model in own for data in own.values() if data != own[model]]
    content = {"models": [*own], "data": [*own.values()], "formats": formats, **COMMON, **more, "exclude": others}
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return path


def here(file: Path, out: Path) -> dict[str, Any]:
    """The sweep in two processes of this machine."""
    started = time.monotonic()
    code = subprocess.run([*words(file, out), "--jobs", "2"], check=False).returncode
    print(f"local: exit {code}, {time.monotonic() - started:.0f} s", flush=True)
    return result(out)


def on_ray(file: Path, out: Path) -> dict[str, Any]:
    """The sweep on two workers, one of which is killed when some runs are done."""
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}  # as the runs that it is compared with
    cluster = import_module("ray.cluster_utils").Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False}
    )
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    started = time.monotonic()
    try:
        sweep = subprocess.Popen([*words(file, out), "--executor", "ray", "--address", cluster.address])
        while sweep.poll() is None and done(out) < BEFORE_KILL:
            time.sleep(0.2)
        time.sleep(3)  # into the run that came after
        at_work = sorted(path.parent.name for path in out.glob("*/sweep-run.json") if not ended(path))
        cluster.remove_node(nodes[1], allow_graceful=False)
        print(f"killed one of two workers after {done(out)} runs; at work were {', '.join(at_work)}", flush=True)
        code = sweep.wait()
    finally:
        cluster.shutdown()
    print(f"ray: exit {code}, {time.monotonic() - started:.0f} s", flush=True)
    return result(out)


def words(file: Path, out: Path) -> list[str]:
    """The command line."""
    return [str(QEXPORT), "sweep", str(file), "--out", str(out), "--quiet"]


def ended(record: Path) -> bool:
    """Whether a run has come to its end."""
    return json.loads(record.read_text(encoding="utf-8"))["exit_code"] is not None


def done(out: Path) -> int:
    """How many have."""
    return sum(map(ended, out.glob("*/sweep-run.json")))


def result(out: Path) -> dict[str, Any]:
    """What sweep.json says, and of each run the hashes of what it was asked for."""
    found: dict[str, Any] = json.loads((out / "sweep.json").read_text(encoding="utf-8"))
    for run in (run for run in found["runs"] if run["report"]):
        artifacts = json.loads((out / run["report"]).read_text(encoding="utf-8"))["artifacts"]
        hashes = {f"{each['format']} {each['precision']}": each["sha256"] for each in artifacts}
        run["artifacts"] = [{**each, "sha256": hashes[each["label"]]} for each in run["artifacts"]]
    return found


def compare(local: dict[str, Any], cluster: dict[str, Any]) -> int:
    """Print all runs of both, and return 1 where they differ in what does not depend on time."""
    broken = 0
    print("| run | state | accuracy | fidelity | MB | ms here | ms on Ray | sha256 | equal |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for a, b in zip(local["runs"], cluster["runs"], strict=True):
        equal = a["state"] == b["state"] == "done" and figures(a) == figures(b)
        broken += not equal
        first, second = ((run["artifacts"] or [{}])[0] for run in (a, b))
        cells = [first.get("map"), first.get("fidelity"), first.get("bytes", 0) / 1e6]
        times = [each.get("latency_ms") for each in (first, second)]
        shown = ["–" if each is None else f"{each:.3f}" for each in (*cells, *times)] + [first.get("sha256", "")[:8]]
        print(f"| {a['label']} | {a['state']}, {b['state']} | {' | '.join(shown)} | {'yes' if equal else 'NO'} |")
    print(f"{len(local['runs'])} runs, {broken} that differ")
    return 1 if broken else 0


def figures(run: dict[str, Any]) -> list[dict[str, Any]]:
    """What a run came to, without what depends on time."""
    return [{name: value for name, value in each.items() if name not in OF_TIME} for each in run["artifacts"]]


if __name__ == "__main__":
    sys.exit(main())
