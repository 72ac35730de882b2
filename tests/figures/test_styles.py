"""Drawings on slides and in papers: their sizes and letters, and files that keep them sharp."""

from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure as Drawing
from PIL import Image

from imago.figures.base import write
from imago.figures.styles import STYLES, restyle


def drawing() -> tuple[Drawing, Any]:
    made = Drawing(figsize=(10, 4), layout="constrained")
    axes = made.subplots(1, 3)
    axes[0].plot([0, 1], [0, 1], linewidth=2)
    axes[1].set_title("a title that is as wide as its axes, or wider than they are", fontsize=10)
    made.suptitle("short", fontsize=11)
    return made, axes


@pytest.mark.parametrize(("style", "size", "scale"), [("slides", (12.3, 4.92), 1.6), ("paper", (5.5, 2.2), 0.7)])
def test_a_style_changes_size_letters_and_lines(style: str, size: tuple[float, float], scale: float) -> None:
    made, axes = drawing()
    restyle(made, STYLES[style])
    assert made.get_size_inches() == pytest.approx(size)
    assert axes[0].lines[0].get_linewidth() == pytest.approx(2 * scale)
    assert axes[1].title.get_fontsize() == pytest.approx(10 * scale)
    made.draw_without_rendering()
    assert axes[0].get_xticklabels()[0].get_fontsize() == pytest.approx(10 * scale)
    assert axes[1].title.get_window_extent().width <= 1.1 * axes[1].bbox.width, "in several lines"
    assert axes[1].get_title().replace("\n", " ") == "a title that is as wide as its axes, or wider than they are"
    assert made.get_suptitle() == "short"


def test_files_are_what_their_names_say(tmp_path: Path) -> None:
    for name, start in (("x.svg", b"<?xml"), ("x.pdf", b"%PDF"), ("x.png", b"\x89PNG")):
        write(drawing()[0], tmp_path / name)
        assert (tmp_path / name).read_bytes().startswith(start)
    assert b"/Type3" not in (tmp_path / "x.pdf").read_bytes(), "letters are those of a font, as journals ask"
    with Image.open(tmp_path / "x.png") as plain:
        assert plain.size == (1000, 400)
    write(drawing()[0], tmp_path / "x.png", "paper")
    with Image.open(tmp_path / "x.png") as printed:
        assert printed.size == (1650, 660)
