"""What the scripts share: Hydra's command line with exit codes and messages that one can rely on.

Exit codes: 0 done; 1 a run broke (its summary says how); 2 the command cannot be carried out as given, with one
message; 130 and 143 after Ctrl-C and SIGTERM. In a multirun every job has its own fate, and the code is the worst of
them.
"""

import logging
import math
import os
import re
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NoReturn

# Let idle OpenMP threads sleep: spinning costs up to six times where cores are shared. Read when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override, QuotedString, RangeSweep, Sweep
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, flag_override
from omegaconf.errors import OmegaConfBaseException

from imago import plugins
from imago.capacity import enough, exhausted
from imago.cli import jobs, lazy_imports
from imago.cli.explain import explain, explain_option
from imago.cli.streams import make_forgiving
from imago.config import CONF, quoted, searched, without_hydra
from imago.errors import Interrupted, RunError, UserError, printable, reason_of
from imago.files import claim_folder
from imago.processes import agreed_devices, launch, launched_rank, started

if TYPE_CHECKING:  # the scripts load torch once Hydra has composed
    import torch


# More runs than one command ever starts; Hydra writes all combinations down before it starts the first.
MOST_RUNS = 10_000

# Of a checkpoint's model any setting can be named, whatever the model is: this node is open, all others are not.
ConfigStore.instance().store(
    name="any_model", node=OmegaConf.create({"model": OmegaConf.create(flags={"struct": False})})
)
# In a configuration: the first of two values unless it is null.
OmegaConf.register_new_resolver("coalesce", lambda value, other: other if value is None else value)


def program(script: str) -> str:
    """How a script is called here: ``imago train``, or from a copy of the repository ``python src/train.py``."""
    own = Path(sys.argv[0])
    return f"python src/{script}.py" if own.suffix == ".py" and own.stem != "__main__" else f"imago {script}"


# In the help of a script: how it is called.
OmegaConf.register_new_resolver("program", program)


class JobFailed(Exception):  # noqa: N818 - the failure was already reported
    """One job of a multirun failed and was reported; the others go on."""

    def __init__(self, exit_code: int) -> None:
        super().__init__(exit_code)  # nothing else, so that launchers can pass it between processes
        self.exit_code = exit_code


def run(
    task: Callable[[DictConfig], float | list[float] | None],
    config_name: str,
    check: Callable[[DictConfig], object] | None = None,
    after_sweep: Callable[[Path, DictConfig], object] | None = None,
) -> None:
    """Run a task under Hydra with a configuration of ``conf/``; ends the process with the exit code.

    Args:
        task: gets the composed configuration; raises UserError for what the user can mend. Returns what a sweeper
            optimises.
        config_name: the primary configuration, such as ``train``.
        check: gets it before Hydra makes the job's folder, and raises UserError where it cannot be made.
        after_sweep: gets the folder of a multirun whose jobs have had their turn, and the configuration they share.
    """
    _prepare()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # hand errors on instead of printing them and exiting with 1
    this, codes = jobs.Command(), [0]

    def job(config: DictConfig) -> float | list[float] | None:
        hydra = HydraConfig.get()
        if not this.is_this_process:
            _prepare()
        plugins.folders_of(config.get("plugins", []))  # again: a launcher may have begun another process
        returned: list[float | list[float] | None] = []

        def act(told: list[str] | None = None) -> int:
            return report(lambda: returned.append(task(config)), config_name, told)

        code = act() if this.is_this_process else jobs.carry_out(this, config_name, act)
        if code and hydra.mode == RunMode.MULTIRUN and (code < 128 or not this.is_this_process):
            if jobs.all_count(hydra):  # Hydra's own sweeper would name the job once more, and leave later batches out
                codes.append(code)
                return None
            raise JobFailed(code)
        if code:
            sys.exit(code)
        return returned[0]

    def main() -> None:
        folders = plugins.folders_of(plugins.named(check_command(sys.argv[1:], config_name)))
        if folders and not any(given.startswith("hydra.searchpath=") for given in sys.argv):
            # Beside plugins=, because no setting may stand behind an option such as --cfg job.
            beside = next(k for k, given in enumerate(sys.argv) if given.lstrip("+").startswith("plugins="))
            sys.argv[beside:beside] = searched(folders)
        if launched_rank() and not {"-m", "--multirun"}.intersection(sys.argv):
            sys.argv.append("hydra.run.dir=.")  # the first process makes the run's
        Folders.made, Folders.check, Folders.sweep, Folders.command = [], check, None, this
        Folders.place = None
        Folders.codes = codes
        try:
            with ExitStack() as Folders.held:
                hydra_main()
        except (HydraException, OmegaConfBaseException, JobFailed, UserError):
            raise
        except OSError as error:  # a job's own errors are reported already; this is Hydra, making its folder
            raise UserError(f"logs: {reason_of(error)}; name a folder with logs=PATH") from None
        except Exception as error:  # Hydra again: what it does not foresee in a command
            said = str(error) or type(error).__name__
            if type(error).__name__ in jobs.LOST:
                raise RunError(
                    f"a job's process is gone: {said.strip().splitlines()[0]}; others may still run. The same command "
                    f"with resume=auto makes up for it"
                ) from None
            raise UserError(f"{' '.join(said.split())}; --help and --hydra-help list what can be given") from None
        finally:
            Folders.tidy()

    hydra_main = hydra.main(version_base="1.3", config_path=str(CONF), config_name=config_name)(job)
    code = report(main, config_name)
    code = code if code >= 128 else max(code, *codes)
    sweep = Folders.sweep
    if after_sweep is not None and sweep is not None and code < 128:
        report(lambda: after_sweep(*sweep), config_name)
    sys.exit(code)


