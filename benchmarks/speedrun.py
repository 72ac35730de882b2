"""Records on MNIST for processor time, from scratch, in likelihood and distance of samples: `make speedrun`.

    python benchmarks/speedrun.py --plan            # the parts that are left, and how long they take
    python benchmarks/speedrun.py fvbn made/1       # those whose names begin so
    python benchmarks/speedrun.py made/pythae       # a peer alone
    python benchmarks/speedrun.py --report          # the results of what is there

Every part is a run of one seed on one thread, for so many seconds of processor time, then measured on all test
images, or by the distance of samples from these; what is complete is not repeated, and a run that was broken off goes
on. On two quiet cores two such commands for different parts may run at once. A peer is trained for as many seconds on
the same images, and measured on the same test images by the same estimate. Those of a whole night begin only where they
are named (row_lstm-night).

Writes ``benchmarks/results/speedrun.json`` and the table of ``docs/speedrun.md``. Needs MNIST in IMAGO_DATA_DIR (or
data/).
"""

import argparse
import json
import math
import os
import re
import statistics
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import clip_grad_norm_

from imago.data import BatchStream, ImageDataModule
from imago.data.sources import MNIST
from imago.distributions import Bernoulli
from imago.evaluation import measure_likelihood
from imago.images import normalize, quantize
from imago.models.vae import VAE
from side_by_side import RESULTS, machine

ROOT = Path(__file__).parents[1]
OUT = ROOT / "logs" / "speedrun"
MARKS = ("<!-- speedrun: benchmarks/speedrun.py writes what follows -->", "<!-- speedrun: end -->")
SEEDS = (1, 2, 3)
DRAWS = 1000  # of the importance-weighted bound
FEW = 2500  # test images of which that is taken: all of them would be an hour for a convolutional decoder
LATENT = 50  # of pythae's VAE, as of ours
CALLS = 50  # of a diffusion's network for a sample
FD = "fd_classifier"
CORES = 2  # "ten minutes" are those of two cores


@dataclass(frozen=True)
class Row:
    """A model and what it is to reach in how long.

    Attributes:
        name: of the row.
        experiment: of conf/experiment/.
        seconds: of processor time, in training.
        wanted: nats of a test image, at most.
        settings: what is changed in the experiment.
        measure: name of the number that evaluate.py gives, or :data:`FD`.
        samples: of which that is the distance; ``None``: it is a likelihood.
        measuring: seconds that it takes, about, of the peer too.
        peer: who trains the like.
        night: too long to begin unasked.
    """

    name: str
    experiment: str
    seconds: int
    wanted: float | None = None
    settings: tuple[str, ...] = ()
    measure: str = "nats"
    samples: int | None = None
    measuring: int = 60
    peer: str | None = None
    night: bool = False

    def train(self, seed: int) -> list[str]:
        """The words of the command that trains, which ends at the limit or goes on to it."""
        return [
            "src/train.py",
            f"experiment={self.experiment}",
            *self.settings,
            "max_images=null",
            f"max_cpu_seconds={self.seconds}",
            "data.val=0",
            f"seed={seed}",
            f"name={self.name}-{seed}",
            f"logs={OUT.relative_to(ROOT)}/runs",
            "logger=csv",
            "metrics=none",
            "callbacks.likelihood=null",
            "callbacks.samples=null",
            "callbacks.reconstructions=null",
        ]

    def evaluate(self, run: str) -> list[list[str]]:
        """The words of the commands that measure a run."""
        if self.samples is not None:
            drawn = ["src/sample.py", f"checkpoint={run}", f"n={self.samples}", "batch_size=100"]
            return [[*drawn, f"out={run}/samples.npz", "overwrite=true"], distance(run)]
        draws = [f"importance={DRAWS}", f"images={FEW}"] if self.measure == "iw/nats" else []
        return [["src/evaluate.py", f"checkpoint={run}", "metrics=none", *draws]]

    def commands(self, seed: int) -> list[str]:
        """All of a seed."""
        return [" ".join(words) for words in (self.train(seed), *self.evaluate("<run>"))]


