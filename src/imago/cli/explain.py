"""What to say of a command that Hydra cannot compose: the setting that is wrong, and what would be right."""

import difflib
import re
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from hydra._internal.utils import get_args_parser
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from imago.config import (
    CONF,
    REFUSED_TRAINER_KEYS,
    TrainerSettings,
    check_experiment,
    composed,
    defaults_of,
    keys_of,
    without_hydra,
)
from imago.errors import UserError, how_to_install
from imago.untrusted import first_line

# Hydra's own groups are extended by packages.
PLUGINS = {
    **dict.fromkeys(("joblib", "submitit_local", "submitit_slurm"), how_to_install("sweep")),
    "ray": "pip install hydra-ray-launcher",
    "rq": "pip install hydra-rq-launcher",
    "ax": "pip install hydra-ax-sweeper",
    "nevergrad": "pip install hydra-nevergrad-sweeper",
    "colorlog": "pip install hydra-colorlog",
}

# What others call our settings.
ALIASES = {
    **dict.fromkeys(("epochs", "max_epochs", "num_epochs", "n_epochs"), "max_images"),
    **dict.fromkeys(("steps", "max_steps", "num_steps", "iterations"), "max_updates"),
    "max_time": "max_seconds",
    "learning_rate": "lr",
    "dataset": "data",
    "noise": "noise_schedule",
    "gpus": "devices",
}

# What others call choices of our groups.
CALLED = {"metrics": dict.fromkeys(("fid", "kid", "is", "inception_score", "torch_fidelity", "fidelity"), "inception")}

# What lists the choices of a group, if not the help of the command.
LISTED = {"model": "imago models", "data": "imago data", "experiment": "imago experiments"}
# A list longer than this is left out where a choice so like the given one is there.
MANY, SURE = 12, 0.75


def explain(error: Exception, script: str) -> str:
    """One line for an error of Hydra or OmegaConf.

    Args:
        error: by which composing ended.
        script: that was called, such as ``train``.
    """
    text = " ".join(str(error).split())
    if isinstance(error, OverrideParseException):
        key, given, value = error.override.partition("=")
        special = given and re.fullmatch(r"[^\"'\\]*[\s()\u0080-\U0010ffff][^\"'\\]*", value)
        quoted = f"""; as text '{key}="{value}"'""" if special else ""
        return f"{error.override}: cannot be read; write KEY=VALUE, several values as KEY=[A,B]{quoted}"
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, name = error.missing_cfg_file.rpartition("/")
        # Hydra does not list the choices of a list.
        options = error.options or sorted(path.stem for path in (CONF / group).glob("*.yaml"))
        if group.startswith("hydra/") and name in PLUGINS:
            return f"{group}={name}: its package is missing; {PLUGINS[name]}"
        return f"{group}={name}: no such choice; {_choice(group, name, list(options))}"
    if "does not support sweep type" in text:
        given = next((o for o in sys.argv[1:] if "interval(" in o), "an interval")
        return f"{given}: for a search, with hydra/sweeper=optuna and objective=NUMBER; else list values"
    several = re.search(r"Ambiguous value for argument '(.+?)'", text)
    if several:
        key, _, value = several[1].partition("=")
        return f"{several[1]}: several values; a run for each takes -m, a list is written {key}=[{value}]"
    if text.startswith("Error merging override") and isinstance(error.__cause__, Exception):
        return f"{text.removeprefix('Error merging override ')}: {first_line(error.__cause__)}; give another value"
    found = re.search(r"(?:Could not override|config group) '([^']+)'", text)
    if not found:
        return text
    experiment = re.search(r"In 'experiment/([^']+)'", text)
    if experiment:  # it changes what this model does not have
        try:
            check_experiment(experiment[1], _composed(script, found[1])[1]["model"])
        except UserError as mismatch:
            return str(mismatch)
        return text
    whole = re.search(r"Override (\S+) looks like a config group", text)
    given = next((o for o in sys.argv[1:] if o.split("=")[0] == found[1]), whole[1] if whole else found[1])
    config, choices = _composed(script, found[1])
    key, _, value = given.partition("=")
    return f"{given}: {_meant(key, value, config, choices) or _known_beside(key, config, choices)}"


def explain_option(option: str, script: str) -> str | None:
    """One line for an option that there is not, such as ``--batch-size``, where a setting is meant."""
    key, _, value = option.lstrip("-").partition("=")
    key = key.replace("-", "_")
    after = sys.argv[sys.argv.index(option) + 1 :] if option in sys.argv else []
    if not value and after and "=" not in after[0] and not after[0].startswith("-"):
        value = after[0]
    config, choices = _composed(script, key)
    if key in choices or key in keys_of(config):
        return f"{option}: settings have no dashes; write {key}={shlex.quote(value) if value else 'VALUE'}"
    meant = _meant(key, value, config, choices)
    return (
        f"{option}: no such option, settings are given as KEY=VALUE; {meant.removeprefix('no such setting; ')}"
        if meant
        else None
    )


