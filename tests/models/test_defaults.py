"""What conf/model says fits every data set, and is what a model made in Python without settings is."""

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import nn

from helpers import configuration
from imago.config import build
from imago.images import ImageSpec
from imago.models.autoencoder import Autoencoder
from imago.models.autoregressive import Autoregressive
from imago.models.base import GenerativeModel
from imago.models.diffusion import Diffusion
from imago.models.ebm import EBM
from imago.models.flow_matching import FlowMatching
from imago.models.fvbn import FVBN
from imago.models.gan import GAN
from imago.models.gated_pixelcnn import GatedPixelCNN
from imago.models.glow import Glow
from imago.models.gsn import GSN
from imago.models.hvae import HierarchicalVAE
from imago.models.made import MADE
from imago.models.maf import MAF
from imago.models.masked_diffusion import MaskedDiffusion
from imago.models.ncsn import NCSN
from imago.models.pixelcnn import PixelCNN
from imago.models.pixelrnn import PixelRNN
from imago.models.rbm import RBM
from imago.models.realnvp import RealNVP
from imago.models.vae import VAE
from imago.training.run import build_model
from models.test_laws import MODELS, learnable

CLASSES: dict[str, type[GenerativeModel]] = {
    "autoencoder": Autoencoder,
    "ddpm": Diffusion,
    "diagonal_bilstm": PixelRNN,
    "ebm": EBM,
    "flow_matching": FlowMatching,
    "fvbn": FVBN,
    "gan": GAN,
    "gated_pixelcnn": GatedPixelCNN,
    "glow": Glow,
    "gsn": GSN,
    "hvae": HierarchicalVAE,
    "made": MADE,
    "maf": MAF,
    "masked_diffusion": MaskedDiffusion,
    "ncsn": NCSN,
    "pixelcnn": PixelCNN,
    "rbm": RBM,
    "realnvp": RealNVP,
    "vae": VAE,
}
SPEC = ImageSpec(1, 8, 8)


def told(value: Any) -> Any:
    """Settings of an object at any depth, as plain values."""
    if isinstance(value, bool | int | float | str | None):
        return value
    if isinstance(value, list | tuple):
        return [told(item) for item in value]
    if isinstance(value, dict):
        return {name: told(item) for name, item in value.items()}
    if isinstance(value, torch.Tensor):
        return tuple(value.shape)
    if type(value).__module__.startswith("imago.") and not isinstance(value, nn.Module):
        return [type(value).__name__, {name: told(item) for name, item in vars(value).items()}]
    return None


def settings_of(model: GenerativeModel) -> dict[str, Any]:
    own = {
        name: told(value)
        for name, value in vars(model).items()
        if not name.startswith(("config", "_optimizer", "_parameters"))
    }
    rates = [
        {name: v for name, v in o.param_groups[0].items() if name != "params"} for o in model.configure_optimizers()
    ]
    return own | {"modules": str(model), "optimizers": rates}


@pytest.mark.parametrize("name", CLASSES)
def test_defaults_are_those_of_the_configuration(name: str) -> None:
    spec = learnable(name, SPEC)
    configured = build_model(configuration(f"model={name}"), spec)
    made = CLASSES[name](spec)
    assert type(configured) is type(made)
    assert settings_of(made) == settings_of(configured)
    shapes = [{key: tensor.shape for key, tensor in model.state_dict().items()} for model in (made, configured)]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("name", MODELS)
def test_the_configuration_of_every_model_builds_for_every_data_set(name: str) -> None:
    node = configuration(f"model={name}")["model"]
    for spec in (
        ImageSpec(1, 8, 8, 256, 10),
        ImageSpec(1, 28, 28, 2, 10),
        ImageSpec(3, 32, 32, 256, 1000),
        ImageSpec(1, 4, 4, 2),
    ):
        model = build(deepcopy(node), "model", spec=learnable(name, spec))
        if spec.height < (28 if isinstance(model, Autoregressive) else 32):  # pixel after pixel: of any shape
            assert model.sample(1).shape == (1, *spec.shape)
