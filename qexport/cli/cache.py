"""The verb `cache`: what runs have left for later ones, and how to remove it."""

from __future__ import annotations

from typing import Annotated

import typer

from qexport.cli.output import say
from qexport.errors import InputError


def cache_command(
    clear: Annotated[bool, typer.Option("--clear", help="Remove all of it.")] = False,
) -> None:
    """Show where calibrations, files and figures of earlier runs are kept, and how much there is."""
    from qexport.system.cache import Cache, cache_folder

    cache = Cache(cache_folder())
    if cache.folder is None:
        say("there is no home folder: nothing is kept")
        return
    count, size = cache.size()
    what = f"{count} {'entry' if count == 1 else 'entries'}, {size / 1e6:.1f} MB"
    if clear:
        try:
            cache.clear()
        except OSError as error:
            raise InputError(f"{cache.folder} cannot be cleared ({error.strerror})", "remove it by hand") from error
        say(f"{cache.folder}: {what} removed")
    elif cache.foreign:
        say(f"{cache.folder}: {what}, which are not read: {cache.foreign}")
    else:
        say(f"{cache.folder}: {what} of at most {cache.limit / 1e6:.0f} MB")
