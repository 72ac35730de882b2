"""The lecture's claims, held against the numbers of a board: every answer is computed, every missing run is named."""

import math
import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, stdev
from typing import Literal

import numpy as np

from imago.board.board import FRECHET, MISSING, Board, duration, number, tag
from imago.board.grids import of_originals, roughness, steering, tiles
from imago.board.records import Data, Measured, Record, newest
from imago.errors import printable
from imago.statistics import Estimate

Verdict = Literal["agrees", "disagrees", "undecided", "open"]

AUTOENCODER = "autoencoder"
CONVOLUTIONAL = ("pixelcnn", "gated_pixelcnn")
RECURRENT = ("row_lstm", "diagonal_bilstm")
AUTOREGRESSIVE = ("fvbn", "made", *CONVOLUTIONAL, *RECURRENT)
VAES = ("vae", "conv_vae", "hvae")
GANS = ("gan", "dcgan")
DIFFUSION = "ddpm"
FAMILIES = (AUTOENCODER, *AUTOREGRESSIVE, *VAES, *GANS, DIFFUSION)
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
# Two standard errors: what is closer than that is undecided.
ERRORS = 2.0
# Training seconds of runs that are called equally long differ by no more.
EQUAL = 1.25
# The share of training that is its start.
START = 0.25


