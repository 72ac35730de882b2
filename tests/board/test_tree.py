"""The runs at the leaves of the taxonomy: what stands where, and that names of whatever origin stay text."""

import base64
import io
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from PIL import Image

from helpers import CONF
from imago.board.board import Board
from imago.board.find import find_runs
from imago.board.grids import factor_of
from imago.board.records import read_record
from imago.board.tree import SAMPLES, places_of, strip_of, write_tree
from imago.signatures import attribute_of
from imago.taxonomy import LEAVES
from imago.untrusted import read_yaml

from .conftest import MakeRun, likelihood, quality
from .test_page import EVIL

SVG = "{http://www.w3.org/2000/svg}"


def test_every_model_has_a_leaf_that_the_class_has_too() -> None:
    from imago.config import target

    for path in (CONF / "model").glob("*.yaml"):
        name = str(read_yaml(path)["_target_"])
        assert attribute_of(name, "leaf") in LEAVES, path
        assert target(name, "model").leaf == attribute_of(name, "leaf"), path


def test_a_class_without_a_source_text_has_none() -> None:
    assert attribute_of("imago.models.base.GenerativeModel", "nothing") is None
    assert attribute_of("imago.models.nothing.Model", "leaf") is None
    assert attribute_of("os.path.join", "leaf") is None


@pytest.fixture
def board(make_run: MakeRun) -> Board:
    infinite = {"name": "fd_infinity_classifier", "value": 2.9, "protocol": quality()}
    bound = {"name": "test/nats", "value": 95.1, "protocol": likelihood("test", "lower_bound")}
    cost = {"name": "fd_classifier", "value": 3.0, "protocol": quality(seconds_per_sample=2e-4, nfe=1)}
    runs = [
        make_run("logs/vae-good", model="vae", evaluation=[bound, infinite, cost]),
        make_run("logs/vae-bad", model="vae", evaluation=[bound | {"value": 99.0}], config={"seed": 1}),
        make_run("logs/made", picture=None),
        make_run("logs/own", model="gan", config={"model": {"_target_": "mine.Own"}}, leaf="energy", name=EVIL,
                 choices={"model": EVIL}),
        make_run("logs/failed", model="gan", status="failed"),
        make_run("logs/odd", model="dcgan", leaf=EVIL),
        make_run("logs/elsewhere", model="gan", data="digits"),
    ]  # fmt: skip
    return Board(map(read_record, runs))


def test_the_best_run_of_each_model_stands_at_its_leaf(board: Board, tmp_path: Path) -> None:
    places = {place.leaf: place for place in places_of(board.groups[0], tmp_path)}
    found = {name: [card.model for card in places[leaf].cards] for name, leaf in LEAVES.items() if places[leaf].cards}
    assert found == {"chain_rule": ["made"], "variational": ["vae"], "energy": [EVIL[:30] + "…"]}
    (vae,) = places[LEAVES["variational"]].cards
    assert vae.lines == ["≤ 95.10 ± 0.25 nats", "FD 3 of 10k", "200 µs/sample, 1 call"]
    assert vae.link == "logs/vae-good/"
    assert {"gan", "dcgan"} <= set(places[LEAVES["direct"]].others)
    assert places[LEAVES["variational"]].page.endswith("docs/vae.md")


def test_leaves_have_the_same_distance(make_run: MakeRun, tmp_path: Path) -> None:
    def results(*names: str) -> list[dict[str, object]]:
        return [{"name": name, "value": 1.0 + k, "protocol": quality()} for k, name in enumerate(names)]

    runs = [
        make_run("made", evaluation=results("fid", "fd_infinity_classifier", "fd_classifier")),
        make_run("vae", model="vae", evaluation=results("fd_classifier")),
        make_run("gan", model="gan", leaf="direct", evaluation=results("fd_infinity_classifier"), metrics=None),
    ]
    (group,) = Board(map(read_record, runs)).groups
    cards = {card.model: card.lines for place in places_of(group, tmp_path) for card in place.cards}
    told = {model: [line for line in lines if line.startswith("F")] for model, lines in cards.items()}
    assert told == {"made": ["FD 3 of 10k"], "vae": ["FD 1 of 10k"], "gan": []}


def test_a_strip_is_the_first_images_of_the_grid(board: Board, tmp_path: Path) -> None:
    places = places_of(board.groups[0], tmp_path)
    cards = {card.model: card for place in places for card in place.cards}
    assert not cards["made"].strip
    content = base64.b64decode(cards["vae"].strip.removeprefix("data:image/png;base64,"))
    with (
        Image.open(io.BytesIO(content)) as strip,
        Image.open(tmp_path / "logs/vae-good/samples/images-0000000200.png") as grid,
    ):
        across, down = SAMPLES
        assert strip.size == (2 * 29 * across, 2 * 29 * down)
        assert strip.tobytes() == grid.crop((0, 0, *strip.size)).convert("RGB").tobytes()


def test_pretrained_models_are_found_by_a_glob_and_their_small_grids_are_cut_alike(tmp_path: Path) -> None:
    found, said = find_runs(["*_pixelcnn-dig*", "gan-digits"])
    assert [run.name for run in found] == ["gated_pixelcnn-digits", "gan-digits"]
    assert not said
    assert find_runs(["*-nothing"]) == ([], ["*-nothing: no such folder"])
    record = read_record(found[1])
    with Image.open(record.grid) as grid:  # type: ignore[arg-type]
        across, down = (side * 9 * factor_of(grid.size, (1, 8, 8, 17)) for side in SAMPLES)
        assert across < 4 * 9 * 8, "drawn smaller than the grids of runs"
        assert (grid.width // across, grid.height // down) == (16 // 5, 4 // 2)
        expected = grid.crop((0, 0, across, down)).convert("RGB")
    with Image.open(io.BytesIO(base64.b64decode(strip_of(record).partition(",")[2]))) as strip:
        assert strip.tobytes() == expected.tobytes()


def test_page_and_picture_need_nothing_else_and_names_are_text(board: Board, tmp_path: Path) -> None:
    write_tree(board, tmp_path / "tree.html", tmp_path / "tree.svg")
    text = (tmp_path / "tree.html").read_text()
    assert EVIL not in text
    assert text.count("<svg") == 2, "a tree for each data set"
    assert "://" not in text.replace("http://www.w3.org/2000/svg", "")
    assert "style=" not in text
    drawing = ElementTree.parse(tmp_path / "tree.svg").getroot()
    assert all(image.attrib["href"].startswith("data:image/png") for image in drawing.iter(f"{SVG}image"))
    links = [link.attrib["href"] for link in drawing.iter(f"{SVG}a")]
    assert all((tmp_path / link).exists() for link in links)
    width, height = float(drawing.attrib["width"]), float(drawing.attrib["height"])
    for box in drawing.iter(f"{SVG}rect"):
        left, top, wide, high = (float(box.attrib.get(key, 0)) for key in ("x", "y", "width", "height"))
        assert left + wide <= width
        assert top + high <= height
    assert [t.text for t in drawing.iter(f"{SVG}text") if re.search("density", t.text or "")] == [
        "Explicit density",
        "Implicit density",
    ]
