"""PixelRNN: training against the same network computed cell by cell and against the machine's matrix products; sampling
with kept activations against the plain way.

No other installable PyTorch implementation is known to us, so the other side of training is what one would write first
(tests/models/plain_pixelrnn.py): the same parameters and convolutions, every cell by itself, derivatives by autograd.
Both take whole steps on a batch of 16 held in memory: likelihood, ``backward`` and Adam.

The fraction of the matrix product speed counts the multiplications of the layers and the head as the architecture has
them (those that the masks hide included), three times for a training step, against a product of two 1024x1024
matrices timed in turn with the step.

    make bench BENCHMARKS=benchmarks/pixelrnn.py
"""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from imago.distributions import Categorical
from imago.images import Images, ImageSpec, normalize
from imago.models.pixelrnn import DiagonalBiLSTM, PixelRNN, RecurrentLayer, RowLSTM
from pixelcnn import sampling
from side_by_side import Row, alternate, report

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "models"))
from plain_pixelrnn import plain

BATCH = 16
BINARY = ImageSpec(1, 28, 28, levels=2)
SIDE = 1024
adam = partial(torch.optim.Adam, lr=1e-3, fused=True)


def model_of(layer: Callable[..., RecurrentLayer], features: int, layers: int) -> PixelRNN:
    return PixelRNN(
        BINARY,
        distribution=Categorical,
        optimizer={"net": adam},
        features=features,
        layers=layers,
        layer=layer,
        first_kernel=7,
        head=[2 * features],
    )


def step_of(model: PixelRNN, net: Callable[[Tensor], Tensor], images: Images) -> Callable[[], None]:
    """A training step of the model with its network computed by ``net``."""
    optimizer = adam(model.net.parameters())
    signal = normalize(images, BINARY.levels)

    def step() -> None:
        optimizer.zero_grad()
        (-model.distribution.log_prob(net(signal), images).mean()).backward()
        optimizer.step()

    return step


def operations(model: PixelRNN) -> float:
    """Floating point operations of a training step on ``BATCH`` images."""
    weights = model.net.first.weight.numel() + sum(p.numel() for p in model.net.head.parameters() if p.dim() > 1)
    for layer, widen in model.net.pairs():
        weights += layer.input.weight.numel() + layer.state.numel() + widen.weight.numel()
    return 3 * 2.0 * weights * BINARY.height * BINARY.width * BATCH


def train(name: str, layer: Callable[..., RecurrentLayer], features: int, layers: int) -> list[Row]:
    images = torch.randint(0, 2, (BATCH, *BINARY.shape), dtype=torch.uint8)
    model = model_of(layer, features, layers).train()
    left, right = torch.randn(2, SIDE, SIDE).unbind()
    timing = alternate(
        {
            "ours": step_of(model, model.net, images),
            "cell by cell": step_of(model, partial(plain, model.net), images),
            "product": partial(torch.mm, left, right),
        },
        steps=1,
        rounds=5,
    )
    ours, cells, product = timing["ours"], timing["cell by cell"], timing["product"]
    job = f"{name} train 28x28, {layers} layers x {features}"
    return [
        Row(
            job=job,
            unit="images/s",
            ours=BATCH / ours.seconds,
            our_threads=ours.threads,
            other="cell by cell",
            others=BATCH / cells.seconds,
            their_threads=cells.threads,
            target=3,
        ),
        Row(
            job=job,
            unit="GFLOP/s",
            ours=operations(model) / ours.seconds / 1e9,
            our_threads=ours.threads,
            other="matrix product",
            others=2 * SIDE**3 / product.seconds / 1e9,
            their_threads=product.threads,
            target=0.25,
        ),
    ]


def main() -> None:
    torch.manual_seed(0)
    row, diagonal = partial(RowLSTM, kernel=3), DiagonalBiLSTM
    rows = [
        *train("Row LSTM", row, 64, 2),
        *train("Diagonal BiLSTM", diagonal, 64, 2),
        sampling("Row LSTM sample 28x28, 3 layers x 32, binary", model_of(row, 32, 3), 100),
        sampling("Diagonal BiLSTM sample 28x28, 2 layers x 32, binary", model_of(diagonal, 32, 2), 100),
    ]
    report("pixelrnn", rows)


if __name__ == "__main__":
    main()
