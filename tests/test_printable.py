"""Names and messages are data at every border: the terminal, Markdown, C++ source, HTML."""

from __future__ import annotations

import ast
import io
import json
import shutil
import subprocess
import unicodedata
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from page_reader import read_page
from reports import artifact, report
from rich.console import Console

from qexport.backends.tflite_micro.c_array import write_array
from qexport.cli.app import main
from qexport.cli.console import fail
from qexport.cli.output import Rows, say, say_json, show
from qexport.cli.terminal import print_report
from qexport.reporting.markdown import as_code, as_text
from qexport.reporting.page.render import render
from qexport.reporting.report import Report
from qexport.reporting.summary import to_markdown
from qexport.system.printable import printable

FORGED = "a\x1b[2K\r\nqexport: error: forged\x9b1A\u202egnp.\u2028`|*_b"
"""Clears the line, begins another, goes up by one, turns the direction of writing, ends a code span and a cell."""
SYNTAX = st.text(st.sampled_from("`|*_[]()<>&\\~#\n\r\t\x1b\x9b\x00\x7f\u202e\u2028\ud800 a:/w.!-?\"'é"), max_size=30)
texts = st.one_of(SYNTAX, st.text(max_size=20))


def is_shapeless(character: str) -> bool:
    """Whether a terminal does something else with it than to draw it, by Unicode's general categories."""
    return unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp")


@settings(deadline=None)
@given(texts)
def test_what_is_printed_has_a_shape_and_can_be_read_back(text: str) -> None:
    shown = printable(text)
    assert not any(map(is_shapeless, shown))
    if "\\" not in text:
        quoted = shown.replace("'", r"\'")
        assert ast.literal_eval(f"'{quoted}'") == text


def test_names_in_any_script_are_as_they_are() -> None:
    for name in ("yolo26n int8.tflite", "größe-日本語-кот", "حاسوب", "🙂", r"C:\models\a.pt"):
        assert printable(name) == name
    assert printable(FORGED) == r"a\x1b[2K\r\nqexport: error: forged\x9b1A\u202egnp.\u2028`|*_b"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@settings(deadline=None)
@given(texts)
def test_an_error_is_one_line_in_a_pipe_and_one_paragraph_on_a_terminal(text: str) -> None:
    for stream in (io.StringIO(), Terminal()):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("sys.stderr", stream)
            patch.setenv("COLUMNS", "30")
            fail(text, 3)
        first, *others = stream.getvalue().rstrip("\n").split("\n")
        assert first.startswith("qexport: error:")
        assert all(line.startswith("  ") for line in others)
        assert not others or stream.isatty()
        assert not any(map(is_shapeless, "".join([first, *others])))


@settings(deadline=None)
@given(texts)
def test_a_line_of_a_log_is_no_command_to_the_ci_service_that_reads_it(text: str) -> None:
    for words in (text, f"::{text}", f" ##[{text}"):
        stream = io.StringIO()
        say(words, stream)
        assert stream.getvalue().count("\n") == 1
        assert not stream.getvalue().strip().startswith(("::", "##["))


