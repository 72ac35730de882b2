"""A search for good settings that survives: Optuna proposes trials, and a folder remembers them.

Every trial is a run of a sweep. The study lies in the sweep's folder as ``study.log``, which any number of processes
write to, on this machine or on others that share the folder: each takes the next trial when it has finished one. A
trial whose process was killed is taken up by whoever comes next, from its last checkpoint.
"""

import fcntl
import hashlib
import math
import os
import secrets
import shutil
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from hydra.utils import instantiate
from omegaconf import OmegaConf

from imago.errors import UserError, how_to_install
from imago.files import AlreadyLocked, locked
from imago.measures import better
from imago.paths import whole_checkpoints

if TYPE_CHECKING:  # loaded when a search begins
    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.storages import JournalStorage
    from optuna.trial import FrozenTrial, Trial

SWEEPER = "hydra_plugins.imago_optuna.OptunaSweeper"
# In the sweep's folder: the study, and the folder of locks that living processes hold.
STUDY, WORKERS = "study.log", ".workers"
# Of a trial: the process that is at work on it, why it was ended early, and what made it fail.
WORKER, PRUNED, FAILURE = "worker", "pruned", "failure"


def folder_name(*, _root_: Any) -> str | None:
    """The folder of a search below ``logs/sweeps``, the same for the same command; ``None`` of any other sweep."""
    node = _root_.hydra
    if node.sweeper.get("_target_") != SWEEPER:
        return None
    if node.sweeper.study is not None:
        return str(node.sweeper.study)
    given = [*node.overrides.task, *(text for text in node.overrides.hydra if "sweeper.params" in text)]
    digest = hashlib.sha256("\n".join(sorted(map(str, given))).encode()).hexdigest()[:8]
    choices = node.runtime.choices
    return f"search-{choices.model}-{choices.data}-{digest}"


OmegaConf.register_new_resolver("search_folder", folder_name)


def objectives_of(named: object) -> list[str]:
    """What the setting ``objective`` names: one number or several.

    Raises:
        UserError: none, or one of them twice.
    """
    if isinstance(named, Sequence) and not isinstance(named, str):
        names = [str(name) for name in named]
    else:
        names = [] if named is None else [str(named)]
    if not names:
        raise UserError(
            "objective: a search needs the number that it is for: objective=val/bpd for models with a likelihood, "
            "objective=val/fd_classifier for any, or several as objective=[val/bpd,val/fd_classifier]"
        )
    if len(set(names)) < len(names):
        raise UserError(f"objective=[{','.join(names)}]: names a number twice; give each once")
    return names


def space_of(overrides: Iterable[Override]) -> "dict[str, BaseDistribution]":
    """What a command line varies, by keys, as Optuna's distributions.

    ``a,b`` and ``choice(a,b)`` are categories, ``range(2,9)`` whole numbers (or steps), ``interval(0,1)`` real
    numbers, ``int(interval(1,8))`` whole ones, and ``tag(log,interval(1e-4,1e-2))`` has a logarithmic scale.

    Raises:
        UserError: an interval is empty, or not positive on a logarithmic scale.
    """
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    space: dict[str, BaseDistribution] = {}
    for override in overrides:
        if not override.is_sweep_override():
            continue
        sweep, key = override.value(), override.get_key_element()
        try:
            if isinstance(sweep, IntervalSweep):
                low, high = sweep.start, sweep.end
                assert low is not None
                assert high is not None
                if not (math.isfinite(low) and math.isfinite(high)):
                    raise ValueError("the ends must be finite numbers")
                kind = IntDistribution if isinstance(low, int) and isinstance(high, int) else FloatDistribution
                space[key] = kind(low, high, log="log" in sweep.tags)  # type: ignore[arg-type]
            elif isinstance(sweep, RangeSweep) and not sweep.shuffle:
                values = list(sweep.range())
                whole = all(isinstance(value, int) for value in values)
                kind = IntDistribution if whole else FloatDistribution
                space[key] = kind(min(values), max(values), step=abs(sweep.step))  # type: ignore[arg-type]
            else:
                space[key] = CategoricalDistribution(list(dict.fromkeys(override.sweep_string_iterator())))
        except ValueError as error:
            raise UserError(f"{override.input_line}: {str(error).rstrip('.')}; give another interval") from None
    return space


