"""The verb `snippet`: a program that runs a file without qexport."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qexport.cli.completion import among
from qexport.cli.console import library_output
from qexport.cli.console import option as _option
from qexport.cli.output import say
from qexport.errors import UsageError
from qexport.snippets.languages import IMAGE, LANGUAGE_ALIASES, LANGUAGES
from qexport.vocabulary import canonical, unknown

PYTHON = "python"


def snippet_command(
    file: Annotated[Path, typer.Argument(help="An artifact that qexport wrote, or the folder of a run.")],
    lang: Annotated[
        str, _option(f"{', '.join(LANGUAGES)}. Default: {PYTHON}.", "--lang", autocompletion=among(LANGUAGES))
    ] = PYTHON,
    image: Annotated[
        str, _option(f"What the program looks at where it is given nothing else. Default: {IMAGE}.", "--image")
    ] = IMAGE,
    out: Annotated[Path | None, _option("Where to write it. Default: it is printed.", "--out", "-o")] = None,
) -> None:
    """Print a complete program that runs a file without qexport, with its own sizes, names and thresholds."""
    from qexport.compat.quiet import quiet_libraries

    lang = canonical(lang, LANGUAGE_ALIASES)
    if lang not in LANGUAGES:
        raise unknown(f"--lang {lang}", lang, tuple(LANGUAGES), LANGUAGE_ALIASES)
    quiet_libraries()
    from qexport.inspection.run_folder import artifact_in

    file = artifact_in(file)
    if out is not None and out.absolute() == file.absolute():
        raise UsageError(f"--out {out} is the file itself", "give another name for the program")
    with library_output():
        from qexport.snippets.facts import facts_of
        from qexport.snippets.program import instructions, program_of

        facts = facts_of(file)
        text = program_of(facts, lang, image)
    if out is None:
        for line in text.splitlines():
            say(line)
        return
    from qexport.system.files import write_text

    done = "replaced" if out.exists() else "wrote"
    write_text(out, text)
    say(f"{done} {out}; to run it, here or beside a copy of {file.name}:")
    for line in instructions(facts, lang, out):
        say(f"  {line}")
