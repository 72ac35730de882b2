"""Trained models as a folder that others can use: the layout of the Hugging Face hub.

``model.safetensors`` holds the weights, ``config.json`` what the model is and was trained on, ``README.md`` the model
card, and ``summary.json`` and ``evaluation.json`` what the run took and what was measured, so that the folder stands
on a board like a run. A folder is read wherever a checkpoint is asked for; ``hf upload`` puts it on the hub.
"""

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml
from safetensors.torch import save

import imago
from imago.checkpoints import EXPORTED, model_of, read
from imago.errors import UserError
from imago.files import replacing
from imago.images import to_bytes
from imago.legacy import today
from imago.measures import Protocol
from imago.models.base import GenerativeModel
from imago.paths import anonymous, check_folder_place, checkpoint_file, folder_of, writing_to
from imago.pictures import picture_of, write_png
from imago.pretrained import CARD, SETTINGS, WEIGHTS
from imago.rng import PerImageGenerator
from imago.runs import IDENTITY
from imago.untrusted import read_json

# Of a run's summary what holds of the model, and not of the machine's state or of a sweep.
_TOLD = (
    *("name", "model", "likelihood", "leaf", "data", "split", "splits", "spec", "seed", "batch_size", "parameters"),
    *("device", "threads", "versions", "command", "choices", "status", "images_seen", "updates", "stopped_by"),
    *("training_seconds", "training_cpu_seconds", "peak_memory_mib", "precision", "device_count"),
)
_SAMPLES = 64


