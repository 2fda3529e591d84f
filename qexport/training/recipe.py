"""How a quantised network is trained."""

from __future__ import annotations

from dataclasses import dataclass

WEIGHTS = ("within-step", "free")
"""What `Recipe.weights` can be."""


@dataclass(frozen=True)
class Recipe:
    """What a training goes by.

    Attributes:
        epochs: how often all images are seen.
        batch: images of a step.
        seed: of the images' order and augmentation.
        rate_weights: of Adam, in steps of a weight's scale.
        rate_scales: of Adam, for the natural logarithms of scales.
        rate_biases: of Adam, in the units of what a layer computes.
        warmup: share of all steps in which the rates rise; then they fall by a cosine to 0.
        frozen_scales: share of all steps, at the end, in which scales stay.
        clip: largest norm of the gradient of weights, of biases and of scales, each taken together; 0 for any.
        averaging: share of the running average of what is learned that a step leaves, 0 for none. The average is what
            is judged and kept.
        damping: weight of the mean square of weights' distances from whole steps (Nagel et al., "Overcoming
            Oscillations in Quantization-Aware Training", 2022), rising by a cosine; 0 for none.
        patience: epochs without a smaller distance before the training ends, 0 for all epochs.
        weights: "within-step" lets each weight go no further than a step from where it was, in a scale that stays;
            "free" ones go anywhere, and their scales are learned, too.
        labels: share of the labelled loss: 0 needs no labels, 1 has no teacher.
        device: of PyTorch, such as "cpu" or "cuda".
    """

    epochs: int = 10
    batch: int = 8
    seed: int = 0
    rate_weights: float = 0.005
    rate_scales: float = 0.002
    rate_biases: float = 0.0003
    warmup: float = 0.05
    frozen_scales: float = 0.2
    clip: float = 0.0
    averaging: float = 0.98
    damping: float = 0.0
    patience: int = 10
    weights: str = "within-step"
    labels: float = 0.0
    device: str = "cpu"

    @property
    def free(self) -> bool:
        """Whether weights may go anywhere."""
        return self.weights == "free"
