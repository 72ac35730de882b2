"""Samplers on data whose optimal denoiser is known, and against diffusers' schedulers as an independent reference."""

import math
from functools import partial
from itertools import pairwise

import pytest
import torch

from imago.diffusion.predictions import X0, Epsilon, V
from imago.diffusion.samplers import DDIM, Ancestral, Context, DPMSolver, Estimate, Sampler, State
from imago.diffusion.schedules import BetaSchedule, CosineNoise, DiscreteSchedule, Linear
from imago.diffusion.variances import FixedLarge, FixedSmall, Learned, Variance
from imago.errors import UserError

SCALE = 0.3  # of the data, N(0, SCALE²)


def optimal(schedule: DiscreteSchedule, exact_variance: bool = False, stride: int = 1):  # type: ignore[no-untyped-def]
    """E[x_0 | x_t] of normal data; with the variance that makes p(x_s | x_t) exact for s = t − stride / T."""

    def predict(x: torch.Tensor, t: float) -> Estimate:
        alpha, sigma = schedule.at(t)
        total = alpha**2 * SCALE**2 + sigma**2
        image = alpha * SCALE**2 / total * x
        if not exact_variance:
            return Estimate(image)
        s = t - stride / schedule.steps
        if s < 1e-9:
            return Estimate(image, torch.zeros_like(x))
        q = schedule.posterior(s, t)
        exact = math.log(q.variance + q.image**2 * SCALE**2 * sigma**2 / total)
        v = (exact - math.log(q.variance)) / (math.log(q.beta) - math.log(q.variance))
        return Estimate(image, torch.full_like(x, 2 * v - 1))

    return predict


def trajectory(
    sampler: Sampler,
    schedule: DiscreteSchedule,
    x: torch.Tensor,
    variance: Variance | None = None,
    exact: bool = False,
    seed: int = 1,
) -> list[State]:
    generator = torch.Generator().manual_seed(seed)
    draw = partial(torch.randn, x.shape, generator=generator)
    return list(sampler.trajectory(x, Context(schedule, optimal(schedule, exact), draw, variance or FixedSmall())))


def start(n: int = 40_000) -> torch.Tensor:
    return torch.randn(n, 1, 1, 1, generator=torch.Generator().manual_seed(0))


def test_the_chain_with_the_exact_variance_makes_the_data_with_any_number_of_steps() -> None:
    """All that is missing is the variance of the last step, E Var(x_0 | x_1), which is left out."""
    for steps in (20, 100):
        schedule = DiscreteSchedule(Linear(), steps)
        *_, last = trajectory(Ancestral(), schedule, start(), Learned(), exact=True)
        alpha_bar = float(schedule.alpha_bar[1])
        missing = SCALE**2 * (1 - alpha_bar) / (alpha_bar * SCALE**2 + 1 - alpha_bar)
        assert float(last.noisy.std()) == pytest.approx(math.sqrt(SCALE**2 - missing), rel=0.02)


def test_a_learned_variance_means_the_steps_that_are_taken() -> None:
    """With a tenth of the steps it lies between the β and β̃ of long steps: exact for those, the data are made again."""
    schedule, stride = DiscreteSchedule(Linear(), 100), 10
    generator = torch.Generator().manual_seed(1)
    x = start()
    predict = optimal(schedule, exact_variance=True, stride=stride)
    context = Context(schedule, predict, partial(torch.randn, x.shape, generator=generator), Learned())
    *_, last = Ancestral(10).trajectory(x, context)
    alpha_bar = float(schedule.alpha_bar[stride])
    missing = SCALE**2 * (1 - alpha_bar) / (alpha_bar * SCALE**2 + 1 - alpha_bar)
    assert float(last.noisy.std()) == pytest.approx(math.sqrt(SCALE**2 - missing), rel=0.02)


@pytest.mark.parametrize("sampler", [Ancestral(), DDIM(), DDIM(eta=0.5), DPMSolver()], ids=str)
def test_with_many_steps_every_sampler_makes_the_data(sampler: Sampler) -> None:
    *_, last = trajectory(sampler, DiscreteSchedule(Linear(), 1000), start(10_000))
    assert last.t == 0
    assert float(last.noisy.std()) == pytest.approx(SCALE, rel=0.03)
    assert abs(float(last.noisy.mean())) < 0.01


