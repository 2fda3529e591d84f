"""What is to be trained, as one frozen value, and what of it is refused before torch is imported."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from qexport.errors import InputError, UsageError
from qexport.job.export_job import ExportJob
from qexport.job.options import FIELDS, make_job
from qexport.job.parsing import converted
from qexport.job.value_rules import Choice, Range
from qexport.system.launch import ALONE, Launch
from qexport.training.recipe import WEIGHTS, Recipe

DEVICE = re.compile(r"cpu|cuda(:\d+)?")
RECIPE = {field.name: field for field in fields(Recipe)}


@dataclass(frozen=True)
class TrainJob:
    """One training run.

    Attributes:
        export: what would be exported without training: model, data, formats and how they are planned; `batch` is what
            the program takes at once, `out` the folder.
        recipe: how the network is trained.
        resume: go on from what an earlier run left in the folder.
        launch: the processes that share each step.
    """

    export: ExportJob
    recipe: Recipe
    resume: bool = False
    launch: Launch = ALONE

    @property
    def file(self) -> Path:
        """The checkpoint that is written."""
        return self.export.folder / f"{self.export.stem}_qat.pt"


def make_train_job(options: Mapping[str, Any], resume: bool = False, launch: Launch = ALONE) -> TrainJob:
    """Check what was asked for.

    Args:
        options: fields of `ExportJob` and of `Recipe` by name; None means not given.

    Raises:
        UsageError, InputError: one line.
    """
    given = {name: value for name, value in options.items() if value is not None}
    if str(given.get("device", "")).isdecimal():  # as Ultralytics names a GPU
        given["device"] = f"cuda:{given['device']}"
    model = str(given["model"])
    if model.lower().endswith(".onnx"):
        raise UsageError(f"{model} is an ONNX file, and training is for checkpoints", "give the .pt file")
    if not given.get("data"):
        raise UsageError("qat needs images to train on", "add --data DATA.yaml")
    recipe = _recipe({name: value for name, value in given.items() if name in RECIPE})
    _check_shared(recipe, launch)
    asked = {name: value for name, value in given.items() if name in FIELDS and name != "device"}
    asked.setdefault("int8", "precision" not in asked)
    asked |= {
        "batch": 1 if recipe.device == "cpu" else launch.share(recipe.batch),
        "no_latency": True,
        "no_eval": "eval_data" not in given,
    }
    asked.setdefault("out", Path("qexport_out") / f"{Path(model).stem}_qat")
    job = TrainJob(make_job(asked), recipe, resume, launch)
    if not job.export.calibrates:
        raise UsageError(
            f"--precision {job.export.precision} has no integer activations to train", "give --precision int8"
        )
    if resume and launch.first and not job.export.folder.is_dir():
        raise InputError(f"there is no training to resume in {job.export.folder}", "leave out --resume")
    return job


def _recipe(given: Mapping[str, Any]) -> Recipe:
    recipe = Recipe(**{name: converted(name, value, str(RECIPE[name].type)) for name, value in given.items()})
    for row in RULES:
        row.check(recipe)
    if not (recipe.rate_weights or recipe.rate_scales or recipe.rate_biases):
        raise UsageError("all rates are 0, and nothing would be learned", f"leave out one of --{', --'.join(RATES)}")
    return recipe


def _check_shared(recipe: Recipe, launch: Launch) -> None:
    """Refuse what several processes cannot do: share a step unequally, or one GPU."""
    if recipe.batch % launch.world:
        what = f"{launch.world} processes cannot share --batch {recipe.batch} equally"
        raise UsageError(what, f"give a multiple of {launch.world}")
    if launch.world > 1 and recipe.device.startswith("cuda:"):
        what = f"--device {recipe.device} is one GPU, and there are {launch.world} processes"
        raise UsageError(what, "give --device cuda, and each takes its own")


RATES = ("rate-weights", "rate-scales", "rate-biases")
RULES: tuple[Range | Choice, ...] = (
    *(Range(name, lambda value: value > 0, "1 or more") for name in ("epochs", "batch")),
    *(Range(name, lambda value: 0 <= value < math.inf, "0 or more") for name in ("seed", "patience", "damping")),
    *(Range(name, lambda value: 0 <= value < 1, "0 or more and less than 1") for name in RATES),
    Range("labels", lambda value: 0 <= value <= 1, "a share, 0 to 1"),
    Range("device", lambda value: bool(DEVICE.fullmatch(value)), "cpu, cuda or cuda:NUMBER"),
    Choice("weights", WEIGHTS),
)
