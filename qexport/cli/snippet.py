"""The verb `snippet`: a program that runs a file without qexport."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qexport.cli.console import library_output
from qexport.cli.output import say
from qexport.errors import UsageError
from qexport.snippets.languages import IMAGE, LANGUAGES


def snippet_command(
    file: Annotated[Path, typer.Argument(help="An artifact that qexport wrote: a file, or an OpenVINO folder.")],
    lang: Annotated[str, typer.Option(help=f"{', '.join(LANGUAGES)}.")] = "python",
    image: Annotated[str, typer.Option(help="What the program looks at where it is given nothing else.")] = IMAGE,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Where to write it. Default: it is printed.", show_default=False)
    ] = None,
) -> None:
    """Print a complete program that runs a file without qexport, with its own sizes, names and thresholds."""
    from qexport.compat.quiet import quiet_libraries

    if lang not in LANGUAGES:
        raise UsageError(f"--lang {lang} is not known", f"give {', '.join(LANGUAGES)}")
    if out is not None and out.absolute() == file.absolute():
        raise UsageError(f"--out {out} is the file itself", "give another name for the program")
    quiet_libraries()
    with library_output():
        from qexport.snippets.facts import facts_of
        from qexport.snippets.program import program_of

        text = program_of(facts_of(file), lang, image)
    if out is None:
        for line in text.splitlines():
            say(line)
        return
    from qexport.system.files import write_text

    write_text(out, text)
    say(f"wrote {out}")
