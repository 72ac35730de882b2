"""An exported folder is the model, without the machine that trained it, as the hub and every command here read it."""

import ast
import base64
import http.server
import json
import re
import shlex
import shutil
import threading
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from huggingface_hub import HfApi, ModelCard
from safetensors.torch import load_file, save_file

from helpers import Command, small
from imago import checkpoints
from imago.board.board import Board
from imago.board.find import find_runs
from imago.board.records import read_record
from imago.board.text import show
from imago.checkpoints import fingerprint, load
from imago.errors import UserError
from imago.exports import card, export
from imago.images import ImageSpec
from imago.models.vae import VAE
from imago.paths import folder_of
from imago.pretrained import CARD, SETTINGS, WEIGHTS
from imago.runs import Run
from imago.training.run import train

SMALL = ["model=vae", "model.encoder.hidden=[8]", "model.decoder.hidden=[8]", "callbacks.averaging.half_life=50"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run with averaged weights, whose record names folders of this machine."""
    root = tmp_path_factory.mktemp("runs")
    run = train(small(root, "max_images=160", f"data.dir={root}", *SMALL), "my-vae", root / "my-vae")
    run.update(command=f"python {root}/src/train.py model=vae data.dir=../alice/data hydra.run.dir={root}/my-vae")
    protocol = {"data": "digits test", "images": 180, "likelihood": "lower_bound"}
    result = {"checkpoint": "last.ckpt", "images_seen": 160, "updates": 10, "name": "test/nats", "value": 123.25}
    older = result | {"images_seen": 80, "value": 999.0, "each": "each/1.npy"}
    before = result | {"protocol": protocol | {"weights": "averaged"}, "value": 124.0}
    changed = result | {"changes": {"observation_noise": False}, "value": 7.0}
    of_last = result | {"protocol": protocol | {"weights": "last"}, "value": 8.0}
    results = [{"protocol": protocol | {"standard_error": 1.5}} | r for r in (older, before, result, changed, of_last)]
    (run.path / "evaluation.json").write_text(json.dumps([*results, 3, {"name": "nats"}, result | {"value": "x"}]))
    return run


@pytest.fixture
def folder(run: Run, tmp_path: Path) -> Path:
    export(run.path, tmp_path / "my-vae", license="mit")
    return tmp_path / "my-vae"


def test_the_folder_is_the_model_with_its_averaged_weights(run: Run, folder: Path) -> None:
    averaged, last = load(run.path), load(run.path, averaged=False)
    assert fingerprint(averaged) != fingerprint(last)
    for place in (folder, folder / WEIGHTS):
        model = load(place)
        assert fingerprint(model) == fingerprint(averaged)
        assert (model.spec, model.state.images, model.state.updates) == (last.spec, 160, 10)
        assert model.config == last.config


def test_nothing_in_it_is_of_this_machine(run: Run, folder: Path) -> None:
    """Neither a path nor what trains, and what was measured of another state or of other weights neither."""
    for file in folder.rglob("*"):
        if file.suffix in (".json", ".md"):
            assert "/tmp" not in (text := file.read_text()), file
            assert str(run.path.parent) not in text, file
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["command"] == "python train.py model=vae data.dir=data hydra.run.dir=my-vae"
    assert [r["value"] for r in json.loads((folder / "evaluation.json").read_text())] == [124.0, 123.25, 7.0]


def test_a_broken_summary_is_left_out(run: Run, tmp_path: Path) -> None:
    """A run's record may be damaged, and its weights are good."""
    copy = shutil.copytree(run.path, tmp_path / "copy")
    broken = {"training_cpu_seconds": "long", "images_seen": [1], "device": 3, "command": "a\nb", "split": None}
    (copy / "summary.json").write_text(json.dumps(broken))
    export(copy, tmp_path / "out")
    assert "`a b`" in (tmp_path / "out" / CARD).read_text()


def test_the_card_of_a_job_has_its_own_command_and_what_training_measured(
    run: Run, tmp_path: Path, script: Command
) -> None:
    """The sweep's makes other models too; a run that evaluate.py has not measured is not unmeasured."""
    copy = shutil.copytree(run.path, tmp_path / "copy")
    (copy / "evaluation.json").unlink()
    protocol = {"samples": 1000, "extractor": "classifier", "reference": "digits train", "weights": "averaged"}
    known = {"value": 5.25, "images_seen": 160, "protocol": protocol}
    metrics = {"val/fd_classifier": known, "val/kd_classifier": known | {"images_seen": 80}, "val/x": 3}
    sweep = {"overrides": ["model=vae", "name=a b", "resume=auto"]}
    summary = json.loads((copy / "summary.json").read_text()) | {"metrics": metrics, "sweep": sweep}
    (copy / "summary.json").write_text(json.dumps(summary | {"command": "python src/train.py -m model=gan,vae"}))
    code, out, err = script("export", f"checkpoint={copy}", "out=out")
    assert code == 0, err
    assert f"export again: python src/evaluate.py checkpoint={copy}" in out
    text = Path("out", CARD).read_text()
    assert "- **Trained by** `python src/train.py model=vae 'name=a b'`" in text
    assert "| fd_classifier | 5.25 | 1,000 samples, features classifier, against digits train |" in text
    assert "kd_classifier |" not in text, "it was measured of an earlier state"
    assert "Measured in training; `imago evaluate` measures more." in text
    assert "Nothing was measured" not in text
    assert {m.name: m.split for m in read_record(Path("out")).measured} == {"fd_classifier": "val"}


def test_what_the_card_tells_to_type_can_be_typed(run: Run, tmp_path: Path) -> None:
    name = """a "quoted" | 'name'"""
    export(run.path, tmp_path / name)
    text = (tmp_path / name / CARD).read_text()
    code = text.split("```python")[1].split("```")[0]
    (loaded,) = (
        node.value for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Constant) and node.value != 16
    )
    commands = [shlex.split(line) for line in text.splitlines() if line.startswith("    imago ")]
    assert [loaded, *(words[2].partition("=")[2] for words in commands)] == [name] * 4


