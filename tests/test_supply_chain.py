"""What is installed is known by its hash, and what is built is what git has."""

from __future__ import annotations

import re
import shutil
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LOCKS = sorted((ROOT / "locks").glob("*.txt"))
ENTRY = re.compile(r"^([\w.-]+)==(\S+)( ; [^\\\n]+)? \\\n((?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)", re.M)
OF_THE_USERS_INDEX = {"torch", "torchvision"}


def normal(name: str) -> str:
    """A project's name as indices compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def locked(path: Path) -> dict[str, set[str]]:
    """Versions by name; several where platforms differ."""
    found: dict[str, set[str]] = {}
    for name, version, _, _ in ENTRY.findall(path.read_text(encoding="utf-8")):
        found.setdefault(normal(name), set()).add(version)
    return found


def test_a_lock_has_what_the_constraints_pin() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = dict(line.split("==") for line in lines if not line.startswith("#"))
    found = locked(ROOT / "locks" / "qexport.txt")
    others = {name: found.get(normal(name)) for name, version in pinned.items() if found.get(normal(name)) != {version}}
    assert others == dict.fromkeys(OF_THE_USERS_INDEX)


@pytest.mark.parametrize("path", LOCKS, ids=lambda path: path.stem)
def test_nothing_is_locked_without_a_hash(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    rest = [line for line in ENTRY.sub("", text).splitlines() if not line.startswith("#")]
    assert rest == []
    assert not [name for name in locked(path) if name in OF_THE_USERS_INDEX or name.startswith(("nvidia-cu", "triton"))]


def test_the_makefile_installs_by_hash_or_from_here() -> None:
    lines = (ROOT / "Makefile").read_text(encoding="utf-8").replace("\\\n", " ").splitlines()
    installs = [line for line in lines if "pip install" in line and not line.startswith("#")]
    hashed = [line for line in installs if "--no-deps --only-binary :all: --require-hashes -r" in line]
    own = [line for line in installs if re.search(r"--no-deps --no-build-isolation -e \.$", line)]
    chosen = [line for line in installs if "torch==" in line and "-c constraints.txt" in line]
    assert (len(hashed), len(own), len(chosen), len(installs)) == (1, 1, 1, 3)


JUNK = (
    "calibration_data/shapes/labels/train.cache",
    "qexport/__pycache__/x.pyc",
    "tests/__pycache__/x.pyc",
    "runs/x.pt",
)


MANY = 2**16
"""Bytes that are enough of a file."""


@pytest.mark.skipif(shutil.which("git") is None or not (ROOT / ".git").exists(), reason="not a checkout of git")
def test_two_builds_have_the_bytes_of_files_that_git_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("hatchling", reason="needs what `make setup` installs")
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    tracked = [name for name in listed.split("\0") if name and (ROOT / name).is_file()]
    builds = [_built(tmp_path / folder, tracked) for folder in ("one", "two")]
    assert builds[0] == builds[1]
    wheel, source = sorted((tmp_path / "one" / "dist").iterdir(), key=lambda path: path.suffix != ".whl")
    with zipfile.ZipFile(wheel) as archive:
        inside = {name for name in archive.namelist() if ".dist-info/" not in name}
    places = {"qexport/": "qexport/", "calibration_data/": "qexport/_demo/", "configs/": "qexport/_configs/"}
    expected = {to + name.removeprefix(at) for at, to in places.items() for name in tracked if name.startswith(at)}
    assert expected - inside == {"qexport/decode/README.md", "qexport/decode/pyproject.toml"}  # of the other wheel
    assert inside <= expected
    with tarfile.open(source) as archive:
        unpacked = {member.name.partition("/")[2] for member in archive.getmembers()} - {"PKG-INFO"}
    assert unpacked <= set(tracked)
    assert {"SECURITY.md", "LICENSE", "locks/qexport.txt", "tests/test_supply_chain.py"} <= unpacked


def _built(folder: Path, tracked: list[str]) -> list[bytes]:
    """Build wheel and source distribution of a copy with junk in it."""
    from hatchling.builders.sdist import SdistBuilder
    from hatchling.builders.wheel import WheelBuilder

    for name in tracked:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes((ROOT / name).read_bytes()[:MANY])  # weights would take long to compress
    for name in JUNK:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("junk")
    for builder in (WheelBuilder, SdistBuilder):
        list(builder(str(folder)).build(directory=str(folder / "dist"), versions=["standard"]))
    return [path.read_bytes() for path in sorted((folder / "dist").iterdir())]
