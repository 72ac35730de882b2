"""What the framework costs: a training step of ``src/train.py``, everything on, against a bare loop of the same maths.

Ours is a whole run: configuration, data module, Lightning, averaged weights, the training log (a row per 10,000 images)
written to CSV and to an offline W&B run, and the progress bar as on a terminal. Only what is no part of a step is off:
grids, quality measurements and checkpoints. The bare loop steps along the losses that the same model yields, with the
same batches, fused optimisers and averaging, and not a line more. The framework's cost is constant, so it matters for
small steps; the target is for steps of 20 ms and more.

    make bench BENCHMARKS=benchmarks/framework.py
"""

import contextlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

os.environ["WANDB_SILENT"] = "true"
os.environ["TTY_COMPATIBLE"] = "1"  # Rich draws its bar as on a terminal

import torch
from hydra import compose, initialize_config_dir

from imago import cli
from imago.config import build, plain
from imago.images import Batch
from imago.models.gan import GAN
from imago.training import run as training
from side_by_side import Interleave, Row, Timing, report

WIDTHS = (192, 384, 640)  # of both networks: steps of about 15, 25 and 55 ms
OVERRIDES = [
    "model=dcgan",
    "data=digits",
    "trainer=cpu",
    "metrics=classifier",
    "logger=wandb",
    "logger.wandb.mode=offline",
    "max_images=1000000000",
    "callbacks.quality=null",
    "callbacks.samples=null",
    "callbacks.checkpoints=null",
]

IN_ORDER = training.in_order


def bare_loop(config: dict[str, Any]) -> Callable[[], None]:
    """A function that takes one GAN step: D on a batch and on noise, G on new noise, the average of G."""
    data = build(config["data"], "data")
    data.prepare()
    images = data.train.images
    model = training.build_model(config, data.spec)
    assert isinstance(model, GAN)
    optimizers = dict(zip(model.networks, model.configure_optimizers(), strict=True))
    average = [p.detach().clone() for p in model.generator.parameters()]
    batch = config["data"]["batch_size"]
    order, position = torch.randperm(len(images)), 0

    def step() -> None:
        nonlocal order, position
        if position + batch > len(images):
            order, position = torch.randperm(len(images)), 0
        real = Batch(images[order[position : position + batch]], None)
        position += batch
        for loss in model.losses(real):
            optimizers[loss.network].zero_grad()
            loss.value.backward()
            optimizers[loss.network].step()
        torch._foreach_lerp_(average, [p.detach() for p in model.generator.parameters()], 0.01)

    return step


def main() -> None:
    torch.set_num_threads(1)
    rows = []
    for width in WIDTHS:
        widths = [f"model.{player}.width={width}" for player in ("generator", "discriminator")]
        with initialize_config_dir(str(cli.CONF), version_base="1.3"):
            config = plain(compose("train", [*OVERRIDES, *widths]))
        interleave = Interleave(bare_loop(config), steps=40, rounds=15)
        with (
            tempfile.TemporaryDirectory() as directory,
            Path(os.devnull).open("w") as nowhere,
            contextlib.redirect_stderr(nowhere),
            mock.patch.object(training, "in_order", lambda *parts, last=interleave: [*IN_ORDER(*parts), last]),
        ):
            training.train(config, "framework", Path(directory) / "run")
        ours, bare = (Timing(seconds, 1) for seconds in interleave.medians())
        print(f"{bare.seconds * 1e3:.1f} ms bare, {(ours.seconds - bare.seconds) * 1e3:+.2f} ms in the framework")
        batch = config["data"]["batch_size"]
        rows.append(
            Row(
                job=f"DCGAN step of {bare.seconds * 1e3:.0f} ms",
                unit="images/s",
                ours=batch / ours.seconds,
                our_threads=1,
                other="bare loop",
                others=batch / bare.seconds,
                their_threads=1,
                target=0.97 if bare.seconds >= 0.020 else None,
            )
        )
    report("framework", rows)


if __name__ == "__main__":
    main()
