"""What the scripts share: Hydra's command line with exit codes and messages that one can rely on.

Exit codes: 0 done; 1 a run broke (its summary says how); 2 the command cannot be carried out as given, with one
message; 130 and 143 after Ctrl-C and SIGTERM. In a multirun every job has its own fate, and the code is the worst of
them.
"""

import difflib
import math
import os
import re
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

# Idle OpenMP threads shall sleep: spinning costs up to six times where cores are shared. Read when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, QuotedString, RangeSweep, Sweep
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from imago.capacity import enough, exhausted
from imago.cli.streams import make_forgiving
from imago.config import CONF, RELOCATED, check_experiment, defaults_of, groups_inside
from imago.errors import Interrupted, RunError, UserError, printable, reason_of

if TYPE_CHECKING:  # the scripts load torch once Hydra has composed
    import torch


# More runs than one command ever starts; Hydra writes all combinations down before it starts the first.
MOST_RUNS = 10_000


class JobFailed(Exception):  # noqa: N818 - the failure was already reported
    """One job of a multirun failed and was reported; the others go on."""

    def __init__(self, exit_code: int) -> None:
        super().__init__(f"exit code {exit_code}")
        self.exit_code = exit_code


def run(task: Callable[[DictConfig], None], config_name: str) -> None:
    """Run a task under Hydra with a configuration of ``conf/``; ends the process with the exit code.

    Args:
        task: gets the composed configuration; raises UserError for what the user can mend.
        config_name: the primary configuration, such as ``train``.
    """
    make_forgiving()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra shall hand errors on instead of printing them and exiting with 1
    # Deprecations inside libraries are not the user's concern.
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    warnings.filterwarnings("ignore", category=FutureWarning)

    def job(config: DictConfig) -> None:
        code = report(lambda: task(config), config_name)
        if code and HydraConfig.get().mode == RunMode.MULTIRUN and code < 128:
            raise JobFailed(code)
        if code:
            sys.exit(code)

    def main() -> None:
        check_command(sys.argv[1:], config_name)
        SweepFolder.made = []
        try:
            hydra_main()
        except (HydraException, OmegaConfBaseException, JobFailed):
            raise
        except OSError as error:  # a job's own errors are reported already; this is Hydra, making its folder
            raise UserError(f"logs: {reason_of(error)}; name a folder with logs=PATH") from None
        except Exception as error:  # Hydra again: what it does not foresee in a command
            said = str(error) or type(error).__name__
            raise UserError(f"{' '.join(said.split())}; --help and --hydra-help list what can be given") from None
        finally:
            SweepFolder.tidy()

    hydra_main = hydra.main(version_base="1.3", config_path=str(CONF), config_name=config_name)(job)
    sys.exit(report(main, config_name))


def report(action: Callable[[], None], script: str) -> int:
    """Carry out an action; say what went wrong, in one message where it is the user's to mend; return the exit code."""
    try:
        action()
    except UserError as error:
        _say(str(error))
        return 2
    except RunError as error:
        _say(str(error))
        return 1
    except (HydraException, OmegaConfBaseException) as error:
        _say(explain(error, script))
        return 2
    except JobFailed as error:
        return error.exit_code
    except Interrupted as error:
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        if exhausted(error):
            _say(f"{enough(error)}; make the model, the batch or what is drawn at once smaller")
            return 1 if getattr(error, "run_began", False) else 2
        traceback.print_exc()
        return 1
    return 0


def _say(text: str) -> None:
    """One message; of what is too long to be read, such as a value given by mistake, both ends."""
    shown = re.sub(r"\S{300,}", lambda found: f"{found[0][:100]}…{found[0][-50:]}", printable(text))
    print(f"error: {shown}", file=sys.stderr)


class SweepFolder(Callback):
    """Knows the folders that a multirun makes, so that one whose jobs did not begin leaves none (Hydra's callback)."""

    made: ClassVar[list[Path]] = []  # the sweep's folder and those above it that were not there before

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Before Hydra makes them."""
        folder = Path(config.hydra.sweep.dir).absolute()
        SweepFolder.made = [path for path in (folder, *folder.parents) if not path.exists()]

    @classmethod
    def tidy(cls) -> None:
        """Remove them where nothing but Hydra's own file lies inside."""
        with suppress(OSError):
            for folder in list(cls.made[:1]):
                for job in [path for path in folder.iterdir() if path.is_dir()]:
                    with suppress(OSError):  # a run lies in it
                        job.rmdir()
                if [path.name for path in folder.iterdir()] == ["multirun.yaml"]:
                    (folder / "multirun.yaml").unlink()
            for path in cls.made:
                path.rmdir()


