"""The configuration: every file composes and describes something that exists, and checks find what does not."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf, flag_override
from pydantic import NonNegativeInt, PositiveFloat

from helpers import CONF
from imago import cli  # noqa: F401 - what the configurations of scripts build upon
from imago.board.claims import FAMILIES
from imago.checkpoints import model_of
from imago.config import Settings, build, check, check_node, check_settings, experiments, plain, target
from imago.errors import UserError
from imago.figures.base import Figure
from imago.images import ImageSpec
from imago.schedules import Warmup

GROUPS = {
    str(folder.relative_to(CONF)): sorted(file.stem for file in folder.glob("*.yaml"))
    for folder in [*CONF.glob("*"), *CONF.glob("model/*"), *CONF.glob("model/optimizer/*")]
    if folder.is_dir() and any(folder.glob("*.yaml"))
}

# A model that has the group, where the default one has not.
WITH = {
    "model/dequantization": "glow",
    "model/distribution": "pixelcnn",
    "model/energy": "ebm",
    "model/loss": "ddpm",
    "model/network": "ddpm",
    "model/noise_schedule": "ddpm",
    "model/optimizer/net": "vae",
    "model/prediction": "ddpm",
    "model/sampler": "ddpm",
    "model/variance": "ddpm",
}
CHOICES = [(group, name) for group, names in GROUPS.items() for name in names if group not in ("experiment", "figure")]


@pytest.fixture(scope="module")
def composed() -> Iterator[Any]:
    """Composes a primary configuration to plain types."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield lambda *overrides, of="train": plain(compose(of, list(overrides)))


def targets(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        yield from [node["_target_"]] if "_target_" in node else []
        for value in node.values():
            yield from targets(value)
    elif isinstance(node, list):
        for value in node:
            yield from targets(value)


def test_every_group_offers_a_choice() -> None:
    assert len(GROUPS) >= 20
    assert {group: names for group, names in GROUPS.items() if len(names) < 2} == {}


@pytest.mark.parametrize(("group", "name"), CHOICES)
def test_every_file_of_every_group_composes(composed: Any, group: str, name: str) -> None:
    assert_arrived(composed(*([f"model={WITH[group]}"] if group in WITH else []), f"{group}={name}"), group, name)


def assert_arrived(config: dict[str, Any], group: str, name: str) -> None:
    """The configuration is right, and constructs what a file of it names."""
    settings = check(config)
    assert isinstance(settings, Settings)
    named = [(key, t) for key in config for t in targets(config[key])]
    assert len(named) > 5
    assert all(callable(target(t, key)) for key, t in named)
    own = list(targets(OmegaConf.to_container(OmegaConf.load(CONF / group / f"{name}.yaml"))))
    assert set(own) <= {t for _, t in named}, "the choice has arrived"


@pytest.mark.parametrize("name", GROUPS["figure"])
def test_every_figure_composes(composed: Any, name: str) -> None:
    config = composed(f"figure={name}", of="figure")
    check_node(config["figure"], "figure")
    assert issubclass(target(config["figure"]["_target_"], "figure"), Figure)  # type: ignore[arg-type]


@pytest.mark.parametrize("data", GROUPS["data"])
def test_models_compose_with_data_that_are_the_same_for_each(composed: Any, data: str) -> None:
    """Every model with two data sets."""
    start, step = GROUPS["data"].index(data), len(GROUPS["data"]) // 2
    assert_alike(composed, GROUPS["model"][start % step :: step], data)


@pytest.mark.slow
@pytest.mark.parametrize("data", GROUPS["data"])
def test_every_model_composes_with_every_data_set(composed: Any, data: str) -> None:
    assert_alike(composed, GROUPS["model"], data)


def assert_alike(composed: Any, models: list[str], data: str) -> None:
    """Configurations of models with a data set are right, and differ in nothing but the model."""
    by_model = [composed(f"model={model}", f"data={data}") for model in models]
    for config in by_model:
        check(config)
        del config["model"]
    assert all(config == by_model[0] for config in by_model)


@pytest.mark.parametrize("experiment", GROUPS["experiment"])
def test_every_experiment_arrives_and_the_command_line_wins(composed: Any, experiment: str) -> None:
    overlay = OmegaConf.to_container(OmegaConf.load(CONF / "experiment" / f"{experiment}.yaml"))
    assert isinstance(overlay, dict)
    pair = {
        group: choice for entry in overlay.pop("defaults") for group, choice in entry.items() if "/model/" not in group
    }
    named = re.fullmatch(r"(\w+)_(digits|mnist|cifar10|imagenet32)(_paper)?", experiment)
    if named:
        assert pair == {"override /model": named[1], "override /data": named[2]}

    def assert_within(part: Any, whole: Any, where: str) -> None:
        if isinstance(part, dict):
            for key, value in part.items():
                assert_within(value, whole[key], f"{where}.{key}")
        else:
            assert part == whole, where

    config = composed(f"experiment={experiment}", "max_images=12345")
    assert_within(overlay | {"max_images": 12345}, config, experiment)
    assert_arrived(config, "experiment", experiment)


def test_experiments_of_a_pair_are_found(tmp_path: Path) -> None:
    assert experiments([CONF], "vae", "mnist") == ["vae_mnist", "vae_pythae"]
    assert experiments([CONF], "dcgan", "folder") == []
    assert {"sngan", "wgan_gp"} < set(experiments([CONF], "dcgan", "cifar10"))
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "own.yaml").write_text("defaults:\n  - override /model: vae\n")
    assert experiments([CONF, tmp_path], "vae", "digits") == ["own"]