@dataclass
class Answer:
    """One claim and what the runs say.

    Attributes:
        claim: as a question.
        said: what the lecture says.
        measure: how it is measured here, and what that cannot tell.
        verdict: "agrees" and "disagrees" are about the lecture; "open" where runs are missing.
        words: the answer in a sentence, with its numbers.
        head: titles of the table of numbers.
        rows: the numbers.
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
    needed: list[str] = field(default_factory=list)
    pictures: list[tuple[str, Path]] = field(default_factory=list)

    @property
    def remedy(self) -> str:
        """What the commands are for."""
        return "Would answer it" if self.verdict == "open" else "Would add to it"


class Runs:
    """The runs on one data set.

    Args:
        data: what they were trained on.
        records: the runs. Of several of a model the one that trained longest speaks, of those the newest. Generators
            that learn by the minimax objective speak in the comparison of objectives alone, and those that were trained
            beside them elsewhere only where there is no other.
    """

    def __init__(self, data: Data, records: Iterable[Record]) -> None:
        self.data = data
        self.all = list(records)
        plain = [r for r in self.all if r.settings.get(OBJECTIVE) != MINIMAX]
        compared = {_aside(r) for r in self.all if r.settings.get(OBJECTIVE) == MINIMAX}
        self.usual = sorted(
            plain, key=lambda r: (_aside(r) not in compared, r.training_seconds or 0, r.started), reverse=True
        )

    @property
    def seconds(self) -> int:
        """The training time that most runs had, for commands."""
        times = [round(r.training_seconds) for r in self.usual if r.training_seconds]
        return max(1, Counter(times).most_common(1)[0][0]) if times else 60

    def first(self, models: Sequence[str], wanted: Callable[[Record], bool] = lambda _: True) -> dict[str, Record]:
        """The run that speaks for each model, of those that have what is wanted."""
        found = {m: next((r for r in self.usual if r.model == m and wanted(r)), None) for m in models}
        return {model: record for model, record in found.items() if record is not None}

    def measured(self, models: Sequence[str], names: tuple[str, ...]) -> dict[str, tuple[Record, Measured]]:
        """One number of each model, all of one protocol: of the name and protocol that most models have.

        A run that was measured by several protocols speaks in the one that it shares with the others; of two that
        equally many have, the test split comes before the validation split, and more images before fewer.

        Args:
            names: beginnings of the names, in the order in which they are preferred.
        """
        found: dict[tuple[str, str], dict[str, tuple[Record, Measured]]] = {}
        for record in self.usual:
            for name in {m.name for m in record.measured if m.name.startswith(names)}:
                for comparison_key, m in record.by_comparison_key(name).items():
                    if math.isfinite(m.value) and record.model in models:
                        found.setdefault((name, comparison_key), {}).setdefault(record.model, (record, m))
        best = max(found.values(), key=_weight, default={})
        return {model: best[model] for model in models if model in best}

    def on_one_machine(self, records: dict[str, Record]) -> dict[str, Record]:
        """Those of the machine that most ran on: times on different ones do not compare."""
        usual = Counter(r.machine for r in records.values()).most_common(1)
        return {model: r for model, r in records.items() if r.machine == usual[0][0]} if usual else {}

    def command(self, sweep: str, *settings: str) -> str:
        """The command that trains what is missing."""
        binarize = f" {_quoted('data.binarize', self.data.binarize)}" if self.data.binarize else ""
        settings = (*[f"data.val={self.data.val}"] * (self.data.val is not None), *settings)
        chosen = "".join(f" {setting}" for setting in settings)
        return (
            f"python src/train.py -m sweep={sweep} {_quoted('data', self.data.name)}{binarize}{chosen} "
            f"max_seconds={self.seconds}"
        )

    def lacking(self, models: Iterable[str]) -> list[str]:
        """The command that trains models, if there are any."""
        listed = ",".join(models)
        return [self.command("lecture", f"model={listed}")] if listed else []


def _weight(by_model: dict[str, tuple[Record, Measured]]) -> tuple[int, int, int]:
    """How many models a protocol has, how many of them not on the validation split, and of how many images."""
    measured = [m for _, m in by_model.values()]
    return len(measured), sum(m.split != "val" for m in measured), max(m.count or 0 for m in measured)


def answers(board: Board) -> list[tuple[Runs, list[Answer]]]:
    """Every claim on every data set of the board."""
    of_data = [Runs(group.data, [row.record for row in group.rows]) for group in board.groups]
    return [(runs, [claim(runs) for claim in CLAIMS]) for runs in of_data]


def budgets(runs: Runs) -> str:
    """Whether the runs that speak were trained equally long, in a sentence."""
    times = {m: r.training_seconds for m, r in runs.first(FAMILIES).items() if r.training_seconds}
    missing = [model for model in FAMILIES if model not in times]
    lacking = f"Without a run: {', '.join(missing)}." if missing else ""
    if not times:
        return f"No run says how long it trained. {lacking}".strip()
    low, high = min(times, key=times.__getitem__), max(times, key=times.__getitem__)
    if times[high] <= EQUAL * times[low]:
        shortest, longest = f"{times[low]:,.0f}", f"{times[high]:,.0f}"
        said = f"All trained equally long: {shortest if shortest == longest else f'{shortest} to {longest}'} s."
    else:
        said = f"They trained for {times[low]:,.0f} s ({low}) to {times[high]:,.0f} s ({high}), so unequally long."
    return f"{len(times)} of {len(FAMILIES)} models. {said} {lacking}".strip()


def density(runs: Runs) -> Answer:
    """Which has a computable p(x)?"""
    answer = Answer(
        "Which has a computable p(x)?",
        "Autoregressive models have; VAE and diffusion have a bound; GANs and autoencoders have none.",
        "The kind that each run reports, and the number that it measured: = exact, ≤ a bound, ≈ an estimate.",
        head=("model", "kind", "nats", "bits/dim", "of"),
    )
    records = runs.first(FAMILIES)
    shared = {name: runs.measured(FAMILIES, (name,)) for name in ("nats", "bpd")}
    against: list[str] = []
    by_kind: dict[str, list[str]] = {"exact": [], "lower_bound": [], "estimate": [], "none": []}
    for model, r in records.items():
        nats, bpd = (
            found[model][1] if model in found and found[model][0] is r else r.headline(name)
            for name, found in shared.items()
        )
        by_kind.setdefault(r.likelihood, []).append(model)
        if r.likelihood != KINDS[model]:
            against.append(f"{model} reports {r.likelihood}")
        elif r.likelihood == "none" and nats is not None:
            against.append(f"{model} has a number, though it reports none")
        elif nats is not None and not math.isfinite(nats.value):
            against.append(f"{model} measured {nats.value}")
        told = (_number(nats, 2), _number(bpd, 3), tag(bpd) if bpd else MISSING)
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
    """Is the VAE's likelihood below that of models that compute the density directly?"""
    answer = Answer(
        "Do models that compute the density directly have a better likelihood than the VAE?",
        "Yes: the VAE's is lower.",
        "Bits per dimension of the same images, lower is better. The VAE's are a bound: its true value may be lower.",
        head=("model", "bits/dim"),
    )
    found = runs.measured((*AUTOREGRESSIVE, *VAES, DIFFUSION), ("bpd",))
    return _duel(answer, runs, found, 3, AUTOREGRESSIVE, VAES)


