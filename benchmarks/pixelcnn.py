"""PixelCNN: training against pythae 0.1.2, and sampling with kept activations against the plain way.

Training: pythae's architecture (10 masked 5x5 convolutions of 64 features, 256 levels) on a batch of 16 held in memory,
Adam 1e-3. pythae's step is its model's forward pass and loss, ``backward`` and Adam; imago's step is the Lightning
module's, inside ``Trainer.fit``. pythae has batch norm after every convolution, through which future pixels reach an
output while it trains; ours has none.

Sampling: ``model.sample`` with kept activations against the same model repeating the whole network for every value
(``model.incremental = False``). The plain way takes minutes, and every value costs it the same; so it is timed on
``PLAIN`` values of the image, and multiplied.

    make bench BENCHMARKS=benchmarks/pixelcnn.py
"""

import statistics
import time
from functools import partial
from itertools import repeat

import lightning
import torch
from pythae.models.normalizing_flows.pixelcnn import PixelCNN as PythaePixelCNN
from pythae.models.normalizing_flows.pixelcnn import PixelCNNConfig

from imago.distributions import Categorical
from imago.images import Batch, ImageSpec
from imago.models.autoregressive import Autoregressive
from imago.models.gated_pixelcnn import GatedPixelCNN
from imago.models.pixelcnn import PixelCNN, PlainBlock, ResidualBlock
from imago.nets.incremental import Recomputed
from imago.rng import PerImageGenerator
from side_by_side import THREADS, Interleave, Row, Timing, report

BATCH = 16
PLAIN = 12
GRAY, BINARY, COLOUR = ImageSpec(1, 28, 28), ImageSpec(1, 28, 28, levels=2), ImageSpec(3, 32, 32)
adam = {"net": partial(torch.optim.Adam, lr=1e-3, fused=True)}


def peer_network(spec: ImageSpec) -> PixelCNN:
    """The architecture of pythae's PixelCNN."""
    return PixelCNN(
        spec,
        distribution=Categorical,
        optimizer=adam,
        features=64,
        blocks=9,
        block=partial(PlainBlock, kernel=5),
        first_kernel=5,
        head=[],
    )


def residual_network(spec: ImageSpec) -> PixelCNN:
    return PixelCNN(
        spec,
        distribution=Categorical,
        optimizer=adam,
        features=128,
        blocks=8,
        block=partial(ResidualBlock, kernel=3),
        first_kernel=7,
        head=[128],
    )


def gated_network(spec: ImageSpec, features: int, layers: int) -> GatedPixelCNN:
    return GatedPixelCNN(
        spec,
        distribution=Categorical,
        optimizer=adam,
        features=features,
        layers=layers,
        kernel=3,
        first_kernel=7,
        head=[64],
    )


def train(spec: ImageSpec, steps: int = 2, rounds: int = 7) -> Row:
    images = torch.randint(0, 256, (BATCH, *spec.shape), dtype=torch.uint8)
    ours: list[Timing] = []
    theirs: list[Timing] = []
    for threads in THREADS:
        torch.set_num_threads(threads)
        peer = PythaePixelCNN(PixelCNNConfig(input_dim=spec.shape))
        optimizer = torch.optim.Adam(peer.parameters(), lr=1e-3)
        inputs = {"data": images.float()}

        def step(peer=peer, optimizer=optimizer, inputs=inputs) -> None:  # type: ignore[no-untyped-def]
            optimizer.zero_grad()
            peer(inputs).loss.backward()
            optimizer.step()

        interleave = Interleave(step, steps=steps, rounds=rounds)
        trainer = lightning.Trainer(
            accelerator="cpu",
            max_epochs=-1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[interleave],
        )
        trainer.fit(peer_network(spec), repeat(Batch(images, None)))
        our_seconds, their_seconds = interleave.medians()
        ours.append(Timing(our_seconds, threads))
        theirs.append(Timing(their_seconds, threads))
    our, their = min(ours, key=lambda t: t.seconds), min(theirs, key=lambda t: t.seconds)
    return Row(
        job=f"PixelCNN train {spec.height}x{spec.width}x{spec.channels}",
        unit="images/s",
        ours=BATCH / our.seconds,
        our_threads=our.threads,
        other="pythae",
        others=BATCH / their.seconds,
        their_threads=their.threads,
        target=1.0,
    )


@torch.inference_mode()
def plain_seconds(model: Autoregressive) -> float:
    """Seconds for a whole batch of images by the plain way, from ``PLAIN`` values of it."""
    state = Recomputed(model.net, torch.zeros(BATCH, *model.spec.shape), None)
    uniform = torch.rand(BATCH, dtype=torch.float64)
    middle = model.spec.height // 2

    def values(count: int) -> None:
        for k in range(count):
            value = model.distribution.sample(state.predict(middle, k, 0), uniform)
            state.set(middle, k, 0, value * (2 / (model.spec.levels - 1)) - 1)

    values(2)
    start = time.perf_counter()
    values(PLAIN)
    return (time.perf_counter() - start) / PLAIN * model.spec.dimensions


def sampling(job: str, model: Autoregressive, target: float, rounds: int = 3) -> Row:
    """Both ways in turn at each number of threads."""
    model.eval()
    best: dict[str, Timing] = {}
    for threads in THREADS:
        torch.set_num_threads(threads)
        kept: list[float] = []
        plain: list[float] = []
        model.sample(BATCH, generator=PerImageGenerator(0))
        for seed in range(rounds):
            start = time.perf_counter()
            model.sample(BATCH, generator=PerImageGenerator(seed))
            kept.append(time.perf_counter() - start)
            plain.append(plain_seconds(model))
        for side, seconds in (("kept", kept), ("plain", plain)):
            timing = Timing(statistics.median(seconds), threads)
            best[side] = min(best.get(side, timing), timing, key=lambda t: t.seconds)
    return Row(
        job=job,
        unit="images/s",
        ours=BATCH / best["kept"].seconds,
        our_threads=1,  # whatever the number outside, sampling takes one
        other="plain",
        others=BATCH / best["plain"].seconds,
        their_threads=best["plain"].threads,
        target=target,
    )


def main() -> None:
    torch.manual_seed(0)
    rows = [
        train(GRAY),
        train(COLOUR),
        sampling("PixelCNN sample 28x28, 10 layers x 64, 256 levels", peer_network(GRAY), 130),
        sampling("gated PixelCNN sample 28x28, 7 layers x 32, binary", gated_network(BINARY, 32, 7), 100),
        sampling("gated PixelCNN sample 28x28, 10 layers x 64, binary", gated_network(BINARY, 64, 10), 100),
        sampling("PixelCNN sample 32x32x3, 10 layers x 64", peer_network(COLOUR), 300),
        sampling("PixelCNN sample 32x32x3, 8 residual blocks x 128", residual_network(COLOUR), 300),
        sampling("gated PixelCNN sample 32x32x3, 10 layers x 64", gated_network(COLOUR, 64, 10), 300),
    ]
    report("pixelcnn", rows)


if __name__ == "__main__":
    main()