def sweeper_params(*overrides: str) -> dict[str, str]:
    """What Hydra's sweeper combines; ``composed`` has found the configurations for it."""
    return dict(compose("train", list(overrides), return_hydra_config=True).hydra.sweeper.params)


@pytest.mark.parametrize(("sweep", "param"), [("lecture", "model"), ("lecture_mnist", "experiment")])
def test_the_lecture_gives_each_of_its_models_the_same_data_and_seconds(composed: Any, sweep: str, param: str) -> None:
    """Whatever experiments say, there is one form of the data and one limit; a schedule that counts images has none."""
    named = sweeper_params(f"sweep={sweep}")[param].split(",")
    models = set()
    for name in named:
        whole = compose("train", [f"sweep={sweep}", f"{param}={name}", "max_seconds=7"], return_hydra_config=True)
        models.add(whole.hydra.runtime.choices.model)
        with flag_override(whole, ["readonly", "struct"], False):
            del whole["hydra"]
        config = plain(whole)
        settings = check(config)
        limits = (settings.max_seconds, settings.max_images, settings.max_updates)
        assert limits == (7, None, None)
        assert config["data"]["binarize"] is None
        assert config["model"]["schedule"] is None
    assert models == set(FAMILIES), "one is missing"


@pytest.mark.parametrize("sweep", GROUPS["sweep"])
def test_a_sweep_can_go_unmeasured(composed: Any, sweep: str) -> None:
    """What it says of the measurement means nothing then; what no measurement has is a mistake."""
    config = composed(f"sweep={sweep}", "metrics=none")
    check(config)
    assert build(config["metrics"], "metrics").names == []
    config["metrics"]["sample"] = 3
    with pytest.raises(UserError, match=r"^metrics\.sample: no such setting; did you mean samples\?"):
        check(config)


def test_a_sweep_of_objectives_is_of_both(composed: Any) -> None:
    params = sweeper_params("sweep=objectives")
    objectives = params["model/objective"].split(",")
    targets_of = {
        composed("sweep=objectives", f"model/objective={o}")["model"]["objective"]["_target_"] for o in objectives
    }
    assert targets_of == {"imago.models.gan.Minimax", "imago.models.gan.NonSaturating"}
    assert len(params["seed"].split(",")) >= 2


@pytest.mark.parametrize("script", sorted(file.stem for file in CONF.glob("*.yaml")))
def test_every_script_has_its_configuration(composed: Any, script: str) -> None:
    assert (CONF.parent / "src" / f"{script}.py").exists()
    given = OmegaConf.load(CONF / f"{script}.yaml")
    given.pop("hydra")
    needed = [f"{key}=x" for key in sorted(OmegaConf.missing_keys(given))]
    assert composed(*needed, of=script)
    for key in (need.removesuffix("=x") for need in needed):
        value = "logs/NAME, a run or a folder of runs" if key == "checkpoint" else "VALUE"
        with pytest.raises(UserError, match=f"^{key}: missing; give {key}={value}$"):
            composed(*(n for n in needed if n != f"{key}=x"), of=script)


@dataclass(frozen=True)
class Inner:
    size: NonNegativeInt


