"""Which measures of fidelity and diversity keep their word? ``python tools/sanity_checks.py`` prints a table.

Räisä, van Breugel & van der Schaar 2025, "Position: All Current Generative Fidelity and Diversity Metrics are Flawed"
(ICML), ask metrics what they say of clouds whose relation is known. These are such checks in our own statement, many
with their distributions, of fewer points on each axis: which side is real, how the samples differ, and what a measure
of fidelity (which samples look real) and one of diversity (which real ones are covered) must then be. A value is the
mean over three draws of 1,000 vectors on each side, unless said otherwise; 0 and 1 allow 0.05.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean

import torch
from torch import Generator, Tensor

from imago.evaluation import PRDC

FIDELITY = ("precision", "density", "clipped_density")
DIVERSITY = ("recall", "coverage", "clipped_coverage")
COUNT, DRAWS, NEAR = 1000, 3, 0.05

Clouds = Iterator[tuple[Tensor, Tensor]]  # real ones and samples
Rule = Callable[[Sequence[float]], bool]  # of a measure's values, in the order of the clouds


@dataclass(frozen=True)
class Check:
    """What is compared, and what is asked of the values; ``None`` where nothing is."""

    says: str
    clouds: Callable[[int, Generator], Clouds]
    fidelity: Rule | None
    diversity: Rule | None


def near(target: float) -> Callable[[float], bool]:
    """Whether a value is this one."""
    return lambda value: abs(value - target) <= NEAR


def are(*targets: float) -> Rule:
    """Each value is its target."""
    return lambda values: all(near(target)(value) for value, target in zip(values, targets, strict=True))


def zeros(values: Sequence[float]) -> bool:
    """All are 0."""
    return all(map(near(0), values))


def ones(values: Sequence[float]) -> bool:
    """All are 1."""
    return all(map(near(1), values))


def fifths(values: Sequence[float]) -> bool:
    """All are 0.2."""
    return all(map(near(0.2), values))


def same(values: Sequence[float]) -> bool:
    """They do not change."""
    return max(values) - min(values) <= NEAR


def falls(by: float) -> Rule:
    """From the first value to the last, by so much at least."""
    return lambda values: values[0] - values[-1] >= by


def normal(n: int, d: int, g: Generator, mean: float = 0, deviation: float = 1) -> Tensor:
    """A normal cloud."""
    return mean + deviation * torch.randn(n, d, generator=g)


def shifted(n: int, g: Generator, d: int = 8) -> Clouds:
    """By nothing, by -3, by 3 in every dimension."""
    for mean in (0, -3, 3):
        yield normal(n, d, g), normal(n, d, g, mean)


def real_outlier(n: int, g: Generator, d: int = 8) -> Clouds:
    """Samples lie around the place of a single real vector."""
    outlier = torch.full((1, d), 3.0)
    yield torch.cat([normal(n - 1, d, g), outlier]), normal(n, d, g, 3)


def sampled_outlier(n: int, g: Generator, d: int = 8) -> Clouds:
    """Samples lie on one side of the real cloud, and a single one on the other."""
    yield normal(n, d, g), torch.cat([normal(n - 1, d, g, -3), torch.full((1, d), 3.0)])


def scaled(n: int, g: Generator, d: int = 8) -> Clouds:
    """Narrow samples, and wide ones."""
    for deviation in (0.1, 10):
        yield normal(n, d, g), normal(n, d, g, 0, deviation)


def mixture(n: int, means: Tensor, deviation: float, shares: Tensor, g: Generator) -> Tensor:
    """Normal modes, drawn with these shares."""
    which = torch.multinomial(shares, n, replacement=True, generator=g)
    return means[which] + deviation * torch.randn(n, means.shape[1], generator=g)


def dropped_one_by_one(n: int, g: Generator, d: int = 8) -> Clouds:
    """Of ten modes samples have ten, seven, and four."""
    means = torch.linspace(0, 10, 10)[:, None].expand(-1, d)
    for kept in (10, 7, 4):
        shares = (torch.arange(10) < kept).float()
        yield mixture(n, means, 1 / 3, torch.ones(10), g), mixture(n, means, 1 / 3, shares, g)


def dropped_together(n: int, g: Generator, d: int = 8) -> Clouds:
    """Nine of ten modes become rarer: equally frequent, by a half, by 95 in 100."""
    means = torch.linspace(0, 10, 10)[:, None].expand(-1, d)
    for kept in (1, 0.5, 0.05):
        shares = torch.tensor([1.0] + [kept] * 9)
        yield mixture(n, means, 1 / 3, torch.ones(10), g), mixture(n, means, 1 / 3, shares, g)


def invented(n: int, g: Generator) -> Clouds:
    """Of five real modes samples have five, and then ten, in the plane."""
    angles = torch.arange(10) * (math.tau / 10)
    means = 10 * torch.stack([angles.cos(), angles.sin()], 1)[torch.tensor([0, 2, 4, 6, 8, 1, 3, 5, 7, 9])]
    for modes in (5, 10):
        yield mixture(n, means[:5], 0.25, torch.ones(5), g), mixture(n, means[:modes], 0.25, torch.ones(modes), g)


def spheres(n: int, g: Generator, d: int = 16) -> Clouds:
    """Surfaces of spheres within and around the real one."""
    for radius in (0.1, 1.9):
        yield tuple(r * torch.nn.functional.normalize(normal(n, d, g)) for r in (1, radius))  # type: ignore[misc]


def cubes(n: int, g: Generator) -> Clouds:
    """Cubes that share a fifth of their volume, in 1, 8 and 64 dimensions."""
    for d in (1, 8, 64):
        yield torch.rand(n, d, generator=g), torch.rand(n, d, generator=g) + 1 - 0.2 ** (1 / d)


def one_scale(n: int, g: Generator) -> Clouds:
    """Apart in one of two dimensions; the other is small, equal, large."""
    for scale in (1e-3, 1, 1e3):
        yield tuple(  # type: ignore[misc]
            normal(n, 2, g) * torch.tensor([1, scale]) + torch.tensor([mean, 0]) for mean in (0, 6)
        )


def one_apart(n: int, g: Generator) -> Clouds:
    """Apart in one dimension, among 2, 33 and 257."""
    for more in (1, 32, 256):
        samples = normal(n, more + 1, g)
        samples[:, 0] += 6
        yield normal(n, more + 1, g), samples


def heavy_tails(n: int, g: Generator) -> Clouds:
    """Apart in one of two dimensions, the other has Pareto's distribution of exponent 1.01."""
    yield tuple(  # type: ignore[misc]
        torch.cat([normal(n, 1, g, mean), torch.rand(n, 1, generator=g).double() ** (-1 / 1.01)], 1) for mean in (0, 6)
    )


