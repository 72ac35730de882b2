"""What every model computes in a dozen updates: `make numerics` writes numerics.json, test_numerics.py holds it."""

import contextlib
import csv
import io
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2] / "src")]

import numpy as np
import torch
from PIL import Image

from helpers import TINY, configuration
from imago.checkpoints import load
from imago.rng import PerImageGenerator
from imago.runs import Run
from imago.training.run import train

EXPECTED = Path(__file__).with_name("numerics.json")
UPDATES = 12
KEPT = (1, 2, 4, 8, 12)  # rows of the table
SAMPLES = 4

# What a case changes beside the size; the first word of its name is the model.
CASES: dict[str, list[str]] = {
    **{model: [] for model in TINY},
    # data: binary, classes, colours
    **{f"{model} binary": ["data.binarize=dynamic"] for model in ("made", "pixelcnn", "vae", "ddpm")},
    **{
        f"{model} conditional": ["conditional=true"]
        for model in ("made", "row_lstm", "gated_pixelcnn", "autoencoder", "conv_vae", "hvae", "gan", "dcgan")
    },
    "ddpm conditional": ["conditional=true", "model.p_uncond=0.3", "model.guidance=1.5"],
    **{f"{model} rgb": [] for model in ("pixelcnn", "diagonal_bilstm", "conv_vae", "dcgan", "ddpm")},
    # what an image's values are drawn from
    **{
        f"{model} {name}": [f"model/distribution={name}"]
        for model, name in (
            ("pixelcnn", "logistic_mixture"), ("made", "softmax"), ("fvbn", "logistic"),
            ("vae", "gaussian"), ("conv_vae", "logistic_mixture"),
        )
    },
    "made rgb logistic_mixture": ["model/distribution=logistic_mixture"],
    "rbm persistent": ["model.persistent=true", "model.chains=20", "model.k=2"],
    # adversarial losses
    **{
        f"gan {name}": [f"model/objective={name}"]
        for name in ("minimax", "hinge", "least_squares", "wasserstein")
    },
    "dcgan r1": ["model/penalty=r1", "model.discriminator.batch_norm=false"],
    "dcgan gradient_penalty": [
        "model/penalty=gradient_penalty", "model.discriminator.batch_norm=false",
        "model.discriminator_steps=2",
    ],
    "dcgan spectral_norm": ["model.discriminator.spectral_norm=true"],
    # bounds
    "vae beta": ["model.beta=2", "model.kl_warmup=150", "model.free_bits=0.1"],
    "hvae skip": ["model.kl_warmup=150", "model.free_bits=0.1", "model.gradient_skip=5"],
    # noise that makes real numbers of integers
    "glow variational": ["model/dequantization=variational", "conditional=true"],
    "realnvp rgb": [],
    "realnvp mixture": ["model.components=3"],
    "maf binary": ["data.binarize=dynamic"],
    # diffusion
    **{f"ddpm {name}": [f"model/noise_schedule={name}"] for name in ("quadratic", "sigmoid", "cosine")},
    **{f"ddpm {name}": [f"model/prediction={name}"] for name in ("x0", "v")},
    **{f"ddpm {name}": [f"model/sampler={name}"] for name in ("ancestral", "dpm_solver")},
    "ddpm fixed_large": ["model/variance=fixed_large", "model/sampler=ancestral"],
    "ddpm learned": [
        "model/variance=learned", "model/loss=hybrid", "model/sampler=ancestral",
    ],
    "ddpm vlb": ["model/loss=vlb"],
    # steps
    "vae rmsprop": ["model/optimizer/net=rmsprop", "model.gradient_clip=0.5"],
    "vae adagrad warmup": [
        "model/optimizer/net=adagrad", "model/schedule=warmup", "model.schedule.images=100",
    ],
    "vae sgd cosine": ["model/optimizer/net=sgd", "model/schedule=cosine"],
    "vae linear": ["model/schedule=linear"],
}  # fmt: skip


def options(case: str, folder: Path, *more: str) -> dict[str, Any]:
    """The configuration of a case, with all that it writes in a folder."""
    model = case.split()[0]
    data = _pictures(folder) if "rgb" in case else ["data=digits"]
    measured = ["metrics=classifier", "metrics.samples=64"] if case in ("gan", "vae") else ["metrics=none"]
    return configuration(
        f"model={model}", *data, *TINY[model], *CASES[case], *measured, "data.batch_size=16", "trainer=cpu",
        "logger=csv", "max_images=null", f"max_updates={UPDATES}", "every.log=16", "every.checkpoints=100000",
        "callbacks.averaging.half_life=64", "callbacks.likelihood.images=48", "callbacks.samples=null",
        "callbacks.reconstructions=null", f"logs={folder}", *more,
    )  # fmt: skip


def _pictures(folder: Path) -> list[str]:
    """Fifty pictures in colour, 4x6, which are not square, as data."""
    place = folder / "pictures"
    place.mkdir(exist_ok=True)
    random = np.random.RandomState(0)
    for k in range(50):
        pixels = np.clip(random.normal(random.randint(40, 215, 3), 30, (4, 6, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(place / f"{k:02d}.png")
    return ["data=folder", f"data.path={place}", f"data.dir={folder}"]


def result_of(run: Path) -> dict[str, Any]:
    """What a run computed: rows of losses and gradient norms, what was measured last, and some samples."""
    with (run / "metrics.csv").open() as file:
        rows = [
            {k: float(v) for k, v in row.items() if v and not k.startswith("time/")} for row in csv.DictReader(file)
        ]
    steps = [row for row in rows if any(name.startswith("train/") for name in row)]
    measured: dict[str, float] = {}
    for row in rows:
        measured |= {name: value for name, value in row.items() if name.startswith("val/")}
    model = load(run)
    images = model.sample(SAMPLES, generator=PerImageGenerator(0))
    return {
        "rows": {str(n): {k: v for k, v in steps[n - 1].items() if k.startswith("train/")} for n in KEPT},
        "measured": measured,
        "samples": images.numpy().tobytes().hex(),
    }


def run_case(case: str, folder: Path, *more: str) -> Run:
    """Train a case."""
    return train(options(case, folder, *more), "x", folder / "run")


def main() -> None:
    """Compute every case anew and write what came out."""
    torch.set_num_threads(1)
    found = {}
    for case in CASES:
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
            found[case] = result_of(run_case(case, Path(folder)).path)
    before = json.loads(EXPECTED.read_text()) if EXPECTED.exists() else {}
    rounded = json.loads(json.dumps(found), parse_float=lambda text: float(f"{float(text):.8g}"))
    EXPECTED.write_text(json.dumps(rounded, indent=1) + "\n")
    changed = [case for case in rounded if rounded[case] != before.get(case)]
    print(f"{EXPECTED}: {len(changed)} of {len(rounded)} cases changed{': ' * bool(changed)}{', '.join(changed)}")


if __name__ == "__main__":
    main()
