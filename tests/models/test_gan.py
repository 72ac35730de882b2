"""What only the GAN family promises."""

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from helpers import configuration
from imago.checkpoints import read
from imago.errors import UserError
from imago.images import ImageSpec
from imago.models import gan
from imago.nets.dcgan import size_ladder
from imago.rng import BatchGenerator
from imago.training.run import build_model, train
from test_laws import Tensors, fit, images_of, make


def test_value_at_the_optimal_discriminator() -> None:
    """V(D*, G) = −log 4 + 2 JSD(p_data ‖ p_G) (Goodfellow et al. 2014, theorem 1), by gradient descent on our loss."""
    p_data = torch.tensor([0.5, 0.3, 0.2, 0.0])
    p_model = torch.tensor([0.1, 0.2, 0.3, 0.4])
    logits = nn.Parameter(torch.zeros(4))
    optimizer = torch.optim.LBFGS([logits], max_iter=500, tolerance_grad=1e-9, tolerance_change=1e-12)
    objective = gan.NonSaturating()

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        terms = objective.discriminator(logits, logits)
        value = (p_data * terms["real"]).sum() + (p_model * terms["fake"]).sum()
        value.backward()
        return value.detach()

    optimizer.step(loss)
    mean = (p_data + p_model) / 2
    divergence = sum(0.5 * torch.special.xlogy(p, p / mean).nansum() for p in (p_data, p_model))
    assert -loss().item() == pytest.approx(-math.log(4) + 2 * float(divergence), abs=1e-4)
    ratio = p_data / (p_data + p_model)
    assert objective.score(logits).detach() == pytest.approx(ratio, abs=1e-2)


def test_objectives_are_the_papers_formulas() -> None:
    real, fake = torch.tensor([0.3, -1.2]), torch.tensor([1.5, -0.4])
    d = torch.sigmoid
    cases = {
        gan.Minimax(): (-d(real).log() - (1 - d(fake)).log(), (1 - d(fake)).log()),
        gan.NonSaturating(): (-d(real).log() - (1 - d(fake)).log(), -d(fake).log()),
        gan.Hinge(): ((1 - real).clamp(min=0) + (1 + fake).clamp(min=0), -fake),
        gan.LeastSquares(): (0.5 * (real - 1) ** 2 + 0.5 * fake**2, 0.5 * (fake - 1) ** 2),
        gan.Wasserstein(): (fake - real, -fake),
    }
    for objective, (discriminator, generator) in cases.items():
        terms = objective.discriminator(real, fake)
        assert torch.allclose(sum(terms.values()), discriminator), objective
        assert torch.allclose(objective.generator(fake), generator), objective


def test_the_minimax_generator_is_flat_where_samples_are_bad() -> None:
    """The reason for the non-saturating game: at D(G(z)) ≈ 0 the gradients are ≈ 0 and ≈ −1."""
    logit = torch.tensor([-10.0], requires_grad=True)
    (flat,) = torch.autograd.grad(gan.Minimax().generator(logit).sum(), logit)
    (steep,) = torch.autograd.grad(gan.NonSaturating().generator(logit).sum(), logit)
    assert abs(float(flat)) < 1e-4
    assert float(steep) == pytest.approx(-1, abs=1e-4)


def test_penalties_on_a_linear_discriminator() -> None:
    """∇_x (w·x) = w, so R1 is γ/2 ‖w‖² and the gradient penalty λ (‖w‖ − 1)², with known gradients in w."""
    w = torch.tensor([1.0, 2.0, 2.0, 0.0], requires_grad=True)
    real, fake = torch.randn(5, 1, 2, 2), torch.randn(5, 1, 2, 2)

    def discriminator(x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1) @ w

    r1 = gan.R1(gamma=4.0)(discriminator, real, fake, BatchGenerator())
    assert torch.allclose(r1, torch.full((5,), 4.0 / 2 * 9))
    (gradient,) = torch.autograd.grad(r1.mean(), w)
    assert torch.allclose(gradient, 4.0 * w.detach())
    gp = gan.GradientPenalty(weight=10.0)(discriminator, real, fake, BatchGenerator())
    assert torch.allclose(gp, torch.full((5,), 10.0 * (3 - 1) ** 2))


