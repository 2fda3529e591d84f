"""The environment that every page is rendered in: templates beside this file, style and script inside of the page."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from qexport.reporting.page.typeset import form_of, typeset
from qexport.system.printable import printable


def environment() -> Environment:
    """Templates with what all pages have: figures as `cell`, and the style and script that they load nothing for."""
    made = Environment(
        loader=PackageLoader("qexport.reporting.page"),
        autoescape=True,
        finalize=_shown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.globals |= {"cell": cell, "style": _asset("page.css"), "script": _asset("page.js")}
    return made


def _shown(value: Any) -> Any:
    """What an expression of a template gives, its text as what can be seen; Jinja escapes it after that."""
    return "\n".join(map(printable, value.split("\n"))) if type(value) is str else value


def cell(value: Any, name: str) -> str:
    """A figure in a table whose rows and columns say where it comes from."""
    return typeset(value, form_of(name))


def _asset(name: str) -> Markup:
    """A file beside the templates, as it is."""
    return Markup(files("qexport.reporting.page").joinpath("templates", name).read_text(encoding="utf-8"))
