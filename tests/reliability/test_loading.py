"""Files of others are refused in one line, and nothing of them is run, resolved, fetched, opened or blown up.

Each payload is tried with everything that reads checkpoints. Afterwards no marker may be there, no file may be new, no
server may have been asked, and no memory may have been taken.
"""

import contextlib
import copy
import http.server
import json
import os
import pickle
import random
import re
import resource
import struct
import sys
import threading
import time
import typing
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import imago
from helpers import TINY, Command, configuration
from imago.board.checkpoint import peek
from imago.checkpoints import load, read
from imago.config import arguments_of, build
from imago.data import data_of, folder_data
from imago.data.places import remember
from imago.data.restore import SOURCES
from imago.errors import UserError
from imago.images import ImageSpec
from imago.progress import progress_bar
from imago.training.run import announce

SECRET = "0123456789secret"
SPEC = ImageSpec(1, 8, 8, 256, 10)
Content = dict[str, Any]


class Place:
    """Where payloads are tried: a marker that must not appear, and a server that must not be asked."""

    def __init__(self, folder: Path, server: http.server.HTTPServer, asked: list[str]) -> None:
        self.folder, self.marker, self.asked = folder, folder / "marker", asked
        self.url = f"http://127.0.0.1:{server.server_port}"

    def files(self) -> set[str]:
        return {str(path) for path in self.folder.rglob("*")}


@pytest.fixture(scope="module")
def good() -> Content:
    """The content of a checkpoint of a GAN of one update's age, as train.py writes it."""
    config = configuration("model=gan", *TINY["gan"], "data=digits", "metrics=none", "logger=none", "trainer=cpu")
    config["data"]["dir"] = "data"
    model = build(config["model"], "model", spec=SPEC)
    weights = model.state_dict()
    progress = {"images_seen": 64, "batches_seen": 1, "updates": 1, "terms": {"loss": [torch.ones(()), 1]}}
    averaged = {name: value for name, value in weights.items() if name.startswith("generator")}
    return {
        "config": config,
        "spec": SPEC.as_dict(),
        "progress": progress,
        "state_dict": weights,
        "callbacks": {"EMA": {"weights": averaged}},
    }


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[http.server.HTTPServer, list[str]]]:
    asked: list[str] = []

    class Listener(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

        def log_message(self, *arguments: Any) -> None: ...

    found = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Listener)
    threading.Thread(target=found.serve_forever, daemon=True).start()
    yield found, asked
    found.shutdown()
    found.server_close()


@pytest.fixture
def place(tmp_path: Path, server: Any, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    monkeypatch.delenv("IMAGO_DATA_DIR", raising=False)
    server[1].clear()
    return Place(tmp_path, *server)


@pytest.fixture(scope="module", autouse=True)
def no_memory_is_taken() -> Iterator[None]:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1_500_000  # KiB


def stored(content: Any) -> Path:
    path, limit = Path("evil.ckpt"), sys.getrecursionlimit()
    sys.setrecursionlimit(20_000)  # for what is nested deep
    try:
        torch.save(content, path)
    finally:
        sys.setrecursionlimit(limit)
    return path


def repacked(
    pickled: bytes, source: Path, *, method: int = zipfile.ZIP_STORED, more: dict[str, bytes] | None = None
) -> Path:
    """A checkpoint with another pickle, or more in it."""
    path = Path("repacked.ckpt")
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(path, "w", method) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, pickled if entry.filename.endswith("/data.pkl") else old.read(entry))
        for name, content in (more or {}).items():
            new.writestr(name, content)
    return path


def pickle_of(source: Path) -> bytes:
    with zipfile.ZipFile(source) as archive:
        return archive.read(next(name for name in archive.namelist() if name.endswith("/data.pkl")))


