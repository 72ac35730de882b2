"""Trained models as a folder that others can use: the layout of the Hugging Face hub.

``model.safetensors`` holds the weights, ``config.json`` what the model is and was trained on, ``README.md`` the model
card, and ``summary.json`` and ``evaluation.json`` what the run took and what was measured, so that the folder stands
on a board like a run. A folder is read wherever a checkpoint is asked for; ``hf upload`` puts it on the hub.
"""

import json
import math
import shlex
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml
from safetensors.torch import save

import imago
from imago.checkpoints import EXPORTED, model_of, read, uses_average
from imago.errors import UserError
from imago.files import one_at_a_time, remove_litter, replacing
from imago.images import to_bytes
from imago.legacy import today
from imago.measures import Protocol, better
from imago.models.base import GenerativeModel, count_parameters
from imago.paths import anonymous, check_folder_place, checkpoint_file, folder_of, writing_to
from imago.pictures import picture_of, write_png
from imago.pretrained import CARD, SETTINGS, WEIGHTS
from imago.rng import PerImageGenerator
from imago.runs import IDENTITY
from imago.sweeps import command_of
from imago.untrusted import read_json

# Of a run's summary what holds of the model, and not of the machine's state or of a sweep.
_TOLD = (
    *("name", "model", "likelihood", "leaf", "data", "split", "splits", "spec", "seed", "batch_size", "parameters"),
    *("device", "threads", "versions", "command", "choices", "status", "images_seen", "updates", "stopped_by"),
    *("training_seconds", "training_cpu_seconds", "peak_memory_mib", "precision", "device_count"),
)
# Of its configuration what made the weights: a board takes runs for repetitions where all but the seed is the same.
_SETTINGS = (*IDENTITY, "max_images", "max_updates", "max_seconds", "max_cpu_seconds", "max_wall_seconds")
_SAMPLES = 64
OURS = {"library": "imago"}
FILES = (WEIGHTS, SETTINGS, CARD, "summary.json", "evaluation.json")  # beside a picture of samples


def export(checkpoint_path: str | Path, folder: Path, *, license: str | None = None) -> GenerativeModel:
    """Write a trained model as a folder, file by file; what an earlier export left there is replaced.

    The weights are the averaged ones where the run kept them. Until every file is there, config.json says whose folder
    it is and nothing else, so that nothing loads one that holds parts of two models.

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
    averaged = uses_average(checkpoint, averaged=True)
    weights = {name: tensor.detach().clone().contiguous() for name, tensor in model.state_dict().items()}
    kept = {name: checkpoint[name] for name in EXPORTED if name in checkpoint}
    kept["config"] = shareable(kept["config"])
    kept["averaged"] = averaged
    kept["progress"] = {name: kept["progress"][name] for name in ("images_seen", "batches_seen", "updates")}
    summary, results = measured_there(folder_of(file), file.name, model.state.images, averaged)
    # A run goes on behind its best state, which is what is exported.
    summary |= {"images_seen": model.state.images, "updates": model.state.updates}
    summary |= {"training_seconds": model.state.seconds, "training_cpu_seconds": model.state.cpu_seconds}
    picture = None
    if model.spec.kind == "pixels":
        picture = f"samples/images-{model.state.images:010}.png"
        drawn = to_bytes(model.sample(_SAMPLES, generator=PerImageGenerator(0)), model.spec.levels)
    in_place = file.resolve().parent == folder.resolve()  # what is there is of this model, and all that there is of it
    files = {
        **({} if in_place else {SETTINGS: as_json(OURS)}),
        WEIGHTS: save(weights),
        "summary.json": as_json(summary),
        "evaluation.json": as_json(results),
        CARD: card(folder.resolve().name, model, summary, results, license, picture).encode(),
    }
    with writing_to(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with one_at_a_time(folder / SETTINGS, f"{folder}: another process exports to it; waiting"):
            remove_litter(folder)
            for name, content in files.items():
                _write(folder / name, content)
            for older in (folder / "samples").glob("images-*.png"):
                older.unlink()
            if picture is not None:
                (folder / picture).parent.mkdir(exist_ok=True)
                write_png(picture_of(drawn, 16, smallest_side=32), folder / picture)
            _write(folder / SETTINGS, as_json({**OURS, "version": imago.__version__, **kept}))
    return model


def _write(file: Path, content: bytes) -> None:
    with replacing(file) as target:
        target.write(content)


def check_place(folder: Path) -> None:
    """Find out whether a model can be exported to a folder.

    Raises:
        UserError: something else lies there, or nothing can be written.
    """
    check_folder_place(folder)
    if folder.is_dir() and any(folder.iterdir()) and not _is_ours(folder):
        raise UserError(f"out={folder}: has files in it that are no exported model; choose another folder, or empty it")


def _is_ours(folder: Path) -> bool:
    """Whether config.json there is one of this program: other libraries' models have files of the same names."""
    with suppress(OSError, ValueError):
        found = read_json(folder / SETTINGS)
        return isinstance(found, dict) and OURS.items() <= found.items()
    return False


