"""One streaming pass of the program over the calibration images."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor
from torch.fx import GraphModule

from qexport.calibration.calibration_table import CalibrationTable
from qexport.calibration.observer import Observer, samples_each
from qexport.calibration.statistics import Statistics, merge, unit_interval
from qexport.data.dataset import fingerprint
from qexport.data.images import stream
from qexport.errors import InputError
from qexport.programs.graph import FileGraph
from qexport.programs.program import Program, Value, copied, observed_sources

UNIT_INTERVAL = frozenset({"sigmoid"})
"""Operations that are not watched, a quarter of all: their results lie in 0..1 whatever the images show."""
MIN_USABLE = 0.5
"""Share of the images that must be readable: with fewer, something is wrong with the data set, not with a file."""


class _Observe(torch.nn.Module):
    """An observer in the place that it watches."""

    def __init__(self, name: str, samples: int) -> None:
        super().__init__()
        self.name, self.observer = name, Observer(samples)

    def forward(self, tensor: Tensor) -> None:
        """Show the observer one image's tensor."""
        try:
            self.observer.update(tensor)
        except ValueError as error:
            raise InputError(
                f"{self.name} is {error} for a calibration image", "the checkpoint may be damaged: try it in float"
            ) from error


class _Watched:
    """A copy of the program's graph with observers in it; values are freed as soon as nothing reads them."""

    def __init__(self, program: Program, samples: int) -> None:
        self._graph = copied(program)
        _use_channels_last(self._graph)
        names = {value.name for value in _described(program) if value.operation not in UNIT_INTERVAL}
        watched = [node for node in self._graph.graph.nodes if node.name in names]
        for number, node in enumerate(watched):
            self._graph.add_module(f"observe_{number}", _Observe(node.name, samples))
            with self._graph.graph.inserting_after(node):
                self._graph.graph.call_module(f"observe_{number}", (node,))
        self._graph.recompile()
        self.runs = 0

    @property
    def observers(self) -> dict[str, Observer]:
        """By value name."""
        return {part.name: part.observer for part in self._graph.modules() if isinstance(part, _Observe)}

    def run(self, images: Tensor) -> None:
        """Run the program once, (n, channels, height, width) in 0..1."""
        self.runs += 1
        self._graph(images.contiguous(memory_format=torch.channels_last))


class _WatchedFile:
    """The same for a graph that tells its values itself."""

    def __init__(self, program: Program, samples: int) -> None:
        assert isinstance(program.graph, FileGraph)
        self._graph = program.graph
        watched = (value.name for value in _described(program) if value.operation not in UNIT_INTERVAL)
        self._places = {name: _Observe(name, samples) for name in watched}
        self.runs = 0

    @property
    def observers(self) -> dict[str, Observer]:
        """By value name."""
        return {name: place.observer for name, place in self._places.items()}

    def run(self, images: Tensor) -> None:
        """Run the program once, in the form that it wants its input in."""
        self.runs += 1
        for name, tensor in self._graph.computed(images, tuple(self._places)):
            self._places[name](tensor)


def _use_channels_last(graph: GraphModule) -> None:
    """Convolutions of this size are a sixth quicker with the channels innermost; results are the same values."""
    for node in graph.graph.find_nodes(op="call_function", target=torch.ops.aten.view.default):
        node.target = torch.ops.aten.reshape.default  # a view may not fit the other order
    for parameter in (*graph.parameters(), *graph.buffers()):
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)


def _described(program: Program) -> Iterator[Value]:
    """Values that the table has an entry for."""
    body = [value for value in program.values.values() if value.region == "body"]
    read = {source for value in body for name in value.inputs for source in observed_sources(program, name)}
    own = {value.name for value in body if observed_sources(program, value.name) == (value.name,)}
    return (value for value in program.values.values() if value.name in read | own)


def preprocess_name(program: Program) -> str:
    """How images become inputs, as recorded in tables and reports."""
    colours = {1: "grey", 3: ""}.get(program.channels, f"{program.channels} channels")
    form = f"{colours}, {program.form.pixels}" if colours else program.form.description
    return f"{program.preprocess} {program.imgsz[0]}x{program.imgsz[1]}, {form}"


def calibrate(
    program: Program, images: Sequence[Path], on_image: Callable[[], None], workers: int = 2
) -> CalibrationTable:
    """Run the program over `images` and return what its values looked like.

    Memory does not grow with the number of images: each is read, run and dropped. Images are spread over threads
    that each compute alone: operations of this size gain little from more cores, and lose a lot on a busy machine.
    Merging the threads' statistics is exact, so the result does not depend on who did which image.

    Args:
        on_image: called after each image, for a progress bar.
        workers: images in flight.

    Raises:
        InputError: fewer than half of the images are usable, or a value is not finite.
    """
    own = threading.local()
    everyone: list[_Watched | _WatchedFile] = []
    watch = _WatchedFile if isinstance(program.graph, FileGraph) else _Watched

    def start() -> None:
        torch.set_num_threads(1)
        own.watched = watch(program, samples_each(len(images)))
        everyone.append(own.watched)

    def run(path: Path) -> str:
        reasons: list[str] = []
        with torch.no_grad():
            for _, pixels in stream([path], program.imgsz, lambda _, why: reasons.append(why), *program.image_form):
                # A fixed batch larger than one is filled with the same image, which changes no statistic.
                given = torch.from_numpy(program.form.applied(pixels))
                own.watched.run(given[None].expand(program.batch, -1, -1, -1))
        on_image()
        return "".join(reasons)

    threads = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(workers, initializer=start) as pool:
            reasons = list(pool.map(run, images))
    finally:
        torch.set_num_threads(threads)
    skipped = tuple((path.name, reason) for path, reason in zip(images, reasons, strict=True) if reason)
    _check_usable(len(images), skipped)
    return CalibrationTable(
        program=program.fingerprint,
        preprocess=preprocess_name(program),
        images=fingerprint(images),
        image_names=tuple(path.name for path, reason in zip(images, reasons, strict=True) if not reason),
        skipped=skipped,
        statistics=_merged(program, everyone),
    )


def _merged(program: Program, everyone: Sequence[_Watched | _WatchedFile]) -> dict[str, Statistics]:
    """Statistics of every value over the threads that saw an image."""
    active = [watched.observers for watched in everyone if watched.runs]

    def of(value: Value) -> Statistics:
        if value.operation in UNIT_INTERVAL:
            return unit_interval()
        return merge(observers[value.name].statistics() for observers in active)

    return {value.name: of(value) for value in _described(program)}


def _check_usable(total: int, skipped: Sequence[tuple[str, str]]) -> None:
    usable = total - len(skipped)
    if not total:
        raise InputError("no calibration images", "add --data with images in its train split")
    if usable < max(1, MIN_USABLE * total):
        name, reason = skipped[0]
        raise InputError(
            f"only {usable} of {total} calibration images are usable, the first that is not is {name} ({reason})",
            "repair the data set",
        )
