"""DCGAN, training and sampling: imago against torchgan 0.1.0.

Both train the same networks (32x32x3, latent 100, widths 64-128-256) with Adam 2e-4 (0.5, 0.999) on a batch of 64 held
in memory: the non-saturating game, one step of each player per batch. torchgan's step is what its Trainer does with a
batch: its losses' own ``train_ops``. imago's step is the Lightning module's, inside ``Trainer.fit``.

    make bench BENCHMARKS=benchmarks/dcgan.py
"""

from collections.abc import Callable
from functools import partial
from itertools import repeat

import lightning
import torch
from torchgan import losses, models

from imago.images import Batch, ImageSpec, normalize
from imago.models.gan import GAN, NonSaturating
from imago.nets.dcgan import DCGANDiscriminator, DCGANGenerator
from imago.rng import PerImageGenerator
from side_by_side import THREADS, Interleave, Row, Timing, alternate, report

BATCH, LATENT, WIDTH = 64, 100, 64
SPEC = ImageSpec(channels=3, height=32, width=32)
adam = partial(torch.optim.Adam, lr=2e-4, betas=(0.5, 0.999))


def our_model() -> GAN:
    fused = partial(adam, fused=True)
    return GAN(
        SPEC,
        latent=LATENT,
        generator=partial(DCGANGenerator, width=WIDTH),
        discriminator=partial(DCGANDiscriminator, width=WIDTH),
        objective=NonSaturating(),
        optimizer={"generator": fused, "discriminator": fused},
    )


def torchgan_step(generator: models.Generator, discriminator: models.Discriminator, real: torch.Tensor) -> Callable:
    """One batch as in torchgan.trainer.BaseTrainer.train_iter, without its logging."""
    of_generator, of_discriminator = losses.MinimaxGeneratorLoss(), losses.MinimaxDiscriminatorLoss()
    optimizer_generator, optimizer_discriminator = adam(generator.parameters()), adam(discriminator.parameters())
    cpu = torch.device("cpu")

    def step() -> None:
        of_generator.train_ops(generator, discriminator, optimizer_generator, cpu, len(real))
        of_discriminator.train_ops(generator, discriminator, optimizer_discriminator, real, cpu)

    return step


def train(images: torch.Tensor, steps: int = 4, rounds: int = 9) -> tuple[Timing, Timing]:
    ours: list[Timing] = []
    theirs: list[Timing] = []
    for threads in THREADS:
        torch.set_num_threads(threads)
        generator, discriminator = models.DCGANGenerator(LATENT, 32, 3, WIDTH), models.DCGANDiscriminator(32, 3, WIDTH)
        model = our_model()
        for name, net in {"generator": generator, "discriminator": discriminator}.items():
            here, there = (sum(p.numel() for p in n.parameters()) for n in (getattr(model, name), net))
            assert abs(here - there) <= 1, f"{name}: {here:,} and {there:,} parameters"  # one has a last bias
            print(f"{name}: {here:,} parameters, torchgan {there:,}")
        their_step = torchgan_step(generator, discriminator, normalize(images, SPEC.levels))
        interleave = Interleave(their_step, steps=steps, rounds=rounds)
        trainer = lightning.Trainer(
            accelerator="cpu",
            max_epochs=-1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[interleave],
        )
        trainer.fit(model, repeat(Batch(images, None)))
        our_seconds, their_seconds = interleave.medians()
        ours.append(Timing(our_seconds, threads))
        theirs.append(Timing(their_seconds, threads))
    return min(ours, key=lambda t: t.seconds), min(theirs, key=lambda t: t.seconds)


def main() -> None:
    torch.manual_seed(0)
    images = torch.randint(0, 256, (BATCH, *SPEC.shape), dtype=torch.uint8)
    ours, theirs = train(images)
    rows = [
        Row(
            job="DCGAN train 32x32x3",
            unit="images/s",
            ours=BATCH / ours.seconds,
            our_threads=ours.threads,
            other="torchgan",
            others=BATCH / theirs.seconds,
            their_threads=theirs.threads,
            target=1.2,
        )
    ]
    model = our_model()
    generator = models.DCGANGenerator(LATENT, 32, 3, WIDTH).eval()

    @torch.no_grad()
    def torchgan_sample() -> torch.Tensor:
        return generator(*generator.sampler(BATCH, torch.device("cpu")))

    def our_sample() -> torch.Tensor:
        return model.sample(BATCH, generator=PerImageGenerator(0))

    timing = alternate({"ours": our_sample, "torchgan": torchgan_sample}, steps=5, rounds=25)
    rows.append(
        Row(
            job="DCGAN sample 32x32x3",
            unit="images/s",
            ours=BATCH / timing["ours"].seconds,
            our_threads=timing["ours"].threads,
            other="torchgan",
            others=BATCH / timing["torchgan"].seconds,
            their_threads=timing["torchgan"].threads,
            target=1.2,
        )
    )
    report("dcgan", rows)


if __name__ == "__main__":
    main()
