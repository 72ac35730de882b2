"""sample.py and evaluate.py on small runs: what they write, and that every mistake is one message."""

import errno
import importlib
import json
import os
import re
import shutil
import signal
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from helpers import configuration, small
from imago import cli
from imago.board.records import read_record
from imago.checkpoints import load
from imago.rng import PerImageGenerator
from imago.runs import Run
from imago.training.run import train

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "src"))
SIZES = ["model.generator.hidden=[8]", "model.discriminator.hidden=[8]", "max_images=320", "every.quality=160"]
Command = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """A run with everything, one of classes, and one that neither averages nor measures."""
    root = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IMAGO_DATA_DIR", str(root))
        patch.chdir(root)
        chosen = {
            "plain": ["metrics=classifier", "metrics.samples=80"],
            "classes": ["conditional=true"],
            "minimal": ["callbacks=minimal"],
        }
        return {name: train(small(root, *SIZES, *o), name, root / name) for name, o in chosen.items()}


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Command:
    """Runs a script in this process, in an empty folder; gives exit code, standard output and standard error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("IMAGO_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")

    def run(script: str, *arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [str(ROOT / "src" / f"{script}.py"), *arguments])
        with pytest.raises(SystemExit) as exit_info:
            cli.run(importlib.import_module(f"imago.cli.{script}").main, script)
        captured = capsys.readouterr()
        return int(exit_info.value.code or 0), captured.out, captured.err

    return run


def test_a_picture_of_samples(command: Command, runs: dict[str, Run]) -> None:
    file = runs["plain"].path / "samples.png"
    code, out, _ = command("sample", f"checkpoint={runs['plain'].path}", "n=7")
    assert code == 0
    assert re.search(rf"^{file}: 7 images in [\d.]+ s, [\d,.]+ images/s$", out, re.MULTILINE)
    with Image.open(file) as picture:
        assert picture.size == (8 * 28, 8 * 28)  # 3x3 cells of 9 pixels and a margin, 8 times enlarged
    assert not list(Path().iterdir()), "nothing else is left behind"
    file.unlink()


def test_arrays_hold_the_models_samples_whatever_the_batch_size(command: Command, runs: dict[str, Run]) -> None:
    for batch_size in (3, 64):
        given = [f"checkpoint={runs['plain'].best}", "n=10", "seed=5", f"batch_size={batch_size}"]
        given += ["out=x.npz", "overwrite=true"]
        assert command("sample", *given)[0] == 0
        with np.load("x.npz") as arrays:
            assert arrays.files == ["images"]
            images = arrays["images"]
        expected = load(runs["plain"].best).sample(10, generator=PerImageGenerator(5))
        assert (images.dtype, images.shape) == (np.uint8, (10, 8, 8, 1))
        assert np.array_equal(images, expected.permute(0, 2, 3, 1).numpy())


def test_averaged_weights_by_default_and_the_last_ones_on_request(command: Command, runs: dict[str, Run]) -> None:
    for averaged in (True, False):
        given = ["overwrite=true"] if averaged else ["averaged=false", "overwrite=true"]
        assert command("sample", f"checkpoint={runs['plain'].path}", "n=4", "out=x.npz", *given)[0] == 0
        model = load(runs["plain"].path, averaged=averaged)
        expected = model.sample(4, generator=PerImageGenerator(0)).permute(0, 2, 3, 1).numpy()
        with np.load("x.npz") as arrays:
            assert np.array_equal(arrays["images"], expected)


def test_classes(command: Command, runs: dict[str, Run]) -> None:
    model = load(runs["classes"].path)
    cases = ("labels=[3,1]", [3, 1, 3, 1, 3]), ("labels=7", [7] * 5), ("labels=['3',1]", [3, 1, 3, 1, 3])
    for given, expected in (*cases, ("labels=null", None)):
        code, _, err = command(
            "sample", f"checkpoint={runs['classes'].path}", "n=5", "out=x.npz", "overwrite=true", "batch_size=2", given
        )
        assert code == 0, err
        labels = None if expected is None else torch.tensor(expected)
        images = model.sample(5, labels=labels, generator=PerImageGenerator(0))
        with np.load("x.npz") as arrays:
            assert np.array_equal(arrays["images"], images.permute(0, 2, 3, 1).numpy())
            drawn = PerImageGenerator(0).choices(5, model.spec.class_counts) if labels is None else labels
            assert arrays["labels"].tolist() == drawn.tolist()
            assert arrays["classes"].tolist() == list("0123456789")


def test_a_folder_of_files(command: Command, runs: dict[str, Run]) -> None:
    assert command("sample", f"checkpoint={runs['minimal'].path}", "n=3", "out=images")[0] == 0
    images = ["000000.png", "000001.png", "000002.png"]
    assert sorted(path.name for path in Path("images").iterdir()) == [*images, "settings.json"]
    expected = load(runs["minimal"].path).sample(3, generator=PerImageGenerator(0))
    with Image.open("images/000002.png") as picture:
        assert np.array_equal(np.asarray(picture), expected[2, 0].numpy())
    assert command("sample", f"checkpoint={runs['classes'].path}", "n=4", "labels=[0,5]", "out=by_class")[0] == 0
    assert sorted(str(path) for path in Path("by_class").glob("*/*.png")) == [
        "by_class/0/000000.png",
        "by_class/0/000002.png",
        "by_class/5/000001.png",
        "by_class/5/000003.png",
    ]


def test_evaluation_agrees_with_the_measurement_in_training(command: Command, runs: dict[str, Run]) -> None:
    run = runs["plain"]
    given = [f"checkpoint={run.path}", "metrics=classifier", "metrics.samples=80"]
    code, out, err = command("evaluate", *given)
    assert code == 0, err
    assert "  features classifier (digits, shipped), 80 samples, against digits train, averaged weights" in out
    assert re.search(r"fd_classifier +[\d.]+", out)
    results = json.loads((run.path / "evaluation.json").read_text())
    in_training = run.summary["metrics"]
    clouds = ["precision", "recall", "density", "coverage", "clipped_density", "clipped_coverage"]
    more = ["fd_infinity", "mind", *clouds, "inception_score", "authenticity"]
    names = ["fd_classifier", "kd_classifier", *(f"{name}_classifier" for name in more), "copies", "edge_width"]
    assert [result["name"] for result in results] == names, "the latter are not measured in training"
    assert re.search(r"precision_classifier +[\d.]+ \(held-out [\d.]+\) † .*k = 3", out)
    assert f"† {', '.join(f'{name}_classifier' for name in clouds)}: unreliable" in out
    assert re.search(r"fd_infinity_classifier +[\d.-]+ ± [\d.]+ .*†", out)
    assert re.search(r"inception_score_classifier +[\d.]+ ± [\d.]+", out)
    assert re.search(r"authenticity_classifier +[\d.]+ \(held-out 0[\d.]*\)", out)
    for result in results[:2]:
        before = in_training[f"val/{result['name']}"]
        assert result["value"] == before["value"], "same weights, seed and sample count: the same number"
        pace = {"seconds_per_sample", "seconds_alone", "device"}  # the clock's, not the model's
        beside = {"held_out", "held_out_images", "held_out_value"}
        assert result["protocol"].keys() == before["protocol"].keys() | beside | {"seconds_alone"}
        assert {k: v for k, v in result["protocol"].items() if k not in pace | beside} == {
            k: v for k, v in before["protocol"].items() if k not in pace
        }
        assert (result["checkpoint"], result["images_seen"]) == ("last.ckpt", before["images_seen"])

    # The same again replaces, on another machine too; anything else stands beside it.
    elsewhere = [result | {"protocol": result["protocol"] | {"device": "NVIDIA H200"}} for result in results]
    (run.path / "evaluation.json").write_text(json.dumps(elsewhere))
    for more, count in (([], 14), (["averaged=false"], 28), (["metrics.samples=60"], 42), (["seed=2"], 56)):
        assert command("evaluate", *given, *more)[0] == 0
        assert len(json.loads((run.path / "evaluation.json").read_text())) == count
    kept = json.loads((run.path / "evaluation.json").read_text())
    assert [(r["name"], r["value"]) for r in kept[:14]] == [(r["name"], r["value"]) for r in results]
    assert [result["protocol"]["weights"] for result in kept] == ["averaged"] * 14 + ["last"] * 14 + ["averaged"] * 28
    assert len({result["value"] for result in kept if result["name"] in names[:2]}) == 8


def test_repeats_give_mean_and_deviation_over_seeds(command: Command, runs: dict[str, Run]) -> None:
    run = runs["classes"]
    given = [f"checkpoint={run.path}", "metrics=classifier", "metrics.samples=40", "metrics.full=false"]
    for more in (["seed=5"], ["seed=6"], ["seed=7"], ["seed=5", "repeats=3"]):
        code, out, err = command("evaluate", *given, *more)
        assert code == 0, err
    assert "seed 5, mean of 3 seeds\n" in out
    shown = re.search(r"fd_classifier +[\d.]+ ± ([\d.]+)", out)
    results = json.loads((run.path / "evaluation.json").read_text())
    for name in ("fd_classifier", "kd_classifier"):
        *single, whole = [result for result in results if result["name"] == name]
        values = [result["value"] for result in single]
        assert len(values) == 3
        assert whole["value"] == pytest.approx(np.mean(values))
        assert whole["protocol"]["deviation"] == pytest.approx(np.std(values, ddof=1))
        assert (whole["protocol"]["seed"], whole["protocol"]["repeats"]) == (5, 3)
    errors = [
        r["protocol"]["deviation"] / 3**0.5
        for r in results
        if r["name"] == "fd_classifier" and "deviation" in r["protocol"]
    ]
    assert shown is not None
    assert float(shown[1]) == pytest.approx(errors[0], rel=0.06), "the standard error of the mean"


def test_of_several_checkpoints_a_broken_one_stops_no_other(
    command: Command, runs: dict[str, Run], tmp_path: Path
) -> None:
    content = runs["plain"].last.read_bytes()
    for folder in ("a", "b", "c"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.ckpt").write_bytes(content[: len(content) // 2] if folder == "b" else content)
    (tmp_path / "c" / "evaluation.json").write_text("[{")  # stops nothing
    given = ["metrics=classifier", "metrics.samples=40"]
    for folders, code in ((["b", "nowhere", "c", "a"], 2), (["a"], 0)):
        found, out, err = command("evaluate", f"checkpoint=[{','.join(f'{f}/x.ckpt' for f in folders)}]", *given)
        assert found == code, err
        assert "a/x.ckpt: 320 images seen" in out
        lines = [line for line in err.splitlines() if line.startswith(("checkpoint=", "error: "))]
        # What is no checkpoint is said before the others are measured.
        said = {
            "b": "cannot be read, it is cut short or damaged; ",
            "nowhere": "no such file",
        }
        beginnings = [f"checkpoint={folder}/x.ckpt: {said[folder]}" for folder in folders if folder in said]
        if code:
            beginnings.append("error: checkpoint: 2 of 4 not measured: b/x.ckpt, nowhere/x.ckpt")
        assert len(lines) == len(beginnings)
        assert all(line.startswith(beginning) for line, beginning in zip(lines, beginnings, strict=True))
    for folder in ("a", "c"):
        assert len(json.loads((tmp_path / folder / "evaluation.json").read_text())) == 14
    assert (tmp_path / "c" / "evaluation.json.1").read_text() == "[{"
    assert not (tmp_path / "b" / "evaluation.json").exists()


def test_a_run_without_an_average_is_measured_with_its_last_weights(command: Command, runs: dict[str, Run]) -> None:
    run = runs["minimal"]
    given = ["metrics=classifier", "metrics.samples=60", "averaged=true"]
    assert command("evaluate", f"checkpoint={run.last}", *given)[0] == 0
    results = json.loads((run.path / "evaluation.json").read_text())
    assert {result["protocol"]["weights"] for result in results} == {"last"}


@pytest.fixture(scope="module")
def explicit(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of a model with likelihood, on black and white digits, without measurements of samples."""
    root = tmp_path_factory.mktemp("explicit")
    config = configuration(
        "model=pixelcnn", "model.features=8", "model.blocks=1", "model.head=[8]", "data=digits",
        "data.binarize=dynamic", "logger=csv", "metrics=none", "trainer=cpu", "max_images=640", "every.samples=1000",
        "every.likelihood=320", f"logs={root}",
    )  # fmt: skip
    return train(config, "pixels", root / "run")


