"""Dashboards: W&B never asks and tells what it should; TensorBoard gets every row."""

import io
import json
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import wandb
from PIL import Image
from wandb.proto import wandb_internal_pb2

from helpers import Command, small
from imago import loggers
from imago.loggers import SECONDS, WandbRun, wandb_mode
from imago.runs import Run
from imago.sweeps import Job
from imago.training.run import train


@pytest.fixture(autouse=True)
def _no_leftovers() -> Iterator[None]:
    yield
    wandb.teardown()  # what one test configured must not reach the next


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody sits at the terminal, and no mode is set."""

    class Closed(io.StringIO):
        def read(self, *arguments: Any) -> str:
            raise AssertionError("standard input was read")

        readline = read

    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setattr(sys, "stdin", Closed())


@pytest.mark.usefixtures("nobody")
def test_without_a_key_offline_and_without_a_question() -> None:
    assert wandb_mode("auto") == "offline"


@pytest.mark.usefixtures("nobody")
def test_with_a_key_online(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(wandb, "login", lambda **options: asked.append(options) or True)
    assert wandb_mode("auto") == "online"
    assert asked == [{"prompt": False, "verify": False}], "no question, and none to the server"


@pytest.mark.parametrize("mode", ["online", "offline", "disabled"])
def test_the_environment_and_the_configuration_decide(monkeypatch: pytest.MonkeyPatch, mode: Any) -> None:
    monkeypatch.setenv("WANDB_MODE", mode)
    monkeypatch.setattr(wandb, "login", lambda **options: True)
    assert wandb_mode("auto") == mode
    assert wandb_mode("disabled") == "disabled"


class Experiment:
    """Notes what is told to a W&B run."""

    id, url = "abc", "https://wandb.ai/e/p/runs/abc"

    def __init__(self) -> None:
        self.metrics: list[tuple[str, str | None]] = []
        self.logged: list[dict[str, Any]] = []
        self.summary: dict[str, Any] = {}

    def define_metric(self, name: str, step_metric: str | None = None) -> None:
        self.metrics.append((name, step_metric))

    def log(self, row: dict[str, Any], **options: Any) -> None:
        self.logged.append(row)


@pytest.mark.parametrize(("mode", "continued"), [("offline", False), ("online", True)])
def test_what_a_run_is_told(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    mode: str,
    continued: bool,
) -> None:
    options: dict[str, Any] = {}
    experiment = Experiment()
    monkeypatch.setattr(wandb, "init", lambda **given: options.update(given) or experiment)
    monkeypatch.setattr(wandb, "login", lambda **options: True)
    monkeypatch.setenv("WANDB_MODE", mode)
    run = Run(tmp_path)
    run.update(wandb_id="earlier", likelihood="exact", parameters={"net": 3, "total": 3})
    loggers.wandb(run, "gan-digits", {"seed": 3}, ["a", "b"], "sweep", project="p", entity="e")
    told = {key: options[key] for key in ("project", "entity", "name", "group", "tags", "config", "dir", "mode")}
    assert told == {
        "project": "p", "entity": "e", "name": "gan-digits", "group": "sweep", "tags": ["a", "b"],
        "config": {"seed": 3}, "dir": str(tmp_path), "mode": mode,
    }  # fmt: skip
    # It keeps its id; only online runs can be appended to.
    assert (options["id"], options["resume"]) == ("earlier", "allow" if continued else None)
    assert capsys.readouterr().out == ("W&B: https://wandb.ai/e/p/runs/abc\n" if continued else "")
    assert experiment.metrics == [("images_seen", None), ("*", "images_seen")]
    assert (run.summary["wandb_id"], run.summary["wandb_mode"]) == ("abc", mode)
    assert experiment.summary == {"likelihood": "exact", "parameters/net": 3, "parameters/total": 3}


def test_rows_that_measure_carry_the_training_seconds(tmp_path: Path) -> None:
    """W&B draws a value over another one of the same row; a continued run has none before its first row of training."""
    experiment: Any = Experiment()
    logger = WandbRun(Run(tmp_path), experiment)
    logger.log_metrics({"images_seen": 100, "val/bpd": 3.0})
    logger.log_metrics({"images_seen": 0, "val/bpd": 8.0})
    logger.log_metrics({"images_seen": 100, SECONDS: 2.5})
    logger.log_metrics({"images_seen": 100, "val/bpd": 2.0})
    logger.log_metrics({"samples": "a picture"})
    assert [row.get(SECONDS) for row in experiment.logged] == [None, 0.0, 2.5, 2.5, None]


def test_a_measurement_has_its_protocol_beside_it_as_soon_as_it_is_known(tmp_path: Path) -> None:
    experiment: Any = Experiment()
    run = Run(tmp_path)
    logger = WandbRun(run, experiment)
    protocol = {"data": "digits val", "images": 180, "caveat": "none", "nfe": 64}
    run.update(metrics={"val/bpd": {"value": 2.0, "protocol": protocol}}, spec={"class_names": ["cat", "dog"]})
    assert experiment.summary == {}
    logger.log_metrics({"images_seen": 100})
    told = {"protocol/val/bpd": "data digits val; images 180; caveat none; nfe 64", "nfe": 64}
    told |= {"classes": "cat, dog"}
    assert experiment.summary == told
    run.update(metrics={"val/bpd": {"value": 1.0, "protocol": protocol | {"images": 100}}})
    logger.finalize("success")
    assert experiment.summary == told | {"protocol/val/bpd": "data digits val; images 100; caveat none; nfe 64"}


def records(directory: Path) -> Iterator[Any]:
    """All records of an offline run: protocol buffers in LevelDB's log format, behind a header of 7 bytes."""
    (path,) = directory.glob("wandb/offline-run-*/*.wandb")
    content, position, parts = path.read_bytes(), 7, b""
    while position + 7 <= len(content):
        left_in_block = 2**15 - position % 2**15
        if left_in_block < 7:
            position += left_in_block
            continue
        _, length, kind = struct.unpack_from("<IHB", content, position)
        parts += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            yield record
            parts = b""