def refused(path: Path, place: Place) -> str:
    """Try everything that reads a checkpoint; the message of the first that refuses it."""
    before, began = place.files(), time.perf_counter()

    def measured() -> None:
        content = read(path)
        load(path)
        data_of(content, None)

    with pytest.raises(UserError) as error:
        measured()
    assert time.perf_counter() - began < 20
    assert not place.marker.exists()
    assert place.files() == before
    assert place.asked == []
    message = str(error.value)
    assert "\n" not in message
    assert message.isprintable()
    assert len(message) < 900
    assert SECRET not in message
    return message


# --- code in pickles --------------------------------------------------------------------------------------------------

CODE = "open({!r}, 'w')"
CALLS: dict[str, tuple[str, Callable[[str], tuple[Any, ...]]]] = {
    "os.system": ("os system", lambda marker: (f"touch {marker}",)),
    "posix.system": ("posix system", lambda marker: (f"touch {marker}",)),
    "eval": ("builtins eval", lambda marker: (CODE.format(marker),)),
    "exec": ("builtins exec", lambda marker: (CODE.format(marker),)),
    "compile": ("builtins compile", lambda marker: (CODE.format(marker), "x", "exec")),
    "open": ("builtins open", lambda marker: (marker, "w")),
    "python2's eval": ("__builtin__ eval", lambda marker: (CODE.format(marker),)),
    "getattr": ("builtins getattr", lambda marker: ("x", "upper")),
    "import": ("importlib import_module", lambda marker: ("antigravity",)),
    "run a module": ("runpy run_path", lambda marker: (marker,)),
    "a process": ("subprocess Popen", lambda marker: (["touch", marker],)),
    "a file": ("pathlib PosixPath.touch", lambda marker: (marker,)),
    "a terminal": ("pty spawn", lambda marker: (["touch", marker],)),
    "timeit": ("timeit timeit", lambda marker: (CODE.format(marker),)),
    "sympy": ("sympy sympify", lambda marker: (CODE.format(marker),)),
    "hub": ("torch.hub load", lambda marker: ("someone/something", "model")),
    "a program": ("torch.jit load", lambda marker: (marker,)),
    "unsafe torch": ("torch load", lambda marker: (marker,)),
    "numpy": ("numpy load", lambda marker: (marker, None, True)),
    "a partial": ("functools partial", lambda marker: (print, marker)),
    "a model of ours": ("imago.checkpoints load", lambda marker: (marker,)),
    "hydra": ("hydra.utils instantiate", lambda marker: ({"_target_": "os.mkdir", "path": marker},)),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_pickle_calls_nothing(name: str, good: Content, place: Place) -> None:
    """Alone, in the middle of a checkpoint that is right otherwise, and where the board looks."""
    called, arguments = CALLS[name]
    given = pickle.dumps(arguments(str(place.marker)), 2)[2:-1]
    call = b"c" + called.replace(" ", "\n").encode() + b"\n" + given + b"R"
    source = stored(good)
    inside = pickle_of(source)[:-1] + b"X\x05\x00\x00\x00extra" + call + b"s."
    for content in (b"\x80\x02" + call + b".", inside):
        path = repacked(content, source)
        assert re.search("holds objects beside numbers and text|no checkpoint of ours", refused(path, place))
        with contextlib.suppress(ValueError):
            peek(path)
        assert not place.marker.exists()


# --- what claims to be more than it is --------------------------------------------------------------------------------

BOMBS = {
    "memory of a pickle": b"\x80\x02Nr\xff\xff\xff\x7f.",
    "memory of a pickle, in digits": b"\x80\x02Np2147483647\n.",
    "a name nested deep": b"\x80\x02}" + b"N" + b"\x85" * 200_000 + b"Ns.",
    "bytes": b"\x80\x05\x96" + (10**12).to_bytes(8, "little") + b".",
    "a call that allocates": b"\x80\x02cbuiltins\nbytearray\n\x8a\x06" + (10**13).to_bytes(6, "little") + b"\x85R.",
    "lists nested deep": b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".",
    "cut short": b"\x80\x02}X\xff\xff\xff\xff",
    "nothing": b"",
    "no pickle": b"hello",
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_pickle_takes_no_more_than_it_has(name: str, good: Content, place: Place) -> None:
    path = repacked(BOMBS[name], stored(good))
    refused(path, place)
    with pytest.raises(ValueError, match=r"checkpoint of ours|cannot be read|cut short"):
        peek(path)


def storage_of(size: int) -> Callable[[Path], bytes]:
    """The pickle of a tensor whose storage claims so many numbers."""

    def change(source: Path) -> bytes:
        number = struct.pack("<i", size) if size < 2**31 else b""
        code = b"J" + number if number else b"\x8a\x08" + size.to_bytes(8, "little")
        torch.save({"x": torch.zeros(7)}, "small.pt")
        pickled = pickle_of(Path("small.pt"))
        return pickled.replace(b"K\x07t", code + b"t").replace(b"K\x07\x85", code + b"\x85")

    return change


@pytest.mark.parametrize(
    "change",
    [
        storage_of(10**6),
        storage_of(10**13),
        lambda source: pickle_of(source).replace(b"X\x01\x00\x00\x000", b"X\x09\x00\x00\x00../../etc", 1),
        lambda source: pickle_of(source).replace(b"FloatStorage", b"QInt8Storage", 1),
    ],
    ids=["more numbers than are there", "terabytes", "a path as a name", "another kind"],
)
def test_a_storage_is_what_the_archive_holds(change: Callable[[Path], bytes], good: Content, place: Place) -> None:
    source = stored(good)
    refused(repacked(change(source), source), place)


def packed(source: Path) -> Path:
    return repacked(pickle_of(source), source, method=zipfile.ZIP_DEFLATED, more={"evil/data/999": bytes(50_000_000)})


def lying(source: Path) -> Path:
    """The directory of the archive says that an entry has 4 GB."""
    content = bytearray(source.read_bytes())
    at = content.rindex(b"PK\x01\x02")
    content[at + 20 : at + 28] = struct.pack("<II", 2**32 - 2, 2**32 - 2)
    Path("lying.ckpt").write_bytes(content)
    return Path("lying.ckpt")


def cut(source: Path) -> Path:
    Path("cut.ckpt").write_bytes(source.read_bytes()[:-100])
    return Path("cut.ckpt")


def other(content: bytes) -> Callable[[Path], Path]:
    def make(source: Path) -> Path:
        Path("other.ckpt").write_bytes(content)
        return Path("other.ckpt")

    return make


def pipe(source: Path) -> Path:
    os.mkfifo("pipe.ckpt")
    return Path("pipe.ckpt")


def circle(source: Path) -> Path:
    Path("circle.ckpt").symlink_to("circle.ckpt")
    return Path("circle.ckpt")


@pytest.mark.parametrize(
    "make",
    [
        packed,
        lying,
        cut,
        lambda source: repacked(pickle_of(source), source, more={"../../evil": b"x"}),
        lambda source: repacked(pickle_of(source), source, more={"other/data.pkl": b"N."}),
        other(b""),
        other(b"PK\x03\x04"),
        other(pickle.dumps({"config": {}, "spec": {}, "progress": {}, "state_dict": {}})),
        pipe,
        circle,
        lambda source: Path("/dev/zero"),
    ],
    ids=[
        *("packed", "lying about sizes", "cut", "a path outside", "two pickles", "empty", "a zip's first bytes"),
        *("a plain pickle", "a pipe", "a link to itself", "a device without end"),
    ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_archive_is_as_torch_writes_it(make: Callable[[Path], Path], good: Content, place: Place) -> None:
    refused(make(stored(good)), place)


# --- settings ---------------------------------------------------------------------------------------------------------


def model(**changes: Any) -> Callable[[Content, Place], None]:
    def change(content: Content, place: Place) -> None:
        content["config"]["model"] |= changes

    return change


def of_generator(value: Any) -> Callable[[Content, Place], None]:
    """A node below the model; of a function, what it makes of the place."""

    def change(content: Content, place: Place) -> None:
        content["config"]["model"]["generator"] = value(place) if callable(value) else value

    return change


def data(value: Callable[[Place], Any]) -> Callable[[Content, Place], None]:
    def change(content: Content, place: Place) -> None:
        content["config"]["data"] = value(place)

    return change


def put(*keys: Any, value: Any) -> Callable[[Content, Place], None]:
    """Something else at a place of the checkpoint."""

    def change(content: Content, place: Place) -> None:
        for key in keys[:-1]:
            content = content[key]
        content[keys[-1]] = value

    return change


def nested(depth: int, kind: type = dict) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = {"a": value} if kind is dict else [value]
    return value


def laughs() -> Any:
    """A few lists that stand for ten to the power of twelve numbers."""
    value: Any = [1] * 10
    for _ in range(11):
        value = [value] * 10
    return value


def in_circles() -> Any:
    value: list[Any] = []
    value.append(value)
    return value


def planted(place: Place) -> str:
    """A folder of pictures that nobody has trained with."""
    return str(place.folder / "planted")


def folder(path: Any) -> dict[str, Any]:
    return {"_target_": "imago.data.folder_data", "path": path, "size": 8, "dir": "data"}


def module(source: Any, **more: Any) -> dict[str, Any]:
    return {"_target_": "imago.data.ImageDataModule", "source": source, "dir": "data", **more}


RESOLVED = "${oc.create:{_target_:os.mkdir,path:marker}}"
SETTINGS: dict[str, tuple[Callable[[Content, Place], None], str]] = {
    # interpolations, wherever they stand
    "a resolver": (of_generator({"_target_": "imago.nets.mlp.MLPGenerator", "hidden": RESOLVED}), "interpolation"),
    "a resolver in a list": (model(latent=["${oc.env:WANDB_API_KEY}"]), "interpolation"),
    "a resolver as the target": (of_generator({"_target_": RESOLVED}), "interpolation"),
    "a resolver in a name": (of_generator({RESOLVED: 1}), "has the name"),
    "a name of two lines": (put("spec", "chan\nnels", value=1), "has the name"),
    "a resolver elsewhere": (put("config", "tags", value=["${oc.env:WANDB_API_KEY}"]), "config.tags.* interpolation"),
    "an escaped resolver": (put("config", "name", value="\\${oc.env:HOME}"), "interpolation"),
    "a nested resolver": (model(latent="${oc.decode:${oc.env:WANDB_API_KEY}}"), "interpolation"),
    "the environment to a server": (
        data(lambda p: module({"_target_": "imago.data.sources.MNIST", "url": p.url + "/${oc.env:WANDB_API_KEY}/"})),
        "interpolation",
    ),
    # targets
    "os.mkdir": (of_generator({"_target_": "os.mkdir", "path": "marker"}), "can be constructed in model"),
    "a target in a list": (model(latent=[{"_target_": "os.mkdir", "path": "marker"}]), ""),
    "a target in an optimiser": (
        put("config", "model", "optimizer", "generator", "betas", value=[{"_target_": "os.mkdir", "path": "marker"}]),
        "",
    ),
    "a partial target": (of_generator({"_target_": "os.mkdir", "_partial_": True, "path": "marker"}), "constructed"),
    "a positional argument": (
        of_generator({"_target_": "imago.nets.mlp.MLPGenerator", "_partial_": True, "_args_": [1]}),
        "_args_",
    ),
    "other words of hydra": (
        of_generator({"_target_": "imago.nets.mlp.MLPGenerator", "_partial_": True, "_recursive_": False}),
        "_recursive_",
    ),
    "data in a model": (of_generator({"_target_": "imago.data.sources.Folder", "path": "/"}), "constructed in model"),
    "a download in a model": (
        of_generator(lambda p: {"_target_": "imago.evaluation.Inception", "url": p.url}),
        "constructed in model",
    ),
    "torch.hub in a model": (of_generator({"_target_": "imago.evaluation.DinoV2"}), "constructed in model"),
    "a trainer": (
        of_generator({"_target_": "lightning.Trainer", "default_root_dir": "marker"}),
        "constructed in model",
    ),
    "a dashboard": (of_generator({"_target_": "imago.loggers.wandb"}), "constructed in model"),
    "a function of a module": (of_generator({"_target_": "imago.models.base.evaluating"}), "constructed in model"),
    "a module of a module": (of_generator({"_target_": "imago.models.base.torch"}), "constructed in model"),
    "a name inside": (of_generator({"_target_": "torch.optim.__builtins__"}), "constructed in model"),
    "no model": (put("config", "model", value={"_target_": "imago.schedules.Warmup", "images": 3}), "is no model"),
    "the base of models": (
        put("config", "model", value={"_target_": "imago.models.base.GenerativeModel", "optimizer": {}}),
        "model: TypeError",
    ),
    "a wrong part": (of_generator({"_target_": "imago.schedules.Warmup", "images": 3}), "model"),
    "nothing": (put("config", "model", value=None), "model"),
    # places and addresses of data
    "a folder": (data(lambda p: folder(planted(p))), "data.path=.*not opened unasked; give .* as path=FOLDER"),
    "a folder as a source": (
        data(lambda p: module({"_target_": "imago.data.sources.Folder", "path": planted(p)})),
        "not opened unasked",
    ),
    "a device as a folder": (data(lambda p: folder("/dev/zero")), "not opened unasked"),
    "a share as a folder": (data(lambda p: folder("\\\\server\\share")), "not opened unasked"),
    "a list as a folder": (data(lambda p: folder(["/"])), "not opened unasked"),
    "data elsewhere": (
        put("config", "data", "batch_size", value={"_target_": "imago.data.sources.Folder", "path": "/"}),
        "data.batch_size: is no setting",
    ),
    "a private source": (
        data(lambda p: module({"_target_": "imago.data.sources.folder._FolderFiles", "path": "/"})),
        "constructed in data",
    ),
    "no source": (data(lambda p: module({"_target_": "imago.data.Splits"})), "is no source"),
    "no data": (data(lambda p: {"_target_": "imago.data.sources.Digits"}), "is no data"),
    "measurements as data": (data(lambda p: {"_target_": "imago.evaluation.DinoV2"}), "constructed in data"),
    "nothing as data": (data(lambda p: None), "what it was trained on"),
    # sizes
    "nested deep": (model(latent=nested(3000)), "nested deeper"),
    "lists nested deep": (put("config", "name", value=nested(3000, list)), "nested deeper|cannot be read"),
    "laughs": (model(latent=laughs()), "more than"),
    "in circles": (put("config", "tags", value=in_circles()), "nested deeper|more than|cannot be read"),
    "a text without end": (put("config", "name", value="x" * 5_000_000), "characters"),
    "a number without end": (model(latent=10**5000), "64 bits|cannot be read"),
    "terabytes of weights": (
        of_generator({"_target_": "imago.nets.mlp.MLPGenerator", "_partial_": True, "hidden": [10**6, 10**6]}),
        "model",
    ),
    "twenty gigabytes of weights": (
        of_generator({"_target_": "imago.nets.mlp.MLPGenerator", "_partial_": True, "hidden": [70_000, 70_000]}),
        "network of more than|allocate memory",
    ),
    "thousands of layers": (
        of_generator({"_target_": "imago.nets.mlp.MLPGenerator", "_partial_": True, "hidden": [64] * 20_000}),
        "network of more than",
    ),
    "images without end": (put("spec", "height", value=10**9), "more than there can be"),
    "no images": (put("spec", "height", value=-1), "spec"),
    "images of words": (put("spec", "height", value="8"), "spec"),
    "more of images": (put("spec", "path", value="/"), "spec"),
    "names of classes": (put("spec", "class_names", value=[{"a": 1}] * 10), "spec"),
    "numbers of classes": (put("spec", "class_counts", value=[-1] * 10), "spec"),
    "classes without end": (put("spec", value=SPEC.as_dict() | {"classes": 10**9}), "more than there can be"),
    "images of a class without end": (put("spec", "class_counts", value=[2**62] * 10), "more than there can be"),
    # weights
    "no tensor": (put("state_dict", "generator.x", value="text"), "not tensors"),
    "no weights": (put("state_dict", value=[1, 2]), "not tensors"),
    "sparse": (put("state_dict", "x", value=torch.zeros(2, 2).to_sparse()), "not a dense tensor|cannot be read"),
    "on no device": (put("state_dict", "x", value=torch.zeros(2, device="meta")), "not a dense tensor|cannot be read"),
    "larger than they are": (put("state_dict", "x", value=torch.zeros(1).expand(10**12)), "larger than it is"),
    "of another network": (put("state_dict", "x", value=torch.zeros(1)), "not of the network"),
    "averages of another network": (
        put("callbacks", "EMA", "weights", value={"generator.first.bias": torch.zeros(1)}),
        "not of the network",
    ),
    "averages of nothing": (
        put("callbacks", "EMA", "weights", value={"generator.x": torch.zeros(1)}),
        "no generator.x to be averaged",
    ),
    "averages of no network": (put("callbacks", "EMA", value={"weights": [3]}), "not tensors"),
    # counters
    "a count of words": (put("progress", "images_seen", value="\x1b[31mmany"), "images_seen: not a count"),
    "a count below zero": (put("progress", "updates", value=-1), "updates: not a count"),
    "a count without end": (put("progress", "updates", value=10**400), "not a count|64 bits|cannot be read"),
    "no counters": (put("progress", value=None), "not a count"),
    "records of nothing": (put("progress", "terms", value=3), "progress"),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_make_nothing_but_a_model_of_the_weights(name: str, good: Content, place: Place) -> None:
    change, message = SETTINGS[name]
    content = copy.deepcopy(good)
    (place.folder / "planted" / "a").mkdir(parents=True)
    change(content, place)
    said = refused(stored(content), place)
    assert re.search(message, said), said
    assert "\n" not in said


def test_enough_payloads() -> None:
    assert len(CALLS) + len(BOMBS) + len(SETTINGS) >= 40


def test_addresses_and_folders_of_a_checkpoint_are_not_used(
    good: Content, place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    """Data that need neither are had without; a folder that somebody here trained with is used."""
    content = copy.deepcopy(good)
    content["config"]["data"] |= {"dir": str(place.folder / "theirs")}
    (place.folder / "theirs").mkdir()
    found = data_of(read(stored(content)), None)
    assert found.directory == Path("data")
    said = capsys.readouterr().err
    assert f"give dir={place.folder / 'theirs'}" in said
    assert data_of(content, str(place.folder / "theirs")).directory == place.folder / "theirs"
    remember(place.folder / "theirs")
    assert data_of(content, None).directory == place.folder / "theirs"
    content["config"]["data"]["source"] = {"_target_": "imago.data.sources.mnist.MNIST", "url": place.url}
    with pytest.raises(UserError, match="could not be downloaded") as error:
        data_of(content, None)
    assert place.url not in str(error.value)
    assert "an address of the checkpoint's" in capsys.readouterr().err
    assert place.asked == []


def test_every_place_that_a_source_takes_is_known_to_whoever_restores_it() -> None:
    """A new source that opens something else than ``url`` and ``path`` has to be thought of in restore.py."""
    texts = set()
    for made in (*SOURCES, folder_data):
        for name, hint in arguments_of(made)[0].items():
            if hint is str or str in typing.get_args(hint):
                texts.add(name)
    assert texts == {"url", "path", "dir"}


@pytest.mark.parametrize("script_name", ["sample", "evaluate", "figure", "train"])
def test_every_script_says_so_in_one_line(script_name: str, good: Content, script: Command, tmp_path: Path) -> None:
    content = copy.deepcopy(good)
    content["config"]["model"]["latent"] = RESOLVED + "\x1b]0;evil\x07"
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / "config.yaml").write_text("seed: 0\n")
    torch.save(content, run / "checkpoints" / "last.ckpt")
    arguments = {
        "sample": [f"checkpoint={run}", "n=2", "out=x.png"],
        "evaluate": [f"checkpoint={run}", "metrics=none"],
        "figure": [f"checkpoint={run}", "figure=neighbours", "out=x.png"],
        "train": ["model=gan", "data=digits", f"resume={run}", "logger=none", "metrics=none"],
    }[script_name]
    code, _, err = script(script_name, *arguments)
    assert code == 2
    assert err.count("\n") == 1
    assert "holds an interpolation" in err
    assert err.strip().isprintable()
    assert not (tmp_path / "marker").exists()
    assert {path.name for path in tmp_path.iterdir()} <= {"run", "logs"}


def test_names_of_others_are_text_on_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    """Neither markup, which can be wrong, nor anything that steers."""
    announce("a classifier of x[/y] [bold]z \x1b[2J")
    said = capsys.readouterr().err
    assert "x[/y] [bold]z \\x1b[2J" in said
    monkeypatch.setenv("FORCE_COLOR", "1")  # as on a terminal
    monkeypatch.setenv("COLUMNS", "120")
    with progress_bar("features of x[/y] \x1b]0;evil\x07") as progress:
        progress(1, 2)
    said = capsys.readouterr().err
    assert "x[/y]" in said
    assert "\x1b]0;" not in said


@pytest.mark.slow
def test_three_thousand_damaged_checkpoints_are_loaded_or_refused(good: Content, place: Place) -> None:
    """Bytes of the pickle changed, left out, doubled and mixed: a model or one line, and nothing else happens."""
    source = stored(good)
    right, numbers = pickle_of(source), random.Random(0)
    loaded, messages = 0, list[str]()
    for _ in range(3000):
        pickled = bytearray(right)
        for _ in range(numbers.choice([1, 1, 2, 5])):
            at, length = numbers.randrange(len(pickled)), numbers.choice([1, 1, 1, 4, 40])
            piece = pickled[at : at + length]
            change = numbers.choice(["replace", "leave out", "double", "move"])
            if change == "replace":
                pickled[at : at + length] = numbers.randbytes(len(piece))
            elif change == "leave out":
                del pickled[at : at + length]
            else:
                to = at if change == "double" else numbers.randrange(len(pickled))
                pickled[to:to] = piece
        path = repacked(bytes(pickled), source)
        try:
            content = read(path)
            load(path)
            data_of(content, None)
            loaded += 1
        except UserError as error:
            messages.append(str(error))
        with contextlib.suppress(ValueError):
            peek(path)
    assert loaded < 1500
    assert not [message for message in messages if "\n" in message]
    assert place.asked == []
    assert {Path(name).name for name in place.files()} <= {"evil.ckpt", "repacked.ckpt", "data"}


def test_what_is_right_is_loaded(good: Content, place: Place) -> None:
    """None of the above is refused because everything is."""
    path = stored(good)
    found = imago.load(path)  # type: ignore[operator]
    assert found.state.images == 64
    assert torch.equal(found.state_dict()["generator.first.weight"], good["state_dict"]["generator.first.weight"])
    assert data_of(read(path), None).name == "digits"
    assert json.loads(json.dumps(peek(path)["config"])) == json.loads(json.dumps(good["config"]))