def sampling(runs: Runs) -> Answer:
    """Who samples how fast?"""
    answer = Answer(
        "Who samples how fast?",
        "Autoregressive models draw pixel after pixel and are very slow; VAE and GAN need one step.",
        "Seconds an image in the batches that were measured, on one machine. Agreement is: every autoregressive model "
        "is slower than every VAE and GAN.",
        head=("model", "time of an image", "network calls", "against the fastest"),
    )
    records = runs.on_one_machine(runs.first(FAMILIES, lambda r: r.sampling is not None))
    found = {m: r.sampling.protocol for m, r in records.items() if r.sampling}
    costs = {m: protocol.seconds_per_sample for m, protocol in found.items() if protocol.seconds_per_sample}
    order = sorted(costs, key=costs.__getitem__)
    for model in order:
        t, calls = costs[model], found[model].nfe
        calls_told = MISSING if calls is None else f"{calls:,}"
        answer.rows.append((model, duration(t), calls_told, f"{_times(t / costs[order[0]])}×"))
    answer.needed = runs.lacking(m for m in FAMILIES if m not in costs)
    a, b = _best(AUTOREGRESSIVE, costs), _best((*VAES, *GANS), costs, max)
    if a and b:
        answer.verdict = _order(costs, (*VAES, *GANS), AUTOREGRESSIVE)
        x, y, low, high = (costs[m] for m in (a, b, order[0], order[-1]))
        answer.words = (
            f"The fastest autoregressive model, {a}, takes {duration(x)}; the slowest VAE or GAN, {b}, {duration(y)}. "
            f"Of all, {order[0]} is fastest ({duration(low)}) and {order[-1]} slowest "
            f"({duration(high)}, {_times(high / low)} times that)."
        )
    return answer


def _times(ratio: float) -> str:
    return f"{ratio:,.0f}" if ratio >= 1000 else f"{ratio:.3g}"


def training(runs: Runs) -> Answer:
    """Is the PixelCNN faster to train than the PixelRNN, and at what cost in bits?"""
    answer = Answer(
        "Is the PixelCNN faster to train than the PixelRNN, and at what cost in bits?",
        "It is faster, because it trains all pixels in parallel; it sees only a neighbourhood.",
        "Training images a second on one machine, and bits per dimension of the same images at the end.",
        head=("model", "images a second", "training", "bits/dim"),
    )
    models = (*CONVOLUTIONAL, *RECURRENT)
    records = runs.on_one_machine(runs.first(models, lambda r: bool(r.images_seen and r.training_seconds)))
    times = {m: r.training_seconds or 1 for m, r in records.items()}
    speeds = {m: (r.images_seen or 0) / times[m] for m, r in records.items()}
    bits = {m: x for m, (r, x) in runs.measured(models, ("bpd",)).items() if r is records.get(m)}
    for m in records:
        answer.rows.append((m, f"{speeds[m]:,.3g}", f"{times[m]:,.0f} s", _number(bits.get(m), 3)))
    answer.needed = runs.lacking(m for m in models if m not in records)
    cnn, rnn = (_best(side, speeds, max) for side in (CONVOLUTIONAL, RECURRENT))
    if cnn and rnn:
        answer.verdict = _order(speeds, RECURRENT, CONVOLUTIONAL)
        cost = "bits of both by one protocol are missing"
        a, b = (_best(side, {m: x.value for m, x in bits.items()}) for side in (CONVOLUTIONAL, RECURRENT))
        if a and b:
            gap, error = _gap(bits[b], bits[a])
            equal = max(times[a], times[b]) <= EQUAL * min(times[a], times[b])
            after = "the same time" if equal else f"{times[a]:,.0f} s against {times[b]:,.0f} s"
            cost = f"after {after} {a} has {gap:+.3f} ± {error:.3f} bits/dim over {b}"
        ratio = speeds[cnn] / speeds[rnn]
        answer.words = f"{cnn} sees {ratio:.3g} times as many images a second as {rnn}; {cost}."
    return answer


