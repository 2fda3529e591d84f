"""Run a program of `qexport snippet FILE --lang js` as it is, in Node.js and in a browser, with onnxruntime-web itself.

`make web` installs what it imports into build/web, with the versions of locks/web; the browser is Chromium that
Playwright drives.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

PACKAGES = Path(__file__).resolve().parents[1] / "build" / "web" / "node_modules"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking")
PATIENCE = 120_000
"""Milliseconds."""
PAGE = """<!doctype html>
<script type="importmap">{"imports": {"onnxruntime-web": "/onnxruntime-web/dist/ort.bundle.min.mjs"}}</script>
<img src="/image.png"><canvas></canvas>
<script type="module">
import * as ort from "onnxruntime-web";
import { detect, draw, pixelsOf } from "/run.mjs";
try {
  ort.env.wasm.numThreads = 1;
  ort.env.wasm.wasmPaths = "/onnxruntime-web/dist/";
  const image = document.querySelector("img");
  await image.decode();
  const session = await ort.InferenceSession.create("/model.onnx");
  const found = await detect(session, pixelsOf(image));
  const canvas = document.querySelector("canvas");
  [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
  const context = canvas.getContext("2d");
  draw(context, found);
  const drawn = context.getImageData(0, 0, canvas.width, canvas.height).data.some((value) => value > 0);
  window.done = { found, drawn };
} catch (error) {
  window.done = { error: String(error) };
}
</script>
"""
"""What the program's first lines say of a browser, and no more."""


def version() -> str:
    """Of onnxruntime-web; "" where it is not installed."""
    with suppress(FileNotFoundError):
        known = json.loads((PACKAGES / "onnxruntime-web" / "package.json").read_text(encoding="utf-8"))
        return str(known["version"])
    return ""


def browser() -> str | None:
    """Chromium's path."""
    return next(filter(None, map(shutil.which, BROWSERS)), None)


def in_node(program: str, image: Path, folder: Path, model: Path) -> list[dict[str, Any]]:
    """What the program prints in Node.js.

    Args:
        folder: for the program, beside which its packages are looked for.

    Raises:
        RuntimeError: it fails.
    """
    (folder / "run.mjs").write_text(program, encoding="ascii")
    beside = folder / "node_modules"
    if not beside.exists():
        beside.symlink_to(PACKAGES)
    words = ["node", "run.mjs", str(image.resolve()), str(model.resolve())]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False, timeout=PATIENCE / 1000)
    if done.returncode:
        raise RuntimeError(done.stderr.strip())
    return [json.loads(line) for line in done.stdout.splitlines()]


def in_browser(context: Any, program: str, model: Path, image: Path, folder: Path) -> list[dict[str, Any]]:
    """What the program finds on a page, where it also draws.

    Args:
        context: of Playwright.
        folder: for the page, which is served to this machine alone.

    Raises:
        RuntimeError: it fails, or draws nothing of what it found.
    """
    (folder / "page.html").write_text(PAGE, encoding="ascii")
    (folder / "run.mjs").write_text(program, encoding="ascii")
    links = {"model.onnx": model, "image.png": image, "onnxruntime-web": PACKAGES / "onnxruntime-web"}
    for name, target in links.items():
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(target.resolve())
    with _served(folder) as place:
        done = _done(context, f"{place}/page.html")
    if "error" in done:
        raise RuntimeError(done["error"])
    if done["found"] and not done["drawn"]:
        raise RuntimeError("nothing is drawn")
    found: list[dict[str, Any]] = done["found"]
    return found


def _done(context: Any, place: str) -> dict[str, Any]:
    """What the page leaves."""
    page = context.new_page()
    try:
        page.goto(place, timeout=PATIENCE)
        page.wait_for_function("window.done", timeout=PATIENCE)
        done: dict[str, Any] = page.evaluate("window.done")
        return done
    finally:
        page.close()


class _Files(SimpleHTTPRequestHandler):
    """A folder's files, with the types that a browser asks of modules, and without a line for each."""

    extensions_map = {  # noqa: RUF012
        ".html": "text/html",
        ".mjs": "text/javascript",
        "": "application/wasm",
    }

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@contextmanager
def _served(folder: Path) -> Iterator[str]:
    """The address of a folder while it is served."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Files, directory=str(folder)))
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