def test_the_likelihood_of_the_test_split(command: Command, explicit: Run) -> None:
    code, out, err = command("evaluate", f"checkpoint={explicit.path}", "metrics=none")
    assert code == 0, err
    assert re.search(
        r"^  of digits test, 180 images, binarised: white with probability .*, averaged weights$", out, re.M
    )
    assert re.search(r"^    test/bpd   = 0\.\d{3} ± 0\.\d{3} †$", out, re.M)
    assert re.search(r"^    test/nats  = \d+\.\d\d ± \d+\.\d\d †$", out, re.M)
    results = json.loads((explicit.path / "evaluation.json").read_text())
    assert [r["name"] for r in results] == ["test/bpd", "test/nats"]
    assert results[0]["value"] == pytest.approx(results[1]["value"] / 64 / np.log(2))
    data = results[0]["protocol"]
    assert (data["data"], data["images"], data["likelihood"], data["weights"]) == (
        "digits test", 180, "exact", "averaged",
    )  # fmt: skip

    # Each image's nats have a file of their own, which the board reads, and which the same measurement replaces.
    each = np.load(explicit.path / results[1]["each"])
    assert each.shape == (180,)
    assert each.mean() == pytest.approx(results[1]["value"], rel=1e-6)
    assert each.std(ddof=1) / 180**0.5 == pytest.approx(results[1]["protocol"]["standard_error"], rel=1e-5)
    (nats,) = [m for m in read_record(explicit.path).measured if m.name == "nats" and m.split == "test"]
    assert nats.of_each_image() == pytest.approx(each)
    assert command("evaluate", f"checkpoint={explicit.path}", "metrics=none")[0] == 0
    assert len(list((explicit.path / "each").iterdir())) == 1

    # Where they cannot be written, the means are.
    shutil.rmtree(explicit.path / "each")
    (explicit.path / "each").write_text("a file")
    code, out, err = command("evaluate", f"checkpoint={explicit.path}", "metrics=none")
    assert (code, "kept in" in out) == (0, True)
    assert f"{explicit.path / 'each'}: the values of each image cannot be written (File exists)" in err
    results = json.loads((explicit.path / "evaluation.json").read_text())
    assert ["each" in r for r in results] == [False, False]
    (explicit.path / "each").unlink()

    # The validation split: what the run measured last. Best was chosen by it.
    for which in ("last", "best"):
        path = explicit.path / "checkpoints" / f"{which}.ckpt"
        assert command("evaluate", f"checkpoint={path}", "metrics=none", "split=val", "batch_size=7")[0] == 0
    results = json.loads((explicit.path / "evaluation.json").read_text())
    assert len(results) == 6
    values = {(r["checkpoint"], r["name"]): r["value"] for r in results}
    for name in ("val/bpd", "val/nats"):
        assert values["last.ckpt", name] == pytest.approx(explicit.summary["metrics"][name]["value"], rel=1e-6)
        assert values["best.ckpt", name] == pytest.approx(explicit.summary["metrics"][name]["best"], rel=1e-6)
    assert explicit.summary["best"]["metric"] == "val/bpd"

    # The same again replaces, and a measurement of samples stands beside it.
    given = [f"checkpoint={explicit.path}", "metrics=classifier", "metrics.samples=20", "metrics.full=false"]
    assert command("evaluate", *given)[0] == 0
    names = [r["name"] for r in json.loads((explicit.path / "evaluation.json").read_text())]
    assert sorted(names) == sorted(
        [*["val/bpd", "val/nats"] * 2, "test/bpd", "test/nats", "fd_classifier", "kd_classifier"]
    )


