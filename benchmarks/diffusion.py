"""Diffusion: training and sampling steps against denoising-diffusion-pytorch and diffusers, and their memory.

32x32x3, T = 1000, noise prediction, simple loss. diffusers' ``UNet2DModel`` with the channels of Ho et al. 2020 is our
network layer for layer: 35,746,307 parameters and 12.4 GFLOP for an image. Before anything is timed its weights are
copied into ours, and both must give the same outputs. denoising-diffusion-pytorch's ``Unet(64, (1, 2, 4, 8))`` has
35.7 M parameters and 3.65 GFLOP; ours beside it has 36.0 M and 3.98 GFLOP, a little more of both.

A training step is ours in ``Trainer.fit``; of denoising-diffusion-pytorch, ``GaussianDiffusion.forward``, backward,
gradient clipping and Adam as in its ``Trainer``; of diffusers, the lines of its training tutorial (AdamW, clipping). A
sampling step is one of the ancestral chain with its noise. Memory is the largest resident set of a process of its own
that takes three training steps with one thread.

    make bench BENCHMARKS=benchmarks/diffusion.py
"""

import json
import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import Any

import lightning
import torch
from torch.nn import functional as F
from torch.nn.utils import clip_grad_norm_
from torch.utils.flop_counter import FlopCounterMode

from imago.diffusion.losses import Simple
from imago.diffusion.predictions import Epsilon
from imago.diffusion.samplers import Ancestral, Context
from imago.diffusion.schedules import Linear
from imago.diffusion.variances import FixedLarge
from imago.images import Batch, ImageSpec
from imago.models.diffusion import Diffusion
from imago.nets.unet import UNet
from side_by_side import THREADS, Interleave, Row, Timing, alternate, report

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "models"))
from diffusers_unet import copy_weights, diffusers_unet

SPEC = ImageSpec(3, 32, 32)
PAPER: dict[str, Any] = {"width": 128, "multipliers": [1, 2, 2, 2], "blocks": 2, "attention": [1], "head": 256}
LIGHT: dict[str, Any] = {"width": 64, "multipliers": [1, 2, 4, 7], "blocks": 1, "attention": [1, 2, 3], "head": 32}
BATCH = {"diffusers": 4, "denoising-diffusion-pytorch": 8}
OURS = {"diffusers": PAPER, "denoising-diffusion-pytorch": LIGHT}
Step = Callable[[], object]


def our_model(network: dict[str, Any]) -> Diffusion:
    model = Diffusion(
        SPEC,
        network=partial(UNet, **network),
        steps=1000,
        noise_schedule=Linear(),
        prediction=Epsilon(),
        variance=FixedLarge(),
        loss=Simple(),
        sampler=Ancestral(),
        optimizer={"net": partial(torch.optim.Adam, lr=2e-4, fused=True)},
        gradient_clip=1.0,
    )
    model.log_grad_norm = False
    return model


@torch.no_grad()
def check_equal() -> None:
    """diffusers' weights in our network give diffusers' outputs."""
    torch.manual_seed(0)
    theirs, ours = diffusers_unet(SPEC, **PAPER).eval(), UNet(SPEC, 1, 0, **PAPER).eval()
    copy_weights(ours, theirs)
    x, t = torch.randn(2, *SPEC.shape), torch.tensor([3.0, 700.0])
    torch.testing.assert_close(ours(x, t / 1000)[:, 0], theirs(x, t).sample, atol=1e-4, rtol=1e-3)
    print(
        f"diffusers' weights in our network: the same outputs, {parameters(ours):,} parameters, {gflop(ours):.2f} GFLOP"
    )