def _prepare() -> None:
    """What every process of a command begins with."""
    make_forgiving()
    lazy_imports.install()
    # Deprecations inside libraries are not the user's concern.
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    warnings.filterwarnings("ignore", category=FutureWarning)
    # On a machine with Slurm, Lightning's advice to every run that is not given to it.
    warnings.filterwarnings("ignore", message="The `srun` command is available")


def report(action: Callable[[], object], script: str, told: list[str] | None = None) -> int:
    """Carry out an action; say what went wrong, in one message where it is the user's to mend.

    Args:
        action: what is to be done.
        script: in whose words, such as ``train``.
        told: gets what was said, or of an unforeseen error one line.

    Returns:
        the exit code.
    """
    told = [] if told is None else told
    try:
        action()
    except (UserError, RunError) as error:
        told.append(_say(str(error)))
        return 2 if isinstance(error, UserError) else 1
    except (HydraException, OmegaConfBaseException) as error:
        told.append(_say(explain(error, script)))
        return 2
    except (JobFailed, Interrupted) as error:
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        if exhausted(error):
            told.append(_say(f"{enough(error)}; make the model, the batch or what is drawn at once smaller"))
            return 1 if getattr(error, "run_began", False) else 2
        told.append(" ".join(f"{type(error).__name__}: {error}".split())[:300])
        traceback.print_exc()
        return 1
    return 0


def _say(text: str) -> str:
    """Print one message, and return it; of what is too long to be read, such as a value given by mistake, both ends."""
    shown = re.sub(r"\S{300,}", lambda found: f"{found[0][:100]}…{found[0][-50:]}", printable(text))
    print(f"error: {shown}", file=sys.stderr)
    return shown


