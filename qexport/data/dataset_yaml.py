"""The text of a dataset YAML as a mapping, without what no YAML may contain."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from qexport.errors import InputError
from qexport.system.given_files import UnfitFileError, read_text

_UNPRINTABLE = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What YAML does not allow and people's comments contain; Ultralytics takes it out, too."""


def read_mapping(path: Path) -> dict[str, Any]:
    """The keys of a dataset YAML, by name.

    Raises:
        InputError: it cannot be read, or is no mapping.
    """
    from qexport.system.yaml_form import MAX_YAML, parse_yaml

    if os.path.isdir(path):
        raise InputError(f"{path} is a folder, not a dataset YAML", "give the .yaml file in it")
    try:
        text = read_text(path, errors="ignore", most=MAX_YAML)
    except FileNotFoundError:
        raise InputError(f"dataset {path} does not exist", "give the path of a dataset YAML") from None
    except UnfitFileError as error:
        raise InputError(f"dataset {path} cannot be read ({error})", "give the path of a dataset YAML") from error
    except OSError as error:
        raise InputError(f"dataset {path} cannot be read ({error.strerror})", "check its permissions") from error
    try:
        content = parse_yaml(_UNPRINTABLE.sub("", text))
    except ValueError as error:
        raise InputError(f"dataset {path} is not valid YAML ({error})", "correct it") from error
    if not isinstance(content, dict):
        raise InputError(f"dataset {path} is not a YAML mapping", "give a file with 'train:', 'val:' and 'names:'")
    return content