def distance(folder: str) -> list[str]:
    """The words of the command that compares a folder's samples with the test images."""
    chosen = ["b=mnist:test", "metrics=classifier", "metrics.full=false"]
    return ["src/distance.py", f"a={folder}/samples.npz", *chosen, f"out={folder}/distance.json"]


def minutes(count: float) -> int:
    """Seconds of processor time in minutes of two cores."""
    return round(count * 60 * CORES)


MUON = ("model/optimizer/net=muon", "model.optimizer.net.lr=0.003")
CHAIN = ("model/sampler=ancestral", f"model.sampler.steps={CALLS}")
ROWS = (
    Row("fvbn", "speedrun_fvbn", minutes(3), 96.6),
    Row("made", "made_mnist", minutes(10), 85.0, ("model.direct=true",), peer="pythae"),
    Row("vae", "conv_vae_mnist", minutes(10), 86.0, measure="iw/nats", measuring=900, peer="pythae"),
    Row("dcgan", "dcgan_mnist", minutes(10), None, ("max_seconds=null",), FD, 10_000, peer="torchgan"),
    Row("pixelcnn", "pixelcnn_mnist", minutes(15), 82.0, MUON, peer="pythae"),
    Row("gated_pixelcnn", "gated_pixelcnn_mnist", minutes(15), 82.0, MUON),
    Row("ddpm", "ddpm_mnist", minutes(20), None, CHAIN, FD, 1000, 500, peer="diffusers"),
    Row("diagonal_bilstm", "diagonal_bilstm_mnist", minutes(30), 80.75),
    Row("row_lstm", "row_lstm_mnist", minutes(60), 82.5),
    Row("hvae", "hvae_mnist", minutes(60), 82.0),
    Row("pixelcnn-hour", "pixelcnn_mnist", minutes(60), 81.3, MUON, night=True),
    Row("gated_pixelcnn-hour", "gated_pixelcnn_mnist", minutes(60), 81.5, MUON, night=True),
    Row("diagonal_bilstm-night", "diagonal_bilstm_mnist", minutes(480), 79.2, night=True),
    Row("row_lstm-night", "row_lstm_mnist", minutes(480), 80.5, night=True),
)


def run(words: list[str]) -> None:
    """A script of the project on one thread; its output goes to the terminal.

    Raises:
        CalledProcessError: it failed.
    """
    print("   ", "OMP_NUM_THREADS=1 python", " ".join(words), flush=True)
    subprocess.run([sys.executable, *words], cwd=ROOT, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})


def finished(row: Row, seed: int) -> Path | None:
    """The newest run of a seed by the row's recipe, if it has reached its limit."""
    command = f"python {' '.join(row.train(seed))}"
    for file in sorted((OUT / "runs" / f"{row.name}-{seed}").glob("*/summary.json"), reverse=True):
        summary = json.loads(file.read_text())
        if summary["command"].removesuffix(" resume=auto") == command:
            return file.parent if summary["status"] == "completed" else None
    return None


def own(row: Row, seed: int) -> dict[str, Any]:
    """Train a seed, or go on with it, and measure it."""
    if finished(row, seed) is None:
        run([*row.train(seed), "resume=auto"])
    found = finished(row, seed)
    assert found is not None
    for words in row.evaluate(str(found.relative_to(ROOT))):
        run(words)
    summary = json.loads((found / "summary.json").read_text())
    measured = of_evaluation(found, row.measure) if row.samples is None else of_distance(found)
    return measured | {
        "images": summary["images_seen"],
        "parameters": summary["parameters"]["total"],
        "cpu_seconds": summary["training_cpu_seconds"],
        "wall_seconds": summary["training_seconds"],
    }


def of_evaluation(folder: Path, measure: str) -> dict[str, float]:
    """The newest likelihood that a run's evaluation.json has, and its standard error over the test images."""
    evaluation = json.loads((folder / "evaluation.json").read_text())
    measured = next(entry for entry in evaluation[::-1] if entry["name"] == f"test/{measure}")
    return {"nats": measured["value"], "error_over_images": measured["protocol"]["standard_error"]}


