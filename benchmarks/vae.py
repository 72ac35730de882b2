"""VAE: training and sampling against pythae 0.1.2 at its own architecture, training against pytorch/examples.

pythae's convolutional networks for MNIST (28x28, batch 32) and CIFAR-10 (32x32x3, batch 16) with 16 latent dimensions:
channels 128-256-512-1024 down and 1024-512-256 up, binary images held in memory, Bernoulli likelihood ("bce"), Adam
1e-4. pythae's step is what its BaseTrainer does with a batch; ours is the Lightning module's, inside ``Trainer.fit``.
Before anything is timed pythae's weights are copied into ours, and both must give the same outputs in both modes. Ours
has no biases in front of batch norms, which cancel them: 2,688 parameters less of 17 or 23 million.

Sampling: the lines of pythae's ``NormalSampler`` (importing it needs imageio) give the decoder's means as floats; ours,
with ``observation_noise=false``, gives them as uint8.

pytorch/examples: vae/main.py's 784-400-20 and its loop (Adam 1e-3, batch 128, ``loss.item()`` each step), over a
``DataLoader`` without workers and torchvision's MNIST, item by item with ``ToTensor``. Ours: the network of
``model=vae`` and the batches of ``data=mnist``, binarised anew each time (theirs takes gray values for probabilities).

    make bench BENCHMARKS=benchmarks/vae.py

With IMAGO_DATA_DIR set the images of the last row are MNIST's, else noise of the same size, at the same cost.
"""

import copy
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import repeat
from typing import Any

import lightning
import torch
from pythae import models as pythae
from pythae.models.nn.benchmarks import cifar, mnist
from torch import nn
from torch.nn import functional as F
from torchvision.transforms import ToTensor

from data_path import ItemByItem, training_split
from imago.data import BatchStream
from imago.data.sources import MNIST
from imago.distributions import Bernoulli
from imago.images import Batch, ImageSpec
from imago.models.vae import VAE
from imago.nets.mlp import MLPDecoder, MLPEncoder
from imago.nets.strided import StridedDecoder, StridedEncoder
from imago.rng import PerImageGenerator
from side_by_side import THREADS, Interleave, Row, Timing, alternate, report

LATENT, SAMPLES = 16, 64
GRAY, COLOUR = ImageSpec(1, 28, 28, levels=2), ImageSpec(3, 32, 32, levels=2)
BATCH = {GRAY: 32, COLOUR: 16}
DECODER = {
    GRAY: partial(StridedDecoder, hidden=[1024, 512, 256], kernel=3),
    COLOUR: partial(StridedDecoder, hidden=[1024, 512, 256], kernel=4, last_stride=1),
}
adam = partial(torch.optim.Adam, lr=1e-4)


def our_vae(spec: ImageSpec) -> VAE:
    model = VAE(
        spec,
        latent=LATENT,
        encoder=partial(StridedEncoder, hidden=[128, 256, 512, 1024]),
        decoder=DECODER[spec],
        distribution=lambda levels: Bernoulli(),
        optimizer={"net": partial(adam, fused=True)},
        observation_noise=False,
    )
    model.log_grad_norm = False  # no gradient norms, as between two rows of the log
    return model


def pythae_vae(spec: ImageSpec) -> pythae.VAE:
    config = pythae.VAEConfig(input_dim=spec.shape, latent_dim=LATENT, reconstruction_loss="bce")
    if spec is GRAY:
        return pythae.VAE(config, mnist.Encoder_Conv_VAE_MNIST(config), mnist.Decoder_Conv_AE_MNIST(config))
    return pythae.VAE(config, cifar.Encoder_Conv_VAE_CIFAR(config), cifar.Decoder_Conv_AE_CIFAR(config))


@torch.no_grad()
def check_equal(spec: ImageSpec) -> None:
    """pythae's weights in our networks give pythae's outputs, and only the idle biases are missing."""
    theirs, ours = pythae_vae(spec), our_vae(spec)
    encoder: Any = ours.net["encoder"]
    decoder: Any = ours.net["decoder"]
    idle = 0
    stages = [
        *zip(encoder.halvings, encoder.norms, theirs.encoder.layers, strict=True),
        *zip(decoder.convolutions[:-1], decoder.norms, theirs.decoder.layers[1:-1], strict=True),
    ]
    for conv, norm, (their_conv, their_norm, _) in stages:
        conv.weight.copy_(their_conv.weight)
        norm.load_state_dict(copy.deepcopy(their_norm.state_dict()))
        norm.running_mean -= their_conv.bias
        idle += their_conv.bias.numel()
    decoder.convolutions[-1].load_state_dict(theirs.decoder.layers[-1][0].state_dict())

    def channels_last(flat: torch.Tensor, channels: int) -> torch.Tensor:
        """(channels height width, ...) in the order (height width channels, ...)."""
        return flat.unflatten(0, (channels, -1)).transpose(0, 1).flatten(0, 1)

    first, heads = theirs.decoder.layers[0], (theirs.encoder.embedding, theirs.encoder.log_var)
    decoder.first.weight.copy_(channels_last(first.weight, 1024))
    decoder.first.bias.copy_(channels_last(first.bias, 1024))
    encoder.last.weight.copy_(torch.cat([channels_last(head.weight.T, 1024).T for head in heads]))
    encoder.last.bias.copy_(torch.cat([head.bias for head in heads]))

    here, there = (sum(p.numel() for p in net.parameters()) for net in (ours.net, theirs))
    assert here == there - idle
    print(f"{spec}: {here:,} parameters, pythae {there:,}")
    x, z = torch.rand(8, *spec.shape), torch.randn(8, LATENT)
    for training in (True, False):
        for net in (ours, theirs):
            net.train(training)
        their_code = theirs.encoder(x)
        torch.testing.assert_close(
            encoder(x), torch.cat([their_code.embedding, their_code.log_covariance], 1), atol=1e-4, rtol=1e-3
        )
        torch.testing.assert_close(
            decoder(z).squeeze(-1).sigmoid(), theirs.decoder(z).reconstruction, atol=1e-4, rtol=1e-3
        )


