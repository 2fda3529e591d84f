"""A runtime that seems wrong in few detections is run on more images before it is blamed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from qexport.backends.protocol import Runner
from qexport.errors import VerificationError
from qexport.programs.program import Program
from qexport.programs.sample_inputs import named_inputs
from qexport.steps import verify as steps
from qexport.verification.output_check import ENOUGH, MOST_FURTHER, check_outputs

Batch = NDArray[np.float32]
Rows = list[tuple[float, ...]]
COPIES: Rows = [(10, 10, 60, 60, 0.30, 0), (11, 10, 60, 60, 0.16, 0)]
"""An uncertain object that two anchors tell of."""
TURNED: Rows = [(11, 10, 60, 60, 0.58, 0)]
"""What a runtime tells of it that rounds the other way."""
CLEAR: Rows = [(10.0 + 70 * i, 10, 60 + 70 * i, 60, 0.9, 0) for i in range(3)]
FALLEN: Rows = [(*row[:4], row[4] - 0.3, row[5]) for row in CLEAR]


def image(number: int) -> Batch:
    """A batch of one that says by its pixels which it is."""
    return np.full((1, 1, 1, 1), number, np.float32)


def looked_up(by_number: Callable[[int], Rows]) -> Runner:
    return lambda batch: (np.array(by_number(int(batch[0, 0, 0, 0])), np.float32).reshape(1, -1, 6),)


def graph(by_number: Callable[[int], Rows]) -> Callable[[Tensor], Tensor]:
    find = looked_up(by_number)
    return lambda batch: torch.from_numpy(find(batch.numpy())[0])


@pytest.fixture
def program(demo_program: Program) -> Program:
    return replace(demo_program, layout=replace(demo_program.layout, end2end=True, imgsz=(320, 320)))


def test_one_uncertain_object_is_outweighed_by_clear_ones(program: Program) -> None:
    """Six detections an image, three of each side, beside the two of the first: nine are not enough, twenty are."""
    reference = graph(lambda number: CLEAR if number else COPIES)
    runner = looked_up(lambda number: CLEAR if number else TURNED)
    with pytest.raises(VerificationError, match=r"scores are \+0\.35 off"):
        check_outputs(reference, program, runner, [image(0)], "lite")
    found = check_outputs(reference, program, runner, [image(0)], "lite", map(image, range(1, 9)))
    assert found.agreement
    assert (found.batches, found.agreement.total) == (4, 2 + 3 * 6)
    assert found.agreement.total >= ENOUGH > found.agreement.total - 6


@pytest.mark.parametrize(
    ("others", "error"),
    [
        (FALLEN, r"scores are -0\.23 off"),  # 18 pairs of -.3, and .28 and .42
        ([], "only 10% of the detections agree"),  # 2 of 2 + 6 * 3
        (COPIES, "only 55%"),  # 2 + 5 * 2 of 2 + 5 * (3 + 1)
    ],
)
def test_what_is_wrong_everywhere_is_refused_all_the_same(program: Program, others: Rows, error: str) -> None:
    reference = graph(lambda number: CLEAR if number else COPIES)
    runner = looked_up(lambda number: others if number else TURNED)
    with pytest.raises(VerificationError, match=error):
        check_outputs(reference, program, runner, [image(0)], "lite", map(image, range(1, 99)))


def test_nothing_further_is_run_without_a_fault_or_where_there_is_evidence(program: Program) -> None:
    def untouched() -> Iterator[Batch]:
        raise AssertionError("a further image was asked for")
        yield image(0)

    same = looked_up(lambda _: COPIES)
    assert check_outputs(graph(lambda _: COPIES), program, same, [image(0)], "lite", untouched()).batches == 1
    with pytest.raises(VerificationError, match="scores are"):
        check_outputs(graph(lambda _: CLEAR), program, looked_up(lambda _: FALLEN), [image(0)] * 4, "lite", untouched())


def test_images_without_anything_end_the_search(program: Program) -> None:
    seen: list[int] = []

    def further() -> Iterator[Batch]:
        for number in range(1, 2 * MOST_FURTHER):
            seen.append(number)
            yield image(number)

    reference = graph(lambda number: [] if number else COPIES)
    runner = looked_up(lambda number: [] if number else TURNED)
    with pytest.raises(VerificationError, match=r"scores are \+0\.35 off"):
        check_outputs(reference, program, runner, [image(0)], "lite", further())
    assert len(seen) == MOST_FURTHER


@pytest.mark.parametrize("batch", [1, 2])
def test_further_images_are_those_behind_the_first_ones(demo_program: Program, tmp_path: Path, batch: int) -> None:
    """Each once, as the program wants them; one that is not finite is named by what was read last."""
    files = [tmp_path / f"{number:02}.png" for number in range(11)]
    for number, path in enumerate(files):
        Image.new("RGB", (32, 32), (20 * number, 0, 0)).save(path)
    program = replace(demo_program, input=replace(demo_program.input, batch=batch))
    named = named_inputs(files, program)
    first, further = [paths for paths, _ in named], list[tuple[Path, ...]]()
    for given in steps._further(files, program, named):
        ((paths, pixels),) = named
        assert pixels is given
        further.append(paths)
    assert list(dict.fromkeys(path for paths in (*first, *further) for path in paths)) == files
    assert [len(paths) for paths in further] == [batch] * (7 if batch == 1 else 2)
