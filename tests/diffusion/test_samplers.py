"""Samplers on data whose optimal denoiser is known, and against diffusers' schedulers as an independent reference."""

import math
from itertools import pairwise

import pytest
import torch

from imago.diffusion.predictions import X0, Epsilon, V
from imago.diffusion.process import Process
from imago.diffusion.samplers import DDIM, Ancestral, Context, DPMSolver, Estimate, Sampler, State
from imago.diffusion.schedules import CosineNoise, Linear, NoiseSchedule
from imago.diffusion.variances import FixedLarge, FixedSmall, Learned, Variance
from imago.errors import UserError

SCALE = 0.3  # of the data, N(0, SCALE²)


def optimal(process: Process, exact_variance: bool = False, stride: int = 1):  # type: ignore[no-untyped-def]
    """E[x_0 | x_t] of normal data; with the variance that makes p(x_s | x_t) exact for s = t − stride."""

    def denoise(x: torch.Tensor, t: int) -> Estimate:
        alpha_bar = float(process.alpha_bar[t])
        total = alpha_bar * SCALE**2 + 1 - alpha_bar
        image = math.sqrt(alpha_bar) * SCALE**2 / total * x
        if not exact_variance:
            return Estimate(image, None)
        if t <= stride:
            return Estimate(image, torch.zeros_like(x))
        q = process.posterior(t - stride, t)
        exact = math.log(q.variance + q.image**2 * SCALE**2 * (1 - alpha_bar) / total)
        v = (exact - math.log(q.variance)) / (math.log(q.beta) - math.log(q.variance))
        return Estimate(image, torch.full_like(x, 2 * v - 1))

    return denoise


def trajectory(
    sampler: Sampler,
    process: Process,
    x: torch.Tensor,
    variance: Variance | None = None,
    exact: bool = False,
    seed: int = 1,
) -> list[State]:
    generator = torch.Generator().manual_seed(seed)
    context = Context(process, lambda: torch.randn(x.shape, generator=generator), variance or FixedSmall())
    return list(sampler.trajectory(optimal(process, exact), x, context))


def start(n: int = 40_000) -> torch.Tensor:
    return torch.randn(n, 1, 1, 1, generator=torch.Generator().manual_seed(0))


def test_the_chain_with_the_exact_variance_makes_the_data_with_any_number_of_steps() -> None:
    """All that is missing is the variance of the last step, E Var(x_0 | x_1), which is left out."""
    for steps in (20, 100):
        process = Process(Linear(), steps)
        *_, last = trajectory(Ancestral(), process, start(), Learned(), exact=True)
        alpha_bar = float(process.alpha_bar[1])
        missing = SCALE**2 * (1 - alpha_bar) / (alpha_bar * SCALE**2 + 1 - alpha_bar)
        assert float(last.noisy.std()) == pytest.approx(math.sqrt(SCALE**2 - missing), rel=0.02)


def test_a_learned_variance_means_the_steps_that_are_taken() -> None:
    """With a tenth of the steps it lies between the β and β̃ of long steps: exact for those, the data are made again."""
    process, stride = Process(Linear(), 100), 10
    generator = torch.Generator().manual_seed(1)
    x = start()
    context = Context(process, lambda: torch.randn(x.shape, generator=generator), Learned())
    *_, last = Ancestral(10).trajectory(optimal(process, exact_variance=True, stride=stride), x, context)
    alpha_bar = float(process.alpha_bar[stride])
    missing = SCALE**2 * (1 - alpha_bar) / (alpha_bar * SCALE**2 + 1 - alpha_bar)
    assert float(last.noisy.std()) == pytest.approx(math.sqrt(SCALE**2 - missing), rel=0.02)


@pytest.mark.parametrize("sampler", [Ancestral(), DDIM(), DDIM(eta=0.5), DPMSolver()], ids=str)
def test_with_many_steps_every_sampler_makes_the_data(sampler: Sampler) -> None:
    *_, last = trajectory(sampler, Process(Linear(), 1000), start(10_000))
    assert last.t == 0
    assert float(last.noisy.std()) == pytest.approx(SCALE, rel=0.03)
    assert abs(float(last.noisy.mean())) < 0.01


