"""How sharp are images? The width of edges, which thick strokes and low contrast do not change and blur does."""

import math
from typing import Any

import torch
from jaxtyping import Float64, Num
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

# A difference of neighbours below this share of an image's range is no edge: faint noise is not.
FAINT = 1 / 16


def edge_widths(images: Num[Tensor, "n c h w"]) -> Float64[Tensor, " n"]:
    """The width of each image's edges, in pixels; nan of one that is all one colour.

    An edge across which the value rises by r in w pixels has differences d of neighbours that sum to r, and whose
    squares sum to r²/w. Over all neighbours that differ by more than faint noise does, with r for the range of the
    image's values,

        w = r Σ|d| / Σ d².

    Both sums grow alike with the length of the edges, so that neither their number, nor how thick a stroke is, nor the
    contrast changes it: 1 where every edge is a step over the whole range, and more where edges are soft or low.

    Args:
        images: values in any unit; of colours the mean over the channels is looked at.
    """
    gray = images.double().mean(1)
    steps = torch.cat([gray.diff(dim=2).flatten(1), gray.diff(dim=1).flatten(1)], 1).abs()
    extent = gray.flatten(1).amax(1) - gray.flatten(1).amin(1)
    kept = steps >= FAINT * extent[:, None]
    kept |= ~kept.any(1, keepdim=True)  # where the whole image is one soft edge, its faint steps are that edge
    steps = torch.where(kept, steps, 0)
    squares = steps.square().sum(1)
    return torch.where(squares > 0, extent * steps.sum(1) / squares, math.nan)


class EdgeWidth(Metric):
    """The mean of :func:`edge_widths` over images, and its standard error; images of one colour are left out.

    Neither way is better: what real images have is right.

    Args:
        options: of ``torchmetrics.Metric``.
    """

    is_differentiable = False
    full_state_update = False
    widths: list[Tensor]

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.add_state("widths", [], dist_reduce_fx="cat")

    def update(self, images: Num[Tensor, "n c h w"]) -> None:
        """Add a batch; see :func:`edge_widths`."""
        self.widths.append(edge_widths(images))

    def compute(self) -> dict[str, Float64[Tensor, ""]]:
        """Return ``edge_width`` in pixels and ``edge_width_error``; nan where no image, or only one, has an edge."""
        widths = dim_zero_cat(self.widths)
        widths = widths[widths.isfinite()]
        error = widths.std() / math.sqrt(len(widths)) if len(widths) > 1 else widths.new_tensor(math.nan)
        return {"edge_width": widths.mean(), "edge_width_error": error}
