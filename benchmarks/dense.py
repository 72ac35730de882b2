"""FVBN and MADE: training against the per-pixel form and pythae 0.1.2, sampling against the plain way.

Binary images of 28x28, held in memory; our steps are the Lightning module's, inside ``Trainer.fit``.

The per-pixel form of an FVBN is what equation 1 says: one ``nn.Linear`` for each pixel. pythae's MADE (hidden [1024],
sequential order) has two outputs for each value, the mean and the log-variance of a normal distribution. A Bernoulli
needs one: the row with a target compares the same network, pythae's with its output layer cut to the first half; the
other row takes pythae's as it is, with a loss on the first half. Both sides: batch 64, Adam 1e-3, cross-entropy.

The plain way to sample is one pass of the whole network for every value (``incremental = False``), batch 16.

    make bench BENCHMARKS=benchmarks/dense.py
"""

from collections.abc import Callable
from functools import partial
from itertools import repeat

import lightning
import torch
from pythae.models import normalizing_flows as flows
from pythae.models.normalizing_flows.layers import MaskedLinear
from torch import nn
from torch.nn import functional as F

from imago.distributions import Categorical
from imago.images import Batch, ImageSpec
from imago.models.autoregressive import Autoregressive
from imago.models.fvbn import FVBN
from imago.models.made import MADE
from imago.rng import PerImageGenerator
from side_by_side import THREADS, Interleave, Row, Timing, alternate, report

BATCH, SAMPLES, HIDDEN = 64, 16, 1024
SPEC = ImageSpec(channels=1, height=28, width=28, levels=2)
adam = partial(torch.optim.Adam, lr=1e-3)


class PerPixel(nn.Module):
    """One logistic regression for each pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.zeros(1))
        self.regressions = nn.ModuleList(nn.Linear(before, 1) for before in range(1, SPEC.dimensions))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = self.first.expand(len(x), 1)
        return torch.cat([first, *(layer(x[:, : k + 1]) for k, layer in enumerate(self.regressions))], 1)


class Pythae(nn.Module):
    """pythae's MADE, with all of its outputs or with those that are used."""

    def __init__(self, *, whole: bool) -> None:
        super().__init__()
        values = SPEC.dimensions
        self.made = flows.MADE(flows.MADEConfig(input_dim=(values,), output_dim=(values,), hidden_sizes=[HIDDEN]))
        if not whole:
            self.made.net[-1] = MaskedLinear(HIDDEN, values, self.made.net[-1].mask[:values])
        self.whole = whole

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.made(x).mu if self.whole else self.made.net(x)


def step_of(net: nn.Module, images: torch.Tensor) -> Callable[[], None]:
    """One batch of an ordinary training loop."""
    optimizer = adam(net.parameters())

    def step() -> None:
        x = images.float().flatten(1)
        loss = F.binary_cross_entropy_with_logits(net(x), x)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def train(
    job: str,
    ours: Callable[[], Autoregressive],
    other: str,
    theirs: Callable[[], nn.Module],
    *,
    rounds: int,
    target: float | None,
) -> Row:
    images = torch.randint(0, 2, (BATCH, *SPEC.shape), dtype=torch.uint8)
    here: list[Timing] = []
    there: list[Timing] = []
    for threads in THREADS:
        torch.set_num_threads(threads)
        model = ours()
        model.log_grad_norm = False  # no gradient norms, as between two rows of the log
        # Long turns, as the first steps of a turn find the other side's weights in the cache.
        interleave = Interleave(step_of(theirs(), images), steps=20, rounds=rounds)
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
        here.append(Timing(our_seconds, threads))
        there.append(Timing(their_seconds, threads))
    return row(job, BATCH, fastest(here), other, fastest(there), target)


def sample(job: str, make: Callable[[], Autoregressive]) -> Row:
    fast, plain = make(), make()
    plain.incremental = False
    sides: dict[str, Callable[[], object]] = {
        "ours": lambda: fast.sample(SAMPLES, generator=PerImageGenerator(0)),
        "plain": lambda: plain.sample(SAMPLES, generator=PerImageGenerator(0)),
    }
    timing = alternate(sides, steps=1, rounds=9)
    return row(job, SAMPLES, timing["ours"], "plain", timing["plain"], None)


def fastest(timings: list[Timing]) -> Timing:
    return min(timings, key=lambda t: t.seconds)


def row(job: str, count: int, ours: Timing, other: str, theirs: Timing, target: float | None) -> Row:
    return Row(
        job=job,
        unit="images/s",
        ours=count / ours.seconds,
        our_threads=ours.threads,
        other=other,
        others=count / theirs.seconds,
        their_threads=theirs.threads,
        target=target,
    )


def main() -> None:
    torch.manual_seed(0)
    player = {"net": partial(adam, fused=True)}

    def fvbn() -> FVBN:
        return FVBN(SPEC, distribution=Categorical, optimizer=player)

    def made() -> MADE:
        return MADE(SPEC, distribution=Categorical, optimizer=player, hidden=[HIDDEN])

    rows = [
        train("FVBN train 28x28", fvbn, "per pixel", PerPixel, rounds=5, target=10),
        train("MADE train 28x28", made, "pythae", lambda: Pythae(whole=False), rounds=15, target=1.8),
        train("MADE train 28x28", made, "pythae, uncut", lambda: Pythae(whole=True), rounds=9, target=None),
        sample("FVBN sample 28x28", fvbn),
        sample("MADE sample 28x28", made),
    ]
    report("dense", rows)


if __name__ == "__main__":
    main()
