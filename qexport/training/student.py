"""The network that is trained: a candidate with its rounding in place and its weights, biases and scales to learn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from qexport.optimisation.candidate import Candidate
from qexport.optimisation.learned import Learner
from qexport.training.recipe import Recipe


class Student:
    """Computes what the simulated candidate does, bit by bit, until it has learned something.

    Attributes:
        candidate: what it is made from.
        learner: the quantised and the float program.
        groups: what is learned, by name, of "weights", "biases" and "scales".
        device: of PyTorch, that everything is on.
    """

    def __init__(self, candidate: Candidate, recipe: Recipe) -> None:
        self.candidate, self.device = candidate, recipe.device
        self.learner = Learner(candidate, recipe.free, recipe.device)
        self.groups: dict[str, dict[str, nn.Parameter]] = dict(
            zip(("weights", "biases", "scales"), self.learner.named, strict=True)
        )

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """All that is learned, by group and name."""
        return {f"{group}/{name}": each for group, held in self.groups.items() for name, each in held.items()}

    def seen(self, pixels: Tensor) -> Sequence[Tensor]:
        """Each of `learner.watched`, float32, of images (n, channels, height, width) on the student's device.

        On a GPU convolutions and products of matrices take bfloat16; nothing is rounded to integers in it.
        """
        with torch.autocast("cuda", torch.bfloat16, enabled=self.device.startswith("cuda")):
            return [each.float() for each in self.learner.quantised(pixels)]

    def state(self) -> dict[str, Tensor]:
        """Copies of all that is learned, on the CPU."""
        return {name: each.detach().cpu().clone() for name, each in self.parameters.items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Be as `state` was.

        Raises:
            KeyError: something is missing.
            RuntimeError: of another shape.
        """
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(state[name])

    def dampen(self, strength: float) -> None:
        """Add the slope of `strength` times the mean square of weights' distances from whole steps to gradients."""
        with torch.no_grad():
            for weight in self.learner.weights.values():
                if weight.steps.grad is not None:
                    apart = weight.steps - weight.whole() * weight.change.exp()
                    weight.steps.grad.add_(apart, alpha=2 * strength / apart.numel())

    def result(self) -> Candidate:
        """The candidate as it is now: scales as files hold them, weights whole multiples of theirs."""
        return self.learner.result()
