"""Every model compiled, and in bfloat16, learns as it does plainly in float32."""

import os
import shutil
import subprocess
import sys
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers import TINY, configuration
from imago.images import Batch, ImageSpec
from imago.legacy import today
from imago.models.base import GenerativeModel, knows_likelihood
from imago.training.run import build_model

ROOT = Path(__file__).parents[2]
QUICK = ("made", "conv_vae", "gan", "ddpm")  # of the chain rule, of a bound, of two networks, of steps
BINARY = ("rbm",)  # models of binary pixels alone
BATCH = Batch(torch.randint(0, 256, (4, 1, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)))


composed = cache(configuration)


def make(name: str) -> GenerativeModel:
    torch.manual_seed(0)
    configured = deepcopy(composed(f"model={name}", *TINY[name], "data=digits"))
    return build_model(configured, ImageSpec(1, 4, 4, 2 if name in BINARY else 256))


def batch_of(model: GenerativeModel) -> Batch:
    return BATCH if model.spec.levels == 256 else Batch(BATCH.images // 128)


def step(model: GenerativeModel, **autocast: Any) -> tuple[list[Tensor], list[Tensor]]:
    """The losses of a batch, and the gradients that they leave, network after network."""
    torch.manual_seed(1)
    losses, gradients = [], []
    with torch.autocast("cpu", dtype=torch.bfloat16, **autocast):
        for loss in model.losses(batch_of(model)):
            model.zero_grad()
            loss.value.backward()
            losses.append(loss.value.detach())
            gradients += [p.grad.clone() for p in model.networks[loss.network].parameters() if p.grad is not None]
    return losses, gradients


def compiled_steps(backend: str, names: list[str]) -> dict[str, Any]:
    """Of each model what a plain step and a compiled one give, and the names of both models' weights."""
    found = {}
    for name in names:
        plain, compiled = make(name), make(name)
        compiled.compile_networks(backend)
        assert any(module._compiled_call_impl is not None for module in compiled.modules())
        keys = [list(model.state_dict()) for model in (plain, compiled)]
        found[name] = (*(step(model, enabled=False) for model in (plain, compiled)), *keys)
    return found


def of_another_process(backend: str, names: list[str], file: Path) -> dict[str, Any]:
    """The same, where imago's types are not checked: a compiler calls with tensors of its own."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(str(ROOT / folder) for folder in ("src", "tests"))}
    command = [sys.executable, __file__, backend, str(file), *names]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return torch.load(file)


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> dict[str, Any]:
    """The models that are asked for, translated into torch's own operations."""
    asked = [item for item in request.session.items if "traced" in getattr(item, "fixturenames", ())]
    names = [item.callspec.params["name"] for item in asked]  # type: ignore[attr-defined]
    return of_another_process("eager", names, tmp_path_factory.mktemp("compiled") / "steps.pt")


def assert_same(steps: Any) -> None:
    plain, compiled, names, compiled_names = steps
    assert names == compiled_names
    for one, two in zip(plain, compiled, strict=True):
        for a, b in zip(one, two, strict=True):
            torch.testing.assert_close(b, a, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in TINY]
)
def test_a_compiled_model_is_the_same_model(name: str, traced: dict[str, Any]) -> None:
    """In place: the same names of weights, the same losses and gradients."""
    assert_same(traced[name])


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")
def test_inductor_compiles(tmp_path: Path) -> None:
    found = of_another_process("inductor", ["ddpm", "dcgan", "row_lstm"], tmp_path / "steps.pt")
    for steps in found.values():
        assert_same(steps)


def test_what_an_earlier_version_compiled_is_read() -> None:
    """There it was a setting of diffusion models, and part of the model."""
    config = {**configuration("model=ddpm", *TINY["ddpm"], "data=digits")["model"], "compile": True}
    model = build_model({"model": today(config), "conditional": False}, ImageSpec(1, 8, 8, 256))
    assert "compile" not in (model.config or {})


@pytest.mark.parametrize("name", TINY)
def test_losses_and_likelihoods_stay_in_float32(name: str) -> None:
    """Where networks compute in bfloat16: 8 bits of the numbers that they give, and no fewer of their sums."""
    model = make(name)
    (exact, _), (rough, gradients) = step(model, enabled=False), step(make(name))
    for a, b in zip(exact, rough, strict=True):
        assert b.dtype == torch.float32
        torch.testing.assert_close(b, a, rtol=2e-2, atol=2e-2)
    assert all(gradient.isfinite().all() and gradient.dtype == torch.float32 for gradient in gradients)
    if knows_likelihood(model):
        exact_nats = model.log_likelihood(batch_of(model).images)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            nats = model.log_likelihood(batch_of(model).images)
        assert nats.dtype == torch.float32
        torch.testing.assert_close(nats, exact_nats, rtol=2e-2, atol=0)


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.save(compiled_steps(sys.argv[1], sys.argv[3:]), sys.argv[2])
