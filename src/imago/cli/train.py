"""Train a model: ``python src/train.py model=gan data=cifar10``; ``--help`` lists what can be chosen."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from imago import cli
from imago.cli import jobs
from imago.cli.search import WORKER
from imago.config import Settings, check_experiment, check_machine, check_top, experiments, plain
from imago.config import check as check_values
from imago.errors import UserError
from imago.paths import check_folder_place, images_place, run_to_resume
from imago.processes import launched_rank
from imago.search import objectives_of, reporter_of
from imago.sweeps import alone, job_of
from imago.tables import read_table

if TYPE_CHECKING:  # the scripts load torch once Hydra has composed
    from imago.training.estimate import Estimate

# What runs of this process would cost.
estimated: list["Estimate"] = []


def main(config: DictConfig) -> float | list[float] | None:
    """One job; returns what a sweeper optimises, where ``objective`` names it."""
    hydra = HydraConfig.get()
    choices = hydra.runtime.choices
    values, settings = checked(config, choices)
    if settings.resume is not None and settings.resume != "auto":
        run_to_resume(settings.resume)
    name = settings.name or f"{choices['model']}-{choices['data']}"
    multirun = hydra.mode == RunMode.MULTIRUN
    job = job_of(Path(hydra.runtime.cwd, hydra.sweep.dir), hydra.overrides.task) if multirun else None
    if job is not None:
        name = job.named(name, choices, own=settings.name is not None)
    if values.pop("estimate"):  # of the command, not of the runs that it makes
        from imago.training.estimate import estimate_run

        found = estimate_run(values, name)
        estimated.append(found)
        print(found.line() if multirun else found.table(), flush=True)
        return None
    # After Hydra has composed: mistakes need not wait for torch.
    from imago.runs import Run, closing_words
    from imago.training.continuing import NothingLeftError
    from imago.training.run import train

    if multirun and "strategy" in config.trainer:
        raise UserError("trainer=ddp with -m: each process would start the sweep anew; give one combination at a time")
    if not (multirun or choices.get("experiment") or settings.resume or launched_rank()):
        sources = [Path(source.path) for source in hydra.runtime.config_sources if source.schema == "file"]
        if own := experiments(sources, choices["model"], choices["data"]):
            print(f"experiments for model={choices['model']} data={choices['data']}: {', '.join(own)}")
    directory, here = Path(cli.Folders.place or hydra.runtime.output_dir).absolute(), Path.cwd()
    if here in directory.parents:
        directory = directory.relative_to(here)
    try:
        recorded = {group: choice for group, choice in choices.items() if not group.startswith("hydra/")}
        reporter = None if job is None else reporter_of(job.folder)
        again = None if job is None else alone(program(), job.overrides)
        run = train(values, name, directory, job, recorded, reporter, again)
    except NothingLeftError as done:
        if not multirun:
            raise
        print(f"note: {done}")  # a sweep that was stopped is given again: its finished jobs are no mistakes
        run = Run(done.directory, write=False)
    jobs.ran.append(Path(hydra.runtime.cwd, run.path))
    if run.write:
        print(closing_words(run, cli.program("evaluate")))
    if settings.objective is None or not run.write:
        return None
    last = read_table(run.metrics).last
    for objective in objectives_of(settings.objective):
        if objective not in last:
            known = ", ".join(column for column in last if "/" in column)
            raise UserError(f"objective={objective}: the run never measured it; it has {known}")
    reached = [last[objective] for objective in objectives_of(settings.objective)]
    return reached[0] if isinstance(settings.objective, str) else reached


def checked(config: DictConfig, choices: Mapping[str, Any]) -> tuple[dict[str, Any], Settings]:
    """The values of a job and its settings, after whatever can be told of them without torch.

    Args:
        config: of the job, without Hydra's own.
        choices: Hydra's, by group.

    Raises:
        UserError: one of them cannot be used.
    """
    check_experiment(choices.get("experiment"), choices["model"])
    values = plain(config)
    settings = check_values(values, imported=False)
    check_machine(values["trainer"])
    if values["data"]["_target_"] in ("imago.data.folder_data", "imago.data.stream_data"):
        images_place(values["data"].get("path"))
    return values, settings


def check(config: DictConfig) -> None:
    """What decides where the run will be."""
    check_folder_place(Path(check_top(plain(config)).logs), "logs")


def rank(folder: Path, config: DictConfig) -> None:
    """Print the ranking of a sweep: of the runs in its folder, and those elsewhere that it has continued.

    Of runs that were only estimated, the sum.
    """
    if config.get("estimate"):
        if estimated:
            from imago.training.estimate import total

            print(total(estimated))
        return
    if os.environ.get(WORKER):
        return
    from imago.board.find import find_runs
    from imago.board.ranking import show_ranking

    runs = dict.fromkeys(run.resolve() for run in [*find_runs([str(folder)])[0], *jobs.ran])
    here = Path.cwd()
    shown = [run.relative_to(here) if here in run.parents else run for run in runs]
    objective = config.get("objective")
    first = next(iter(objective), None) if OmegaConf.is_list(objective) else objective
    show_ranking(shown, first if isinstance(first, str) else None, program())


def program() -> list[str]:
    """How training is called here, with the folder of the user's own configuration: a word each."""
    own = get_args_parser().parse_args(sys.argv[1:]).config_dir
    return [*cli.program("train").split(), *(["--config-dir", own] if own else [])]


def command() -> None:
    """Carry out ``train`` as the command line says."""
    jobs.ran.clear()
    estimated.clear()
    cli.run(main, "train", check, rank)