def test_what_holds_of_all_numbers_is_said_once_and_a_bound_is_printed_as_one() -> None:
    from imago.cli import evaluate
    from imago.measures import Measurement, Protocol

    protocol = Protocol(
        data="mnist test",
        images=3000,
        binarization="none",
        weights="last",
        standard_error=0.25,
        caveat="none",
        likelihood="exact",
    )
    bound = replace(protocol, likelihood="lower_bound", caveat="from a bound")
    assert evaluate.table(
        [
            Measurement("test/nats", 1090.5, protocol),
            Measurement("test/bpd", 1.5, bound),
            Measurement("iw/nats", 80.0, replace(bound, draws=1000)),
            Measurement("elbo/part", 0.5, replace(protocol, likelihood="part")),
        ]
    ) == [
        "  of mnist test, 3,000 images, last weights",
        "    test/nats  = 1,090.50 ± 0.25",
        "    test/bpd   ≤ 1.500 ± 0.250 †",
        "    iw/nats    ≤ 80.00 ± 0.25 †   1,000 draws",
        "    elbo/part    0.50 ± 0.25",
        "  † test/bpd, iw/nats: from a bound",
    ]


def test_classes_of_an_older_checkpoint_are_drawn_as_the_data_have_them(
    command: Command, runs: dict[str, Run], tmp_path: Path
) -> None:
    checkpoint = torch.load(runs["classes"].last, weights_only=True)
    del checkpoint["data"], checkpoint["spec"]["class_names"], checkpoint["spec"]["class_counts"]
    torch.save(checkpoint, tmp_path / "old.ckpt")
    given = ["metrics=classifier", "metrics.samples=60", "metrics.full=false"]
    code, out, err = command("evaluate", "checkpoint=old.ckpt", *given)
    assert (code, "classes as in training" in out) == (0, True)
    assert "the checkpoint does not say what its data were" in err
    assert command("evaluate", f"checkpoint={runs['classes'].last}", *given)[0] == 0
    old, new = (json.loads((folder / "evaluation.json").read_text()) for folder in (tmp_path, runs["classes"].path))
    assert old[0]["value"] == next(
        r["value"] for r in new if r["name"] == "fd_classifier" and r["protocol"]["samples"] == 60
    )


