"""Pages in headless Chromium: what they look like to a reader, to axe-core, and to whoever plants scripts."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

AXE = "4.14.1"
"""Version of axe-core, pinned here and nowhere else."""
_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
_POLICY = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')
_BUDGET_MS = 60_000  # of virtual time, which passes as fast as the page lets it
_WAIT_S = 300


@dataclass(frozen=True)
class View:
    """One look at a page.

    Attributes:
        name: of the look, in the results.
        page: the page as HTML.
        script: body of an asynchronous function, run in the page; what it returns is the result.
        width: of the window in pixels. fragment: of the address.
    """

    name: str
    page: str
    script: str
    width: int = 1280
    fragment: str = ""


def chromium() -> str:
    """Return the path of Chromium, or skip the test."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.skip("no chromium; apt-get install chromium")
    return found


def axe_source() -> str:
    """Return the source of axe-core, fetched by npm once into a cache folder; skip where that cannot be."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vleak-tests"
    kept = cache / f"axe-{AXE}.js"
    if not kept.exists():
        npm = shutil.which("npm")
        if npm is None:
            pytest.skip("no npm to fetch axe-core by; install nodejs and npm")
        cache.mkdir(parents=True, exist_ok=True)
        done = subprocess.run([npm, "pack", "--silent", f"axe-core@{AXE}"], cwd=cache, capture_output=True,
                              text=True, timeout=120)  # fmt: skip
        if done.returncode:
            pytest.skip(f"npm cannot fetch axe-core {AXE}: {done.stderr.strip()[:200]}")
        archive = cache / f"axe-core-{AXE}.tgz"
        with tarfile.open(archive) as packed:
            member = packed.extractfile("package/axe.min.js")
            assert member is not None
            content = member.read()
        archive.unlink()
        temporary = kept.with_suffix(f".{os.getpid()}")
        temporary.write_bytes(content)
        temporary.replace(kept)
    return kept.read_text(encoding="utf-8")


def look(
    views: Sequence[View], folder: Path, *, dark: bool = False, still: bool = False, axe: bool = False
) -> Mapping[str, Any]:
    """Look at pages, each in a frame of its width, and return what their scripts returned, by name.

    A page's policy is taken out of the copy that is looked at, or no script of a test could run: what is
    planted into a page has nothing but its escaping to stop it.

    Args:
        views: what to look at.
        folder: for copies of the pages.
        dark: whether the reader prefers dark colours. still: whether less motion.
        axe: whether axe-core is there for the scripts.
    """
    library = f"<script>{axe_source()}</script>" if axe else ""
    frames = []
    for number, view in enumerate(views):
        sent = f"parent.postMessage(JSON.stringify({{name: {json.dumps(view.name)}, result}}), '*')"
        run = f"(async () => {{ {view.script} }})().catch((error) => String(error)).then((result) => {sent});"
        page = _POLICY.sub("", view.page).replace("</body>", f"{library}<script>{run}</script></body>")
        copy = folder / f"view{number}.html"
        copy.write_text(page, encoding="utf-8")
        frames.append(
            f'<iframe src="{copy.name}{html.escape(view.fragment)}" width="{view.width}" height="900">'
        )
    collect = (
        "addEventListener('message', (event) => { const pre = document.createElement('pre');"
        "pre.textContent = event.data; document.body.prepend(pre); });"
    )
    shown = f"<script>{collect}</script>{'</iframe>'.join(frames)}</iframe>"
    (folder / "views.html").write_text(f"<!doctype html><meta charset=utf-8><body>{shown}", encoding="utf-8")
    flags = (["--blink-settings=preferredColorScheme=0"] if dark else []) + (
        ["--force-prefers-reduced-motion"] if still else []
    )
    seen = dom(folder / "views.html", folder, flags)
    texts = map(html.unescape, re.findall(r"<pre>(.*?)</pre>", seen, flags=re.DOTALL))
    results = {found["name"]: found.get("result") for found in map(json.loads, texts)}
    assert set(results) == {view.name for view in views}, "a page did not answer"
    return results


def printed(page: Path, folder: Path) -> list[tuple[int, int]]:
    """Print a page into a PDF, and return width and height of its sheets in points."""
    file = folder / "printed.pdf"
    done = subprocess.run(
        [chromium(), *_FLAGS, f"--user-data-dir={folder / 'profile'}", f"--print-to-pdf={file}",
         page.resolve().as_uri()],
        capture_output=True, text=True, timeout=_WAIT_S,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    boxes = re.findall(rb"/MediaBox \[0 0 ([\d.]+) ([\d.]+)\]", file.read_bytes())
    return [(round(float(width)), round(float(height))) for width, height in boxes]


def dom(page: Path, folder: Path, flags: Sequence[str] = (), fragment: str = "") -> str:
    """Return the document of a page after its scripts ran, as HTML."""
    done = subprocess.run(
        [chromium(), *_FLAGS, *flags, f"--user-data-dir={folder / 'profile'}", "--window-size=1400,1000",
         f"--virtual-time-budget={_BUDGET_MS}", "--dump-dom", f"{page.resolve().as_uri()}{fragment}"],
        capture_output=True, text=True, timeout=_WAIT_S,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout
