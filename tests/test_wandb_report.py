"""The W&B dashboard, without network: every key that runs log has its panel, and no panel waits for a key in vain."""

import json
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import wandb

from helpers import configuration
from imago.loggers import facts_of
from imago.runs import Run
from imago.training.run import train
from imago.wandb_report import CHARTS, COLUMNS, IMAGES, MEDIA, SECONDS, build_report, build_workspace, specification

# One of each kind of model, with the options that log more.
RUNS = {
    "made": ["model.hidden=[8]"],
    "vae": ["model.latent=2", "model.encoder.hidden=[8]", "model.decoder.hidden=[8]"],
    "gan": ["model.generator.hidden=[8]", "model.discriminator.hidden=[8]", "model/penalty=r1"],
    "autoencoder": [f"model.{part}.{size}" for part in ("encoder", "decoder") for size in ("width=4", "widest=8")],
    "ddpm": ["model.network.width=8", "model.network.multipliers=[1]", "model.steps=4", "model.sampler.steps=2",
             "model/variance=learned", "model/loss=hybrid"],
    "hvae": ["model.width=8"],
}  # fmt: skip
DASHBOARD = {"gan": {"samples"}, "vae": set(MEDIA)}  # those that log to W&B too, and their pictures


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """A run of each kind of model, offline, and measured by all that the classifier can measure."""
    root = tmp_path_factory.mktemp("runs")
    every = ["every.log=32", "every.samples=64", "every.likelihood=64", "every.quality=64", "max_images=64"]
    measured = ["metrics=classifier", "metrics.samples=40", "metrics.full=true", "metrics.subsets=2"]
    common = ["data=digits", "data.batch_size=16", "trainer=cpu", f"logs={root}", "callbacks.quality.at_start=false",
              "callbacks.samples.rows=1", *every, *measured]  # fmt: skip
    done = {}
    for model, options in RUNS.items():
        logger = ["logger.wandb.mode=offline"] if model in DASHBOARD else ["logger=csv"]
        config = configuration(f"model={model}", *common, *options, *logger)
        done[model] = train(config, f"{model}-digits", root / model)
    wandb.teardown()
    return done


