"""The solver of ordinary differential equations: its numbers, closed forms, and steps that belong to items."""

import math

import pytest
import torch
from scipy.integrate import RK45, solve_ivp
from torch import Tensor

from imago.diffusion.ode import FOURTH, NODES, STAGES, dopri5
from imago.errors import UserError


def turning(y: Tensor, t: Tensor) -> Tensor:
    """y' = −y cos t and z' = y: y = y_0 exp(sin a − sin t)."""
    first, _ = y.unbind(1)
    return torch.stack([-first * torch.cos(t), first], 1)


def test_the_numbers_are_those_of_the_paper() -> None:
    assert NODES[:6] == pytest.approx(RK45.C.tolist())
    for row, known in zip(STAGES[:6], RK45.A, strict=True):
        assert list(row) == pytest.approx(known[: len(row)].tolist())
    assert list(STAGES[6]) == pytest.approx(RK45.B.tolist())
    assert [a - b for a, b in zip((*STAGES[6], 0), FOURTH, strict=True)] == pytest.approx((-RK45.E).tolist(), abs=1e-12)


@pytest.mark.parametrize(("start", "end"), [(0.0, 3.0), (2.0, -1.0)])
def test_closed_forms_are_met_as_closely_as_asked(start: float, end: float) -> None:
    y = torch.tensor([[1.0, 0.0], [-3.0, 2.0]], dtype=torch.float64)
    exact = y[:, 0] * math.exp(math.sin(start) - math.sin(end))
    errors, calls = [], []
    for tolerance in (1e-3, 1e-6, 1e-9):
        found, asked = dopri5(turning, y, start, end, tolerance, tolerance)
        errors.append(float((found[:, 0] - exact).abs().max()))
        calls.append(int(asked.max()))
    assert all(error < bound for error, bound in zip(errors, (0.1, 1e-4, 1e-7), strict=True))
    assert calls[0] < calls[1] < calls[2]
    known = solve_ivp(lambda t, v: [-v[0] * math.cos(t), v[0]], (start, end), y[1].tolist(), rtol=1e-6, atol=1e-6)
    assert calls[1] < 2 * known.nfev


def test_an_item_has_the_steps_that_it_has_alone() -> None:
    rates = torch.tensor([0.1, 1.0, 30.0], dtype=torch.float64)

    def solved(rates: Tensor) -> tuple[Tensor, Tensor]:
        return dopri5(lambda y, t: -rates[:, None] * y, torch.ones(len(rates), 1, dtype=torch.float64), 0.0, 1.0)

    together, calls = solved(rates)
    for k in range(3):
        alone, asked = solved(rates[k : k + 1])
        torch.testing.assert_close(alone[0], together[k], atol=1e-12, rtol=0)
        assert int(asked) == int(calls[k])
    assert bool((calls.diff() > 0).all())
    torch.testing.assert_close(together[:, 0], (-rates).exp(), atol=1e-4, rtol=0)


def test_a_tolerance_that_is_never_met_is_told() -> None:
    with pytest.raises(UserError, match=r"rtol=1e-05, atol=1e-05: not met by any step"):
        dopri5(lambda y, t: y * math.nan, torch.ones(2, 1), 0.0, 1.0)
