"""compress.py on small runs: what it writes and says, and what a wrong file or checkpoint is answered with."""

import re
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from helpers import TINY, Command, configuration
from imago.checkpoints import fingerprint, load
from imago.compression import codes, container, pictures
from imago.compression.codes import decode, encode
from imago.config import build
from imago.data.base import drawn
from imago.images import to_bytes
from imago.pictures import to_pillow
from imago.runs import Run
from imago.training.run import train


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    root = tmp_path_factory.mktemp("runs")
    common = ["data=digits", "logger=csv", "metrics=none", "trainer=cpu", "max_images=160", f"logs={root}"]
    chosen = {
        "made": ["model=made", *TINY["made"], "data.binarize=dynamic"],
        "classes": ["model=pixelcnn", *TINY["pixelcnn"], "conditional=true"],
        "vae": ["model=vae", *TINY["vae"]],
        "gan": ["model=gan", *TINY["gan"], "callbacks=minimal"],
    }
    return {name: train(configuration(*common, *given), name, root / name) for name, given in chosen.items()}


def words(text: str) -> dict[str, int]:
    """The first number of every line of the table."""
    return {m[1].strip(): int(m[2].replace(",", "")) for m in re.finditer(r"^ {2,4}(\S.*?) {2,}([\d,]+) ", text, re.M)}


@pytest.mark.parametrize("name", ["made", "classes", "vae"])
def test_the_test_images_take_the_bytes_that_are_told_and_come_back(
    script: Command, runs: dict[str, Run], name: str
) -> None:
    code, out, err = script("compress", f"checkpoint={runs[name].path}", "out=x.imago", "images=60")
    assert code == 0, err
    assert re.search(r"^digits test, 60 images: coding and decoding them takes about \d+ s$", out, re.M)
    size = Path("x.imago").stat().st_size
    assert f"x.imago: {size:,} bytes, decoded again: every byte of the images is the same" in out
    told = words(out)
    kind = {"made": "MADE", "classes": "PixelCNN", "vae": "VAE"}[name]
    assert told[f"{kind}, this file"] == size
    header = int(re.search(r"([\d,]+) bytes say what it is", out)[1])
    begin = re.search(r"([\d,]+) are random bits", out)
    assert (begin is not None) == (name == "vae")
    expected = told[f"−log2 p of {kind}"]
    assert abs(size - header - (int(begin[1]) if begin else 0) - expected) < 0.02 * expected + 8
    assert {"PNG, one picture of all", "WebP, one picture of all", "PNG, a file for each"} <= told.keys()

    code, out, err = script("compress", f"checkpoint={runs[name].path}", "decode=x.imago")
    assert code == 0, err
    assert "x.npz: 60 images of digits test, every byte as it was coded" in out
    data = build(
        configuration("data=digits", f"data.binarize={'dynamic' if name == 'made' else 'null'}")["data"], "data"
    )
    data.prepare()
    part = drawn(data.test, "test", 60)
    with np.load("x.npz") as arrays:
        images = torch.from_numpy(arrays["images"]).permute(0, 3, 1, 2)
        assert torch.equal(images, to_bytes(part.images, data.spec.levels))
        assert arrays.files == (["images", "labels", "classes"] if name == "classes" else ["images"])
        if name == "classes":
            assert arrays["labels"].tolist() == part.labels.tolist()
    code, _, err = script("compress", f"checkpoint={runs[name].path}", "decode=x.imago")
    assert (code, "x.npz: is there already; give another name, or replace it with overwrite=true" in err) == (2, True)
    assert script("compress", f"checkpoint={runs[name].path}", "decode=x.imago", "out=pictures")[0] == 0
    assert len(list(Path("pictures").rglob("*.png"))) == 60


def test_without_a_place_the_file_lies_in_the_run_and_is_written_anew(script: Command, runs: dict[str, Run]) -> None:
    for _ in range(2):
        assert script("compress", f"checkpoint={runs['made'].best}", "split=val", "images=20", "averaged=false")[0] == 0
    file = runs["made"].path / "val.imago"
    content = file.read_bytes()
    assert b'"averaged":false' in content
    assert script("compress", f"checkpoint={runs['made'].best}", f"decode={file}", "out=x.npz")[0] == 0, "as it says"
    Path("mine.txt").write_text("mine")
    code, _, err = script("compress", f"checkpoint={runs['made'].path}", "out=mine.txt")
    assert (code, "out=mine.txt: is there already, and no file of this command's" in err) == (2, True)


