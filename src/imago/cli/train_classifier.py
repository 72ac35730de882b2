"""Train the classifier behind ``metrics=classifier``: ``python src/train_classifier.py data=cifar10 out=FILE``."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from omegaconf import DictConfig
from pydantic import Field, PositiveInt

from imago import cli
from imago.config import build, check_node, check_settings, plain
from imago.paths import check_file_place, writing_to
from imago.untrusted import opened, read_archive


@dataclass(frozen=True)
class Settings:
    """What train_classifier.yaml explains."""

    seed: Annotated[int, Field(ge=0, lt=2**32)]
    max_images: PositiveInt
    out: Annotated[str, Field(min_length=1)]


def main(config: DictConfig) -> None:
    """Train on the data set ``data`` and write the weights to ``out``."""
    composed = plain(config)
    settings = check_settings(composed, Settings, groups=("data",))
    out = Path(settings.out)
    check_file_place(out, ours=_is_classifier)
    import torch  # after Hydra has composed: mistakes in names and paths need not wait for it

    from imago.evaluation.cache import save_atomically
    from imago.evaluation.choices import check_learnable, train_on
    from imago.progress import progress_bar

    check_node(composed["data"], "data")
    data = build(composed["data"], "data")
    data.prepare()
    check_learnable(data, "data", "Choose labelled data of two classes or more.")
    started = time.perf_counter()
    cpu = torch.device("cpu")
    with progress_bar(f"Classifier of {data.name}") as progress:
        content = train_on(data, images_seen=settings.max_images, seed=settings.seed, device=cpu, progress=progress)
    with writing_to(out):
        save_atomically(out, content)
    numbers = sum(value.numel() for value in content["weights"].values())
    print(
        f"{out}: {numbers:,} numbers, {out.stat().st_size:,} bytes, "
        f"accuracy {content['validation_accuracy']:.2%} (validation), {content['test_accuracy']:.2%} (test), "
        f"{settings.max_images:,} images in {time.perf_counter() - started:.0f} s"
    )


def _is_classifier(path: Path) -> bool:
    with opened(path) as file:
        return set(read_archive(file, ["network", "weights"])) == {"network", "weights"}


def command() -> None:
    """Carry out ``train_classifier`` as the command line says."""
    cli.run(main, "train_classifier")
