"""Names of pretrained models: what lies in the package, and what is fetched."""

import http.server
import json
import re
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

import imago
from helpers import CONF, Command
from imago import pretrained
from imago.checkpoints import read
from imago.cli.main import pretrained_lines
from imago.data import data_of
from imago.errors import UserError
from imago.evaluation.likelihood import measure_likelihood
from imago.pretrained import ADDRESS, CARD, PACKAGED, SETTINGS, WEIGHTS

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))
tool = __import__("pretrained")

LARGEST = 300_000  # bytes of a model's weights in the package
EXACT = ["fvbn", "made", "pixelcnn", "gated_pixelcnn", "row_lstm", "diagonal_bilstm"]


def test_every_model_is_there_on_digits() -> None:
    names = [f"{file.stem}-digits" for file in sorted(CONF.glob("model/*.yaml"))]
    assert pretrained.packaged() == names
    lines = pretrained_lines()
    for name, line in zip(names, lines, strict=False):
        assert line.startswith(f"{name} ")
        assert (PACKAGED / name / WEIGHTS).stat().st_size <= LARGEST, name
        card = (PACKAGED / name / CARD).read_text()
        assert "mit" in card, name
        assert "| " in card, name
        assert "Trained by" in card, name
        summary, settings = (json.loads((PACKAGED / name / file).read_text()) for file in ("summary.json", SETTINGS))
        assert f"**Parameters:** {summary['parameters']['total']:,}\n" in card, name
        assert summary["images_seen"] == settings["progress"]["images_seen"], name
        assert f"{summary['images_seen']:,} images, {settings['cpu_seconds']:,.0f} s of the processor" in card, name
        assert "† authenticity_classifier" in card, name
    assert any("rbm" in line and "binarised" in line for line in lines)


@pytest.mark.parametrize("name", sorted(folder.parent.name for folder in PACKAGED.glob(f"*/{WEIGHTS}")))
def test_it_draws(name: str) -> None:
    model = imago.load(name)
    model.spec.check(model.sample(2))


@pytest.mark.parametrize("name", EXACT)
def test_the_card_tells_the_truth(name: str) -> None:
    """The number on the card is the one of these weights and of the data as they are here."""
    checkpoint = read(f"{name}-digits")
    kept = json.loads((PACKAGED / f"{name}-digits" / "evaluation.json").read_text())
    (told,) = (r["value"] for r in kept if r["name"] == "test/nats")
    model = imago.load(f"{name}-digits")
    measured = measure_likelihood(model, data_of(checkpoint, None), "test", averaged=True)
    (found,) = (m.value for m in measured if m.name == "nats")
    assert found == pytest.approx(told, rel=1e-4)


def test_commands_take_names_and_leave_the_package_alone(script: Command, tmp_path: Path) -> None:
    before = sorted(PACKAGED.rglob("*"))
    code, out, err = script("evaluate", "checkpoint=fvbn-digits", "metrics=none", "images=20")
    assert code == 0, err
    assert "printed alone" in out + err
    assert "averaged weights" in out
    assert script("sample", "checkpoint=gan-digits", "n=4")[0] == 0
    assert (tmp_path / "gan-digits-samples.png").is_file()
    code, out, err = script("compare", "runs=[fvbn-digits,gan-digits/]", "out=board")
    assert code == 0, err
    assert "fvbn" in out
    code, _, err = script("figure", "figure=traversal", "checkpoint=vae-digits", "out=traversal.png")
    assert code == 0, err
    assert sorted(PACKAGED.rglob("*")) == before


def test_what_a_link_or_a_detour_leads_to_is_the_package_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who cannot be told a home can still evaluate."""
    (tmp_path / "link").symlink_to(PACKAGED / "fvbn-digits")
    for place in (
        tmp_path / "link" / WEIGHTS,
        PACKAGED.parent / "nets" / ".." / PACKAGED.name / "fvbn-digits" / WEIGHTS,
    ):
        assert pretrained.is_pretrained(place)

    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(pretrained, "cache_folder", homeless)
    assert not pretrained.is_pretrained(tmp_path / "mine" / WEIGHTS)


def test_a_slip_in_a_name_is_told(script: Command) -> None:
    code, _, err = script("sample", "checkpoint=pixelcn-digits")
    assert code == 2
    assert "did you mean pixelcnn-digits?" in err


def test_a_file_of_that_name_comes_first(script: Command, tmp_path: Path) -> None:
    (tmp_path / "gan-digits").mkdir()
    code, _, err = script("sample", "checkpoint=gan-digits")
    assert code == 2
    assert "a folder without checkpoints" in err


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A server's folder; ``big-mnist`` is released with the files of a model of the package."""
    listed = tmp_path / "released.json"
    listed.write_text("{}")
    monkeypatch.setattr(pretrained, "RELEASED", listed)
    monkeypatch.setattr(tool, "RELEASED", listed)
    monkeypatch.setattr(tool, "ROOT", tmp_path)
    tool.release("big-mnist", "fvbn-digits")
    there = tmp_path / "build" / "release"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    pretrained.released.cache_clear()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(there)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv(ADDRESS, f"http://127.0.0.1:{server.server_port}/")
    yield there / "big-mnist"
    server.shutdown()
    server.server_close()
    pretrained.released.cache_clear()


def test_a_released_model_is_fetched_once(server: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert f"{(server / WEIGHTS).stat().st_size:,} bytes, SHA-256 " in "\n".join(pretrained_lines())
    model = imago.load("big-mnist")
    assert model.spec == imago.load("fvbn-digits").spec
    monkeypatch.delenv(ADDRESS)
    assert pretrained.folder_of("big-mnist") == tmp_path / "cache" / "imago" / "models" / "big-mnist"
    assert (pretrained.folder_of("big-mnist") / CARD).read_bytes() == (server / CARD).read_bytes()
    assert pretrained.is_pretrained(tmp_path / "cache" / "imago" / "models" / "big-mnist" / WEIGHTS)


def test_what_is_not_the_released_file_is_not_kept(server: Path) -> None:
    content = (server / WEIGHTS).read_bytes()
    (server / WEIGHTS).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(UserError, match="SHA-256"):
        imago.load("big-mnist")
    (server / WEIGHTS).write_bytes(content)
    imago.load("big-mnist")


def test_without_an_address_the_remedy_is_told(server: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ADDRESS)
    with pytest.raises(UserError, match=ADDRESS):
        imago.load("big-mnist")


@pytest.mark.parametrize("address", ["", "http://127.0.0.1:9/"])
def test_a_board_goes_on_without_what_cannot_be_fetched(
    server: Path, script: Command, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.setenv(ADDRESS, address)
    code, out, err = script("compare", "runs=[fvbn-digits,big-mnist]", "out=board")
    assert code == 0, err
    assert "fvbn-digits" in out
    assert re.search(rf"^runs: big-mnist: .*{ADDRESS}", out, re.MULTILINE)