def shareable(config: dict[str, Any]) -> dict[str, Any]:
    """The settings that made the weights, without the places of this machine."""
    callbacks = config.get("callbacks")
    averaging = callbacks.get("averaging") if isinstance(callbacks, Mapping) else None
    config = {name: config[name] for name in _SETTINGS if name in config}
    if averaging is not None:
        config["callbacks"] = {"averaging": averaging}
    stored = config["data"] if isinstance(config.get("data"), Mapping) else {}
    data = {name: value for name, value in stored.items() if name not in ("dir", "on_device")}
    if "path" in data:
        data["path"] = None
    if isinstance(data.get("source"), Mapping):
        own = {name: None for name in ("url", "path") if name in data["source"]}
        data["source"] = {**data["source"], **own}
    return anonymous({**config, "data": data})


def measured_there(
    folder: Path, checkpoint: str, images_seen: int, averaged: bool
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Of a run what its summary tells of the model and what was measured of this state, in training and by evaluate.py.

    Args:
        folder: of the run; where nothing can be read there, nothing is told.
        checkpoint: name of its file.
        images_seen: by the model.
        averaged: whether the run kept averaged weights, which are this state's; what was measured of its last ones is
            of another.
    """
    summary: dict[str, Any] = {}
    results: list[dict[str, Any]] = []

    def of_this(result: Any) -> bool:
        """Whether it is a measurement of this state."""
        if not _is_result(result) or result.get("images_seen") != images_seen:
            return False
        return not (averaged and result["protocol"].get("weights") == "last")

    with suppress(OSError, ValueError):
        found = today(read_json(folder / "summary.json"))
        if isinstance(found, dict):
            summary = {name: found[name] for name in _TOLD if name in found}
            if command := command_of(found):
                summary["command"] = command
            measured = found.get("metrics")
            summary["metrics"] = {
                name: result
                for name, result in (measured.items() if isinstance(measured, dict) else ())
                if isinstance(result, dict) and of_this(result | {"name": name})
            }
    with suppress(OSError, ValueError):
        found = today(read_json(folder / "evaluation.json"))
        for result in found if isinstance(found, list) else []:
            if of_this(result) and result.get("checkpoint") in (checkpoint, WEIGHTS):
                results.append({key: value for key, value in result.items() if key != "each"} | {"checkpoint": WEIGHTS})
    return anonymous(summary), anonymous(results)


def _is_result(entry: Any) -> bool:
    """Whether an entry of evaluation.json is a measurement: a name, a finite number and how it was obtained."""
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
        return False
    value = entry.get("value")
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return number and isinstance(entry.get("protocol"), dict)


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
    of_the_model = newest([r for r in results if not r.get("changes")])
    by_training = (
        []
        if of_the_model
        else [{**result, "name": key} for key, result in summary.get("metrics", {}).items() if better(key) is not None]
    )
    of_the_model = of_the_model or by_training
    about = " ".join((type(model).__doc__ or kind).strip().split("\n\n")[0].split())
    scores = [
        {
            "type": result["name"].rpartition("/")[2],
            "name": result["name"],
            "value": round(float(result["value"]), 6),
            "verified": False,
        }
        for result in of_the_model
    ]
    task = {"type": "unconditional-image-generation"}
    head: dict[str, Any] = {
        "library_name": "imago",
        "tags": ["imago", kind.lower()],
        "pipeline_tag": task["type"],
        **({"datasets": [data]} if "data" in summary else {}),
        **({} if license is None else {"license": license}),
    }
    if scores:
        dataset = {"type": data, "name": data}
        head["model-index"] = [{"name": name, "results": [{"task": task, "dataset": dataset, "metrics": scores}]}]
    count = sum(map(count_parameters, model.networks.values()))
    state = model.state
    cost = f"{state.cpu_seconds:,.0f} s of the processor" if state.cpu_seconds else f"{state.seconds:,.0f} s"
    told = ", ".join(filter(None, [f"{state.images:,} images", cost, str(summary.get("device", ""))]))
    package = type(model).__module__.partition(".")[0]
    given = shlex.quote(f"checkpoint={name}") + ("" if package == "imago" else f" plugins=[{package}]")
    lines = [
        f"# {name}",
        "",
        f"{kind}: {about}",
        "",
        *([f"![{_SAMPLES} samples]({picture})", ""] if picture else []),
        f"- **Data:** {summary.get('split', data)}; {model.spec}",
        f"- **Parameters:** {count:,}",
        *([f"- **Trained by** `{' '.join(str(summary['command']).split())}`"] if summary.get("command") else []),
        f"- **Training:** {told}",
        f"- **Licence of the weights:** {license or 'not stated'}",
        "",
        "## Measured",
        "",
        *(_table(of_the_model) if of_the_model else ["Nothing was measured."]),
        *(["", "Measured in training; `imago evaluate` measures more."] if by_training else []),
        "",
        "## Use",
        "",
        "```python",
        "import imago",
        "",
        f"model = imago.load({json.dumps(name, ensure_ascii=False)})  # a folder, or the name of a pretrained model",
        "images = model.sample(16)",
        "```",
        "",
        f"    imago sample {given}",
        *([f"    imago evaluate {given}"] if "data" in summary else []),
        f"    imago compare {shlex.quote(f'runs={name}')}",
        "",
    ]
    return f"---\n{yaml.safe_dump(head, sort_keys=False)}---\n\n" + "\n".join(lines)


def newest(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of the same number by the same protocol the last, as where an exported model was measured again."""
    return list({(r["name"], Protocol.from_dict(r["protocol"]).comparison_key): r for r in results}.values())


def _table(results: list[dict[str, Any]]) -> list[str]:
    caveats: dict[str, list[str]] = {}
    rows = ["| | value | of | held-out images have |", "|---|---|---|---|"]
    for result in results:
        protocol = Protocol.from_dict(result["protocol"])
        named = result["name"].rpartition("/")[2]
        relation = f"{protocol.relation} " if protocol.likelihood and protocol.relation else ""
        error = "" if protocol.error is None else f" ± {protocol.error:.2g}"
        counts = [
            *([f"{protocol.images:,} images of {protocol.data}"] if protocol.images else []),
            *([f"{protocol.samples:,} samples"] if protocol.samples and not protocol.images else []),
            *([f"features {protocol.extractor}"] if protocol.extractor else []),
            *([f"against {protocol.reference}"] if protocol.reference and protocol.extractor else []),
            *([protocol.estimator] if protocol.estimator else []),
            *([f"{protocol.draws:,} draws"] if protocol.draws else []),
        ]
        held_out = "" if protocol.held_out_value is None else f"{protocol.held_out_value:.4g}"
        doubt = " †" * protocol.doubtful
        cells = (named, f"{relation}{result['value']:.4g}{error}{doubt}", ", ".join(counts), held_out)
        rows.append(f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |")
        if protocol.doubtful:
            caveats.setdefault(str(protocol.caveat), []).append(named)
    told = [f"† {', '.join(names)}: {caveat}." for caveat, names in caveats.items()]
    return [*rows, "", "`fd`, `kd` and `mind` are distances: the smaller the better.", *told]
