"""The configuration is checked before anything is built from it, and things are built from it here.

Hydra composes the configuration. This module holds every value against the thing that will receive it: a node with a
``_target_`` against the signature of that class (pydantic reads the annotations, so ``PositiveInt`` in a constructor is
both the documentation of a range and its check), the top level against :class:`Settings`. Whatever is wrong becomes one
:class:`~imago.errors.UserError` that names the key, the value and what would be right.
"""

import difflib
import functools
import importlib
import inspect
import json
import math
import os
import re
import sys
import traceback
import typing
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from pydantic import ConfigDict, Field, PositiveFloat, PositiveInt, TypeAdapter, ValidationError

from imago import signatures
from imago.capacity import enough, exhausted
from imago.errors import UserError, printable
from imago.untrusted import check_plain, entries, first_line, shortened

# Inside an installed package, or beside src/ where that is worked on.
CONF = next(path / "conf" for path in (Path(__file__).parent, Path(__file__).parents[2]) if (path / "conf").is_dir())

# What each group may construct: classes of these packages, defined there and not only imported there, or these very
# functions and classes. Anything else is refused before it is imported. A model opens no file and asks no network, so
# neither does what a checkpoint says of its model.
PACKAGES = {
    "model": ("models", "diffusion", "nets", "distributions", "schedules", "optimizers"),
    "data": ("data",),
    "metrics": ("evaluation",),
    "callbacks": ("training.callbacks",),
    "figure": ("figures",),
}
ALLOWED = {group: tuple(f"imago.{package}." for package in packages) for group, packages in PACKAGES.items()}
ALLOWED["model"] += ("torch.optim.",)
ALLOWED["figure"] += ALLOWED["model"]
# Beside ours. Nothing of these groups is ever built from a checkpoint.
ALLOWED["callbacks"] += ("lightning.pytorch.callbacks.",)
ALLOWED["logger"] = ("lightning.pytorch.loggers.",)
ALLOWED["trainer"] = ("lightning.pytorch.profilers.",)
ALLOWED_BY_NAME = {
    "data": (
        "imago.data.folder_data",
        "imago.data.stream_data",
        "imago.data.toy1d_data",
        "imago.data.toy2d_data",
    ),
    "trainer": ("lightning.Trainer",),
    "logger": tuple(f"imago.loggers.{name}" for name in ("wandb", "tensorboard", "mlflow", "trackio")),
}
PLUGINS: tuple[str, ...] = ()  # packages of the user's own, see allow

# Lightning would accept these and do nothing, or something else than the name says, under manual optimisation.
REFUSED_TRAINER_KEYS = {
    "gradient_clip_val": "use model.gradient_clip, which clips each player's gradient",
    "gradient_clip_algorithm": "use model.gradient_clip, which clips each player's gradient",
    "accumulate_grad_batches": "use a larger data.batch_size",
    "max_epochs": "use max_images, max_updates or max_seconds",
    "max_steps": "use max_images or max_updates",
    "max_time": "use max_seconds",
    "val_check_interval": "use every.quality (in images)",
    "check_val_every_n_epoch": "use every.quality (in images)",
    "log_every_n_steps": "use every.log (in images)",
    "callbacks": "use the callbacks group",
    "logger": "use the logger group",
}
# One of these is there where a GPU can be used: of NVIDIA, of AMD, and Windows's. Looked for before torch is loaded.
DRIVERS = ("/dev/nvidiactl", "/dev/nvidia0", "/dev/kfd", "/dev/dxg")
# By what a launcher of several machines tells each where the others are.
LAUNCHERS = ("MASTER_ADDR", "SLURM_JOB_ID", "LSB_JOBID")

# By which constructors refuse values that passed the check against their signatures.
CONSTRUCTION = (ValueError, TypeError, RuntimeError, ArithmeticError, LookupError, AttributeError, MemoryError)

# Bytes of a run's name: W&B takes 128 characters, file systems 255 bytes.
LONGEST_NAME = 128

