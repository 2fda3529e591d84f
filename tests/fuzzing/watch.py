"""What a process does beside reading, by Python's audit events (PEP 578): programs, sockets, writing, code, imports."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import CodeType
from typing import Any

FORBIDDEN = (
    *("os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.startfile", "os.kill", "pty.spawn"),
    *("os.symlink", "os.link", "os.chmod", "os.chown", "os.setxattr", "shutil.chown", "signal.pthread_kill"),
    *("subprocess.Popen", "webbrowser.open", "urllib.Request", "http.client", "ftplib", "smtplib", "poplib", "imaplib"),
    *("socket.", "ctypes.", "mmap.", "code.__new__", "function.__new__", "marshal.", "pickle.find_class"),
    *("sys.settrace", "sys.setprofile", "sys.addaudithook", "sys.unraisablehook", "cpython.", "builtins.input"),
)
"""Beginnings of events that no file has a reason for; reading a checkpoint as data looks up no class."""
CHANGES = ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.truncate", "shutil.move", "shutil.rmtree")
"""Of what lies at the path that comes first."""
LIBRARIES = frozenset(
    (
        "torch",
        "torchvision",
        "ultralytics",
        "numpy",
        "PIL",
        "pi_heif",
        "cv2",
        "yaml",
        "onnx",
        "onnxruntime",
        "qexport",
        "encodings",
    )
)
"""Packages whose modules a reader may import late; of all others only what was imported before."""
STANDARD = frozenset(("linecache", "traceback", "tokenize", "token", "tarfile", "gzip", "bz2", "lzma", "stringprep"))
EVALUATING = ("/typing.py", "/inspect.py", "/torch/fx/graph_module.py")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Watch:
    """Notes what happens while it is `armed`; it stays with its process until that ends.

    Attributes:
        found: events that no reader of files has a reason for, as text.
    """

    def __init__(self, folder: Path) -> None:
        self.places = (str(folder.resolve()), "/dev/null")
        self.known = frozenset(sys.modules)
        self.armed = False
        self.found: list[str] = []
        sys.addaudithook(self._note)

    def _note(self, event: str, given: tuple[Any, ...]) -> None:
        if self.armed and self._strange(event, given):
            self.armed = False  # to write it down may open files, too
            self.found.append(f"{event} {given!r}"[:300])
            self.armed = True

    def _strange(self, event: str, given: tuple[Any, ...]) -> bool:
        if event == "open":
            return self._writes(*given)
        if event == "import":
            return not self._is_known(str(given[0]))
        if event == "exec":
            code = given[0]
            return not (
                isinstance(code, CodeType) and (_is_a_librarys(code.co_filename) or _is_asked_for_by_a_library())
            )
        if event == "marshal.loads":  # what is imported has been looked at as such
            return not _is_importing()
        return event.startswith(FORBIDDEN) or (event in CHANGES and self._is_elsewhere(given[0]))

    def _writes(self, path: Any, mode: str | None, flags: int) -> bool:
        writes = bool(set(mode or "") & set("wax+")) if mode else bool(flags & WRITING)
        return writes and self._is_elsewhere(path)

    def _is_elsewhere(self, path: Any) -> bool:
        if isinstance(path, int):  # a descriptor, whose file was opened before
            return False
        return not os.path.realpath(os.fsdecode(path)).startswith(self.places)

    def _is_known(self, module: str) -> bool:
        return module in self.known or module.partition(".")[0] in LIBRARIES | STANDARD


def _is_asked_for_by_a_library() -> bool:
    """Whether annotations are evaluated, or a graph of torch becomes a function: the program's own, not a file's."""
    return sys._getframe(3).f_code.co_filename.endswith(EVALUATING)


def _is_importing() -> bool:
    """Whether it is Python's import that reads compiled code."""
    return sys._getframe(3).f_code.co_filename == "<frozen importlib._bootstrap_external>"


def _is_a_librarys(file: str) -> bool:
    """Whether code is of an installed file, which importing runs."""
    return file.startswith("<frozen ") or any(file.startswith(place) for place in sys.path if place)
