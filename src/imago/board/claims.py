"""The lecture's claims, tested on the runs of a board: every verdict has an error, and every missing run is named.

A claim is a question about differences between models that were trained alike. The unit is a training: each side needs
:data:`SEEDS` runs that differ in their seed, and differences are tested by Welch's t, likelihoods with the error of the
images beside that of the runs (:mod:`imago.statistics`). The p-values of all claims on a data set are corrected
together (Holm), so that at most one board in twenty has a false verdict. What does not reach that, or was not trained
alike, is undecided.
"""

import math
import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Literal

import numpy as np

from imago.board.board import FRECHET, MISSING, Board, duration, means, tag
from imago.board.grids import steering
from imago.board.records import Data, Measured, Record, newest
from imago.errors import printable
from imago.measures import kind_of
from imago.pretrained import is_pretrained
from imago.statistics import Difference, above, all_above, combined, holm, mean_of, on_the_same_images, welch

Verdict = Literal["agrees", "disagrees", "undecided", "open"]

AUTOENCODER = "autoencoder"
CONVOLUTIONAL = ("pixelcnn", "gated_pixelcnn")
RECURRENT = ("row_lstm", "diagonal_bilstm")
AUTOREGRESSIVE = ("fvbn", "made", *CONVOLUTIONAL, *RECURRENT)
VAES = ("vae", "conv_vae", "hvae")
GANS = ("gan", "dcgan")
DIFFUSION = "ddpm"
FAMILIES = (AUTOENCODER, *AUTOREGRESSIVE, *VAES, *GANS, DIFFUSION)
# Who speaks for a family, named before anything is measured; the autoencoder has the networks of this VAE.
PIXELCNN, PIXELRNN, VAE, GAN = "pixelcnn", "row_lstm", "conv_vae", "dcgan"
# What the lecture says of each: explicit and tractable, explicit through a bound, or implicit.
KINDS = (
    dict.fromkeys(AUTOREGRESSIVE, "exact")
    | dict.fromkeys((*VAES, DIFFUSION), "lower_bound")
    | dict.fromkeys((*GANS, AUTOENCODER), "none")
)
OBJECTIVE, MINIMAX, NON_SATURATING = "model.objective", "Minimax", "NonSaturating"
# Beginnings of settings in which runs of one comparison may differ: seeds, and what does not touch training.
ASIDE = (
    OBJECTIVE,
    "seed",
    "data.seed",
    "data.dir",
    "logs",
    "name",
    "tags",
    "resume",
    "logger.",
    "metrics.",
    "trainer.",
)
Settings = tuple[tuple[str, str], ...]
# Runs of each side that a verdict needs, and the share of boards that may have a false one.
SEEDS, LEVEL = 5, 0.05
# Seconds of training, and parameters, of models that are called equal differ by no more.
EQUAL, EQUAL_SIZE = 1.1, 1.2
# The share of training that is its start.
START = 0.25
# Decoding codes from N(0, I), of an autoencoder that otherwise draws them from a normal distribution fitted to its own.
UNFITTED = {"fitted": False}


@dataclass
class Answer:
    """One claim and what the runs say.

    Attributes:
        claim: as a question, with its scope.
        said: what the lecture says.
        measure: how it is measured here, and what that cannot tell.
        verdict: "agrees" and "disagrees" are about the lecture; "open" where runs are missing.
        words: the answer in a sentence, with its numbers.
        head: titles of the table of numbers.
        rows: the numbers.
        differences: the lecture says that all are above 0; empty where nothing is to be tested.
        doubts: why they decide nothing, whatever they are: too few runs, or unequal ones.
        needed: commands that would answer it, or answer it better.
        pictures: grids that show it, by label.
    """

    claim: str
    said: str
    measure: str
    verdict: Verdict = "open"
    words: str = ""
    head: tuple[str, ...] = ()
    rows: list[tuple[str, ...]] = field(default_factory=list)
    differences: list[Difference] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)
    needed: list[str] = field(default_factory=list)
    pictures: list[tuple[str, Path]] = field(default_factory=list)

    @property
    def remedy(self) -> str:
        """What the commands are for."""
        return "Would answer it" if self.verdict == "open" else "Would add to it"

    def tests(self, differences: Iterable[Difference], *doubts: str | None) -> None:
        """Let these differences answer the claim, and say what stands against it."""
        self.differences = list(differences)
        self.doubts += [doubt for doubt in doubts if doubt]