# What W&B takes for the name of a project or a team.
WandbName = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[^/\\#?%:]*$")]

# A number that a run logs.
LoggedName = Annotated[str, Field(pattern="^(train|val|test|time)/.")]

S = TypeVar("S")


# Whether networks are compiled, or by which of torch's backends.
Compile = bool | Literal["inductor", "cudagraphs", "aot_eager", "eager"]


@dataclass(frozen=True)
class Every:
    """Intervals in training images."""

    log: PositiveInt
    samples: PositiveInt
    likelihood: PositiveInt
    quality: PositiveInt
    checkpoints: PositiveInt
    halvings: Annotated[int, Field(ge=0, le=20)]


@dataclass(frozen=True)
class Settings:
    """The top level of train.yaml, beside the groups."""

    seed: Annotated[int, Field(ge=0, lt=2**32)]
    objective: LoggedName | Annotated[list[LoggedName], Field(min_length=1)] | None
    conditional: bool
    resume: str | None
    max_images: PositiveInt | None
    max_updates: PositiveInt | None
    max_seconds: PositiveFloat | None
    max_cpu_seconds: PositiveFloat | None
    max_wall_seconds: PositiveFloat | None
    measuring_share: PositiveFloat | None
    every: Every
    name: str | None
    tags: list[Annotated[str, Field(min_length=1, max_length=64)]]
    logs: Annotated[str, Field(min_length=1)]
    plugins: Sequence[str] = ()
    estimate: bool = False
    compile: Compile = False


@dataclass(frozen=True)
class TrainerSettings:
    """What a run may say about Lightning's trainer; the rest is the framework's.

    16-bit floats are not offered: they need loss scaling, which several optimisers cannot share.
    """

    accelerator: Literal["auto", "cpu", "gpu", "cuda", "mps"] = "auto"
    devices: int | Literal["auto"] | Annotated[list[int], Field(min_length=1)] = 1
    num_nodes: PositiveInt | None = None
    strategy: Annotated[str, Field(pattern=r"^(auto|ddp|ddp_find_unused_parameters_(true|false))$")] | None = None
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    benchmark: bool | None = None
    deterministic: bool | Literal["warn"] | None = None
    sync_batchnorm: bool = False
    detect_anomaly: bool = False
    profiler: Any = None


# What only the program knows, and passes to those that ask for it.
PROVIDED = {"callbacks": {"run", "metrics", "config"}, "logger": {"run", "name", "config", "tags", "group"}}
GROUPS = ("data", "model", "trainer", "callbacks", "metrics", "logger")


def plain(config: DictConfig) -> dict[str, Any]:
    """The configuration with every interpolation resolved, as plain dictionaries, lists and numbers.

    Without ``plugins``, which are of the command and not of what it makes.

    Raises:
        UserError: an interpolation or a mandatory value is missing, or a value is of no use to anything: a number that
            is none or beyond 64 bits, or text that holds control characters.
    """
    try:
        resolved = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        value = "logs/NAME, a run or a folder of runs" if error.full_key == "checkpoint" else "VALUE"
        raise UserError(f"{error.full_key}: missing; give {error.full_key}={value}") from None
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None) or "configuration"
        raise UserError(f"{key}: {str(error).splitlines()[0]}; give it a value on the command line") from None
    for place, value in entries(resolved, ""):
        key = place.removeprefix(".")
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{key}={value}: must be a finite number; where there is to be no limit, null says so")
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise UserError(f"{key}={shortened(str(value))}: more than 64 bits; give a smaller number")
        if isinstance(value, str) and printable(value.replace("\n", "\0").replace("\t", "\0")) != value:
            raise UserError(f"{key}={shortened(repr(value)[1:-1])}: holds a control character; leave it out")
    values = typing.cast(dict[str, Any], resolved)
    values.pop("plugins", None)
    return values


