"""Every command of README.md and docs/ is one that the scripts accept today, and every link leads somewhere."""

import importlib
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir

import imago.cli  # noqa: F401 - stores any_model in Hydra
from imago.cli.main import COMMANDS, LISTS
from imago.config import CONF, check, composed, plain, without_hydra
from imago.images import Batch, ImageSpec
from imago.legacy import today
from imago.runs import differences

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FLAGS = ("-m", "--help", "--cfg", "job")
COMMAND = re.compile(r"^ {4}(?:\w+=\S+ +)*python src/(\w+)\.py((?: .*)?)$")


def commands() -> dict[str, tuple[str, tuple[str, ...]]]:
    """Each command as it stands there, with its script and its overrides; places to fill in have one name."""
    found = {}
    for page in PAGES:
        text = re.sub(r" *\\\n +", " ", page.read_text(encoding="utf-8"))
        for line in text.splitlines():
            if match := COMMAND.match(line):
                script, given = match[1], re.sub(r"<[^>]+>", "pixelcnn", match[2].partition("  #")[0])
                words = [word for word in shlex.split(given, comments=True) if word not in FLAGS]
                found[f"{script} {' '.join(words)}"] = (script, tuple(words))
    return found


def first_choices(overrides: tuple[str, ...]) -> list[str]:
    """Of a sweep's choices the first: of ``a=1,2``, ``a=interval(1,2)``, ``a=choice(1)`` 1; ``a=[1,2]`` stays."""
    lowest = [re.sub(r"=.*(?:interval|choice)\(([^,)]+).*", r"=\1", override) for override in overrides]
    return [re.sub(r"^([^=\[{]+=[^,\[{]*),.*", r"\1", override) for override in lowest]


FOUND = commands()


def test_there_are_commands() -> None:
    assert len(FOUND) > 80
    assert {script for script, _ in FOUND.values()} >= {"train", "evaluate", "sample", "figure", "compare", "dashboard"}


@pytest.mark.parametrize("command", FOUND)
def test_a_documented_command_is_accepted(command: str) -> None:
    script, overrides = FOUND[command]
    # What a sweep changes is Hydra's, and composed with its own part of the configuration.
    chosen = [o for o in first_choices(overrides) if not o.startswith(("hydra.", "checkpoint="))]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose(script, chosen, return_hydra_config=False)
    if script == "train":
        check(plain(config))


@pytest.mark.parametrize("record", sorted((ROOT / "docs" / "board").iterdir()), ids=lambda record: record.name)
def test_the_command_of_a_board_record_means_what_was_recorded(record: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("IMAGO_DATA_DIR", raising=False)
    command = json.loads((record / "summary.json").read_text())["command"]
    config = plain(without_hydra(composed("train", shlex.split(command)[2:])))
    del config["estimate"]  # of the command, not of the run
    recorded = today(yaml.safe_load((record / "config.yaml").read_text()))
    # What runs of 0.1 did, without a setting for it: measure evenly, whatever it takes.
    as_before = (
        r"(every|callbacks\.\w+)\.halvings: None there, 0 now|callbacks\.checkpoints\.seconds: None there, 600 now"
        r"|compile: None there, False now"
    )
    assert [said for said in differences(recorded, config) if not re.fullmatch(as_before, said)] == []


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_links_lead_to_files(page: Path) -> None:
    targets = re.findall(r"\]\((?!https?:|#)([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    assert [target for target in targets if not (page.parent / target).exists()] == []


def test_the_metrics_can_be_used_as_documented(capsys: pytest.CaptureFixture[str]) -> None:
    section = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8").partition("## In your own code")[2]
    exec(section.partition("```python\n")[2].partition("```")[0], {})
    printed = capsys.readouterr().out
    for name in ("fd", "kd", "precision", "recall", "density", "coverage", "authenticity", "copies"):
        assert f"'{name}': tensor(" in printed


def test_the_toy_model_trains_and_samples() -> None:
    text = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "class Toy" in block]
    names: dict[str, Any] = {}
    exec(code, names)
    model = names["Toy"](ImageSpec(1, 8, 8))
    (optimizer,) = model.configure_optimizers()
    for _ in range(3):
        for loss in model.losses(Batch(torch.zeros(16, 1, 8, 8, dtype=torch.uint8), None)):
            optimizer.zero_grad()
            loss.value.backward()
            optimizer.step()
    assert model.state.updates == 3
    assert model.sample(2, seed=0).shape == (2, 1, 8, 8)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_files_and_methods_that_a_page_names_are_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    ours = [
        path for folder in ("src", "tests", "tools", "benchmarks", "examples") for path in (ROOT / folder).rglob("*.py")
    ]
    code = "".join(path.read_text(encoding="utf-8") for path in ours)
    files = set(re.findall(r"`((?:[a-z_]+/)*[a-z_]+\.py)`", text)) - {"my_data/published.py"}  # an example's own
    assert {name for name in files if not any(path.as_posix().endswith(f"/{name}") for path in ours)} == set()
    methods = re.findall(r"`[A-Z][A-Za-z]+\.([a-z_]+)(?:\(\))?`", text)
    assert {name for name in methods if not re.search(rf"\b{name}\b", code)} == set()


@pytest.mark.parametrize("group", ["model", "data", "trainer", "metrics", "logger", "callbacks", "model/sampler"])
def test_the_table_of_groups_lists_every_choice(group: str) -> None:
    text = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    (row,) = re.findall(rf"^\| `{group}`[^|]*\|(.*)\|$", text, re.MULTILINE)
    assert {file.stem for file in (CONF / group).glob("*.yaml")} <= set(re.findall(r"`([^`]+)`", row))


def test_the_page_of_mistakes_has_every_command_of_its_tool() -> None:
    """And names what there is to choose from today; the answers themselves take half a minute to ask for."""
    text = (ROOT / "docs" / "mistakes.md").read_text(encoding="utf-8").replace("\\_", "_")
    commands = (ROOT / "tools" / "mistakes.py").read_text(encoding="utf-8").split('COMMANDS = """')[1].split('"""')[0]
    rows = dict(re.findall(r"^\| `imago ([^`]*)` \| (.*) \| [\d.]+ \|$", text, re.MULTILINE))
    assert list(rows) == commands.strip().splitlines()
    for command, group in (("train model=stylegan data=cifar10", "model"), ("train data=mnsit", "data")):
        assert rows[command].endswith(
            f"choose one of {', '.join(sorted(f.stem for f in (CONF / group).glob('*.yaml')))}"
        )
    assert rows["trian model=gan"].endswith(
        f"commands are {', '.join((*COMMANDS, *LISTS))}; imago --help explains them"
    )


@pytest.mark.slow
def test_the_page_of_mistakes_says_what_the_commands_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    mistakes = importlib.import_module("mistakes")
    text = (ROOT / "docs" / "mistakes.md").read_text(encoding="utf-8")
    for command in mistakes.COMMANDS:
        _, said, _ = mistakes.answer(command)
        assert f"| `imago {command}` | {mistakes.told(said)} |" in text