class Runs:
    """The runs on one data set.

    Args:
        data: what they were trained on.
        records: the runs. For a model speak those that differ in their seed alone: of several such sets the largest, of
            those the one that trained longest, then the newest. Generators that learn by the minimax objective speak
            in the comparison of objectives alone, and those that were trained beside them elsewhere only where there is
            no other.

    Attributes:
        left_out: pretrained models, whose settings are their own; one that differs from runs in its seed alone is not.
    """

    def __init__(self, data: Data, records: Iterable[Record]) -> None:
        self.data = data
        self.all = list(records)
        plain = [r for r in self.all if r.settings.get(OBJECTIVE) != MINIMAX]
        compared = {_aside(r) for r in self.all if r.settings.get(OBJECTIVE) == MINIMAX}
        together = [mean.runs for mean in means(plain)]
        within = {id(run) for runs in together for run in runs}
        alone = [r for r in plain if id(r) not in within]
        self.left_out = [r for r in alone if is_pretrained(r.path)]
        together += [[r] for r in alone if r not in self.left_out]
        self._sets: dict[str, list[Record]] = {}
        for runs in sorted(together, key=lambda runs: _standing(runs, compared), reverse=True):
            self._sets.setdefault(runs[0].model, runs)

    @property
    def seconds(self) -> int:
        """The training time that most runs had, for commands."""
        times = [round(t) for runs in self._sets.values() for r in runs if (t := seconds_of(r))]
        return max(1, Counter(times).most_common(1)[0][0]) if times else 60

    def of(self, model: str) -> list[Record]:
        """The runs that speak for a model."""
        return self._sets.get(model, [])

    def first(self, models: Sequence[str]) -> dict[str, Record]:
        """One run of each model that has any."""
        return {model: self.of(model)[0] for model in models if self.of(model)}

    def measured(
        self, models: Sequence[str], names: tuple[str, ...], changes: Mapping[str, Mapping[str, Any]] | None = None
    ) -> dict[str, list[Measured]]:
        """One number of each run of each model, all of one protocol: of the name and protocol that most runs have.

        A run that was measured by several protocols speaks in the one that it shares with the others; of two that
        equally many have, the test split comes before the validation split, and more images before fewer.

        Args:
            models: whose.
            names: kinds of measures, or names of what is of no kind, in the order in which they are preferred.
            changes: of a model's settings with which it was measured, instead of as it was trained.
        """
        found: dict[tuple[str, str], dict[str, list[Measured]]] = {}
        for model in models:
            for run in self.of(model):
                for (name, key), m in _by_protocol(run, names, (changes or {}).get(model, {})).items():
                    found.setdefault((name, key), {}).setdefault(model, []).append(m)
        best = max(found.values(), key=_weight, default={})
        return {model: best[model] for model in models if model in best}

    def on_one_machine(
        self, models: Sequence[str], machine: Callable[[Record], str | None] = lambda r: r.machine
    ) -> dict[str, list[Record]]:
        """The runs of the machine that most ran, or were measured on: times on different ones do not compare."""
        usual = Counter(where for m in models for r in self.of(m) if (where := machine(r)) is not None).most_common(1)
        found = {model: [r for r in self.of(model) if machine(r) == usual[0][0]] for model in models if usual}
        return {model: runs for model, runs in found.items() if runs}

    def command(self, sweep: str, *settings: str) -> str:
        """The command that trains what is missing."""
        binarize = f" {_quoted('data.binarize', self.data.binarize)}" if self.data.binarize else ""
        settings = (*[f"data.val={self.data.val}"] * (self.data.val is not None), *settings)
        chosen = "".join(f" {setting}" for setting in settings)
        data = _quoted("data", self.data.name)
        if self.data.own and self.all:
            place = self.all[0].settings.get("data.path", "PATH")
            data = f"{_quoted('data', self.all[0].choices.get('data', 'folder'))} {_quoted('data.path', place)}"
        return f"python src/train.py -m sweep={sweep} {data}{binarize}{chosen} max_cpu_seconds={self.seconds}"

    def lacking(self, models: Iterable[str]) -> list[str]:
        """The command that trains models, if there are any."""
        listed = ",".join(models)
        return [self.command("lecture", f"model={listed}")] if listed else []

    def few(self, counts: Mapping[str, int]) -> str | None:
        """That some models have too few runs for a verdict."""
        some = [f"{model} {count}" for model, count in counts.items() if count < SEEDS]
        return f"a verdict needs {SEEDS} seeds of each, and there are of {', '.join(some)}" if some else None

    def unequal(self, models: Iterable[str]) -> str | None:
        """That models were not trained for the same time, on one machine."""
        seconds = {r: seconds_of(r) for m in dict.fromkeys(models) for r in self.of(m)}
        unknown = dict.fromkeys(r.model for r, t in seconds.items() if t is None)
        if unknown:
            return f"nobody knows how long {', '.join(unknown)} was trained"
        if len(machines := dict.fromkeys(r.machine for r in seconds)) > 1:
            return f"they were trained on several machines: {'; '.join(machines)}"
        known = {r: t for r, t in seconds.items() if t is not None}
        low, high = min(known, key=known.__getitem__), max(known, key=known.__getitem__)
        if known[high] <= EQUAL * known[low]:
            return None
        return f"{low.model} was trained for {known[low]:,.0f} s and {high.model} for {known[high]:,.0f} s"


