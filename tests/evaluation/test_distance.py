"""distance.py: two sets of images of any origin, measured as samples are against a training split."""

import json
import re
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch_fidelity import calculate_metrics
from torchmetrics.image.fid import FrechetInceptionDistance

from helpers import Command
from imago.cli.distance import with_keys
from imago.data import ImageDataModule
from imago.data.sources import Digits
from imago.evaluation import Classifier, choices


@pytest.fixture(scope="module")
def digits() -> ImageDataModule:
    data = ImageDataModule(Digits())
    data.prepare()
    return data


@pytest.fixture
def places(tmp_path: Path, digits: ImageDataModule) -> Path:
    """The test images of digits as an .npz, a folder and a zip file; noise in colour, larger, as a folder."""
    (tmp_path / "data").mkdir()
    images = digits.test.images
    np.savez(tmp_path / "test.npz", images=images.permute(0, 2, 3, 1).numpy())
    (tmp_path / "test").mkdir()
    for k, image in enumerate(images):
        Image.fromarray(image[0].numpy()).save(tmp_path / "test" / f"{k}.png")
    shutil.make_archive(str(tmp_path / "test"), "zip", tmp_path / "test")
    (tmp_path / "noise").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (30, 9, 8, 3), np.uint8)
    for k, picture in enumerate(pixels):
        Image.fromarray(picture).save(tmp_path / "noise" / f"{k}.png")
    return tmp_path


def values(out: Path) -> dict[str, float]:
    return {m["name"]: m["value"] for m in json.loads(out.read_text())["measurements"]}


def test_the_distance_is_torchmetrics_of_the_same_features(
    script: Command, places: Path, digits: ImageDataModule
) -> None:
    code, out, err = script("distance", "test.npz", "digits", "out=x.json")
    assert code == 0, err
    extractor = Classifier().build(digits, torch.device("cpu"), None, print)
    theirs = FrechetInceptionDistance(extractor, normalize=False, input_img_size=(1, 8, 8)).set_dtype(torch.float64)
    theirs.update(digits.train.images, real=True)
    theirs.update(digits.test.images, real=False)
    found = values(Path("x.json"))
    assert found["fd_classifier"] == pytest.approx(float(theirs.compute()), rel=1e-4)
    clouds = ["precision", "recall", "density", "coverage", "clipped_density", "clipped_coverage"]
    names = ["fd_infinity", "mind", *clouds, "inception_score", "authenticity"]
    names = [f"{name}_classifier" for name in ("fd", "kd", *names)]
    assert list(found) == [*names, "copies", "edge_width"]
    assert "a: test.npz, 180 images of 1x8x8\nb: digits train, 1,437 images of 1x8x8\n" in out
    kept = json.loads(Path("x.json").read_text())
    assert kept["measurements"][0]["protocol"]["reference"] == "digits train"
    assert kept["a"]["images"] == kept["measurements"][0]["protocol"]["samples"] == 180
    assert script("distance", "digits:test", "digits", "out=x.json")[0] == 0, "its own file is written anew"
    again = values(Path("x.json"))
    assert again.pop("inception_score_classifier") > 1, "of other splits"
    assert again.pop("fd_infinity_classifier") < again["fd_classifier"], "of other parts"
    assert again == pytest.approx({name: found[name] for name in again}, rel=1e-6), "the same images, named otherwise"


@pytest.mark.parametrize("a", ["test", "test.zip"])
def test_the_same_images_have_no_distance_and_that_is_said(script: Command, places: Path, a: str) -> None:
    code, out, err = script("distance", f"a={a}", "b=digits:test", "out=x.json", "metrics=classifier")
    assert code == 0, err
    assert "\nwarning: a and b are the same images\n" in out
    found = values(Path("x.json"))
    assert found["fd_classifier"] == pytest.approx(0, abs=1e-6)
    assert found["precision_classifier"] == found["recall_classifier"] == found["copies"] == 1


def test_the_fid_of_two_folders_is_torch_fidelitys(script: Command, places: Path, inception_file: str) -> None:
    """Of gray images of one size and of coloured ones of another, which the network resizes."""
    for name in ("test", "noise"):
        for picture in sorted((places / name).iterdir())[12:]:
            picture.unlink()
    given = ["metrics=inception", f"metrics.weights={inception_file}", "metrics.subset_size=5", "out=x.json"]
    code, out, err = script("distance", "noise", "test", *given)
    assert code == 0, err
    assert "a: noise, 12 images of 3x9x8\nb: test, 12 images of 1x8x8\ninception sees 299x299: resized" in out
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of its loader's processes
        theirs = calculate_metrics(
            input1="noise", input2="test", fid=True, feature_extractor_weights_path=inception_file, cuda=False,
            verbose=False, cache=False,
        )  # fmt: skip
    assert values(Path("x.json"))["fid"] == pytest.approx(theirs["frechet_inception_distance"], rel=1e-4)


