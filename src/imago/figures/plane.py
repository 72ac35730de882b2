"""What figures of points in the plane share: the data, and their density while noise is added."""

import torch
from jaxtyping import Float64
from torch import Tensor

from imago.data import ImageDataModule
from imago.data.shapes import RANGE
from imago.data.sources import Toy
from imago.errors import UserError

FINER = 4  # cells of the data's density along each side of a cell of the noisy one
Plane = Float64[Tensor, "x y"]
Masses = Float64[Tensor, "fine fine"]


def plane_of(data: ImageDataModule, figure: str) -> Toy:
    """The source of points in the plane whose density is known.

    Raises:
        UserError: the data are others.
    """
    source = data.source
    if not isinstance(source, Toy) or source.levels or source.shape.dimensions != 2:
        raise UserError(
            f"figure={figure}: shows points in the plane, and {data.name} has none; give a checkpoint of data=toy2d"
        )
    return source


def middles(count: int) -> Float64[Tensor, " count"]:
    """Of equal cells over ``[-RANGE, RANGE]``."""
    return (torch.arange(count, dtype=torch.float64) + 0.5) * (2 * RANGE / count) - RANGE


def masses(source: Toy, cells: int, label: int | None = None) -> Masses:
    """The data's probability in cells, :data:`FINER` times as many in each coordinate.

    Args:
        source: of points in the plane.
        cells: in each coordinate.
        label: of the mode whose points they are; ``None`` for all.
    """
    places = middles(cells * FINER)
    grid = torch.cartesian_prod(places, places).float().view(-1, 2, 1, 1)
    labels = None if label is None else torch.full((len(grid),), label)
    return source.log_prob(grid, labels).exp().view(len(places), -1) * (2 * RANGE / len(places)) ** 2


def noisy_density(mass: Masses, alpha: float, sigma: float) -> Plane:
    """The density of α x + σ ε, ε ~ N(0, I), in the cells that :func:`masses` was asked for.

    Each point's noise is as likely in each cell as it should be, so that no σ is too small for the cells.

    Args:
        mass: of the data x.
        alpha: α.
        sigma: σ, more than 0.
    """
    cells = len(mass) // FINER
    edges = torch.linspace(-RANGE, RANGE, cells + 1, dtype=torch.float64)
    spread = torch.special.ndtr((edges[:, None] - alpha * middles(len(mass))) / sigma).diff(dim=0)
    return spread @ mass @ spread.T / (2 * RANGE / cells) ** 2
