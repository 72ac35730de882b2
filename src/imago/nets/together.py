"""Layers that look at a whole batch of which each of several processes has a part: they compute what one process would.

Alone they are torch's own.
"""

import torch
from torch import Tensor, distributed, nn
from torch.autograd.function import FunctionCtx
from torch.nn.modules.batchnorm import _BatchNorm

from imago.processes import several


class _OverProcesses(_BatchNorm):
    """Batch normalisation over the batch of all processes, on any device."""

    def forward(self, x: Tensor) -> Tensor:
        """(n, channels, ...) to the same shape."""
        if not (self.training and several()):
            return super().forward(x)
        others, shape = [0, *range(2, x.ndim)], [1, -1, *[1] * (x.ndim - 2)]
        count = x.numel() // x.shape[1] * distributed.get_world_size()
        mean = _SumOverProcesses.apply(x.sum(others)) / count
        centred = x - mean.view(shape)
        variance = _SumOverProcesses.apply(centred.square().sum(others)) / count
        if self.running_mean is not None and self.running_var is not None and self.momentum is not None:
            with torch.no_grad():
                self.running_mean.lerp_(mean, self.momentum)
                self.running_var.lerp_(variance * (count / (count - 1)), self.momentum)
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        y = centred * (variance + self.eps).rsqrt().view(shape)
        return y * self.weight.view(shape) + self.bias.view(shape) if self.affine else y


_SYNCHRONISED: dict[type[nn.Module], type[nn.Module]] = {
    kind: type(f"Sync{kind.__name__}", (_OverProcesses, kind), {})
    for kind in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
}


def synchronise(model: nn.Module) -> None:
    """Let all batch norms of a model take their means over all processes; torch's ``SyncBatchNorm`` is for GPUs."""
    for module in model.modules():
        module.__class__ = _SYNCHRONISED.get(type(module), type(module))


class Dropout(nn.Dropout):
    """Dropout whose mask is drawn for the batch of all processes and cut, as all noise of training is."""

    def forward(self, x: Tensor) -> Tensor:
        """(n, ...) to the same shape."""
        if not (self.training and self.p and several()):
            return super().forward(x)
        n, rank = len(x), distributed.get_rank()
        shape = n * distributed.get_world_size(), *x.shape[1:]
        kept = torch.empty_strided(shape, x.stride(), dtype=x.dtype, device=x.device).bernoulli_(1 - self.p)
        return x * kept[rank * n : (rank + 1) * n].div_(1 - self.p)


class _SumOverProcesses(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor) -> Tensor:
        total = x.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> Tensor:
        return _SumOverProcesses.apply(gradient)
