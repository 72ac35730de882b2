"""Measure trained models: ``python src/evaluate.py checkpoint=logs/gan-digits/<time>``, or ``checkpoint=[PATH,PATH]``.

The likelihood of held-out images, where the model knows it, and the quality of samples.
"""

import hashlib
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from omegaconf import DictConfig
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from imago import cli
from imago.capacity import Drawn
from imago.config import Compile, build, check_has, check_node, check_settings, plain
from imago.errors import RunError, UserError, printable
from imago.files import locked, replacing, write_text
from imago.legacy import today
from imago.measures import EACH, Measurement, Protocol
from imago.paths import checkpoint_file, folder_of
from imago.pretrained import is_pretrained
from imago.processes import first_process

if TYPE_CHECKING:  # torch is loaded once Hydra has composed
    import torch

    from imago.data import ImageDataModule
    from imago.evaluation import SampleQuality
    from imago.models.base import GenerativeModel


@dataclass(frozen=True)
class Settings:
    """What evaluate.yaml explains."""

    checkpoint: str | Annotated[list[str], Field(min_length=1)]
    averaged: bool
    model: dict[str, Any]
    likelihood: bool
    split: Literal["val", "test"]
    images: PositiveInt | None
    importance: Drawn | None
    ais: bool
    ais_chains: Drawn
    ais_temperatures: Annotated[int, Field(ge=2, le=10_000_000)]
    ais_sigma: PositiveFloat | None
    bound_steps: PositiveInt | None
    probability_flow: Annotated[float, Field(gt=0, le=0.1)] | None
    cas: Annotated[int, Field(ge=100, le=1_000_000)] | None
    batch_size: PositiveInt
    seed: NonNegativeInt
    repeats: Annotated[int, Field(gt=0, le=10_000)]
    dir: str | None
    path: str | None
    device: str | None
    devices: PositiveInt | Literal["auto"]
    compile: Compile


def main(config: DictConfig) -> None:
    """Measure one checkpoint after the other; of several, one that cannot be measured does not stop the others."""
    with cli.stoppable():
        measure_all(plain(config))


def measure_all(values: dict[str, Any]) -> None:
    """See :func:`main`, whose configuration this is."""
    settings = check_settings(values, Settings, groups=["metrics"])
    metrics = values["metrics"]
    if "full" in metrics and metrics["full"] is None:
        metrics["full"] = True
    check_node(metrics, "metrics", imported=False)
    if isinstance(settings.checkpoint, str):
        checkpoint_file(settings.checkpoint)
        check_node(metrics, "metrics")
        with cli.devices(settings.device, settings.devices) as device:
            evaluate(settings.checkpoint, settings, metrics, device)
        return
    # What is no file is said before torch is loaded and the others are measured.
    found = [checkpoint for checkpoint in settings.checkpoint if carried_out(checkpoint_file, checkpoint)]
    measured = []
    if found:
        check_node(metrics, "metrics")
        with cli.devices(settings.device, settings.devices) as device:
            measured = [name for name in found if carried_out(evaluate, name, settings, metrics, device)]
    failed = [checkpoint for checkpoint in settings.checkpoint if checkpoint not in measured]
    if failed:
        raise UserError(f"checkpoint: {len(failed)} of {len(settings.checkpoint)} not measured: {', '.join(failed)}")


def carried_out(action: Callable[..., object], checkpoint: str, *arguments: object) -> bool:
    """Do something with a checkpoint; whatever goes wrong is said in a line, and stops nothing."""
    try:
        action(checkpoint, *arguments)
    except Exception as error:
        said = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        told = printable(" ".join(said.split()))
        named = told.startswith("checkpoint=")
        print(told if named else f"checkpoint={checkpoint}: {told}", file=sys.stderr, flush=True)
        return False
    return True


@dataclass(frozen=True)
class Subject:
    """What is measured, and with what.

    Attributes:
        path: of the checkpoint.
        model: with the weights to be judged, on its device.
        averaged: whether these are averaged ones.
        data: that it is held against.
        metrics: of its samples; of none, samples are not measured.
    """

    path: Path
    model: "GenerativeModel"
    averaged: bool
    data: "ImageDataModule"
    metrics: "SampleQuality"