def autoencoder(runs: Runs) -> Answer:
    """Does the AE really sample badly?"""
    answer = Answer(
        "Does the autoencoder really sample badly?",
        "Yes: decoding random codes gives poor images, which is the reason for the VAE.",
        "The distance of samples to the training images, lower is better. Its codes are drawn as the run says: "
        "model.fitted=true from a normal distribution fitted to the codes, false from N(0, I).",
        head=("model", "distance", "how"),
    )
    found = runs.measured((AUTOENCODER, *VAES), FRECHET)
    _duel(answer, runs, found, 2, VAES, (AUTOENCODER,))
    how = {m: f"model.fitted={found[m][0].settings.get('model.fitted', 'unknown')}" for m in found if m == AUTOENCODER}
    answer.rows = [(*row, how.get(row[0], "")) for row in answer.rows]
    return answer


def samples(runs: Runs) -> Answer:
    """Are the GAN's samples better than those of PixelCNN and VAE?"""
    answer = Answer(
        "Are a GAN's samples better than those of PixelCNN and VAE?",
        "Yes.",
        "The distance of samples to the training images, lower is better; the best of each family.",
        head=("model", "distance"),
    )
    found = runs.measured((*GANS, *CONVOLUTIONAL, *VAES), FRECHET)
    return _duel(answer, runs, found, 2, GANS, CONVOLUTIONAL, VAES)


def _duel(
    answer: Answer,
    runs: Runs,
    found: dict[str, tuple[Record, Measured]],
    digits: int,
    winners: Sequence[str],
    *losers: Sequence[str],
) -> Answer:
    """Whether the best of the expected winners is below the best of the expected losers, by two standard errors.

    Args:
        found: the number of each model.
        digits: of the numbers, behind the point.
        winners: a family.
        losers: families, of which each must have a number.
    """
    values = {m: x.value for m, (_, x) in found.items()}
    answer.rows = [(m, _number(found[m][1], digits)) for m in sorted(values, key=values.__getitem__)]
    answer.needed = runs.lacking(m for family in (winners, *losers) for m in family if m not in found)
    if answer.head[1] == "distance":
        answer.pictures = [(m, r.grid) for m, (r, _) in found.items() if r.grid is not None]
    first, *others = (_best(family, values) for family in (winners, *losers))
    if first and all(others):
        second = min((m for m in others if m), key=values.__getitem__)
        x, y = found[first][1], found[second][1]
        gap, error = _gap(x, y)
        answer.verdict = _beyond(gap, error)
        answer.words = (
            f"{first} {_number(x, digits)}, {second} {_number(y, digits)} {answer.head[1]}: "
            f"{first} is {'better' if gap > 0 else 'worse'} by {abs(gap):.{digits}f} "
            f"{f'± {error:.{digits}f}' if error else '(its error is unknown)'}."
        )
    return answer


