"""A transformer over the values of an image (Chen et al. 2020, "Generative pretraining from pixels")."""

from typing import Unpack

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from imago.images import ImageSpec, Labels, Normalized, quantize
from imago.models.autoregressive import Autoregressive, AutoregressiveSettings
from imago.nets.causal import AutoregressiveNet


class Transformer(Autoregressive):
    """Predict every value from those before it by masked self-attention."""

    kinds = ("pixels", "tokens")

    def __init__(
        self,
        spec: ImageSpec,
        *,
        width: PositiveInt = 32,
        heads: PositiveInt = 4,
        layers: PositiveInt = 2,
        **settings: Unpack[AutoregressiveSettings],
    ) -> None:
        super().__init__(spec, **settings)
        self.net = TransformerNet(spec, self.distribution.parameters, width, heads, layers, self.classes)


class TransformerNet(AutoregressiveNet):
    """Causal self-attention over the values in raster order, which begins with the class."""

    def __init__(self, spec: ImageSpec, parameters: int, width: int, heads: int, layers: int, classes: int) -> None:
        super().__init__()
        self.levels = spec.levels
        self.start = nn.Embedding(max(classes, 1), width)
        self.value = nn.Embedding(spec.levels, width)
        self.position = nn.Parameter(torch.randn(spec.dimensions, width))
        layer = nn.TransformerEncoderLayer(width, heads, 4 * width, dropout=0, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, layers, nn.LayerNorm(width), enable_nested_tensor=False)
        self.head = nn.Linear(width, parameters)

    def forward(self, x: Normalized, labels: Labels | None = None) -> Tensor:
        """(n, channels, height, width) in [-1, 1] → (n, channels, height, width, parameters)."""
        values = quantize(x, self.levels).permute(0, 2, 3, 1)
        start = self.start(values.new_zeros(len(x)).long() if labels is None else labels)
        before = torch.cat([start[:, None], self.value(values.flatten(1).long())[:, :-1]], 1)
        mask = nn.Transformer.generate_square_subsequent_mask(before.shape[1], x.device)
        h = self.layers(before + self.position, mask, is_causal=True)
        return self.head(h).view(*values.shape, -1).permute(0, 3, 1, 2, 4)