def test_a_file_says_how_frequent_the_classes_were_taken_to_be(script: Command, runs: dict[str, Run]) -> None:
    """A checkpoint of version 0.1 does not know it, and its data do."""
    content = torch.load(runs["classes"].last, weights_only=True)
    content["spec"]["class_counts"] = []
    Path("old").mkdir(exist_ok=True)
    torch.save(content, "old/x.ckpt")
    code, _, err = script("compress", "checkpoint=old/x.ckpt", "out=c.imago", "images=20")
    assert code == 0, err
    assert sum(container.read(Path("c.imago"))[0].classes) == 1437
    code, _, err = script("compress", "checkpoint=old/x.ckpt", "decode=c.imago", "out=c.npz")
    assert code == 0, err


def damage(content: bytes, how: str) -> bytes:
    middle = content.index(b"\n", 20) + 40
    return {
        "cut": content[:-4],
        "short": content[:30],
        "header": content.replace(b'"device":"cpu"', b'"device":"cqu"'),
        "changed": content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
        "other": b"PK" + content,
        "empty": b"",
    }[how]


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("cut", r"cut short or damaged, its checksum does not fit; get another copy"),
        ("short", r"cut short or damaged"),
        ("changed", r"cut short or damaged"),
        ("header", r"cut short or damaged"),
        ("other", r"holds no coded images; give a file that compress wrote"),
        ("empty", r"holds no coded images"),
    ],
)
def test_a_damaged_file_is_told_in_one_line(
    script: Command, runs: dict[str, Run], coded: bytes, how: str, said: str
) -> None:
    Path("x.imago").write_bytes(damage(coded, how))
    code, out, err = script("compress", f"checkpoint={runs['made'].path}", "decode=x.imago")
    assert (code, out) == (2, "")
    assert re.fullmatch(rf"error: decode=x\.imago: {said}.*\n", err)
    assert not Path("x.npz").exists()


@pytest.fixture(scope="module")
def coded(runs: dict[str, Run]) -> bytes:
    """Twenty images of the digits, coded by a run of MADE."""
    model = load(runs["made"].path)
    images = (torch.arange(20 * 64).view(20, 1, 8, 8) % 3 == 0).to(torch.uint8)
    found = encode(model, images, None, 20, lambda done, total: None)
    header = container.Header(
        model="MADE", weights=fingerprint(model), averaged=True, data="stripes", shape=(1, 8, 8, 2),
        batches=container.runs_of(found.sizes), device="cpu", torch=torch.__version__,
        images=container.digest_of(images, None),
    )  # fmt: skip
    file = runs["made"].path / "stripes.imago"
    container.write(file, header, found.words)
    return file.read_bytes()


def test_another_checkpoint_is_told_and_so_is_another_machine(
    script: Command, runs: dict[str, Run], coded: bytes
) -> None:
    Path("x.imago").write_bytes(coded)
    code, _, err = script("compress", f"checkpoint={runs['vae'].path}", "decode=x.imago")
    assert code == 2
    assert re.search(
        r"has not coded x\.imago; that was a MADE of weights \w{16}, this is a VAE of \w{16}; give the", err
    )
    Path("y.imago").write_bytes(coded)
    header, words = container.read(Path("y.imago"))
    container.write(Path("x.imago"), replace(header, device="cuda"), words)
    code, _, err = script("compress", f"checkpoint={runs['made'].path}", "decode=x.imago", "device=cpu")
    assert (code, "was coded with device=cuda, whose rounding a decoder needs; give the same" in err) == (2, True)
    container.write(Path("x.imago"), replace(header, images=header.images[::-1]), words)
    code, _, err = script("compress", f"checkpoint={runs['made'].path}", "decode=x.imago")
    assert (code, "this machine rounds otherwise than the one that coded them with PyTorch" in err) == (2, True)
    assert not Path("x.npz").exists()