def blur(runs: Runs) -> Answer:
    """Is the VAE blurrier than the GAN?"""
    answer = Answer(
        "Is the VAE blurrier than the GAN?",
        "Yes.",
        "Squared differences of neighbouring pixels over the variance of pixels, in the newest grids, in units of the "
        "same of real images: below 1 is smoother than those, above 1 rougher, which may be noise and not sharpness. "
        "Where samples are draws of p(x|z), pixel noise would hide the blur: then the decoder's means are measured, of "
        "encoded images. Agreement is: every VAE is below 1 and below every GAN.",
        head=("model", "what is measured", "of real images"),
    )
    originals = (of_originals(newest(r, "reconstructions"), r.data.shape) for r in runs.usual)
    real = next((ratio for images in originals if (ratio := roughness(images))), None)
    found: dict[str, Estimate] = {}
    for model, r in runs.first((*VAES, *GANS, *AUTOREGRESSIVE, DIFFUSION), lambda r: r.grid is not None).items():
        noisy = r.settings.get("model.observation_noise", "false").lower() == "true"
        path = newest(r, "reconstructions") if noisy else r.grid
        ratio = roughness(of_originals(path, r.data.shape, True) if noisy else tiles(path, r.data.shape))
        if ratio is None or real is None or path is None:
            continue
        found[model] = ratio.over(real)
        what = "means of reconstructions" if noisy else "samples"
        answer.rows.append((model, what, str(found[model])))
        if model in (*VAES, *GANS):
            answer.pictures.append((f"{model}: {what}", path))
    answer.needed = runs.lacking(m for m in (*VAES, *GANS) if m not in found)
    values = {"real images": 1.0} | {m: x.value for m, x in found.items()}
    if _best(VAES, values) and _best(GANS, values):
        answer.verdict = _order(values, VAES, ("real images", *GANS))
        shown = {m: found[m] for m in (*VAES, *GANS) if m in found}
        rough = [m for m, x in shown.items() if x.value - ERRORS * x.error > 1]
        answer.words = f"In units of real images: {'; '.join(f'{m} {x}' for m, x in shown.items())}."
        if rough:
            answer.words += f" {', '.join(rough)}: rougher than real images, so at least in part noise."
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
    answer.needed = [runs.command("objectives")]
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
        means = {}
        for name, values in starts.items():
            level, n = [value for value, _ in values], len(values)
            means[name] = Estimate(fmean(level), stdev(level) / math.sqrt(n) if n > 1 else 0.0)
            told = f"{means[name].value:.3g}" + (f" ± {means[name].error:.2g}" if n > 1 else "")
            answer.rows.append((model, name, str(n), told, f"{fmean(last for _, last in values):.3g}"))
        count = min(map(len, starts.values()), default=0)
        if count > most:
            most = count
            slow, quick = means[MINIMAX], means[NON_SATURATING]
            gap, error = slow.value - quick.value, math.hypot(slow.error, quick.error)
            answer.verdict = _beyond(gap, error)
            answer.words = (
                f"{model}: {quick.value:.3g} with the non-saturating, {slow.value:.3g} with the minimax objective, a "
                f"difference of {gap:+.3g} ± {error:.2g} over {count} run{'s' * (count != 1)} each"
                f"{' (one seed: no error is known)' if count == 1 else ''}."
            )
    answer.needed = answer.needed if most < 2 else []
    return answer


def _starts(by_objective: dict[str, list[Record]]) -> dict[str, list[tuple[float, float]]]:
    """Of each objective and run the mean distance over the start of training, and the one when it ends.

    Nothing where not all runs were measured by the same distance, and within their start.
    """
    curves = {r: _distances(r) for some in by_objective.values() for r in some}
    shared = [name for name in next(iter(curves.values())) if all(name in of_run for of_run in curves.values())]
    if not shared:
        return {}
    points = {r: of_run[shared[0]] for r, of_run in curves.items()}
    until = START * min(of_run[-1][0] for of_run in points.values())
    if not all(any(0 < images <= until for images, _ in of_run) for of_run in points.values()):
        return {}
    return {name: [_mean_until(points[r], until) for r in some] for name, some in by_objective.items()}


