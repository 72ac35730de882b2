"""Checkpoints: written atomically, read as plain tensors, complete enough to rebuild the model and to continue a run.

Beside Lightning's entries (weights, optimiser states, callback states) a checkpoint holds ``config`` (the resolved
configuration), ``spec`` (the shape of the images), ``progress`` (the model's counters) and ``random`` (the state of
every random generator). Lightning's loop counters are left out: the position in the data is ``progress.batches_seen``.
"""

import hashlib
import json
import os
import random
import warnings
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from imago.capacity import MOST_PARTS, bounded
from imago.config import CONF, arguments_of, build, check_node, check_settings, target
from imago.errors import UserError
from imago.files import keep_as, replacing
from imago.images import ImageSpec
from imago.legacy import today
from imago.models.base import GenerativeModel
from imago.paths import checkpoint_file
from imago.pretrained import SETTINGS, WEIGHTS
from imago.untrusted import (
    LARGEST,
    check_plain,
    entries,
    first_line,
    limited_memory,
    opened,
    read_archive,
    read_json,
    shortened,
)

# What a damaged file leads torch to raise.
DAMAGED = (
    *(RuntimeError, OSError, EOFError, ValueError, LookupError, TypeError, AttributeError, AssertionError),
    MemoryError,
)
# Of a checkpoint what an exported model keeps beside its weights.
EXPORTED = ("config", "spec", "data", "progress", "seconds", "cpu_seconds", "averaged")
# Values of an image: a colour picture of 4,729 pixels squared.
LARGEST_IMAGE = 2**26
MOST_CLASSES = 100_000


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target and renames, so that a checkpoint is whole or absent; loads plain tensors only."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write ``checkpoint`` to ``path``; an older file there stays until the new one is complete.

        ``storage_options={"previous": ...}`` names where that older one is kept.
        """
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            torch.save(checkpoint, file)
            if storage_options:
                file.flush()
                os.fsync(file.fileno())  # so that nothing but a change of names is left to do
                keep_as(path, storage_options["previous"])

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = True) -> dict[str, Any]:
        """See :func:`read`."""
        return read(path)


def read(path: str | Path) -> dict[str, Any]:
    """The dictionary in a checkpoint file, on the CPU: what is in it is plain data and dense tensors, of a sane size.

    Its ``file`` is the path.

    Raises:
        UserError: no such file, or not one of our checkpoints.
    """
    path = checkpoint_file(path)
    try:
        checkpoint = exported(path) if path.name == WEIGHTS else unpacked(path)
    except UnpicklingError:
        raise UserError(
            f"checkpoint={path}: no checkpoint of this program: it holds objects beside numbers and text, which are "
            "not loaded, because loading one can run code; give a run directory or a .ckpt file that train.py wrote"
        ) from None
    except DAMAGED as error:
        reason = shortened(" ".join(str(error).split()) or type(error).__name__, 200)
        raise UserError(f"checkpoint={path}: cannot be read ({reason}); use another one") from None
    if not isinstance(checkpoint, dict) or not {"config", "spec", "progress", "state_dict"} <= checkpoint.keys():
        raise UserError(
            f"checkpoint={path}: no checkpoint of this program: it lacks configuration or weights; give a run "
            "directory or a .ckpt file that train.py wrote"
        )
    weights = ("state_dict", "optimizer_states")
    try:
        _check_size(checkpoint)
        checkpoint = {name: part if name in weights else today(part) for name, part in checkpoint.items()}
        _check_content(checkpoint)
    except UserError as error:
        raise UserError(f"checkpoint={path}: not as train.py writes it: {error}") from None
    return checkpoint | {"file": str(path)}


def unpacked(path: Path) -> Any:
    """What torch packed into a file, of plain types and tensors alone; not more than the file holds.

    Raises:
        Exception: one of ``DAMAGED``, or an ``UnpicklingError`` for objects of other types.
    """
    with opened(path) as file:
        read_archive(file)  # torch unpacks whatever a few bytes claim to be
        file.seek(0)
        with limited_memory(4 * os.fstat(file.fileno()).st_size), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of unusual kinds of tensors, which whoever asks refuses
            return torch.load(file, map_location="cpu", weights_only=True)


def exported(path: Path) -> dict[str, Any]:
    """What :mod:`imago.exports` wrote: the weights, and in config.json beside them the plain entries of a checkpoint.

    Raises:
        Exception: one of ``DAMAGED``.
    """
    kept = read_json(path.parent / SETTINGS)
    if not isinstance(kept, dict):
        raise ValueError(f"its {SETTINGS} holds no settings by name")
    kept = {name: kept[name] for name in EXPORTED if name in kept}
    if not kept:
        raise ValueError(f"its {SETTINGS} is of another program, or of an export that was not finished")
    if isinstance(kept.get("progress"), dict):
        kept["progress"]["terms"] = {}
    _check_header(path)
    try:
        return kept | {"state_dict": load_file(path)}
    except SafetensorError as error:
        raise ValueError(str(error)) from None


def _check_header(path: Path) -> None:
    """Refuse a file of weights that names more tensors than a model has: reading them takes minutes.

    Raises:
        ValueError: it does, or it is no such file.
    """
    most = 2 * MOST_PARTS  # parameters and buffers
    with opened(path) as file:
        length = int.from_bytes(file.read(8), "little")
        if length > LARGEST:
            raise ValueError(f"its header claims {length:,} bytes, and the tensors of a model take {LARGEST:,} at most")
        try:
            names = json.loads(file.read(length))
        except RecursionError:
            raise ValueError("its header is nested too deep") from None
    if not isinstance(names, dict):
        raise ValueError("its header names no tensors")
    if len(names) > most:
        raise ValueError(f"it names {len(names):,} tensors, and a model has {most:,} at most")


def _check_size(checkpoint: Mapping[str, Any]) -> None:
    """Refuse more than any checkpoint holds, nested deeper, and tensors that are not there.

    Raises:
        UserError: naming the entry.
    """
    for name in ("config", "spec"):
        check_plain(checkpoint[name], name)
    for place, tensor in entries({name: checkpoint[name] for name in checkpoint if name != "config"}, "", most=2**20):
        if isinstance(tensor, Tensor):
            if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
                raise UserError(f"{place[1:]}: not a dense tensor")
            if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
                raise UserError(f"{place[1:]}: claims to be larger than it is")


def _check_content(checkpoint: Mapping[str, Any]) -> None:
    """Refuse what a model, or whoever continues the run, would stumble over.

    Raises:
        UserError: naming the entry.
    """
    if not isinstance(checkpoint["config"], Mapping):
        raise UserError("config: no settings by name")
    spec_of(checkpoint)
    progress = checkpoint["progress"]
    for name in ("images_seen", "batches_seen", "updates"):
        count = progress.get(name) if isinstance(progress, Mapping) else None
        if type(count) is not int or not 0 <= count < 2**63:
            raise UserError(f"progress.{name}: not a count")
    _check_weights(checkpoint["state_dict"], "state_dict")
    average_of(checkpoint)


def _check_weights(weights: Any, key: str) -> None:
    if not isinstance(weights, Mapping) or not all(isinstance(tensor, Tensor) for tensor in weights.values()):
        raise UserError(f"{key}: not tensors by name")


def spec_of(checkpoint: Mapping[str, Any]) -> ImageSpec:
    """The shape of the images that a checkpoint's model was trained on.

    Raises:
        UserError: there are no such images, or they are larger than any that this program can draw.
    """
    try:
        spec = check_settings(checkpoint["spec"], ImageSpec, key="spec")
    except ValueError as error:
        raise UserError(f"spec: {first_line(error)}; give a checkpoint that train.py wrote") from None
    if spec.dimensions > LARGEST_IMAGE or spec.classes > MOST_CLASSES or sum(spec.class_counts) >= 2**53:
        raise UserError(
            f"spec: images of {spec.dimensions:,} values, {spec.classes:,} classes of {sum(spec.class_counts):,} "
            "images are more than there can be; give a checkpoint that train.py wrote"
        )
    return spec


def load(
    path: str | Path,
    *,
    averaged: bool = True,
    device: torch.device | str = "cpu",
    changes: Mapping[str, Any] | None = None,
    kind: type[GenerativeModel] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> GenerativeModel:
    """The model of a checkpoint, ready to sample.

    Args:
        path: a ``.ckpt`` file, a run directory for its last checkpoint, an exported folder, or the name of a
            pretrained model.
        averaged: use the averaged weights where the run kept them.
        device: of the model.
        changes: of the model's settings, such as ``{"observation_noise": False}``.
        kind: class of a model that was made in Python, and not from a configuration.
        settings: of its constructor.

    Raises:
        UserError: the file is missing or no checkpoint of ours.
    """
    return model_of(read(path), averaged=averaged, changes=changes, kind=kind, settings=settings).to(device)


def model_of(
    checkpoint: dict[str, Any],
    *,
    averaged: bool,
    changes: Mapping[str, Any] | None = None,
    kind: type[GenerativeModel] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> GenerativeModel:
    """The model of a checkpoint's content, in evaluation mode; see :func:`load`.

    Args:
        checkpoint: what :func:`read` gave.
        averaged: use the averaged weights where the run kept them.
        changes: of the model's settings, such as how it samples.
        kind, settings: see :func:`load`.

    Raises:
        UserError: settings that the model does not have, that are not about its use, or that do not fit the weights.
    """
    spec, weights = spec_of(checkpoint), checkpoint["state_dict"]
    held = sum(tensor.numel() for tensor in weights.values())
    told = f"and the checkpoint holds {held:,}; give one that train.py wrote"
    # a few bytes can describe a network of any size
    with bounded("model", 2 * held + 1_000_000, told), limited_memory(16 * held):
        if kind is not None and (settings or not checkpoint["config"].get("model")):
            model = kind(spec, **settings or {})
        else:
            model = _configured(checkpoint["config"].get("model"), changes or {}, spec)
    try:
        model.load_state_dict(weights)
        unknown = model.load_state_dict(average_of(checkpoint), strict=False).unexpected_keys if averaged else []
        if unknown:
            raise RuntimeError(f"no {unknown[0]} to be averaged")
    except RuntimeError as error:
        if changes:
            raise UserError(
                f"model: {changes} makes another network than the checkpoint's; change only how it is used"
            ) from None
        reason = shortened(" ".join(str(error).split()), 300)
        raise UserError(
            f"model: its weights are not of the network that its configuration describes ({reason})"
        ) from None
    _check_numbers(model, checkpoint)
    try:
        model.on_load_checkpoint(checkpoint)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"progress: not as train.py writes it ({type(error).__name__}: {first_line(error)})") from None
    return model.eval()


def _check_numbers(model: GenerativeModel, checkpoint: Mapping[str, Any]) -> None:
    """Refuse weights that loading has rounded from another type of number, as an export has none, or that are none.

    Raises:
        UserError: naming the file and the tensor.
    """
    file, weights = Path(checkpoint.get("file", "weights")), checkpoint["state_dict"]
    for name, tensor in model.state_dict().items():
        given = weights[name].dtype if name in weights else tensor.dtype
        if file.name == WEIGHTS and given != tensor.dtype:
            raise UserError(
                f"checkpoint={file}: {name} is of {given}, and of {tensor.dtype} in the model; give the file as "
                "export.py wrote it"
            )
        if not tensor.isfinite().all():
            raise UserError(
                f"checkpoint={file}: {name} holds numbers that are not finite, as train.py never writes them; use "
                "another one"
            )


def _configured(trained: Any, changes: Mapping[str, Any], spec: ImageSpec) -> GenerativeModel:
    """The model of a configuration's node, with some settings changed."""
    if not isinstance(trained, Mapping):
        raise UserError(
            "model: the checkpoint does not say what model it is of; give one that train.py wrote, or load it by "
            "its class: MODEL.load_from_checkpoint(PATH, SETTINGS)"
        )
    node = changed(trained, changes)
    for name in changes:
        if name not in trained and (CONF / "model" / name).is_dir():
            known, _, any_other = arguments_of(target(trained.get("_target_"), "model"))
            if name not in known and not any_other:
                of = str(trained["_target_"]).rpartition(".")[2]
                raise UserError(f"model/{name}: a {of} has no {name.replace('_', ' ')}; leave it out")
    check_node(node, "model", provided={"spec"})
    kind = target(node["_target_"], "model")
    if not isinstance(kind, type) or not issubclass(kind, GenerativeModel):
        raise UserError(f"model._target_={node['_target_']}: is no model; give a checkpoint that train.py wrote")
    free = kind.inference_settings
    for name in changes:
        if name not in free and node[name] != trained.get(name):
            raise UserError(
                f"model.{name}: belongs to how the model was trained, and stays; what can be changed is "
                + (", ".join(f"model.{key}" for key in free) or f"nothing of a {kind.__name__}")
            )
    model: GenerativeModel = build(node, "model", spec=spec)
    model.config = node
    return model


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
    """The averaged weights that a checkpoint holds; empty where the run kept none.

    Raises:
        UserError: they are something else.
    """
    found: Any = checkpoint
    for name in ("callbacks", "EMA", "weights"):
        found = found.get(name, {}) if isinstance(found, Mapping) else {}
    _check_weights(found, "averaged weights")
    return dict(found)


def uses_average(checkpoint: Mapping[str, Any], averaged: bool) -> bool:
    """Whether :func:`model_of` gives averaged weights: asked for and there, or of an export that holds no others."""
    return checkpoint.get("averaged") is True or (averaged and bool(average_of(checkpoint)))


def fingerprint(model: GenerativeModel) -> str:
    """Of all weights and buffers of a model on the CPU: equal where they are, and only there."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


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