def check_top(config: Mapping[str, Any]) -> Settings:
    """Check what train.yaml says beside the groups; needs nothing that they would construct.

    Raises:
        UserError: naming the first key that is unknown, of the wrong type or of an impossible value.
    """
    settings = check_settings(config, Settings, GROUPS)
    for name, value in config.items():
        check_plain(value, name)  # what a checkpoint could not hold, so that it could not be read
    limits = ("max_images", "max_updates", "max_seconds", "max_cpu_seconds", "max_wall_seconds")
    if all(getattr(settings, limit) is None for limit in limits):
        raise UserError(f"{', '.join(f'{limit}=null' for limit in limits)}: give at least one, e.g. max_images=1000000")
    if settings.name is not None:
        check_name(settings.name)
    for group in ("trainer", *PROVIDED):
        if not isinstance(config[group], Mapping):
            raise UserError(f"{group}={config[group]}: expected a group of settings; choose one with {group}=NAME")
    return settings


def check(config: Mapping[str, Any], *, imported: bool = True) -> Settings:
    """Check a resolved configuration of train.yaml.

    Args:
        config: plain types.
        imported: see :func:`check_node`.

    Raises:
        UserError: naming the first key that is unknown, of the wrong type or of an impossible value.
    """
    settings = check_top(config)
    _check_trainer(config["trainer"])
    for group in ("data", "model", "trainer", "metrics"):
        check_node(config[group], group, {"spec"} if group == "model" else (), imported=imported)
    for group, provided in PROVIDED.items():
        for name, node in config[group].items():
            if node is not None:
                ours = isinstance(node, Mapping) and str(node.get("_target_")).startswith("imago.")
                check_node(node, f"{group}.{name}", provided if ours else (), imported=imported)
    return settings


def check_name(name: str, key: str = "name", place: str = "logs") -> None:
    """Refuse a run's name that is no name of a folder inside ``logs``, or another's inside another place.

    Raises:
        UserError: it leads elsewhere, would be hidden or taken for an option, or is too long.
    """
    if not name.strip() or "/" in name or "\\" in name:
        raise UserError(
            f"{key}={name}: names a folder inside {place}; give a name without slashes, and logs=PATH beside it"
        )
    if name.startswith((".", "-")) or name != name.strip():
        raise UserError(f"{key}={name}: begins with a dot, a dash or a space, or ends with one; begin with a letter")
    if len(name.encode()) > LONGEST_NAME:
        raise UserError(f"{key}={name}: {len(name.encode())} bytes; give a name of at most {LONGEST_NAME}")


def check_settings(config: Any, schema: type[S], groups: Collection[str] = (), key: str = "") -> S:
    """Check plain settings against the annotations of a dataclass, which may hold further dataclasses.

    Args:
        config: the resolved settings; a count that was written as 1e6 is made an integer in them.
        schema: the dataclass; its fields are the settings that there are, those without a default must be given.
        groups: names beside them that are checked elsewhere.
        key: where the settings stand, for messages.

    Returns:
        The settings as an instance of the dataclass.

    Raises:
        UserError: naming the first key that is unknown, missing, of the wrong type or of an impossible value.
    """
    if not isinstance(config, Mapping):
        raise UserError(f"{key}={config}: expected a group of settings")
    hints = typing.get_type_hints(schema, include_extras=True)
    _check_names(config, [*hints, *groups], key)
    required = [entry.name for entry in fields(schema) if entry.default is MISSING]  # type: ignore[arg-type]
    for name in (*required, *groups):
        if name not in config:
            choices = ", ".join(sorted(path.stem for path in (CONF / name).glob("*.yaml"))) if name in groups else ""
            remedy = f"nothing chosen; choose one of {choices}" if choices else "missing; give it a value"
            raise UserError(f"{_below(key, name)}: {remedy}")
    values = {name: config[name] for name in hints if name in config}
    for name, value in values.items():
        if is_dataclass(hints[name]):
            values[name] = check_settings(value, hints[name], key=_below(key, name))
        else:
            values[name] = _check_value(value, hints[name], _below(key, name))
            _keep(config, name, value, values[name])
    return schema(**values)