def _measured_on(record: Record) -> str | None:
    """What the time of a sample depends on, where there is one."""
    return (record.sampling.protocol.device or record.machine) if record.sampling else None


def seconds_of(record: Record) -> float | None:
    """Seconds of training: the processor's where they were counted."""
    return record.cpu_seconds or record.training_seconds


def _standing(runs: list[Record], compared: set[Settings]) -> tuple[Any, ...]:
    """By what one set of runs of a model comes before another."""
    newest_start = max(r.started for r in runs)
    return _aside(runs[0]) not in compared, len(runs), fmean(r.training_seconds or 0 for r in runs), newest_start


def _by_protocol(run: Record, names: tuple[str, ...], changes: Mapping[str, Any]) -> dict[tuple[str, str], Measured]:
    """The numbers of a run by name and protocol; one that was trained with what is asked for needs no change."""
    wanted = {} if all(run.settings.get(f"model.{k}") == str(v).lower() for k, v in changes.items()) else dict(changes)
    found = {}
    for m in run.measured:
        if kind_of(m.name) in names and dict(m.changes) == wanted and math.isfinite(m.value):
            found[m.name, m.comparison_key] = m
    return found


def _weight(by_model: dict[str, list[Measured]]) -> tuple[int, int, int, int]:
    """How many models and runs a protocol has, whether not on the validation split, and of how many images."""
    measured = [m for some in by_model.values() for m in some]
    return len(by_model), len(measured), sum(m.split != "val" for m in measured), max(m.count or 0 for m in measured)


def answers(board: Board) -> list[tuple[Runs, list[Answer]]]:
    """Every claim on every data set of the board."""
    of_data = [Runs(group.data, [row.record for row in group.rows]) for group in board.groups]
    return [(runs, decided([claim(runs) for claim in CLAIMS])) for runs in of_data]


def decided(found: list[Answer]) -> list[Answer]:
    """Give the verdicts of claims that are asked together; each counts, so that none is found by asking many."""
    tested = [answer for answer in found if answer.differences and not answer.doubts]
    findings = [all_above(answer.differences) for answer in tested]
    corrected = holm([finding.p for finding in findings])
    for answer, finding, p in zip(tested, findings, corrected, strict=True):
        answer.verdict = "undecided" if p > LEVEL else "agrees" if finding.holds else "disagrees"
        counted = f" counted among {len(tested)} claims" if len(tested) > 1 else ""
        answer.words += f" p = {finding.p:.2g}, {p:.2g}{counted}." if counted else f" p = {finding.p:.2g}."
    for answer in found:
        if answer.differences and answer.doubts:
            answer.verdict = "undecided"
            answer.words += f" That decides nothing: {'; '.join(answer.doubts)}."
    return found


def budgets(runs: Runs) -> str:
    """How many runs speak, and whether they were trained equally long, in a sentence."""
    sets = {m: runs.of(m) for m in FAMILIES if runs.of(m)}
    missing = [model for model in FAMILIES if model not in sets]
    lacking = f"Without a run: {', '.join(missing)}." if missing else ""
    if runs.left_out:
        lacking += f" Pretrained models were not trained alike, and are left out: {len(runs.left_out)}."
    if not sets:
        return lacking
    counts = sorted({len(some) for some in sets.values()})
    seeds = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    times = [seconds_of(r) for some in sets.values() for r in some]
    clock = "of the processor" if all(r.cpu_seconds for some in sets.values() for r in some) else "by the clock"
    known = [t for t in times if t]
    said = "No run says how long it trained."
    if known:
        told = sorted({f"{t:,.0f}" for t in (min(known), max(known))}, key=lambda text: float(text.replace(",", "")))
        equally = "equally long" if max(known) <= EQUAL * min(known) else "unequally long"
        said = f"Trained {equally}: {' to '.join(told)} s {clock}."
    return f"{len(sets)} of {len(FAMILIES)} models, {seeds} seed(s) of each. {said} {lacking}".strip()