class Folders(Callback):
    """Knows the folders that Hydra makes, so that a command whose jobs did not begin leaves none (Hydra's callback)."""

    made: ClassVar[list[Path]] = []  # the folder of the run or sweep, and those above it that were not there before
    check: ClassVar[Callable[[DictConfig], object] | None] = None
    sweep: ClassVar[tuple[Path, DictConfig] | None] = None
    place: ClassVar[str | None] = None  # of the run that is to be made
    command: ClassVar[jobs.Command]
    codes: ClassVar[list[int]]  # of jobs that failed
    held: ClassVar[ExitStack]  # until they have had their turn

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Before Hydra makes a run's."""
        check = Folders.check
        code = report(lambda: check(without_hydra(config)), config.hydra.job.config_name) if check is not None else 0
        if code:  # Hydra turns other exceptions of callbacks into warnings
            sys.exit(code)
        place = config.hydra.run.dir
        if config.hydra.job.chdir:  # Hydra goes there
            self._begin(place)
        elif place != ".":  # the run makes it once it begins, unless it continues elsewhere
            Folders.place = place
            with flag_override(config, ["struct", "readonly"], False):
                config.hydra.run.dir = "."

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Before Hydra makes a sweep's, which is its own even where another one began in the same second."""
        place = config.hydra.sweep.dir
        self._begin(place)
        basic = config.hydra.sweeper._target_.endswith("BasicSweeper")  # a search names its folder itself
        if basic and re.fullmatch(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d", Path(place).name):
            with suppress(OSError):  # Hydra will find the same
                claimed = claim_folder(Path(place))
                if str(claimed) != place:
                    Folders.made = [claimed.absolute()]
                    with flag_override(config, ["struct", "readonly"], False):
                        config.hydra.sweep.dir = str(claimed)
                        config.hydra.overrides.hydra.append(f"hydra.sweep.dir={quoted(str(claimed))}")
        sweep = Path(config.hydra.sweep.dir).absolute()
        Folders.sweep = sweep, without_hydra(config)
        if not jobs.launched_by(config.hydra, "BasicLauncher"):
            jobs.make_ready(config)
            cluster = jobs.launched_by(config.hydra, "SlurmLauncher")
            waiting = jobs.Waiting(Folders.command.word_in(sweep), Path.cwd(), cluster)
            if jobs.all_count(config.hydra):
                Folders.held.callback(lambda: Folders.codes.extend(waiting.codes))
            Folders.held.enter_context(waiting)

    def _begin(self, place: str) -> None:
        folder = Path(place).absolute()
        Folders.made = [path for path in (folder, *folder.parents) if not path.exists()]

    @classmethod
    def tidy(cls) -> None:
        """Remove them where nothing but Hydra's own file lies inside."""
        with suppress(OSError):
            for folder in cls.made[:1] if cls.sweep else ():  # a run's may be another process's by now
                for job in [path for path in folder.iterdir() if path.is_dir()]:
                    with suppress(OSError):  # a run lies in it
                        job.rmdir()
                if [path.name for path in folder.iterdir()] == ["multirun.yaml"]:
                    (folder / "multirun.yaml").unlink()
            for path in cls.made:
                path.rmdir()


def check_command(arguments: Sequence[str], script: str) -> list[Override]:
    """Look at a command line before Hydra does: at what Hydra would answer with a page, or with no end.

    Args:
        arguments: without the script's name.
        script: the primary configuration, such as ``train``.

    Returns:
        its overrides.

    Raises:
        UserError: an option that there is not, a group without a choice, or a multirun of no or of too many runs.
        HydraException: an override that cannot be read.
    """
    try:
        Path.cwd()
    except OSError as error:
        raise UserError(f"the current folder cannot be used ({error.strerror}); change to another one") from None

    def refuse(message: str) -> NoReturn:
        option = re.match(r"unrecognized arguments: (--\w\S*)", message)
        meant = explain_option(option[1], script) if option else None
        raise UserError(
            meant
            or f"{message}; first options such as -m, which --hydra-help lists, then settings as KEY=VALUE, see --help"
        )

    parser = get_args_parser()
    parser.error = refuse  # type: ignore[method-assign]
    given = parser.parse_args(list(arguments))
    for override in given.overrides:
        if not override.strip():
            raise UserError("an empty argument; leave it out, or write KEY=VALUE")
    overrides = OverridesParser.create().parse_overrides(given.overrides)
    for override in overrides:
        if not override.key_or_group:
            raise UserError(f"{override.input_line}: nothing before the equals sign; write KEY=VALUE")
        group, value = CONF / override.key_or_group, override.value()
        if not (override.is_delete() or isinstance(value, str | list | QuotedString | Sweep | Glob)) and group.is_dir():
            known = ", ".join(sorted(path.stem for path in group.glob("*.yaml")))
            raise UserError(f"{override.input_line}: names no choice; choose one of {known}")
        of_many = re.match(r"hydra[./](launcher|sweeper)\b", override.key_or_group)
        if of_many and not (given.multirun or given.cfg or given.info):
            raise UserError(
                f"{override.input_line}: is for several runs; put -m behind the command's name, or leave it out"
            )
    if given.multirun and os.environ.get("WANDB_SWEEP_ID"):
        raise UserError("-m: a W&B agent gives one combination at a time; leave -m out of the sweep's command")
    if given.multirun:
        runs = 1
        for override in overrides:
            runs *= _sweeps_over(override)
            if not runs:
                raise UserError(f"{override.input_line}: no values, so there is nothing to run; give at least one")
        searched = any(override.key_or_group == "hydra/sweeper" for override in overrides)  # not all combinations
        if runs > MOST_RUNS and not searched:
            raise UserError(f"-m: {runs:,} runs are more than the {MOST_RUNS:,} of one command; give fewer at once")
    return list(overrides)


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


@contextmanager
def devices(name: str | None, count: int | Literal["auto"]) -> Iterator["torch.device"]:
    """Inside, as many processes as devices, which share work; the device of this one.

    Args:
        name: see :func:`device`.
        count: of each machine; ``auto``: every GPU, or as many as a launcher has started processes.

    Raises:
        UserError: there are not so many.
    """
    import torch

    own, found = device(name), launch()
    there = torch.cuda.device_count() if own.type == "cuda" else 1
    each: int
    each, machines = agreed_devices(there if count == "auto" and found is None else count, None, "devices")
    if each == 1 == machines:
        yield own
        return
    if own.type not in ("cpu", "cuda") or ":" in (name or ""):
        raise UserError(f"device={name}: one device, and devices={count}; give device=cuda or cpu, or devices=1")
    if own.type == "cuda" and each > there:
        raise UserError(f"devices={each}: there are {there} GPUs; give devices={there}, or auto")
    from lightning import Fabric
    from lightning.fabric.plugins.environments import LightningEnvironment

    for told in ("lightning.fabric", "lightning.pytorch"):
        logging.getLogger(told).setLevel(logging.WARNING)  # which processes and accelerators there are is no news
    warnings.filterwarnings("ignore", message="The `srun` command is available")
    plugins: list[Any] = [LightningEnvironment()] if found is None else []  # also inside a job of Slurm
    with started(each):
        fabric = Fabric(accelerator=own.type, devices=each, num_nodes=machines, strategy="ddp", plugins=plugins)
        fabric.launch()
        yield fabric.device
        torch.distributed.destroy_process_group()


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
