"""Train a model: ``python src/train.py model=gan data=cifar10``; ``--help`` lists what can be chosen."""

import time
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from imago import cli
from imago.config import check_experiment, plain
from imago.errors import UserError
from imago.paths import checkpoint_file


def main(config: DictConfig) -> None:
    """One job."""
    hydra = HydraConfig.get()
    choices = hydra.runtime.choices
    check_experiment(choices.get("experiment"), choices["model"])
    if isinstance(config.resume, str) and config.resume != "auto":
        checkpoint_file(config.resume, "resume")
    name = config.name or f"{choices['model']}-{choices['data']}"
    from imago.runs import closing_words  # after Hydra has composed: mistakes in names and paths need not wait for it
    from imago.training import train

    if hydra.mode == RunMode.MULTIRUN and "strategy" in config.trainer:
        raise UserError("trainer=ddp with -m: each process would start the sweep anew; give one combination at a time")
    if hydra.mode == RunMode.MULTIRUN:
        directory, sweep = Path(hydra.sweep.dir) / hydra.sweep.subdir, Path(hydra.sweep.dir).name
    else:
        directory, sweep = Path(config.logs) / name / time.strftime("%Y-%m-%d_%H-%M-%S"), None
    run = train(plain(config), name, directory, group=sweep)
    if run.write:
        print(closing_words(run))


if __name__ == "__main__":
    cli.run(main, "train")
