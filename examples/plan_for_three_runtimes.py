"""Calibrate once, and plan for three runtimes: one pass over the images serves every plan.

Run it in a checkout: `python examples/plan_for_three_runtimes.py`. "# %%" begins a cell of a notebook.
"""

# %% Any checkpoint, and any folder of images: these come with qexport
from pathlib import Path

import qexport

data = Path("calibration_data/shapes/shapes.yaml")
model = qexport.read_model("calibration_data/shapes26.pt", imgsz=(64, 64))

# %% What the model's values look like on 16 images: extremes and histograms, and no scale yet
table = qexport.calibrate(model.program, data, count=16)
qexport.save_table(table, Path("shapes26.npz"))  # load_table reads it, here or on another machine

# %% Each runtime computes by rules of its own, so that each has a plan of its own
plans = {}
for format in ("onnx", "openvino", "tflite"):
    target = qexport.make_target(format, "int8")
    plan = qexport.plan(model.program, table, target)
    assert plan is not None  # of INT8 there always is one
    plans[format] = plan
    integers = sum(plan.is_quantised(name) for name in plan.tensors)
    print(f"{format}: {integers} of {len(plan.tensors)} tensors in integers, {len(plan.integer)} operations")

# %% A plan says of each tensor why it is as it is
name = next(iter(plans["onnx"].integer))
for format, plan in plans.items():
    tensor = plan.tensors[name]
    print(f"{name} for {format}: {tensor.dtype}, scale {tensor.scale}, {tensor.why}")

# %% Write each file, read it back, run it, and compare it with its plan
for format, path in {"onnx": "shapes.onnx", "openvino": "shapes_openvino_model", "tflite": "shapes.tflite"}.items():
    target = qexport.make_target(format, "int8")
    qexport.lower(model, target, path, plans[format])
    found = qexport.verify(path, model.program, target, plans[format], data).verification
    assert found is not None
    print(f"{path}: {found.tensors} tensors as planned, {found.coverage:.0%} of the arithmetic in integers")