def test_fixed_variances_bracket_the_data() -> None:
    """β̃ makes samples too narrow, β too wide; their distance shrinks with the number of steps."""
    found = {}
    for steps in (20, 200):
        schedule = DiscreteSchedule(Linear(), steps)
        small, large = (
            float(trajectory(Ancestral(), schedule, start(), v)[-1].noisy.std()) for v in (FixedSmall(), FixedLarge())
        )
        assert small < SCALE < large
        found[steps] = large - small
    assert found[200] < 0.3 * found[20]


def test_few_steps_of_second_order_are_better_than_of_first() -> None:
    """The path is known: x_0 = SCALE · x_T / std(x_T). Errors against it, with the same number of network calls."""
    schedule = DiscreteSchedule(CosineNoise(), 1000)
    x = start(1000)
    alpha_bar = float(schedule.alpha_bar[-1])
    exact = SCALE / math.sqrt(alpha_bar * SCALE**2 + 1 - alpha_bar) * x

    def error(sampler: Sampler) -> float:
        return float((trajectory(sampler, schedule, x)[-1].noisy - exact).abs().mean())

    first, second = ([error(kind(steps)) for steps in (10, 20, 40)] for kind in (DDIM, DPMSolver))
    assert first[0] > first[1] > first[2]
    assert second[0] > second[1] > second[2]
    assert all(b < 0.7 * a for a, b in zip(first, second, strict=True))


def test_ddim_with_eta_one_is_the_chain() -> None:
    """The same noise gives the same images, with all steps or some of them."""
    schedule = DiscreteSchedule(Linear(), 60)
    for steps in (None, 12):
        chain, ddim = (
            trajectory(Ancestral(steps), schedule, start(50)),
            trajectory(DDIM(steps, eta=1.0), schedule, start(50)),
        )
        for a, b in zip(chain, ddim, strict=True):
            torch.testing.assert_close(a.noisy, b.noisy, atol=1e-5, rtol=1e-4)


def test_ddim_without_noise_is_invertible() -> None:
    """Walking up again with ε̂ where one stands leads back to x_T, the closer the more steps there are."""
    schedule = DiscreteSchedule(Linear(), 1000)
    x_t = start(200)
    errors = []
    for steps in (50, 100, 200):
        sampler = DDIM(steps)
        x = trajectory(sampler, schedule, x_t)[-2].noisy  # at the last time before 0
        times = sampler.times(1000)[:-1][::-1]
        predict = optimal(schedule)
        for s, t in pairwise(times):
            (alpha_s, sigma_s), (alpha_t, sigma_t) = schedule.at(s), schedule.at(t)
            image = predict(x, s).image
            x = alpha_t * image + sigma_t * (x - alpha_s * image) / sigma_s
        errors.append(float((x - x_t).abs().mean()))
    assert errors[0] > 1.5 * errors[1] > 1.5**2 * errors[2]
    assert errors[2] < 0.05


def test_times_begin_at_the_end_and_end_at_zero() -> None:
    def steps_of(sampler: Sampler, total: int) -> list[float]:
        return [round(t * total, 9) for t in sampler.times(total)]

    assert steps_of(Ancestral(), 5) == [5, 4, 3, 2, 1, 0]
    assert steps_of(DDIM(4), 1000) == [1000, 750, 500, 250, 0]
    assert steps_of(DDIM(4, "quadratic"), 1000) == [1000, 562, 250, 62, 0]
    for total, steps in ((10, 9), (7, 7), (1000, 300)):
        times = DDIM(steps, "quadratic").times(total)
        assert len(set(times)) == len(times) == steps + 1 == DDIM(steps).nfe(total) + 1
        assert times == sorted(times, reverse=True)
        assert (times[0], times[-1]) == (1, 0)
    assert DDIM(4, "quadratic").times(None) == [1, 0.5625, 0.25, 0.0625, 0]
    with pytest.raises(UserError, match=r"model.sampler.steps=11: .* model.steps=10 steps; give at most so many"):
        DDIM(11).times(10)
    with pytest.raises(UserError, match=r"model.sampler.steps=null: in continuous time .* give one"):
        DDIM().times(None)


