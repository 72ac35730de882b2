"""Muon: what a step is, by hand and beside torch's."""

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

import imago
from helpers import configuration
from imago.errors import UserError
from imago.images import ImageSpec
from imago.models.made import MADE
from imago.models.pixelcnn import PixelCNN
from imago.optimizers import ADAM_RMS, Muon, orthogonalized, weights_of
from imago.training.estimate import estimate_run


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


def by_decomposition(matrix: torch.Tensor) -> torch.Tensor:
    """The polynomial, five times, of the singular values over the matrix's norm."""
    left, values, right = torch.linalg.svd(matrix.double(), full_matrices=False)
    values = values / values.norm()
    for _ in range(5):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    return (left * values @ right).to(matrix.dtype)


def test_a_step_is_the_equation() -> None:
    """Two steps of a kernel, the second with momentum, beside another of its shape that has no gradient at first."""
    torch.manual_seed(0)
    kernel, other = nn.Parameter(torch.randn(10, 4, 3, 3)), nn.Parameter(torch.randn(10, 36))
    optimizer, average, lr = Muon([other, kernel], lr=0.1, momentum=0.9), torch.zeros(10, 36), 0.1
    for step in range(2):
        before, gradient = kernel.detach().clone(), torch.randn(10, 4, 3, 3)
        kernel.grad = gradient.clone()
        other.grad = torch.randn(10, 36) if step else None
        optimizer.step()
        average = 0.9 * average + gradient.flatten(1)
        wanted = by_decomposition(gradient.flatten(1) + 0.9 * average) * lr * ADAM_RMS * 36**0.5
        torch.testing.assert_close(before - kernel.detach(), wanted.view_as(kernel), atol=1e-5, rtol=1e-4)


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


def test_which_weights_of_models_are_matrices() -> None:
    """Convolutions but for those of a single output; not the vectors of masked layers."""

    def shapes(model: nn.Module) -> dict[bool, set[int]]:
        groups = Muon(model.parameters()).param_groups
        return {group["matrices"]: {parameter.ndim for parameter in group["params"]} for group in groups}

    spec = ImageSpec(1, 6, 6, levels=2)
    assert shapes(MADE(spec)) == {False: {1}}
    assert shapes(PixelCNN(spec)) == {True: {4}, False: {1, 4}}


@pytest.mark.parametrize(
    ("choice", "adams"),
    [
        (["model=row_lstm"], "layers.0.state"),
        (["model=glow"], "lower"),
        (["model=glow", "conditional=true"], "upper"),
        (["model=realnvp", "conditional=true"], "embed.weight"),
        (["model=gated_pixelcnn", "conditional=true"], "class_bias.weight"),
        (["model=dcgan", "conditional=true", "model.discriminator.spectral_norm=true"], "plane.weight"),
        (["model=ddpm", "conditional=true"], "embed_class.weight"),
    ],
)
def test_what_is_no_weight_of_a_layer_is_adams(choice: list[str], adams: str) -> None:
    """Whatever its shape: recurrent kernels, the factors of a matrix, and a vector of each class."""
    of = ("generator", "discriminator") if choice[0] == "model=dcgan" else ("net",)
    model, _ = imago.compose([*choice, "data=digits", *(f"model/optimizer/{name}=muon" for name in of)])
    names = {parameter: name for name, parameter in model.named_parameters()}
    for optimizer in model.configure_optimizers():
        matrices, others = ([names[p] for p in group["params"]] for group in optimizer.param_groups)
        assert all(name.endswith(("weight", "weight.original")) and adams not in name for name in matrices)
        assert matrices
        assert any(adams in name for name in others) or "dcgan" in choice[0]


def test_a_table_that_is_a_weight_too_is_adams_and_a_parametrised_weight_is_not() -> None:
    tied = nn.ModuleDict({"table": nn.Embedding(10, 16), "head": nn.Linear(16, 10)})
    tied["head"].weight = tied["table"].weight
    assert weights_of(tied) == set()
    layer = nn.Linear(16, 10)
    nn.utils.parametrizations.spectral_norm(layer)
    assert weights_of(layer) == {layer.parametrizations.weight.original}  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "setting",
    ["lr=-1", "lr=abc", "momentum=2", "momentum=-0.5", "eps=-1", "betas=[0.9]", "betas=[0.9,0.9,0.9]", "betas=[0.9,2]"],
)
def test_a_bad_setting_is_named_before_anything_is_made(setting: str, tmp_path: Path) -> None:
    plus = "" if setting.startswith(("lr", "momentum", "betas")) else "+"
    with pytest.raises(UserError, match=rf"model\.optimizer\.net\.{setting.split('=')[0]}"):
        estimate_run(
            configuration(
                "model=pixelcnn", "data=digits", "model/optimizer/net=muon", f"{plus}model.optimizer.net.{setting}",
                f"logs={tmp_path}", "trainer=cpu",
            ),
            "x",
        )  # fmt: skip


def test_what_is_added_later_is_adams() -> None:
    optimizer, added = Muon([nn.Parameter(torch.zeros(8, 8))]), nn.Parameter(torch.zeros(8, 8))
    optimizer.add_param_group({"params": [added]})
    added.grad = torch.eye(8)
    optimizer.step()
    assert set(optimizer.state[added]) == {"step", "exp_avg", "exp_avg_sq"}
    Muon([nn.Parameter(torch.zeros(0, 10)), nn.Parameter(torch.zeros(10, 0))])
