"""Train the classifier behind ``metrics=classifier``: ``python src/train_classifier.py data=cifar10 out=FILE``."""

import time
from pathlib import Path

from omegaconf import DictConfig

from imago import cli
from imago.config import build, plain
from imago.errors import UserError


def main(config: DictConfig) -> None:
    """Train on the data set ``data`` and write the weights to ``out``."""
    import torch  # after Hydra has composed: mistakes in names need not wait for it

    from imago.metrics.cache import save_atomically
    from imago.metrics.choices import train_on
    from imago.metrics.progress import progress_bar

    settings = plain(config)
    for name, least in (("seed", 0), ("max_images", 1)):
        if not isinstance(settings[name], int) or settings[name] < least:
            raise UserError(f"{name}={settings[name]}: must be a whole number, {least} or more")
    out = Path(settings["out"])
    if not out.parent.is_dir():
        raise UserError(f"out={out}: there is no folder {out.parent}. Create it, or choose another place.")
    data = build(settings["data"], "data")
    data.prepare()
    if data.train.labels is None:
        raise UserError(f"data={data.name}: has no labels to train a classifier with. Choose labelled data.")
    started = time.perf_counter()
    options = {"images_seen": settings["max_images"], "seed": settings["seed"], "device": torch.device("cpu")}
    with progress_bar(f"Classifier of {data.name}") as progress:
        content = train_on(data, progress=progress, **options)
    save_atomically(out, content)
    numbers = sum(value.numel() for value in content["weights"].values())
    print(
        f"{out}: {numbers:,} numbers, {out.stat().st_size:,} bytes, "
        f"accuracy {content['validation_accuracy']:.2%} (validation), {content['test_accuracy']:.2%} (test), "
        f"{settings['max_images']:,} images in {time.perf_counter() - started:.0f} s"
    )


if __name__ == "__main__":
    cli.run(main, "train_classifier")
