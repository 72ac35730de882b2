"""The curves of a run: which numbers share a panel."""

from pathlib import Path

import pytest
from PIL import Image

from imago.figures.curves import draw_curves, drawn, in_panels, read_columns

TABLE = """images_seen,train/nats,train/bpd,train/loss/g,val/nats,val/bpd,val/fid
0,,,,540,1.0,400
10,300,0.5,1.5,,,
1000,90,0.2,1.25,95,0.25,30
2000,80,0.125,1.0,85,0.15,20
"""


@pytest.fixture(autouse=True)
def _quick_curves() -> None:
    """Nothing is quick here: curves are drawn whole."""


def test_training_and_validation_likelihood_share_a_panel(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text(TABLE)
    panels = in_panels(read_columns(tmp_path / "metrics.csv"))
    assert list(panels) == ["losses", "distance to the training images", "nats per image", "bits per dimension"]
    assert panels["nats per image"] == {"train": ([1000, 2000], [90, 80]), "val": ([1000, 2000], [95, 85])}
    assert panels["bits per dimension"]["val"] == ([1000, 2000], [0.25, 0.15])
    assert panels["losses"] == {"loss/g": ([10, 1000, 2000], [1.5, 1.25, 1.0])}
    assert panels["distance to the training images"] == {"fid": ([0, 1000, 2000], [400, 30, 20])}


def test_a_short_run_is_shown_from_its_start(tmp_path: Path) -> None:
    """A single row of the training log: the untrained model is the other end of the line."""
    (tmp_path / "metrics.csv").write_text("images_seen,val/nats,train/nats\n0,357,\n4032,,163\n4032,106,\n")
    panels = in_panels(read_columns(tmp_path / "metrics.csv"))
    assert panels == {"nats per image": {"val": ([0, 4032], [357, 106]), "train": ([4032], [163])}}
    (axes,) = drawn(panels, "a run").axes
    colours = {str(line.get_label()): line.get_color() for line in axes.get_lines()}
    assert colours == {"train": "C0", "val": "C1"}  # whichever column comes first


def test_logarithmic_ticks_are_plain_numbers() -> None:
    figure = drawn({"distance to the training images": {"fid": ([0, 10], [60, 12])}}, "a run")
    figure.canvas.draw()
    (axes,) = figure.axes
    labels = [label.get_text() for label in [*axes.get_yticklabels(), *axes.get_yticklabels(minor=True)]]
    assert {"20", "50"} <= set(labels)
    assert not any("$" in label for label in labels)


def test_the_picture_has_a_panel_for_each(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text(TABLE)
    draw_curves(tmp_path / "metrics.csv", tmp_path / "curves.png", "a run")
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.width > 3.9 * picture.height
    (tmp_path / "metrics.csv").write_text("images_seen,train/else\n1,2\n")
    draw_curves(tmp_path / "metrics.csv", tmp_path / "none.png", "nothing to draw")
    assert not (tmp_path / "none.png").exists()


HEAD = "images_seen,train/loss,val/fid,val/bpd,train/bpd\n"
ODD = {
    "nan": HEAD + "1,nan,nan,nan,nan\n2,nan,nan,nan,nan\n",
    "infinite": HEAD + "1,inf,inf,-inf,inf\n2,inf,1,2,3\n",
    "one point": HEAD + "1,1,1,1,1\n",
    "huge": HEAD + "1,1e308,1e308,1e308,-1e308\n2,-1e308,1e308,1,1e308\n",
    "nothing": HEAD + "0,0,0,0,0\n",
    "tiny": HEAD + "1,1e-320,1e-320,1,1\n2,1e-320,1e-300,1,1\n",
    "text": HEAD + "1,abc,,,\n",
    "other lengths": HEAD + "1,2\n\n,,,,\n2,3,4,5,6,7,8\n",
    "empty": "",
    "bytes": "\0\0\0",
    "backwards": HEAD + "5,1,1,1,1\n3,1,1,1,1\n",
    "no images": "a,b\n1,2\n",
    "far away": HEAD + "1e300,1,1,1,1\ninf,1,1,1,1\n",
}


@pytest.mark.parametrize("table", ODD)
def test_whatever_stands_in_the_table_what_can_be_drawn_is(tmp_path: Path, table: str) -> None:
    """Without an error, and without a warning, which is one here."""
    (tmp_path / "metrics.csv").write_text(ODD[table])
    draw_curves(tmp_path / "metrics.csv", tmp_path / "curves.png", "a run")
    drawable = ("infinite", "one point", "huge", "nothing", "tiny", "backwards")
    assert (tmp_path / "curves.png").exists() == (table in drawable)
    assert {path.name for path in tmp_path.iterdir()} <= {"metrics.csv", "curves.png"}