def export(checkpoint_path: str | Path, folder: Path, *, license: str | None = None) -> GenerativeModel:
    """Write a trained model as a folder, file by file; what an earlier export left there is replaced.

    The weights are the averaged ones where the run kept them.

    Args:
        checkpoint_path: see :func:`imago.load`.
        folder: new, empty, or an earlier export.
        license: of the weights, an identifier such as ``mit``; ``None`` says nothing of it.

    Returns:
        the model that was written.

    Raises:
        UserError: no such checkpoint, or nothing can be written there.
    """
    file = checkpoint_file(checkpoint_path)
    check_place(folder)
    checkpoint = read(file)
    model = model_of(checkpoint, averaged=True)
    weights = {name: tensor.detach().clone().contiguous() for name, tensor in model.state_dict().items()}
    kept = {name: checkpoint[name] for name in EXPORTED if name in checkpoint}
    kept["config"] = shareable({name: kept["config"].get(name) for name in IDENTITY if name in kept["config"]})
    kept["progress"] = {name: kept["progress"][name] for name in ("images_seen", "batches_seen", "updates")}
    summary, results = measured_there(folder_of(file), file.name, model.state.images)
    images = {} if model.spec.kind != "pixels" else {f"samples/images-{model.state.images:010}.png": model}
    files = {
        WEIGHTS: save(weights),
        SETTINGS: as_json({"library": "imago", "version": imago.__version__, **kept}),
        "summary.json": as_json(summary),
        "evaluation.json": as_json(results),
        CARD: card(folder.absolute().name, model, summary, results, license, next(iter(images), None)).encode(),
    }
    with writing_to(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            with replacing(folder / name) as target:
                target.write(content)
        for name in images:
            (folder / name).parent.mkdir(exist_ok=True)
            for older in (folder / name).parent.glob("images-*.png"):
                older.unlink()
            drawn = to_bytes(model.sample(_SAMPLES, generator=PerImageGenerator(0)), model.spec.levels)
            write_png(picture_of(drawn, 16, smallest_side=32), folder / name)
    return model


def check_place(folder: Path) -> None:
    """Find out whether a model can be exported to a folder.

    Raises:
        UserError: something else lies there, or nothing can be written.
    """
    check_folder_place(folder)
    if folder.is_dir() and any(folder.iterdir()) and not (folder / WEIGHTS).is_file():
        raise UserError(f"out={folder}: has files in it that are no exported model; choose another folder, or empty it")


def shareable(config: dict[str, Any]) -> dict[str, Any]:
    """The settings without the places of this machine, which whoever reads them has elsewhere."""
    data = {name: value for name, value in config.get("data", {}).items() if name not in ("dir", "on_device")}
    if "path" in data:
        data["path"] = None
    if isinstance(data.get("source"), Mapping):
        own = {name: None for name in ("url", "path") if name in data["source"]}
        data["source"] = {**data["source"], **own}
    return anonymous({**config, "data": data})


def measured_there(folder: Path, checkpoint: str, images_seen: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Of a run what its summary tells of the model, and what evaluate.py measured of this state of it.

    Args:
        folder: of the run; where nothing can be read there, nothing is told.
        checkpoint: name of its file.
        images_seen: by the model.
    """
    summary: dict[str, Any] = {}
    results: list[dict[str, Any]] = []
    with suppress(OSError, ValueError):
        found = today(read_json(folder / "summary.json"))
        summary = {name: found[name] for name in _TOLD if name in found} if isinstance(found, dict) else {}
    with suppress(OSError, ValueError):
        found = today(read_json(folder / "evaluation.json"))
        for result in found if isinstance(found, list) else []:
            if result.get("images_seen") == images_seen and result.get("checkpoint") in (checkpoint, WEIGHTS):
                results.append(
                    {**{key: value for key, value in result.items() if key != "each"}, "checkpoint": WEIGHTS}
                )
    return anonymous(summary), anonymous(results)


def as_json(content: Any) -> bytes:
    """Text of a JSON file."""
    return (json.dumps(content, indent=2) + "\n").encode()


def card(
    name: str,
    model: GenerativeModel,
    summary: Mapping[str, Any],
    results: list[dict[str, Any]],
    license: str | None,
    picture: str | None,
) -> str:
    """The model card: what the model is, its data, the command, what was measured, the licence, how to use it.

    Args:
        name: of the model.
        model: to describe.
        summary, results: see :func:`measured_there`.
        license: of the weights.
        picture: of samples, in the folder.
    """
    kind, data = type(model).__name__, str(summary.get("data", "unknown"))
    likelihoods = [r for r in results if not r.get("model")]
    about = " ".join((type(model).__doc__ or kind).strip().split("\n\n")[0].split())
    scores = [
        {
            "type": result["name"].rpartition("/")[2],
            "name": result["name"],
            "value": round(float(result["value"]), 6),
            "verified": False,
        }
        for result in likelihoods
    ]
    task = {"type": "unconditional-image-generation"}
    head: dict[str, Any] = {
        "library_name": "imago",
        "tags": ["imago", kind.lower()],
        "pipeline_tag": task["type"],
        "datasets": [data],
        **({} if license is None else {"license": license}),
    }
    if scores:
        dataset = {"type": data, "name": data}
        head["model-index"] = [{"name": name, "results": [{"task": task, "dataset": dataset, "metrics": scores}]}]
    count = sum(parameter.numel() for parameter in model.parameters())
    cost = f"{summary['training_cpu_seconds']:,.0f} s of the processor" if "training_cpu_seconds" in summary else ""
    seen, whole = model.state.images, summary.get("images_seen", 0)
    images = f"after {seen:,} of the {whole:,} images of a run" if whole > seen else f"{seen:,} images"
    told = ", ".join(filter(None, [images, cost, summary.get("device")]))
    lines = [
        f"# {name}",
        "",
        f"{kind}: {about}",
        "",
        *([f"![{_SAMPLES} samples]({picture})", ""] if picture else []),
        f"- **Data:** {summary.get('split', data)}; {model.spec}",
        f"- **Parameters:** {count:,}",
        *([f"- **Trained by** `{summary['command']}`"] if summary.get("command") else []),
        f"- **Training:** {told}",
        f"- **Licence of the weights:** {license or 'not stated'}",
        "",
        "## Measured",
        "",
        *(_table(likelihoods) if likelihoods else ["Nothing was measured."]),
        "",
        "## Use",
        "",
        "```python",
        "import imago",
        "",
        f'model = imago.load("{name}")  # a folder, or the name of a pretrained model',
        "images = model.sample(16)",
        "```",
        "",
        f"    imago sample checkpoint={name}",
        f"    imago evaluate checkpoint={name}",
        f"    imago compare runs={name}",
        "",
    ]
    return f"---\n{yaml.safe_dump(head, sort_keys=False)}---\n\n" + "\n".join(lines)


def _table(results: list[dict[str, Any]]) -> list[str]:
    caveats: dict[str, list[str]] = {}
    rows = ["| | value | of | held-out images have |", "|---|---|---|---|"]
    for result in results:
        protocol = Protocol.from_dict(result["protocol"])
        named = result["name"].rpartition("/")[2]
        relation = f"{protocol.relation} " if protocol.likelihood and protocol.relation else ""
        error = "" if protocol.error is None else f" ± {protocol.error:.2g}"
        images = (
            f"{protocol.images:,} images of {protocol.data}" if protocol.images else f"{protocol.samples:,} samples"
        )
        held_out = "" if protocol.held_out_value is None else f"{protocol.held_out_value:.4g}"
        doubt = " †" * protocol.doubtful
        rows.append(f"| {named} | {relation}{result['value']:.4g}{error}{doubt} | {images} | {held_out} |")
        if protocol.doubtful:
            caveats.setdefault(str(protocol.caveat), []).append(named)
    told = [f"† {', '.join(names)}: {caveat}." for caveat, names in caveats.items()]
    return [*rows, "", *told] if told else rows
