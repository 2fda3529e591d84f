"""The user's folder for what can be measured or made again."""

from __future__ import annotations

import os
from pathlib import Path

NAME = "qexport"


def cache_folder() -> Path | None:
    """`$XDG_CACHE_HOME/qexport`, or `~/.cache/qexport`; it need not be there. None for a user without a home folder.

    A relative `XDG_CACHE_HOME` counts as unset (XDG Base Directory Specification).
    """
    given = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if given.is_absolute():
        return given / NAME
    try:
        return Path.home() / ".cache" / NAME
    except RuntimeError:
        return None