def test_a_checkpoint_elsewhere_is_evaluated_there(command: Command, runs: dict[str, Run], tmp_path: Path) -> None:
    (tmp_path / "moved.ckpt").write_bytes(runs["plain"].last.read_bytes())
    assert command("evaluate", "checkpoint=moved.ckpt", "metrics=classifier", "metrics.samples=60")[0] == 0
    assert json.loads((tmp_path / "evaluation.json").read_text())[0]["checkpoint"] == "moved.ckpt"


MISTAKES: list[tuple[str, str, list[str], str]] = [
    ("evaluate", "", ["checkpoint=a", "logs/b"], r"^error: logs/b: cannot be read; write KEY=VALUE, .* KEY=\[A,B\]"),
    ("sample", "", [], r"checkpoint: missing; give checkpoint=logs/NAME"),
    (
        "sample",
        "",
        ["checkpoint=nowhere"],
        r"^error: checkpoint=nowhere: no such file or folder; a checkpoint is a run",
    ),
    (
        "sample",
        "",
        [f"checkpoint={ROOT / 'README.md'}"],
        r"^error: checkpoint=.*README\.md: no checkpoint of this program; ",
    ),
    (
        "evaluate",
        "",
        [f"checkpoint={ROOT / 'README.md'}"],
        r"README\.md: no checkpoint of this program; a checkpoint is",
    ),
    (
        "evaluate",
        "",
        ["checkpoint=."],
        r"^error: checkpoint=\.: a folder without checkpoints/last\.ckpt; a checkpoint is",
    ),
    (
        "sample",
        "plain",
        ["sampler=ddim"],
        r"^error: sampler=ddim: choose with model/sampler=ddim$",
    ),
    (
        "sample",
        "plain",
        ["out=images", "overwrite=true"],
        r"overwrite=true: out=images is a folder, which is continued",
    ),
    ("sample", "plain", ["overwrite=3"], r"overwrite=3: input should be a valid boolean"),
    ("sample", "plain", ["out=x.jpgg"], r"out=x\.jpgg: cannot write \.jpgg files; .*\.png"),
    ("sample", "plain", ["n=0"], r"n=0: input should be greater than 0"),
    ("sample", "plain", ["n=many"], r'n="many": input should be a valid integer'),
    ("sample", "plain", ["seed=-1"], r"seed=-1: "),
    ("sample", "plain", ["averaged=3"], r"averaged=3: input should be a valid boolean"),
    ("sample", "plain", ["numer=3"], r"numer=3: no such setting; (did you mean \w+\? )?known here are .*labels"),
    ("sample", "plain", ["+numer=3"], r"numer: no such setting"),
    ("sample", "plain", ["out=x.jpg"], r"out=x\.jpg: cannot write \.jpg files; .*\.png"),
    ("sample", "plain", ["out=no/x.png"], r"out=no/x\.png: there is no folder no"),
    ("sample", "plain", ["labels=3"], r"labels given to an unconditional model"),
    (
        "sample",
        "classes",
        ["labels=[0,cat]"],
        r"labels=cat: no class .*; they are 0, 1, .*, 9; give one, or a number 0\.\.9",
    ),
    ("sample", "plain", ["labels=cat"], r"labels given to an unconditional model"),
    ("sample", "classes", ["labels=10"], r"labels from 10 to 10: .* classes 0\.\.9"),
    ("sample", "classes", ["labels=[0,-2]"], r"labels=\[0, -2\]: "),
    ("sample", "classes", ["labels=[]"], r"labels=\[\]: "),
    ("sample", "plain", ["model/sampler=ddim"], r"model/sampler: a GAN has no sampler; leave it out"),
    ("sample", "plain", ["device=abacus"], r"device=abacus: .*choose another one"),
    ("evaluate", "", [], r"checkpoint: missing; give checkpoint=logs/NAME"),
    ("evaluate", "plain", ["metrics=fid"], r"metrics=fid: no such choice; .*choose one of auto"),
    ("evaluate", "plain", ["metrics.sample=3"], r"metrics\.sample=3: no such setting"),
    ("evaluate", "plain", ["metrics=classifier", "metrics.samples=1"], r"metrics\.samples=1: input should be greater"),
    ("evaluate", "plain", ["metrics=none"], r"metrics: nothing can be measured; choose metrics=classifier"),
    ("evaluate", "plain", ["metrics=inception", "metrics.weights=no.pth"], r"metrics\.weights=no\.pth: there is no"),
    ("evaluate", "plain", ["split=train"], r"split=\"train\": .*'val' or 'test'"),
    ("evaluate", "plain", ["batch_size=0"], r"batch_size=0: input should be greater than 0"),
    ("evaluate", "", ["checkpoint=[]"], r"checkpoint=\[\]: "),
    ("evaluate", "plain", ["repeats=0"], r"repeats=0: input should be greater than 0"),
    ("evaluate", "plain", ["importance=9"], r"importance=9: a GAN has no importance-weighted .*leave importance=null"),
    ("evaluate", "plain", ["bound_steps=9"], r"=9: a GAN has no sum .* ddpm, masked_diffusion; leave bound_steps=null"),
    ("evaluate", "plain", ["probability_flow=1e-4"], r"=0.0001: a GAN has no .* are ddpm, flow_matching; leave prob"),
    ("evaluate", "plain", ["n=3"], r"n=3: no such setting"),
]