def _check_trainer(node: Mapping[str, Any]) -> None:
    """Also what the trainer would only find out by a traceback, or by waiting for machines that never come."""
    for key, remedy in REFUSED_TRAINER_KEYS.items():
        if node.get(key) is not None:
            raise UserError(f"trainer.{key}={node[key]}: has no effect with the models' own optimisation; {remedy}")
    given = {name: value for name, value in node.items() if name != "_target_"}
    settings = check_settings(given, TrainerSettings, key="trainer")
    devices = settings.devices
    if settings.accelerator == "cpu" and devices != "auto" and (not isinstance(devices, int) or devices < 1):
        raise UserError(f"trainer.devices={devices}: of a CPU give the number of processes, 1 or more")
    if (settings.num_nodes or 1) > 1 and not any(name in os.environ for name in LAUNCHERS):
        raise UserError(
            f"trainer.num_nodes={settings.num_nodes}: nothing says where the other machines are; start the command by "
            "a cluster's launcher (srun, torchrun), or leave num_nodes out"
        )


def check_machine(node: Mapping[str, Any]) -> None:
    """Refuse a trainer for a GPU where there is none, before torch is loaded, which takes its time to say so.

    Args:
        node: of the trainer.

    Raises:
        UserError: no driver is there.
    """
    accelerator = node.get("accelerator")
    if accelerator in ("gpu", "cuda") and sys.platform == "linux" and not any(map(os.path.exists, DRIVERS)):
        raise UserError(
            f"trainer.accelerator={accelerator}: this machine has no GPU; choose trainer=cpu or trainer=auto"
        )


def allow(package: str) -> None:
    """Let configurations and checkpoints construct the classes of a package of the user's own, in every group.

    Args:
        package: its full name; it is imported when something of it is constructed.

    Raises:
        UserError: not the name of a package.
    """
    global PLUGINS
    if not re.fullmatch(r"([a-zA-Z_]\w*\.)*[a-zA-Z_]\w*", package, re.ASCII):
        raise UserError(f"plugins={package}: not the name of a Python package; write it as in import NAME")
    PLUGINS = (*(other for other in PLUGINS if other != f"{package}."), f"{package}.")


def is_of_plugin(found: Any) -> bool:
    """Whether a class is of a package that was allowed."""
    return _is_class_of(found, PLUGINS)


def _check_allowed(name: Any, key: str, found: Any = None) -> None:
    """Refuse a ``_target_`` by its name, or by what that names; arguments and errors as in :func:`target`."""
    group = re.split(r"\W", key, maxsplit=1)[0]
    packages, by_name = (*ALLOWED.get(group, ()), *PLUGINS), ALLOWED_BY_NAME.get(group, ())
    full = isinstance(name, str) and re.fullmatch(r"([a-zA-Z]\w*\.)+[a-zA-Z]\w*", name, re.ASCII)
    if full and name in by_name:
        return
    if not full or not name.startswith(packages) or not (found is None or _is_class_of(found, packages)):
        able = ", ".join([*by_name, *(f"classes of {package[:-1]}" for package in packages)]) or "nothing"
        named = str(name).partition(".")[0]
        own = full and named not in ("imago", "torch", "lightning", *sys.stdlib_module_names)
        remedy = f"of a package of your own? plugins=[{named}] allows it; else " if own else ""
        raise UserError(f"{key}._target_={shortened(str(name))}: {remedy}only {able} can be constructed in {group}")


def _is_class_of(found: Any, packages: tuple[str, ...]) -> bool:
    return inspect.isclass(found) and f"{found.__module__}.".startswith(packages)


def target(name: Any, key: str) -> Callable[..., Any]:
    """The class or function that a ``_target_`` names.

    Args:
        name: its full name.
        key: where it stands; the first part is the group, which says what is allowed.

    Raises:
        UserError: not allowed there, or no such thing.
    """
    _check_allowed(name, key)
    module_name, _, attribute = name.rpartition(".")
    try:
        found = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        other = isinstance(error, ModuleNotFoundError) and not f"{module_name}.".startswith(f"{error.name}.")
        remedy = "install it" if other else "check the spelling"
        raise UserError(f"{key}._target_={name}: {error}; {remedy}") from None
    except Exception as error:  # whatever a package of the user's own does when it is imported
        raise UserError(f"{key}._target_={name}: cannot be imported ({raised(error)})") from error
    _check_allowed(name, key, found)
    return typing.cast(Callable[..., Any], found)


