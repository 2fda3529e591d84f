"""Shell completion, asked as the shells' own scripts ask."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from qexport.cli.app import main
from qexport.cli.completion import VARIABLE, model_path

COMMAND = Path(sys.executable).with_name("qexport")


def completed(*words: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What bash is told: the last word is being typed."""
    monkeypatch.setenv("COMP_WORDS", "\n".join(("qexport", *words)))
    monkeypatch.setenv("COMP_CWORD", str(len(words)))
    monkeypatch.setenv(VARIABLE, "complete_bash")
    with pytest.raises(SystemExit) as ended:
        main([])
    assert ended.value.code == 0
    return capsys.readouterr().out.split()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["qa"], ["qat"]),
        (["l"], ["list"]),
        (["be"], ["best.pt", "below/"]),
        (["below/"], ["below/x.onnx"]),
        (["best.pt", "--form"], ["--format"]),
        (["best.pt", "--format", "o"], ["onnx", "openvino"]),
        (["best.pt", "--format", "onnx,t"], ["onnx,tensorrt", "onnx,tflite"]),
        (["best.pt", "--precision", "int8"], ["int8", "int8-dynamic", "int8-full"]),
        (["best.pt", "--effort", "b"], ["balanced", "best"]),
        (["best.pt", "--target", "raspberrypi"], ["raspberrypi5", "raspberrypi4"]),
        (["best.pt", "--data", "d"], []),  # files: the shell's own completion
        (["export", "best.pt", "--head", "o"], ["one2many"]),
        (["qat", "--weights", "f"], ["free"]),
        (["qat", "b"], ["best.pt", "below/"]),
        (["sensitivity", "--ranges", "min"], ["minmax"]),
        (["demo", "--task", "s"], ["segment"]),
        (["sweep", "--executor", ""], ["local", "ray"]),
        (["snippet", "--lang", "k"], ["kotlin"]),
        (["verify", "--ru"], ["--runtime"]),
        (["diff", "--da"], ["--data"]),
    ],
    ids=" ".join,
)
def test_a_word_is_completed(
    words: list[str],
    expected: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("best.pt", "benign.txt", "below/x.onnx", "below/y.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    assert sorted(completed(*words, capsys=capsys, monkeypatch=monkeypatch)) == sorted(expected)


@pytest.mark.parametrize("folder", ["", "a\\$(touch RAN)/"])
def test_a_name_that_a_shell_would_read_as_code_is_not_told(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    place = tmp_path / folder
    place.mkdir(exist_ok=True)
    signs = (
        "\\$(touch RAN)",
        "$(x)",
        "`x`",
        "a;x",
        "a&b",
        "a|b",
        "'a",
        '"a',
        "a b",
        "a\nb",
        "*",
        "[a]",
        "{a,b}",
        "~",
        "!x",
    )
    for name in (*signs, "<a", "a>b", "#a", "=a", "a=b", "%1", "^a", "a:b", "\x1b[2J", "-rf", "\u202ea"):
        (place / f"{name}.pt").touch()
    for name in ("best.pt", "größe-2_v1.0+x,y@z.onnx"):
        (place / name).touch()
    assert sorted(model_path(folder)) == ([] if folder else ["best.pt", "größe-2_v1.0+x,y@z.onnx"])


@pytest.mark.parametrize(
    ("shell", "line", "told"),
    [
        ("zsh", "qexport qat --effort ", '"fast"'),
        ("zsh", "qexport best.pt --data ", "_files"),
        ("fish", "qexport verify --ru", "--runtime\t"),
    ],
)
def test_other_shells_are_told_in_their_own_way(
    shell: str, line: str, told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(VARIABLE, f"complete_{shell}")
    monkeypatch.setenv("_TYPER_COMPLETE_ARGS", line)
    monkeypatch.setenv("_TYPER_COMPLETE_FISH_ACTION", "get-args")
    with pytest.raises(SystemExit):
        main([])
    assert told in capsys.readouterr().out


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes_with_the_script_that_is_installed(tmp_path: Path) -> None:
    environment = {**os.environ, "HOME": str(tmp_path), "PATH": f"{COMMAND.parent}{os.pathsep}{os.environ['PATH']}"}
    script = (
        "qexport --install-completion > said && . ~/.bashrc && complete -p qexport\n"
        "COMP_WORDS=(qexport yolo26n.pt --effort be); COMP_CWORD=3; _qexport_completion qexport\n"
        'echo "${COMPREPLY[@]}"'
    )
    done = subprocess.run(
        ["bash", "--norc", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.stderr == ""
    assert done.stdout.splitlines() == ["complete -o default -F _qexport_completion qexport", "best"]
    assert (tmp_path / "said").read_text().startswith("bash completion installed in ")