class _StudyLock:
    """Keeps others from writing to the study meanwhile (Optuna's interface); a killed process lets go of it at once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.descriptor = -1

    def acquire(self) -> bool:
        """Wait for it."""
        self.descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        with suppress(OSError):  # a file system without locks
            fcntl.flock(self.descriptor, fcntl.LOCK_EX)
        return True

    def release(self) -> None:
        """Let go."""
        os.close(self.descriptor)


def check_installed() -> None:
    """Load Optuna, which says nothing of its own from then on.

    Raises:
        UserError: it is missing.
    """
    try:
        import optuna
    except ImportError:
        raise UserError(f"hydra/sweeper=optuna: needs Optuna; {how_to_install('sweep')}") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)


def storage_of(folder: Path) -> "JournalStorage":
    """Optuna's storage in the folder of a search.

    Raises:
        UserError: Optuna is missing, or the study cannot be read.
    """
    check_installed()
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    file = folder / STUDY
    try:
        _drop_unfinished_line(file)
        lock: Any = _StudyLock(folder / f".{STUDY}.lock")
        return JournalStorage(JournalFileBackend(str(file), lock_obj=lock))
    except (OSError, ValueError, KeyError, AssertionError) as error:
        told = " ".join(str(error).split())
        raise UserError(f"{file}: cannot be used ({told}); move the folder away, and the search starts anew") from None


def _drop_unfinished_line(file: Path) -> None:
    """What a power cut left of a last line would spoil the next one."""
    with suppress(FileNotFoundError), locked(file.with_name(f".{STUDY}.lock")), file.open("r+b") as stream:
        content = stream.read()
        if content and not content.startswith(b"{"):
            raise ValueError("it is no study")
        if content and not content.endswith(b"\n"):
            stream.truncate(content.rfind(b"\n") + 1)


class Search:
    """A study in its folder, and this process's part in it.

    Args:
        folder: of the sweep; it is there.
        objectives: what is optimised, such as ``val/bpd``; of one without a direction the smallest is best.
        sampler: makes Optuna's sampler, given ``seed``.
        pruner: decides which trials are hopeless.
        seed: of the sampler.
    """

    def __init__(
        self,
        folder: Path,
        objectives: Sequence[str],
        sampler: Callable[..., Any],
        pruner: Any,
        seed: int = 0,
    ) -> None:
        self.storage = storage_of(folder)
        import optuna

        self.folder, self.objectives, self.sampler, self.seed = folder, list(objectives), sampler, seed
        directions: Any = ["maximize" if better(name) == "high" else "minimize" for name in objectives]
        self.study: Study = optuna.create_study(
            storage=self.storage, study_name="imago", sampler=sampler(seed=seed), pruner=pruner,
            directions=directions, load_if_exists=True,
        )  # fmt: skip
        known = self.study.user_attrs.get("objectives")
        if known is None:
            self.study.set_user_attr("objectives", self.objectives)
        elif known != self.objectives:
            raise UserError(
                f"objective={','.join(self.objectives)}: the search in {folder} is for {','.join(known)}; give that, "
                "or a new name with hydra.sweeper.study=NAME"
            )
        self.me = secrets.token_hex(8)
        self._held = ExitStack()

    def __enter__(self) -> "Search":
        (self.folder / WORKERS).mkdir(exist_ok=True)
        self._held.enter_context(locked(self.folder / WORKERS / self.me))
        return self

    def __exit__(self, *error: object) -> None:
        self._held.close()
        (self.folder / WORKERS / self.me).unlink(missing_ok=True)

    @property
    def trials(self) -> "list[FrozenTrial]":
        """All of them, in the order in which they began."""
        return self.study.get_trials(deepcopy=False)

    def claim(self, space: "Mapping[str, BaseDistribution]", n_trials: int) -> "FrozenTrial | None":
        """The next trial for this process: one that a killed process has left, or a new one; ``None`` for no more.

        Args:
            space: what new trials vary.
            n_trials: how many there are to be in all, with those that failed or were pruned.
        """
        with locked(self.folder / ".claim.lock"):
            trials = self.trials
            for trial in trials:
                if not trial.state.is_finished() and not self._worked_on(trial):
                    if set(trial.params) != set(space):
                        self.tell(trial.number, None, "its process was killed while it was proposed")
                        continue
                    self._take(trial.number)
                    return self.trials[trial.number]
            if len(trials) >= n_trials:
                return None
            # Another one for every trial: a sampler that began anew with each process would propose the same ones.
            self.study.sampler = self.sampler(seed=self.seed + len(trials))
            asked: Trial = self.study.ask(dict(space))
            self._take(asked.number)
            return self.trials[asked.number]

    def run_of(self, number: int) -> Path | None:
        """The directory of a trial's run that goes on; ``None`` where there is no whole checkpoint yet.

        A directory that was left before its first checkpoint is removed: there is nothing in it to go on from.
        """
        for run in sorted(self.folder.glob(f"{number}-*"), key=lambda path: -path.stat().st_mtime_ns):
            if any((run / "checkpoints").glob("*.ckpt")):
                with suppress(UserError):
                    whole_checkpoints(run, "resume")
                    return run
            else:
                shutil.rmtree(run, ignore_errors=True)
        return None

    def tell(self, number: int, values: Sequence[float] | None, failure: str = "") -> None:
        """What came of a trial: its values, or why there are none."""
        from optuna.trial import TrialState

        trial = self.trials[number]
        if trial.state.is_finished():
            return
        if values is None:
            self._note(number, FAILURE, failure)
            self.study.tell(number, state=TrialState.FAIL)
        elif PRUNED in trial.user_attrs:
            self.study.tell(number, state=TrialState.PRUNED)
        else:  # of numbers that are none Optuna makes a failure
            self.study.tell(number, list(values), skip_if_finished=True)

    def _take(self, number: int) -> None:
        self._note(number, WORKER, self.me)

    def _note(self, number: int, key: str, value: Any) -> None:
        note(self.storage, number, key, value)

    def _worked_on(self, trial: "FrozenTrial") -> bool:
        """Whether a process lives that has taken the trial, or that writes to its run."""
        locks = [path / ".lock" for path in self.folder.glob(f"{trial.number}-*")]
        if worker := trial.user_attrs.get(WORKER):
            if worker == self.me:
                return True
            locks.append(self.folder / WORKERS / str(worker))
        return any(_is_held(lock) for lock in locks)


def _is_held(lock: Path) -> bool:
    try:
        if lock.exists():
            with locked(lock, wait=False):
                pass
    except AlreadyLocked:
        return True
    return False


def trial_id(storage: "JournalStorage", number: int) -> int:
    """Optuna's number of a trial among those of all studies."""
    study = storage.get_study_id_from_name("imago")
    return storage.get_trial_id_from_study_id_trial_number(study, number)