def compare_training(
    ours: Callable[[], VAE],
    batches: Callable[[], Iterable[Batch]],
    their_step: Callable[[], Callable[[], object]],
    *,
    steps: int,
    rounds: int,
) -> tuple[Timing, Timing]:
    """Seconds per step of both, each at its better number of threads."""
    here: list[Timing] = []
    there: list[Timing] = []
    for threads in THREADS:
        torch.set_num_threads(threads)
        interleave = Interleave(their_step(), steps=steps, rounds=rounds)
        trainer = lightning.Trainer(
            accelerator="cpu",
            max_epochs=-1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[interleave],
        )
        trainer.fit(ours(), batches())
        our_seconds, their_seconds = interleave.medians()
        here.append(Timing(our_seconds, threads))
        there.append(Timing(their_seconds, threads))
    return min(here, key=lambda t: t.seconds), min(there, key=lambda t: t.seconds)


def pythae_step(spec: ImageSpec, images: torch.Tensor) -> Callable[[], float]:
    """A batch as in pythae's BaseTrainer.train_step, without callbacks."""
    model = pythae_vae(spec).train()
    optimizer = adam(model.parameters())
    inputs = {"data": images.float()}

    def step() -> float:
        output = model(inputs)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        return output.loss.item()

    return step


def against_pythae(spec: ImageSpec, *, steps: int = 3, rounds: int = 9) -> list[Row]:
    check_equal(spec)
    job = f"{spec.height}x{spec.width}" + ("x3" if spec.channels == 3 else "")
    images = torch.randint(0, 2, (BATCH[spec], *spec.shape), dtype=torch.uint8)
    trained = compare_training(
        lambda: our_vae(spec),
        lambda: repeat(Batch(images, None)),
        lambda: pythae_step(spec, images),
        steps=steps,
        rounds=rounds,
    )
    model, peer = our_vae(spec), pythae_vae(spec).eval()

    def normal_sampler() -> torch.Tensor:
        return torch.cat([peer.decoder(torch.randn(SAMPLES, LATENT))["reconstruction"].detach()])

    sampled = alternate(
        {
            "ours": lambda: model.sample(SAMPLES, generator=PerImageGenerator(0)),
            "pythae": normal_sampler,
        },
        steps=steps,
        rounds=rounds,
    )
    return [
        row(f"VAE train {job}", BATCH[spec], *trained, "pythae", 1.15),
        row(f"VAE sample {job}", SAMPLES, sampled["ours"], sampled["pythae"], "pythae", 1.3),
    ]


class ExampleVAE(nn.Module):
    """The network of pytorch/examples, vae/main.py."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(784, 400)
        self.fc21, self.fc22 = nn.Linear(400, 20), nn.Linear(400, 20)
        self.fc3, self.fc4 = nn.Linear(20, 400), nn.Linear(400, 784)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        h = F.relu(self.fc1(x.view(-1, 784)))
        mu, logvar = self.fc21(h), self.fc22(h)
        std = torch.exp(0.5 * logvar)
        z = mu + torch.randn_like(std) * std
        return torch.sigmoid(self.fc4(F.relu(self.fc3(z)))), mu, logvar


def example_step(images: torch.Tensor, labels: torch.Tensor, batch: int) -> Callable[[], float]:
    """A step of its training loop, with the loading of a batch."""
    model = ExampleVAE().train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    loader = torch.utils.data.DataLoader(ItemByItem(images, labels, ToTensor()), batch, shuffle=True, drop_last=True)

    def forever() -> Iterator[list[torch.Tensor]]:
        while True:
            yield from loader

    data = forever()

    def step() -> float:
        x, _ = next(data)
        optimizer.zero_grad()
        recon, mu, logvar = model(x)
        bce = F.binary_cross_entropy(recon, x.view(-1, 784), reduction="sum")
        loss = bce - 0.5 * torch.sum(1 + logvar - mu.pow(2) - logvar.exp())
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def our_mlp() -> VAE:
    model = VAE(
        GRAY,
        latent=20,
        encoder=partial(MLPEncoder, hidden=[400]),
        decoder=partial(MLPDecoder, hidden=[400]),
        distribution=lambda levels: Bernoulli(),
        optimizer={"net": partial(torch.optim.Adam, lr=1e-3, fused=True)},
    )
    model.log_grad_norm = False
    assert sum(p.numel() for p in model.net.parameters()) == sum(p.numel() for p in ExampleVAE().parameters())
    return model


def against_example(*, batch: int = 128, steps: int = 50, rounds: int = 15) -> Row:
    data = training_split(MNIST(), "MNIST", (50_000, 1, 28, 28))
    images, labels = data.images, data.labels
    assert labels is not None
    trained = compare_training(
        our_mlp,
        lambda: BatchStream(data, batch_size=batch, seed=0, binarize=True),
        lambda: example_step(images, labels, batch),
        steps=steps,
        rounds=rounds,
    )
    return row("MLP VAE train 28x28, with loading", batch, *trained, "pytorch/examples", 2)


def row(job: str, count: int, ours: Timing, theirs: Timing, other: str, target: float) -> Row:
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
    report("vae", [*against_pythae(GRAY), *against_pythae(COLOUR), against_example()])


if __name__ == "__main__":
    main()
