"""What torch keeps of graphs goes with the lock that they were made under."""

from __future__ import annotations

import linecache

import pytest
from torch import nn
from torch.fx import graph_module, symbolic_trace

from qexport.compat.one_at_a_time import TRACING


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
