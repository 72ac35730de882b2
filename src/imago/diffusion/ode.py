"""Ordinary differential equations dy/dt = f(y, t), solved for each item of a batch in steps of its own.

Where y is drawn from a density p_t at time t that moves with f, the continuity equation gives along a path (Chen et al.
2018, theorem 1; Song et al. 2021, eq. 39)

    d/dt log p_t(y(t)) = −∇·f(y(t), t),    so    log p_0(y(0)) = log p_1(y(1)) + ∫_0^1 ∇·f(y(t), t) dt.             (1)

The divergence of many numbers costs as many passes back through f; its estimate zᵀ (∂f/∂y) z with z of ±1 costs one,
and is right on average (Hutchinson 1990; Grathwohl et al. 2019).
"""

import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from imago.errors import UserError

Slope = Callable[[Tensor, Tensor], Tensor]  # (n, ...), t (n,) → (n, ...)

# Dormand & Prince 1980, "A family of embedded Runge-Kutta formulae", table 2: RK5(4)7M.
NODES = (0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1, 1)
STAGES = (
    (),
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),  # the fifth-order result
)
FOURTH = (5179 / 57600, 0, 7571 / 16695, 393 / 640, -92097 / 339200, 187 / 2100, 1 / 40)
LONGER = 5  # a step is at most so many times the one before: errors that are small by chance are not believed
FIRST = 0.1  # of the interval: the first step that is tried
SHORTEST = 1e-6  # of the interval; a step that would have to be shorter is no step in float32


def dopri5(
    slope: Slope, y: Tensor, start: float, end: float, rtol: float = 1e-5, atol: float = 1e-5
) -> tuple[Tensor, Int[Tensor, " n"]]:
    """Solve from ``start`` to ``end``, which may lie before it, by Dormand & Prince's pair of orders 5 and 4.

    The difference of the two orders is kept below atol + rtol |y|, as a root mean square over an item's numbers. Every
    item has steps of its own, so that none depends on what else is in the batch.

    Args:
        slope: f(y, t), asked for the whole batch at times (n,), one for each item.
        y: at the start, (n, ...).
        start: of the time.
        end: of the time.
        rtol: relative tolerance.
        atol: absolute tolerance.

    Returns:
        y at the end, and how often each item's slope was needed.

    Raises:
        UserError: the tolerance is never met.
    """

    def wide(t: Tensor) -> Tensor:
        return t.view(-1, *[1] * (y.dim() - 1))

    n = len(y)
    t, h = y.new_full((n,), start), y.new_full((n,), FIRST * (end - start))
    first, calls = slope(y, t), torch.ones(n, dtype=torch.long, device=y.device)
    active = torch.full((n,), start != end, dtype=torch.bool, device=y.device)
    while bool(active.any()):
        last = (end - t).abs() <= h.abs() * 1.001
        h = torch.where(last, end - t, h)
        slopes = [first]
        for node, row in zip(NODES[1:], STAGES[1:], strict=True):
            moved = y + wide(h) * sum_of(row, slopes)
            slopes.append(slope(moved, t + node * h))
        difference = wide(h) * sum_of([a - b for a, b in zip((*STAGES[-1], 0), FOURTH, strict=True)], slopes)
        error = difference / (atol + rtol * torch.maximum(y.abs(), moved.abs()))
        size = error.flatten(1).square().mean(1).sqrt().nan_to_num(nan=1e9, posinf=1e9)
        calls += 6 * active
        good = active & (size <= 1)
        y, first = torch.where(wide(good), moved, y), torch.where(wide(good), slopes[-1], first)
        t = torch.where(good, torch.where(last, end, t + h), t)
        active = active & ~(good & last)
        h = h * (0.9 * size.clamp(min=1e-12) ** -0.2).clamp(0.2, LONGER)
        if bool((active & (h.abs() < SHORTEST * abs(end - start))).any()):
            raise UserError(
                f"rtol={rtol:g}, atol={atol:g}: not met by any step that float32 can take; give larger ones, or "
                "weights that are finite"
            )
    return y, calls


def sum_of(weights: Sequence[float], slopes: list[Tensor]) -> Tensor:
    """Σ weight · slope."""
    return torch.stack([weight * slope for weight, slope in zip(weights, slopes, strict=False) if weight]).sum(0)


def log_density(
    slope: Slope,
    y: Tensor,
    signs: Tensor | None,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    end: float = 1.0,
    scale: float = 1.0,
) -> Float[Tensor, " n"]:
    """log p_0(y) by equation 1, in nats, where p at the end is N(0, scale² I); without a gradient.

    Args:
        slope: f(y, t) with its gradient, asked at times from 0 to ``end``.
        y: (n, ...).
        signs: z of each item, ±1 of the shape of ``y``; ``None`` for the exact divergence.
        rtol: see :func:`dopri5`; of y, and of log p for each of its numbers.
        atol: see there.
        end: of the time, 1 in equation 1.
        scale: of the noise there.

    Raises:
        UserError: see :func:`dopri5`.
    """
    shape, numbers = y.shape, math.prod(y.shape[1:])

    def together(state: Tensor, t: Tensor) -> Tensor:
        with torch.enable_grad():
            place = state[:, :numbers].detach().view(shape).requires_grad_()
            found = slope(place, t)
            if signs is not None:
                (back,) = torch.autograd.grad(found, place, signs)
                divergence = (back * signs).flatten(1).sum(1)
            else:
                rows = [
                    torch.autograd.grad(part.sum(), place, retain_graph=True)[0].flatten(1)[:, k]
                    for k, part in enumerate(found.flatten(1).unbind(1))
                ]
                divergence = torch.stack(rows).sum(0)
        return torch.cat([found.detach().flatten(1), divergence[:, None] / numbers], 1)

    state, _ = dopri5(together, torch.cat([y.flatten(1), y.new_zeros(len(y), 1)], 1), 0.0, end, rtol, atol)
    noise, change = state[:, :numbers] / scale, state[:, numbers] * numbers
    return change - (0.5 * (noise.square() + math.log(2 * math.pi)) + math.log(scale)).sum(1)
