"""What generative stochastic networks promise, held against sums over all states of tiny ones."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from imago.distributions import Categorical
from imago.errors import UserError
from imago.images import Batch, ImageSpec, quantize
from imago.models.gsn import GSN
from imago.rng import BatchGenerator, PerImageGenerator

LEVELS = 6
P = torch.tensor([0.3, 0.02, 0.2, 0.28, 0.05, 0.15])  # of the one value of an image
CORRUPTION = 0.4


class Table(nn.Module):
    """Log-probabilities of the levels for each level that comes in."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.table = nn.Parameter(table)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.table[quantize(x.view(-1, 1, 1, 1), LEVELS).flatten().long()].view(-1, 1, 1, 1, LEVELS)


def chain(table: Tensor, **settings: Any) -> GSN:
    spec = ImageSpec(1, 1, 1, levels=LEVELS)
    return GSN(spec, network=lambda **_: Table(table), distribution=Categorical, corruption=CORRUPTION, **settings)


def corruptions() -> Tensor:
    """C(x̃|x), rows are x: salt and pepper."""
    matrix = (1 - CORRUPTION) * torch.eye(LEVELS)
    matrix[:, [0, -1]] += CORRUPTION / 2
    return matrix


def posterior() -> Tensor:
    """P(x|x̃), rows are x̃."""
    joint = P * corruptions().T
    return joint / joint.sum(1, keepdim=True)


def stationary(matrix: Tensor) -> Tensor:
    return torch.linalg.matrix_power(matrix.double(), 1000)[0].float()


def frequencies(images: Tensor) -> Tensor:
    return torch.bincount(images.flatten().long(), minlength=LEVELS) / len(images)


def test_with_the_true_posterior_samples_have_the_probabilities_of_the_data() -> None:
    model = chain(posterior().clamp(min=1e-20).log(), steps=40)
    found = frequencies(model.sample(40_000, generator=PerImageGenerator(0)))
    assert ((found - P).abs() < 4.5 * (P * (1 - P) / 40_000).sqrt()).all()
    early = chain(posterior().clamp(min=1e-20).log(), steps=1)
    assert (frequencies(early.sample(4_000)) - P).abs().max() > 0.1, "the start is elsewhere"


def test_the_loss_is_of_the_first_image_at_every_step_of_the_chain() -> None:
    """Its expectation as a sum over all states: x̃_t of each t, and always the x_0 where the chain began."""
    torch.manual_seed(0)
    reconstruction = torch.randn(LEVELS, LEVELS).softmax(1)
    n, corrupted, expected = 200_000, corruptions(), []
    for _ in range(3):
        expected.append(float(-(P[:, None] * corrupted * reconstruction.log().T).sum() / math.log(2)))
        corrupted = corrupted @ reconstruction @ corruptions()
    images = torch.multinomial(P, n, replacement=True).byte().view(n, 1, 1, 1)
    (loss,) = chain(reconstruction.log(), walkback=3).losses(Batch(images))
    assert loss.logs["loss/first"].item() == pytest.approx(expected[0], abs=0.02)
    assert loss.logs["loss/last"].item() == pytest.approx(expected[2], abs=0.02)
    assert loss.value.item() == pytest.approx(sum(expected) / 3, abs=0.02)
    assert max(expected) - min(expected) > 0.1


@pytest.mark.parametrize("walkback", [1, 3])
def test_a_chain_that_has_learned_has_the_datas_distribution(walkback: int) -> None:
    """Exactly, by the matrix of its step: P_θ differs with the walkback, what it leads to does not."""
    torch.manual_seed(0)
    model = chain(torch.zeros(LEVELS, LEVELS), walkback=walkback)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    for update in range(400):
        for group in optimizer.param_groups:
            group["lr"] = 0.05 * (1 - update / 400)
        images = torch.multinomial(P, 2000, replacement=True).byte().view(-1, 1, 1, 1)
        (loss,) = model.losses(Batch(images))
        optimizer.zero_grad()
        loss.value.backward()
        optimizer.step()
    learned = model.net.table.detach().softmax(1)
    total_variation = 0.5 * float((stationary(corruptions() @ learned) - P).abs().sum())
    assert total_variation < 0.02
    moved = 0.5 * (learned - posterior()).abs().sum(1).max()
    assert moved < 0.1 if walkback == 1 else moved > 0.2


def test_points_walk_to_a_normal_distribution() -> None:
    """Of N(0, 1) with noise of deviation s the posterior is N(x̃ / (1 + s²), s² / (1 + s²))."""
    s, n = 0.8, 40_000
    scale = s / math.sqrt(1 + s**2)

    class Posterior(nn.Module):
        def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
            mean = x / (1 + s**2)
            return torch.stack([mean, torch.full_like(mean, math.log(scale))], -1).view(-1, 1, 1, 1, 2)

    model = GSN(ImageSpec(1, 1, 1, levels=0), network=lambda **_: Posterior(), corruption=s, steps=15)
    x = model.sample(n).flatten()
    assert float(x.mean()) == pytest.approx(0, abs=4 / math.sqrt(n))
    assert float(x.square().mean()) == pytest.approx(1, abs=4 * math.sqrt(2 / n))
    drawn = model.corrupt(torch.ones(n, 1, 1, 1), s, BatchGenerator())
    assert float(drawn.std()) == pytest.approx(s, abs=4 * s / math.sqrt(2 * n))


def test_a_corruption_of_pixels_is_a_probability() -> None:
    with pytest.raises(UserError, match=r"model\.corruption=1\.5: is a probability of pixels; give one up to 1"):
        GSN(ImageSpec(1, 2, 2), corruption=1.5)
    GSN(ImageSpec(2, 1, 1, levels=0), corruption=1.5)
