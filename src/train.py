"""Train a model: ``python src/train.py model=gan data=cifar10``; ``--help`` lists what can be chosen."""

import time
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from imago import cli
from imago.config import CONF, check_experiment, check_top, plain
from imago.errors import UserError
from imago.paths import check_folder_place, run_to_resume


def main(config: DictConfig) -> None:
    """One job."""
    hydra = HydraConfig.get()
    choices = hydra.runtime.choices
    check_experiment(choices.get("experiment"), choices["model"])
    recipe = choices.get("recipe", "")
    if recipe != f"{choices['model']}-{choices['data']}" and not (CONF / "recipe" / f"{recipe}.yaml").is_file():
        raise UserError(f"recipe={recipe}: no such choice; leave it out, a model and a data set find theirs")
    values = plain(config)
    settings = check_top(values)
    if settings.resume is not None and settings.resume != "auto":
        run_to_resume(settings.resume)
    check_folder_place(Path(settings.logs), "logs")
    name = settings.name or f"{choices['model']}-{choices['data']}"
    from imago.runs import closing_words  # after Hydra has composed: mistakes in names and paths need not wait for it
    from imago.training.continuing import NothingLeftError
    from imago.training.run import train

    if hydra.mode == RunMode.MULTIRUN and "strategy" in config.trainer:
        raise UserError("trainer=ddp with -m: each process would start the sweep anew; give one combination at a time")
    if hydra.mode == RunMode.MULTIRUN:
        directory, sweep = Path(hydra.sweep.dir) / hydra.sweep.subdir, Path(hydra.sweep.dir).name
    else:
        directory, sweep = Path(settings.logs) / name / time.strftime("%Y-%m-%d_%H-%M-%S"), None
    try:
        run = train(values, name, directory, group=sweep)
    except NothingLeftError as done:
        if hydra.mode != RunMode.MULTIRUN:
            raise
        print(f"note: {done}")  # a sweep that was stopped is given again: its finished jobs are no mistakes
        return
    if run.write:
        print(closing_words(run))


if __name__ == "__main__":
    cli.run(main, "train")
