"""LSTMs that sweep over a feature map: one step computes a whole row, or a whole diagonal, at once.

The two recurrences of van den Oord et al. 2016 ("Pixel recurrent neural networks", PMLR 48, sections 3.1 and 3.2) are
the same computation on different sets of cells. With the cells of step t in a line, every one reads

- the layer's input at its own cell (and at some cells before it in the line): *input-to-state*;
- the hidden state of a few neighbours in the line of step t-1: *state-to-state*;
- the memory of one cell of the line of step t-1, its *carry*:

    (i, f, o, g) = (σ, σ, σ, tanh)(b + Σ_k K_k^is x + Σ_k K_k^ss h_{t-1})                                         (1)
    c_t = f ⊙ c_{t-1} + i ⊙ g                                                                                     (2)
    h_t = o ⊙ tanh(c_t)                                                                                           (3)

Row LSTM: a line is an image row, the neighbours are the cells above and beside it. Diagonal LSTM: a line is a diagonal,
the neighbours are the cells at the left and above. What lies outside the image has the state zero.

The cells are stored line by line, each cell as a matrix (images x features). Then the neighbours of a line are one
contiguous run of the line before, so that each tap is a matrix product without a copy, nothing is computed for cells
that do not exist, and the skewed map of the paper (its figure 3) is never built.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable


class Tap(NamedTuple):
    """Cells ``to, …, to + cells - 1`` of a line read the cells ``source, …``, with the weight number ``weight``."""

    weight: int
    to: int
    source: int
    cells: int


@dataclass(frozen=True)
class Step:
    """One line of cells.

    Attributes:
        cells: how many there are.
        inputs: taps on the same line of the input.
        states: taps on the hidden state of the line before.
        carry: whose memory of the line before is carried on; its weight means nothing.
    """

    cells: int
    inputs: tuple[Tap, ...]
    states: tuple[Tap, ...]
    carry: Tap


@dataclass(frozen=True)
class Sweep:
    """Lines of cells that cover a map.

    Attributes:
        steps: the lines, first to last.
        order: of each stored cell its number in raster order.
    """

    steps: tuple[Step, ...]
    order: tuple[int, ...]


def _tap(index: int, offset: int, cells: int, before: int) -> list[Tap]:
    """Every cell p of a line reads cell p + offset of a line of ``before`` cells, where there is one."""
    to = max(0, -offset)
    count = min(cells, before - offset) - to
    return [Tap(index, to, to + offset, count)] if count > 0 else []


@lru_cache(maxsize=64)
def row_sweep(height: int, width: int, kernel: int) -> Sweep:
    """Row by row: the input of ``kernel // 2`` cells at the left and of the own; ``kernel`` states of the row above.

    Input tap k reads the cell ``kernel // 2 - k`` to the left, state tap k the cell above, ``k - kernel // 2`` to the
    right: the order of a convolution's weights.
    """
    left = kernel // 2
    inputs = [tap for k in range(left + 1) for tap in _tap(k, k - left, width, width)]
    states = [tap for k in range(kernel) for tap in _tap(k, k - left, width, width)]
    carry = Tap(0, 0, 0, width)
    none = Tap(0, 0, 0, 0)
    steps = [Step(width, tuple(inputs), tuple(states) if row else (), carry if row else none) for row in range(height)]
    return Sweep(tuple(steps), tuple(range(height * width)))


@lru_cache(maxsize=64)
def diagonal_sweep(height: int, width: int) -> Sweep:
    """Diagonal by diagonal from the top left corner: the own input; the states at the left (tap 0) and above (tap 1).

    Cell p of line t is at row ``first + p``, column ``t - row``; the memory of the cell at the left is carried on.
    """
    steps: list[Step] = []
    order: list[int] = []
    before = range(0)
    for t in range(height + width - 1):
        rows = range(max(0, t - width + 1), min(height - 1, t) + 1)
        shift = rows.start - before.start
        left = _tap(0, shift, len(rows), len(before))
        above = _tap(1, shift - 1, len(rows), len(before))
        carry = left[0] if left else Tap(0, 0, 0, 0)
        steps.append(Step(len(rows), (Tap(0, 0, 0, len(rows)),), (*left, *above), carry))
        order.extend(row * width + t - row for row in rows)
        before = rows
    return Sweep(tuple(steps), tuple(order))


Cells = Float[Tensor, "directions cells n _"]


def sweep_lstm(
    x: Cells,
    input_weight: Float[Tensor, "directions input_taps inputs gates"],
    bias: Float[Tensor, "directions images gates"],
    state_weight: Float[Tensor, "directions state_taps hidden gates"],
    sweep: Sweep,
) -> Cells:
    """The hidden states (directions, cells, n, hidden) of equations 1 to 3.

    Several directions, with weights of their own, are computed side by side. The gates are i, f, o, g, one after the
    other: 4 * hidden. The states are computed in the precision of ``x`` or in float32, whichever is higher.

    Args:
        x: the input; cells in the order of the sweep.
        input_weight: of every input tap.
        bias: for every image, or one for all (images = 1).
        state_weight: of every state tap.
        sweep: which cells make a line and what they read.
    """
    tensors = (x, input_weight, bias, state_weight)
    if x.dtype in (torch.bfloat16, torch.float16):
        tensors = tuple(t.float() for t in tensors)  # type: ignore[assignment]
    with torch.autocast(x.device.type, enabled=False):
        if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
            return _SweepLSTM.apply(*tensors, sweep)
        return _forward(*tensors, sweep, keep=False)[0].unflatten(1, x.shape[1:3])


def _part(x: Tensor, first: int, cells: int, n: int) -> Tensor:
    """View (directions, cells * n, features) of some cells of a line."""
    return x if x.shape[1] == cells * n else x.narrow(1, first * n, cells * n)


def _lines(x: Tensor, sweep: Sweep, n: int) -> tuple[Tensor, ...]:
    """Views of the lines of (directions, cells * n, features)."""
    return x.split([step.cells * n for step in sweep.steps], 1)


def _forward(
    x: Tensor, input_weight: Tensor, bias: Tensor, state_weight: Tensor, sweep: Sweep, keep: bool
) -> tuple[Tensor, ...]:
    """States, and with ``keep`` also the gates, the memory and its tanh: (directions, cells * n, …).

    Without it, only as much of them is stored as the next line needs.
    """
    directions, cells, n, inputs = x.shape
    hidden = state_weight.shape[2]
    longest = max(step.cells for step in sweep.steps)
    kept: list[Tensor] = []

    def lines(features: int, at_once: int) -> Sequence[Tensor]:
        if keep:
            kept.append(x.new_empty(directions, cells * n, features))
            return _lines(kept[-1], sweep, n)
        scratch = [x.new_empty(directions, longest * n, features) for _ in range(at_once)]
        return [scratch[k % at_once][:, : step.cells * n] for k, step in enumerate(sweep.steps)]

    # tanh(z) = 2σ(2z) - 1: with the sum of g doubled, one pass over contiguous memory computes all four gates.
    doubled = x.new_ones(4 * hidden)
    doubled[3 * hidden :] = 2
    input_taps, state_taps = ((w * doubled).unbind(1) for w in (input_weight, state_weight))
    constant = (bias * doubled)[:, None]
    minus_one = x.new_full((), -1)
    states = x.new_empty(directions, cells * n, hidden)
    y, x_lines = _lines(states, sweep, n), _lines(x.reshape(directions, cells * n, inputs), sweep, n)
    gates, memory, squashed = lines(4 * hidden, 1), lines(hidden, 2), lines(hidden, 1)
    for number, step in enumerate(sweep.steps):
        a, c, t = gates[number], memory[number], squashed[number]
        a.unflatten(1, (step.cells, n)).copy_(constant)
        for k, to, source, count in step.inputs:
            _part(a, to, count, n).baddbmm_(_part(x_lines[number], source, count, n), input_taps[k])
        for k, to, source, count in step.states:
            _part(a, to, count, n).baddbmm_(_part(y[number - 1], source, count, n), state_taps[k])
        a.sigmoid_()
        i, f, o, g = a.split(hidden, -1)
        torch.add(minus_one, g, alpha=2, out=g)
        torch.mul(i, g, out=c)
        _, to, source, count = step.carry
        if count:
            _part(c, to, count, n).addcmul_(_part(f, to, count, n), _part(memory[number - 1], source, count, n))
        torch.tanh(c, out=t)
        torch.mul(o, t, out=y[number])
    return states, *kept


class _SweepLSTM(torch.autograd.Function):
    """Equations 1 to 3 with their derivatives.

    Autograd over the loop would keep a graph of some thousand nodes and add up every weight's gradient in as many new
    tensors. Here each line's gradients stay in the cache while all that needs them is computed.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, input_weight: Tensor, bias: Tensor, state_weight: Tensor, sweep: Sweep) -> Tensor:
        states, gates, memory, squashed = _forward(x, input_weight, bias, state_weight, sweep, keep=True)
        y = states.unflatten(1, x.shape[1:3])
        ctx.save_for_backward(x, input_weight, bias, state_weight, gates, memory, squashed, y)
        ctx.sweep = sweep
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        with torch.autocast(gradient.device.type, enabled=False):
            return *_derivatives(ctx.sweep, gradient, *ctx.saved_tensors), None