def linked(n: int, g: Generator) -> Clouds:
    """A ball in the hole of a ring, and the other way round."""
    angle, inner = (math.tau * torch.rand(n, generator=g) for _ in range(2))
    radius = 0.1 * torch.rand(n, generator=g).sqrt()
    along = 1 + radius * inner.cos()
    ring = torch.stack([along * angle.cos(), along * angle.sin(), radius * inner.sin()], 1)
    ball = 0.8 * torch.nn.functional.normalize(normal(n, 3, g)) * torch.rand(n, 1, generator=g) ** (1 / 3)
    yield ball, ring
    yield ring, ball


def rounded(n: int, g: Generator) -> Clouds:
    """Samples rounded to whole numbers, of deviations 1 and 100; then the real ones, of the same."""
    for which in (1, 0):
        for scale in (1, 100):
            sides = [scale * normal(n, 1, g), scale * normal(n, 1, g)]
            sides[which] = sides[which].round()
            yield sides[0], sides[1]


def sizes(n: int, g: Generator, d: int = 8) -> Clouds:
    """Equal distributions, of a quarter of the vectors and of all."""
    for count in (n // 4, n):
        yield normal(count, d, g), normal(count, d, g)


def in_high_dimensions(n: int, g: Generator) -> Clouds:
    """Equal distributions in 1, 8, 64 and 512 dimensions."""
    for d in (1, 8, 64, 512):
        yield normal(n, d, g), normal(n, d, g)


CHECKS = {
    "equal": Check("equal distributions in 1, 8, 64, 512 dimensions: 1", in_high_dimensions, ones, ones),
    "size": Check("equal distributions, 250 and 1,000 vectors: no change", sizes, same, same),
    "mean": Check("means equal, and apart to either side: 1, 0, 0", shifted, are(1, 0, 0), are(1, 0, 0)),
    "real outlier": Check("all samples where one real vector lies: 0", real_outlier, zeros, zeros),
    "sampled outlier": Check("means apart, one sample at the other end: 0", sampled_outlier, zeros, zeros),
    "deviation": Check(
        "narrow and wide samples: fidelity 1, 0; diversity 0 of the narrow", scaled, are(1, 0), lambda v: near(0)(v[0])
    ),
    "modes one by one": Check(
        "10, 7, 4 of ten modes: fidelity stays, diversity falls by 0.2", dropped_one_by_one, same, falls(0.2)
    ),
    "modes together": Check(
        "nine of ten modes rarer and rarer: fidelity stays, diversity falls by 0.1", dropped_together, same, falls(0.1)
    ),
    "invention": Check(
        "five and ten modes, of five: fidelity falls by 0.2; diversity 1 of both", invented, falls(0.2), ones
    ),
    "spheres": Check("spheres of a tenth and of nearly twice the radius: 0", spheres, zeros, zeros),
    "cubes": Check("a fifth of the volume is shared, in 1, 8, 64 dimensions: 0.2", cubes, fifths, fifths),
    "one scale": Check("apart in one dimension, the other small, equal, large: 0", one_scale, zeros, zeros),
    "one of many": Check("apart in one dimension of 2, 33, 257: 0", one_apart, zeros, zeros),
    "heavy tails": Check("apart in one dimension, the other heavy-tailed: 0", heavy_tails, zeros, zeros),
    "linked": Check("a ball in the hole of a ring, and a ring around a ball: 0", linked, zeros, zeros),
    "rounded": Check(
        "rounded samples, twice, rounded real ones, twice: fidelity 1, 1, 0, 0; diversity 0, 0 of the first",
        rounded,
        are(1, 1, 0, 0),
        lambda v: zeros(v[:2]),
    ),
}  # fmt: skip


def values(check: Check, count: int = COUNT, draws: int = DRAWS) -> dict[str, list[float]]:
    """What every measure says of the clouds of a check, as means over draws."""
    found: list[list[dict[str, Tensor]]] = []
    for seed in range(draws):
        found.append([])
        for real, samples in check.clouds(count, torch.Generator().manual_seed(seed)):
            metric = PRDC()
            metric.update(real, real=True)
            metric.update(samples, real=False)
            found[-1].append(metric.compute())
    return {
        name: [fmean(float(draw[name]) for draw in same_clouds) for same_clouds in zip(*found, strict=True)]
        for name in (*FIDELITY, *DIVERSITY)
    }


def verdicts(check: Check, said: dict[str, list[float]]) -> dict[str, bool | None]:
    """Whether each measure passes; ``None`` where nothing is asked of it."""
    rules = {FIDELITY: check.fidelity, DIVERSITY: check.diversity}
    return {name: rule(said[name]) if rule else None for names, rule in rules.items() for name in names}


def main() -> None:
    """Print the table, a check after the other."""
    names = (*FIDELITY, *DIVERSITY)
    print("| check | " + " | ".join(f"`{name}`" for name in names) + " |")
    print("|---" * (len(names) + 1) + "|", flush=True)
    passed = dict.fromkeys(names, 0)
    for check in CHECKS.values():
        said = values(check)
        marks = verdicts(check, said)
        cells = [f"{'✓' if marks[name] else '✗'} {' '.join(f'{value:.2f}' for value in said[name])}" for name in names]
        print(f"| {check.says} | " + " | ".join(cells) + " |", flush=True)
        passed = {name: passed[name] + bool(marks[name]) for name in names}
    print(f"| **passed, of {len(CHECKS)}** | " + " | ".join(f"**{passed[name]}**" for name in names) + " |")


if __name__ == "__main__":
    main()
