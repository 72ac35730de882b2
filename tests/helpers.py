"""What several tests use: configurations composed as the command line would, and small runs."""

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir

CONF = Path(__file__).parents[1] / "conf"
PLUGINS = Path(__file__).parent / "plugins"  # a user's own package and its configurations
Command = Callable[..., tuple[int, str, str]]  # gives exit code, standard output and standard error


def configuration(*overrides: str) -> dict[str, Any]:
    """train.yaml with overrides, resolved to plain types; the plugins' models are at hand.

    Measurements and rows are at even intervals, whatever they cost, so that what a test expects depends on no clock.
    """
    from imago.config import plain  # after conftest has seen to it that imago's shapes and types are checked

    even = ["every.halvings=0", "measuring_share=null"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("train", [f"hydra.searchpath=[file://{PLUGINS / 'conf'}]", *even, *overrides])
    return plain(config)


def small(tmp_path: Path, *overrides: str) -> dict[str, Any]:
    """A run of seconds on 4x4 images, in a folder of its own, without a dashboard."""
    return configuration(
        "data=digits",
        "logger=csv",
        "metrics=none",
        "trainer=cpu",
        f"logs={tmp_path}",
        "model.latent=8",
        "data.batch_size=16",
        *overrides,
    )


# Every model of conf/model in a size that trains in a second, as overrides.
TINY = {
    "fvbn": [],
    "made": ["model.hidden=[24]"],
    "row_lstm": ["model.features=6", "model.layers=2", "model.first_kernel=3", "model.head=[8]"],
    "diagonal_bilstm": ["model.features=6", "model.layers=2", "model.first_kernel=3", "model.head=[8]"],
    "pixelcnn": ["model.features=8", "model.blocks=1", "model.first_kernel=3", "model.head=[8]"],
    "gated_pixelcnn": ["model.features=6", "model.layers=2", "model.first_kernel=3", "model.head=[8]"],
    "autoencoder": ["model.latent=8", "model.encoder.width=4", "model.decoder.width=4"],
    "vae": ["model.latent=8", "model.encoder.hidden=[16]", "model.decoder.hidden=[16]"],
    "conv_vae": ["model.latent=8", "model.encoder.width=4", "model.decoder.width=4"],
    "hvae": ["model.width=8", "model.widest=8", "model.blocks=[1,1]", "model.zdim=4"],
    "realnvp": ["model.width=8", "model.couplings=2"],
    "glow": ["model.width=8", "model.steps=2"],
    "maf": ["model.hidden=[16]", "model.layers=2"],
    "gan": ["model.latent=8", "model.generator.hidden=[16]", "model.discriminator.hidden=[16,16]"],
    "dcgan": ["model.latent=8", "model.generator.width=4", "model.discriminator.width=4"],
    "ebm": ["model.energy.width=4", "model.steps=4", "model.buffer=64", "model.sampling_steps=4"],
    "rbm": ["data.binarize=threshold", "model.hidden=8"],
    "gsn": ["model.network.hidden=[16]", "model.steps=8"],
    "ncsn": ["model.network.width=8", "model.steps=6"],
    "ddpm": ["model.network.width=8", "model.steps=50"],
    "flow_matching": ["model.network.width=8", "model.sampler.steps=4"],
    "masked_diffusion": ["model.network.width=8", "model.steps=8"],
}

# Every model in a size that learns two images in seconds, with the rate of ``quick`` in test_laws.py.
_RECURRENT = ["model.features=16", "model.layers=1", "model.first_kernel=3", "model.head=[16]"]
LEARNS = TINY | {
    "row_lstm": _RECURRENT,
    "diagonal_bilstm": _RECURRENT,
    "pixelcnn": ["model.features=16", "model.blocks=1", "model.head=[16]"],
    "gated_pixelcnn": ["model.features=16", "model.layers=2", "model.head=[16]"],
    "glow": ["model.width=16", "model.steps=4"],
    "gan": [],
    "dcgan": [],
    "ebm": ["model.energy.width=8", "model.steps=8", "model.buffer=64", "model.sampling_steps=16"],
    "rbm": ["model.hidden=32", "model.optimizer.net.lr=0.05"],
    "ncsn": ["model.network.width=16", "model.steps=20"],
    "ddpm": [*TINY["ddpm"], "model.sampler.steps=10"],
}


def at_once(processes: int, work: Callable[[], bool]) -> list[bool]:
    """What copies of this process return that start the work at the same moment; one that raises returns false."""
    start, go = os.pipe()
    children = []
    for _ in range(processes):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads
            child = os.fork()
        if not child:
            code = 1
            try:
                os.close(go)
                os.read(start, 1)
                code = 0 if work() else 1
            finally:
                os._exit(code)
        children.append(child)
    os.close(start)
    os.close(go)
    return [os.waitpid(child, 0)[1] == 0 for child in children]
