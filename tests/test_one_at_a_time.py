"""What torch keeps of graphs goes with the lock that they were made under."""

from __future__ import annotations

import linecache
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from conftest import demo_images, lowering
from torch import nn
from torch.fx import graph_module, symbolic_trace

from qexport.backends.registry import find_backend
from qexport.compat.one_at_a_time import TRACING
from qexport.errors import VerificationError
from qexport.optimisation.candidate import Candidate
from qexport.steps.model import calibrate
from qexport.steps.optimise import optimise
from qexport.steps.plan import make_target, plan
from qexport.steps.sensitivity import distance, sensitivity
from qexport.steps.train import train
from qexport.steps.verify import verify
from qexport.testing.program import metadata
from qexport.testing.program import program as small_program
from qexport.training.recipe import Recipe


def sources() -> set[str]:
    return set(graph_module._loader.eval_cache)


@pytest.mark.parametrize("error", [None, ValueError])
def test_sources_of_graphs_are_forgotten(error: type[Exception] | None) -> None:
    earlier = symbolic_trace(nn.ReLU())
    before = sources()
    try:
        with TRACING:
            with TRACING:
                made = symbolic_trace(nn.ReLU())
            assert len(new := sources() - before) >= 1  # the thread still has the lock
            assert new <= set(linecache.cache)
            if error is not None:
                raise error
    except ValueError:
        assert error is not None
    assert sources() == before
    assert not new & set(linecache.cache)
    assert made.code == earlier.code


def test_every_step_that_python_code_calls_leaves_no_source(tmp_path: Path) -> None:
    program, images, path = small_program(), demo_images("train", 4), tmp_path / "small.onnx"
    target = make_target("onnx", "int8")
    chosen = plan(program, calibrate(program, images), target)
    assert chosen is not None
    find_backend("onnx").lower(lowering(program, "int8", chosen, metadata(program, "int8")), path)
    candidate = Candidate(program, chosen, program)
    steps: dict[str, Callable[[], object]] = {
        "calibrate": lambda: calibrate(program, images, importance=True),
        "optimise": lambda: optimise(candidate, ["bias-correction"], images),
        "distance": lambda: distance(candidate, images),
        "sensitivity": lambda: sensitivity(candidate, images),
        "train": lambda: train(candidate, images, recipe=Recipe(epochs=1, batch=2)),
        "verify": lambda: verify(path, program, target, chosen, images),
    }
    left = {}
    for name, step in steps.items():
        before = sources()
        with suppress(VerificationError):  # random weights: rounding changes what is found
            step()
        left[name] = len(sources() - before)
    assert left == dict.fromkeys(steps, 0)