def _derivatives(
    sweep: Sweep,
    gradient: Tensor,
    x: Tensor,
    input_weight: Tensor,
    bias: Tensor,
    state_weight: Tensor,
    gates: Tensor,
    memory: Tensor,
    squashed: Tensor,
    states: Tensor,
) -> tuple[Tensor, ...]:
    """Back through the lines: the gradients of x, input_weight, bias and state_weight."""
    sigmoid_backward = torch.ops.aten.sigmoid_backward.grad_input
    tanh_backward = torch.ops.aten.tanh_backward.grad_input
    directions, _, n, hidden = states.shape
    x, states = x.flatten(1, 2), states.flatten(1, 2)
    d_states = gradient.clone(memory_format=torch.contiguous_format).view(states.shape)
    d_x = torch.zeros_like(x)
    d_input, d_state = torch.zeros_like(input_weight), torch.zeros_like(state_weight)
    d_bias = x.new_zeros(directions, 1, n * 4 * hidden)
    longest = max(step.cells for step in sweep.steps)
    scratch = x.new_empty(directions, longest * n, 4 * hidden)
    carried = [x.new_empty(directions, longest * n, hidden) for _ in range(2)]
    ones = x.new_ones(directions, 1, longest)
    input_taps, state_taps = (w.transpose(-1, -2).unbind(1) for w in (input_weight, state_weight))
    d_input_taps, d_state_taps = d_input.unbind(1), d_state.unbind(1)
    x_lines, gate_lines, memory_lines, squashed_lines, y, d_y, d_x_lines = (
        _lines(map_, sweep, n) for map_ in (x, gates, memory, squashed, states, d_states, d_x)
    )
    later: Step | None = None
    for number in reversed(range(len(sweep.steps))):
        step = sweep.steps[number]
        t, dh = squashed_lines[number], d_y[number]
        i, _, o, g = gate_lines[number].split(hidden, -1)
        dc = carried[number % 2][:, : step.cells * n]
        torch.mul(dh, o, out=dc)
        tanh_backward(dc, t, grad_input=dc)
        if later is not None and later.carry.cells:
            _, to, source, count = later.carry
            f = _part(gate_lines[number + 1], to, count, n)[..., hidden : 2 * hidden]
            from_later = carried[(number + 1) % 2][:, : later.cells * n]
            _part(dc, source, count, n).addcmul_(f, _part(from_later, to, count, n))
        da = scratch[:, : step.cells * n]
        di, df, do, dg = da.split(hidden, -1)
        torch.mul(dc, g, out=di)
        torch.mul(dc, i, out=dg)
        torch.mul(dh, t, out=do)
        _, to, source, count = step.carry
        if count < step.cells:
            df.zero_()
        if count:
            before = _part(memory_lines[number - 1], source, count, n)
            torch.mul(_part(dc, to, count, n), before, out=_part(df, to, count, n))
        through_sigmoid = da[..., : 3 * hidden]
        sigmoid_backward(through_sigmoid, gate_lines[number][..., : 3 * hidden], grad_input=through_sigmoid)
        tanh_backward(dg, g, grad_input=dg)
        for k, to, source, count in step.states:
            part = _part(da, to, count, n)
            _part(d_y[number - 1], source, count, n).baddbmm_(part, state_taps[k])
            d_state_taps[k].baddbmm_(_part(y[number - 1], source, count, n).transpose(1, 2), part)
        for k, to, source, count in step.inputs:
            part = _part(da, to, count, n)
            _part(d_x_lines[number], source, count, n).baddbmm_(part, input_taps[k])
            d_input_taps[k].baddbmm_(_part(x_lines[number], source, count, n).transpose(1, 2), part)
        d_bias.baddbmm_(ones[..., : step.cells], da.view(directions, step.cells, -1))
        later = step
    d_bias = d_bias.view(directions, n, 4 * hidden)
    if bias.shape[1] == 1:
        d_bias = d_bias.sum(1, keepdim=True)
    return d_x.unflatten(1, (-1, n)), d_input, d_bias, d_state
