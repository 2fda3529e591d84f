"""Ray as an executor, with a stand-in for Ray: the real one is in `benchmarks/sweep.py`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from concurrent.futures import Future
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from qexport.errors import InputError, MissingExtraError
from qexport.execution.executor import Task, WorkerDiedError
from qexport.execution.ray import cluster
from qexport.execution.ray.cluster import connected


class TaskError(Exception):
    """As Ray's RayTaskError: the task's own error is its cause."""

    def __init__(self, cause: Exception) -> None:
        super().__init__("a long traceback")
        self.cause = cause


class StandIn(ModuleType):
    """A cluster of two machines that does a task at once; `lost` stands for workers that were."""

    def __init__(self) -> None:
        super().__init__("ray")
        self.__spec__ = ModuleSpec("ray", None)
        self.asked: dict[str, Any] = {}
        self.lost = self.there = self.left = False

    def init(self, address: str, **_: Any) -> None:
        if not self.there:
            raise ConnectionError(f"nobody at {address}\nTraceback")

    def nodes(self) -> list[dict[str, Any]]:
        gone = {"Alive": False, "Resources": {"CPU": 64.0}}
        return [{"Alive": True, "Resources": {"CPU": 4.0}}, {"Alive": True, "Resources": {}}, gone]

    def remote(self, **settings: Any) -> Callable[[Callable[..., Any]], Any]:
        self.asked = settings
        return lambda function: SimpleNamespace(remote=lambda task: self._reference(function, task))

    def _reference(self, function: Callable[..., Any], task: Task) -> Any:
        future: Future[Any] = Future()
        try:
            if self.lost:
                raise OSError("the node died")
            future.set_result(function(task))
        except Exception as error:  # as Ray hands back whatever the task raises
            future.set_exception(error if self.lost else TaskError(error))
        return SimpleNamespace(future=lambda: future)

    def shutdown(self) -> None:
        self.left = True


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    made = StandIn()
    monkeypatch.setitem(sys.modules, "ray", made)
    return made


def refuses() -> None:
    raise InputError("no room", "make some")


def test_a_task_comes_back_as_it_does_elsewhere(ray: StandIn) -> None:
    ray.there = True
    with connected("auto", 16) as found:
        assert found.submit(Task(divmod, (7, 2))).result() == (3, 1)
        with pytest.raises(InputError, match="no room: make some"):
            found.submit(Task(refuses)).result()
        with pytest.raises(WorkerDiedError, match=r"it failed \(ZeroDivisionError"):
            found.submit(Task(divmod, (1, 0))).result()
        ray.lost = True
        with pytest.raises(WorkerDiedError, match=r"its worker was lost, .*the node died"):
            found.submit(Task(divmod, (7, 2))).result()
    assert ray.asked == {"num_cpus": 4, "max_retries": cluster.RETRIES}  # no machine has 16
    assert ray.left


def test_no_cluster_and_no_ray_are_one_line(ray: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"no Ray cluster at a:6379 \(ConnectionError: nobody at a:6379\): start one"):
        connected("a:6379", 1).__enter__()
    monkeypatch.setattr("qexport.plugins.find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'qexport\[ray\]'"):
        connected("a:6379", 1).__enter__()
