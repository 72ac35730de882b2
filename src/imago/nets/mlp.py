"""Fully connected generator and discriminator (Goodfellow et al. 2014, section 5).

A class label enters as one-hot input beside z, or beside the image (Mirza & Osindero 2014, figure 1); a linear layer
on a one-hot vector is a row of its weight, so it is written as an embedding that is added to the first layer's output.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated

from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from imago.capacity import Width
from imago.images import ImageSpec, Labels, Normalized
from imago.nets.together import Dropout

Widths = Annotated[Sequence[Width], Field(min_length=1)]


class _MLP(nn.Module):
    """Hidden layers between two shapes; what a label adds stands behind the first layer."""

    def __init__(
        self, inputs: int, classes: int, hidden: Widths, outputs: int, activation: nn.Module, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.first = nn.Linear(inputs, hidden[0])
        self.embed = nn.Embedding(classes, hidden[0]) if classes else None
        layers: list[nn.Module] = []
        for wide, next_wide in pairwise([*hidden, outputs]):
            layers += [activation, *([Dropout(dropout)] if dropout else []), nn.Linear(wide, next_wide)]
        self.rest = nn.Sequential(*layers)

    def forward(self, x: Tensor, labels: Labels | None = None) -> Tensor:
        """(n, ...) → (n, outputs)."""
        h = self.first(x.flatten(1))
        if self.embed is not None:
            h = h + self.embed(labels)
        return self.rest(h)


class MLPGenerator(_MLP):
    """z → hidden layers → image.

    Args:
        spec: the images to make.
        latent: length of z.
        classes: number of classes, 0 for an unconditional generator.
        hidden: width of each hidden layer.
    """

    def __init__(self, spec: ImageSpec, latent: int, classes: int, hidden: Widths) -> None:
        super().__init__(latent, classes, hidden, spec.dimensions, nn.LeakyReLU(0.2))
        self.spec = spec

    def forward(self, x: Float[Tensor, "n latent"], labels: Labels | None = None) -> Normalized:
        """Signals in [-1, 1], of points any numbers, (n, channels, height, width)."""
        h = super().forward(x, labels)
        return (h if self.spec.kind == "points" else h.tanh()).view(-1, *self.spec.shape)


class MLPDiscriminator(_MLP):
    """Image → hidden layers → one logit.

    Args:
        spec: the images to judge.
        classes: number of classes, 0 for an unconditional discriminator.
        hidden: width of each hidden layer.
        dropout: probability with which a hidden unit is dropped in training (Goodfellow et al. 2014 used it here).
        spectral_norm: divide every weight by its largest singular value (Miyato et al. 2018).
    """

    def __init__(
        self,
        spec: ImageSpec,
        classes: int,
        hidden: Widths,
        dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0,
        spectral_norm: bool = False,
    ) -> None:
        super().__init__(spec.dimensions, classes, hidden, 1, nn.LeakyReLU(0.2), dropout)
        if spectral_norm:
            normalise_spectrally(self)

    def forward(self, x: Normalized, labels: Labels | None = None) -> Float[Tensor, " n"]:
        """Logits (n,): large for images taken to be real."""
        return super().forward(x, labels).squeeze(1)


def normalise_spectrally(net: nn.Module) -> None:
    """Spectral normalisation of every linear and convolutional weight of a network, in place (Miyato et al. 2018)."""
    for module in list(net.modules()):
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.utils.parametrizations.spectral_norm(module)


class MLPEncoder(_MLP):
    """Image → hidden layers → a vector (Kingma & Welling 2014, appendix C).

    Args:
        spec: the images.
        outputs: length of the vector.
        classes: number of classes, 0 for an unconditional model.
        hidden: width of each hidden layer.
    """

    def __init__(self, spec: ImageSpec, outputs: int, classes: int, hidden: Widths) -> None:
        super().__init__(spec.dimensions, classes, hidden, outputs, nn.ReLU())


class MLPDecoder(_MLP):
    """A vector → hidden layers → the parameters of every value's distribution (Kingma & Welling 2014, appendix C).

    Args:
        spec: the images.
        latent: length of the vector.
        parameters: how many numbers describe the distribution of a value.
        classes: number of classes, 0 for an unconditional model.
        hidden: width of each hidden layer.
    """

    def __init__(self, spec: ImageSpec, latent: int, parameters: int, classes: int, hidden: Widths) -> None:
        super().__init__(latent, classes, hidden, spec.dimensions * parameters, nn.ReLU())
        self.shape = (*spec.shape, parameters)

    def forward(
        self, x: Float[Tensor, "n latent"], labels: Labels | None = None
    ) -> Float[Tensor, "n channels height width parameters"]:
        """The parameters."""
        return super().forward(x, labels).view(-1, *self.shape)
