"""Coral Edge TPU: an integer-only `.tflite` file, checked against the compiler's limits and compiled."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qexport.backends.device_fit import DeviceFit, Lacking
from qexport.backends.edgetpu.info import COMPILER, INFO
from qexport.backends.info import check_precision
from qexport.backends.protocol import Runner
from qexport.backends.tflite.backend import TFLiteBackend
from qexport.backends.tflite.file import append_metadata, flatbuffer_of
from qexport.detections.file_form import LAYOUT, NHWC, NORMALISED
from qexport.errors import EngineNotBuiltError
from qexport.lowering.request import Lowering
from qexport.lowering.stored import StoredGraph
from qexport.system.files import write_text, write_whole
from qexport.system.guard import run_tied

MAX_SECONDS = 600


class EdgeTPUBackend:
    """Writes integer-only TFLite files, and compiles them with `edgetpu_compiler` where that is installed."""

    info = INFO
    _files = TFLiteBackend()

    def lower(self, request: Lowering, path: Path) -> None:
        """Write an integer-only `.tflite` file."""
        check_precision(self.info, request.target.precision)
        self._files.lower(request, path)

    def read(self, path: Path) -> StoredGraph:
        """Read types, scales and INT8 weights from the flatbuffer."""
        return self._files.read(path)

    def runner(self, path: Path, threads: int) -> Runner:
        """Load the file into LiteRT, which computes the same integers."""
        return self._files.runner(path, threads)

    def fit(self, file: Path, path: Path) -> DeviceFit:
        """Check every operator against the compiler's documented limits."""
        from qexport.backends.edgetpu.operators import SOURCE, why_not
        from qexport.backends.tflite.operators import read_graph

        operators = read_graph(file).operators
        reasons = [(operator.kind, why_not(operator)) for operator in operators]
        found = Counter((kind, reason) for kind, reason in reasons if reason)
        first = next((number for number, (_, reason) in enumerate(reasons) if reason), len(reasons))
        lacking = tuple(Lacking(kind, count, reason) for (kind, reason), count in found.items())
        return DeviceFit("Edge TPU", len(operators), lacking, in_front=first, source=SOURCE)

    def write_script(self, folder: Path) -> None:
        """Nothing: the compiler is one command."""

    def build(self, graph: Path, path: Path, metadata: Mapping[str, Any], options: Mapping[str, Any]) -> None:
        """Compile the file, with Ultralytics' metadata behind the result and the compiler's log beside it.

        Raises:
            EngineNotBuiltError: the compiler is not installed, or refused the file.
        """
        compiler = shutil.which(COMPILER)
        if compiler is None:
            raise EngineNotBuiltError(
                f"{graph.name} is ready but not compiled: {COMPILER} is not installed here",
                f"run {COMPILER} {graph.name} where it is, or give --no-build",
            )
        with tempfile.TemporaryDirectory(prefix="qexport-") as scratch:
            made, log = _compiled(compiler, graph, Path(scratch))
            append_metadata(made, {**metadata, LAYOUT: NHWC, NORMALISED: False})
            # What the compiler says it has mapped is more than its documentation can tell.
            write_text(path.with_suffix(".log"), log)
            with write_whole(path) as temporary:
                shutil.copyfile(made, temporary)


def _compiled(compiler: str, graph: Path, folder: Path) -> tuple[Path, str]:
    """Run the compiler on the bare flatbuffer; return the file that it wrote, and what it said."""
    bare = folder / graph.name
    bare.write_bytes(flatbuffer_of(graph))
    words = [compiler, "--show_operations", "--out_dir", str(folder), str(bare)]
    try:
        done = run_tied(words, MAX_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EngineNotBuiltError(f"{COMPILER} did not finish on {graph.name}: {error}", "run it by hand") from error
    made = folder / f"{graph.stem}_edgetpu.tflite"
    if done.returncode or not made.is_file():
        lines = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise EngineNotBuiltError(
            f"{COMPILER} refused {graph.name}: {lines[-1] if lines else f'exit code {done.returncode}'}",
            "run it by hand to see its log",
        )
    return made, done.stdout