def test_fixed_variances_bracket_the_data() -> None:
    """β̃ makes samples too narrow, β too wide; their distance shrinks with the number of steps."""
    found = {}
    for steps in (20, 200):
        process = Process(Linear(), steps)
        small, large = (
            float(trajectory(Ancestral(), process, start(), v)[-1].noisy.std()) for v in (FixedSmall(), FixedLarge())
        )
        assert small < SCALE < large
        found[steps] = large - small
    assert found[200] < 0.3 * found[20]


def test_few_steps_of_second_order_are_better_than_of_first() -> None:
    """The path is known: x_0 = SCALE · x_T / std(x_T). Errors against it, with the same number of network calls."""
    process = Process(CosineNoise(), 1000)
    x = start(1000)
    alpha_bar = float(process.alpha_bar[-1])
    exact = SCALE / math.sqrt(alpha_bar * SCALE**2 + 1 - alpha_bar) * x

    def error(sampler: Sampler) -> float:
        return float((trajectory(sampler, process, x)[-1].noisy - exact).abs().mean())

    first, second = ([error(kind(steps)) for steps in (10, 20, 40)] for kind in (DDIM, DPMSolver))
    assert first[0] > first[1] > first[2]
    assert second[0] > second[1] > second[2]
    assert all(b < 0.7 * a for a, b in zip(first, second, strict=True))


def test_ddim_with_eta_one_is_the_chain() -> None:
    """The same noise gives the same images, with all steps or some of them."""
    process = Process(Linear(), 60)
    for steps in (None, 12):
        chain, ddim = (
            trajectory(Ancestral(steps), process, start(50)),
            trajectory(DDIM(steps, eta=1.0), process, start(50)),
        )
        for a, b in zip(chain, ddim, strict=True):
            torch.testing.assert_close(a.noisy, b.noisy, atol=1e-5, rtol=1e-4)


def test_ddim_without_noise_is_invertible() -> None:
    """Walking up again with ε̂ where one stands leads back to x_T, the closer the more steps there are."""
    process = Process(Linear(), 1000)
    x_t = start(200)
    errors = []
    for steps in (50, 100, 200):
        sampler = DDIM(steps)
        x = trajectory(sampler, process, x_t)[-2].noisy  # at the last time before 0
        times = sampler.times(1000)[:-1][::-1]
        denoise = optimal(process)
        for s, t in pairwise(times):
            a_s, a_t = float(process.alpha_bar[s]), float(process.alpha_bar[t])
            image = denoise(x, s).image
            noise = (x - math.sqrt(a_s) * image) / math.sqrt(1 - a_s)
            x = math.sqrt(a_t) * image + math.sqrt(1 - a_t) * noise
        errors.append(float((x - x_t).abs().mean()))
    assert errors[0] > 1.5 * errors[1] > 1.5**2 * errors[2]
    assert errors[2] < 0.05


def test_times_begin_at_the_end_and_end_at_zero() -> None:
    assert Ancestral().times(5) == [5, 4, 3, 2, 1, 0]
    assert DDIM(4).times(1000) == [1000, 750, 500, 250, 0]
    assert DDIM(4, "quadratic").times(1000) == [1000, 562, 250, 62, 0]
    for total, steps in ((10, 9), (7, 7), (1000, 300)):
        times = DDIM(steps, "quadratic").times(total)
        assert len(set(times)) == len(times) == steps + 1
        assert times == sorted(times, reverse=True)
        assert (times[0], times[-1]) == (total, 0)
    with pytest.raises(UserError, match=r"model.sampler.steps=11: .* model.steps=10 steps; give at most so many"):
        DDIM(11).times(10)


