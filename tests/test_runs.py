"""The run directory: tables, summaries, and finding the run to continue."""

import csv
import errno
import json
import mmap
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from helpers import TINY, configuration
from imago.errors import UserError
from imago.runs import (
    CSVLogger,
    Run,
    alone_in,
    check_same_experiment,
    claim,
    closing_words,
    differences,
    environment,
    find_resumable,
    forget_peak_memory,
    given_command,
    identity,
    peak_memory_mib,
)
from imago.training.callbacks.quality import MeasureQuality
from imago.training.run import train


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_rows_are_on_disk_at_once(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path / "metrics.csv")
    logger.log_metrics({"images_seen": 1, "loss": 0.5})
    logger.log_metrics({"images_seen": 2, "loss": 0.1 + 0.2})
    assert table(logger.path) == [{"images_seen": "1", "loss": "0.5"}, {"images_seen": "2", "loss": str(0.1 + 0.2)}]


def test_a_new_column_leaves_blanks_in_older_rows_and_missing_ones_in_newer(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path / "metrics.csv")
    logger.log_metrics({"images_seen": 1, "a": 1})
    logger.log_metrics({"images_seen": 2, "b": 2})
    logger.log_metrics({"a": 3, "images_seen": 3})
    assert logger.path.read_text().split() == ["images_seen,a,b", "1,1,", "2,,2", "3,3,"]


def test_continue_at_cuts_rows_and_the_columns_that_only_they_had(tmp_path: Path) -> None:
    first = CSVLogger(tmp_path / "metrics.csv")
    for row in ({"images_seen": 1, "a": 0.1}, {"images_seen": 2, "b": 2}, {"images_seen": 3, "c": 3}):
        first.log_metrics(row)
    again = CSVLogger(first.path)
    again.continue_at(2)
    assert again.columns == ["images_seen", "a", "b"]
    again.log_metrics({"images_seen": 3, "a": 0.3})
    again.log_metrics({"images_seen": 4, "d": 4})
    assert first.path.read_text().split() == ["images_seen,a,b,d", "1,0.1,,", "2,,2,", "3,0.3,,", "4,,,4"]


def test_continue_at_the_beginning_and_without_a_table(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path / "metrics.csv")
    logger.continue_at(5)
    assert not logger.path.exists()
    logger.log_metrics({"images_seen": 1})
    again = CSVLogger(logger.path)
    again.continue_at(0)
    again.log_metrics({"images_seen": 7})
    assert table(logger.path) == [{"images_seen": "7"}]


def test_the_summary_is_replaced_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(tmp_path / "run")
    run.update(status="running", images_seen=1)

    def fails(self: Path, target: Path) -> Path:
        raise OSError(errno.ENOSPC, "No space left on device", str(self))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", fails)
        for _ in range(2):
            run.update(status="completed")
    assert re.fullmatch(r"note: summary\.json: No space left on device: .*; the run goes on\n", capsys.readouterr().err)
    assert [path.name for path in run.path.iterdir()] == ["summary.json"], "no litter"
    assert json.loads(run.summary_path.read_text()) == {"status": "running", "images_seen": 1}
    again = Run(tmp_path / "run")
    again.update(images_seen=2)
    assert json.loads(run.summary_path.read_text()) == {"status": "running", "images_seen": 2}


def test_a_process_that_does_not_write_does_not(tmp_path: Path) -> None:
    run = Run(tmp_path / "run", write=False)
    run.update(status="running")
    run.write_config({"seed": 0})
    assert run.summary == {"status": "running"}
    assert not run.path.exists()