def check_command(arguments: Sequence[str], script: str) -> None:
    """Look at a command line before Hydra does: at what Hydra would answer with a page, or with no end.

    Args:
        arguments: without the script's name.
        script: the primary configuration, such as ``train``.

    Raises:
        UserError: an option that there is not, a group without a choice, or a multirun of no or of too many runs.
        HydraException: an override that cannot be read.
    """
    try:
        Path.cwd()
    except OSError as error:
        raise UserError(f"the current folder cannot be used ({error.strerror}); change to another one") from None

    def refuse(message: str) -> NoReturn:
        raise UserError(
            f"{message}; first options such as -m, which --hydra-help lists, then settings as KEY=VALUE, see --help"
        )

    parser = get_args_parser()
    parser.error = refuse  # type: ignore[method-assign]
    given = parser.parse_args(list(arguments))
    for override in given.overrides:
        if not override.strip():
            raise UserError("an empty argument; leave it out, or write KEY=VALUE")
    overrides = OverridesParser.create().parse_overrides(given.overrides)
    chosen = {group: choice for group, choice in defaults_of(CONF / f"{script}.yaml").items() if choice is not None}
    for override in overrides:
        if not override.key_or_group:
            raise UserError(f"{override.input_line}: nothing before the equals sign; write KEY=VALUE")
        group, value = override.key_or_group, override.value()
        if group not in chosen and (override.package is None or not (CONF / group).is_dir()):
            continue
        several = value if isinstance(value, list) else [value]
        named = all(isinstance(name, str | QuotedString | Sweep) for name in several)
        if override.is_delete() or not named:
            known = ", ".join(sorted(path.stem for path in (CONF / group).glob("*.yaml")))
            raise UserError(f"{override.input_line}: names no choice; choose one of {known}")
    if given.multirun:
        runs = 1
        for override in overrides:
            runs *= _sweeps_over(override)
            if not runs:
                raise UserError(f"{override.input_line}: no values, so there is nothing to run; give at least one")
        if runs > MOST_RUNS:
            raise UserError(f"-m: {runs:,} runs are more than the {MOST_RUNS:,} of one command; give fewer at once")


def _sweeps_over(override: Override) -> int:
    """How many values an override takes in turn."""
    if not override.is_sweep_override():
        return 1
    sweep = override.value()
    if isinstance(sweep, RangeSweep):
        start, stop, step = (float(bound or 0) for bound in (sweep.start, sweep.stop, sweep.step))
        return max(0, math.ceil((stop - start) / step)) if step and math.isfinite((stop - start) / step) else 0
    return len(getattr(sweep, "list", [None]))