@settings(deadline=None)
@given(st.dictionaries(texts, texts, max_size=3))
def test_json_says_what_it_said(content: dict[str, str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdout", stream := io.StringIO())
        say_json(json.dumps(content, indent=2) + "\n")
    assert json.loads(stream.getvalue()) == content
    assert not any(map(is_shapeless, stream.getvalue().replace("\n", "")))


@settings(deadline=None, max_examples=50)
@given(texts)
def test_cells_of_a_table_are_text_and_no_markup(text: str) -> None:
    for cell in (text, f"[red]{text}[/]", f"{text}[/bold]"):
        table = Rows()
        table.add_column("name")
        table.add(cell)
        show(Console(file=(stream := io.StringIO()), width=400), table)
        row = stream.getvalue().split("\n")[-3]
        seen = " ".join(row.split())
        assert " ".join(printable(cell).split()) in {
            seen,
            seen.removeprefix("\\"),
        }  # what CI services would obey has one


def hostile(text: str) -> Report:
    """A report in which everything that comes from files and libraries has the same text."""
    rule = {"rule": "max-size", "figure": 1.0, "interval": None, "bound": 2.0, "passed": True}
    made = report(
        artifact(warnings=[text], runtime=f"{text}, in place of TensorRT", own_runtime=False),
        failures=[{"format": text, "reason": text, "exit_code": 5}],
        gate={"passed": True, "rules": [{**rule, "artifact": text, "text": text}]},
        baseline={"path": text, "sha256": "a"},
        environment={"processor": text, "cores": 2, "python": "3.11", "packages": {}},
        warnings=[f"run {text}"],
    )
    named = replace(made.artifacts[0], path=f"out/{text}")
    return replace(made, artifacts=(named,), model=replace(made.model, path=f"models/{text}", head=text))


def lines_of(made: Report) -> list[str]:
    stream = io.StringIO()
    print_report(made, Path("report.json"), Console(file=stream, width=400))
    return stream.getvalue().split("\n")


PLAIN = "plain"


def test_a_report_on_the_terminal_has_the_lines_of_a_harmless_one() -> None:
    lines = lines_of(hostile(FORGED))
    assert len(lines) == len(lines_of(hostile(PLAIN)))
    assert not any(map(is_shapeless, "".join(lines)))
    assert f"warning: run {printable(FORGED)}" in lines


MARKDOWN = MarkdownIt("commonmark").enable("table")
OURS = {"<sub>", "</sub>", "<br>", "<code>", "</code>"}


def shape(markdown: str) -> list[str]:
    """Blocks, and what is in their lines besides text, by a parser of Markdown; other names of code are equal."""
    found: list[str] = []
    for token in MARKDOWN.parse(markdown):
        found.append(token.type)
        for child in token.children or ():
            assert child.type in {"text", "text_special", "code_inline", "html_inline", "softbreak", "strong_open",
                                  "strong_close"}, (child.type, token.content)  # fmt: skip
            if child.type == "html_inline":
                assert child.content in OURS
            if child.type != "text" and child.content not in ("<code>", "</code>"):
                found += [child.content] if child.type == "html_inline" else []
    return found


def read(markdown: str) -> str:
    """What a reader sees of a line."""
    (line,) = [token for token in MARKDOWN.parse(f"x {markdown} x") if token.type == "inline"]
    assert line.children
    assert {child.type for child in line.children} <= {"text", "text_special", "code_inline", "html_inline"}
    return "".join(child.content for child in line.children if child.type != "html_inline")[2:-2]


@settings(deadline=None)
@given(texts)
def test_markdown_shows_text_and_names_as_they_are(text: str) -> None:
    assert read(as_text(text)).split() == printable(text).split()
    assert read(as_code(text)) == printable(text)


@settings(deadline=None, max_examples=50)
@given(texts)
def test_a_summary_has_the_blocks_of_a_harmless_one(text: str) -> None:
    assert shape(to_markdown(hostile(f"a{text}b"))) == shape(to_markdown(hostile(PLAIN)))


def test_a_name_with_backticks_and_pipes_stays_in_its_cell() -> None:
    rows = [line for line in MARKDOWN.render(to_markdown(hostile(FORGED))).splitlines() if line.startswith("<td")]
    harmless = [line for line in MARKDOWN.render(to_markdown(hostile(PLAIN))).splitlines() if line.startswith("<td")]
    assert len(rows) == len(harmless)
    assert rows[0].startswith(f"<td><code>{printable(FORGED)}</code><br>")
    assert "https\\://evil.example" in to_markdown(hostile("https://evil.example"))  # no address that a click opens


@settings(deadline=None)
@given(texts.filter(lambda text: "/" not in text and "\0" not in text))
def test_comments_of_cpp_end_with_their_line(text: str) -> None:
    from qexport.backends.tflite_micro.c_array import comment

    line = comment(text)
    assert line.startswith("// ")
    assert len(line.splitlines()) == 1
    assert not any(each in line for each in ("\\", "??", "*/", "/*"))


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_a_hostile_name_compiles_as_a_comment(tmp_path: Path) -> None:
    file = tmp_path / "a.tflite"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("metadata.json", "{}")
    file.write_bytes(b"\x01\x02\x03" + file.read_bytes())
    name = '8n-é"\n#error "a" ?? \\\r??'
    source, header = write_array(file, tmp_path / f"{name}.tflite", ["ADD\n#error b ??/", "MUL\\"], {"*/ a\\": 3})
    assert header.name == "8n-é___error _a_ __ ____.h"
    words = ["g++", "-std=c++17", "-trigraphs", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", str(source)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_page_shows_what_cannot_be_seen() -> None:
    page = render(hostile(f"<script>{FORGED}\udcff"))
    page.encode("utf-8")  # a name that is no UTF-8 is none on the page either
    assert not any(map(is_shapeless, page.replace("\n", "")))
    shown = printable(FORGED).replace(r"\n", " ")  # the end of a line is a blank in HTML
    assert f"<script>{shown}\\udcff" in read_page(page).text


def test_a_model_whose_name_has_escapes_is_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    name = "a\x1b[2K\nqexport: error: forged\u202e.pt"
    assert main([name, "--no-eval", "--no-latency"]) == 3
    output, errors = capfd.readouterr()
    assert output == ""
    told, line = errors.splitlines()
    assert told.startswith(r"→ a\x1b[2K\nqexport: error: forged\u202e.pt to ")
    assert line.startswith(r"qexport: error: model a\x1b[2K\nqexport: error: forged\u202e.pt")


def test_a_report_with_escapes_is_refused_in_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "a\x1b]0;title\x07.json"
    source.write_text('{"schema": "\\u001b[2J"}')
    assert main(["report", str(source)]) == 3
    (line,) = capfd.readouterr().err.splitlines()
    assert not any(map(is_shapeless, line))
    assert r"a\x1b]0;title\x07.json" in line
