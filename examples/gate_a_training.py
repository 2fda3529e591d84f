"""A gate in a training loop: where Ultralytics' training ends, INT8 is exported and scored, and must keep its bounds.

Run it in a checkout: `python examples/gate_a_training.py`. "# %%" begins a cell of a notebook.
"""

# %% What to export, and what it must keep: options of an export, checked here and not after hours of training
from pathlib import Path

from ultralytics import YOLO

import qexport
from qexport.errors import GateError
from qexport.integrations.ultralytics import quantise_after_training

gate = quantise_after_training(format="onnx", effort="none", no_latency=True, max_size="3MB", min_fidelity=0.8)

# %% Train as ever; one epoch at 64 pixels to be quick
folder = Path("runs/gated").resolve()
model = YOLO("calibration_data/shapes26.pt")
model.add_callback("on_train_end", gate)
try:
    model.train(
        data="calibration_data/shapes/shapes.yaml",
        epochs=1,
        imgsz=64,
        device="cpu",
        plots=False,
        project=str(folder.parent),
        name=folder.name,
        exist_ok=True,
    )
except GateError as error:
    raise SystemExit(f"INT8 is not fit to ship: {error}") from error

# %% The report of the export lies beside the weights
report = qexport.load_report(folder / "qexport" / "report.json")
for artifact in report.artifacts:
    fidelity = artifact.accuracy.fidelity if artifact.accuracy else None
    print(f"{artifact.label}: {artifact.bytes / 1e6:.1f} MB, fidelity {fidelity}")