def parameters(net: torch.nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def gflop(net: torch.nn.Module) -> float:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(torch.randn(1, *SPEC.shape), torch.tensor([0.5]))
    return counter.get_total_flops() / 1e9


def peer(name: str) -> tuple[Step, Step]:
    """Training and sampling step of a peer."""
    images = torch.rand(BATCH[name], *SPEC.shape)
    return of_diffusers(images) if name == "diffusers" else of_denoising_diffusion_pytorch(images)


def of_diffusers(images: torch.Tensor) -> tuple[Step, Step]:
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    net = diffusers_unet(SPEC, **PAPER)
    scheduler = DDPMScheduler(num_train_timesteps=1000, variance_type="fixed_large")
    optimizer: torch.optim.Optimizer = torch.optim.AdamW(net.parameters(), lr=2e-4)
    clean = images * 2 - 1

    def train() -> float:
        noise = torch.randn_like(clean)
        t = torch.randint(0, 1000, (len(images),))
        loss = F.mse_loss(net(scheduler.add_noise(clean, noise, t), t, return_dict=False)[0], noise)
        loss.backward()
        clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    @torch.no_grad()
    def sample() -> torch.Tensor:
        x = torch.randn(images.shape)
        return scheduler.step(net(x, 500).sample, 500, x).prev_sample

    return train, sample


def of_denoising_diffusion_pytorch(images: torch.Tensor) -> tuple[Step, Step]:
    from denoising_diffusion_pytorch import GaussianDiffusion, Unet

    unet = Unet(64, dim_mults=(1, 2, 4, 8))
    diffusion = GaussianDiffusion(unet, image_size=32, timesteps=1000)
    adam = torch.optim.Adam(diffusion.parameters(), lr=2e-4, betas=(0.9, 0.99))

    def train() -> float:
        loss = diffusion(images)
        loss.backward()
        clip_grad_norm_(diffusion.parameters(), 1.0)
        adam.step()
        adam.zero_grad()
        return loss.item()

    def sample() -> torch.Tensor:
        with torch.inference_mode():
            return diffusion.p_sample(torch.randn(images.shape), 500)[0]

    return train, sample


def our_sampling(model: Diffusion, n: int) -> Step:
    model.eval()

    @torch.no_grad()
    def sample() -> torch.Tensor:
        x = torch.randn(n, *SPEC.shape)
        context = Context(
            model.noise_schedule,
            lambda x, t: model.predict(x, torch.tensor([t])),
            lambda: torch.randn(n, *SPEC.shape),
            model.variance,
        )
        return model.sampler.step(x, context.predict(x, 0.501), 0.501, 0.5, context)

    return sample


def fit(model: Diffusion, n: int, **more: Any) -> None:
    batch = Batch(torch.randint(256, (n, *SPEC.shape), dtype=torch.uint8), None)
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_epochs=more.pop("max_epochs", -1),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **more,
    )
    trainer.fit(model, repeat(batch))


def memory(side: str, name: str) -> float:
    """GiB of a process that takes three training steps."""
    found = subprocess.run([sys.executable, __file__, "memory", side, name], capture_output=True, text=True, check=True)
    return float(json.loads(found.stdout.splitlines()[-1]))


def take_steps(side: str, name: str) -> None:
    torch.set_num_threads(1)
    if side == "ours":
        fit(our_model(OURS[name]), BATCH[name], max_epochs=1, limit_train_batches=3)
    else:
        train, _ = peer(name)
        for _ in range(3):
            train()
    # Not getrusage: its maximum begins with that of the process that started this one.
    (peak,) = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    print(int(peak) / 2**20)


def against(name: str, *, rounds: int = 5) -> list[Row]:
    n = BATCH[name]
    print(f"{name}: ours has {parameters(UNet(SPEC, 1, 0, **OURS[name])):,} parameters", flush=True)
    here, there = [], []
    for threads in THREADS:
        torch.set_num_threads(threads)
        train, _ = peer(name)
        interleave = Interleave(train, steps=1, rounds=rounds)
        fit(our_model(OURS[name]), n, callbacks=[interleave])
        ours, theirs = interleave.medians()
        here.append(Timing(ours, threads))
        there.append(Timing(theirs, threads))
    best = [min(side, key=lambda t: t.seconds) for side in (here, there)]
    _, their_sample = peer(name)
    sampled = alternate(
        {"ours": our_sampling(our_model(OURS[name]), n), "theirs": their_sample}, steps=1, rounds=rounds
    )
    sizes = [memory(side, name) for side in ("ours", "theirs")]
    return [
        Row(
            "train 32x32x3",
            "images/s",
            n / best[0].seconds,
            best[0].threads,
            name,
            n / best[1].seconds,
            best[1].threads,
            1.15,
        ),
        Row(
            "sampling step 32x32x3",
            "images/s",
            n / sampled["ours"].seconds,
            sampled["ours"].threads,
            name,
            n / sampled["theirs"].seconds,
            sampled["theirs"].threads,
            1.1,
        ),
        Row("training within a GiB, 1 / peak memory", "1/GiB", 1 / sizes[0], 1, name, 1 / sizes[1], 1, 1.0),
    ]


def main() -> None:
    torch.manual_seed(0)
    check_equal()
    report("diffusion", [row for name in BATCH for row in against(name)])


if __name__ == "__main__":
    warnings.filterwarnings("ignore", module="(diffusers|accelerate).*")
    if sys.argv[1:2] == ["memory"]:
        take_steps(*sys.argv[2:])
    else:
        main()