def test_k_discriminator_steps_for_each_generator_step() -> None:
    spec = ImageSpec(1, 8, 8)
    model = make("gan", spec, "model.discriminator_steps=3")
    start = {k: v.clone() for k, v in model.generator.state_dict().items()}
    data = Tensors(images_of(spec, 8), torch.zeros(8, dtype=torch.long), 4)
    fit(model, data, 2)
    assert model.state.updates == 0
    assert all(torch.equal(v, start[k]) for k, v in model.generator.state_dict().items())
    fit(model, data, 7)
    assert (model.state.batches, model.state.updates, model.state.images) == (9, 3, 36)
    assert not torch.equal(start["first.weight"], model.generator.first.weight)


def test_each_step_moves_its_own_player_only() -> None:
    spec = ImageSpec(1, 8, 8)
    model = make("dcgan", spec, "model.discriminator_steps=2")
    d = [p.detach().clone() for p in model.discriminator.parameters()]
    g = [p.detach().clone() for p in model.generator.parameters()]
    fit(model, Tensors(images_of(spec, 8), torch.zeros(8, dtype=torch.long), 4), 1)
    assert all(torch.equal(a, b) for a, b in zip(g, model.generator.parameters(), strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(d, model.discriminator.parameters(), strict=True))


def test_gradient_clipping_bounds_each_players_step() -> None:
    """With plain SGD of rate 1 a step is the clipped gradient itself."""
    spec = ImageSpec(1, 8, 8)
    options = [
        *(f"model/optimizer/{player}=sgd" for player in ("generator", "discriminator")),
        *(f"model.optimizer.{player}.lr=1.0" for player in ("generator", "discriminator")),
        *(f"model.optimizer.{player}.momentum=0.0" for player in ("generator", "discriminator")),
    ]
    for clip, exact in (("model.gradient_clip=0.001", True), ("model.gradient_clip=null", False)):
        model = make("gan", spec, *options, clip)
        before = {n: [p.detach().clone() for p in m.parameters()] for n, m in model.networks.items()}
        fit(model, Tensors(images_of(spec, 8), torch.zeros(8, dtype=torch.long), 8), 1)
        for name, module in model.networks.items():
            step = torch.cat(
                [(p.detach() - b).flatten() for p, b in zip(module.parameters(), before[name], strict=True)]
            ).norm()
            assert (float(step) == pytest.approx(0.001, rel=1e-2)) == exact, name


def test_a_schedule_sets_the_rate_by_images() -> None:
    spec = ImageSpec(1, 8, 8)
    model = make("gan", spec, "model/schedule=linear", "max_images=80")
    fit(model, Tensors(images_of(spec, 8), torch.zeros(8, dtype=torch.long), 8), 6)
    rates = [group["lr"] for o in model._optimizers.values() for group in o.param_groups]
    assert rates == pytest.approx([2e-4 * (80 - 40) / 80] * 2)  # the sixth step is taken after 40 images


@pytest.mark.parametrize(
    "options",
    [
        [
            "model/objective=wasserstein",
            "model/penalty=gradient_penalty",
            "model.discriminator_steps=5",
        ],
        ["model/objective=hinge", "model.discriminator.spectral_norm=true"],
        ["model/objective=least_squares"],
        ["model/objective=minimax"],
        ["model/penalty=r1"],
    ],
)
@pytest.mark.parametrize("name", ["gan", "dcgan"])
def test_every_game_trains(name: str, options: list[str]) -> None:
    spec = ImageSpec(3, 20, 16)
    if any("penalty" in option for option in options) and name == "dcgan":
        with pytest.raises(UserError, match="batch_norm=false"):
            make(name, spec, *options)
        options = [*options, "model.discriminator.batch_norm=false"]
    model = make(name, spec, *options)
    before = [p.detach().clone() for p in model.parameters()]
    fit(model, Tensors(images_of(spec, 8), torch.zeros(8, dtype=torch.long), 8), 5)
    assert model.state.updates == 5 // model.discriminator_steps
    moved = [not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)]
    assert sum(moved) >= len(moved) - 1  # the bias of a Wasserstein critic's last layer has no gradient
    assert all(torch.isfinite(p).all() for p in model.parameters())