MISTAKES = [
    (["test"], r"^error: b: missing; give b=VALUE"),
    (["test", "digits", "noise"], r"^error: noise: a third set of images"),
    (
        ["tset", "digits"],
        r"^error: a=tset: no such folder or file \(.*, and no data set, which are bars, cifar10",
    ),
    (["test", "digits:all"], r"^error: b=digits:all: no such split; they are digits:train, digits:val, digits:test"),
    (["test", "test", "metrics=classifier"], r"^error: metrics=classifier: test has no labels"),
    (["test", "test"], r"^error: metrics=auto: sample quality is not measured\. .*test has no labels.*\n$"),
    (["test", "test", "metrics=none"], r"^error: metrics: nothing can be measured"),
    (["noise", "digits"], r"^error: metrics: noise are 9x8 and digits train 8x8 .* give size=\[HEIGHT,WIDTH\]"),
    (["noise", "digits", "size=8"], r"^error: metrics: noise are in colour, and .* give channels=1"),
    (["mixed", "digits"], r"^error: a=mixed: size=null: .* Set size=\[HEIGHT,WIDTH\], and fit to crop"),
    (["broken", "digits"], r"^error: a=broken: 1 unreadable image file:\n  b\.png"),
    (["broken", "digits", "on_bad=skip"], r"^error: a=broken: 1 images; a distance needs 2"),
    (["statistics.npz", "digits"], r"^error: .*statistics\.npz: .*it holds mu, sigma, and no array called images"),
    (["floats.npz", "digits"], r"^error: .*floats\.npz: .* are float64 \(3, 8, 8, 1\); expected uint8"),
    (["text.npz", "digits"], r"^error: .*text\.npz: no \.npz file .*it is no archive"),
    (["test.npz", "digits", "metrics.samples=181"], r"^error: metrics\.samples=181: test\.npz has 180 images"),
    (["test.npz", "digits", "out=text.npz"], r"^error: out=text\.npz: is there already"),
]


@pytest.mark.parametrize(("given", "said"), MISTAKES, ids=[" ".join(given) for given, _ in MISTAKES])
def test_a_mistake_is_one_message(script: Command, places: Path, given: list[str], said: str) -> None:
    for folder, sizes in {"mixed": (8, 9), "broken": (8,)}.items():
        (places / folder).mkdir()
        for size in sizes:
            Image.new("L", (size, size)).save(places / folder / f"{size}.png")
    (places / "broken" / "b.png").write_bytes(b"no picture")
    (places / "text.npz").write_text("text")
    np.savez("statistics.npz", mu=np.zeros(2), sigma=np.eye(2))
    np.savez("floats.npz", images=np.zeros((3, 8, 8, 1)))
    code, _, err = script("distance", *given)
    assert code == 2
    last = err[err.index("error: ") :]
    assert re.search(said, last, re.DOTALL), last
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        (["A", "B"], ["a='A'", "b='B'"]),
        (["b=B", "A", "out=x"], ["b=B", "a='A'", "out=x"]),
        (["--cfg", "job", "it's", "B"], ["--cfg", "job", "a='it\\'s'", "b='B'"]),
        (["lr=1", "B"], ["a='lr=1'", "b='B'"]),
        (["C:\\a", "B"], ["a='C:\\a'", "b='B'"]),
    ],
)
def test_two_words_are_a_and_b(
    given: list[str], meant: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lr=1").mkdir()  # a folder that is there is no setting
    assert with_keys(given) == meant


def test_a_labelled_npz_has_a_classifier_of_its_own(
    script: Command, places: Path, digits: ImageDataModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choices, "_FIRST_USE_IMAGES", 20_000)
    images = digits.test.images.permute(0, 2, 3, 1).numpy()
    np.savez("labelled.npz", images=images, labels=digits.test.labels.numpy(), classes=np.array(list("abcdefghij")))
    code, out, err = script("distance", "digits:val", "labelled.npz", "out=x.json")
    assert code == 0, err
    assert "classifier of labelled trained on this machine" in out
    assert json.loads(Path("x.json").read_text())["b"]["images"] == 180, "held-out images are of the reference too"
