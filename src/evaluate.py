"""Measure a trained model's samples: ``python src/evaluate.py checkpoint=logs/gan-digits/<time>``."""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from pydantic import NonNegativeInt

from imago import cli
from imago.config import build, check_node, check_settings, plain
from imago.errors import UserError


@dataclass(frozen=True)
class Settings:
    """What evaluate.yaml explains."""

    checkpoint: str
    averaged: bool
    seed: NonNegativeInt
    dir: str | None
    device: str | None


def main(config: DictConfig) -> None:
    """Measure, print a table, and keep the results in evaluation.json."""
    values = plain(config)
    settings = check_settings(values, Settings, groups=["metrics"])
    check_node(values["metrics"], "metrics")
    # After Hydra has composed: mistakes in names need not wait for torch.
    from imago.callbacks.quality import measure
    from imago.checkpoints import average_of, file_of, model_of, read
    from imago.metrics import Evaluator
    from imago.metrics.progress import progress_bar

    path = file_of(settings.checkpoint)
    checkpoint = read(path)
    device = cli.device(settings.device)
    model = model_of(checkpoint, averaged=settings.averaged).to(device)
    averaged = settings.averaged and bool(average_of(checkpoint))
    data = data_of(checkpoint, settings.dir)
    metrics: Evaluator = build(values["metrics"], "metrics")
    metrics.prepare(data, device)
    for notice in metrics.notices:
        print(f"note: {notice}")
    began = time.perf_counter()
    with progress_bar("Measuring samples") as progress:
        measurements = measure(metrics, model, settings.seed, averaged, progress)
    seconds = time.perf_counter() - began
    if not measurements:
        raise UserError("metrics: nothing can be measured; choose metrics=classifier or metrics=inception")
    made_at = {"checkpoint": path.name, "images_seen": model.images_seen, "updates": model.updates}
    results = [made_at | {"name": m.name, "value": m.value, "protocol": m.protocol} for m in measurements]
    kept = keep(results, path)
    print(f"{path}: {model.images_seen:,} images seen, {seconds:.1f} s")
    for m in measurements:
        told = ", ".join(f"{key} {m.protocol[key]}" for key in ("extractor", "samples", "reference", "weights", "seed"))
        print(f"  {m.name:<14} {m.value:<10.4g} {told}")
        if m.protocol["caveat"] != "none":
            print(f"  {'':<25} {m.protocol['caveat']}")
    print(f"  kept in {kept}")


def data_of(checkpoint: dict[str, Any], directory: str | None) -> Any:
    """The data that a checkpoint's model was trained on, prepared, from ``directory`` if there is one.

    Raises:
        UserError: the data cannot be had there.
    """
    from imago.images import ImageSpec

    node = checkpoint["config"]["data"] | ({} if directory is None else {"dir": directory})
    check_node(node, "data")
    data = build(node, "data")
    data.prepare()
    if data.spec.as_dict() != checkpoint["spec"]:
        raise UserError(
            f"dir={node['dir']}: its images are {data.spec}, the model was trained on "
            f"{ImageSpec(**checkpoint['spec'])}; give the folder of those as dir=FOLDER"
        )
    return data


def keep(results: list[dict[str, Any]], checkpoint: Path) -> Path:
    """Add results to evaluation.json of the checkpoint's run; the same measurement again replaces the older one."""
    from imago.runs import write_atomically

    folder = checkpoint.parent.parent if checkpoint.parent.name == "checkpoints" else checkpoint.parent
    path = folder / "evaluation.json"
    known = json.loads(path.read_text()) if path.exists() else []
    new = [what(result) for result in results]
    write_atomically(path, json.dumps([r for r in known if what(r) not in new] + results, indent=2) + "\n")
    return path


def what(result: dict[str, Any]) -> dict[str, Any]:
    """All of a result but its value."""
    return {key: entry for key, entry in result.items() if key != "value"}


if __name__ == "__main__":
    cli.run(main, "evaluate")
