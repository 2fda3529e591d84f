"""The environment that every page is rendered in: templates beside this file, style and script inside of the page."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from qexport.reporting.page.typeset import form_of, typeset
from qexport.system.printable import printable_lines


def environment() -> Environment:
    """Templates with what all pages have: figures as `cell`, and the style and script that they load nothing for."""
    made = Environment(
        loader=PackageLoader("qexport.reporting.page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script = _asset("page.js")
    made.globals |= {"cell": cell, "style": _asset("page.css"), "script": script, "policy": _policy(script)}
    return made


def _policy(script: str) -> str:
    """What a browser does for a page (CSP, level 2): it loads nothing, goes nowhere, and runs this script alone."""
    known = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    rules = (
        "default-src 'none'",
        "base-uri 'none'",
        "form-action 'none'",
        "img-src data:",
        "style-src 'unsafe-inline'",
    )
    return "; ".join((*rules, f"script-src 'sha256-{known}'"))


def filled(name: str, known: Mapping[str, Any] | None = None, **values: Any) -> str:
    """A template as a page, in which all that is in the values is text, and can be seen.

    Args:
        known: what the templates that it includes need, too.
    """
    pages = environment()
    pages.globals |= dict(known or {})
    return printable_lines(pages.get_template(name).render(**values))


def cell(value: Any, name: str) -> str:
    """A figure in a table whose rows and columns say where it comes from."""
    return typeset(value, form_of(name))


def _asset(name: str) -> Markup:
    """A file beside the templates, as it is."""
    return Markup(files("qexport.reporting.page").joinpath("templates", name).read_text(encoding="utf-8"))
