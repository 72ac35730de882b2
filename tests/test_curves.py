"""The curves of a run: which numbers share a panel."""

from pathlib import Path

from PIL import Image

from imago.figures.curves import draw_curves, in_panels, read_columns

TABLE = """images_seen,train/nats,train/bpd,train/loss/g,val/nats,val/bpd,val/fid
0,,,,540,1.0,400
10,300,0.5,1.5,,,
1000,90,0.2,1.25,95,0.25,30
2000,80,0.125,1.0,85,0.15,20
"""


def test_training_and_validation_likelihood_share_a_panel(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text(TABLE)
    panels = in_panels(read_columns(tmp_path / "metrics.csv"))
    assert list(panels) == ["losses", "distance to the training images", "nats per image", "bits per dimension"]
    assert panels["nats per image"] == {"train": ([1000, 2000], [90, 80]), "val": ([1000, 2000], [95, 85])}
    assert panels["bits per dimension"]["val"] == ([1000, 2000], [0.25, 0.15])
    assert panels["losses"] == {"loss/g": ([10, 1000, 2000], [1.5, 1.25, 1.0])}
    assert panels["distance to the training images"] == {"fid": ([0, 1000, 2000], [400, 30, 20])}


def test_the_picture_has_a_panel_for_each(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text(TABLE)
    draw_curves(tmp_path / "metrics.csv", tmp_path / "curves.png", "a run")
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.width > 3.9 * picture.height
    (tmp_path / "metrics.csv").write_text("images_seen,train/else\n1,2\n")
    draw_curves(tmp_path / "metrics.csv", tmp_path / "none.png", "nothing to draw")
    assert not (tmp_path / "none.png").exists()