def test_a_directory_that_another_process_tidies_up_meanwhile_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one does whose run has a number: it leaves the empty folder that Hydra had made for it."""
    made: list[Path] = []
    make = Path.mkdir

    def mkdir(path: Path, *arguments: Any, **named: Any) -> None:
        make(path, *arguments, **named)
        made.append(path)
        if len(made) < 3:
            path.rmdir()

    monkeypatch.setattr(Path, "mkdir", mkdir)
    assert claim(tmp_path / "run") == tmp_path / "run"
    assert len(made) == 3


def test_a_directory_is_claimed_once(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "run"
    path.mkdir(parents=True)  # as Hydra does it for a sweep
    Run(path.with_name("run-2")).write_config({})  # an old run
    path.with_name("run-3").touch()
    path.with_name("run-4").symlink_to("nowhere")
    assert [claim(path).name for _ in range(3)] == ["run", "run-5", "run-6"]
    with pytest.raises(FileExistsError):
        claim(path.with_name("run-4") / "below")


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_of_many_at_once_each_gets_a_directory(tmp_path: Path) -> None:
    """Forked, since processes that start one after the other rarely meet."""
    for turn in range(20):
        ready, go = os.pipe()
        children = []
        for _ in range(8):
            child = os.fork()
            if not child:
                os.close(go)
                os.read(ready, 1)  # ends when the parent closes its end: for all at once
                os._exit(int(claim(tmp_path / f"{turn}").name.partition("-")[2] or 1))
            children.append(child)
        os.close(go)
        os.close(ready)
        claimed = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        assert sorted(claimed) == list(range(1, 9))


def test_one_process_at_a_time_is_in_a_run(tmp_path: Path) -> None:
    run = claim(tmp_path / "run")
    with (
        alone_in(run),
        pytest.raises(UserError, match=r"/run: another process is at work on this run; wait"),
        alone_in(run),
    ):
        pass
    with alone_in(run):
        pass
    with (
        pytest.raises(UserError, match=r"nowhere: No such file or directory; a run continues"),
        alone_in(tmp_path / "nowhere"),
    ):
        pass


@pytest.mark.parametrize("put", [Path.mkdir, os.mkfifo, lambda path: path.symlink_to("nowhere")])
def test_what_stands_in_place_of_the_lock_is_set_aside(
    put: Callable[[Path], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put(tmp_path / ".lock")
    with alone_in(tmp_path):
        assert (tmp_path / ".lock").is_file()
    told = f"note: {tmp_path / '.lock'}: is no file, set aside as .lock.damaged\n"
    assert capsys.readouterr().err == told
    assert os.path.lexists(tmp_path / ".lock.damaged")


def config(**changes: Any) -> dict[str, Any]:
    data = {"dir": "data", "on_device": False, "batch_size": 64}
    return {"seed": 0, "conditional": False, "model": {"latent": 8}, "data": data, "max_images": 10} | changes


def made(path: Path, age: float, content: dict[str, Any], checkpoint: bool = True) -> Path:
    run = Run(path)
    run.write_config(content)
    if checkpoint:
        run.last.parent.mkdir()
        run.last.touch()
        os.utime(run.last, (1e9 - age, 1e9 - age))
    return path


def test_differences_name_keys_and_values() -> None:
    old, new = {"a": 1, "b": {"c": [1], "d": 2}, "e": 0}, {"a": 1, "b": {"c": [1, 2], "d": 2}, "f": 3}
    assert differences(old, new) == ["b.c: [1] there, [1, 2] now", "e: 0 there, None now", "f: None there, 3 now"]
    assert differences(old, old) == []


def test_an_experiment_is_its_seed_data_and_model() -> None:
    moved = config(data=config()["data"] | {"dir": "elsewhere", "on_device": True}, max_images=99, extra=1)
    assert identity(moved) == identity(config())
    for change in ({"seed": 1}, {"conditional": True}, {"model": {"latent": 9}}, {"data": {"batch_size": 32}}):
        assert identity(config(**change)) != identity(config())
    with pytest.raises(UserError, match=r"resume=x: .*another experiment \(model\.latent: 8 there, 9 now\)"):
        check_same_experiment(config(), config(model={"latent": 9}), Path("x"))
    check_same_experiment(config(), moved, Path("x"))


def test_the_newest_run_of_the_same_experiment_is_found(tmp_path: Path) -> None:
    assert find_resumable(tmp_path, config()) is None
    made(tmp_path / "a" / "old", 100, config())
    wanted = made(tmp_path / "sweeps" / "s" / "1" / "0-a", 50, config(max_images=5))
    made(tmp_path / "a" / "other-seed", 10, config(seed=1))
    made(tmp_path / "a" / "no-checkpoint", 5, config(), checkpoint=False)
    made(tmp_path / "a" / "older-framework", 4, {"seed": 0})
    broken = made(tmp_path / "a" / "broken", 3, config())
    (broken / "config.yaml").write_text("a: [")
    headless = made(tmp_path / "a" / "headless", 2, config())
    (headless / "config.yaml").unlink()
    assert find_resumable(tmp_path, config()) == wanted
    assert yaml.safe_load((wanted / "config.yaml").read_text())["max_images"] == 5


def test_the_environment_says_versions_and_commit() -> None:
    found = environment()
    assert {"python", "torch", "lightning"} <= found["versions"].keys()
    assert found["command"].startswith("python ")
    json.dumps(found)


def test_closing_words_say_where_everything_lies(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    run.update(name="gan-digits", images_seen=12345, updates=67, untrained={"val/fd_classifier": 80.0})
    exact = {"likelihood": "exact", "standard_error": 0.0123}
    bound = {"likelihood": "lower_bound", "standard_error": 1.5}
    run.update(
        metrics={
            "val/fd_classifier": {"value": 20.0, "protocol": {}},
            "val/bpd": {"value": 1.5, "protocol": exact},
            "val/nats": {"value": 80.0, "protocol": bound},
            "val/large": {"value": 19514.2, "protocol": {"standard_error": 7512.3}},
        }
    )
    run.samples.mkdir()
    for name in ("images-0000000001.png", "images-0000012345.png"):
        (run.samples / name).touch()
    (run.path / "wandb" / "offline-run-1").mkdir(parents=True)
    words = closing_words(run, "imago evaluate")
    assert not re.search(r"last\.ckpt|curves\.png|metrics\.csv", words), "a run without what writes these has none"
    run.last.parent.mkdir()
    for path in (run.last, run.path / "curves.png", run.metrics):
        path.touch()
    run.update(unmeasured=["val/fid"])
    words = closing_words(run, "imago evaluate")
    assert f"val/fid not measured; imago evaluate checkpoint={run.path} does it\n" in words
    wanted = ["12,345 images", "val/fd_classifier 20 (untrained 80)", "images-0000012345.png", "last.ckpt"]
    wanted += ["val/bpd = 1.5 ± 0.012", "val/nats ≤ 80 ± 1.5", "val/large 19,514 ± 7,512"]
    for expected in [*wanted, "summary.json", "offline-run-1", "wandb sync", "curves.png", "metrics.csv"]:
        assert expected in words


def test_of_another_class_its_name_is_told_and_not_its_settings() -> None:
    old = {"model": {"_target_": "imago.models.gan.GAN", "latent": 8, "penalty": None}, "seed": 0}
    new = {"model": {"_target_": "imago.models.vae.VAE", "latent": 9}, "seed": 0}
    assert differences(old, new) == ["model: GAN there, VAE now"]
    penalty = {"_target_": "imago.models.gan.R1", "weight": 1.0}
    assert differences(old, {**old, "model": {**old["model"], "penalty": penalty}}) == [
        "model.penalty: None there, R1 now"
    ]


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux forgets the peak of a process")
def test_a_run_does_not_report_the_memory_of_an_earlier_one() -> None:
    device = torch.device("cpu")
    forget_peak_memory(device)
    before = peak_memory_mib(device)
    with mmap.mmap(-1, 300 * 2**20) as large:  # fresh pages, and given back: an allocator would keep some
        large.write(bytes(300 * 2**20))
        assert peak_memory_mib(device) > before + 290
    assert peak_memory_mib(device) > before + 290, "it is a peak"
    forget_peak_memory(device)
    assert peak_memory_mib(device) < before + 100


@pytest.mark.parametrize(
    ("arguments", "given"),
    [
        (["src/train.py", "model=gan"], "python src/train.py model=gan"),
        ([".venv/bin/imago", "model=gan"], "imago train model=gan"),
        (["lib/imago/__main__.py", "model=gan"], "imago train model=gan"),
    ],
)
def test_the_command_can_be_given_again(monkeypatch, arguments, given) -> None:
    monkeypatch.setenv("IMAGO_COMMAND", "train")
    assert given_command(arguments) == given


@pytest.mark.parametrize(("seconds", "expected"), [(0.0, []), (1e6, ["val/fd_classifier"])])
def test_what_was_put_off_is_kept_as_not_measured(
    seconds: float, expected: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MeasureQuality, "seconds_each", lambda *_: seconds)
    options = [*TINY["vae"], "metrics=classifier", "metrics.samples=64", "measuring_share=0.1", "max_images=64"]
    run = train(
        configuration("model=vae", "data=digits", *options, "data.batch_size=16", "logger=csv", "trainer=cpu",
                      "callbacks.samples=null", f"logs={tmp_path}"),
        "x", tmp_path / "run",
    )  # fmt: skip
    assert run.summary["unmeasured"] == expected
    assert ("val/fd_classifier" in run.summary["metrics"]) == (not expected)
