"""How a model is captured: what a user can ask of its float program."""

from __future__ import annotations

from dataclasses import dataclass

HEADS = ("end2end", "one2many")
"""Of detectors that have both."""


@dataclass(frozen=True)
class CaptureOptions:
    """What is asked of a model's program.

    Attributes:
        imgsz: (height, width) in pixels; None for the size that the model was trained at, or the file's own.
        batch: images in one run.
        dynamic: leave the number of images in a run open.
        head: "end2end" or "one2many"; None for end-to-end where the model has it.
        nms: build non-maximum suppression into the program.
        trust: load pickled classes that are not on the allow-list.
        raw_outputs: of an ONNX file, values behind which everything stays float; empty to find them.
        pixels: what an ONNX file wants pixels to be: see `qexport.data.input_form`.
        bgr: an ONNX file wants blue first.
    """

    imgsz: tuple[int, int] | None = None
    batch: int = 1
    dynamic: bool = False
    head: str | None = None
    nms: bool = False
    trust: bool = False
    raw_outputs: tuple[str, ...] = ()
    pixels: str = "0..1"
    bgr: bool = False