def raised(error: Exception) -> str:
    """What an exception of the user's own code says, and where: ``RuntimeError: no GPU, my_models/net.py line 7``."""
    if isinstance(error, SyntaxError):  # says where by itself
        return f"SyntaxError: {first_line(error)}"
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {first_line(error)}, {Path(place.filename).name} line {place.lineno}"


def choices_of(group: str, base: type) -> list[str]:
    """The names of a group's choices that construct a ``base``: ``choices_of("model", Autoregressive)``."""
    names = []
    for path in sorted((CONF / group).glob("*.yaml")):
        made = target(OmegaConf.select(OmegaConf.load(path), "_target_"), f"{group}={path.stem}")
        if inspect.isclass(made) and issubclass(made, base):
            names.append(path.stem)
    return names


def check_has(model: object, base: type, setting: str, value: Any, what: str) -> None:
    """Refuse a setting of models of one class that is given for another model.

    Args:
        model: for which it is given.
        base: the class of those that have it.
        setting: its name.
        value: ``None`` if it is not given.
        what: such models have, for the message.

    Raises:
        UserError: naming the models that have it.
    """
    if value is not None and not isinstance(model, base):
        raise UserError(
            f"{setting}={value}: a {type(model).__name__} has no {what}; models that have one are "
            f"{', '.join(choices_of('model', base))}; leave {setting}=null"
        )


def defaults_of(file: Path) -> dict[str, Any]:
    """What the defaults list of a yaml file chooses from groups: ``{"override /model": "dcgan"}``."""
    content = OmegaConf.to_container(OmegaConf.load(file))
    listed = content.get("defaults", []) if isinstance(content, dict) else []
    return {str(key): value for entry in listed if isinstance(entry, dict) for key, value in entry.items()}


def composed(script: str, overrides: Sequence[str]) -> DictConfig:
    """The configuration of a script, as its command line would compose it, and Hydra's own below ``hydra``.

    Raises:
        HydraException, OmegaConfBaseException: an override cannot be read or means nothing.
    """
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    before, GlobalHydra.instance().hydra = GlobalHydra.instance().hydra, None  # of whoever is composing
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return compose(script, list(overrides), return_hydra_config=True)
    finally:
        GlobalHydra.instance().hydra = before


def quoted(text: str) -> str:
    """Text of whatever characters as the value of an override."""
    escaped = re.sub(r"(\\*)('|$)", lambda found: 2 * found[1] + ("\\'" if found[2] else ""), text)
    return f"'{escaped}'"


def searched(folders: Sequence[Path]) -> list[str]:
    """Overrides that let configurations be found in folders beside ``conf/``."""
    return [f"hydra.searchpath=[{','.join(quoted(f'file://{folder}') for folder in folders)}]"] if folders else []


def without_hydra(config: DictConfig) -> DictConfig:
    """What a configuration says beside Hydra's own."""
    return OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])


def experiments(places: Collection[Path], model: str, data: str | None = None) -> list[str]:
    """The experiments that there are for a model, and for a data set where one is given.

    Args:
        places: folders of configurations.
        model, data: choices of these groups.
    """
    found = []
    for file in [path for place in places for path in (place / "experiment").glob("*.yaml")]:
        chosen = defaults_of(file)
        if chosen.get("override /model") == model and (data is None or chosen.get("override /data", data) == data):
            found.append(file.stem)
    return sorted(found)


def check_experiment(experiment: str | None, model: str) -> None:
    """Refuse an experiment for a model that it was not made for.

    Args:
        experiment: the choice of that group, if any.
        model: the choice of the model group.

    Raises:
        UserError: saying which model it is for, and which experiments there are for this one.
    """
    file = CONF / "experiment" / f"{experiment}.yaml"
    made_for = defaults_of(file).get("override /model", model) if file.is_file() else model
    if made_for == model:
        return
    own = experiments([CONF], model)
    others = f"choose one for it: {', '.join(own)}" if own else f"leave the experiment out (there is none for {model})"
    raise UserError(
        f"experiment={experiment} model={model}: this experiment is for model={made_for}; leave model={model} out, or "
        f"{others}"
    )