def test_predictions_are_three_names_of_one_thing() -> None:
    x, noise = start(8), torch.randn(8, 1, 1, 1, generator=torch.Generator().manual_seed(3))
    for alpha, sigma in ((0.6, 0.8), (0.6, 0.4)):  # with α² + σ² = 1, and without
        at = torch.tensor(alpha), torch.tensor(sigma)
        for prediction in (Epsilon(), X0(), V()):
            found = prediction.image(prediction.target(x, noise, *at), alpha * x + sigma * noise, *at)
            torch.testing.assert_close(found, x, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(V().target(x, noise, *at), alpha * noise - sigma * x)


# --- diffusers -------------------------------------------------------------------------------------------------------

BETAS = {"num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}


def noise_prediction(schedule: DiscreteSchedule, x: torch.Tensor, t: int) -> torch.Tensor:
    """ε̂ that goes with the optimal denoiser after t of 1000 steps."""
    alpha, sigma = schedule.at(t / 1000)
    return (x - alpha * optimal(schedule)(x, t / 1000).image) / sigma


@pytest.mark.parametrize(("kind", "variance"), [("fixed_small", FixedSmall()), ("fixed_large", FixedLarge())])
def test_ancestral_steps_are_those_of_diffusers(kind: str, variance: Variance) -> None:
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    reference = DDPMScheduler(**BETAS, variance_type=kind, clip_sample=False)
    schedule = DiscreteSchedule(Linear(), 1000)
    torch.testing.assert_close(schedule.alpha_bar[1:].float(), reference.alphas_cumprod, atol=1e-6, rtol=1e-5)
    # In its own float32 the difference 1 − ᾱ_3 has an error of 1.5e-4: compare the rules, not the rounding.
    reference.alphas_cumprod = schedule.alpha_bar[1:]
    x = start(16)
    noise = torch.randn(16, 1, 1, 1, generator=torch.Generator().manual_seed(7))
    for t in (1000, 700, 20, 3, 2):
        expected = reference.step(
            noise_prediction(schedule, x, t), t - 1, x, generator=torch.Generator().manual_seed(7)
        ).prev_sample
        context = Context(schedule, optimal(schedule), lambda: noise, variance)
        found = Ancestral().step(x, context.predict(x, t / 1000), t / 1000, (t - 1) / 1000, context)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    at = torch.tensor([1, 400, 1000, 20]).repeat(4)
    torch.testing.assert_close(
        schedule.diffuse(x, at / 1000, noise), reference.add_noise(x, noise, at - 1), atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize(("steps", "eta"), [(10, 0.0), (50, 0.0), (20, 0.7), (20, 1.0)])
def test_ddim_is_that_of_diffusers(steps: int, eta: float) -> None:
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    reference = DDIMScheduler(**BETAS, clip_sample=False, set_alpha_to_one=True, timestep_spacing="trailing")
    reference.set_timesteps(steps)
    schedule = DiscreteSchedule(Linear(), 1000)
    x = expected = start(16)
    noises = torch.randn(steps, 16, 1, 1, 1, generator=torch.Generator().manual_seed(1))
    assert [(t + 1) / 1000 for t in reference.timesteps.tolist()] == DDIM(steps).times(1000)[:-1]
    for t, noise in zip(reference.timesteps.tolist(), noises, strict=True):
        predicted = noise_prediction(schedule, expected, t + 1)
        expected = reference.step(predicted, t, expected, eta=eta, variance_noise=noise).prev_sample
    supply = iter(noises)
    context = Context(schedule, optimal(schedule), lambda: next(supply), FixedSmall())
    *_, last = DDIM(steps, eta=eta).trajectory(x, context)
    torch.testing.assert_close(last.noisy, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("noise", [Linear(), CosineNoise()], ids=["linear", "cosine"])
@pytest.mark.parametrize("steps", [5, 10, 20])
def test_dpm_solver_is_that_of_diffusers(steps: int, noise: BetaSchedule) -> None:
    from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler

    schedule = DiscreteSchedule(noise, 1000)
    reference = DPMSolverMultistepScheduler(
        trained_betas=(1 - schedule.alpha_bar[1:] / schedule.alpha_bar[:-1]).numpy(),
        algorithm_type="dpmsolver++",
        solver_order=2,
        timestep_spacing="trailing",
        final_sigmas_type="zero",
    )
    reference.set_timesteps(steps)
    # In its own float32, ᾱ_T of the cosine schedule has few digits: compare the rules, not the rounding.
    kept = schedule.alpha_bar[[*(reference.timesteps + 1).tolist(), 0]]
    reference.sigmas = ((1 - kept) / kept).sqrt()
    x = expected = start(16)
    for t in reference.timesteps:
        predicted = noise_prediction(schedule, expected, int(t) + 1)
        expected = reference.step(predicted, t, expected).prev_sample
    *_, last = trajectory(DPMSolver(steps), schedule, x)
    torch.testing.assert_close(last.noisy, expected, atol=1e-5, rtol=1e-4)