def density(runs: Runs) -> Answer:
    """Which has a computable p(x)?"""
    answer = Answer(
        "Which has a computable p(x)?",
        "Autoregressive models have; VAE and diffusion have a bound; GANs and autoencoders have none.",
        "The kind that each run reports, and the number that it measured: = exact, ≤ a bound, ≈ an estimate. A kind "
        "follows from what a model is: it is no measurement, and has no error.",
        head=("model", "kind", "nats", "bits/dim", "of"),
    )
    records = runs.first(FAMILIES)
    shared = {name: runs.measured(FAMILIES, (name,)) for name in ("nats", "bpd")}
    against: list[str] = []
    by_kind: dict[str, list[str]] = {"exact": [], "lower_bound": [], "estimate": [], "none": []}
    for model, r in records.items():
        nats, bpd = (found.get(model, []) for found in shared.values())
        by_kind.setdefault(r.likelihood, []).append(model)
        measured = [m for m in r.measured if m.name in shared and not m.changes]
        if r.likelihood != KINDS[model]:
            against.append(f"{model} reports {r.likelihood}")
        elif r.likelihood == "none" and any(m.relation != "≈" for m in measured):
            against.append(f"{model} has a number, though it reports none")
        elif any(not math.isfinite(m.value) for m in measured):
            against.append(f"{model} measured {next(m.value for m in measured if not math.isfinite(m.value))}")
        told = (_numbers(nats, 2), _numbers(bpd, 3), tag(bpd[0]) if bpd else MISSING)
        answer.rows.append((model, r.likelihood.replace("_", " "), *told))
    answer.needed = runs.lacking(m for m in FAMILIES if m not in records)
    words = {
        "exact": "exactly",
        "lower_bound": "through a bound",
        "estimate": "by an estimate",
        "none": "not at all",
    }
    said = "; ".join(f"{how}: {', '.join(by_kind[kind])}" for kind, how in words.items() if by_kind[kind])
    if against:
        answer.verdict, answer.words = "disagrees", f"{'; '.join(against)}. Computable {said}."
    elif all(by_kind[kind] for kind in set(KINDS.values())):
        answer.verdict, answer.words = "agrees", f"Computable {said}."
    elif said:
        answer.words = f"Computable {said}; of the other kinds there is no run."
    return answer


def direct(runs: Runs) -> Answer:
    """Is the VAE's likelihood below that of a model that computes the density directly?"""
    answer = Answer(
        f"Has a model that computes the density directly, {PIXELCNN}, a better likelihood than the VAE, {VAE}, after "
        "the same training time?",
        "Yes: the VAE's is lower.",
        "Bits per dimension of the same images, lower is better; the VAE's importance-weighted bound where it was "
        "measured, else its ELBO: its true value may be lower still. The others stand beside them.",
        head=("model", "bits/dim", "runs"),
    )
    models = (*AUTOREGRESSIVE, *VAES, DIFFUSION)
    found = runs.measured(models, ("nats",))
    tighter = runs.measured(VAES, ("iw/nats",))
    for model, some in tighter.items():
        if model in found and len(some) == len(found[model]) and _same_images(some[0], found[model][0]):
            found[model] = some
    for model in sorted(found, key=lambda m: fmean(x.value for x in found[m])):
        tight = " by draws" if found[model][0].name.startswith("iw/") else ""
        answer.rows.append((model, f"{_numbers(found[model], 3, _per_bit(runs.data))}{tight}", str(len(found[model]))))
    answer.needed = runs.lacking(m for m in models if m not in found)
    if PIXELCNN in found and VAE in found:
        _duel(answer, runs, found, PIXELCNN, [VAE], "nats", _of_likelihoods)
    return answer


def sampling(runs: Runs) -> Answer:
    """Who samples how fast?"""
    answer = Answer(
        "Is every autoregressive model slower to sample than every VAE and GAN, in a batch and alone, on this machine?",
        "Autoregressive models draw pixel after pixel and are very slow; VAE and GAN need one step.",
        "Seconds an image in batches, and of one image alone; the logarithms of the runs are compared.",
        head=("model", "in a batch", "alone", "network calls", "runs"),
    )
    times: dict[str, tuple[list[float], list[float]]] = {}
    calls: dict[str, int | None] = {}
    for model, some in runs.on_one_machine(FAMILIES, _measured_on).items():
        protocols = [r.sampling.protocol for r in some if r.sampling]
        batched = [p.seconds_per_sample for p in protocols if p.seconds_per_sample]
        alone = [p.seconds_alone for p in protocols if p.seconds_alone]
        if batched:
            times[model], calls[model] = (batched, alone), protocols[0].nfe
    for model in sorted(times, key=lambda m: fmean(times[m][0])):
        batched, alone = times[model]
        told = (duration(fmean(batched)), duration(fmean(alone)) if alone else MISSING)
        count = calls[model]
        answer.rows.append((model, *told, MISSING if count is None else f"{count:,}", str(len(batched))))
    answer.needed = runs.lacking(m for m in FAMILIES if m not in times)
    slow, quick = ([m for m in family if m in times] for family in (AUTOREGRESSIVE, (*VAES, *GANS)))
    if not slow or not quick:
        return answer
    parts = []
    for k, what in enumerate(("in batches", "alone")):
        known = {m: times[m][k] for m in (*slow, *quick) if times[m][k]}
        if len(known) == len(slow) + len(quick):
            a = min(slow, key=lambda m: fmean(known[m]))
            b = max(quick, key=lambda m: fmean(known[m]))
            parts.append(
                f"{what} the fastest autoregressive model, {a}, takes {duration(fmean(known[a]))} and the slowest VAE "
                f"or GAN, {b}, {duration(fmean(known[b]))}"
            )
            logs = {m: [math.log(t) for t in known[m]] for m in known}
            if all(len(values) > 1 for values in logs.values()):
                answer.differences += [welch(logs[one], logs[other]) for other in slow for one in quick]
    answer.words = f"Of an image, {'; '.join(parts)}." if parts else ""
    if parts and not answer.differences:
        answer.verdict, answer.words = "undecided", f"{answer.words} One run of a model has no error."
    answer.tests(answer.differences, runs.few({m: len(times[m][0]) for m in (*slow, *quick)}))
    return answer


