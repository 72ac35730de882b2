"""Checkpoints of every released version load, sample and measure as they did, and their runs go on."""

import json
import shutil
from pathlib import Path

import pytest
import torch

import released
from imago.board.records import read_record
from imago.runs import Run
from imago.training.run import train

VERSIONS = sorted(path.name for path in released.FOLDER.iterdir())
CASES = [(version, path.stem) for version in VERSIONS for path in sorted((released.FOLDER / version).glob("*.ckpt"))]


def test_there_are_checkpoints_of_every_model() -> None:
    assert "0.1.0" in VERSIONS
    first = {case for version, case in CASES if version == "0.1.0"}
    assert len(first) == 15
    assert first <= set(released.CASES)


@pytest.mark.parametrize(("version", "case"), CASES)
def test_a_checkpoint_gives_what_it_gave(version: str, case: str) -> None:
    folder = released.FOLDER / version
    before, now = json.loads((folder / "answers.json").read_text())[case], released.told(folder / f"{case}.ckpt")
    assert now["images_seen"] == before["images_seen"]
    assert now.get("nats") == (pytest.approx(before["nats"], rel=1e-5) if "nats" in before else None)
    drawn, known = bytes.fromhex(now["samples"]), bytes.fromhex(before["samples"])
    assert len(drawn) == len(known)
    assert sum(abs(a - b) > 1 for a, b in zip(drawn, known, strict=True)) <= len(known) // 100


@pytest.mark.parametrize("version", VERSIONS)
def test_a_run_goes_on_and_is_shown(
    version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    folder, run = released.FOLDER / version, Run(Path("logs/vae-digits/2026-01-01_00-00-00"))
    run.last.parent.mkdir()
    shutil.copyfile(folder / "vae.ckpt", run.last)
    for file in ("config.yaml", "summary.json", "metrics.csv"):
        shutil.copyfile(folder / f"vae-{file}", run.path / file)
    record = read_record(run.path)
    assert record.model == "vae"
    assert record.status == "completed"
    assert record.headline("bpd") is not None
    torch.manual_seed(12345)
    continued = train(released.options("vae", "max_updates=12", "resume=auto"), "vae", Path("new"))
    assert "continues" in capsys.readouterr().out
    assert continued.path.resolve() == run.path.resolve()
    assert continued.summary["updates"] == 12