@dataclass(frozen=True)
class Outer:
    name: str | None
    rate: PositiveFloat
    inner: Inner


def test_settings_become_a_dataclass() -> None:
    values = {"name": None, "rate": 1, "inner": {"size": 3}, "model": {}}
    assert check_settings(values, Outer, groups=["model"]) == Outer(None, 1, Inner(3))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"nmae": "x"}, "nmae: no such setting; did you mean name?"),
        ({"zzz": 1}, "zzz: no such setting; known are inner, name, rate"),
        ({"rate": 0}, "rate=0: input should be greater than 0"),
        ({"rate": "1"}, 'rate="1": input should be a valid number'),
        ({"rate": True}, "rate=true: input should be a valid number"),
        (
            {"name": 3},
            "name=3: input should be a valid string; text that would be read as a number is quoted twice: "
            "name=\"'TEXT'\"",
        ),
        ({"inner": {"size": 1.5}}, "inner.size=1.5: input should be a valid integer"),
        ({"inner": {"size": -1}}, "inner.size=-1: input should be greater than or equal to 0"),
        ({"inner": {}}, "inner.size: missing; give it a value"),
        ({"inner": {"size": 1, "sise": 2}}, "inner.sise: no such setting; did you mean size?"),
        ({"inner": 3}, "inner=3: expected a group of settings"),
    ],
)
def test_a_wrong_setting_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        check_settings({"name": "x", "rate": 0.5, "inner": {"size": 0}} | change, Outer)
    assert str(error.value) == message


def test_what_is_deleted_is_missed(composed: Any) -> None:
    for deleted in ("tags", "logger"):
        with pytest.raises(UserError, match=f"^{deleted}: (missing|nothing chosen)"):
            check(composed(f"~{deleted}"))


@pytest.mark.parametrize("override", ["name='a\\${b}'", "+tags=['\\${x}']", "data.dir='\\${HOME}'"])
def test_what_a_checkpoint_could_not_keep_is_refused_before_training(composed: Any, override: str) -> None:
    with pytest.raises(UserError, match=r"^(name|tags\[0\]|data\.dir): .* holds an interpolation"):
        check(composed(override.replace("+tags", "tags")))


def test_an_interpolation_that_leads_nowhere_is_named(composed: Any) -> None:
    with pytest.raises(UserError, match=r"^model\.latent: Interpolation key 'nowhere' not found"):
        composed("model.latent=${nowhere}")


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({"_target_": "os.system"}, r"model\._target_=os\.system: only .* can be constructed in model"),
        ({"_target_": 3}, "model._target_=3: only"),
        ({"_target_": "imago.models.base.torch"}, "can be constructed"),
        ({"_target_": "imago.files.write_text"}, "can be constructed"),
        ({"_target_": "imago.models.base.frozen"}, "can be constructed"),
        ({"_target_": "imago.models.base.UserError"}, "can be constructed"),
        ({"_target_": "imago.data.sources.MNIST"}, "only classes of imago.models, .* can be constructed in model"),
        ({"_target_": "imago.evaluation.DinoV2"}, "can be constructed in model"),
        ({"_target_": "imago.training.callbacks.checkpoints.Checkpoints"}, "can be constructed in model"),
        ({"_target_": "lightning.Trainer"}, "can be constructed in model"),
        ({"_target_": "torch.hub.load"}, "can be constructed in model"),
        ({"_target_": "torch.optim.torch.hub.load"}, "check the spelling"),
        ({"_target_": "imago.schedules..Warmup"}, "can be constructed"),
        ({"_target_": "imago.models.__builtins__"}, "can be constructed"),
        ({"_target_": "imago.schedules.Warmup", "_args_": [3]}, r"model\._args_: not offered|_args_: no such setting"),
        ({"_target_": "imago.schedules.Nothing"}, "check the spelling"),
        ({"_target_": "imago.schedules.Warmup"}, r"model\.images: missing"),
        ({"_target_": "imago.schedules.Warmup", "images": 0}, r"model\.images=0: input should be greater than 0"),
        (
            {"_target_": "imago.schedules.Warmup", "images": 1, "image": 1},
            r"model\.image: no such setting; did you mean",
        ),
        ({"images": 1}, "model: nothing chosen"),
        (7, "model=7: expected a group of settings"),
    ],
)
def test_a_wrong_node_is_named(node: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_node(node, "model")


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("data.source", "imago.data.sources.folder._FolderFiles"),
        ("data", "imago.evaluation.DinoV2"),
        ("metrics.extractor", "imago.data.sources.MNIST"),
        ("logger.x", "imago.loggers.Path"),
        ("elsewhere", "imago.schedules.Warmup"),
    ],
)
def test_a_group_is_made_of_its_own_packages(key: str, name: str) -> None:
    with pytest.raises(UserError, match="can be constructed in"):
        target(name, key)