def evaluate(checkpoint_path: str, settings: Settings, metrics_node: dict[str, Any], device: "torch.device") -> None:
    """Measure one checkpoint; the first of several processes prints a table and keeps results in evaluation.json."""
    from imago.models.base import knows_likelihood

    subject = prepared(checkpoint_file(checkpoint_path), settings, metrics_node, device)
    results = Results(subject.path) if first_process() else None
    if results is not None:
        print(f"{subject.path}: {subject.model.state.images:,} images seen")

    def conclude(measurements: list[Measurement], began: float) -> None:
        if results is None:
            return
        state = subject.model.state
        made_at = {"checkpoint": subject.path.name, "images_seen": state.images, "updates": state.updates}
        made_at |= {"changes": settings.model} if settings.model else {}
        print("\n".join(table(measurements)), flush=True)
        kept = results.add(
            [made_at | {"name": m.name, "value": m.value, "protocol": m.protocol.as_dict()} for m in measurements],
            [m.each for m in measurements],
        )
        print(f"  {time.perf_counter() - began:.1f} s; {kept}", flush=True)

    # First, and kept at once: drawing samples may take long.
    if settings.likelihood and knows_likelihood(subject.model):
        began = time.perf_counter()
        conclude(likelihood_of(subject, settings), began)
    if settings.ais:
        began = time.perf_counter()
        conclude(likelihood_by_ais(subject, settings), began)
    if settings.cas is not None:
        began = time.perf_counter()
        conclude(classification_accuracy(subject, settings, settings.cas), began)
    if subject.metrics.names:
        began, repeated = time.perf_counter(), []
        try:
            for measurements in quality_of_seeds(subject, settings):
                repeated.append(measurements)
        finally:
            if repeated:  # also where it is stopped
                conclude(over_seeds(repeated), began)
    if results is not None and results.lost is not None:
        raise RunError(f"{results.path}: cannot be written ({results.lost.strerror}); results are printed alone")


def prepared(path: Path, settings: Settings, metrics_node: dict[str, Any], device: "torch.device") -> Subject:
    """A checkpoint's model, its data and the metrics; says what there is to know of these.

    Raises:
        UserError: something that is asked for cannot be measured of this model, or nothing can.
    """
    # After Hydra has composed: mistakes in names need not wait for torch.
    from imago.checkpoints import model_of, read, uses_average
    from imago.data import data_of
    from imago.models.base import knows_likelihood
    from imago.models.importance import ImportanceWeighted
    from imago.models.probability_flow import ProbabilityFlow
    from imago.models.summed import SummedBound

    checkpoint = read(path)
    model = model_of(checkpoint, averaged=settings.averaged, changes=settings.model).to(device)
    check_has(model, ImportanceWeighted, "importance", settings.importance, "importance-weighted bound")
    check_has(
        model, ProbabilityFlow, "probability_flow", settings.probability_flow, "likelihood by its probability flow"
    )
    check_has(model, SummedBound, "bound_steps", settings.bound_steps, "sum over steps")
    data = data_of(checkpoint, settings.dir, settings.path)
    model.spec = data.spec  # the same, and checkpoints of version 0.1 do not know how frequent the classes are
    metrics: SampleQuality = build(metrics_node, "metrics")
    metrics.prepare(data, device)
    if settings.compile:
        model.compile_networks("inductor" if settings.compile is True else settings.compile)
    for notice in metrics.notices if first_process() else ():
        print(f"note: {notice}")
    likelihood_too = settings.likelihood and knows_likelihood(model)
    if not metrics.names and not likelihood_too and not settings.ais and not settings.cas:
        raise UserError("metrics: nothing can be measured; choose metrics=classifier or metrics=inception")
    return Subject(path, model, uses_average(checkpoint, settings.averaged), data, metrics)


def likelihood_of(subject: Subject, settings: Settings) -> list[Measurement]:
    """The likelihood of a split, of a model that knows it."""
    from imago.evaluation import measure_likelihood
    from imago.models.base import ExplicitModel
    from imago.progress import progress_bar

    assert isinstance(subject.model, ExplicitModel)
    with progress_bar(f"Measuring the likelihood of {subject.data.name} {settings.split}") as progress:
        measured = measure_likelihood(
            subject.model,
            subject.data,
            settings.split,
            averaged=subject.averaged,
            batch_size=settings.batch_size,
            images=settings.images,
            importance=settings.importance,
            bound_steps=settings.bound_steps,
            probability_flow=settings.probability_flow,
            progress=progress,
        )
    return [replace(m, name=f"{settings.split}/{m.name}") for m in measured]


