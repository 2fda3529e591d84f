"""Quantisation-aware training: the network learns to live with the rounding of INT8. No labels are needed.

Run it in a checkout: `python examples/train_with_rounding.py`. "# %%" begins a cell of a notebook.
"""

# %% A model, its statistics, and a plan for ONNX Runtime
from dataclasses import replace
from pathlib import Path

import qexport

data = Path("calibration_data/shapes/shapes.yaml")
model = qexport.read_model("calibration_data/shapes26.pt", imgsz=(64, 64))
table = qexport.calibrate(model.program, data, count=16)
target = qexport.make_target("onnx", "int8")
plan = qexport.plan(model.program, table, target)
assert plan is not None  # of INT8 there always is one

# %% Train from there; some of the images are held out, and the epoch that is nearest to FP32 on them is kept
start = qexport.Candidate(model.program, plan, model.program)
trained = qexport.train(start, data, recipe=qexport.Recipe(epochs=1, batch=8), count=16)
print(trained.record.start, trained.record.end, trained.record.best)

# %% The weights and the plan that came out, as a file
made = trained.candidate
path = qexport.lower(replace(model, program=made.program), target, "shapes26_trained.onnx", made.plan)
print(qexport.verify(path, made.program, target, made.plan, data, reference=model.program).verification)
