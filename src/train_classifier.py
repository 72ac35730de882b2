"""Train the classifier behind ``metrics=classifier``: ``python src/train_classifier.py data=cifar10 out=FILE``."""

import sys
import time
from pathlib import Path

import hydra
import torch
from omegaconf import DictConfig

from imago.errors import UserError
from imago.metrics.cache import save_atomically
from imago.metrics.choices import train_on
from imago.metrics.progress import progress_bar


def train(config: DictConfig) -> None:
    """Train on ``config.data`` and write the weights to ``config.out``."""
    out = Path(config.out)
    if not out.parent.is_dir():
        raise UserError(f"out={out}: there is no folder {out.parent}. Create it, or choose another place.")
    data = hydra.utils.instantiate(config.data)
    data.prepare()
    if data.train.labels is None:
        raise UserError(f"data={data.name}: has no labels to train a classifier with. Choose labelled data.")
    started = time.perf_counter()
    with progress_bar(f"Classifier of {data.name}") as progress:
        content = train_on(
            data,
            images_seen=config.max_images,
            seed=config.seed,
            device=torch.device(config.device),
            progress=progress,
        )
    save_atomically(out, content)
    numbers = sum(value.numel() for value in content["weights"].values())
    print(
        f"{out}: {numbers:,} numbers, {out.stat().st_size:,} bytes, "
        f"accuracy {content['validation_accuracy']:.2%} (validation), {content['test_accuracy']:.2%} (test), "
        f"{config.max_images:,} images in {time.perf_counter() - started:.0f} s"
    )


@hydra.main(version_base="1.3", config_path="../conf", config_name="train_classifier")
def main(config: DictConfig) -> None:
    """Run, and turn a user's mistake into one message and exit code 2."""
    try:
        train(config)
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