def _distances(record: Record) -> dict[str, list[tuple[float, float]]]:
    """Curves of distances over images seen."""
    found = {}
    for block in record.table.blocks:
        for column, values in block.curves.items():
            points = [(x, y) for x, y in zip(block.images, values, strict=True) if math.isfinite(y)]
            if column.removeprefix("val/").startswith(FRECHET) and len(points) > 1:
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
        "How much do the first pixels steer an autoregressive sample?",
        "The first pixels steer all later ones.",
        "Completions of images that are hidden below: the share of the variance of the completed pixels that what is "
        "shown explains; 0 if completions of one image differ as much as those of different images, 1 if what is shown "
        "leaves no choice. Agreement is: more than 0, by two standard errors, in the third that is farthest away too.",
        head=("model", "shown", "images × completions", "explained", "nearest third", "farthest third"),
    )
    records, far = runs.first(AUTOREGRESSIVE, lambda r: r.path.exists()), []
    for model, r in records.items():
        path = newest(r, "completions")
        found = steering(path, r.data.shape) if path is not None else None
        if path is None or found is None:
            answer.needed.append(
                f"python src/figure.py figure=completion {_quoted('checkpoint', r.path)} figure.images=40 "
                f"figure.completions=6 {_quoted('out', r.path / 'samples' / 'completions.png')}"
            )
            continue
        shape = f"{found.images} × {found.completions}"
        shares = (str(found.whole), str(found.near), str(found.far))
        answer.rows.append((model, f"{found.shown:.0%} of the rows", shape, *shares))
        answer.pictures.append((f"{model}: image, what is shown, completions", path))
        far.append((model, found))
    answer.needed += runs.lacking(m for m in AUTOREGRESSIVE if m not in records)
    if far:
        steered = [found.far.value > ERRORS * found.far.error for _, found in far]
        answer.verdict = "agrees" if all(steered) else "undecided" if any(steered) else "disagrees"
        listed = "; ".join(f"{m} {found.whole}, farthest third {found.far}" for m, found in far)
        answer.words = f"Explained by what is shown: {listed}."
    return answer


CLAIMS = (density, direct, sampling, training, autoencoder, samples, blur, objective, first_pixels)


def _best(family: Sequence[str], values: Mapping[str, float], choose: Callable[..., str | None] = min) -> str | None:
    """The model of a family with the lowest value, or the highest by ``max``; ``None`` if none has one."""
    return choose((m for m in family if m in values), key=values.__getitem__, default=None)


def _order(values: Mapping[str, float], below: Sequence[str], above: Sequence[str]) -> Verdict:
    """Whether the values of all of the first are below those of all of the second, none is, or some are."""
    low, high = ([values[m] for m in side if m in values] for side in (below, above))
    return "agrees" if max(low) < min(high) else "disagrees" if min(low) >= max(high) else "undecided"


def _gap(first: Measured, second: Measured) -> tuple[float, float]:
    """By how much the first is lower, and the error of that."""
    return second.value - first.value, math.hypot(first.error or 0, second.error or 0)


def _beyond(gap: float, error: float) -> Verdict:
    return "agrees" if gap > ERRORS * error else "disagrees" if gap < -ERRORS * error else "undecided"


def _number(m: Measured | None, digits: int) -> str:
    return number(m, digits) if m else MISSING


def _quoted(key: str, value: object) -> str:
    """A setting for a command that somebody may copy into a shell, with a value of whatever origin."""
    return shlex.quote(printable(f"{key}={value}"))


def _aside(record: Record) -> Settings:
    """The settings in which runs of one comparison of objectives agree."""
    return tuple(sorted((key, str(value)) for key, value in record.settings.items() if not key.startswith(ASIDE)))