def test_an_offline_run_holds_curves_over_images_seen_and_grids(tmp_path: Path) -> None:
    options = ["logger=wandb", "max_images=64", "every.log=32", "every.samples=64", "tags=[x,y]"]
    options += ["metrics=classifier", "metrics.samples=32", "metrics.subsets=2", "every.quality=64"]
    sizes = ["model.generator.hidden=[8]", "model.discriminator.hidden=[8]"]
    run = train(small(tmp_path, *options, *sizes), "gan-digits", tmp_path / "run", Job(tmp_path / "s", (), {}))
    assert run.summary["wandb_mode"] == "offline"
    found = list(records(run.path))
    (about,) = [record.run for record in found if record.HasField("run")]
    assert (about.display_name, list(about.tags), about.run_group) == ("gan-digits", ["x", "y"], "s")
    assert {"seed", "model", "data"} <= {item.key for item in about.config.update}
    metrics = [record.metric for record in found if record.HasField("metric")]
    assert any(m.glob_name == "*" and m.step_metric == "images_seen" for m in metrics)
    rows = [
        {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
        for record in found
        if record.HasField("history")
    ]
    curve = [(row["images_seen"], float(row["train/loss/generator"])) for row in rows if "train/loss/generator" in row]
    assert [seen for seen, _ in curve] == ["32", "64"]
    (picture,) = run.path.glob("wandb/offline-run-*/files/media/images/samples*.png")
    (grid,) = run.samples.glob("*.png")
    with Image.open(picture) as logged, Image.open(grid) as drawn:
        assert logged.tobytes() == drawn.tobytes()
    timed = [(row["images_seen"], float(row[SECONDS])) for row in rows if "val/fd_classifier" in row]
    assert timed == [("0", 0.0), ("64", pytest.approx(run.summary["training_seconds"], abs=0.01))]
    told = {
        item.key or "/".join(item.nested_key): json.loads(item.value_json)
        for record in found
        if record.HasField("summary")
        for item in record.summary.update
    }
    assert (told["likelihood"], told["data"]) == ("none", "digits")
    assert {name: told[f"parameters/{name}"] for name in run.summary["parameters"]} == run.summary["parameters"]
    for name, result in run.summary["metrics"].items():
        assert told[f"protocol/{name}"].startswith("extractor classifier (digits, shipped); extractor fingerprint ")
        assert told["seconds_per_sample"] == result["protocol"]["seconds_per_sample"]
    assert wandb.run is None, "the run was finished"


def test_tensorboard_gets_every_row(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    options = ["logger=tensorboard", "max_images=64", "every.log=32"]
    sizes = ["model.generator.hidden=[8]", "model.discriminator.hidden=[8]"]
    run = train(small(tmp_path, *options, *sizes), "x", tmp_path / "run")
    events = EventAccumulator(str(run.path / "tensorboard"))
    events.Reload()
    points = events.Scalars("train/loss/generator")
    assert [point.step for point in points] == [32, 64]
    assert torch.tensor([point.value for point in points]).isfinite().all()


TINY = ["max_images=64", "every.log=32", "model.generator.hidden=[8]", "model.discriminator.hidden=[8]"]


def about_of(directory: Path) -> Any:
    return next(record.run for record in records(directory) if record.HasField("run"))


def test_a_run_that_continues_keeps_its_id_offline_too(tmp_path: Path) -> None:
    """`wandb sync` joins the files of one id in the order of their beginnings."""
    first = train(small(tmp_path, *TINY, "logger=wandb"), "gan-digits", tmp_path / "run")
    known = first.summary["wandb_id"]
    (file,) = first.path.glob("wandb/offline-run-*")
    file.rename(tmp_path / file.name)  # another second than the next one's, whose folder is named by that
    more = [*TINY, "logger=wandb", "max_images=128", f"resume={first.path}"]
    again = train(small(tmp_path, *more), "gan-digits", tmp_path / "x")
    assert again.summary["wandb_id"] == known == about_of(again.path).run_id


def test_checkpoints_code_and_grids_are_handed_over_where_they_are_asked_for(tmp_path: Path) -> None:
    given = [f"logger.wandb.{name}=true" for name in ("artifacts", "code", "tables")]
    run = train(small(tmp_path, *TINY, "logger=wandb", "every.samples=32", *given), "gan-digits", tmp_path / "run")
    artifacts = {r.request.log_artifact.artifact.type: r.request.log_artifact.artifact for r in records(run.path)
                 if r.request.HasField("log_artifact")} | {
        r.artifact.type: r.artifact for r in records(run.path) if r.HasField("artifact")}  # fmt: skip
    assert [entry.path for entry in artifacts["model"].manifest.contents] == ["last.ckpt"]
    code = {entry.path for entry in artifacts["code"].manifest.contents}
    assert {"loggers.py", "models/gan.py"} <= code
    assert all(path.endswith(".py") for path in code)
    (table,) = run.path.glob("wandb/offline-run-*/files/media/table/grids*.json")
    content = json.loads(table.read_text())
    assert content["columns"] == ["kind", "images_seen", "grid"]
    assert [row[:2] for row in content["data"]] == [["images", 32], ["images", 64]]
    plain = train(small(tmp_path, *TINY, "logger=wandb"), "gan-digits", tmp_path / "plain")
    assert not any(record.HasField("artifact") for record in records(plain.path))
    assert not list(plain.path.glob("wandb/offline-run-*/files/media/table/*"))


def test_several_loggers_at_once_and_tensorboard_knows_what_a_sweep_varies(script: Command) -> None:
    given = ["-m", *TINY, "metrics=none", "trainer=cpu", "callbacks=minimal", "seed=1,2", "hydra.sweep.dir=s"]
    code, _, err = script("train", *given, "logger=[wandb,tensorboard]", "logger.wandb.project=p")
    assert code == 0, err
    for k in range(2):
        run = Path(f"s/{k}-gan-digits")
        assert [path.name for path in (run / "tensorboard").iterdir()] == [f"gan-digits seed={k + 1}"]
        assert (about_of(run).display_name, about_of(run).project) == (f"gan-digits seed={k + 1}", "p")
    code, _, err = script("train", *TINY, "logger=[csv,tensorbord]")
    assert code == 2
    assert "logger=tensorbord: no such choice; did you mean tensorboard?" in err


@pytest.mark.parametrize("package", ["mlflow", "trackio"])
def test_a_logger_that_is_not_installed_names_its_package(script: Command, package: str) -> None:
    code, _, err = script("train", *TINY, "metrics=none", "trainer=cpu", f"logger={package}")
    assert code == 2
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert line == f"error: logger={package}: not installed; pip install {package}, or use logger=csv"
    assert not Path("logs").exists()