def likelihood_by_ais(subject: Subject, settings: Settings) -> list[Measurement]:
    """The likelihood of a split, estimated by annealed importance sampling.

    Raises:
        UserError: the model has no decoder.
    """
    from imago.evaluation import measure_by_ais
    from imago.progress import progress_bar

    with progress_bar(f"Estimating the likelihood of {subject.data.name} {settings.split}") as progress:
        measured = measure_by_ais(
            subject.model,
            subject.data,
            settings.split,
            averaged=subject.averaged,
            images=settings.images,
            chains=settings.ais_chains,
            temperatures=settings.ais_temperatures,
            sigma=settings.ais_sigma,
            progress=progress,
        )
    return [replace(m, name=f"{settings.split}/{m.name}") for m in measured]


def classification_accuracy(subject: Subject, settings: Settings, samples: int) -> list[Measurement]:
    """How well a classifier that has seen samples alone knows real images.

    Raises:
        UserError: the model has no classes.
    """
    from imago.evaluation import measure_cas
    from imago.progress import progress_bar

    with progress_bar("Training two classifiers, one on samples and one on real images") as progress:
        return measure_cas(
            subject.model,
            subject.data,
            samples=samples,
            seed=settings.seed,
            averaged=subject.averaged,
            batch_size=settings.batch_size,
            progress=progress,
        )


def quality_of_seeds(subject: Subject, settings: Settings) -> Iterator[list[Measurement]]:
    """The quality of samples, of one seed after the other."""
    from imago.progress import progress_bar
    from imago.training.callbacks.quality import measure

    for seed in range(settings.seed, settings.seed + settings.repeats):
        with progress_bar(f"Measuring samples of seed {seed}") as progress:
            measured = measure(subject.metrics, subject.model, seed, subject.averaged, progress, alone=True)
        yield measured


def over_seeds(repeated: list[list[Measurement]]) -> list[Measurement]:
    """The mean of each number over the seeds, with its standard deviation in the protocol of the first.

    Args:
        repeated: for each seed the same numbers in the same order; those of a single seed are left as they are.
    """
    if len(repeated) == 1:
        return repeated[0]
    combined = []
    for same in zip(*repeated, strict=True):
        values = [m.value for m in same]
        batched, alone = [m.protocol.seconds_per_sample for m in same], [m.protocol.seconds_alone for m in same]
        protocol = replace(
            same[0].protocol,
            repeats=len(values),
            deviation=statistics.stdev(values),
            standard_error=None,
            seconds_per_sample=None if None in batched else statistics.fmean(filter(None, batched)),
            seconds_alone=None if None in alone else statistics.median(filter(None, alone)),
        )
        combined.append(replace(same[0], value=statistics.fmean(values), protocol=protocol))
    return combined


# What a protocol's entry means to a reader, in this order; the rest is in evaluation.json.
SHOWN = {
    "data": "of {}",
    "extractor": "features {}",
    "samples": "{:,} samples",
    "reference": "against {}",
    "images": "{:,} images",
    "binarization": "binarised: {}",
    "classes": "classes {}",
    "weights": "{} weights",
    "sampler": "{}",
    "nfe": "network calls {:,}",
    "seed": "seed {}",
    "repeats": "mean of {} seeds",
    "estimator": "{}",
    "neighbours": "k = {}",
    "bins": "{:,} bins",
    "draws": "{:,} draws",
    "bound_terms": "{} terms",
    "dequantization": "{} dequantisation",
}


def table(measurements: list[Measurement]) -> list[str]:
    """A line for each measurement, with what holds of it alone; what holds of all is said once, above them."""
    entries = [m.protocol.as_dict() for m in measurements]
    told = [{key: text.format(e[key]) for key, text in SHOWN.items() if e.get(key, "none") != "none"} for e in entries]
    # What is measured without features has none to name.
    common = {
        key: text
        for key, text in told[0].items()
        if all(other.get(key, text if key == "extractor" else None) == text for other in told)
    }
    numbers = [number_of(m) for m in measurements]
    widths = [max(len(m.name) for m in measurements), max(map(len, numbers))]
    lines = [f"  {', '.join(common.values())}"]
    for m, number, known in zip(measurements, numbers, told, strict=True):
        alone = ", ".join(text for key, text in known.items() if key not in common)
        lines.append(f"    {m.name:<{widths[0]}}  {number:<{widths[1]}}  {alone}".rstrip())
    caveats: dict[str, list[str]] = {}
    for m in measurements:
        if m.protocol.doubtful:
            caveats.setdefault(str(m.protocol.caveat), []).append(m.name)
    return [*lines, *(f"  † {', '.join(names)}: {caveat}" for caveat, names in caveats.items())]