def note(storage: "JournalStorage", number: int, key: str, value: Any) -> None:
    """Keep something with a trial."""
    storage.set_trial_user_attr(trial_id(storage, number), key, value)


class Reporter:
    """What a run that is a trial tells its search meanwhile, and asks.

    Args:
        folder: of the search.
        number: of the trial.
        pruner: Optuna's.
    """

    def __init__(self, folder: Path, number: int, pruner: Any) -> None:
        self.storage = storage_of(folder)
        import optuna

        self.study = optuna.load_study(study_name="imago", storage=self.storage, pruner=pruner)
        self.number, self.title = number, type(pruner).__name__.removesuffix("Pruner").lower()
        self.id = trial_id(self.storage, number)

    def report(self, step: int, value: float) -> None:
        """Tell the value after so many measurements; what was told before stays."""
        if step not in self.storage.get_trial(self.id).intermediate_values:
            self.storage.set_trial_intermediate_value(self.id, step, value)

    @property
    def hopeless(self) -> bool:
        """Whether the pruner gives the trial up."""
        return bool(self.study.pruner.prune(self.study, self.storage.get_trial(self.id)))

    def give_up(self, reason: str) -> None:
        """Keep that it was given up."""
        self.storage.set_trial_user_attr(self.id, PRUNED, reason)


def reporter_of(folder: Path) -> Reporter | None:
    """For the job that Hydra runs now, if it is a trial of one objective: of several nothing is pruned.

    Args:
        folder: of the sweep.
    """
    node = HydraConfig.get()
    if node.sweeper.get("_target_") != SWEEPER or node.sweeper.get("pruner") is None:
        return None
    check_installed()
    reporter = Reporter(folder, node.job.num, instantiate(node.sweeper.pruner))
    return reporter if len(reporter.study.directions) == 1 else None
