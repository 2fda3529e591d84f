"""Find the layer that loses most in INT8, and mend it.

Run it in a checkout: `python examples/mend_the_worst_layer.py`. "# %%" begins a cell of a notebook.
"""

# %% A model, its statistics, and a plan for ONNX Runtime
from dataclasses import replace
from pathlib import Path

import qexport

data = Path("calibration_data/shapes/shapes.yaml")
model = qexport.read_model("calibration_data/shapes26.pt", imgsz=(64, 64))
table = qexport.calibrate(model.program, data, count=16)
target = qexport.make_target("onnx", "int8")


def planned(*floats: str) -> qexport.Candidate:
    """The model with a plan that leaves these values in float."""
    plan = qexport.plan(model.program, table, target, keep_float=floats)
    assert plan is not None  # of INT8 there always is one
    return qexport.Candidate(model.program, plan, model.program)


# %% What each part costs: alone is the distance from FP32 with nothing but this part in integers
candidate = planned()
costs = qexport.sensitivity(candidate, data, count=4, max_settings=60)
print(f"all of the plan: {costs.whole:.3f}, give or take {costs.noise:.3f}")
for row in costs.single[:5]:
    print(f"{row.name}: {row.alone:.3f} alone, without it {costs.gain(row):+.3f}, {row.macs:.1%} of the arithmetic")

# %% The first way: leave in float the layer, or the block of layers, that gains most by it
worst = max(costs.rows, key=costs.gain)
kept = planned(*worst.values)
before, after = (qexport.distance(each, data, count=4).mean for each in (candidate, kept))
print(f"{worst.name} in float: the distance is {after:.3f}, it was {before:.3f}")

# %% The second way: keep it in integers, and let passes choose scales and rounding; each is kept only if it helps
mended, records = qexport.optimise(candidate, ["weight-scales", "bias-correction"], data, count=8)
for record in records:
    print(f"{record.name}: {'kept' if record.kept else 'not kept'}, {record.reason}")
print(f"after the passes: {qexport.distance(mended, data, count=4).mean:.3f}")

# %% Write the best of them, which may be the plan as it was
best = min((candidate, kept, mended), key=lambda each: qexport.distance(each, data, count=4).mean)
qexport.save_candidate(best, Path("shapes26.candidate.npz"))  # `qexport … --candidate` obeys it
qexport.lower(replace(model, program=best.program), target, "shapes26_mended.onnx", best.plan)
