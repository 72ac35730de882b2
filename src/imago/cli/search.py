"""``-m hydra/sweeper=optuna``: carry a search out, in this process or in several, and show what it found."""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from imago import cli
from imago.cli.jobs import launched_by, shares
from imago.errors import Interrupted, UserError, printable
from imago.files import write_text
from imago.search import PRUNED, Search, check_installed, objectives_of, space_of

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

    from hydra_plugins.imago_optuna import OptunaSweeper

# Tells a worker of a search who it is: its number, and the process that waits for it.
WORKER = "IMAGO_SEARCH_WORKER"
# When so many trials have failed and none has not, the search is at fault.
FAILURES = 3


def carry_out(sweeper: "OptunaSweeper", arguments: Sequence[str]) -> list[Any]:
    """Search until there are ``n_trials`` trials, those of earlier commands included.

    Args:
        sweeper: the settings.
        arguments: the overrides of the command line.

    Raises:
        UserError, HydraException: the search cannot be carried out as given.
        JobFailed: no trial came to an end.
    """
    config = sweeper.config
    if config.get("estimate"):
        raise UserError(
            "estimate=true: of a search a trial is not known before the last one; leave hydra/sweeper=optuna out"
        )
    if min(sweeper.n_trials, sweeper.n_jobs) < 1:
        raise UserError("hydra.sweeper: n_trials and n_jobs are numbers of 1 or more")
    overrides = _parsed(sweeper, arguments)
    fixed = [override.input_line or "" for override in overrides if not override.is_sweep_override()]
    if any(override.key_or_group == "resume" for override in overrides):
        raise UserError("resume: a search goes on by itself when the same command is given again; leave resume out")
    objectives = objectives_of(config.get("objective"))
    folder = Path(config.hydra.sweep.dir)
    check_installed()
    space = space_of(overrides)
    if not space:
        raise UserError("-m hydra/sweeper=optuna: nothing varies; give KEY=A,B or 'KEY=interval(A,B)'")
    _check_composes(sweeper, overrides)
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "multirun.yaml").exists():
        write_text(folder / "multirun.yaml", OmegaConf.to_yaml(config))
    with _search(sweeper, folder, objectives) as search:
        known = search.study.user_attrs.get("overrides")
        if known is None:
            search.study.set_user_attr("overrides", fixed)
        elif set(known) != set(fixed):
            raise UserError(
                f"hydra.sweeper.study={folder.name}: that search has other settings ({' '.join(known)}); "
                "give those, or another name"
            )
        if sweeper.n_jobs > 1 and WORKER not in os.environ:
            watch(search, sweeper.n_jobs, sweeper.n_trials, config.hydra)
        else:
            _end_with_parent()
            work(search, sweeper, space, fixed)
        if WORKER in os.environ:
            return []
        finished = [trial for trial in search.trials if trial.state.is_finished()]
        left = [trial.number for trial in search.trials if not trial.state.is_finished()]
        if left:
            print(f"note: other processes are at work on trials {left}; the same command shows what came of them")
        show(search, folder, len(finished))
        if not search.study.best_trials:
            raise cli.JobFailed(1)
    return []


def _parsed(sweeper: "OptunaSweeper", arguments: Sequence[str]) -> list[Override]:
    """The overrides of the configuration and the command line, of which the last one of a key counts."""
    parser = OverridesParser.create(config_loader=sweeper.hydra_context.config_loader)
    given = parser.parse_overrides([*(f"{key}={value}" for key, value in sweeper.params.items()), *arguments])
    return list({override.get_key_element(): override for override in given}.values())


def _search(sweeper: "OptunaSweeper", folder: Path, objectives: Sequence[str]) -> Search:
    try:
        sampler, pruner = instantiate(sweeper.sampler), instantiate(sweeper.pruner)
        return Search(folder, objectives, sampler, pruner, int(sweeper.config.seed))
    except HydraException as error:
        reason = " ".join(str(error.__cause__ or error).split())
        raise UserError(f"hydra.sweeper: {reason}; see Optuna's samplers and pruners") from None


def _check_composes(sweeper: "OptunaSweeper", overrides: Sequence[Override]) -> None:
    """Mistakes in keys and choices show before the first trial; each category is tried."""
    first = {}
    for override in overrides:
        if override.is_sweep_override():
            start = getattr(override.value(), "start", None)
            value: Any = next(iter(override.sweep_string_iterator())) if start is None else start
        else:
            value = override.get_value_element_as_str()
        first[override.get_key_element()] = value
    for override in overrides:
        choices = override.sweep_string_iterator() if override.is_choice_sweep() else ()
        for choice in choices:
            tried = first | {override.get_key_element(): choice}
            sweeper.validate_batch_is_legal([[f"{key}={value}" for key, value in tried.items()]])
    sweeper.validate_batch_is_legal([[f"{key}={value}" for key, value in first.items()]])