def training(runs: Runs) -> Answer:
    """Is the PixelCNN faster to train than the PixelRNN, and at what cost in bits?"""
    answer = Answer(
        f"Is the PixelCNN, {PIXELCNN}, faster to train than a PixelRNN, {PIXELRNN}, of as many parameters, by a core's "
        "seconds, and at what cost in bits?",
        "It is faster, because it trains all pixels in parallel; it sees only a neighbourhood.",
        "Training images for a second of processor time, whose logarithms are compared. In both networks a weight is "
        "used once for every pixel, so equal parameters are about equal arithmetic. It does not tell what a GPU would "
        "say.",
        head=("model", "images a second", "parameters", "bits/dim", "runs"),
    )
    models = (*CONVOLUTIONAL, *RECURRENT)
    sets = {
        m: counted
        for m, some in runs.on_one_machine(models).items()
        if (counted := [r for r in some if r.images_seen and r.cpu_seconds])
    }
    speeds = {m: [(r.images_seen or 0) / (r.cpu_seconds or 1) for r in some] for m, some in sets.items()}
    parameters = {m: some[0].parameters.get("total") for m, some in sets.items()}
    nats = runs.measured(models, ("nats",))
    for m, some in speeds.items():
        bits, count = _numbers(nats.get(m, []), 3, _per_bit(runs.data)), parameters[m]
        answer.rows.append((m, _mean(some, 1), MISSING if count is None else f"{count:,}", bits, str(len(some))))
    answer.needed = runs.lacking(m for m in models if m not in sets)
    if PIXELCNN not in speeds or PIXELRNN not in speeds:
        return answer
    cnn, rnn = speeds[PIXELCNN], speeds[PIXELRNN]
    ratio = fmean(cnn) / fmean(rnn)
    cost = "bits of both by one protocol are missing"
    if PIXELCNN in nats and PIXELRNN in nats and not runs.unequal([PIXELCNN, PIXELRNN]):
        gap = _of_likelihoods(nats[PIXELRNN], nats[PIXELCNN])
        error = f" ± {gap.error / _per_bit(runs.data):.3f}" if gap else ""
        apart = fmean(m.value for m in nats[PIXELCNN]) - fmean(m.value for m in nats[PIXELRNN])
        cost = f"after the same time it has {apart / _per_bit(runs.data):+.3f}{error} bits/dim over {PIXELRNN}"
    answer.words = f"{PIXELCNN} sees {ratio:.3g} times as many images as {PIXELRNN}; {cost}."
    logs = [[math.log(s) for s in some] for some in (rnn, cnn)]
    if min(len(cnn), len(rnn)) < 2:
        answer.verdict = "undecided"
        return answer
    one, other = (parameters[m] or math.nan for m in (PIXELCNN, PIXELRNN))
    matched = max(one, other) <= EQUAL_SIZE * min(one, other)
    unmatched = None if matched else f"{PIXELCNN} has {one:,.0f} parameters and {PIXELRNN} {other:,.0f}"
    answer.tests([welch(*logs)], runs.few({PIXELCNN: len(cnn), PIXELRNN: len(rnn)}), unmatched)
    return answer


def autoencoder(runs: Runs) -> Answer:
    """Does the AE really sample badly?"""
    answer = Answer(
        f"Does the autoencoder sample worse than the VAE of the same networks, {VAE}, when both decode codes from "
        "N(0, I)?",
        "Yes: decoding random codes gives poor images, which is the reason for the VAE.",
        "The distance of samples to the training images, lower is better. A second row of the autoencoder has codes "
        "from a normal distribution fitted to its own, which is what its samples are by default.",
        head=("model", "distance", "runs"),
    )
    models = (AUTOENCODER, VAE)
    found = runs.measured(models, FRECHET, {AUTOENCODER: UNFITTED})
    fitted = runs.measured((AUTOENCODER,), FRECHET).get(AUTOENCODER)
    _distances(answer, runs, found)
    if fitted and fitted != found.get(AUTOENCODER):
        answer.rows.append((f"{AUTOENCODER}, fitted codes", _numbers(fitted, 2), str(len(fitted))))
    answer.needed = runs.lacking(m for m in models if not runs.of(m))
    unmeasured = [str(r.path) for r in runs.of(AUTOENCODER) if AUTOENCODER not in found and _checkpointed(r)]
    if unmeasured:
        checkpoints = ",".join(unmeasured)
        answer.needed.append(
            f"python src/evaluate.py {_quoted('checkpoint', f'[{checkpoints}]')} model.fitted=false metrics=classifier "
            "metrics.samples=1000"
        )
    if len(found) == len(models):
        _duel(answer, runs, found, VAE, [AUTOENCODER], "distance", _of_distances)
    return answer