@pytest.mark.parametrize("coder", [1, 2])
def test_the_number_of_threads_has_no_say(runs: dict[str, Run], monkeypatch: pytest.MonkeyPatch, coder: int) -> None:
    """Sums are rounded otherwise by several threads, so that both sides have to compute with one."""
    seen = []
    for name in ("push_values", "pop_values"):
        whole = getattr(codes, name)
        monkeypatch.setattr(codes, name, lambda *given, do=whole: seen.append(torch.get_num_threads()) or do(*given))
    images = (torch.arange(8 * 64).view(8, 1, 8, 8) % 5).to(torch.uint8)
    model = load(runs["vae"].path)
    try:
        torch.set_num_threads(coder)
        found = encode(model, images, None, 8, lambda done, total: None)
        torch.set_num_threads(3 - coder)
        back, _ = decode(model, found.words, found.sizes, lambda done, total: None)
        assert torch.get_num_threads() == 3 - coder
    finally:
        torch.set_num_threads(1)
    assert torch.equal(back, images)
    assert set(seen) == {1}


@pytest.mark.parametrize("within", ["encode", "decode"])
@pytest.mark.parametrize("older", [False, True])
def test_a_signal_leaves_the_older_file_or_none(
    script: Command, runs: dict[str, Run], monkeypatch: pytest.MonkeyPatch, within: str, older: bool
) -> None:
    """The end of a job, in the middle of the work."""
    given = ["compress", f"checkpoint={runs['made'].path}", "out=x.imago", "images=20"]
    if older:
        assert script(*given)[0] == 0
    before = {path.name: path.read_bytes() for path in Path().iterdir()}
    whole = getattr(codes, within)

    def interrupted(*arguments: Any) -> Any:
        return whole(*arguments[:-1], lambda done, total: done * 2 < total or signal.raise_signal(signal.SIGTERM))

    monkeypatch.setattr(codes, within, interrupted)
    handler = signal.getsignal(signal.SIGTERM)
    code, out, err = script(*given)
    assert (code, "Traceback" in err, "bytes" in out) == (143, False, False)
    assert {path.name: path.read_bytes() for path in Path().iterdir()} == before
    assert signal.getsignal(signal.SIGTERM) == handler


@pytest.mark.parametrize(
    ("name", "given", "said"),
    [
        ("gan", [], r"checkpoint: a GAN cannot code images: .* models that do are .*, pixelcnn, .*vae"),
        ("made", ["overwrite=true"], r"overwrite=true: is for decode=FILE"),
        ("made", ["decode=nowhere.imago"], r"decode=nowhere\.imago: cannot be read \(No such file"),
        ("made", ["decode=."], r"decode=\.: cannot be read \(Is a directory\)"),
        ("made", ["batch_size=0"], r"batch_size=0: input should be greater than 0"),
        ("made", ["split=train"], r"split=\"train\": input should be 'val' or 'test'"),
    ],
)
def test_mistakes(script: Command, runs: dict[str, Run], name: str, given: list[str], said: str) -> None:
    code, out, err = script("compress", f"checkpoint={runs[name].path}", *given)
    assert (code, out) == (2, "")
    assert re.search(rf"^error: {said}", err, re.M)


def test_pictures_hold_the_images_and_what_cannot_be_written_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    written = []
    monkeypatch.setattr(pictures, "to_pillow", lambda image: written.append(image) or to_pillow(image))
    images = torch.randint(2, (10, 1, 5, 7), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    found = pictures.sizes(images, 2, lambda done, total: None)
    assert list(found) == [*(f"{name}, one picture of all" for name in pictures.formats()), "PNG, a file for each"]
    sheet = written[0]
    assert sheet.shape == (1, 4 * 5, 3 * 7)
    assert torch.equal(sheet[:, 5:10, 7:14], 255 * images[4]), "row by row, the rest black"
    monkeypatch.setitem(sys.modules, "pillow_jxl", None)
    assert pictures.formats() == ["PNG", "WebP"]
