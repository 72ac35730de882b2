"""The package as it is installed: one command from any folder, and packages of the user's own beside it."""

import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

import imago
from helpers import PLUGINS, TINY, Command
from imago import config
from imago.cli import main
from imago.evaluation import choices

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a wheel puts beside other packages."""
    place = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(place)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = place.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        file.extractall(place / "site")
    return place / "site"


@pytest.fixture(autouse=True)
def _no_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "PLUGINS", ())
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))


def imago_command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["imago", *arguments])
    try:
        main.main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_a_wheel_trains_in_a_folder_of_its_own(installed: Path, tmp_path: Path) -> None:
    entry = (next(installed.glob("*.dist-info")) / "entry_points.txt").read_text()
    assert "imago = imago.start:main" in entry
    command = [sys.executable, "-m", "imago", "train", "model=vae", "data=digits", "max_updates=2", "logger=csv"]
    environment = {**os.environ, "PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "metrics=none", "callbacks=minimal"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    (run,) = tmp_path.glob("logs/vae-digits/*")
    assert yaml.safe_load((run / "config.yaml").read_text())["model"]["latent"] == 20
    assert sorted(path.name for path in tmp_path.iterdir()) == ["logs"]
    assert files_of(installed / "imago" / "conf") == files_of(ROOT / "conf")


def files_of(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*.yaml"))


def test_every_network_has_the_same_optimizers() -> None:
    """A wheel, a zip file and some systems know no links, so the folders are copies."""
    one, *others = ({p.name: p.read_text() for p in f.iterdir()} for f in (ROOT / "conf/model/optimizer").iterdir())
    assert others == [one, one]


@pytest.mark.parametrize(("group", "command"), [("model", "models"), ("data", "data"), ("experiment", "experiments")])
def test_lists_have_a_line_for_every_choice(
    group: str, command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert imago_command(monkeypatch, command) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == sorted(path.stem for path in (ROOT / "conf" / group).glob("*.yaml"))
    assert all(re.fullmatch(r"\w+ {2,}\S.{10,}", line) for line in lines)


def test_lists_show_what_a_package_of_ones_own_has(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(PLUGINS)
    assert imago_command(monkeypatch, "models", "plugins=[my_models]") == 0
    assert {"transformer", "vae"} <= {line.split()[0] for line in capsys.readouterr().out.splitlines()}
    assert imago_command(monkeypatch, "models", "plugins=[not_there]") == 2
    assert re.match(r"error: plugins=not_there: no such package in .*\n$", capsys.readouterr().err)
    assert imago_command(monkeypatch, "models", "vae") == 2
    assert "models vae: takes plugins=[NAME] at most" in capsys.readouterr().err
    for wrong, said in (("plugins=[", "cannot be read"), ("plugins=my_models", r"write plugins=\[my_package\]")):
        assert imago_command(monkeypatch, "models", wrong) == 2
        assert re.fullmatch(rf"error: .*{said}.*\n", capsys.readouterr().err)


@pytest.mark.parametrize("single", [False, True])
def test_a_package_or_a_module_is_found_in_a_folder_of_any_name(
    single: bool, script: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tmp_path / "q, [a] 'b'"
    (folder / "conf/model").mkdir(parents=True)
    name = "alone" if single else "together"
    code = "from imago.models.vae import VAE\n\n\nclass Mine(VAE):\n    pass\n"
    if single:
        (folder / "alone.py").write_text(code)
    else:
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text(code)
    (folder / "conf/model/mine.yaml").write_text(f"defaults: [vae, _self_]\n_target_: {name}.Mine\n")
    monkeypatch.chdir(folder)
    code, out, err = script("train", f"plugins=[{name}]", "model=mine", "--cfg", "job")
    assert (code, f"_target_: {name}.Mine" in out) == (0, True), err


@pytest.mark.parametrize(
    ("file", "content", "given", "said"),
    [
        ("conf/model/vae.yaml", "_target_: own_broken.Vae", "seed=1", r"model/vae\.yaml: imago has .*rename"),
        ("conf/train.yaml", "", "data.batch_size=0", r"data\.batch_size=0: "),  # of a project with its own commands
        ("conf/model/mine.yaml", "_target_: own_broken.A", "model=mine", r"A: cannot be imported \(KeyError"),
        ("other.txt", "", "plugins=[own_broken.inner]", r"cannot be imported \(KeyError: .*, __init__\.py line 2\)$"),
    ],
)
def test_a_broken_package_of_ones_own_is_told(
    file: str, content: str, given: str, said: str, script: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "own_broken").mkdir()
    (tmp_path / "own_broken/__init__.py").write_text("\n{}['width']\n")
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text(content)
    monkeypatch.chdir(tmp_path)
    code, _, err = script("train", *["plugins=[own_broken]"] * (not given.startswith("plugins")), given, "metrics=none")
    assert code == 2
    assert re.fullmatch(r"error: .*\n", err)
    assert re.search(said, err.strip())


def test_the_command_explains_itself(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert imago_command(monkeypatch, "--version") == 0
    assert capsys.readouterr().out == f"imago {imago.__version__}\n"
    for given in ([], ["--help"]):
        assert imago_command(monkeypatch, *given) == 0
        assert re.search(r"\n +train +train a model", capsys.readouterr().out)
    assert imago_command(monkeypatch, "trian", "model=gan") == 2
    assert re.match(r"error: trian: no such command; did you mean train\?", capsys.readouterr().err)
    assert imago_command(monkeypatch, "train", "--help") == 0
    told = capsys.readouterr().out
    assert "imago train model=dcgan" in told
    assert "src/" not in told


def test_further_processes_carry_out_the_same_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Lightning starts them with the arguments alone."""
    assert imago_command(monkeypatch, "train", "seed=-1") == 2
    assert sys.argv[0] == "imago", "what is started again"
    monkeypatch.setenv("LOCAL_RANK", "1")
    for given in (["train", "seed=-1"], ["seed=-1"]):
        capsys.readouterr()
        assert imago_command(monkeypatch, *given) == 2
        assert capsys.readouterr().err.startswith("error: seed=-1: ")