@contextmanager
def stoppable() -> Iterator[None]:
    """Inside, SIGTERM ends work by an exception, as Ctrl-C does, so that it can be said what was done."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Interrupted(number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def explain(error: Exception, script: str) -> str:
    """One line for an error of Hydra or OmegaConf: which override is wrong and what would be right.

    Args:
        error: by which composing ended.
        script: that was called, such as ``train``.
    """
    text = " ".join(str(error).split())
    if isinstance(error, OverrideParseException):
        return f"{error.override}: cannot be read; write KEY=VALUE, several values as KEY=[A,B], the special in quotes"
    if isinstance(error, MissingConfigException):
        wanted = re.search(r"Could not find '([^']+)/([^'/]*)'", text)
        if wanted:
            group, name = wanted.groups()
            known = sorted(p.stem for p in (CONF / group).glob("*.yaml"))
            close = difflib.get_close_matches(name, known, 1)
            remedy = f"did you mean {close[0]}? " if close else ""
            return f"{group}={name}: no such choice; {remedy}choose one of {', '.join(known)}"
    unknown = re.search(r"Could not override '([^']+)'", text)
    group = re.search(r"Could not override '([^']+)'.*No match in the defaults list", text)
    named = group or unknown
    experiment = re.search(r"In 'experiment/([^']+)'", text)
    if named and experiment:  # it changes what this model does not have
        try:
            for model in _models():
                check_experiment(experiment[1], model)
        except UserError as mismatch:
            return str(mismatch)
    relocated = re.split("[@.]", named[1])[0] if named else ""
    if named and relocated in RELOCATED:
        return f"{_given(named[1])}: {_inside_the_model(relocated, script)}"
    if group:
        groups = sorted(p.name for p in CONF.iterdir() if p.is_dir())
        if group[1] in groups:
            return f"{group[1]}: a group of train.py, which this script does not have; leave it out, or see --help"
        close = difflib.get_close_matches(group[1], groups, 1)
        remedy = f"did you mean {close[0]}?" if close else f"groups are {', '.join(groups)}"
        return f"{group[1]}: no such group of settings; {remedy}"
    if unknown:
        cause = error.__cause__ or error.__context__
        detail = re.search(r"Key '([^']+)' is not in struct", f"{text} {cause}")
        remedy = "see --cfg job for all settings"
        if detail and cause is not None:
            known = _siblings(cause)
            close = difflib.get_close_matches(detail[1], known, 1)
            remedy = f"did you mean {close[0]}? " if close else ""
            remedy += f"known here are {', '.join(known)}"
            if not known:
                remedy = f"there are none here; leave it out, or choose another {unknown[1].split('.')[0]}=NAME"
            if not known and unknown[1].startswith("model."):
                remedy = f"to change the model of a checkpoint write +{unknown[1]}=VALUE"
        return f"{unknown[1]}: no such setting; {remedy}"
    return text


def _inside_the_model(group: str, script: str) -> str:
    """What to say of a choice from a group that lives inside the model, where there is none to replace."""
    if script in ("sample", "evaluate", "figure"):
        return f"to change the model of a checkpoint write +{group}@model.{group}=NAME"
    if script != "train":
        return "belongs to the models of train.py, and this script has none; leave it out, or see --help"
    ways: list[str] = []
    for model in _models():
        inside = groups_inside(model)
        if group not in inside:
            models = sorted(path.stem for path in (CONF / "model").glob("*.yaml"))
            having = [name for name in models if group in groups_inside(name)]
            own = [way for known in inside.values() for way in known]
            return (
                f"model={model} has no group {group}; its own are {', '.join(own)}; "
                f"leave it out, or choose a model that has one: {', '.join(having)}"
            )
        ways += [f"{way}=NAME" for way in inside[group]]
    return f"belongs to the model; choose with {' or '.join(dict.fromkeys(ways)) or f'{group}@model.{group}=NAME'}"


def _models() -> list[str]:
    """The models that train.py was called for: by name, by a sweep or experiment, or by default."""
    given = dict(argument.split("=", 1) for argument in sys.argv[1:] if "=" in argument)
    named = given.get("model")
    for group in ("sweep", "experiment"):
        file = CONF / group / f"{given.get(group)}.yaml"
        if named is None and file.is_file():
            swept = OmegaConf.select(OmegaConf.load(file), "hydra.sweeper.params.model")
            named = swept or defaults_of(file).get("override /model")
    named = named or defaults_of(CONF / "train.yaml")["model"]
    return [name for name in named.split(",") if (CONF / "model" / f"{name}.yaml").is_file()]


def _given(key: str) -> str:
    """An override as it was given on the command line, or its key."""
    return next((argument for argument in sys.argv[1:] if argument.split("=")[0] == key), key)


def device(name: str | None) -> "torch.device":
    """The device that the setting ``device`` names; without a name the GPU where there is one, else the CPU.

    Raises:
        UserError: no such device on this machine.
    """
    import torch

    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        found = torch.device(name)
        torch.empty(1, device=found).cpu()  # there is a device that keeps nothing
    except NotImplementedError:
        raise UserError(f"device={name}: this PyTorch cannot use it; choose another one, or device=null") from None
    except (RuntimeError, AssertionError) as error:  # torch built without CUDA asserts
        reason = str(error).splitlines()[0]
        raise UserError(f"device={name}: {reason}; choose another one, or device=null") from None
    return found


def _siblings(error: BaseException) -> list[str]:
    parent = getattr(error, "parent_node", None)
    return sorted(str(name) for name in parent if name != "_target_") if isinstance(parent, DictConfig) else []