def samples(runs: Runs) -> Answer:
    """Are the GAN's samples better than those of PixelCNN and VAE?"""
    answer = Answer(
        f"Are the samples of a GAN, {GAN}, better than those of a PixelCNN, {PIXELCNN}, and of a VAE, {VAE}, after the "
        "same training time?",
        "Yes.",
        "The distance of samples to the training images, lower is better. Others stand beside them, and real images "
        "that were held out.",
        head=("model", "distance", "runs"),
    )
    models = (*GANS, *CONVOLUTIONAL, *VAES)
    found = runs.measured(models, FRECHET)
    _distances(answer, runs, found)
    answer.needed = runs.lacking(m for m in models if m not in found)
    if all(m in found for m in (GAN, PIXELCNN, VAE)):
        _duel(answer, runs, found, GAN, [PIXELCNN, VAE], "distance", _of_distances)
    return answer


def blur(runs: Runs) -> Answer:
    """Is the VAE blurrier than the GAN?"""
    answer = Answer(
        f"Are the edges of a VAE's samples, {VAE}, wider than those of a GAN's, {GAN}, and of real images?",
        "Yes: a VAE's samples are blurry.",
        "The width of edges in pixels, which neither the thickness of a stroke nor the contrast changes; of samples, "
        "and of the means of p(x|z) with z from the prior where samples are draws of it, whose noise would hide them.",
        head=("model", "edges", "runs"),
    )
    models = (*VAES, *GANS, *AUTOREGRESSIVE, DIFFUSION)
    found = runs.measured(models, ("edge_width",))
    for m in sorted(found, key=lambda m: fmean(x.value for x in found[m])):
        answer.rows.append((m, _numbers(found[m], 3), str(len(found[m]))))
        if m in (*VAES, *GANS):
            answer.pictures += [(m, r.grid) for r in runs.of(m)[:1] if r.grid is not None]
    if runs.data.binarize or (runs.data.shape and runs.data.shape[3] == 2):
        answer.words = "Edges of two values are one pixel wide: nothing can be asked of them."
        return answer
    beside = [x.protocol for some in found.values() for x in some if x.protocol.held_out_value is not None]
    beside.sort(key=lambda protocol: protocol.held_out_error is None)
    real = beside[0].held_out_value if beside else None
    error, count = (beside[0].held_out_error, beside[0].held_out_images or 0) if beside else (None, 0)
    if real is not None:
        told = f"{real:.3f}" if error is None else f"{real:.3f} ± {error:.3f}"
        answer.rows.append(("held-out images", told, MISSING))
    answer.needed = runs.lacking(m for m in (*VAES, *GANS) if not runs.of(m))
    unmeasured = [r.path for m in (VAE, GAN) if m not in found for r in runs.of(m) if _checkpointed(r)]
    if unmeasured:
        listed = ",".join(map(str, unmeasured))
        answer.needed.append(f"python src/evaluate.py {_quoted('checkpoint', f'[{listed}]')} metrics.samples=1000")
    if VAE in found and GAN in found:
        _duel(answer, runs, found, GAN, [VAE], "pixels", _of_distances, digits=3)
        if real is None or error is None or count < 2:
            answer.doubts.append("how wide the edges of real images are was not measured, or not with its error")
        elif answer.differences:
            answer.differences.append(above([x.value for x in found[VAE]], real, error, count - 1))
            answer.words += f" Held-out images have {real:.3f} ± {error:.3f}."
    return answer


def objective(runs: Runs) -> Answer:
    """Does the non-saturating loss learn faster at the start?"""
    answer = Answer(
        "Does the non-saturating loss learn faster at the start?",
        "Yes: log(1 − D(G(z))) is flat where samples are bad.",
        f"The mean distance of samples over the first {START:.0%} of the images that both saw, lower is faster, of "
        "runs that differ in the objective and the seed alone.",
        head=("model", "objective", "runs", "distance at the start", "at the end of that"),
    )
    comparisons: dict[tuple[str, Settings], dict[str, list[Record]]] = {}
    for r in runs.all:
        if r.model in GANS and r.settings.get(OBJECTIVE) in (MINIMAX, NON_SATURATING):
            comparisons.setdefault((r.model, _aside(r)), {}).setdefault(r.settings[OBJECTIVE], []).append(r)
    most = 0
    for (model, _), by_objective in sorted(comparisons.items(), key=lambda entry: GANS.index(entry[0][0])):
        if len(by_objective) < 2:
            continue
        starts = _starts(by_objective)
        if not starts and not most:
            answer.words = (
                f"Runs of both objectives are there, but not each was measured in its first {START:.0%}: a smaller "
                "every.quality, or a longer run, would do."
            )
        levels = {name: [value for value, _ in values] for name, values in starts.items()}
        for name, values in starts.items():
            told = (str(len(values)), _mean(levels[name], 1), f"{fmean(last for _, last in values):.3g}")
            answer.rows.append((model, name, *told))
        count = min(map(len, starts.values()), default=0)
        if count > most:
            most = count
            slow, quick = levels[MINIMAX], levels[NON_SATURATING]
            answer.words = (
                f"{model}: {_mean(quick, 1)} with the non-saturating, {_mean(slow, 1)} with the minimax objective."
            )
            answer.verdict, answer.differences, answer.doubts = "undecided", [], []
            if count > 1:
                answer.tests([welch(quick, slow)], runs.few({name: len(levels[name]) for name in levels}))
    answer.needed = [runs.command("objectives")] if most < SEEDS else []
    return answer