def work(search: Search, sweeper: "OptunaSweeper", space: Mapping[str, Any], fixed: Sequence[str]) -> None:
    """Carry out trial after trial in this process, until there is none left for it.

    Raises:
        UserError: all of the first trials failed.
    """
    while (trial := search.claim(space, sweeper.n_trials)) is not None:
        # The folder is named by this command, which a job is not.
        place = f"hydra.sweep.dir='{search.folder}'"
        overrides = [place, *fixed, *(f"{key}={value}" for key, value in trial.params.items())]
        run = search.run_of(trial.number)
        if run is not None:
            overrides.append(f"resume='{run}'")
        returned = sweeper.launcher.launch([overrides], initial_job_idx=trial.number)[0]
        try:
            value = returned.return_value
        except cli.JobFailed as error:
            if error.exit_code >= 128:  # stopped, to be continued
                raise
            search.tell(trial.number, None, f"exit code {error.exit_code}")
        except Exception as error:
            search.tell(trial.number, None, " ".join(str(error).split())[:300])
        else:
            search.tell(trial.number, value if isinstance(value, list) else [value])
        print(told(search, search.trials[trial.number]), flush=True)
        done = [other for other in search.trials if other.state.is_finished()]
        if len(done) >= FAILURES and all(other.state.name == "FAIL" for other in done):
            raise UserError(
                f"the first {len(done)} trials failed, for what is said above; mend it, and remove {search.folder} or "
                "name the search with hydra.sweeper.study=NAME"
            )


def told(search: Search, trial: "FrozenTrial") -> str:
    """One line of what came of a trial."""
    varied = " ".join(f"{key}={_short(value)}" for key, value in trial.params.items())
    if trial.state.name == "PRUNED":
        came = f"pruned by {trial.user_attrs.get(PRUNED)}"
    elif trial.values is None:
        came = f"failed ({trial.user_attrs.get('failure', 'its number is none')})"
    else:
        came = ", ".join(f"{name}={value:.5g}" for name, value in zip(search.objectives, trial.values, strict=True))
        if len(search.objectives) == 1 and search.study.best_trials:
            best = search.study.best_trial
            came += f"; best {best.value:.5g} of trial {best.number}"
    return printable(f"trial {trial.number}: {varied}: {came}")


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def watch(search: Search, count: int, n_trials: int, hydra: DictConfig) -> None:
    """Let several processes work; say what comes of each trial, and pass a signal on to them.

    Raises:
        UserError: all of the first trials failed.
    """
    known = {trial.number for trial in search.trials if trial.state.is_finished()}
    cluster = launched_by(hydra, "SlurmLauncher")  # its jobs inherit the environment, and have machines of their own
    print(f"{count} processes search; what each says is in {search.folder}/worker-*.log", flush=True)
    workers = []
    with cli.stoppable():
        try:
            for k in range(count):
                with (search.folder / f"worker-{k}.log").open("ab") as log:
                    workers.append(
                        subprocess.Popen(
                            [sys.executable, *sys.orig_argv[1:]], stdin=subprocess.DEVNULL, stdout=log,
                            stderr=subprocess.STDOUT, start_new_session=True,
                            env=os.environ | ({} if cluster else shares(k, count)) | {WORKER: f"{k}:{os.getpid()}"},
                        )
                    )  # fmt: skip
            running = True
            while running:
                running = any(worker.poll() is None for worker in workers)
                for trial in search.trials:
                    if trial.state.is_finished() and trial.number not in known:
                        known.add(trial.number)
                        print(f"[{len(known)} of {n_trials}] {told(search, trial)}", flush=True)
                time.sleep(0.5 * running)
        except (KeyboardInterrupt, Interrupted):
            for worker in workers:
                with suppress(OSError):
                    worker.send_signal(signal.SIGTERM)
            for worker in workers:
                worker.wait()
            raise
    broken = [k for k, worker in enumerate(workers) if worker.returncode]
    if broken:
        logs = ", ".join(f"{search.folder}/worker-{k}.log" for k in broken)
        raise UserError(f"{len(broken)} of {count} processes ended with an error: see {logs}")


def _end_with_parent() -> None:
    """A worker is asked to stop when the process that waits for it is killed, where the system can (Linux)."""
    parent = int(os.environ.get(WORKER, ":0").partition(":")[2])
    if parent:
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:
            raise Interrupted(signal.SIGTERM)


def show(search: Search, folder: Path, finished: int) -> None:
    """Write down what the search found: ``best.yaml`` and ``search.png``."""
    from imago.figures.searches import draw_search

    states = [trial.state.name for trial in search.trials]
    counts = {name: states.count(name) for name in ("COMPLETE", "PRUNED", "FAIL") if name in states}
    print(f"{finished} trials: " + ", ".join(f"{count} {name.lower()}" for name, count in counts.items()))
    best = search.study.best_trials
    if not best:
        return
    command = " ".join([cli.program("train"), *search.study.user_attrs["overrides"]])
    found = [
        {
            "trial": trial.number,
            **dict(zip(search.objectives, trial.values, strict=True)),
            "params": dict(trial.params),
            "command": " ".join([command, *(f"{key}={value}" for key, value in trial.params.items())]),
            "run": str(next(iter(sorted(folder.glob(f"{trial.number}-*"))), "")),
        }
        for trial in best
    ]
    write_text(folder / "best.yaml", OmegaConf.to_yaml(OmegaConf.create(found)))
    draw_search(search.study, search.objectives, folder / "search.png")
    print(f"see {folder}/best.yaml and {folder}/search.png")