def test_what_only_the_program_knows_cannot_be_configured(composed: Any) -> None:
    config = composed()
    config["callbacks"]["log"]["run"] = "somewhere"
    with pytest.raises(UserError, match=r"callbacks\.log\.run: no such setting"):
        check(config)


def test_nothing_outside_the_allow_list_is_built_at_any_depth(composed: Any, tmp_path: Path) -> None:
    evil = {"_target_": "os.mkdir", "path": str(tmp_path / "evil")}
    for node in (evil, {"_target_": "imago.schedules.Warmup", "images": [{"deeper": evil}]}):
        with pytest.raises(UserError, match=r"_target_=os\.mkdir: only .* can be constructed"):
            build(node, "model")
    model = composed()["model"]
    model["generator"]["hidden"] = [evil]
    spec = {"channels": 1, "height": 4, "width": 4, "levels": 256, "classes": 0}
    with pytest.raises(UserError):
        model_of({"config": {"model": model}, "spec": spec, "state_dict": {}, "progress": {}}, averaged=True)
    assert not (tmp_path / "evil").exists()


def test_build_gives_what_the_node_describes() -> None:
    warmup = build({"_target_": "imago.schedules.Warmup"}, "model", images=10)
    assert isinstance(warmup, Warmup)
    assert warmup(5, 0.0) == 0.5
    with pytest.raises(UserError, match=r"^model: end=1: must be larger than start=2"):
        build({"_target_": "imago.schedules.LinearDecay", "end": 1, "start": 2}, "model")


def test_a_partial_node_becomes_a_function_of_the_rest(composed: Any) -> None:
    model = composed("model=gan")["model"]
    made = build(model, "model", spec=ImageSpec(1, 4, 4))
    generator, discriminator = made.configure_optimizers()
    assert isinstance(generator, torch.optim.Adam)
    assert list(generator.param_groups[0]["betas"]) == model["optimizer"]["generator"]["betas"]
    assert discriminator is not generator


@pytest.mark.parametrize("value", ["${oc.env:HOME}", "a ${b} c", "$${x}"])
def test_a_text_is_never_an_interpolation(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"^model\.images: .* holds an interpolation"):
        build({"_target_": "imago.schedules.Warmup", "images": value}, "model")


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({"_target_": "imago.schedules.Warmup", "image": 3}, "^model: TypeError: .*argument"),
        (
            {"_target_": "imago.schedules.Warmup", "images": {"_target_": "imago.schedules.Warmup"}},
            "^model.images: Type",
        ),
        ({"images": 3}, "^model._target_=None: only"),
    ],
)
def test_whatever_a_constructor_says_names_the_place(node: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(node, "model")


@pytest.mark.parametrize(("script", "group"), [("evaluate", "metrics"), ("distance", "metrics"), ("figure", "figure")])
def test_a_script_lists_the_choices_of_its_own_groups(script: str, group: str) -> None:
    template = OmegaConf.load(CONF / f"{script}.yaml").hydra.help.template
    assert f"{group}: {', '.join(GROUPS[group])}\n" in template
    assert "$APP_CONFIG_GROUPS" not in template


def test_whole_numbers_are_counts_however_they_are_written(composed: Any) -> None:
    """Everywhere a count is read: 5e6 is an integer then, in the settings and in the configuration that is kept."""
    given = {"name": "x", "rate": 2.0, "inner": {"size": 5e6}}
    settings = check_settings(given, Outer)
    assert (settings.inner.size, given["inner"]) == (5_000_000, {"size": 5_000_000})
    assert isinstance(settings.inner.size, int)
    assert isinstance(settings.rate, float), "a number that may be any stays as it is"
    config = composed("model=vae", "data=digits", "max_images=5e6", "model.latent=1.6e1")
    for imported in (False, True):
        settings = check(config, imported=imported)
        assert (settings.max_images, config["max_images"], config["model"]["latent"]) == (5_000_000, 5_000_000, 16)
    assert type(config["max_images"]) is type(config["model"]["latent"]) is int