def test_predictions_are_three_names_of_one_thing() -> None:
    x, noise = start(8), torch.randn(8, 1, 1, 1, generator=torch.Generator().manual_seed(3))
    a, s = torch.tensor(0.6), torch.tensor(0.8)
    for prediction in (Epsilon(), X0(), V()):
        found = prediction.image(prediction.target(x, noise, a, s), a * x + s * noise, a, s)
        torch.testing.assert_close(found, x, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(V().target(x, noise, a, s), 0.6 * noise - 0.8 * x)


# --- diffusers -------------------------------------------------------------------------------------------------------

BETAS = {"num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}


def noise_prediction(process: Process, x: torch.Tensor, t: int) -> torch.Tensor:
    """ε̂ that goes with the optimal denoiser."""
    alpha_bar = float(process.alpha_bar[t])
    return (x - math.sqrt(alpha_bar) * optimal(process)(x, t).image) / math.sqrt(1 - alpha_bar)


@pytest.mark.parametrize(("kind", "variance"), [("fixed_small", FixedSmall()), ("fixed_large", FixedLarge())])
def test_ancestral_steps_are_those_of_diffusers(kind: str, variance: Variance) -> None:
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    reference = DDPMScheduler(**BETAS, variance_type=kind, clip_sample=False)
    process = Process(Linear(), 1000)
    torch.testing.assert_close(process.alpha_bar[1:].float(), reference.alphas_cumprod, atol=1e-6, rtol=1e-5)
    # In its own float32 the difference 1 − ᾱ_3 has an error of 1.5e-4: compare the rules, not the rounding.
    reference.alphas_cumprod = process.alpha_bar[1:]
    x = start(16)
    noise = torch.randn(16, 1, 1, 1, generator=torch.Generator().manual_seed(7))
    for t in (1000, 700, 20, 3, 2):
        expected = reference.step(
            noise_prediction(process, x, t), t - 1, x, generator=torch.Generator().manual_seed(7)
        ).prev_sample
        context = Context(process, lambda: noise, variance)
        found = Ancestral().step(x, optimal(process)(x, t), t, t - 1, context)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    at = torch.tensor([1, 400, 1000, 20]).repeat(4)
    torch.testing.assert_close(
        process.diffuse(x, at, noise), reference.add_noise(x, noise, at - 1), atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize(("steps", "eta"), [(10, 0.0), (50, 0.0), (20, 0.7), (20, 1.0)])
def test_ddim_is_that_of_diffusers(steps: int, eta: float) -> None:
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    reference = DDIMScheduler(**BETAS, clip_sample=False, set_alpha_to_one=True, timestep_spacing="trailing")
    reference.set_timesteps(steps)
    process = Process(Linear(), 1000)
    x = expected = start(16)
    noises = torch.randn(steps, 16, 1, 1, 1, generator=torch.Generator().manual_seed(1))
    assert [t + 1 for t in reference.timesteps.tolist()] == DDIM(steps).times(1000)[:-1]
    for t, noise in zip(reference.timesteps.tolist(), noises, strict=True):
        predicted = noise_prediction(process, expected, t + 1)
        expected = reference.step(predicted, t, expected, eta=eta, variance_noise=noise).prev_sample
    supply = iter(noises)
    context = Context(process, lambda: next(supply), FixedSmall())
    *_, last = DDIM(steps, eta=eta).trajectory(optimal(process), x, context)
    torch.testing.assert_close(last.noisy, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("noise", [Linear(), CosineNoise()], ids=["linear", "cosine"])
@pytest.mark.parametrize("steps", [5, 10, 20])
def test_dpm_solver_is_that_of_diffusers(steps: int, noise: NoiseSchedule) -> None:
    from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler

    process = Process(noise, 1000)
    reference = DPMSolverMultistepScheduler(
        trained_betas=(1 - process.alpha_bar[1:] / process.alpha_bar[:-1]).numpy(),
        algorithm_type="dpmsolver++",
        solver_order=2,
        timestep_spacing="trailing",
        final_sigmas_type="zero",
    )
    reference.set_timesteps(steps)
    # In its own float32, ᾱ_T of the cosine schedule has few digits: compare the rules, not the rounding.
    kept = process.alpha_bar[[*(reference.timesteps + 1).tolist(), 0]]
    reference.sigmas = ((1 - kept) / kept).sqrt()
    x = expected = start(16)
    for t in reference.timesteps:
        predicted = noise_prediction(process, expected, int(t) + 1)
        expected = reference.step(predicted, t, expected).prev_sample
    *_, last = trajectory(DPMSolver(steps), process, x)
    torch.testing.assert_close(last.noisy, expected, atol=1e-5, rtol=1e-4)