@pytest.mark.parametrize("objective", ["minimax", "non_saturating", "hinge", "least_squares", "wasserstein"])
def test_every_game_is_played_for_points_of_any_size(objective: str) -> None:
    """Towards points beyond the range of an image, where no tanh would let G go."""
    spec = ImageSpec(2, 1, 1, levels=0)
    small = ["model.generator.hidden=[16]", "model.discriminator.hidden=[16]", "model.discriminator.dropout=0"]
    fast = ["model.optimizer.generator.lr=0.05", "model.optimizer.discriminator.lr=0.02"]
    model = make("gan", spec, f"model/objective={objective}", "model/penalty=gradient_penalty", *small, *fast)
    points = torch.tensor([3.0, -5.0]).view(1, 2, 1, 1) + 0.1 * images_of(spec, 64)
    fit(model, Tensors(points, torch.zeros(64, dtype=torch.long), 32), 30)
    assert model.sample(200, seed=0).abs().max() > 1
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_spectral_norm_makes_weights_of_norm_one() -> None:
    model = make("gan", ImageSpec(1, 8, 8), "model.discriminator.spectral_norm=true")
    fit(model, Tensors(images_of(model.spec, 8), torch.zeros(8, dtype=torch.long), 8), 60)
    for layer in (m for m in model.discriminator.eval().modules() if isinstance(m, nn.Linear)):
        assert torch.linalg.matrix_norm(layer.weight, 2).item() == pytest.approx(1, abs=0.1)


def test_size_ladder() -> None:
    assert size_ladder(ImageSpec(3, 32, 32), None) == [(4, 4), (8, 8), (16, 16), (32, 32)]
    assert size_ladder(ImageSpec(1, 28, 20), None) == [(7, 5), (14, 10), (28, 20)]
    with pytest.raises(UserError, match=r"depth: 6 .* 8x8 pixels; give at most 3"):
        size_ladder(ImageSpec(1, 8, 8), 6)
    with pytest.raises(UserError, match=r"depth: 6"):
        build_model(configuration("model=dcgan", "model.generator.depth=6"), ImageSpec(1, 8, 8))


def test_optimizers_are_tried_at_once() -> None:
    with pytest.raises(UserError, match="Invalid learning rate: -1"):
        build_model(configuration("model=gan", "model.optimizer.generator.lr=-1"), ImageSpec(1, 8, 8))


def test_folded_batch_norm_is_batch_norm() -> None:
    """In evaluation mode the generator folds batch norms into the convolutions before them; the images are the same."""
    for spec in (ImageSpec(3, 32, 32), ImageSpec(1, 28, 20)):
        model = make("dcgan", spec, "model.generator.width=8")
        net = model.generator
        with torch.no_grad():
            for _ in range(5):
                net(3 * torch.randn(16, 100))  # moves the running statistics
            net.eval()
            z = torch.randn(4, 100)
            h = net.project(z).view(4, *net.sizes[0], -1).permute(0, 3, 1, 2)
            for norm, double, (height, width) in zip(net.norms, net.doublings, net.sizes[1:], strict=True):
                h = double(torch.relu(norm(h)))[..., :height, :width]
            torch.testing.assert_close(net(z), torch.tanh(h), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["gan", "dcgan"])
def test_bf16_mixed_trains_with_losses_in_fp32(name: str, tmp_path: Path) -> None:
    options = ["trainer=cpu", "trainer.precision=bf16-mixed", "logger=csv", "metrics=none", f"logs={tmp_path}"]
    networks = {"gan": ["model.generator.hidden=[8]", "model.discriminator.hidden=[8]"], "dcgan": []}[name]
    config = configuration(f"model={name}", "data=digits", *options, *networks, "max_images=128", "every.log=64")
    run = train(config, name, tmp_path / "run")
    assert run.summary["precision"] == "bf16-mixed"
    assert all(math.isfinite(value) for value in run.summary["train"].values())
    weights = read(run.last)["state_dict"]
    assert all(value.dtype in (torch.float32, torch.int64) for value in weights.values())
