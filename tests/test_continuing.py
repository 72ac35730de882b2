"""A run goes on from what is whole of what it left, and says what is not."""

import itertools
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from helpers import CONF, small
from imago.checkpoints import AtomicCheckpointIO, read
from imago.errors import UserError
from imago.files import remove_litter
from imago.paths import checkpoint_file, whole_checkpoints
from imago.runs import Run
from imago.training.continuing import NothingLeftError
from imago.training.run import train
from test_resume import MODELS, assert_equal, numbers, rows

OPTIONS = [
    *MODELS["gan"], "metrics=classifier", "metrics.samples=64", "max_images=null", "every.log=32",
    "every.checkpoints=96", "every.quality=160", "every.samples=1000000",
]  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """A run that never stopped, and one that was stopped on its way, after 320 of 400 images."""
    root = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IMAGO_DATA_DIR", str(root))
        updates = {"whole": 25, "cut": 20}
        return {
            name: train(small(root / name, *OPTIONS, f"max_updates={n}"), "x", root / name / "run")
            for name, n in updates.items()
        }


def cut_short(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:5000])


def flipped(file: Path) -> None:
    """One bit of a weight, which neither torch nor the length of the file tells."""
    content = bytearray(file.read_bytes())
    weight = next(iter(read(file)["state_dict"].values())).numpy().tobytes()
    content[content.index(weight) + 100] ^= 1
    file.write_bytes(content)


def a_folder(file: Path) -> None:
    file.unlink()
    (file / "inside").mkdir(parents=True)


def text(content: str) -> Callable[[Path], object]:
    return lambda file: file.write_text(content)


def many(*names: str) -> Callable[[Path], None]:
    """Damages several files of the folder."""
    return lambda file: [flipped(file.with_name(name)) for name in names] and None


# What is damaged, how, and what is said of it.
CHECKPOINTS = {
    "cut short": (
        cut_short,
        "last.ckpt cannot be read: cut short, or no checkpoint, set aside as last.ckpt.damaged; goes .*previous.ckpt",
    ),
    "flipped": (flipped, "last.ckpt is damaged: its checksums do not fit, set aside .*previous.ckpt after 288"),
    "empty": (text(""), "last.ckpt is empty, set aside .*previous.ckpt after 288"),
    "folder": (a_folder, "last.ckpt is a folder, set aside .*previous.ckpt after 288"),
    "missing": (Path.unlink, r"checkpoints/last.ckpt is missing; goes on from .*previous.ckpt after 288"),
    "two": (many("last.ckpt", "previous.ckpt"), "previous.ckpt is damaged.*goes on from .*best.ckpt after (160|320)"),
    "best": (many("best.ckpt"), "best.ckpt is damaged: its checksums do not fit, set aside as best.ckpt.damaged$"),
}  # fmt: skip