def number_of(measurement: Measurement) -> str:
    """A measurement with its error, =, ≤ or ≈, what held-out images have, and a † if there is a caveat."""
    name, value, protocol = measurement.name, measurement.value, measurement.protocol
    doubt = " †" if protocol.doubtful else ""
    if protocol.likelihood is None:
        error = "" if protocol.error is None else f" ± {protocol.error:.2g}"
        held_out = "" if protocol.held_out_value is None else f" (held-out {protocol.held_out_value:.4g})"
        return f"{value:.4g}{error}{held_out}{doubt}"
    digits = 3 if name.endswith("bpd") else 4 if protocol.likelihood != "part" and name.endswith("kl") else 2
    return f"{protocol.relation:1} {value:,.{digits}f} ± {protocol.standard_error:.{digits}f}{doubt}"


class Results:
    """evaluation.json of a checkpoint's run, looked at before anything is measured.

    What cannot be read there is moved aside, and where nothing can be written results are printed alone; both are said.
    Those of a pretrained model are printed alone.

    Args:
        checkpoint: the file.
    """

    def __init__(self, checkpoint: Path) -> None:
        self.path = folder_of(checkpoint) / "evaluation.json"
        self.keep = not is_pretrained(checkpoint)
        self.lost: OSError | None = None
        if not self.keep:
            return
        try:
            with self._locked():
                self._known()
        except OSError as error:
            self.keep = False
            print(
                f"note: {self.path}: cannot be written ({error.strerror}); results are printed alone", file=sys.stderr
            )

    def add(self, results: list[dict[str, Any]], each: Sequence[Sequence[float] | None] = ()) -> str:
        """Keep results; the same measurement again replaces the older one.

        Args:
            results: entries of evaluation.json.
            each: for each of them the value of every image, which gets a file of its own, or ``None``.

        Returns:
            Where they are.
        """
        if not self.keep:
            return "printed alone"
        new = [what(result) for result in results]
        try:
            with self._locked():  # somebody else may measure the same run
                for result, question, values in zip(results, new, each, strict=False):
                    if values is not None and (place := self._write(question, values)) is not None:
                        result["each"] = place
                known = [result for result in self._known() if what(result) not in new]
                write_text(self.path, json.dumps(known + results, indent=2) + "\n")
        except OSError as error:
            self.lost = error
            return "kept nowhere"
        return f"kept in {self.path}"

    def _write(self, question: dict[str, Any], values: Sequence[float]) -> str | None:
        """Write the value of every image; the same measurement again has the same file. Its place in the run."""
        import numpy as np

        name = f"{hashlib.sha256(json.dumps(question, sort_keys=True).encode()).hexdigest()[:16]}.npy"
        folder = self.path.parent / EACH
        try:
            folder.mkdir(exist_ok=True)
            with replacing(folder / name) as file:
                np.save(file, np.asarray(values, np.float32), allow_pickle=False)
        except OSError as error:  # the means are worth keeping without
            told = f"{folder}: the values of each image cannot be written ({error.strerror}); means alone are kept"
            print(f"note: {told}", file=sys.stderr)
            return None
        return f"{EACH}/{name}"

    def _locked(self) -> AbstractContextManager[None]:
        return locked(self.path.with_name(".evaluation.lock"))

    def _known(self) -> list[dict[str, Any]]:
        """The results that are there; a file with anything else in it is moved aside first."""
        if not os.path.lexists(self.path):
            return []
        known = None
        with suppress(ValueError, RecursionError):
            known = today(json.loads(self.path.read_text(encoding="utf-8"))) if self.path.is_file() else None
        listed = known if isinstance(known, list) else []
        results = [r for r in listed if isinstance(r, dict) and isinstance(r.get("protocol"), dict)]
        if known is None or len(results) < len(listed) or listed is not known:
            aside = next(p for k in count(1) if not os.path.lexists(p := self.path.with_name(f"{self.path.name}.{k}")))
            self.path.rename(aside)
            write_text(self.path, json.dumps(results, indent=2) + "\n")
            stay = f"; the {len(results)} results in it stay" if results else ""
            print(f"note: {self.path}: cannot be read, and is {aside.name} now{stay}", file=sys.stderr, flush=True)
        return results


def what(result: dict[str, Any]) -> dict[str, Any]:
    """All of a result but what came out, where that lies, and on which machine in what time."""
    question = Protocol.from_dict(result["protocol"]).question
    return {key: entry for key, entry in result.items() if key not in ("value", "each")} | {"protocol": question}


def command() -> None:
    """Carry out ``evaluate`` as the command line says."""
    cli.run(main, "evaluate")
