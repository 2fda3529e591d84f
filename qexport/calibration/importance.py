"""How much the outputs depend on each value: squared gradients, summed where the value's histogram has its bins.

One backward pass an image: y being the weighted outputs and r a vector of random signs, the squared gradient of r · y
at an element is on average the squared length of y's derivative by it (Hutchinson, "A Stochastic Estimator of the Trace
of the Influence Matrix", 1989), so that importance times squared error is what quantising the value costs at the
outputs. Second order in this sense: Dong et al., "HAWQ-V2" (2020); Nagel et al., "Up or Down?" (2020).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from qexport.calibration.observer import bins_of, sample_step
from qexport.calibration.output_error import weighted_outputs
from qexport.calibration.statistics import BINS
from qexport.data.images import stream
from qexport.programs.captured_graph import shared_copy
from qexport.programs.graph_module import end_at, nodes_by_name
from qexport.programs.program import Program

MAX_SAMPLES = 2**18
"""Elements of a value whose gradients are looked at in one image; those stand for the others."""

Sums = dict[str, NDArray[np.float64]]


def importance(
    program: Program, images: Sequence[Path], limits: Mapping[str, float], on_image: Callable[[], None], workers: int
) -> Sums:
    """Measure how much the raw outputs depend on the elements of values.

    Args:
        images: as `qexport.data.choice.learned_from` gives them, all of them readable.
        limits: the histogram's limit of each value that is asked for, by name.
        on_image: called after each image.
        workers: images in flight; results do not depend on it.

    Returns:
        float64 of shape (BINS,) by name, of numbers that float32 holds; values that no output depends on have none.
    """
    graph = _body(program)

    def measured(number: int) -> Sums:
        torch.set_num_threads(1)
        sums = dict[str, NDArray[np.float64]]()
        for _, pixels in stream([images[number]], program.input.imgsz, lambda *_: None, *program.input.image_form):
            given = torch.from_numpy(program.input.form.applied(pixels))
            batch = given[None].repeat(program.input.batch, 1, 1, 1)
            sums = _Backward(graph, limits).run_backward(program, batch, seed=number)
        on_image()
        return sums

    total = Sums()
    with ThreadPoolExecutor(workers) as pool:
        for sums in pool.map(measured, range(len(images))):  # in order: floats are not added up in any other
            for name, each in sums.items():
                total[name] = total[name] + each if name in total else each
    return {name: each.astype(np.float32).astype(np.float64) for name, each in total.items() if each.any()}


def _body(program: Program) -> GraphModule:
    """The program's graph as far as its raw outputs, which are what it gives."""
    graph = shared_copy(program)
    nodes = nodes_by_name(graph)
    return end_at(graph, [nodes[name] for name in program.raw.all])


class _Backward(Interpreter):
    """Runs the graph on one image, and adds up squared gradients while they come back; values are freed as they do."""

    def __init__(self, graph: GraphModule, limits: Mapping[str, float]) -> None:
        super().__init__(graph)
        self.limits = limits
        self.held: dict[str, Tensor] = {}
        self.sums: Sums = {}

    def run_node(self, n: Node) -> Any:
        """Compute a node, and wait for the gradient of what is asked for."""
        result = super().run_node(n)
        if n.name in self.limits and n.op == "call_function" and result.requires_grad:
            self.held[n.name] = result.detach()
            result.register_hook(lambda gradient, name=n.name: self._add(name, gradient))
        return result

    def _add(self, name: str, gradient: Tensor) -> None:
        step = sample_step(gradient.numel(), MAX_SAMPLES)
        squares = gradient.detach().reshape(-1)[::step].double().square() * step
        bins = bins_of(self.held.pop(name).reshape(-1)[::step], self.limits[name])
        self.sums[name] = torch.bincount(bins, weights=squares, minlength=BINS).numpy()

    def run_backward(self, program: Program, batch: Tensor, seed: int) -> Sums:
        """Sums of squared gradients for one batch (n, channels, height, width)."""
        signs = torch.Generator().manual_seed(seed)
        with torch.enable_grad():
            batch.requires_grad_()
            raw = dict(zip(program.raw.all, self.run(batch), strict=True))
            weighted = [each for each in weighted_outputs(program, raw) if each.requires_grad]
            directions = [torch.randint(2, each.shape, generator=signs) * 2.0 - 1 for each in weighted]
            if weighted:  # asked for by the input alone, so that no gradient of a weight is computed
                torch.autograd.grad(weighted, batch, directions)
        return self.sums