@pytest.mark.parametrize(("script", "run", "given", "message"), MISTAKES, ids=[f"{m[0]} {m[2]}" for m in MISTAKES])
def test_a_mistake_ends_with_one_message(
    command: Command, runs: dict[str, Run], script: str, run: str, given: list[str], message: str
) -> None:
    code, _, err = command(script, *([f"checkpoint={runs[run].path}"] if run else []), *given)
    assert code == 2
    assert "Traceback" not in err
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert re.search(message, errors[0]), errors[0]
    assert not list(Path().glob("*.png"))


OTHERS = [
    (["binarize"], "threshold", "1x8x8, 2 levels, 10 classes now, 1x8x8, 256 levels, 10 classes then"),
    (
        ["source", "_target_"],
        "imago.data.sources.Bars",
        "1x4x4, 2 levels now, 1x8x8, 256 levels, 10 classes then",
    ),
]


@pytest.mark.parametrize(("key", "value", "message"), OTHERS)
def test_other_images_than_the_models_are_refused(
    command: Command, runs: dict[str, Run], tmp_path: Path, key: list[str], value: str, message: str
) -> None:
    """Other levels; another shape and no classes: the message has both."""
    checkpoint: dict[str, Any] = torch.load(runs["plain"].last, weights_only=True)
    node = checkpoint["config"]["data"]
    for name in key[:-1]:
        node = node[name]
    node[key[-1]] = value
    torch.save(checkpoint, tmp_path / "changed.ckpt")
    code, _, err = command("evaluate", "checkpoint=changed.ckpt", "dir=.")
    assert code == 2
    assert re.search(r"data: \w+ is not what the run was trained on: its images are " + message, err)
    assert not (tmp_path / "evaluation.json").exists()


