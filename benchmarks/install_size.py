"""Add up what each extra of qexport brings into this environment.

    make bench-install    (or in any environment with '.[all]': python benchmarks/install_size.py)

Prints MB of all files, compiled ones included, that an extra's packages and those that they require record, without
qexport's own; torch is what the environment has, so that CUDA's libraries count where they are installed. Exits with 1
if an extra is not wholly installed.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution, version
from pathlib import Path

from packaging.requirements import Requirement

EXTRAS = ("", "onnx", "openvino", "tflite", "tensorflow", "nncf", "all")
MB = 1e6


def main() -> int:
    """Print a line for each extra, largest packages behind it."""
    print(f"torch {version('torch')}, ultralytics {version('ultralytics')}, Python {sys.version.split()[0]}")
    missing: set[str] = set()
    for extra in EXTRAS:
        sizes = dict(required(Requirement(f"qexport[{extra}]" if extra else "qexport"), set(), missing))
        largest = sorted(sizes, key=lambda name: -sizes[name])[:5]
        parts = ", ".join(f"{name} {sizes[name] / MB:.0f}" for name in largest)
        print(f"{extra or 'none':<11} {sum(sizes.values()) / MB:6.0f} MB in {len(sizes):3} packages: {parts}")
    for name in sorted(missing):
        print(f"not installed: {name}")
    return 1 if missing else 0


def required(wanted: Requirement, seen: set[tuple[str, str]], missing: set[str]) -> Iterator[tuple[str, int]]:
    """Name and bytes of all that a requirement brings; what is not there goes into `missing`."""
    try:
        found = distribution(wanted.name)
    except PackageNotFoundError:
        missing.add(wanted.name)
        return
    if found.name != "qexport":
        yield found.name, bytes_of(found)
    for extra in ("", *sorted(wanted.extras)):
        if (found.name, extra) in seen:
            continue
        seen.add((found.name, extra))
        for each in map(Requirement, found.requires or ()):
            if each.marker is None or each.marker.evaluate({"extra": extra}):
                yield from required(each, seen, missing)


def bytes_of(found: Distribution) -> int:
    """Of all files that are recorded and there."""
    paths = (Path(str(file.locate())) for file in found.files or ())
    return sum(path.stat().st_size for path in paths if path.is_file())


if __name__ == "__main__":
    sys.exit(main())