def _starts(by_objective: dict[str, list[Record]]) -> dict[str, list[tuple[float, float]]]:
    """Of each objective and run the mean distance over the start of training, and the one when it ends.

    Nothing where not all runs were measured by the same distance, and within their start.
    """
    curves = {r: _curves(r) for some in by_objective.values() for r in some}
    shared = [name for name in next(iter(curves.values())) if all(name in of_run for of_run in curves.values())]
    if not shared:
        return {}
    points = {r: of_run[shared[0]] for r, of_run in curves.items()}
    until = START * min(of_run[-1][0] for of_run in points.values())
    if not all(any(0 < images <= until for images, _ in of_run) for of_run in points.values()):
        return {}
    return {name: [_mean_until(points[r], until) for r in some] for name, some in by_objective.items()}


def _curves(record: Record) -> dict[str, list[tuple[float, float]]]:
    """Curves of distances over images seen."""
    found = {}
    for block in record.table.blocks:
        for column, values in block.curves.items():
            points = [(x, y) for x, y in zip(block.images, values, strict=True) if math.isfinite(y)]
            if kind_of(column.removeprefix("val/")) in FRECHET and len(points) > 1:
                found[column] = points
    return found


def _mean_until(points: list[tuple[float, float]], until: float) -> tuple[float, float]:
    """The mean of a curve up to a place, and its value there, straight between its points."""
    x, y = np.array(points).T
    at = np.array([*x[x <= until], until])
    values = np.interp(at, x, y)
    area = (np.diff(at) * (values[1:] + values[:-1]) / 2).sum()
    return float(area / (at[-1] - at[0]) if at[-1] > at[0] else values[-1]), float(values[-1])


def first_pixels(runs: Runs) -> Answer:
    """How much do the first pixels steer an autoregressive sample?"""
    answer = Answer(
        "Do the first pixels steer an autoregressive sample, of every model, as far as in its last third?",
        "The first pixels steer all later ones.",
        "Completions of images that are hidden below: the share of the variance of the completed pixels that what is "
        "shown explains; 0 if completions of one image differ as much as those of different images, 1 if what is shown "
        "leaves no choice. The third that is farthest away is tested, over the runs of each model.",
        head=("model", "shown", "images × completions", "explained", "nearest third", "farthest third", "runs"),
    )
    far: dict[str, list[float]] = {}
    for model in AUTOREGRESSIVE:
        found, picture = [], None
        for r in runs.of(model):
            path = newest(r, "completions")
            steered = steering(path, r.data.shape) if path is not None else None
            if steered is not None:
                found.append(steered)
                picture = picture or path
            elif _checkpointed(r):
                answer.needed.append(
                    f"python src/figure.py figure=completion {_quoted('checkpoint', r.path)} figure.images=40 "
                    f"figure.completions=6 {_quoted('out', r.path / 'samples' / 'completions.png')}"
                )
        if not found or picture is None:
            continue
        shape = f"{found[0].images} × {found[0].completions}"
        far[model] = [s.far.value for s in found]
        shares = (_mean([s.whole.value for s in found], 2), _mean([s.near.value for s in found], 2))
        shown = f"{found[0].shown:.0%} of the rows"
        answer.rows.append((model, shown, shape, *shares, _mean(far[model], 2), str(len(found))))
        answer.pictures.append((f"{model}: image, what is shown, completions", picture))
    answer.needed += runs.lacking(m for m in AUTOREGRESSIVE if not runs.of(m))
    if far:
        answer.verdict = "undecided"
        listed = "; ".join(f"{m} {_mean(values, 2)}" for m, values in far.items())
        answer.words = f"Explained of the farthest third: {listed}."
        tested = [mean_of(values) for values in far.values() if len(values) > 1]
        if len(tested) == len(far):
            answer.tests(tested, runs.few({m: len(values) for m, values in far.items()}))
    return answer


CLAIMS = (density, direct, sampling, training, autoencoder, samples, blur, objective, first_pixels)