def check_node(node: Any, key: str, provided: Collection[str] = (), *, imported: bool = True) -> None:
    """Check a node with a ``_target_`` against the target's signature, and the nodes below it.

    Args:
        node: the plain node; a count in it that was written as 1e6 is made an integer.
        key: where it stands, for messages.
        provided: arguments of the target that the program gives and the node must not.
        imported: whether the target may be imported for it; if not, its signature is read from its source text, and
            what that does not tell is believed.

    Raises:
        UserError: naming the first key that is unknown, missing, of the wrong type or of an impossible value.
    """
    if not isinstance(node, Mapping):
        raise UserError(f"{key}={node}: expected a group of settings; choose one with {key.replace('.', '/')}=NAME")
    if "_target_" not in node:
        raise UserError(f"{key}: nothing chosen (no _target_); choose one with {key.replace('.', '/')}=NAME")
    name = node["_target_"]
    _check_allowed(name, key)
    if not isinstance(node.get("_partial_", True), bool):
        raise UserError(f"{key}._partial_={node['_partial_']}: true or false; leave it as it is")
    values = {name: value for name, value in node.items() if name not in ("_target_", "_partial_")}
    arguments = arguments_of(target(name, key)) if imported else signatures.arguments_of(name)
    hints, required, others = arguments or ({}, [], True)
    if not others:
        _check_names(values, [name for name in hints if name not in provided], key)
    missing = [name for name in required if name not in values and name not in provided]
    if missing and not node.get("_partial_"):
        raise UserError(f"{key}.{missing[0]}: missing; give it a value")
    for name, value in values.items():
        _keep(node, name, value, _check_below(value, hints.get(name, Any), f"{key}.{name}", imported))


def arguments_of(function: Callable[..., Any]) -> signatures.Arguments:
    """What a function or a class's constructor takes by name.

    Settings that it hands on, ``**settings: Unpack[TypedDict]``, are among them.

    Returns:
        the annotation of each, those that must be given, and whether any others may be.
    """
    initialiser = function.__init__ if inspect.isclass(function) else function
    try:
        annotations = typing.get_type_hints(initialiser, include_extras=True)
    except NameError:  # of a package that is missing, as those of some of Lightning's loggers are
        annotations = {}
    hints: dict[str, Any] = {}
    required, others = [], False
    for name, parameter in inspect.signature(function).parameters.items():
        hint = annotations.get(name, Any)
        if parameter.kind is parameter.VAR_KEYWORD:
            others = typing.get_origin(hint) is not typing.Unpack
            hints |= {} if others else typing.get_type_hints(typing.get_args(hint)[0], include_extras=True)
        elif parameter.kind is not parameter.VAR_POSITIONAL:
            hints[name] = hint
            if parameter.default is parameter.empty:
                required.append(name)
    return hints, required, others


def _keep(node: Mapping[str, Any], name: str, given: Any, checked: Any) -> None:
    if checked is not given and isinstance(node, dict):
        node[name] = checked


def _check_below(value: Any, hint: Any, key: str, imported: bool) -> Any:
    if isinstance(value, Mapping) and "_target_" in value:
        check_node(value, key, imported=imported)
    elif isinstance(value, Mapping) and any(isinstance(v, Mapping) and "_target_" in v for v in value.values()):
        for name, item in value.items():
            check_node(item, f"{key}.{name}", imported=imported)
    else:
        return _check_value(value, hint, key)
    return value


def keys_of(node: Mapping[str, Any], key: str = "") -> Iterator[str]:
    """Dotted keys of all values, those of groups too."""
    for name, value in node.items():
        yield f"{key}{name}"
        if isinstance(value, Mapping):
            yield from keys_of(value, f"{key}{name}.")


def _check_names(given: Collection[str], known: Collection[str], key: str) -> None:
    for name in given:
        if name not in known:
            inside = keys_of(given) if isinstance(given, Mapping) and not key else ()
            close = [other for other in inside if other.endswith(f".{name}")][:1]
            close = close or difflib.get_close_matches(str(name), known, 1)
            hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(sorted(known)) or 'none'}"
            raise UserError(f"{_below(key, name)}: no such setting; {hint}")