@pytest.mark.parametrize("damage", CHECKPOINTS)
def test_the_newest_whole_checkpoint_is_used(
    damage: str,
    runs: dict[str, Run],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("IMAGO_DATA_DIR", str(runs["whole"].path.parents[1]))
    whole, path = runs["whole"], tmp_path / "logs" / "run"
    shutil.copytree(runs["cut"].path, path)
    act, told = CHECKPOINTS[damage]
    last = path / "checkpoints" / "last.ckpt"
    act(last)
    if damage != "best":
        file = checkpoint_file(path)
        assert file.name == ("best.ckpt" if damage == "two" else "previous.ckpt")
        assert f"last.ckpt {'is' if damage != 'cut short' else 'cannot'}" in capsys.readouterr().err
        if last.is_file():
            with pytest.raises(UserError, match=r"last\.ckpt: (cannot be read|no checkpoint)"):
                checkpoint_file(last)
    run = train(small(tmp_path / "logs", *OPTIONS, "max_updates=25", "resume=auto"), "x", tmp_path / "new")
    assert run.path == path
    (note,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith(f"note: {path}")]
    assert re.search(told, note)
    one, other = read(whole.last), read(run.last)
    for key in ("state_dict", "optimizer_states", "progress", "rows"):
        assert_equal(one[key], other[key], key)
    assert_equal(one["callbacks"]["EMA"], other["callbacks"]["EMA"])
    assert rows(whole.metrics) == rows(run.metrics)
    assert numbers(run.summary)["metrics"] == numbers(whole.summary)["metrics"]
    assert run.summary["status"] == "completed"
    files, wrong = whole_checkpoints(path)
    assert ({file.name for file in files}, wrong) == ({"last.ckpt", "previous.ckpt", "best.ckpt"}, {})


def test_where_no_checkpoint_is_whole_nothing_starts_anew_unasked(runs: dict[str, Run], tmp_path: Path) -> None:
    path = tmp_path / "run"
    shutil.copytree(runs["cut"].path, path)
    for name in ("last.ckpt", "previous.ckpt", "best.ckpt"):
        cut_short(path / "checkpoints" / name)
    for resume in ("auto", path, path / "checkpoints" / "last.ckpt"):
        with pytest.raises(
            UserError, match=r"resume=.*run: none of its checkpoints is whole: last.ckpt .*, previous.ckpt .*, best"
        ):
            train(small(tmp_path, *OPTIONS, "max_updates=25", f"resume={resume}"), "x", tmp_path / "new")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["run"]


OPTIMIZERS = sorted(path.stem for path in (CONF / "model/optimizer/net").glob("*.yaml"))
Content = dict[str, Any]


def each_kept(content: Content, change: Callable[[dict[str, Any], str], None]) -> None:
    """Change the largest tensor that the optimiser keeps of every weight."""
    for kept in content["optimizer_states"][0]["state"].values():
        change(kept, max(kept, key=lambda name: kept[name].numel()))


def shaped(make: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Content], None]:
    return lambda content: each_kept(content, lambda kept, name: kept.update({name: make(kept[name])}))


def group_of(content: Content) -> Any:
    return content["optimizer_states"][0]["param_groups"][0]


def averages(content: Content) -> list[torch.Tensor]:
    return list(content["callbacks"]["EMA"]["weights"].values())


# How what training goes on from is damaged, and what is said of it.
STATES: dict[str, tuple[Callable[[Content], object], str]] = {
    "turned": (shaped(lambda kept: kept.flatten()), "state.0.*of shape .* where .* belongs"),
    "one number": (shaped(lambda kept: kept.flatten()[:1]), "state.0.*of shape .* where .* belongs"),
    "too long": (shaped(lambda kept: torch.cat([kept, kept])), "state.0.*of shape .* where .* belongs"),
    "nan": (shaped(lambda kept: kept * torch.nan), "state.0.* = nan or inf"),
    "a key is missing": (lambda content: each_kept(content, lambda kept, name: kept.pop(name)), "state.0 lacks "),
    "text": (lambda content: each_kept(content, lambda kept, name: kept.update({name: "text"})), "net .*"),
    "no state": (lambda content: content["optimizer_states"][0].pop("state"), "it lacks state"),
    "a weight is missing": (lambda content: group_of(content)["params"].pop(), "size"),
    "no rate": (lambda content: group_of(content).pop("lr"), "param_groups.0 lacks lr"),
    "rate of text": (lambda content: group_of(content).update(lr="text"), "net .*"),
    "rate of nan": (lambda content: group_of(content).update(lr=float("nan")), "weights of nan or inf"),
    "a number": (lambda content: content.update(optimizer_states=[5]), "net .it lacks state, param_groups"),
    "none": (lambda content: content.pop("optimizer_states"), "optimizer_states: not one for each of net"),
    "of another model": (lambda content: content["optimizer_states"].append({}), "not one for each of net"),
    **{
        f"no {name}": (lambda content, name=name: content.pop(name), f"{name}: missing")
        for name in ("callbacks", "random", "lr_schedulers", "rows", "pytorch-lightning_version")
    },
    "a callback of text": (lambda content: content["callbacks"].update(EMA="text"), "callbacks.EMA: not as "),
    "half a generator": (lambda content: content["random"].pop("numpy"), "random: not as .*KeyError: 'numpy'"),
    "a weight less": (lambda content: content["state_dict"].popitem(), "model: its weights are not of the network"),
    "weights of nan": (lambda content: next(iter(content["state_dict"].values())).fill_(torch.nan), "nan or inf"),
    "averages of nan": (lambda content: averages(content)[0].fill_(torch.nan), "EMA.weights.* = nan or inf"),
    "short averages": (lambda content: averages(content)[0].resize_(1), "model: its weights are not of the network"),
}  # fmt: skip


