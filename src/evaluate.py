"""Measure a trained model: ``python src/evaluate.py checkpoint=logs/gan-digits/<time>``.

The likelihood of held-out images, where the model knows it, and the quality of samples.
"""

import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from omegaconf import DictConfig
from pydantic import NonNegativeInt, PositiveInt

from imago import cli
from imago.config import build, check_node, check_settings, plain
from imago.errors import UserError

if TYPE_CHECKING:  # torch is loaded once Hydra has composed
    from imago.metrics import Measurement


@dataclass(frozen=True)
class Settings:
    """What evaluate.yaml explains."""

    checkpoint: str
    averaged: bool
    model: dict[str, Any]
    likelihood: bool
    split: Literal["val", "test"]
    images: PositiveInt | None
    importance: PositiveInt | None
    bound_steps: PositiveInt | None
    batch_size: PositiveInt
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
    from imago.data import data_of
    from imago.metrics import Evaluator, measure_likelihood
    from imago.metrics.progress import progress_bar
    from imago.models.base import ExplicitModel

    path = file_of(settings.checkpoint)
    checkpoint = read(path)
    device = cli.device(settings.device)
    model = model_of(checkpoint, averaged=settings.averaged, changes=settings.model).to(device)
    averaged = settings.averaged and bool(average_of(checkpoint))
    data = data_of(checkpoint, settings.dir)
    metrics: Evaluator = build(values["metrics"], "metrics")
    metrics.prepare(data, device)
    for notice in metrics.notices:
        print(f"note: {notice}")
    likelihood_too = settings.likelihood and isinstance(model, ExplicitModel)
    if not metrics.names and not likelihood_too:
        raise UserError("metrics: nothing can be measured; choose metrics=classifier or metrics=inception")
    print(f"{path}: {model.images_seen:,} images seen")

    def conclude(measurements: "list[Measurement]", began: float) -> None:
        made_at = {"checkpoint": path.name, "images_seen": model.images_seen, "updates": model.updates}
        made_at |= {"changes": settings.model} if settings.model else {}
        kept = keep([made_at | {"name": m.name, "value": m.value, "protocol": m.protocol} for m in measurements], path)
        width = max(len(m.name) for m in measurements)
        for m in measurements:
            print(told(m, width))
        caveats = {m.protocol["caveat"]: None for m in measurements}
        for caveat in caveats:
            if caveat != "none":
                print(f"  note: {caveat}")
        print(f"  {time.perf_counter() - began:.1f} s; kept in {kept}", flush=True)

    if settings.likelihood and isinstance(model, ExplicitModel):  # first, and kept at once: drawing samples may take long
        began = time.perf_counter()
        with progress_bar(f"Measuring the likelihood of {data.name} {settings.split}") as progress:
            likelihood = measure_likelihood(
                model,
                data,
                settings.split,
                averaged=averaged,
                batch_size=settings.batch_size,
                images=settings.images,
                importance=settings.importance,
                bound_steps=settings.bound_steps,
                progress=progress,
            )
        conclude([replace(m, name=f"{settings.split}/{m.name}") for m in likelihood], began)
    if metrics.names:
        began = time.perf_counter()
        with progress_bar("Measuring samples") as progress:
            measurements = measure(metrics, model, settings.seed, averaged, progress)
        conclude(measurements, began)


SHOWN = ("extractor", "samples", "reference", "weights", "seed", "sampler", "network_calls")


def told(measurement: "Measurement", width: int) -> str:
    """A measurement in one line: its name in so many columns, its number, and what to know of it."""
    name, value, protocol = measurement.name, measurement.value, measurement.protocol
    if "likelihood" not in protocol:
        how = ", ".join(f"{key} {protocol[key]}" for key in SHOWN if key in protocol)
        return f"  {name:<{width}} {value:<10.4g} {how}"
    sign, digits = "≤" if protocol["likelihood"] == "lower_bound" else "=", 3 if name.endswith("bpd") else 2
    number = f"{value:.{digits}f} ± {protocol['standard_error']:.{digits}f}"
    told_of = ("data", "images", "binarization", "weights", "draws", "bound_terms")
    how = ", ".join(f"{key} {protocol[key]}" for key in told_of if key in protocol)
    return f"  {name:<{width}} {sign} {number:<16} {how}"


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
    """All of a result but what came out."""
    outcome = ("standard_error", "seconds_per_sample")
    protocol = {key: entry for key, entry in result["protocol"].items() if key not in outcome}
    return {key: entry for key, entry in result.items() if key != "value"} | {"protocol": protocol}


if __name__ == "__main__":
    cli.run(main, "evaluate")
