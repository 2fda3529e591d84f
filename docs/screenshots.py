"""Take the documentation's pictures of the page, from the report.json of a real run.

    .venv/bin/python docs/screenshots.py REPORT.json     (needs Chromium and Playwright's Python package)

Writes docs/report-desktop.png and docs/report-phone.png.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from playwright.sync_api import BrowserContext, sync_playwright

from qexport.reporting.page import write_page

DOCS = Path(__file__).resolve().parent
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
QUIET = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)
MAX_BYTES = 400_000


@dataclass(frozen=True)
class Shot:
    """One picture: its file, the window in pixels, the theme, and the section that it begins with ("" for the top)."""

    name: str
    width: int
    height: int
    scheme: str
    section: str = ""


SHOTS = (
    Shot("report-desktop.png", 1280, 1330, "light"),
    Shot("report-phone.png", 390, 844, "dark", "gallery"),
)


def main() -> int:
    """Render the page, take the pictures, and say how large they are."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", type=Path)
    report = parser.parse_args().report
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        print("no Chromium: apt-get install chromium", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory(prefix="qexport-shots-") as scratch, sync_playwright() as driver:
        page = Path(scratch) / "report.html"
        write_page(report, page)
        profile = Path(scratch) / "profile"
        window = driver.chromium.launch_persistent_context(profile, executable_path=browser, args=list(QUIET))
        sizes = {shot.name: take(window, page, shot) for shot in SHOTS}
        window.close()
    for name, size in sizes.items():
        print(f"{name}: {size / 1e3:.0f} kB")
    return int(any(size > MAX_BYTES for size in sizes.values()))


def take(window: BrowserContext, page: Path, shot: Shot) -> int:
    """Take one picture and return its size in bytes."""
    tab = window.new_page()
    tab.set_viewport_size({"width": shot.width, "height": shot.height})
    tab.emulate_media(color_scheme="dark" if shot.scheme == "dark" else "light")
    tab.goto(page.as_uri())
    if shot.section:
        tab.evaluate(f"document.getElementById('{shot.section}').scrollIntoView()")
    taken = tab.screenshot(path=DOCS / shot.name)
    tab.close()
    return len(taken)


if __name__ == "__main__":
    sys.exit(main())
