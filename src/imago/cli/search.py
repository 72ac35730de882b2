"""``-m hydra/sweeper=optuna``: carry a search out, in this process or in several, and show what it found."""

import ctypes
import os
import shlex
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
from imago.config import check_name, quoted, without_hydra
from imago.errors import Interrupted, UserError, printable
from imago.files import write_text
from imago.search import PRUNED, STUDY, Search, check_installed, objectives_of, space_of

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
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
    if sweeper.study is not None:
        check_name(sweeper.study, "hydra.sweeper.study", "logs/sweeps")
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
    if WORKER not in os.environ:
        _check_space(sweeper, space, fixed)
        if config.get("measuring_share") is not None and any(name.startswith("val/") for name in objectives):
            print("note: slow trials may be measured with fewer images, which compare with no others; "
                  "measuring_share=null measures all alike")  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "multirun.yaml").exists():
        write_text(folder / "multirun.yaml", OmegaConf.to_yaml(config))
    with _search(sweeper, folder, objectives) as search:
        if any(folder.glob("[0-9]*-*")) and not search.trials:
            raise UserError(
                f"{folder}: holds runs of a search whose {STUDY} is gone; move the folder away, or give another name "
                "with hydra.sweeper.study=NAME"
            )
        known = search.study.user_attrs.get("overrides")
        if known is None:
            search.study.set_user_attr("overrides", fixed)
        elif set(known) != set(fixed):
            raise UserError(
                f"hydra.sweeper.study={folder.name}: that search has other settings ({' '.join(known)}); "
                "give those, or another name"
            )
        _check_same_space(search, space)
        if sweeper.n_jobs > 1 and WORKER not in os.environ:
            broken = watch(search, sweeper.n_jobs, sweeper.n_trials, config.hydra)
        else:
            _end_with_parent()
            work(search, sweeper, space, fixed)
            broken = None
        if WORKER in os.environ:
            return []
        finished = [trial for trial in search.trials if trial.state.is_finished()]
        left = [trial.number for trial in search.trials if not trial.state.is_finished()]
        if left:
            print(f"note: other processes are at work on trials {left}; the same command shows what came of them")
        show(search, folder, len(finished))
        if broken is not None and len(finished) < sweeper.n_trials:
            raise UserError(broken)
        if broken is not None:
            print(f"note: {broken}")
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


def _check_space(sweeper: "OptunaSweeper", space: "Mapping[str, BaseDistribution]", fixed: Sequence[str]) -> None:
    """Mistakes in keys and values show before the first trial; each category and both ends of each range are tried."""
    from imago.cli.train import checked

    tried = {key: _some_of(distribution) for key, distribution in space.items()}
    first = {key: values[0] for key, values in tried.items()}
    others = [(key, value) for key, values in tried.items() for value in values[1:]]
    load = sweeper.hydra_context.config_loader.load_sweep_config
    for key, value in [(next(iter(first)), first[next(iter(first))]), *others]:
        config = load(sweeper.config, [*fixed, *(f"{k}={v}" for k, v in (first | {key: value}).items())])
        try:
            checked(without_hydra(config), config.hydra.runtime.choices)
        except UserError as error:
            wrong = next((k for k in space if str(error).startswith(f"{k}=") and "valid integer" in str(error)), None)
            real: Any = space.get(wrong or "")
            if not hasattr(real, "high"):
                raise
            raise UserError(
                f"{wrong}: takes whole numbers; give '{wrong}=int(interval({real.low:g},{real.high:g}))'"
            ) from None


def _check_same_space(search: Search, space: "Mapping[str, BaseDistribution]") -> None:
    """A search may be given wider ranges when it goes on, and no other keys or categories."""
    from optuna.distributions import check_distribution_compatibility, distribution_to_json, json_to_distribution

    kept = search.study.user_attrs.get("space")
    if kept is None:
        search.study.set_user_attr("space", {key: distribution_to_json(value) for key, value in space.items()})
        return
    before = {key: json_to_distribution(text) for key, text in kept.items()}
    remedy = f"give what it varies ({', '.join(before)}), or another name with hydra.sweeper.study=NAME"
    for key in [*space, *before]:
        try:
            check_distribution_compatibility(before[key], space[key])
        except (KeyError, ValueError):
            told = "has other choices for" if key in before and key in space else "varies" if key in before else "keeps"
            raise UserError(f"{key}: the search in {search.folder} {told} it; {remedy}") from None


def _some_of(distribution: "BaseDistribution") -> list[Any]:
    """All categories; the ends of a range of numbers, and of real ones first another one between them."""
    known: Any = distribution
    if hasattr(known, "choices"):
        return list(known.choices)
    between = [0.6 * known.low + 0.4 * known.high + 1e-3 * (known.high - known.low)] if known.step is None else []
    return [*between, known.low, known.high]


def work(search: Search, sweeper: "OptunaSweeper", space: Mapping[str, Any], fixed: Sequence[str]) -> None:
    """Carry out trial after trial in this process, until there is none left for it.

    Raises:
        UserError: all of the first trials failed.
    """
    while (trial := search.claim(space, sweeper.n_trials)) is not None:
        # The folder is named by this command, which a job is not.
        place = f"hydra.sweep.dir={quoted(str(search.folder))}"
        overrides = [place, *fixed, *(f"{key}={value}" for key, value in trial.params.items())]
        run = search.run_of(trial.number)
        if run is not None:
            overrides.append(f"resume={quoted(str(run))}")
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


def watch(search: Search, count: int, n_trials: int, hydra: DictConfig) -> str | None:
    """Let several processes work; say what comes of each trial, and pass a signal on to them.

    Returns:
        which of them ended with an error, if any did; the others have done what they could.
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
    logs = ", ".join(f"{search.folder}/worker-{k}.log" for k in broken)
    return f"{len(broken)} of {count} processes ended with an error: see {logs}" if broken else None


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
    if len(search.objectives) == 1:  # Optuna names all that are equally good
        best = [search.study.best_trial]
    command = cli.program("train").split() + search.study.user_attrs["overrides"]
    found = [
        {
            "trial": trial.number,
            **dict(zip(search.objectives, trial.values, strict=True)),
            "params": dict(trial.params),
            "command": shlex.join([*command, *(f"{key}={value}" for key, value in trial.params.items())]),
            "run": str(next(iter(sorted(folder.glob(f"{trial.number}-*"))), "")),
        }
        for trial in best
    ]
    write_text(folder / "best.yaml", OmegaConf.to_yaml(OmegaConf.create(found)))
    draw_search(search.study, search.objectives, folder / "search.png")
    print(f"see {folder}/best.yaml and {folder}/search.png")