@pytest.fixture(scope="module", params=OPTIMIZERS)
def stopped(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], Path, Run]:
    """Settings, folder and run of a model that was stopped, with each optimiser of the configuration."""
    folder = tmp_path_factory.mktemp(request.param)
    options = [
        "model=vae", "model.encoder.hidden=[16]", "model.decoder.hidden=[16]", f"model/optimizer/net={request.param}",
        "max_images=null", "every.samples=1000000", "every.checkpoints=16",
    ]  # fmt: skip
    return options, folder, train(small(folder, *options, "max_updates=3"), "x", folder / "run")


@pytest.mark.parametrize("damage", STATES)
def test_what_training_could_not_go_on_from_is_refused_before_anything_is_written(
    damage: str, stopped: tuple[list[str], Path, Run], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options, folder, run = stopped
    act, told = STATES[damage]
    whole, content = run.last.read_bytes(), torch.load(run.last)
    act(content)
    torch.save(content, run.last)

    def files() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    before = files()
    try:
        with pytest.raises(
            UserError, match=rf"^resume=.*last.ckpt: cannot be continued from: .*{told}.*; rename "
        ) as error:
            train(small(folder, *options, "max_updates=4", "resume=auto"), "x", folder / "new")
        assert "\n" not in str(error.value)
        assert files() == before
        if damage == "nan":  # the remedy
            shutil.copytree(run.path, tmp_path / "run")
            (tmp_path / "run" / "checkpoints" / "last.ckpt").rename(tmp_path / "aside")
            again = train(small(tmp_path, *options, "max_updates=4", "resume=auto"), "x", tmp_path / "new")
            assert again.summary["updates"] == 4
            assert re.search(
                r"goes on from the newest one that is whole, (previous|best)\.ckpt", capsys.readouterr().err
            )
    finally:
        run.last.write_bytes(whole)


# Of each file what may happen to it, and how many of the rows before are left.
TEXTS = {
    "empty": (b"", 0),
    "half": (None, None),
    "bytes": (b"\xff\xfe\x00\x81", 0),
    "null": (b"null", 0),
    "deep": (b"[" * 3000, 0),
    "types": (b'{"metrics": [1], "best": 3}', 0),
}


@pytest.mark.parametrize("damage", TEXTS)
def test_damaged_texts_stop_nobody(
    damage: str,
    runs: dict[str, Run],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("IMAGO_DATA_DIR", str(runs["whole"].path.parents[1]))
    whole, path, other = runs["whole"], tmp_path / "run", tmp_path / "another experiment"
    shutil.copytree(runs["cut"].path, path)
    shutil.copytree(runs["cut"].path, other)
    for file in [
        other / "checkpoints" / "last.ckpt",
        other / "checkpoints" / "previous.ckpt",
        other / "checkpoints" / "best.ckpt",
    ]:
        file.write_bytes(b"PK and nothing else")
    for run in (path, other):
        for name in ("summary.json", "config.yaml", "metrics.csv"):
            old = (run / name).read_bytes()
            (run / name).write_bytes(old[: len(old) // 2] if TEXTS[damage][0] is None else TEXTS[damage][0])
    table = (path / "metrics.csv").read_bytes()
    left = len(table.split(b"\n")) - 2 if damage == "half" else 0
    run = train(small(tmp_path, *OPTIONS, "max_updates=25", "resume=auto"), "x", tmp_path / "new")
    told = capsys.readouterr()
    assert run.path == path
    assert "config.yaml cannot be read, and is written anew; summary.json cannot be used" in told.err
    assert re.search(
        r"metrics\.csv: \d+ of \d+ rows before the checkpoint are lost, the damaged one is metrics\.csv\.damaged",
        told.err,
    )
    assert f"{other} is passed over" in told.out
    assert (path / "metrics.csv.damaged").read_bytes() == table
    after, expected = rows(run.metrics), rows(whole.metrics)
    new = len([row for row in expected if int(row["images_seen"]) > 320])
    assert [row["images_seen"] for row in after] == [row["images_seen"] for row in expected[:left] + expected[-new:]]
    assert_equal(read(whole.last)["state_dict"], read(run.last)["state_dict"])
    assert_equal(numbers(json.loads((path / "summary.json").read_text())), numbers(whole.summary))
    assert yaml.safe_load((path / "config.yaml").read_text())["max_updates"] == 25


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_what_stands_in_place_of_the_files_of_a_run_is_set_aside(
    runs: dict[str, Run], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IMAGO_DATA_DIR", str(runs["whole"].path.parents[1]))
    path = tmp_path / "run"
    shutil.copytree(runs["cut"].path, path)
    for name in ("config.yaml", "metrics.csv", ".lock"):
        a_folder(path / name)
    (path / "summary.json").unlink()
    os.mkfifo(path / "summary.json")
    shutil.rmtree(path / "samples", ignore_errors=True)
    (path / "samples").write_text("a file")
    run = train(small(tmp_path, *OPTIONS, "max_updates=25", f"resume={path}"), "x", tmp_path / "new")
    told = capsys.readouterr().err
    for name in ("config.yaml", "summary.json", "metrics.csv"):
        assert f"{name} is no file, set aside as {name}.damaged" in told
    assert "samples is no folder, set aside as samples.damaged" in told
    assert f"{path / '.lock'}: is no file, set aside as .lock.damaged" in told
    assert all(os.path.lexists(path / f"{name}.damaged") for name in ("config.yaml", "summary.json", "metrics.csv"))
    assert ".unfinished" not in told
    assert run.summary["status"] == "completed"
    assert json.loads(run.summary_path.read_text())["status"] == "completed"
    assert rows(run.metrics)
    assert yaml.safe_load((path / "config.yaml").read_text())["max_updates"] == 25
    assert_equal(read(runs["whole"].last)["state_dict"], read(run.last)["state_dict"])


def test_a_kill_between_two_names_loses_neither_checkpoint(tmp_path: Path) -> None:
    """Whatever call of the system is a writer's last one, the newest complete checkpoint is there under some name."""
    folder = tmp_path / "checkpoints"
    writer, options = AtomicCheckpointIO(), {"previous": folder / "previous.ckpt"}

    def write(images: int) -> None:
        writer.save_checkpoint({"progress": {"images_seen": images}}, folder / "last.ckpt", options)

    def seen() -> list[int]:
        return [torch.load(file)["progress"]["images_seen"] for file in whole_checkpoints(tmp_path)[0]]

    def dying(call: Callable[..., Any], after: int) -> Callable[..., Any]:
        left = [after]

        def dies(*arguments: Any, **named: Any) -> Any:
            left[0] -= 1
            return call(*arguments, **named) if left[0] else os._exit(9)

        return dies

    def unknown(*_: Any, **__: Any) -> None:
        raise PermissionError(1, "this file system has no second names")

    write(1)
    write(2)
    assert seen() == [2, 1]
    killed = 0
    for links, name, after in itertools.product((True, False), ("link", "replace", "fsync", "open", "unlink"), (1, 2)):
        before = max(seen())
        child = os.fork()
        if not child:
            if not links:
                os.link = unknown  # type: ignore[assignment]
            setattr(os, name, dying(getattr(os, name), after))
            write(before + 1)
            os._exit(0)
        died = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
        killed += died
        assert max(seen()) == before + 1 or (died and max(seen()) == before)
        assert len(seen()) == 2 or (died and not links)
    assert killed >= 12
    remove_litter(folder)
    assert {file.name for file in folder.iterdir()} <= {"last.ckpt", "previous.ckpt"}


def test_a_larger_budget_of_the_processor_is_used_up(tmp_path: Path) -> None:
    """As ``max_images`` is: the same command with more seconds goes on in the same place, and with as many it ends."""

    def run(seconds: float) -> Run:
        options = small(tmp_path, *MODELS["gan"], "metrics=none", "callbacks=minimal", "max_images=null", "resume=auto")
        return train(options | {"max_cpu_seconds": seconds}, "x", tmp_path / "x" / str(seconds))

    first = run(0.2)
    before = first.summary
    assert before["stopped_by"] == "max_cpu_seconds=0.2"
    second = run(0.5)
    after = second.summary
    assert (second.path, after["status"], after["stopped_by"]) == (first.path, "completed", "max_cpu_seconds=0.5")
    assert before["images_seen"] < after["images_seen"]
    assert 0.2 <= before["training_cpu_seconds"] < 0.5 <= after["training_cpu_seconds"]
    with pytest.raises(NothingLeftError):
        run(0.5)