def test_a_package_of_ones_own_is_used_where_it_is_named(
    script: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Never because a checkpoint names it."""
    monkeypatch.chdir(PLUGINS)
    plugin, place = "plugins=[my_models]", f"out={tmp_path / 'x.png'}"
    tiny = ["model=transformer", "model.width=8", "model.heads=2", "logger=csv", "metrics=none", "max_updates=1"]
    code, _, err = script("train", *tiny, f"logs={tmp_path}", "callbacks=minimal")
    assert (code, "transformer: no such choice" in err) == (2, True)
    code, out, err = script("train", plugin, *tiny, "--cfg", "job")
    assert (code, "_target_: my_models.transformer.Transformer" in out) == (0, True), err
    code, _, err = script("train", plugin, *tiny, f"logs={tmp_path}", "callbacks=minimal")
    assert code == 0, err
    (run,) = tmp_path.glob("transformer-digits/*")
    monkeypatch.setattr(config, "PLUGINS", ())
    code, _, err = script("sample", f"checkpoint={run}", "n=1", place)
    assert (code, "Transformer: of a package of your own? plugins=[my_models] allows it" in err) == (2, True)
    code, _, err = script("sample", plugin, f"checkpoint={run}", "n=1", place)
    assert code == 0, err


def test_a_run_on_data_of_ones_own_is_evaluated_and_sampled(
    script: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(PLUGINS)
    monkeypatch.setattr(choices, "_FIRST_USE_IMAGES", 2_000)
    plugin, place = "plugins=[my_models]", f"dir={tmp_path}"
    tiny = ["model=pixelcnn", *TINY["pixelcnn"], "conditional=true", "logger=csv", "max_updates=1", f"logs={tmp_path}"]
    code, _, err = script("train", plugin, *tiny, "data=halves", f"data.{place}", "metrics=none", "callbacks=minimal")
    assert code == 0, err
    (run,) = tmp_path.glob("pixelcnn-halves/*")
    commands = {
        "evaluate": ["metrics.samples=30"],
        "sample": ["n=4", "labels=[right,left]", f"out={tmp_path / 'drawn'}"],
        "figure": ["figure=completion", f"out={tmp_path / 'x.png'}"],
    }
    for name, given in commands.items():
        given = [f"checkpoint={run}", *given, *[place] * (name != "sample")]
        code, out, err = script(name, plugin, *given)
        assert code == 0, err
        monkeypatch.setattr(config, "PLUGINS", ())
        code, _, err = script(name, *given)
        allowed = name == "sample"  # which needs the images' shape alone
        assert (code, "plugins=[my_models] allows it" in err) == (0 if allowed else 2, not allowed), err
    names = {entry["name"] for entry in json.loads((run / "evaluation.json").read_text())}
    assert names >= {"test/nats", "fd_classifier", "copies"}
    assert sorted(str(path.relative_to(tmp_path / "drawn")) for path in (tmp_path / "drawn").rglob("*.png")) == [
        "0-left/000001.png", "0-left/000003.png", "1-right/000000.png", "1-right/000002.png",
    ]  # fmt: skip
    code, out, err = script("distance", plugin, "halves:test", "halves", place, f"out={tmp_path / 'x.json'}")
    assert (code, "a: halves test, 20 images of 1x4x4" in out) == (0, True), err


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("max_images=1.5", r"max_images=1\.5: input should be a valid integer$"),
        ("model=vaee", r"model=vaee: no such choice; did you mean vae\? imago models lists all \d\d$"),
        ("model=stylegan", r"model=stylegan: no such choice; choose one of autoencoder, .*, vae$"),
        ("modle=gan", r"modle=gan: no such setting; did you mean model\? --help lists all \d\d$"),
        ("metrics=fid", r"metrics=fid: no such choice; did you mean inception\? choose one of auto, "),
        ("conditional=yes", r"conditional=\"yes\": input should be a valid boolean; write true or false$"),
        ("plugins=[not_there]", r"plugins=not_there: no such package in .* or installed"),
        ("plugins=[os-x]", r"plugins=os-x: not the name of a Python package"),
        ("plugins=[1]", r"plugins=\[1\]: write plugins=\[my_package\]"),
    ],
)
def test_wrong_values_are_told_with_what_would_be_right(script: Command, given: str, said: str) -> None:
    code, _, err = script("train", given)
    assert code == 2
    assert re.search(said, err)
    assert len(err.splitlines()) == 1


def test_what_is_exported_is_there() -> None:
    for name in imago.__all__:
        assert getattr(imago, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = imago.nothing  # type: ignore[attr-defined]
