"""The sweeping LSTM: which cells read which, and derivatives against finite differences.

That its values are those of a cell-by-cell network is in tests/models/test_pixelrnn.py.
"""

import pytest
import torch
from torch import Tensor

from imago.kernels.recurrence import Sweep, diagonal_sweep, row_sweep, sweep_lstm

SHAPES = [(1, 1), (1, 4), (4, 1), (3, 5), (5, 3), (4, 4)]


def sweeps(height: int, width: int) -> dict[str, Sweep]:
    return {
        "row 1": row_sweep(height, width, 1),
        "row 3": row_sweep(height, width, 3),
        "row 5": row_sweep(height, width, 5),
        "diagonal": diagonal_sweep(height, width),
    }


def neighbours(name: str, height: int, width: int) -> dict[tuple[int, int, str], tuple[int, int]]:
    """(row, column, what) → the cell that is read, from the definitions."""
    taps = {}
    if name == "diagonal":
        offsets = {"input 0": (0, 0), "state 0": (0, -1), "state 1": (-1, 0), "carry": (0, -1)}
    else:
        kernel = int(name.split()[1])
        left = kernel // 2
        offsets = {f"input {k}": (0, k - left) for k in range(left + 1)}
        offsets |= {f"state {k}": (-1, k - left) for k in range(kernel)}
        offsets["carry"] = (-1, 0)
    for row in range(height):
        for column in range(width):
            for what, (down, right) in offsets.items():
                if 0 <= row + down < height and 0 <= column + right < width:
                    taps[row, column, what] = (row + down, column + right)
    return taps


@pytest.mark.parametrize("name", sweeps(1, 1))
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_cell_reads_its_neighbours(shape: tuple[int, int], name: str) -> None:
    height, width = shape
    sweep = sweeps(height, width)[name]
    assert sorted(sweep.order) == list(range(height * width))
    assert sum(step.cells for step in sweep.steps) == height * width
    cells = [divmod(cell, width) for cell in sweep.order]
    found = {}
    start = before = 0
    for step in sweep.steps:
        reads = [(f"input {t.weight}", t, start) for t in step.inputs]
        reads += [(f"state {t.weight}", t, before) for t in step.states]
        reads += [("carry", step.carry, before)]
        for what, tap, line in reads:
            for k in range(tap.cells):
                found[*cells[start + tap.to + k], what] = cells[line + tap.source + k]
        before, start = start, start + step.cells
    assert found == neighbours(name, height, width)


def arguments(name: str, height: int, width: int, images: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Input, input weights, bias, state weights."""
    torch.manual_seed(0)
    n, inputs, hidden = 2, 3, 2
    kernel = 1 if name == "diagonal" else int(name.split()[1])
    directions, taps = (2, 2) if name == "diagonal" else (1, kernel)
    shapes = [
        (directions, height * width, n, inputs),
        (directions, kernel // 2 + 1, inputs, 4 * hidden),
        (directions, images, 4 * hidden),
        (directions, taps, hidden, 4 * hidden),
    ]
    return tuple(torch.randn(shape, dtype=dtype).requires_grad_() for shape in shapes)


@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize("name", sweeps(1, 1))
@pytest.mark.parametrize("shape", [(1, 3), (3, 2), (2, 3)], ids=str)
def test_derivatives(shape: tuple[int, int], name: str, images: int) -> None:
    tensors = arguments(name, *shape, images, torch.float64)
    sweep = sweeps(*shape)[name]
    assert torch.autograd.gradcheck(lambda *t: sweep_lstm(*t, sweep), tensors, fast_mode=True, atol=1e-8)


def test_backward_twice_gives_the_same() -> None:
    tensors = arguments("diagonal", 3, 4, 1, torch.float64)
    y = sweep_lstm(*tensors, diagonal_sweep(3, 4)).square().sum()
    first = torch.autograd.grad(y, tensors, retain_graph=True)
    second = torch.autograd.grad(y, tensors)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("name", ["row 3", "diagonal"])
def test_autocast_leaves_the_recurrence_in_float32(name: str) -> None:
    sweep = sweeps(4, 3)[name]
    tensors = arguments(name, 4, 3, 1, torch.float32)
    expected = sweep_lstm(*tensors, sweep)
    with torch.autocast("cpu", torch.bfloat16):
        y = sweep_lstm(*tensors, sweep)
        ours = torch.autograd.grad(y.square().sum(), tensors)
    assert torch.equal(y, expected)
    for our, their in zip(ours, torch.autograd.grad(expected.square().sum(), tensors), strict=True):
        assert torch.equal(our, their)
    half = sweep_lstm(tensors[0].bfloat16(), *tensors[1:], sweep)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, expected, rtol=0.05, atol=0.05)
