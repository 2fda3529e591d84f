"""For authors of plug-ins, and for tests of the walk: a backend that needs no runtime, and what every one must do."""

from __future__ import annotations

from qexport.testing.contract import check_backend
from qexport.testing.fake import FakeBackend
from qexport.testing.registered import registered
from qexport.testing.statistics import statistics_of

__all__ = ["FakeBackend", "check_backend", "registered", "statistics_of"]