def test_the_card_of_a_plugin_names_its_package() -> None:
    class Own(VAE):
        __module__ = "my_models.own"

    model = Own(ImageSpec(1, 2, 2), latent=1)
    assert "imago sample checkpoint=mine plugins=[my_models]" in card("mine", model, {}, [], None, None)


def test_the_card_says_what_it_is_and_the_hub_reads_it(folder: Path) -> None:
    card = ModelCard.load(folder / CARD)
    assert (card.data.license, card.data.library_name) == ("mit", "imago")
    (nats,) = card.data.eval_results  # the newer one of the same protocol
    assert (nats.metric_name, nats.metric_value, nats.dataset_name) == ("test/nats", 123.25, "digits")
    for said in ("# my-vae", "≤ 123.2 ± 1.5", "180 images of digits test", "model=vae", 'imago.load("my-vae")'):
        assert said in card.content
    assert (folder / "samples" / "images-0000000160.png").is_file()
    assert "(samples/images-0000000160.png)" in card.content


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the hub as an upload needs; remembers the files of the commit."""

    files: ClassVar[dict[str, bytes]] = {}

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        answer: dict[str, Any] = {}
        if "/preupload/" in self.path:
            named = [{"path": file["path"], "uploadMode": "regular"} for file in json.loads(body)["files"]]
            answer = {"files": [{**file, "shouldIgnore": False, "oid": None} for file in named]}
        elif "/commit/" in self.path:
            for entry in map(json.loads, body.splitlines()):
                if entry["key"] == "file":
                    self.files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            answer = {
                "success": True,
                "commitOid": "0" * 40,
                "commitUrl": "https://huggingface.co/somebody/my-vae/commit/0",
            }
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())

    def log_message(self, *_: object) -> None:
        pass


def test_the_hub_gets_all_of_it(folder: Path) -> None:
    """What huggingface_hub sends of the folder is the model again, for whoever fetches it."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    hub = HfApi(endpoint=f"http://127.0.0.1:{server.server_port}", token="hf_none")
    try:
        hub.upload_folder(repo_id="somebody/my-vae", folder_path=folder)
    finally:
        server.shutdown()
        server.server_close()
    assert Hub.files.keys() == {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}
    fetched = folder.parent / "fetched"
    for name, content in Hub.files.items():
        (fetched / name).parent.mkdir(parents=True, exist_ok=True)
        (fetched / name).write_bytes(content)
    assert fingerprint(load(fetched)) == fingerprint(load(folder))


