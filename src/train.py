"""Train a model: ``python src/train.py model=gan data=cifar10``; ``--help`` lists what can be chosen."""

from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from imago import cli
from imago.config import check as check_values
from imago.config import check_experiment, check_top, experiments, plain
from imago.errors import UserError
from imago.paths import check_folder_place, run_to_resume


def main(config: DictConfig) -> None:
    """One job."""
    hydra = HydraConfig.get()
    choices = hydra.runtime.choices
    check_experiment(choices.get("experiment"), choices["model"])
    values = plain(config)
    settings = check_values(values, imported=False)
    if settings.resume is not None and settings.resume != "auto":
        run_to_resume(settings.resume)
    name = settings.name or f"{choices['model']}-{choices['data']}"
    from imago.runs import closing_words  # after Hydra has composed: mistakes in names and paths need not wait for it
    from imago.training.continuing import NothingLeftError
    from imago.training.run import train

    multirun = hydra.mode == RunMode.MULTIRUN
    if multirun and "strategy" in config.trainer:
        raise UserError("trainer=ddp with -m: each process would start the sweep anew; give one combination at a time")
    if not (multirun or choices.get("experiment") or settings.resume):
        sources = [Path(source.path) for source in hydra.runtime.config_sources if source.schema == "file"]
        if own := experiments(sources, choices["model"], choices["data"]):
            print(f"experiments for model={choices['model']} data={choices['data']}: {', '.join(own)}")
    directory, here = Path(hydra.runtime.output_dir), Path.cwd()
    if here in directory.parents:
        directory = directory.relative_to(here)
    try:
        run = train(values, name, directory, group=Path(hydra.sweep.dir).name if multirun else None)
    except NothingLeftError as done:
        if not multirun:
            raise
        print(f"note: {done}")  # a sweep that was stopped is given again: its finished jobs are no mistakes
        return
    if run.write:
        print(closing_words(run))


def check(config: DictConfig) -> None:
    """What decides where the run will be."""
    check_folder_place(Path(check_top(plain(config)).logs), "logs")


if __name__ == "__main__":
    cli.run(main, "train", check)
