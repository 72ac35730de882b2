"""EfficientNet-lite0, the network of ``metrics=efficientnet``, and its published weights.

Tan & Le 2019, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", table 1: the network B0 of
inverted residual blocks (Sandler et al. 2018, "MobileNetV2", table 1). Its *lite* form (Liu 2020, "Higher accuracy on
vision models with EfficientNet-Lite") has no squeeze-and-excitation and ReLU6 for the swish. 4.65 million weights,
1,280 features, 75.1% of ImageNet's validation images by its publishers' account.
"""

import pickle
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

# Expansion, channels, blocks, kernel size, stride of the first block (Tan & Le 2019, table 1, stages 2 to 8).
_STAGES = (
    (1, 16, 1, 3, 1),
    (6, 24, 2, 3, 2),
    (6, 40, 2, 5, 2),
    (6, 80, 3, 3, 2),
    (6, 112, 3, 5, 1),
    (6, 192, 4, 5, 2),
    (6, 320, 1, 3, 1),
)
_MEAN, _SCALE = 127.0, 128.0  # what it was trained with: values 0..255 become about -1..1
FEATURES, CLASSES = 1280, 1000


class PaddedConv(nn.Module):
    """Convolution, batch normalisation and ReLU6; sides shrink by ``stride``, rounded up.

    TensorFlow's padding "SAME": where the number of zeros is odd, the right and the lower side have one more.
    """

    def __init__(
        self,
        channels_in: int,
        channels: int,
        size: int = 1,
        stride: int = 1,
        groups: int = 1,
        *,
        rectified: bool = True,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels, size, stride, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(channels, eps=1e-3)
        self.size, self.stride, self.rectified = size, stride, rectified

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d i j"]:
        """Feature maps to feature maps."""
        rows, columns = (max(self.size - (side - 1) % self.stride - 1, 0) for side in x.shape[2:])
        if rows or columns:
            x = F.pad(x, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))
        x = self.bn(self.conv(x))
        return F.relu6(x, inplace=True) if self.rectified else x


class InvertedResidual(nn.Module):
    """1x1 convolution to ``expansion`` times the channels, one for each channel, and a linear 1x1 convolution.

    The input is added where it has the shape of the output.
    """

    def __init__(self, channels_in: int, channels: int, size: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = expansion * channels_in
        self.expand = PaddedConv(channels_in, inner) if expansion > 1 else nn.Identity()
        self.depthwise = PaddedConv(inner, inner, size, stride, groups=inner)
        self.project = PaddedConv(inner, channels, rectified=False)
        self.residual = stride == 1 and channels_in == channels

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d i j"]:
        """Feature maps to feature maps."""
        y = self.project(self.depthwise(self.expand(x)))
        return x + y if self.residual else y


class EfficientNetLite0(nn.Module):
    """Images to ImageNet's 1,000 classes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = PaddedConv(3, 32, 3, 2)
        blocks, channels = [], 32
        for expansion, width, count, size, stride in _STAGES:
            for index in range(count):
                blocks.append(InvertedResidual(channels, width, size, stride if index == 0 else 1, expansion))
                channels = width
        self.blocks = nn.Sequential(*blocks)
        self.head = PaddedConv(channels, FEATURES)
        self.classifier = nn.Linear(FEATURES, CLASSES)

    def embed(self, x: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n d"]:
        """The globally averaged activations before the last layer, of images with values 0..255."""
        x = ((x - _MEAN) / _SCALE).contiguous(memory_format=torch.channels_last)
        return self.head(self.blocks(self.stem(x))).mean((2, 3))

    def forward(self, x: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n classes"]:
        """Logits of the classes."""
        return self.classifier(self.embed(x))


def load_efficientnet(path: Path) -> EfficientNetLite0:
    """Return the network of a file in the published layout, in evaluation mode.

    Raises:
        ValueError: it is no such file.
    """
    try:
        found = torch.load(path, weights_only=True, map_location="cpu")
        with torch.random.fork_rng(devices=[]):
            network = EfficientNetLite0()
        network.load_state_dict({name: found[_published(name)] for name in network.state_dict()})
        if len(found) != len(network.state_dict()):
            raise ValueError(f"{len(found)} tensors instead of {len(network.state_dict())}")
    except (RuntimeError, ValueError, KeyError, TypeError, EOFError, OSError, pickle.UnpicklingError) as error:
        raise ValueError(f"not the weights of EfficientNet-lite0 ({type(error).__name__})") from error
    return network.eval()


def _published(name: str) -> str:
    """What the published file calls a weight of ours."""
    place, _, rest = name.rpartition(".conv.") if ".conv." in name else name.rpartition(".bn.")
    conv = ".conv." in name
    if not place:
        return f"_fc.{name.removeprefix('classifier.')}"
    *block, part = place.split(".")
    convs = {"stem": "conv_stem", "head": "conv_head"}
    norms = {"stem": "bn0", "head": "bn1", "expand": "bn0", "depthwise": "bn1", "project": "bn2"}
    called = convs.get(part, f"{part}_conv") if conv else norms[part]
    return "_" + ".".join([*block, f"_{called}" if block else called, rest])