@pytest.mark.parametrize("script", ["sample", "evaluate"])
def test_help_is_readable(command: Command, script: str) -> None:
    code, out, _ = command(script, "--help")
    assert code == 0
    assert f"python src/{script}.py checkpoint=" in out
    assert "averaged: true" in out


RESULT = {"name": "test/bpd", "value": 1.0, "protocol": {"images": 3, "caveat": "none"}}
DAMAGED = {
    "number": "[1]",
    "cut": '[{"na',
    "mapping": "{}",
    "text": '""',
    "deep": "[" * 100_000,
    "protocol": '[{"name": "x", "protocol": []}]',
    "encoding": b"\xff\xfe[",
    "mixed": json.dumps([3, RESULT]),
    "folder": None,
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_what_cannot_be_read_is_moved_aside_before_anything_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    from imago.cli.evaluate import Results

    file, content = tmp_path / "evaluation.json", DAMAGED[kind]
    if content is None:
        file.mkdir()
    else:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    (tmp_path / "evaluation.json.1").write_text("an older one")
    results = Results(tmp_path / "checkpoints" / "last.ckpt")
    said = r"note: .*evaluation\.json: cannot be read, and is evaluation\.json\.2 now.*\n"
    assert re.fullmatch(said, capsys.readouterr().err)
    assert results.add([RESULT | {"name": "new"}]) == f"kept in {file}"
    assert [r["name"] for r in json.loads(file.read_text())] == ["test/bpd"] * (kind == "mixed") + ["new"]
    aside = tmp_path / "evaluation.json.2"
    assert aside.is_dir() if content is None else aside.read_bytes() in (content, str(content).encode())
    assert capsys.readouterr().err == ""


def test_several_measure_one_run_at_once_and_lose_nothing(tmp_path: Path) -> None:
    from imago.cli.evaluate import Results

    def measure(number: int) -> None:
        results = Results(tmp_path / "last.ckpt")
        for k in range(5):
            results.add([RESULT | {"name": f"{number}-{k}"}])

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(measure, range(8)))
    names = {result["name"] for result in json.loads((tmp_path / "evaluation.json").read_text())}
    assert names == {f"{number}-{k}" for number in range(8) for k in range(5)}