def test_a_board_shows_it_like_a_run(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (found,), empty = find_runs([str(folder)])
    record = read_record(found)
    assert (empty, record.defects) == ([], [])
    assert (record.model, record.data.name, record.status, record.images_seen) == ("vae", "digits", "completed", 160)
    headline = record.headline("nats")
    assert headline is not None
    assert (headline.value, headline.relation, record.grid is not None) == (123.25, "≤", True)
    show(Board([record]))
    assert re.findall("my-vae", capsys.readouterr().out) == ["my-vae"]


def test_a_board_tells_it_from_one_that_was_trained_longer(run: Run, folder: Path) -> None:
    """Runs of other budgets are no repetitions, and of a state before the end its own images count."""
    (summary := json.loads((folder / "summary.json").read_text())).update(images_seen=999)
    (folder / "summary.json").write_text(json.dumps(summary))
    exported, whole = read_record(folder), read_record(run.path)
    assert exported.images_seen == 160
    told = [
        key for key in whole.settings if key.startswith(("max_", "callbacks.averaging", "model", "data.val", "seed"))
    ]
    assert {"max_images", "callbacks.averaging.half_life"} <= set(told)
    assert [exported.settings.get(key) for key in told] == [whole.settings[key] for key in told]


def test_every_command_takes_it(script: Command, folder: Path) -> None:
    code, out, err = script("export", f"checkpoint={folder}", "out=again", "license=cc-by-4.0")
    assert (code, err) == (0, ""), err
    assert "model.safetensors" in out
    assert fingerprint(load("again")) == fingerprint(load(folder))
    assert "cc-by-4.0" in Path("again", CARD).read_text()
    assert json.loads(Path("again", "evaluation.json").read_text())[1]["value"] == 123.25
    code, _, err = script("evaluate", "checkpoint=again", "metrics=none", "images=20")
    assert code == 0, err
    assert len(json.loads(Path("again", "evaluation.json").read_text())) > 1


def test_a_folder_of_others_is_left_alone(script: Command, folder: Path) -> None:
    Path("mine").mkdir()
    Path("mine", "thesis.tex").write_text("")
    Path("theirs").mkdir()
    for name, text in ((WEIGHTS, ""), (SETTINGS, '{"_class_name": "UNet2DModel"}'), (CARD, "mine")):
        Path("theirs", name).write_text(text)
    for out in ("mine", "theirs"):
        code, _, err = script("export", f"checkpoint={folder}", f"out={out}")
        assert code == 2
        assert "no exported model" in err
    assert Path("theirs", CARD).read_text() == "mine"


@pytest.mark.parametrize("in_place", [False, True])
def test_what_was_interrupted_is_no_model_of_two(
    run: Run, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_place: bool
) -> None:
    """It is refused until the export is done again; a model that is exported onto itself stays one."""
    out = folder if in_place else shutil.copytree(folder, tmp_path / "out")
    (out / "samples" / "images-0000000999.png").touch()

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("imago.exports.write_png", stop)
        with pytest.raises(KeyboardInterrupt):
            export(folder, out)
    if not in_place:
        with pytest.raises(UserError, match="not finished"):
            load(out)
    export(folder, out)
    assert fingerprint(load(out)) == fingerprint(load(run.path))
    assert [file.name for file in (out / "samples").iterdir()] == ["images-0000000160.png"]
    assert not list(out.glob(".*"))


def test_its_results_stay_in_it_whatever_its_name(tmp_path: Path) -> None:
    assert folder_of(tmp_path / "checkpoints" / WEIGHTS) == tmp_path / "checkpoints"
    assert folder_of(tmp_path / "checkpoints" / "last.ckpt") == tmp_path


def test_it_cannot_be_continued(script: Command, folder: Path) -> None:
    code, _, err = script("train", f"resume={folder}")
    assert code == 2
    assert "without the optimisers' states" in err


def no_settings(folder: Path) -> None:
    (folder / SETTINGS).unlink()


def other_settings(folder: Path) -> None:
    (folder / SETTINGS).write_text("[]")


def cut(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-100])


def other_weights(folder: Path) -> None:
    save_file({"weight": torch.zeros(3)}, folder / WEIGHTS)


def rounded(folder: Path) -> None:
    weights = load_file(folder / WEIGHTS)
    save_file({name: tensor.half() for name, tensor in weights.items()}, folder / WEIGHTS)


def diverged(folder: Path) -> None:
    weights = load_file(folder / WEIGHTS)
    weights["net.encoder.first.bias"][3] = torch.nan
    save_file(weights, folder / WEIGHTS)


def many_names(folder: Path) -> None:
    """So many that reading them would take seconds."""
    empty = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    header = json.dumps({f"t{k}": empty for k in range(100_000)}).encode()
    (folder / WEIGHTS).write_bytes(len(header).to_bytes(8, "little") + header)


def long_header(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes((2**40).to_bytes(8, "little") + b"{}")


def foreign_class(folder: Path) -> None:
    text = (folder / SETTINGS).read_text()
    (folder / SETTINGS).write_text(text.replace("imago.models.vae.VAE", "subprocess.Popen"))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (no_settings, "no config.json beside it"),
        (other_settings, "config.json holds no settings"),
        (cut, "cannot be read"),
        (other_weights, "not of the network"),
        (rounded, r"model.safetensors: \S+ is of torch.float16, and of torch.float32 in the model"),
        (diverged, "model.safetensors: net.encoder.first.bias holds numbers that are not finite"),
        (many_names, "names 100,000 tensors"),
        (long_header, "header claims 1,099,511,627,776 bytes"),
        (foreign_class, "subprocess.Popen"),
    ],
)
def test_a_damaged_or_foreign_folder_is_refused(folder: Path, damage: Any, said: str) -> None:
    damage(folder)
    with pytest.raises(UserError, match=said):
        load(folder)


def test_settings_of_the_class_alone_are_read(folder: Path, tmp_path: Path) -> None:
    """What config.json holds beside them is nothing that a checkpoint may have."""
    copy = shutil.copytree(folder, tmp_path / "copy")
    entries = json.loads((copy / SETTINGS).read_text())
    (copy / SETTINGS).write_text(json.dumps(entries | {"callbacks": {"EMA": {"weights": {}}}, "state_dict": {}}))
    assert "callbacks" not in checkpoints.read(copy)
    assert fingerprint(load(copy)) == fingerprint(load(folder))