def _distances(answer: Answer, runs: Runs, found: dict[str, list[Measured]]) -> None:
    """The rows of a table of distances, the one of held-out images among them, and the pictures."""
    for m in sorted(found, key=lambda m: fmean(x.value for x in found[m])):
        answer.rows.append((m, _numbers(found[m], 2), str(len(found[m]))))
        answer.pictures += [(m, r.grid) for r in runs.of(m)[:1] if r.grid is not None]
    real = next((x.protocol.held_out_value for some in found.values() for x in some if x.protocol.held_out_value), None)
    if real is not None:
        answer.rows.append(("held-out images", f"{real:.2f}", MISSING))


def _duel(
    answer: Answer,
    runs: Runs,
    found: dict[str, list[Measured]],
    winner: str,
    losers: Sequence[str],
    what: str,
    compare: Callable[[list[Measured], list[Measured]], Difference | None],
    digits: int = 2,
) -> None:
    """Test whether the numbers of one model are below those of others.

    Args:
        answer: is given the words and the test.
        runs: the runs.
        found: the numbers of each model.
        winner: which the lecture expects to be lower.
        losers: which it expects to be higher, all of them.
        what: the numbers are called.
        compare: the second less the first; ``None`` where no error can be known.
        digits: of the numbers, behind the point.
    """
    differences = [compare(found[winner], found[loser]) for loser in losers]
    words = []
    for loser, difference in zip(losers, differences, strict=True):
        gap = fmean(m.value for m in found[loser]) - fmean(m.value for m in found[winner])
        error = f" ± {difference.error:.2g}" if difference else " (without a second run it has no error)"
        words.append(f"{loser} has {_numbers(found[loser], digits)}, {gap:+.{digits}f}{error}")
    answer.words = f"{winner} has {_numbers(found[winner], digits)} {what}; {'; '.join(words)}."
    answer.verdict = "undecided"
    known = [difference for difference in differences if difference is not None]
    if len(known) == len(differences):
        sides = {m: len(found[m]) for m in (winner, *losers)}
        answer.tests(known, runs.few(sides), runs.unequal(sides))


def _checkpointed(record: Record) -> bool:
    """Whether a run can still be measured: records that are kept for a board have no weights."""
    return (record.path / "checkpoints").is_dir()


def _of_distances(first: list[Measured], second: list[Measured]) -> Difference | None:
    """The second less the first, by the runs."""
    if min(len(first), len(second)) < 2:
        return None
    return welch([m.value for m in first], [m.value for m in second])


def _of_likelihoods(first: list[Measured], second: list[Measured]) -> Difference | None:
    """The second less the first, in nats, by the runs and the images.

    Where the nats of each image are not kept, the errors of both means are taken for independent, which they are not:
    that makes the error of the difference too large.
    """
    if min(len(first), len(second)) < 2 or (first[0].count or 0) < 2 or not _same_images(first[0], second[0]):
        return None
    each = [[m.of_each_image() for m in side] for side in (first, second)]
    if all(values is not None for side in each for values in side):
        one, other = (np.stack([values for values in side if values is not None]) for side in each)
        return on_the_same_images(one, other)
    gap = welch([m.value for m in first], [m.value for m in second])
    of_images = [(fmean((m.error or 0) ** 2 for m in side), (side[0].count or 2) - 1) for side in (first, second)]
    return combined(gap.value, [(gap.error**2, gap.freedom), *of_images])


def _same_images(first: Measured, second: Measured) -> bool:
    """Whether two likelihoods are of the same images, in the same form."""
    a, b = first.protocol, second.protocol
    return all(
        getattr(a, entry) == getattr(b, entry)
        for entry in ("data", "data_fingerprint", "images", "selection", "binarization", "conditional")
    )


def _per_bit(data: Data) -> float:
    """How many nats of an image are a bit per dimension."""
    return math.log(2) * (math.prod(data.shape[:3]) if data.shape else 1)


def _numbers(found: list[Measured], digits: int, unit: float = 1.0) -> str:
    """The mean of the runs with its standard error, in such a unit; of one run its own error."""
    if not found:
        return MISSING
    if len(found) == 1:
        error = "" if found[0].error is None else f" ± {found[0].error / unit:.{digits}f}"
        return f"{found[0].relation} {found[0].value / unit:,.{digits}f}{error}".strip()
    return f"{found[0].relation} {_mean([m.value / unit for m in found], digits)}".strip()


def _mean(values: Sequence[float], digits: int) -> str:
    """A mean with its standard error over the runs."""
    if not values:
        return MISSING
    error = f" ± {stdev(values) / math.sqrt(len(values)):.{digits}f}" if len(values) > 1 else ""
    return f"{fmean(values):,.{digits}f}{error}"


def _quoted(key: str, value: object) -> str:
    """A setting for a command that somebody may copy into a shell, with a value of whatever origin."""
    return shlex.quote(printable(f"{key}={value}"))


def _aside(record: Record) -> Settings:
    """The settings in which runs of one comparison of objectives agree."""
    return tuple(sorted((key, str(value)) for key, value in record.settings.items() if not key.startswith(ASIDE)))
