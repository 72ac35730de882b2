"""Pictures of pages for the documents, taken by a headless Chromium where one is installed."""

import sys
import tempfile
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parents[1]


def photograph(page: Path, picture: Path, width: int, hidden: str = "") -> None:
    """Take the picture of a page, all of its height, without the elements that a CSS selector names.

    Args:
        page: an HTML file.
        picture: the PNG to write, of 256 colours; stays as it is where there is no Chromium.
        width: of the window, in pixels.
        hidden: the selector.
    """
    sys.path.append(str(ROOT / "tests"))
    from browser import Browser, installed

    if installed() is None:
        print(f"no Chromium on this machine: {picture} stays as it is")
        return
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        taken = Path(folder) / "page.png"
        browser = Browser(Path(folder) / "profile")
        try:
            browser.open(page, width=width, height=900)
            if hidden:
                each = "(part) => part.hidden = part.style.display = 'none'"
                browser.ask(f"document.querySelectorAll('{hidden}').forEach({each})")
            # Pictures far below the window are not loaded by themselves.
            there = "[...document.images].filter((one) => one.getAttribute('src'))"
            browser.ask(f"Promise.all({there}.map((one) => {{ one.loading = 'eager'; return one.decode(); }}))")
            browser.ask("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
            browser.picture(taken)
        finally:
            browser.close()
        # 256 colours take a third of the bytes; spread evenly, since by frequency all would go to the grays.
        with Image.open(taken) as whole:
            few = whole.convert("RGB").quantize(256, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
            few.save(picture, optimize=True)
