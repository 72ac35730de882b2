"""PixelCNN and gated PixelCNN as the papers draw them: square kernels times masks, one convolution after the other.

The reference for :mod:`imago.models.pixelcnn` and :mod:`imago.models.gated_pixelcnn`. It takes their parameters, and
nothing of their computation: kernels are n x n (or 1 x n) with their zeros, and masks are said entry by entry.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def mask_of(mask: str, outputs: int, inputs: int, parts: int, channels: int, rows: int, columns: int) -> Tensor:
    """1 where an output sees an input, (parts * outputs, inputs, rows, columns); section 3.4 of the PixelRNN paper."""
    m = torch.zeros(parts * outputs, inputs, rows, columns, dtype=torch.float64)
    m[:, :, : rows // 2] = 1
    m[:, :, rows // 2, : columns // 2] = 1
    for out in range(parts * outputs):
        for into in range(inputs):
            of_out, of_into = (out % outputs) * channels // outputs, into * channels // inputs  # R, G or B
            if of_into < of_out or (mask == "B" and of_into == of_out):
                m[out, into, rows // 2, columns // 2] = 1
    return m


def masked(layer: Any, mask: str, x: Tensor, rows: int, columns: int, channels: int, labels: Tensor | None) -> Tensor:
    """A convolution with a rows x columns kernel, of which the layer stores the upper left part, and its biases."""
    outputs, inputs, stored_rows, stored_columns = layer.weight.shape
    kernel = layer.weight.new_zeros(outputs, inputs, rows, columns)
    kernel[:, :, :stored_rows, :stored_columns] = layer.weight
    kernel = kernel * mask_of(mask, outputs // layer.parts, inputs, layer.parts, channels, rows, columns)
    y = F.conv2d(x, kernel, layer.bias, padding=(rows // 2, columns // 2))
    return y if layer.class_bias is None else y + layer.class_bias(labels)[:, :, None, None]


def head(net: Any, h: Tensor, channels: int, labels: Tensor | None) -> Tensor:
    """ReLU and 1x1 convolutions: (n, features, height, width) → (n, channels, height, width, parameters)."""
    for layer in net.head.layers:
        h = masked(layer, "B", F.relu(h), 1, 1, channels, labels)
    n, _, height, width = h.shape
    return h.reshape(n, channels, -1, height, width).movedim(2, -1)


def plain_pixelcnn(net: Any, x: Tensor, first_kernel: int, kernel: int, labels: Tensor | None = None) -> Tensor:
    """What ``net(x, labels)`` is; residual blocks of figure 5, or plain ones."""
    channels = x.shape[1]
    h = masked(net.first, "A", x, first_kernel, first_kernel, channels, labels)
    for block in net.blocks:
        if hasattr(block, "conv"):
            h = masked(block.conv, "B", F.relu(h), kernel, kernel, channels, None)
        else:
            y = masked(block.reduce, "B", F.relu(h), 1, 1, channels, None)
            y = masked(block.spread, "B", F.relu(y), kernel, kernel, channels, None)
            h = h + masked(block.expand, "B", F.relu(y), 1, 1, channels, None)
    return head(net, h, channels, labels)


def plain_gated_pixelcnn(net: Any, x: Tensor, first_kernel: int, kernel: int, labels: Tensor | None = None) -> Tensor:
    """What ``net(x, labels)`` is: equations 2 and 4 and figure 2 of the gated PixelCNN paper."""
    channels = x.shape[1]
    v, h = x, x
    for k, layer in enumerate(net.layers):
        size = kernel if k else first_kernel
        # The vertical stack: n x n, above the pixel only. The image's own row is hidden; features above know less.
        stored = layer.vertical.weight
        square = stored.new_zeros(*stored.shape[:2], size, size)
        square[:, :, : size // 2 + (1 if k else 0)] = stored
        vertical = F.conv2d(v, square, layer.vertical.bias, padding=size // 2)
        # The horizontal one: 1 x n, and 1 x 1 from the vertical one.
        horizontal = masked(layer.horizontal, "B" if k else "A", h, 1, size, channels, labels)
        horizontal = horizontal + F.conv2d(vertical, layer.link.weight)
        features = horizontal.shape[1] // 2
        y = torch.tanh(horizontal[:, :features]) * torch.sigmoid(horizontal[:, features:])
        y = masked(layer.out, "B", y, 1, 1, channels, None)
        h = h + y if k else y
        if isinstance(layer.class_bias, nn.Embedding):
            vertical = vertical + layer.class_bias(labels)[:, :, None, None]
        v = torch.tanh(vertical[:, :features]) * torch.sigmoid(vertical[:, features:])
    return head(net, h, channels, labels)
