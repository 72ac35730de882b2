"""Muon: what a step is, by hand and beside torch's."""

import copy

import pytest
import torch
from torch import nn

from imago.optimizers import ADAM_RMS, Muon, orthogonalized


def train(net: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 5) -> None:
    """A regression of noise on noise."""
    random = torch.Generator().manual_seed(3)
    for _ in range(steps):
        x = torch.randn(64, 1, 6, 6, generator=random)
        optimizer.zero_grad()
        net(x).square().mean().add(net(x).mean()).backward()
        optimizer.step()


@pytest.mark.parametrize("shape", [(3, 12, 40), (2, 40, 12), (1, 16, 16)])
def test_singular_values_become_ones_and_directions_stay(shape: tuple[int, int, int]) -> None:
    """Of singular values that lie within a factor of a hundred."""
    torch.manual_seed(0)
    rank = min(shape[1:])
    left, right = (
        torch.linalg.qr(torch.randn(shape[0], shape[1], rank))[0],
        torch.linalg.qr(torch.randn(shape[0], shape[2], rank))[0],
    )
    values = torch.logspace(0, -2, rank)
    found = orthogonalized(left * values @ right.mT * 7)
    assert ((left.mT @ found @ right).diagonal(dim1=1, dim2=2) - 1).abs().max() < 0.35
    assert (found - left @ (left.mT @ found @ right) @ right.mT).abs().max() < 1e-4
    off = (left.mT @ found @ right) * (1 - torch.eye(rank))
    assert off.abs().max() < 1e-4


def test_a_step_is_the_equation() -> None:
    """Two steps of one kernel, the second with momentum, by its own matrix."""
    torch.manual_seed(0)
    kernel = nn.Parameter(torch.randn(10, 4, 3, 3))
    optimizer, average, lr = Muon([kernel], lr=0.1, momentum=0.9), torch.zeros(10, 36), 0.1
    for _ in range(2):
        before, gradient = kernel.detach().clone(), torch.randn(10, 4, 3, 3)
        kernel.grad = gradient.clone()
        optimizer.step()
        average = 0.9 * average + gradient.flatten(1)
        wanted = orthogonalized((gradient.flatten(1) + 0.9 * average)[None])[0] * lr * ADAM_RMS * 36**0.5
        torch.testing.assert_close(before - kernel.detach(), wanted.view_as(kernel))


def test_all_but_matrices_is_adams() -> None:
    torch.manual_seed(0)
    one = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 1, 3))  # kernels of 4 and of 1 rows
    other = copy.deepcopy(one)
    train(one, Muon(one.parameters(), lr=0.01))
    train(other, torch.optim.Adam(other.parameters(), lr=0.01))
    for ours, theirs in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_matrices_move_as_with_torch() -> None:
    """Its Muon takes matrices only, in bfloat16."""
    torch.manual_seed(0)
    start = torch.randn(24, 32)
    moved = []
    for make in (Muon, torch.optim.Muon):
        weight = nn.Parameter(start.clone())
        more = {} if make is Muon else {"weight_decay": 0.0, "adjust_lr_fn": "match_rms_adamw"}
        optimizer = make([weight], lr=0.01, momentum=0.95, **more)
        random = torch.Generator().manual_seed(1)
        for _ in range(4):
            weight.grad = torch.randn(24, 32, generator=random)
            optimizer.step()
        moved.append((weight.detach() - start).flatten())
    assert torch.cosine_similarity(*moved, dim=0) > 0.99
    assert 0.95 < moved[0].norm() / moved[1].norm() < 1.05


def test_a_memory_format_changes_nothing() -> None:
    torch.manual_seed(0)
    nets = [nn.Sequential(nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Conv2d(16, 12, 3))]
    nets.append(copy.deepcopy(nets[0]).to(memory_format=torch.channels_last))
    for net in nets:
        train(net, Muon(net.parameters(), lr=0.01))
    for ours, theirs in zip(*(net.parameters() for net in nets), strict=True):
        torch.testing.assert_close(ours, theirs)
