"""What every model costs at a paper's budget or ours, and how the cost grows with the side of an image, depth and T.

    make bench BENCHMARKS=benchmarks/scaling.py
    .venv/bin/python benchmarks/scaling.py curves     # or budgets: one part anew

Nothing is compared, and nothing is trained for longer than a second or so: these are the estimates of
``train.py estimate=true``. Writes ``benchmarks/results/scaling.json``, the tables of ``docs/scaling.md`` between its
marks, and the picture there. Needs MNIST and CIFAR-10 in IMAGO_DATA_DIR (or data/).
"""

import json
import re
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from imago.config import build, composed, plain, without_hydra
from imago.data import ImageDataModule, ImageSet, Source, Splits
from imago.models.base import GenerativeModel
from imago.training import estimate
from imago.training.compose import compose
from side_by_side import RESULTS, machine

ROOT = Path(__file__).parents[1]
MARKS = ("<!-- scaling: benchmarks/scaling.py writes what follows -->", "<!-- scaling: end -->")
BUDGETS = (
    "fvbn_mnist",
    "made_mnist_paper",
    "row_lstm_mnist_paper",
    "diagonal_bilstm_mnist_paper",
    "pixelcnn_mnist_paper",
    "gated_pixelcnn_mnist",
    "row_lstm_cifar10",
    "diagonal_bilstm_cifar10",
    "pixelcnn_cifar10",
    "gated_pixelcnn_cifar10",
    "autoencoder_mnist",
    "vae_mnist",
    "conv_vae_mnist",
    "hvae_mnist",
    "gan_mnist",
    "dcgan_mnist",
    "dcgan_cifar10",
    "ddpm_mnist",
    "ddpm_cifar10",
    "flow_matching_mnist",
    "masked_diffusion_mnist",
    "realnvp_mnist",
    "glow_mnist",
    "rbm_mnist",
    "ebm_mnist",
    "gsn_mnist",
    "ncsn_mnist",
)
BUSY = 0.2  # assumed share of the peak that a GPU reaches
TOGETHER = 0.9  # assumed efficiency of eight
PEAK, PEAK_FLOAT32 = 989e12, 67e12  # FLOP/s of an H200, dense: bf16, and float32 without tensor cores
SIDES = (8, 16, 32)
BATCH, ROUNDS = 16, 4  # of the curves


class Noise(Source):
    """Gray images of a side, of two levels."""

    name = "noise"

    def __init__(self, side: int) -> None:
        self.side = side

    def load(self, directory: Path) -> Splits:
        images = torch.randint(0, 2, (512, 1, self.side, self.side), dtype=torch.uint8)
        held_out = ImageSet(images[:8], None)
        return Splits(ImageSet(images, None), held_out, held_out, (), "noise", 2)


@dataclass(frozen=True)
class Curve:
    """Seconds and FLOP of a training image (of a sample, for T) at some sizes, and the exponents of both."""

    model: str
    of: str  # side, depth or T
    sizes: list[int]
    seconds: list[float]
    flop: list[float]

    def exponents(self) -> tuple[float, float]:
        """The slopes of the least-squares lines through the logarithms: of seconds, of FLOP."""
        x = np.log(self.sizes)
        return float(np.polyfit(x, np.log(self.seconds), 1)[0]), float(np.polyfit(x, np.log(self.flop), 1)[0])


def steps(side: int, *overrides: str) -> estimate.Steps:
    """Of a model of conf/model on images of a side."""
    config = plain(without_hydra(composed("train", [*overrides])))
    data = ImageDataModule(Noise(side), batch_size=BATCH)
    data.prepare()
    model = build(config["model"], "model", spec=data.spec)
    model.configure_optimizers()
    model.log_grad_norm = False
    return estimate.Steps(model.train(), data, nullcontext)


def fastest(each: Sequence[Callable[[], float]]) -> list[float]:
    """The least that each returns, asked in turn: what others do on the machine only adds."""
    return [min(found) for found in zip(*[[work() for work in each] for _ in range(ROUNDS)], strict=True)]


def curve(model: str, of: str, sizes: Sequence[int], key: str = "") -> Curve:
    """Measure one; ``key`` is the setting that varies where it is not the side."""
    trained = [
        steps(size, f"model={model}") if of == "side" else steps(16, f"model={model}", f"{key}={size}")
        for size in sizes
    ]
    flop = [estimate.flop_of(partial(own.update, BATCH)) / BATCH for own in trained]

    def timed(own: estimate.Steps) -> float:
        return own.timed(BATCH, 0.15).cpu_seconds

    return Curve(model, of, list(sizes), fastest([partial(timed, own) for own in trained]), flop)


def steps_of_sampling(sizes: Sequence[int]) -> Curve:
    """The ancestral sampler of a diffusion model, whose steps are T."""
    given = ["model=ddpm", "data=digits", "model/sampler=ancestral"]
    models = [compose([*given, f"model.steps={size}"])[0] for size in sizes]

    def timed(model: GenerativeModel) -> float:
        began = time.process_time()
        model.sample(4)
        return (time.process_time() - began) / 4

    seconds = fastest([partial(timed, model) for model in models])
    return Curve("ddpm", "T", list(sizes), seconds, [estimate.flop_per_sample(model) for model in models])


