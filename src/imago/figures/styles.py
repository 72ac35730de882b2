"""The sizes of a drawing on a slide and in a paper: letters and lines that are read there."""

import textwrap
from dataclasses import dataclass

import numpy as np
from matplotlib.collections import Collection, PathCollection
from matplotlib.figure import Figure as Drawing
from matplotlib.lines import Line2D
from matplotlib.text import Text

LETTERS = 10.0  # points, of matplotlib's axes


@dataclass(frozen=True)
class Style:
    """How a drawing is changed.

    Attributes:
        width: largest, in inches.
        height: largest, in inches; the drawing keeps its proportions.
        scale: of letters, lines and marks.
        dpi: dots to an inch of a PNG file.
    """

    width: float
    height: float
    scale: float
    dpi: int


STYLES = {
    "slides": Style(12.3, 6.0, 1.6, 150),  # below the title of a 16:9 slide, 13.3 x 7.5 inches
    "paper": Style(5.5, 8.0, 0.7, 300),  # the text of a page in one column
}


def restyle(drawing: Drawing, style: Style) -> None:
    """Give a drawing another size, letters and lines; titles that are too wide get more lines."""
    width, height = drawing.get_size_inches()
    fit = min(style.width / width, style.height / height)
    drawing.set_size_inches(fit * width, fit * height)
    for text in drawing.findobj(Text):
        text.set_fontsize(style.scale * float(text.get_fontsize()))
    for line in drawing.findobj(Line2D):
        line.set_linewidth(style.scale * line.get_linewidth())
        line.set_markersize(style.scale * line.get_markersize())
    for marks in drawing.findobj(Collection):
        marks.set_linewidth(list(style.scale * np.atleast_1d(marks.get_linewidth())))
        if isinstance(marks, PathCollection):
            marks.set_sizes(style.scale**2 * marks.get_sizes())
    for ax in drawing.axes:
        ax.tick_params(labelsize=style.scale * LETTERS)  # of ticks that are still to come
    drawing.draw_without_rendering()
    titles = [(ax.title, ax.bbox.width) for ax in drawing.axes]
    if drawing.get_suptitle():
        titles.append((drawing._suptitle, drawing.bbox.width))  # type: ignore[attr-defined]
    for title, room in titles:
        wide = title.get_window_extent().width
        if wide > room:
            lines = title.get_text().split("\n")
            letters = int(max(map(len, lines)) * room / wide)
            title.set_text("\n".join(textwrap.fill(line, max(letters, 1)) for line in lines))
