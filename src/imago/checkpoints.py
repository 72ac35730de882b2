"""Checkpoints: written atomically, read as plain tensors, complete enough to rebuild the model and to continue a run.

Beside Lightning's entries (weights, optimiser states, callback states) a checkpoint holds ``config`` (the resolved
configuration), ``spec`` (the shape of the images), ``progress`` (the model's counters) and ``random`` (the state of
every random generator). Lightning's loop counters are left out: the position in the data is ``progress.batches_seen``.
"""

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from torch import Tensor

from imago.config import build, check_node, target
from imago.errors import UserError
from imago.files import replacing
from imago.images import ImageSpec
from imago.models.base import GenerativeModel
from imago.paths import checkpoint_file


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target and renames, so that a checkpoint is whole or absent; loads plain tensors only."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write ``checkpoint`` to ``path``; an older file there stays until the new one is complete."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            torch.save(checkpoint, file)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = True) -> dict[str, Any]:
        """See :func:`read`."""
        return read(path)


def read(path: str | Path) -> dict[str, Any]:
    """The dictionary in a checkpoint file, on the CPU.

    Raises:
        UserError: no such file, or not one of our checkpoints.
    """
    path = checkpoint_file(path)
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, ValueError, OSError, KeyError) as error:
        raise UserError(f"checkpoint={path}: cannot be read ({str(error).splitlines()[0]}); use another one") from None
    except Exception as error:
        if type(error).__name__ != "UnpicklingError":
            raise
        raise UserError(
            f"checkpoint={path}: no checkpoint of this program: it holds objects beside numbers and text, which are "
            "not loaded, because loading one can run code; give a run directory or a .ckpt file that train.py wrote"
        ) from None
    if not isinstance(checkpoint, dict) or not {"config", "spec", "progress", "state_dict"} <= checkpoint.keys():
        raise UserError(
            f"checkpoint={path}: no checkpoint of this program: it lacks configuration or weights; give a run "
            "directory or a .ckpt file that train.py wrote"
        )
    return checkpoint


def load(
    path: str | Path,
    *,
    averaged: bool = True,
    device: torch.device | str = "cpu",
    changes: Mapping[str, Any] | None = None,
) -> GenerativeModel:
    """The model of a checkpoint, ready to sample.

    Args:
        path: a ``.ckpt`` file, or a run directory for its last checkpoint.
        averaged: use the averaged weights where the run kept them.
        device: where the model shall live.
        changes: of the model's settings, such as ``{"observation_noise": False}``.

    Raises:
        UserError: the file is missing or no checkpoint of ours.
    """
    return model_of(read(path), averaged=averaged, changes=changes).to(device)


def model_of(
    checkpoint: dict[str, Any], *, averaged: bool, changes: Mapping[str, Any] | None = None
) -> GenerativeModel:
    """The model of a checkpoint's content, in evaluation mode; see :func:`load`.

    Args:
        checkpoint: what :func:`read` gave.
        averaged: use the averaged weights where the run kept them.
        changes: of the model's settings, such as how it samples.

    Raises:
        UserError: settings that the model does not have, that are not about its use, or that do not fit the weights.
    """
    trained = checkpoint["config"]["model"]
    node = changed(trained, changes or {})
    check_node(node, "model", provided={"spec"})
    kind = target(node["_target_"], "model")
    usage = kind.usage if isinstance(kind, type) and issubclass(kind, GenerativeModel) else ()
    for name in changes or {}:
        if name not in usage and node[name] != trained.get(name):
            raise UserError(
                f"model.{name}: belongs to how the model was trained, and stays; what can be changed is "
                + (", ".join(f"model.{key}" for key in usage) or f"nothing of a {kind.__name__}")
            )
    model: GenerativeModel = build(node, "model", spec=ImageSpec(**checkpoint["spec"]))
    try:
        model.load_state_dict(checkpoint["state_dict"])
    except RuntimeError:
        if not changes:
            raise
        raise UserError(
            f"model: {changes} makes another network than the checkpoint's; change only how it is used"
        ) from None
    model.on_load_checkpoint(checkpoint)
    if averaged:
        model.load_state_dict(average_of(checkpoint), strict=False)
    return model.eval()


def changed(settings: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with some changed, at any depth; a change with a ``_target_`` replaces the whole node."""
    result = dict(settings)
    for key, value in changes.items():
        old = result.get(key)
        if isinstance(value, Mapping) and isinstance(old, Mapping) and "_target_" not in value:
            value = changed(old, value)
        result[key] = value
    return result


def average_of(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """The averaged weights that a checkpoint holds; empty where the run kept none."""
    weights: dict[str, Tensor] = checkpoint.get("callbacks", {}).get("WeightAveraging", {}).get("weights", {})
    return weights


def random_state() -> dict[str, Any]:
    """The state of Python's, NumPy's and torch's generators as plain types."""
    kind, keys, position, has_gauss, gauss = np.random.get_state()  # noqa: NPY002 - libraries use the global generator
    return {
        "python": random.getstate(),
        "numpy": [kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, gauss],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Restore what :func:`random_state` gave."""
    random.setstate(state["python"])
    kind, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, gauss))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