def budget(name: str) -> dict[str, Any]:
    """One experiment's line."""
    config = plain(without_hydra(composed("train", [f"experiment={name}", "trainer=cpu"])))
    config.pop("estimate", None)
    found = estimate.estimate_run(config, name)
    cost, flop = found.cost, found.cost.flop_per_image * found.images
    recurrent = "layer" in config["model"]
    gpu = flop / (BUSY * (PEAK_FLOAT32 if recurrent else PEAK)) / 3600
    return {
        "experiment": name,
        "parameters": sum(cost.parameters.values()),
        "flop_per_image": cost.flop_per_image,
        "flop_per_sample": cost.flop_per_sample,
        "images": found.images,
        "ended_by": found.ended_by,
        "measured_batch": cost.measured_batch,
        "cpu_seconds_per_image": cost.cpu_seconds_per_image,
        "core_hours": cost.cpu_seconds_per_image * found.images / 3600,
        "h200_hours": gpu,
        "eight_h200_hours": gpu / 8 / TOGETHER,
    }


def number(value: float) -> str:
    """Three digits, thousands in full."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}" if value >= 0.01 else f"{value:.1g}"


def prefixed(value: float) -> str:
    power = int(np.log10(value) // 3)
    return f"{value / 1000**power:.3g} {' kMGTPE'[power]}".strip()


def tables(content: dict[str, Any]) -> str:
    """What docs/scaling.md shows of the results."""
    lines = [
        "| experiment | parameters | FLOP / training image | FLOP / sample | images | core-hours here "
        "| H200 hours, *estimated* | eight, *estimated* |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in content["budgets"]:
        cells = [
            row["experiment"],
            prefixed(row["parameters"]),
            prefixed(row["flop_per_image"]),
            prefixed(row["flop_per_sample"]),
            f"{row['images']:,}" + ("" if row["ended_by"].startswith("max_images") else f" ({row['ended_by']})"),
            *(number(row[key]) for key in ("core_hours", "h200_hours", "eight_h200_hours")),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "| model | grows with | sizes | exponent of seconds | exponent of FLOP |", "|---|---|---|---:|---:|"]
    for row in content["curves"]:
        time_exponent, flop_exponent = Curve(**row).exponents()
        sizes = ", ".join(map(str, row["sizes"]))
        lines.append(f"| {row['model']} | {row['of']} | {sizes} | {time_exponent:.2f} | {flop_exponent:.2f} |")
    return "\n".join(lines)


def draw(curves: Sequence[Curve], path: Path) -> None:
    """Seconds over sizes, a panel for each kind, with the exponents."""
    drawing = Figure(figsize=(11, 3.8), layout="constrained")
    titles = {"side": "side of the image", "depth": "layers or blocks", "T": "T"}
    axes = drawing.subplots(1, 3)
    for axis, (of, title) in zip(axes, titles.items(), strict=True):
        own = [c for c in curves if c.of == of]
        for c in own:
            axis.plot(c.sizes, [1000 * s for s in c.seconds], "o-", label=f"{c.model} ∝ {c.exponents()[0]:.2f}")
        axis.set(xscale="log", yscale="log", xlabel=title)
        ticks = sorted({size for c in own for size in c.sizes})
        axis.set_xticks(ticks, map(str, ticks))
        axis.minorticks_off()
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7)
    axes[0].set_ylabel("CPU milliseconds for a training image")
    axes[2].set_ylabel("CPU milliseconds for a sample")
    drawing.savefig(path, dpi=110)


def main() -> None:
    torch.set_num_threads(1)
    file = RESULTS / "scaling.json"
    content = json.loads(file.read_text()) if file.exists() else {}
    parts = sys.argv[1:] or ["budgets", "curves"]
    if "budgets" in parts:
        content["budgets"] = []
        for name in BUDGETS:
            content["budgets"].append(budget(name))
            print(name, f"{content['budgets'][-1]['core_hours']:.3g} core-hours", flush=True)
    if "curves" in parts:
        curves = [curve(model, "side", SIDES) for model in ("made", "row_lstm", "pixelcnn", "vae", "dcgan", "ddpm")]
        curves += [
            curve("row_lstm", "depth", (1, 2, 4, 8), "model.layers"),
            curve("pixelcnn", "depth", (2, 4, 8, 16), "model.blocks"),
            curve("ddpm", "depth", (1, 2, 4), "model.network.blocks"),
            steps_of_sampling((50, 100, 200, 400)),
        ]
        content["curves"] = [asdict(found) for found in curves]
        draw(curves, ROOT / "docs" / "images" / "scaling.png")
    content |= {"command": "python benchmarks/scaling.py", "machine": machine(), "threads": 1}
    file.write_text(json.dumps(content, indent=2) + "\n")
    page = ROOT / "docs" / "scaling.md"
    text = page.read_text(encoding="utf-8")
    written = f"{MARKS[0]}\n\n{tables(content)}\n\n{MARKS[1]}"
    page.write_text(re.sub(f"{MARKS[0]}.*{MARKS[1]}", lambda _: written, text, flags=re.DOTALL), encoding="utf-8")
    print(tables(content), f"\n{time.process_time():.0f} s of processor time")


if __name__ == "__main__":
    main()
