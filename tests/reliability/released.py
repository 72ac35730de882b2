"""One small checkpoint of every model for each released version, and what it gives.

`python tests/reliability/released.py`, run at a release, writes released/VERSION/. Nothing there is ever written again.
"""

import contextlib
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2] / "src")]

import torch

import imago
from helpers import TINY, configuration
from imago.checkpoints import load
from imago.images import ImageSpec
from imago.models.base import ExplicitModel
from imago.rng import PerImageGenerator
from imago.training.run import train

FOLDER = Path(__file__).with_name("released")
SMALL = ["model.network.width=4", "model.network.multipliers=[1,2]"]
CASES = {
    **{model: [] for model in TINY},
    "ddpm": SMALL,
    "ddpm-conditional": [*SMALL, "conditional=true", "model.p_uncond=0.3"],
    "dcgan-conditional": ["conditional=true"],
}


def options(model: str, *more: str) -> dict[str, Any]:
    """The configuration of a run of seconds."""
    return configuration(
        f"model={model}", *TINY[model], *more, "data=digits", "data.batch_size=16", "metrics=none", "trainer=cpu",
        "logger=csv", "max_images=null", "every.log=32", "callbacks.samples=null", "callbacks.reconstructions=null",
        "callbacks.likelihood.images=32",
    )  # fmt: skip


def told(path: Path, n: int = 4) -> dict[str, Any]:
    """What a checkpoint gives: samples, and nats of fixed images where the model knows them."""
    model = load(path)
    labels = torch.arange(n) % model.classes if model.conditional else None
    images = model.sample(n, labels=labels, generator=PerImageGenerator(0))
    answer: dict[str, Any] = {"samples": images.numpy().tobytes().hex(), "images_seen": model.state.images}
    if isinstance(model, ExplicitModel):
        fixed = fixed_images(model.spec, n)
        answer["nats"] = [float(f"{value:.8g}") for value in (-model.log_likelihood(fixed, labels)).tolist()]
    return answer


def fixed_images(spec: ImageSpec, n: int) -> torch.Tensor:
    """A ramp of gray values, another phase for each image."""
    ramp = torch.arange(n * spec.dimensions) * 37 % spec.levels
    return ramp.to(torch.uint8).view(n, *spec.shape)


def main() -> None:
    """Train and keep a checkpoint of each case."""
    torch.set_num_threads(1)
    folder = FOLDER / imago.__version__
    folder.mkdir(parents=True)
    for case, more in CASES.items():
        model = case.split("-")[0]
        with tempfile.TemporaryDirectory() as temporary, contextlib.chdir(temporary):
            run = train(options(model, *more, "max_updates=8"), case, Path("run").absolute())
            shutil.copyfile(run.last, folder / f"{case}.ckpt")
            if case == "vae":  # a whole run directory, which is continued and compared
                for file in (run.path / "config.yaml", run.summary_path, run.metrics):
                    shutil.copyfile(file, folder / f"vae-{file.name}")
    answers = {case: told(folder / f"{case}.ckpt") for case in CASES}
    (folder / "answers.json").write_text(json.dumps(answers, indent=1) + "\n")


if __name__ == "__main__":
    main()
