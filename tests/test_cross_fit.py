"""A pass that is fitted to all images: what each image says of it is said without that image, and decides."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import demo_images
from hard_numbers import layers
from numpy.typing import NDArray

from qexport.optimisation.candidate import Candidate
from qexport.optimisation.distance import Distance, distance, hold_out, shift_margin
from qexport.optimisation.passes import CrossFit, optimise
from qexport.optimisation.score_shift import ScoreShift
from qexport.planning.plan import QuantPlan, TensorQuant
from qexport.progress import Progress, Silent

IMAGES = demo_images("train", 16)


@pytest.fixture(scope="module")
def fallen() -> Candidate:
    """Nothing is quantised, but classes have lost some of their logits, and what they are computed from is noisy."""
    program = layers()
    program = program.with_parameters({"cls.weight": program.graph.parameter("cls.weight") / 8})
    plan = QuantPlan("by hand", program.fingerprint, frozenset(), dict.fromkeys(program.values, TensorQuant("float32")))
    weight, bias = (program.graph.parameter(f"cls.{each}") for each in ("weight", "bias"))
    noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    lost = {"cls.weight": weight + 0.1 * weight.std() * noise, "cls.bias": bias - torch.tensor([0.2, 0.4])}
    return Candidate(program, plan, program).with_parameters(lost)


def confidences(candidate: Candidate, images: Sequence[Path]) -> NDArray[np.float64]:
    return distance(candidate, hold_out(candidate.reference, images)).confidences


def test_of_each_image_is_said_what_a_fit_to_all_others_leaves(fallen: Candidate) -> None:
    """By running the whole pass once for each image, on the others, and the program that it made on that image."""
    images = IMAGES[:6]
    fit = ScoreShift().cross_fitted(fallen, [(image,) for image in images], Silent())
    assert fit
    alone = [ScoreShift()(fallen, [each for each in images if each != image], Silent()) for image in images]
    expected = np.concatenate([confidences(made, [image]) for made, image in zip(alone, images, strict=True)])
    np.testing.assert_allclose(fit.after, expected, atol=2e-5)
    np.testing.assert_allclose(fit.before, confidences(fallen, images), atol=2e-5)
    whole = ScoreShift()(fallen, images, Silent()).program.graph.parameter("cls.bias")
    torch.testing.assert_close(fit.candidate.program.graph.parameter("cls.bias"), whole)


def test_images_of_a_fold_are_left_out_together(fallen: Candidate) -> None:
    folds = IMAGES[:3], IMAGES[3:5]
    fit = ScoreShift().cross_fitted(fallen, folds, Silent())
    assert fit
    alone = [ScoreShift()(fallen, other, Silent()) for other in reversed(folds)]
    expected = np.concatenate([confidences(made, fold) for made, fold in zip(alone, folds, strict=True)])
    np.testing.assert_allclose(fit.after, expected, atol=2e-5)


def test_what_cannot_be_left_out_says_nothing(fallen: Candidate, tmp_path: Path) -> None:
    assert ScoreShift().cross_fitted(fallen, [IMAGES[:4], [tmp_path / "gone.png"]], Silent()) is None


class Planted:
    """A pass that moves one bias by what is lost on average; of each image it is known how much that is."""

    name = "planted"

    def __init__(self, lost: Sequence[float]) -> None:
        self.lost, self.folds, self.seen = dict(zip(IMAGES, lost, strict=True)), list[Path](), list[Path]()

    def requires(self, candidate: Candidate, /) -> str:
        return ""

    def __call__(self, candidate: Candidate, images: Sequence[Path], progress: Progress, /) -> Candidate:
        self.seen = list(images)
        return candidate

    def cross_fitted(
        self, candidate: Candidate, folds: Sequence[Sequence[Path]], progress: Progress, /
    ) -> CrossFit | None:
        assert all(len(fold) == candidate.program.input.batch for fold in folds)
        self.folds = [image for fold in folds for image in fold]
        lost = np.array([self.lost[image] for image in self.folds])
        before, after = (np.stack((each, np.ones(len(lost))), axis=1) for each in (-lost, self.left(lost)))
        bias = candidate.program.graph.parameter("cls.bias")
        return CrossFit(candidate.with_parameters({"cls.bias": bias + 1e-3}), before, after)

    def left(self, lost: NDArray[np.float64]) -> NDArray[np.float64]:
        """The mean of all others less each."""
        gained: NDArray[np.float64] = (lost.sum() - lost) / (len(lost) - 1) - lost
        return gained

    def gained(self, before: Distance, after: Distance, /) -> tuple[float, float]:
        return shift_margin(before, after)

    def ensures(self, before: Candidate, after: Candidate, /) -> str:
        return ""


UNLIKE = tuple(each / 1000 for each in (9, 21, 12, 33, 0, 15, 20, 24, 4, 26, 16, 10, 9, 30, 2, 17))
"""What is lost: image by image, .009 on average where it is judged, .022 where it is seen."""


def test_a_fall_that_two_halves_differ_in_is_taken_back(fallen: Candidate) -> None:
    """Fitted to one half and judged by the other nothing is gained; all sixteen images say that something is lost."""
    judged, seen = np.array(UNLIKE[::2]), np.array(UNLIKE[1::2])
    assert (judged.mean(), seen.mean()) == pytest.approx((0.009, 0.022))
    none, ones = np.zeros(8), np.ones(8)
    halves = [Distance(none, none, none, np.stack((each, ones), axis=1)) for each in (-judged, seen.mean() - judged)]
    gain, noise = shift_margin(*halves)
    assert gain < noise
    planted = Planted(UNLIKE)
    made, (record,) = optimise(fallen, (planted,), IMAGES[::-1], Silent())
    assert record.kept
    assert made is not fallen
    assert sorted(planted.folds) == sorted(IMAGES)
    assert "the distance on held-out images is" in record.reason
    said = "confidences of 16 images, each left out of the fit in its turn, have shifted by"
    mean = sum(UNLIKE) / 16
    assert record.reason.endswith((f"{said} +0.000, before by {-mean:+.3f}", f"{said} -0.000, before by {-mean:+.3f}"))


@pytest.mark.parametrize(
    ("lost", "why"),
    [
        ((0.03, -0.03, 0.02, -0.015) * 4, "as much as that comes by chance"),
        ((0.4, -0.1, *(0.0,) * 14), "one image alone has lost more"),
    ],
)
def test_a_fall_that_chance_explains_stays(fallen: Candidate, lost: Sequence[float], why: str) -> None:
    made, (record,) = optimise(fallen, (Planted(lost),), IMAGES, Silent())
    assert made is fallen, why
    assert record.reason.startswith("reverted: ")


def test_a_fit_that_leaves_more_than_there_was_is_reverted(fallen: Candidate) -> None:
    class Wrong(Planted):
        def left(self, lost: NDArray[np.float64]) -> NDArray[np.float64]:
            return -2 * lost

    made, _ = optimise(fallen, (Wrong(UNLIKE),), IMAGES, Silent())
    assert made is fallen


def test_views_of_few_images_are_no_folds(fallen: Candidate) -> None:
    planted = Planted(UNLIKE)
    _, (record,) = optimise(fallen, (planted,), IMAGES[:4], Silent(), views=True)
    assert not planted.folds
    assert planted.seen == list(IMAGES[1:4:2])
    assert "on images that it did not see" in record.reason
