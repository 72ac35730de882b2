"""The small convolutional network behind the classifier metrics, and how it is trained.

It stands to a data set as Inception stands to photographs: trained to tell the classes apart, its last hidden layer
describes what matters in an image. It takes gray and RGB images of any size.
"""

import math

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from imago.progress import Progress


class ConvNorm(nn.Module):
    """Convolution, batch normalisation, ReLU; sides shrink by ``stride``, rounded up."""

    def __init__(self, channels_in: int, channels_out: int, kernel_size: int = 3, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels_out, kernel_size, stride, kernel_size // 2, bias=False)
        self.bn = nn.BatchNorm2d(channels_out)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d i j"]:
        """Feature maps to feature maps."""
        return F.relu(self.bn(self.conv(x)), inplace=True)


class Residual(nn.Module):
    """x + two ConvNorms of x (He et al. 2016)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(ConvNorm(channels, channels), ConvNorm(channels, channels))

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """Feature maps to feature maps of the same shape."""
        return x + self.layers(x)


class ClassifierNetwork(nn.Module):
    """A narrow ResNet in the manner of Page 2018 ("How to train your ResNet") with global average pooling.

    Args:
        channels: 1 for gray, 3 for RGB.
        classes: number of classes.
        width: channels of the first layer; the later ones have twice and 7/3 times as many.
        stem_stride: of the first layer; 2 halves the image there.
    """

    largest_side = 64  # longer sides are averaged down to it first

    def __init__(self, channels: int, classes: int, width: int, stem_stride: int) -> None:
        super().__init__()
        self.channels = channels
        self.arguments = {"channels": channels, "classes": classes, "width": width, "stem_stride": stem_stride}
        self.dimensions = 7 * width // 3
        self.features = nn.Sequential(
            ConvNorm(channels, width, kernel_size=5, stride=stem_stride),
            Residual(width),
            ConvNorm(width, 2 * width, stride=2),
            ConvNorm(2 * width, self.dimensions, stride=2),
            Residual(self.dimensions),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        self.head = nn.Linear(self.dimensions, classes)

    @classmethod
    def for_images(cls, channels: int, height: int, width: int, classes: int) -> "ClassifierNetwork":
        """The network for images of this shape: wider for RGB, and its blocks always work at 16 pixels or fewer."""
        return cls(
            channels, classes, width=24 if channels == 1 else 48, stem_stride=min(4, -(-max(height, width) // 16))
        )

    def embed(self, images: UInt8[Tensor, "n c h w"]) -> Float[Tensor, "n d"]:
        """The activations before the last layer."""
        height, width = (min(side, self.largest_side) for side in images.shape[2:])
        x = images.to(self.head.weight.dtype)
        if (height, width) != images.shape[2:]:
            x = F.adaptive_avg_pool2d(x, (height, width))
        return self.features(x.sub_(127.5).div_(64).contiguous(memory_format=torch.channels_last))

    def forward(self, images: UInt8[Tensor, "n c h w"]) -> Float[Tensor, "n classes"]:
        """Logits of the classes."""
        return self.head(self.embed(images))


def shift_and_flip(
    images: UInt8[Tensor, "n c h w"], flip: bool, generator: torch.Generator
) -> UInt8[Tensor, "n c h w"]:
    """Move every image by up to an eighth of its sides, repeating edge pixels, and mirror half of them if ``flip``."""
    n, _, height, width = images.shape
    rows, columns = (
        (torch.arange(side) + torch.randint(-(side // 8), side // 8 + 1, (n, 1), generator=generator)).clamp(
            0, side - 1
        )
        for side in (height, width)
    )
    if flip:
        mirrored = torch.rand(n, 1, generator=generator) < 0.5
        columns = torch.where(mirrored, width - 1 - columns, columns)
    index = (rows[:, :, None] * width + columns[:, None, :]).view(n, 1, -1).expand(-1, images.shape[1], -1)
    return images.flatten(2).gather(2, index.to(images.device)).view_as(images)


def train_classifier(
    network: ClassifierNetwork,
    images: UInt8[Tensor, "n c h w"],
    labels: Int[Tensor, " n"],
    *,
    images_seen: int,
    flip: bool,
    generator: torch.Generator,
    device: torch.device,
    batch_size: int = 128,
    learning_rate: float = 0.2,
    progress: Progress | None = None,
) -> None:
    """Train by SGD with Nesterov momentum, one-cycle learning rate and label smoothing on shifted (and flipped) images.

    Deterministic on a CPU with a given number of threads: order and augmentation come from ``generator`` alone.

    Args:
        network: trained in place, left in evaluation mode on ``device``.
        images: values 0..255.
        labels: 0..classes-1.
        images_seen: length of the training; passes over the data are cut off there.
        flip: whether a mirror image is an image of the same class.
        generator: a CPU generator.
        device: where to train.
        batch_size: images per step.
        learning_rate: the peak.
        progress: called with (images seen, ``images_seen``).
    """
    network.to(device).to(memory_format=torch.channels_last).train()
    batch_size = min(batch_size, len(images))
    steps = math.ceil(images_seen / batch_size)
    decayed = [parameter for parameter in network.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in network.parameters() if parameter.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 5e-4}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.SGD(groups, lr=learning_rate, momentum=0.9, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, learning_rate, total_steps=max(steps + 1, 11), pct_start=0.2
    )
    order = torch.empty(0, dtype=torch.int64)
    with torch.enable_grad():
        for step in range(steps):
            if len(order) < batch_size:
                order = torch.randperm(len(images), generator=generator)
            chosen, order = order[:batch_size], order[batch_size:]
            batch = shift_and_flip(images[chosen], flip, generator).to(device)
            loss = F.cross_entropy(network(batch), labels[chosen].to(device), label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            if progress is not None:
                progress(min((step + 1) * batch_size, images_seen), images_seen)
    network.eval()


@torch.no_grad()
def accuracy(
    network: ClassifierNetwork, images: UInt8[Tensor, "n c h w"], labels: Int[Tensor, " n"], device: torch.device
) -> float:
    """Share of images, 0..1, whose most probable class is the right one."""
    network.to(device).eval()
    right = sum(
        int((network(batch.to(device)).argmax(1).cpu() == target).sum())
        for batch, target in zip(images.split(500), labels.split(500), strict=True)
    )
    return right / len(images)