def test_where_nothing_can_be_written_numbers_are_printed(
    command: Command, runs: dict[str, Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    from imago.cli import evaluate

    def full(path: Path, text: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    def read_only(path: Path) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    given = [f"checkpoint={runs['minimal'].path}", "metrics=classifier", "metrics.samples=40", "metrics.full=false"]
    for function, fails, code in (("locked", read_only, 0), ("write_text", full, 1)):
        with monkeypatch.context() as patch:
            patch.setattr(evaluate, function, fails)
            found, out, err = command("evaluate", *given)
        assert found == code, err
        assert re.search(r"fd_classifier +[\d.]+", out)
        why = r"^(note|error): .*evaluation\.json: cannot be written \(.*\); results are printed alone$"
        assert len(re.findall(why, err, re.MULTILINE)) == 1
        assert "Traceback" not in err


def test_what_was_measured_before_an_interruption_is_kept(
    command: Command, runs: dict[str, Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    from imago.training.callbacks import quality

    measure, seeds = quality.measure, []

    def interrupted(metrics: Any, model: Any, seed: int, *rest: Any, **named: Any) -> Any:
        seeds.append(seed)
        if seed == 43:
            os.kill(os.getpid(), signal.SIGTERM)
        return measure(metrics, model, seed, *rest, **named)

    monkeypatch.setattr(quality, "measure", interrupted)
    given = [f"checkpoint={runs['minimal'].path}", "metrics=classifier", "metrics.samples=40", "metrics.full=false"]
    code, out, _ = command("evaluate", *given, "seed=41", "repeats=9")
    assert (code, seeds) == (143, [41, 42, 43])
    assert "mean of 2 seeds" in out
    kept = json.loads((runs["minimal"].path / "evaluation.json").read_text())
    names = [result["name"] for result in kept if result["protocol"].get("repeats") == 2]
    assert names == ["fd_classifier", "kd_classifier"]