def of_distance(folder: Path) -> dict[str, float]:
    """The distance that a folder's distance.json has, and of how many samples it is."""
    measurements = json.loads((folder / "distance.json").read_text())["measurements"]
    measured = next(entry for entry in measurements if entry["name"] == FD)
    return {FD: measured["value"], "samples": measured["protocol"]["samples"]}


# --- what one would take instead --------------------------------------------------------------------------------------


class TheirEncoder(nn.Module):
    """pythae's encoder as ours: signals in [-1, 1] → μ and log σ."""

    def __init__(self, net: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.net = net

    def forward(self, signal: Tensor, labels: Tensor | None) -> Tensor:
        """(n, channels, height, width) → (n, 2 latent)."""
        code = self.net((signal + 1) / 2)
        return torch.cat([code.embedding, code.log_covariance / 2], 1)


class TheirDecoder(nn.Module):
    """pythae's decoder as ours: its sigmoid taken back."""

    def __init__(self, net: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.net = net

    def forward(self, z: Tensor, labels: Tensor | None) -> Tensor:
        """(n, latent) → (n, channels, height, width, 1)."""
        return self.net(z).reconstruction.logit(1e-7).unsqueeze(-1)


def made_of_pythae() -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    """A hidden layer of 1,024; it has two outputs for a value, of which a Bernoulli needs one."""
    from pythae.models import normalizing_flows as flows

    net = flows.MADE(flows.MADEConfig(input_dim=(784,), output_dim=(784,), hidden_sizes=[1024]))

    def nats(x: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(net(x).mu, x.flatten(1), reduction="none").sum(1)

    return net, nats


def pixelcnn_of_pythae() -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    """Its ten masked convolutions of 5x5 and 64 features, with two levels."""
    from pythae.models import normalizing_flows as flows

    net = flows.PixelCNN(flows.PixelCNNConfig(input_dim=(1, 28, 28), n_embeddings=2))

    def nats(x: Tensor) -> Tensor:
        return F.cross_entropy(net({"data": x}).out, x.long(), reduction="none").flatten(1).sum(1)

    return net, nats


def vae_of_pythae() -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    """Its fully connected networks, which it builds where none are given."""
    from pythae import models as pythae

    net = pythae.VAE(pythae.VAEConfig(input_dim=(1, 28, 28), latent_dim=LATENT, reconstruction_loss="bce"))
    return net, lambda x: net({"data": x}).loss.unsqueeze(0)


Step = Callable[[Tensor, float], object]  # of training: uint8 images, and the share of the time that is behind
Draw = Callable[[int], Tensor]  # so many samples, signals in [-1, 1]


def ddpm_of_diffusers() -> tuple[nn.Module, Step, Draw]:
    """The U-Net of Hugging Face's course for MNIST, trained as in diffusers' tutorial and sampled by its scheduler."""
    from diffusers.models.unets.unet_2d import UNet2DModel
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    net = UNet2DModel(
        sample_size=28,
        in_channels=1,
        out_channels=1,
        layers_per_block=2,
        block_out_channels=(32, 64, 64),
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    )
    scheduler = DDPMScheduler(num_train_timesteps=1000, timestep_spacing="trailing")
    optimizer, steps = torch.optim.AdamW(net.parameters(), lr=1e-4), 0

    def step(images: Tensor, done: float) -> None:
        nonlocal steps
        clean = normalize(images, 256)
        noise, t = torch.randn_like(clean), torch.randint(0, 1000, (len(clean),))
        loss = F.mse_loss(net(scheduler.add_noise(clean, noise, t), t, return_dict=False)[0], noise)
        loss.backward()
        clip_grad_norm_(net.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = 1e-4 * min(1, steps / 500) * (1 + math.cos(math.pi * done)) / 2
        optimizer.step()
        optimizer.zero_grad()
        steps += 1

    @torch.no_grad()
    def draw(n: int) -> Tensor:
        net.eval()
        scheduler.set_timesteps(CALLS)
        x = torch.randn(n, 1, 28, 28)
        for t in scheduler.timesteps:
            x = scheduler.step(net(x, t).sample, t, x).prev_sample
        return x

    return net, step, draw


def dcgan_of_torchgan() -> tuple[nn.Module, Step, Draw]:
    """Networks, losses and rates of its tutorial, which is of MNIST; its 32x32 pixels have a black margin of two."""
    from torchgan import losses, models

    generator, discriminator = models.DCGANGenerator(100, 32, 1, 32), models.DCGANDiscriminator(32, 1, 32)
    of_generator, of_discriminator = losses.MinimaxGeneratorLoss(), losses.MinimaxDiscriminatorLoss()
    adam = partial(torch.optim.Adam, betas=(0.5, 0.999))
    first, second = adam(generator.parameters(), lr=1e-4), adam(discriminator.parameters(), lr=3e-4)
    cpu = torch.device("cpu")

    def step(images: Tensor, done: float) -> None:
        real = F.pad(normalize(images, 256), (2, 2, 2, 2), value=-1.0)
        of_generator.train_ops(generator, discriminator, first, cpu, len(real))
        of_discriminator.train_ops(generator, discriminator, second, real, cpu)

    @torch.no_grad()
    def draw(n: int) -> Tensor:
        generator.eval()
        return generator(*generator.sampler(n, cpu))[..., 2:-2, 2:-2]

    return nn.ModuleList([generator, discriminator]), step, draw


PEERS = {"made": (made_of_pythae, 64), "pixelcnn": (pixelcnn_of_pythae, 16), "vae": (vae_of_pythae, 100)}
DRAWING = {"dcgan": (dcgan_of_torchgan, 64), "ddpm": (ddpm_of_diffusers, 32)}


def peer(row: Row) -> dict[str, Any]:
    """Train the peer's model for as many seconds of processor time, on our batches, and measure it."""
    torch.set_num_threads(1)
    torch.manual_seed(1)
    if row.samples is None:
        make, batch_size = PEERS[row.name]
        net, nats = make()
        step = by_adam(net, nats)
    else:
        build, batch_size = DRAWING[row.name]
        net, step, draw = build()
    binarize = row.samples is None
    directory = os.environ.get("IMAGO_DATA_DIR", "data")
    data = ImageDataModule(
        MNIST(), batch_size=batch_size, val=0, binarize="dynamic" if binarize else None, dir=directory
    )
    data.prepare()
    images, used, began, wall = 0, 0.0, time.process_time(), time.perf_counter()
    for batch in BatchStream(data.train, batch_size=batch_size, seed=1, binarize=binarize):
        step(batch.images, used / row.seconds)
        images += batch_size
        if (used := time.process_time() - began) >= row.seconds:
            break
    wall = time.perf_counter() - wall
    measured: dict[str, Any]
    if row.samples is not None:
        measured = of_samples(draw, row.samples, OUT / row.name / str(row.peer))
    else:
        measured = of_latents(net, data) if row.measure == "iw/nats" else of_values(net, nats, data)
    count = sum(parameter.numel() for parameter in net.parameters())
    return measured | {"images": images, "parameters": count, "cpu_seconds": used, "wall_seconds": wall}


def by_adam(net: nn.Module, nats: Callable[[Tensor], Tensor]) -> Step:
    """Adam's step of 1e-3 on the mean of nats."""
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)

    def step(images: Tensor, done: float) -> None:
        optimizer.zero_grad()
        nats(images.float()).mean().backward()
        optimizer.step()

    return step


@torch.no_grad()
def of_values(net: nn.Module, nats: Callable[[Tensor], Tensor], data: ImageDataModule) -> dict[str, float]:
    """Mean nats of the test images, and its standard error over them."""
    net.eval()
    test = data.split("test")
    batches = (test.part(slice(first, first + 100)) for first in range(0, len(test), 100))
    each = torch.cat([nats(batch.images.float()).double() for batch in batches])
    return {"nats": each.mean().item(), "error_over_images": (each.std() / len(each) ** 0.5).item()}


def of_latents(net: Any, data: ImageDataModule) -> dict[str, float | None]:
    """The importance-weighted bound of some test images, by our estimate."""
    model = VAE(
        data.spec,
        latent=LATENT,
        encoder=lambda **_: TheirEncoder(net.encoder),
        decoder=lambda **_: TheirDecoder(net.decoder),
        distribution=lambda levels: Bernoulli(),
    )
    measured = measure_likelihood(model, data, "test", averaged=False, images=FEW, importance=DRAWS)
    bound = next(entry for entry in measured if entry.name == "iw/nats")
    return {"nats": bound.value, "error_over_images": bound.protocol.standard_error}


def of_samples(draw: Draw, count: int, folder: Path) -> dict[str, float]:
    """Draw samples, keep them in a folder as sample.py does ours, and measure them by the same command."""
    images = torch.cat([quantize(draw(min(100, count - first)), 256) for first in range(0, count, 100)])
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "samples.npz", images=images.permute(0, 2, 3, 1).contiguous().numpy())
    run(distance(str(folder.relative_to(ROOT))))
    return of_distance(folder)


# --- parts and results ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """A seed of a row, or its peer: what it returns is kept as a file of its name, with the commands it is of."""

    name: str
    seconds: float  # expected, on a quiet core
    commands: list[str]
    work: Callable[[], dict[str, Any]]
    night: bool = False

    @property
    def file(self) -> Path:
        """Where its result is kept."""
        return OUT / f"{self.name}.json"

    def result(self) -> dict[str, Any] | None:
        """What is kept, unless it is of other commands."""
        kept = json.loads(self.file.read_text()) if self.file.exists() else None
        return kept if kept is not None and kept.get("commands") == self.commands else None


def parts() -> Iterator[Part]:
    """All of them, the shortest first."""
    for row in ROWS:
        seconds = row.seconds + row.measuring
        for seed in SEEDS:
            yield Part(f"{row.name}/{seed}", seconds, row.commands(seed), partial(own, row, seed), row.night)
        if row.peer is not None:
            samples = "" if row.samples is None else f", {row.samples} samples"
            commands = [f"{row.peer} for {row.seconds} s{samples}"]
            yield Part(f"{row.name}/{row.peer}", seconds, commands, partial(peer, row), row.night)


def collected(committed: dict[str, Any]) -> list[dict[str, Any]]:
    """What is known of every row: by the parts that were run here, and of others by those of the same commands.

    Args:
        committed: content of benchmarks/results/speedrun.json, whose runs may lie elsewhere.
    """
    rows, here = [], {part.name: part.result() for part in parts()}
    for row in ROWS:
        commands = row.commands(1)
        before = next((r for r in committed["rows"] if r["model"] == row.name and r["commands"] == commands), None)
        known = {} if before is None else {r["part"]: r for r in (*before["seeds"], before["peers"]) if r is not None}
        for part in (*map(str, SEEDS), str(row.peer)):
            if (result := here.get(f"{row.name}/{part}")) is not None:
                known[part] = {key: value for key, value in result.items() if key != "commands"} | {"part": part}
        rows.append(
            {
                "model": row.name,
                "cpu_seconds": row.seconds,
                "wanted": row.wanted,
                "measure": row.measure,
                **({} if row.samples is None else {"samples": row.samples}),
                "commands": commands,
                "seeds": [known[str(seed)] for seed in SEEDS if str(seed) in known],
                "peer": row.peer,
                "peers": known.get(str(row.peer)),
            }
        )
    return rows


def told_machine() -> str:
    """What runs here run on."""
    about = machine()
    return f"{about['cpu']}, {about['cores']} cores, Python {about['python']}, torch {about['torch']}"


def mean_and_error(values: list[float]) -> tuple[float, float | None]:
    """The mean, and its standard error where there are several values."""
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else None
    return statistics.fmean(values), error


def wrapped(command: str) -> str:
    """A command as a block of code, in lines of a page."""
    lines = textwrap.wrap(f"python {command}", 130, break_on_hyphens=False, break_long_words=False)
    return "    " + " \\\n        ".join(lines)


def table(head: tuple[str, ...], rows: list[list[str]]) -> list[str]:
    """Lines of a table whose first column alone is of words."""
    line = f"|---|{'---:|' * (len(head) - 1)}"
    return [f"| {' | '.join(head)} |", line, *(f"| {' | '.join(cells)} |" for cells in rows)]


def told_row(row: dict[str, Any], name: str, digits: int) -> tuple[list[str], list[str]]:
    """Cells of a row of results: model, both times, the number of this name; the peer's number and weights."""
    seeds, theirs = row["seeds"], row["peers"]
    value, wall = "not run yet", ""
    if seeds:
        mean, error = mean_and_error([seed[name] for seed in seeds])
        value = f"{mean:.{digits}f}" + ("" if error is None else f" ± {error:.{digits}f}")
        wall = f"{statistics.fmean(seed['wall_seconds'] for seed in seeds):,.0f}"
    other = "" if row["peer"] is None else f"{row['peer']}: not run yet"
    if theirs is not None:
        other = f"{row['peer']}: {theirs[name]:.{digits}f}"
    weights = "" if theirs is None else f"{theirs['parameters']:,}"
    return [f"`{row['model']}`", f"{row['cpu_seconds']:,}", wall, value], [other, weights]


def tables(content: dict[str, Any]) -> str:
    """What docs/speedrun.md shows of the results."""
    likelihoods, distances = [], []
    for row in content["rows"]:
        if row["measure"] == FD:
            ours, theirs = told_row(row, FD, 3)
            distances.append([*ours, f"{row['samples']:,}", str(len(row["seeds"])), *theirs])
        else:
            ours, theirs = told_row(row, "nats", 2)
            likelihoods.append([*ours, str(len(row["seeds"])), f"≤ {row['wanted']:.2f}", *theirs])
    times, peers = ("model", "CPU seconds", "wall seconds"), ("the best peer", "its weights")
    lines = table((*times, "test nats", "seeds", "wanted", *peers), likelihoods)
    if distances:
        lines += ["", *table((*times, f"`{FD}`", "samples", "seeds", *peers), distances)]
    results = [r for row in content["rows"] for r in (*row["seeds"], row["peers"]) if r is not None]
    machines = sorted({f"{r['machine']}; {r['date']}" for r in results})
    lines += ["", *(f"{told}." for told in machines)]
    commands = [wrapped(command) for row in content["rows"] if row["seeds"] for command in row["commands"]]
    if commands:
        told = "The commands of a row, with `OMP_NUM_THREADS=1`; the other seeds differ in `seed=` and `name=`:"
        lines += ["", told, "", *commands]
    return "\n".join(lines)


def report() -> None:
    """Keep the results of what is there, and write the table of docs/speedrun.md."""
    file = RESULTS / "speedrun.json"
    content = {"command": "python benchmarks/speedrun.py", "rows": collected(json.loads(file.read_text()))}
    file.write_text(json.dumps(content, indent=2) + "\n")
    page = ROOT / "docs" / "speedrun.md"
    written = f"{MARKS[0]}\n\n{tables(content)}\n\n{MARKS[1]}"
    text = page.read_text(encoding="utf-8")
    page.write_text(re.sub(f"{MARKS[0]}.*{MARKS[1]}", lambda _: written, text, flags=re.DOTALL), encoding="utf-8")
    print(tables(content))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wanted", nargs="*", metavar="PART", help="beginnings of names of parts; none: all but nights")
    parser.add_argument("--plan", action="store_true", help="say what is left and how long it takes; start nothing")
    parser.add_argument("--report", action="store_true", help="write results and table of what is there; start nothing")
    given = parser.parse_args()
    if given.wanted:
        chosen = [part for part in parts() if part.name.startswith(tuple(given.wanted))]
    else:
        chosen = [part for part in parts() if not part.night]
    left = [part for part in chosen if part.result() is None]
    hours = sum(part.seconds for part in left) / 3600
    print(f"{len(left)} of {len(chosen)} parts are left, {hours:.1f} hours of one quiet core; {OUT}", flush=True)
    for part in [] if given.report else left:
        print(f"{part.name} (about {part.seconds / 60:.0f} minutes)", flush=True)
        if not given.plan:
            told = {"commands": part.commands, "date": time.strftime("%Y-%m-%d"), "machine": told_machine()}
            result = part.work() | told
            part.file.parent.mkdir(parents=True, exist_ok=True)
            part.file.write_text(json.dumps(result, indent=2) + "\n")
    if not given.plan:
        report()


if __name__ == "__main__":
    main()