def _below(key: str, name: str) -> str:
    return f"{key}.{name}" if key else name


def _check_value(value: Any, hint: Any, key: str) -> Any:
    """Hold a plain value against an annotation; JSON's types are strict where it matters and let a list be a tuple.

    Returns:
        The value, with integers for whole numbers such as 5e6 where only these are right.
    """
    adapter: TypeAdapter[Any] = TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True))
    try:
        adapter.validate_json(json.dumps(value), strict=True)
        return value
    except ValidationError:
        whole = _whole(value)
    try:
        adapter.validate_json(json.dumps(whole), strict=True)
        return whole
    except ValidationError as error:
        internal = ("is_instance_of", "needs_python_object")
        reasons = {e["msg"][0].lower() + e["msg"][1:] for e in error.errors() if e["type"] not in internal}
        if not reasons and (CONF / key.replace(".", "/")).is_dir():
            raise UserError(f"{key}={value}: is a group of settings; write {key.replace('.', '/')}={value}") from None
        told = f"{key}={shortened(json.dumps(value))}: {' or '.join(sorted(reasons)) or 'wrong type'}"
        if "input should be a valid string" in reasons and isinstance(value, int | float):
            told += f"; text that would be read as a number is quoted twice: {key}=\"'TEXT'\""
        if "input should be a valid boolean" in reasons:
            told += "; write true or false"
        raise UserError(told) from None


def _whole(value: Any) -> Any:
    """A value with integers for the whole numbers in it."""
    if isinstance(value, dict):
        return {name: _whole(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_whole(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _check_targets(node: Any, key: str) -> None:
    """Hold every ``_target_`` at any depth against what is allowed there."""
    if isinstance(node, Mapping):
        if "_target_" in node:
            target(node["_target_"], key)
        special = [name for name in node if str(name).startswith("_") and name not in ("_target_", "_partial_")]
        if special:
            raise UserError(f"{key}.{special[0]}: not offered; only _target_ and _partial_ are")
        for name, value in node.items():
            _check_targets(value, f"{key}.{name}")
    elif isinstance(node, list | tuple):
        for k, value in enumerate(node):
            _check_targets(value, f"{key}[{k}]")


def build(node: Mapping[str, Any], key: str, **arguments: Any) -> Any:
    """Construct what a node describes, the innermost nodes first; ``arguments`` are what only the program knows.

    A mapping with a ``_target_`` becomes what that makes of the other entries, or with ``_partial_`` a function that
    will. Nothing else has a meaning: a text is a text, whatever stands in it, because a node may come out of a
    checkpoint. Whatever is not allowed anywhere in it is refused before the first constructor is called.

    Raises:
        UserError: a constructor refused its values, or something is to be constructed that is not allowed there.
    """
    check_plain(node, key)
    _check_targets(node, key)
    return _built(node, key, arguments)


def _built(value: Any, key: str, arguments: Mapping[str, Any] | None = None) -> Any:
    """Of plain data; with ``arguments`` the node that was asked for, and not one below it."""
    if isinstance(value, list | tuple):
        return [_built(item, f"{key}[{k}]") for k, item in enumerate(value)]
    if not isinstance(value, Mapping):
        return value
    values = {n: _built(item, f"{key}.{n}") for n, item in value.items() if n not in ("_target_", "_partial_")}
    if arguments is None and "_target_" not in value:
        return values
    function = target(value.get("_target_"), key)
    if arguments is None and value.get("_partial_"):
        return functools.partial(function, **values)
    try:
        return function(**(values | dict(arguments or {})))
    except (UserError, *CONSTRUCTION) as error:
        if arguments is not None and isinstance(error, UserError):
            raise
        raise UserError(f"{key}: {_said(error)}") from error


def _said(error: Exception) -> str:
    """What a constructor said; of what it did not say on purpose, the kind too."""
    if exhausted(error):
        return f"{enough(error)}; make it smaller"
    text = first_line(error)
    return text if isinstance(error, UserError | ValueError) else f"{type(error).__name__}: {text}"
