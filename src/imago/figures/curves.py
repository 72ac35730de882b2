"""The curves of a run, drawn from its metrics.csv: one panel for each kind of number, over images seen."""

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from imago.pictures import write_png
from imago.tables import read_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Curve = tuple[list[float], list[float]]

# Titles of the panels and the beginnings of the columns that belong in each.
PANELS = {
    "reconstruction, nats": ("train/elbo/reconstruction", "val/elbo/reconstruction"),
    "KL divergence, nats": ("train/elbo/kl", "val/elbo/kl"),
    "losses": ("train/loss",),
    "discriminator": ("train/d_x", "train/d_g_z"),
    "gradient norms": ("train/gradient_norm",),
    "distance to the training images": ("val/fid", "val/fd_"),
    "kernel distance": ("val/kid", "val/kd_"),
    "nats per image": ("train/nats", "val/nats"),
    "bits per dimension": ("train/bpd", "val/bpd"),
    "KL divergence from the data, nats": ("val/kl",),
}
# Panels in which training and validation stand side by side, without the first twentieth of the run: a model is so much
# worse there that nothing else could be seen. A run too short for that is shown whole.
COMPARED = ("reconstruction, nats", "KL divergence, nats", "nats per image", "bits per dimension")
LARGEST = 1e30
COLOURS = {"train": "C0", "val": "C1"}


def read_columns(path: Path) -> dict[str, Curve]:
    """Each column of a metrics.csv as (images seen, values), without what axes cannot hold; nothing of no table."""
    columns = {}
    with suppress(ValueError):
        for block in read_table(path).blocks:
            for name, values in block.curves.items():
                points = zip(block.images, values, strict=True)
                kept = [(x, y) for x, y in points if abs(x) < LARGEST and abs(y) < LARGEST]
                if kept:
                    columns[name] = ([x for x, _ in kept], [y for _, y in kept])
    return columns


def in_panels(columns: dict[str, Curve]) -> dict[str, dict[str, Curve]]:
    """The curves of each panel by their labels; panels without curves are left out."""
    panels: dict[str, dict[str, Curve]] = {}
    for panel, beginnings in PANELS.items():
        named = [name for name in columns if name.startswith(beginnings) and not name.endswith("_bpd")]
        curves = {name: columns[name] for name in named}
        if panel in COMPARED and curves:
            end = max(images[-1] for images, _ in curves.values())
            behind = {name: _behind(curve, end / 20) for name, curve in curves.items()}
            if all(len(images) > 1 for images, _ in behind.values()):
                curves = behind
            panels[panel] = {name.split("/", 1)[0]: curve for name, curve in curves.items()}
        elif curves:
            panels[panel] = {name.split("/", 1)[1]: curve for name, curve in curves.items()}
    return panels


def _behind(curve: Curve, start: float) -> Curve:
    images, values = curve
    first = sum(x < start for x in images)
    return images[first:], values[first:]


def draw_curves(metrics: Path, picture: Path, title: str) -> None:
    """Draw the table ``metrics`` into the PNG ``picture``; panels without numbers are left out."""
    panels = in_panels(read_columns(metrics))
    if panels:
        write_png(drawn(panels, title), picture, dpi=90)


def drawn(panels: dict[str, dict[str, Curve]], title: str) -> "Figure":
    """The panels side by side."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter, StrMethodFormatter

    figure = Figure(figsize=(4.2 * len(panels), 3.2), layout="constrained")
    for axes, (panel, curves) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        for label, (images, values) in curves.items():
            marker = "." if len(images) < 30 else None
            axes.plot(images, values, label=label, color=COLOURS.get(label), marker=marker, linewidth=1)
        if "distance" in panel and all(value > 0 for _, values in curves.values() for value in values):
            axes.set_yscale("log")  # the untrained model is a hundred times further away
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_xlim(0, max(1.0, axes.get_xlim()[1]))  # a run of no images has an axis too
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.set_title(panel, fontsize=10)
        axes.set_xlabel("images seen")
        axes.legend(fontsize=9)
        axes.grid(alpha=0.3)
    figure.suptitle(title, fontsize=11)
    return figure
