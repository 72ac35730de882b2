"""What several tests use: configurations composed as the command line would, and small runs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

CONF = Path(__file__).parents[1] / "conf"
Command = Callable[..., tuple[int, str, str]]  # gives exit code, standard output and standard error


def configuration(*overrides: str) -> dict[str, Any]:
    """train.yaml with overrides, resolved to plain types."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("train", list(overrides))
    return OmegaConf.to_container(config, resolve=True)  # type: ignore[return-value]


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
