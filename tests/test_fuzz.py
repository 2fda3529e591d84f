"""A sample of `make fuzz`, and by name what it has found: each is refused in one line, or read as what it is."""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from fuzzing.pickles import text
from small_models import archive
from test_hostile_inputs import refusal

from qexport.backends.tflite_micro.c_array import KEYWORDS, identifier
from qexport.checkpoints.checkpoint import load_checkpoint
from qexport.checkpoints.unpickle import unpickled

FUZZ = Path(__file__).with_name("fuzz.py")


def test_a_sample(tmp_path: Path) -> None:
    """Cases of each kind, in a process of their own: one that dies takes no other test with it."""
    command = [sys.executable, str(FUZZ), "--cases", "200", "--seed", "7", "--kept", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    counted = re.search(r"(\d+) cases of seed 7 in \d+ s, 0 with faults", done.stdout)
    assert counted
    assert int(counted[1]) >= 150
    assert not list(tmp_path.iterdir())


def nested(levels: int) -> bytes:
    """A tuple that holds one tuple twice, which holds another one twice, and so on."""
    return b"K\x01" + b"2\x86" * levels


PICKLES: dict[str, tuple[bytes, str]] = {
    "key that takes 2^60 steps to hash": (b"}" + nested(60) + b"K\x01s", "stands for more than 5,000 values"),
    "set of such": (b"(" + nested(60) + b"\x91", "stands for more than 5,000 values"),
    "tuples 100,000 deep": (b"}" + b"N" + b"\x85" * 100_000 + b"K\x01s", "stands for more than 5,000 values"),
    "storage under such a key": (
        b"(" + text("storage") + b"ctorch\nFloatStorage\n)" + text("cpu") + b"K\x01tQ",
        "in another way than torch.save does",
    ),
    "storage of a negative size": (
        b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + b"J\xff\xff\xff\xfftQ",
        "more bytes than the file",
    ),
    "storage of 2^40 bytes": (
        b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + b"\x8a\x06\0\0\0\0\0\x01tQ",
        "more bytes than the file",
    ),
    "place 2^31 of the memory": (b"K\x01r\xff\xff\xff\x7f0ccollections\nx\n)R", "collections.x"),
    "extension of the process": (b"\x82\x01)R", "damaged"),
    "buffer of 2^40 bytes": (b"\x96\0\0\0\0\0\x01\0\0", "cut short"),
    "call of a text": (text("x") + b")R", "it calls a str"),
    "object of a number": (b"K\x01)\x81", "it makes a int"),
    "state of a list": (b"]}b", "it changes a list"),
}


@pytest.mark.parametrize("sample", PICKLES)
def test_pickles_that_no_save_writes(sample: str, tmp_path: Path) -> None:
    content, words = PICKLES[sample]
    path = archive(tmp_path / "x.pt", b"\x80\x02}" + text("model") + content + b"s.")
    assert words in refusal(load_checkpoint, path)


def test_an_archive_is_read_as_it_was_bounded(tmp_path: Path) -> None:
    """Of two directories in one file Python's reader takes the last; torch's could be shown the other one."""
    harmless, hidden = io.BytesIO(), io.BytesIO()
    for stream, content in ((harmless, b"\x80\x02K\x01."), (hidden, b"\x80\x02K\x02.")):
        with zipfile.ZipFile(stream, "w") as made:
            made.writestr("x/data.pkl", content)
            made.writestr("x/version", b"3\n")
    assert unpickled(hidden.getvalue() + harmless.getvalue()) == 1
    assert unpickled(harmless.getvalue() + hidden.getvalue()) == 2


@pytest.mark.parametrize("word", sorted({"class", "int", "main", "alignas", "_x", "", "7", "A-b", "x"}))
def test_names_that_c_plus_plus_keeps_for_itself(word: str, tmp_path: Path) -> None:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("needs a C++ compiler")
    name = identifier(word)
    source = tmp_path / "x.cc"
    source.write_text(f"extern const unsigned char {name}[1]; const unsigned char {name}[1] = {{0}};\n")
    subprocess.run([compiler, "-std=c++20", "-fsyntax-only", "-Wall", "-Werror", source], check=True)
    assert (name == re.sub(r"\W", "_", word)) == (word in ("A-b", "x"))
    assert name not in KEYWORDS
