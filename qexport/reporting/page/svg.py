"""Matplotlib's SVG made fit for a page: colours of the theme, text as text, no identifier without a use."""

from __future__ import annotations

import functools
import io
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar, cast
from xml.etree import ElementTree

from markupsafe import Markup

from qexport.compat.plots import Axes, Figure, rc_context, rcdefaults, rcParams
from qexport.system.printable import printable_lines

THEME = {
    "#101010": "--ink",
    "#606060": "--muted",
    "#d0d0d0": "--line",
    "#fefefe": "--paper",
    "#0000f0": "--asked",
    "#f08000": "--float",
    "#8080f0": "--asked-soft",
}
"""Colour that charts are drawn with → variable of the style sheet that takes its place."""
INK, MUTED, LINE, PAPER, ASKED, FLOAT, SOFT = THEME

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 10,
    "axes.edgecolor": LINE,
    "axes.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.7,
    "text.color": INK,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "ytick.left": False,
    "xtick.major.size": 3,
}
NO_METADATA = {"Date": None, "Creator": None, "Format": None, "Type": None}
MEASURES = ("d", "points", "x", "y", "transform", "viewBox")
NUMBER = re.compile(r"-?\d+\.\d+")


Chart = TypeVar("Chart", bound=Callable[..., Markup | None])


def themed(chart: Chart) -> Chart:
    """Decorate a function that draws, so that all charts look alike, whatever settings a user has."""

    @functools.wraps(chart)
    def draw(*args: Any, **settings: Any) -> Any:
        with rc_context():
            rcdefaults()
            rcParams.update(STYLE)
            return chart(*args, **settings)

    return cast(Chart, draw)


def drawing(width: float, height: float) -> Figure:
    """An empty figure of so many pixels: Matplotlib's SVG has 72 dots an inch, so a point is a pixel."""
    return Figure(figsize=(width / 72, height / 72), dpi=72, facecolor="none")


def axes_in(figure: Figure, left: float, bottom: float, right: float, top: float) -> Axes:
    """Axes with margins of so many pixels."""
    width, height = figure.get_size_inches() * 72
    box = (left / width, bottom / height, 1 - (left + right) / width, 1 - (bottom + top) / height)
    return figure.add_axes(box, facecolor="none")


def svg_of(figure: Figure, name: str, label: str, marks: Mapping[str, Mapping[str, str]] | None = None) -> Markup:
    """Write a figure as inline SVG.

    Args:
        name: unique on the page: identifiers are made of it.
        label: what it shows, for those who do not see it.
        marks: `gid` of an artist → attributes of its element, such as `data-card`; "" for the SVG itself.
    """
    text = io.StringIO()
    # Identifiers depend on the salt: two charts never share one, and the same report gives the same page.
    with rc_context({"svg.hashsalt": name}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)  # a browser has fonts of its own
        figure.savefig(text, format="svg", metadata=NO_METADATA)
    root = ElementTree.fromstring(printable_lines(text.getvalue()))
    _clean(root, marks or {})
    for attribute in ("width", "height", "version"):
        root.attrib.pop(attribute, None)
    root.attrib |= {"role": "img", "aria-label": label, "class": "chart", **(marks or {}).get("", {})}
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _clean(root: ElementTree.Element, marks: Mapping[str, Mapping[str, str]]) -> None:
    """Inline SVG needs no namespaces; only identifiers that something refers to are kept."""
    referred = set(re.findall(r"#(\w+)", " ".join(v for each in root.iter() for v in each.attrib.values())))
    for element in root.iter():
        # A style element inside an inline SVG would be one for the whole page.
        for child in [each for each in element if each.tag.endswith(("metadata", "style"))]:
            element.remove(child)
        element.tag = element.tag.rpartition("}")[2]
        own = element.attrib.pop("id", "")
        named = {"id": own} if own in referred else {}
        element.attrib = {**named, **dict(_attributes(element.attrib)), **marks.get(own or "none", {})}
        element.text, element.tail = (element.text or "").strip() or None, None


def _attributes(given: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Attributes with the theme's colours, the page's font, and numbers no longer than a page needs."""
    for name, value in given.items():
        if name == "style":
            kept = (each.strip() for each in value.split(";") if not each.strip().startswith("font-family"))
            yield name, _variables(";".join(kept))
        elif name in MEASURES and not value.startswith("rotate(-0 "):
            yield name, " ".join(NUMBER.sub(lambda found: f"{float(found.group()):.5g}", value).split())
        elif name not in MEASURES:
            yield name.rpartition("}")[2], value


def _variables(style: str) -> str:
    for colour, variable in THEME.items():
        style = style.replace(colour, f"var({variable})")
    return style
