"""The curves of a run, drawn from its metrics.csv: one panel for each kind of number, over images seen."""

import csv
from collections import defaultdict
from pathlib import Path

# Titles of the panels and the beginnings of the columns that belong in each.
PANELS = {
    "losses": ("train/loss",),
    "discriminator": ("train/d_x", "train/d_g_z"),
    "gradient norms": ("train/gradient_norm",),
    "distance to the training images": ("val/fid", "val/fd_"),
    "kernel distance": ("val/kid", "val/kd_"),
    "likelihood": ("val/bpd",),
}


def read_columns(path: Path) -> dict[str, tuple[list[float], list[float]]]:
    """Each column of a metrics.csv as (images seen, values), without its blanks."""
    columns: dict[str, tuple[list[float], list[float]]] = defaultdict(lambda: ([], []))
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            for name, value in row.items():
                if value and row["images_seen"]:
                    columns[name][0].append(float(row["images_seen"]))
                    columns[name][1].append(float(value))
    return dict(columns)


def draw_curves(metrics: Path, picture: Path, title: str) -> None:
    """Draw the table ``metrics`` into the PNG ``picture``; panels without numbers are left out."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    columns = read_columns(metrics)
    panels = {
        panel: {n: xy for n, xy in columns.items() if n.startswith(beginnings)} for panel, beginnings in PANELS.items()
    }
    panels = {panel: curves for panel, curves in panels.items() if curves}
    if not panels:
        return
    figure = Figure(figsize=(4.2 * len(panels), 3.2), layout="constrained")
    for axes, (panel, curves) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        for name, (images, values) in curves.items():
            axes.plot(
                images, values, label=name.split("/", 1)[1], marker="." if len(images) < 30 else None, linewidth=1
            )
        if "distance" in panel and all(value > 0 for _, values in curves.values() for value in values):
            axes.set_yscale("log")  # the untrained model is a hundred times further away
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.set_title(panel, fontsize=10)
        axes.set_xlabel("images seen")
        axes.legend(fontsize=7)
        axes.grid(alpha=0.3)
    figure.suptitle(title, fontsize=11)
    figure.savefig(picture, dpi=90)