@pytest.fixture(scope="module")
def known(runs: dict[str, Run], tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Every key that these runs log, and one of points."""
    root = tmp_path_factory.mktemp("points")
    few = ["every.log=32", "max_images=64", "data.val=64", "data.batch_size=32", "metrics.samples=40"]
    config = configuration("model=vae", "data=toy2d", "trainer=cpu", "logger=csv", f"logs={root}", *few, *RUNS["vae"])
    points = train(config, "vae-toy2d", root / "vae")
    return set().union(*logged({**runs, "points": points}).values())


def logged(runs: dict[str, Run]) -> dict[str, set[str]]:
    """The columns of metrics.csv, which are the keys of W&B's rows."""
    return {model: set(run.metrics.read_text().split("\n", 1)[0].strip().split(",")) for model, run in runs.items()}


def test_every_key_that_is_logged_has_a_chart_and_every_chart_a_key(known: set[str]) -> None:
    charts = [chart for section in CHARTS.values() for chart in section]
    for key in known - {"images_seen", "updates"}:
        assert any(re.fullmatch(chart.keys, key) for chart in charts), f"{key} has no chart in imago/wandb_report.py"
    for chart in charts:
        assert chart.x in known
        assert any(re.fullmatch(chart.keys, key) for key in known), f"{chart.title}: nothing is logged as {chart.keys}"


def test_quality_of_samples_has_the_same_keys_in_every_model(runs: dict[str, Run]) -> None:
    measured = [{key for key in keys if key.startswith(("val/f", "val/k", "val/p", "time/"))} for keys in
                logged(runs).values()]  # fmt: skip
    assert all(keys == measured[0] for keys in measured)
    assert len(measured[0]) >= 6
    likelihood = [{"val/nats", "val/bpd"} <= keys for keys in logged(runs).values()]
    assert likelihood == [run.summary["likelihood"] != "none" for run in runs.values()]


def test_the_workspace_draws_what_is_logged(known: set[str]) -> None:
    import wandb_workspaces.reports.v2 as wr

    workspace = build_workspace("me", "imago", "Imago")
    assert (workspace.entity, workspace.project, workspace.name) == ("me", "imago", "Imago")
    assert [section.name for section in workspace.sections] == [*CHARTS, "Pictures", "Runs side by side"]
    panels = [panel for section in workspace.sections for panel in section.panels]
    lines = [panel for panel in panels if isinstance(panel, wr.LinePlot)]
    assert len(lines) == sum(map(len, CHARTS.values()))
    assert all(any(re.search(str(line.metric_regex), key) for key in known) for line in lines)
    drawn = {(line.x, key) for line in lines for key in known if re.search(str(line.metric_regex), key)}
    for key in ("val/bpd", "val/nats", "val/fd_classifier", "val/kd_classifier", "val/precision_classifier"):
        assert {(IMAGES, key), (SECONDS, key)} <= drawn, f"{key} over images and over seconds"
    assert not [line for line in lines if re.search(str(line.metric_regex), "val/bpd/deeper")], "the whole of a key"
    media = [key for panel in panels if isinstance(panel, wr.MediaBrowser) for key in panel.media_keys]
    assert media == list(MEDIA)
    assert workspace.runset_settings.pinned_columns == ["run:displayName", *(f"summary:{key}" for key in COLUMNS)]
    view = specification(workspace)["spec"]["section"]
    assert view["runSets"][0]["grouping"] == [{"section": "run", "name": "displayName"}]
    assert json.loads(json.dumps(view)) == view


def test_pictures_have_the_same_keys_in_every_model(runs: dict[str, Run]) -> None:
    for model, keys in DASHBOARD.items():
        drawn = runs[model].path.glob("wandb/offline-run-*/files/media/images/*.png")
        assert {path.name.split("_")[0] for path in drawn} == keys


def test_the_columns_of_the_table_are_in_the_summary(runs: dict[str, Run]) -> None:
    """W&B's summary is the last value of every key, and what the run tells beside that."""
    for model, run in runs.items():
        there = logged(runs)[model] | facts_of(run.summary).keys()
        absent = {key for key in COLUMNS if key not in there} - {"val/fid"}  # of Inception's features
        assert absent == (set() if run.summary["likelihood"] != "none" else {"val/bpd", "val/nats"})


def test_what_a_search_is_for_is_in_the_summary() -> None:
    assert facts_of({"objective": {"val/bpd": 3.0, "val/fid": 9.0}}) == {
        "objective/val/bpd": 3.0,
        "objective/val/fid": 9.0,
    }


def test_a_report_has_the_same_panels_over_tables_of_the_runs() -> None:
    import wandb_workspaces.reports.v2 as wr

    report = build_report("me", "imago", "Imago")
    grids = [block for block in report.blocks if isinstance(block, wr.PanelGrid)]
    sections = build_workspace("me", "imago", "Imago").sections
    assert [[type(panel) for panel in grid.panels] for grid in grids] == [
        [type(panel) for panel in section.panels] for section in sections
    ]
    for grid in grids:
        (runset,) = grid.runsets
        assert (runset.entity, runset.project, runset.groupby) == ("", "", ["Name"]), "the report's project"
        places = {(panel.layout.x, panel.layout.y) for panel in grid.panels}
        assert len(places) == len(grid.panels), "no panel lies upon another"
    assert specification(report)["project"] == {"name": "imago", "entityName": "me"}


Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(script: Command, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Runs dashboard.py where nobody is logged in; see ``script``."""
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setattr(wandb, "login", lambda **options: False)
    return partial(script, "dashboard")


@pytest.mark.parametrize("kind", ["workspace", "report"])
def test_the_specification_is_written_without_an_account(command: Command, kind: str) -> None:
    code, out, err = command(f"kind={kind}", "project=mine", "out=folder/it.json")
    assert (code, out, err) == (0, "folder/it.json\n", "")
    assert command(f"kind={kind}", "project=mine", "out=folder/it.json")[0] == 0, "its own file is replaced"
    Path("mine.json").write_text("{}")
    Path("mine.txt").write_text("mine")
    for mine in ("mine.json", "mine.txt"):
        before = Path(mine).read_text()
        code, _, err = command(f"kind={kind}", f"out={mine}")
        assert code == 2
        assert f"out={mine}: is there already, and no file of this command's; give another name" in err
        assert Path(mine).read_text() == before
    content = json.loads(Path("folder/it.json").read_text())
    assert content["project"] == ("mine" if kind == "workspace" else {"name": "mine", "entityName": ""})


def test_a_saved_one_says_where_it_is(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    from wandb_workspaces.workspaces import Workspace

    saved: list[Any] = []
    monkeypatch.setattr(wandb, "login", lambda **options: True)
    monkeypatch.setattr(wandb, "Api", lambda: type("Api", (), {"default_entity": "me"}))
    monkeypatch.setattr(Workspace, "save", lambda self: saved.append(self.entity))
    monkeypatch.setattr(Workspace, "url", property(lambda self: f"address of {self.entity}/{self.project}"))
    assert command() == (0, "address of me/imago\n", "")
    assert command("entity=us") == (0, "address of us/imago\n", "")
    assert saved == ["me", "us"]


def refused(self: Any) -> None:
    raise wandb.errors.CommError("project not found:\nimago")


MISTAKES = [
    ([], {}, r"no API key is configured; wandb login, or set WANDB_API_KEY; out=FILE\.json"),
    ([], {"WANDB_MODE": "offline"}, r"WANDB_MODE=offline: a dashboard lies at W&B; unset it"),
    (["kind=board"], {}, r"kind=\"board\": input should be 'workspace' or 'report'"),
    (["project="], {}, r"project="),
    (["out=file/x.json"], {}, r"out=file: file is no folder; choose another place"),
    (["projct=x"], {}, r"projct=x: no such setting; did you mean project\?"),
    (["entity=me"], {"WANDB_API_KEY": "x" * 40}, r"entity=me project=imago: project not found: imago; check both"),
]


@pytest.mark.parametrize(("given", "environment", "message"), MISTAKES, ids=[str(k) for k in range(len(MISTAKES))])
def test_a_mistake_ends_with_one_message(
    command: Command, monkeypatch: pytest.MonkeyPatch, given: list[str], environment: dict[str, str], message: str
) -> None:
    from wandb_workspaces.workspaces import Workspace

    Path("file").touch()
    wandb.teardown()  # it reads the environment once
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    if "WANDB_API_KEY" in environment:
        monkeypatch.setattr(wandb, "login", lambda **options: True)
        monkeypatch.setattr(Workspace, "save", refused)
    code, out, err = command(*given)
    assert (code, out) == (2, "")
    (error,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert re.search(message, error), error
    wandb.teardown()


def test_without_the_package_the_remedy_is_named(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("wandb_workspaces")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    code, _, err = command("out=x.json")
    assert code == 2
    assert err.count("\n") == 1
    assert "pip install wandb-workspaces" in err