def _meant(key: str, value: str, config: Mapping[str, Any], choices: Mapping[str, Any]) -> str | None:
    """The remedy for a key that a script does not have, where it can be told what is meant.

    Args:
        key: dotted, or a group.
        value: that it was given.
        config, choices: what the script has instead.
    """
    value = value or "VALUE"
    place, _, given = key.split("@")[-1].replace("/", ".").rpartition(".")
    name = ALIASES.get(given, given)
    if place == "trainer" and given in REFUSED_TRAINER_KEYS:
        return f"has no effect with the models' own optimisation; {REFUSED_TRAINER_KEYS[given]}"
    if place == "trainer" and given in TrainerSettings.__dataclass_fields__:
        return f"write +{key}={value}"
    groups = [
        group for group in choices if group != key and name in (group.rpartition("/")[2], *group.split("/")[1:-1])
    ]
    if groups:
        return f"choose with {' or '.join(f'{group}={value}' for group in groups)}"
    inside = key if key.startswith("model/") else f"model/{name}"
    if (CONF / inside).is_dir() or (key.startswith("model/") and (CONF / inside).parent.is_dir()):
        if any(re.match(r"model=.*[,(]", argument) for argument in sys.argv):  # Hydra looks at the default one
            return f"is no group that every model has; of those of a sweep write {inside}=choice({value})"
        return _not_of_this_model(inside, choices)
    if (CONF / key).is_dir():
        return "a group of train.py, which this script does not have; leave it out, or see --help"
    within = f"{place.split('.')[0]}." if place else ""
    same = [other for other in keys_of(config) if other.rpartition(".")[2] == name and other.startswith(within)]
    if name == "max_images" and same:
        return (
            "an epoch is one pass over the training images, and a run ends after max_images, max_updates or max_seconds"
        )
    if key in same:  # it is there without the settings that are swept
        return "not all of these combinations have this setting; give those that have it a command of their own"
    if same:
        return f"no such setting; did you mean {' or '.join(f'{other}={value}' for other in same[:4])}?"
    return None


def _known_beside(key: str, config: Mapping[str, Any], choices: Mapping[str, Any]) -> str:
    place, _, name = key.rpartition(".")
    there: Any = config
    for part in place.split(".") if place else ():
        there = there.get(part) if isinstance(there, Mapping) else None
    known = (
        sorted(str(other) for other in there if not str(other).startswith("_")) if isinstance(there, Mapping) else []
    )
    if known:
        return f"no such setting; {_one_of(name, [*known, *choices], 'known here are', known)}"
    top = place.split(".")[0]
    if top not in config:
        return f"no such setting; {_one_of(top, config, 'known are')}"
    return f"no such setting; there are none here; leave it out, or choose another {top}=NAME"


def _not_of_this_model(group: str, choices: Mapping[str, Any]) -> str:
    own = [name for name in choices if name.startswith("model/")]
    if "model" not in choices:
        told = f"of a checkpoint's model can be chosen {', '.join(own)}" if own else "this script has no model"
        return f"belongs to how a model is trained; {told}"
    files = sorted((CONF / "model").glob("*.yaml"))
    having = [file.stem for file in files if group.removeprefix("model/") in defaults_of(file)]
    told = f"model={choices['model']} has no group {group}; its own are {', '.join(own)}; leave it out"
    return f"{told}, or choose a model that has one: {', '.join(having)}" if having else told


def _choice(group: str, name: str, options: list[str]) -> str:
    """The choice of a group that is meant, or all of them."""
    meant = CALLED.get(group, {}).get(name.lower())
    if meant in options:
        return f"did you mean {meant}? choose one of {', '.join(options)}"
    own = len(options) > len(list((CONF / group).glob("*.yaml")))  # of a user's folder, which the lists do not know
    return _one_of(name, options, "choose one of", listed="--help" if own else LISTED.get(group, "--help"))


def _one_of(name: str, known: Any, told: str, shown: Any = None, listed: str = "--help") -> str:
    """The nearest of what is known, of equally near ones that with the same letters, and all of it.

    Where that would be many, and the nearest is surely meant, instead of all what lists them.
    """
    close = difflib.get_close_matches(name, known, 3) or difflib.get_close_matches(name.lower(), known, 3)
    close.sort(key=lambda other: sorted(other) != sorted(name.lower()))
    shown = list(shown or known)
    alike = difflib.SequenceMatcher(None, close[0], name.lower()).ratio() if close else 0
    if len(shown) > MANY and close and (alike >= SURE or sorted(close[0]) == sorted(name.lower())):
        return f"did you mean {close[0]}? {listed} lists all {len(shown)}"
    return f"{f'did you mean {close[0]}? ' if close else ''}{told} {', '.join(shown)}"


def _composed(script: str, without: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the command means without one of its settings: the configuration, and the choices of its groups."""
    given, _ = get_args_parser().parse_known_args(sys.argv[1:])
    settings = [o for o in given.overrides if re.match(r"[\w/.@]+=[^,]*$", o) and o.split("=")[0] != without]
    place = [f"hydra.searchpath=[{Path(given.config_dir).absolute()}]"] if given.config_dir else []
    for overrides in ([*place, *settings], [o for o in settings if o.startswith("model=")], []):
        try:
            config = composed(script, overrides)
        except (HydraException, OmegaConfBaseException):
            continue
        choices = {name: choice for name, choice in config.hydra.runtime.choices.items() if "hydra" not in name}
        return cast(dict[str, Any], OmegaConf.to_container(without_hydra(config))), choices
    raise AssertionError(f"conf/{script}.yaml does not compose")
