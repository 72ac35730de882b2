"""What of a trained model can be changed, and what is refused."""

from typing import Any

import pytest
import torch

from helpers import configuration
from imago.checkpoints import model_of
from imago.config import build
from imago.errors import UserError
from imago.images import ImageSpec

SPEC = ImageSpec(1, 8, 8, levels=256, classes=10)
MODELS = {
    "ddpm": ["model.network.width=8", "model.network.multipliers=[1]"],
    "vae": ["model.encoder.hidden=[8]", "model.decoder.hidden=[8]"],
    "gan": ["model.generator.hidden=[8]", "model.discriminator.hidden=[8]"],
    "fvbn": [],
    "autoencoder": ["model.encoder.width=4", "model.decoder.width=4"],
}


def trained(name: str) -> dict[str, Any]:
    """What a checkpoint of an untrained model holds."""
    config = configuration(f"model={name}", "data=digits", *MODELS[name])
    model = build(config["model"], "model", spec=SPEC)
    checkpoint = {"config": config, "spec": vars(SPEC), "state_dict": model.state_dict()}
    model.on_save_checkpoint(checkpoint)
    return checkpoint


@pytest.mark.parametrize(
    ("name", "changes", "shown", "expected"),
    [
        (
            "ddpm",
            {"sampler": {"_target_": "imago.diffusion.samplers.DPMSolver", "steps": 3}},
            "sampling",
            "DPMSolver, 3 steps, uniform",
        ),
        ("ddpm", {"sampler": {"eta": 0.5}}, "sampling", "DDIM, 50 steps, uniform, eta 0.5"),
        ("ddpm", {"variance": {"_target_": "imago.diffusion.variances.FixedLarge"}}, "nfe", 50),
        ("ddpm", {"steps": 1000}, "nfe", 50),  # as it is
        ("vae", {"observation_noise": False}, "observation_noise", False),
        ("autoencoder", {"fitted": False}, "fitted", False),
    ],
)
def test_use_can_be_changed(name: str, changes: dict[str, Any], shown: str, expected: object) -> None:
    assert getattr(model_of(trained(name), averaged=False, changes=changes), shown) == expected


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        (
            "ddpm",
            {"prediction": {"_target_": "imago.diffusion.predictions.V"}},
            r"model\.prediction: belongs to how .* can be changed is model\.sampler, model\.guidance, model\.variance",
        ),
        (
            "ddpm",
            {"noise_schedule": {"_target_": "imago.diffusion.schedules.Quadratic"}},
            r"model\.noise_schedule: belongs to how",
        ),
        ("ddpm", {"steps": 100}, r"model\.steps: belongs to how"),
        ("ddpm", {"network": {"patch": 2}}, r"model\.network: belongs to how"),
        ("ddpm", {"variance": {"_target_": "imago.diffusion.variances.Learned"}}, r"model\.variance: a learned one"),
        ("vae", {"beta": 2.0}, r"model\.beta: .* is model\.observation_noise$"),
        ("gan", {"latent": 7}, r"model\.latent: .* is nothing of a GAN$"),
        ("fvbn", {"observation_noise": False}, r"observation_noise"),  # no such setting
    ],
)
def test_what_was_trained_stays(name: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        model_of(trained(name), averaged=False, changes=changes)


def test_a_changed_sampler_keeps_the_weights() -> None:
    checkpoint = trained("ddpm")
    model = model_of(checkpoint, averaged=False, changes={"sampler": {"steps": 3}})
    assert model.nfe == 3
    for name, value in model.state_dict().items():
        assert torch.equal(value, checkpoint["state_dict"][name])
