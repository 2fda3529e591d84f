"""`qexport verify`: a second opinion on a file that was written."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import typer

from qexport.errors import UsageError

RUNTIMES = ("tensorflow",)


def verify_command(
    file: Annotated[Path, typer.Argument(help="A .tflite file that qexport wrote.")],
    data: Annotated[str, typer.Option(help="Data set YAML; images of its val split are run.")],
    runtime: Annotated[str, typer.Option(help="Runtime to compare LiteRT with: tensorflow.")] = "tensorflow",
    images: Annotated[int, typer.Option(help="How many images.")] = 20,
    threads: Annotated[int, typer.Option(help="CPU threads for LiteRT.")] = 2,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else.")] = False,
) -> None:
    """Run a .tflite file with TensorFlow's reference kernels, too, and compare the detections with LiteRT's."""
    from qexport.dataset import image_list
    from qexport.resolve import resolve_data

    if runtime not in RUNTIMES:
        raise UsageError(f"--runtime {runtime} is not known", f"give {' or '.join(RUNTIMES)}")
    chosen = image_list(resolve_data(data), "val")[:images]
    from qexport.cross_check import cross_check

    found = cross_check(file, chosen, threads)
    if json_:
        print(json.dumps(dataclasses.asdict(found), indent=2))
    else:
        score = "no detections" if found.map is None else f"{found.map:.3f} mAP50-95"
        print(
            f"detections   {score} of TensorFlow's reference kernels against LiteRT with XNNPACK, {found.images} images"
        )
        print(f"first layer  {found.first_layer or 'none in integers'}: {found.steps} steps apart at most")
        print(f"GPU delegate {found.gpu or 'takes the whole graph'}")
    found.check()
