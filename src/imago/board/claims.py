"""The lecture's claims, held against the numbers of a board: every answer is computed, every missing run is named."""

import math
import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import fmean, stdev
from typing import Literal

from imago.board.board import FRECHET, Board, duration, si
from imago.board.grids import Layout, Tiles, of_originals, roughness, steering, tiles
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
# Settings in which runs of one comparison may differ: seeds, and what does not touch training.
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
        "The kind that each run reports, and the number that it measured: = exact, ≤ a bound.",
        head=("model", "kind", "nats", "bits/dim", "of"),
    )
    records = runs.first(FAMILIES)
    shared = {name: runs.measured(FAMILIES, (name,)) for name in ("nats", "bpd")}
    against: list[str] = []
    by_kind: dict[str, list[str]] = {"exact": [], "lower_bound": [], "none": []}
    for model, r in records.items():
        nats, bpd = (
            found[model][1] if model in found and found[model][0] is r else r.headline(name)
            for name, found in shared.items()
        )
        if r.likelihood in by_kind:
            by_kind[r.likelihood].append(model)
        if r.likelihood != KINDS[model]:
            against.append(f"{model} reports {r.likelihood}")
        elif r.likelihood == "none" and nats is not None:
            against.append(f"{model} has a number, though it reports none")
        elif nats is not None and not math.isfinite(nats.value):
            against.append(f"{model} measured {nats.value}")
        of = "–" if bpd is None else bpd.split if bpd.count is None else f"{bpd.split} {si(bpd.count)}"
        answer.rows.append((model, r.likelihood.replace("_", " "), _number(nats, 2), _number(bpd, 3), of))
    answer.needed = runs.lacking(m for m in FAMILIES if m not in records)
    words = {"exact": "exactly", "lower_bound": "through a bound", "none": "not at all"}
    said = "; ".join(f"{words[kind]}: {', '.join(models)}" for kind, models in by_kind.items() if models)
    if against:
        answer.verdict, answer.words = "disagrees", f"{'; '.join(against)}. Computable {said}."
    elif all(by_kind.values()):
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
    answer.rows = [(m, _number(x, 3)) for m, (_, x) in sorted(found.items(), key=lambda e: e[1][1].value)]
    return _duel(answer, runs, found, AUTOREGRESSIVE, VAES, "bits/dim", 3)


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
    times = {m: r.sampling.seconds_per_sample for m, r in records.items() if r.sampling}
    costs = {m: t for m, t in sorted(times.items(), key=lambda e: e[1] or 0) if t}
    for model, t in costs.items():
        calls = records[model].sampling.nfe  # type: ignore[union-attr]
        times_slower = t / min(costs.values())
        answer.rows.append((model, duration(t), "–" if calls is None else f"{calls:,}", f"{_times(times_slower)}×"))
    slow = {m: t for m, t in costs.items() if m in AUTOREGRESSIVE}
    fast = {m: t for m, t in costs.items() if m in (*VAES, *GANS)}
    answer.needed = runs.lacking(m for m in FAMILIES if m not in costs)
    if slow and fast:
        answer.verdict = _order(list(fast.values()), list(slow.values()))
        (a, x), (b, y) = min(slow.items(), key=lambda e: e[1]), max(fast.items(), key=lambda e: e[1])
        fastest, slowest = next(iter(costs)), list(costs)[-1]
        answer.words = (
            f"The fastest autoregressive model, {a}, takes {duration(x)}; the slowest VAE or GAN, {b}, {duration(y)}. "
            f"Of all, {fastest} is fastest ({duration(costs[fastest])}) and {slowest} slowest "
            f"({duration(costs[slowest])}, {_times(costs[slowest] / costs[fastest])} times that)."
        )
    return answer


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
    speeds = {m: (r.images_seen or 0) / (r.training_seconds or 1) for m, r in records.items()}
    bits = {m: x for m, (r, x) in runs.measured(models, ("bpd",)).items() if r is records.get(m)}
    for m, r in records.items():
        answer.rows.append((m, f"{speeds[m]:,.3g}", f"{r.training_seconds:,.0f} s", _number(bits.get(m), 3)))
    cnn, rnn = ([speeds[m] for m in side if m in speeds] for side in (CONVOLUTIONAL, RECURRENT))
    answer.needed = runs.lacking(m for m in models if m not in records)
    if not (cnn and rnn):
        return answer
    answer.verdict = _order(rnn, cnn)
    first, second = (
        max((m for m in side if m in speeds), key=speeds.__getitem__) for side in (CONVOLUTIONAL, RECURRENT)
    )
    answer.words = f"{first} sees {speeds[first] / speeds[second]:.3g} times as many images a second as {second}"
    best = [
        min((m for m in side if m in bits), key=lambda m: bits[m].value, default=None)
        for side in (CONVOLUTIONAL, RECURRENT)
    ]
    a, b = best
    if a is not None and b is not None:
        cost = bits[a].value - bits[b].value
        times = [records[m].training_seconds or 0 for m in (a, b)]
        equal = "the same time" if max(times) <= EQUAL * min(times) else f"{times[0]:,.0f} s against {times[1]:,.0f} s"
        error = math.hypot(bits[a].error or 0, bits[b].error or 0)
        answer.words += f"; after {equal} {a} has {cost:+.3f} ± {error:.3f} bits/dim over {b}"
    else:
        answer.words += "; bits of both by one protocol are missing"
    answer.words += "."
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
    for m, (r, x) in found.items():
        fitted = f"model.fitted={r.settings.get('model.fitted', 'unknown')}" if m == AUTOENCODER else ""
        answer.rows.append((m, _number(x, 2), fitted))
    answer.pictures = _grids(found)
    return _duel(answer, runs, found, VAES, (AUTOENCODER,), "distance", 2)


def samples(runs: Runs) -> Answer:
    """Are the GAN's samples better than those of PixelCNN and VAE?"""
    answer = Answer(
        "Are a GAN's samples better than those of PixelCNN and VAE?",
        "Yes.",
        "The distance of samples to the training images, lower is better; the best of each family.",
        head=("model", "distance"),
    )
    rivals = (*CONVOLUTIONAL, *VAES)
    found = runs.measured((*GANS, *rivals), FRECHET)
    answer.rows = [(m, _number(x, 2)) for m, (_, x) in sorted(found.items(), key=lambda e: e[1][1].value)]
    answer.pictures = _grids(found)
    if not all(any(m in found for m in family) for family in (CONVOLUTIONAL, VAES)):  # the claim is about both
        answer.needed = runs.lacking(m for m in (*GANS, *rivals) if m not in found)
        return answer
    return _duel(answer, runs, found, GANS, rivals, "distance", 2)


def _times(ratio: float) -> str:
    return f"{ratio:,.0f}" if ratio >= 1000 else f"{ratio:.3g}"


def _duel(
    answer: Answer,
    runs: Runs,
    found: dict[str, tuple[Record, Measured]],
    winners: Sequence[str],
    losers: Sequence[str],
    unit: str,
    digits: int,
) -> Answer:
    """Whether the best of those that shall win is below the best of those that shall lose, by two standard errors."""
    answer.needed = runs.lacking(m for m in (*winners, *losers) if m not in found)
    sides = [{m: found[m][1] for m in side if m in found} for side in (winners, losers)]
    if all(sides):
        (a, x), (b, y) = (min(side.items(), key=lambda e: e[1].value) for side in sides)
        error = math.hypot(x.error or 0, y.error or 0)
        told = f"± {error:.{digits}f}" if error else "(its error is unknown)"
        gap = y.value - x.value
        answer.verdict = "agrees" if gap > ERRORS * error else "disagrees" if gap < -ERRORS * error else "undecided"
        answer.words = (
            f"{a} {_number(x, digits)}, {b} {_number(y, digits)} {unit}: "
            f"{a} is {'better' if gap > 0 else 'worse'} by {abs(gap):.{digits}f} {told}."
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
    real = next(
        (ratio for r in runs.usual if (ratio := _rough(of_originals(newest(r, "reconstructions"), _layout(r))))), None
    )
    found: dict[str, Estimate] = {}
    for model, r in runs.first((*VAES, *GANS, *AUTOREGRESSIVE, DIFFUSION), lambda r: r.grid is not None).items():
        noisy = r.settings.get("model.observation_noise", "false").lower() == "true"
        if noisy:
            ratio = _rough(of_originals(newest(r, "reconstructions"), _layout(r), reconstructed=True))
        else:
            ratio = _rough(tiles(r.grid, _layout(r)))
        if ratio is None or real is None:
            continue
        found[model] = ratio.over(real)
        what = "means of reconstructions" if noisy else "samples"
        answer.rows.append((model, what, str(found[model])))
        path = newest(r, "reconstructions") if noisy else r.grid
        if path is not None and model in (*VAES, *GANS):
            answer.pictures.append((f"{model}: {what}", path))
    sides = [{m: found[m] for m in side if m in found} for side in (VAES, GANS)]
    missing = [m for m in (*VAES, *GANS) if m not in found]
    answer.needed = runs.lacking(missing if real is not None else [*VAES, *GANS])
    if all(sides):
        vae, gan = ([(m, ratio) for m, ratio in side.items()] for side in sides)
        answer.verdict = _order([x.value for _, x in vae], [1.0, *(x.value for _, x in gan)])
        listed = "; ".join(f"{m} {ratio}" for m, ratio in (*vae, *gan))
        rough = [m for m, x in (*vae, *gan) if x.value - ERRORS * x.error > 1]
        answer.words = f"In units of real images: {listed}."
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
    best: tuple[int, Verdict, str] | None = None
    for model in GANS:
        by_settings: dict[tuple[tuple[str, str], ...], dict[str, list[Record]]] = {}
        for r in runs.all:
            if r.model == model and r.settings.get(OBJECTIVE) in (MINIMAX, NON_SATURATING):
                same = _aside(r)
                by_settings.setdefault(same, {}).setdefault(r.settings[OBJECTIVE], []).append(r)
        for by_objective in by_settings.values():
            starts = _starts(by_objective)
            if starts is None:
                if len(by_objective) == 2 and best is None:
                    answer.words = (
                        f"Runs of both objectives are there, but not each was measured in its first {START:.0%}: a "
                        "smaller every.quality, or a longer run, would do."
                    )
                continue
            means, errors = {}, {}
            for name, values in starts.items():
                means[name] = fmean(value for value, _ in values)
                errors[name] = stdev(v for v, _ in values) / math.sqrt(len(values)) if len(values) > 1 else None
                told = f"{means[name]:.3g}" + ("" if errors[name] is None else f" ± {errors[name]:.2g}")
                end = f"{fmean(last for _, last in values):.3g}"
                answer.rows.append((model, name, str(len(values)), told, end))
            gap = means[MINIMAX] - means[NON_SATURATING]
            error = math.hypot(errors[MINIMAX] or 0, errors[NON_SATURATING] or 0)
            verdict: Verdict = (
                "agrees" if gap > ERRORS * error else "disagrees" if gap < -ERRORS * error else "undecided"
            )
            count = min(len(values) for values in starts.values())
            words = (
                f"{model}: {means[NON_SATURATING]:.3g} with the non-saturating, {means[MINIMAX]:.3g} with the minimax "
                f"objective, a difference of {gap:+.3g} ± {error:.2g} over {count} run{'s' * (count != 1)} each"
                f"{' (one seed: no error is known)' if count == 1 else ''}."
            )
            if best is None or count > best[0]:
                best = (count, verdict, words)
    if best is not None:
        _, answer.verdict, answer.words = best
        answer.needed = answer.needed if best[0] == 1 else []
    return answer


def _starts(by_objective: dict[str, list[Record]]) -> dict[str, list[tuple[float, float]]] | None:
    """Of both objectives and each run the mean distance over the start of training, and the one when it ends."""
    if len(by_objective) < 2:
        return None
    records = [r for some in by_objective.values() for r in some]
    curves = {r: _distances(r) for r in records}
    names = Counter(name for by_name in curves.values() for name in by_name)
    name = next((name for name, count in names.most_common(1) if count == len(records)), None)
    if name is None:
        return None
    until = START * min(curves[r][name][-1][0] for r in records)
    if any(not any(0 < images <= until for images, _ in curves[r][name]) for r in records):
        return None
    return {key: [_mean_until(curves[r][name], until) for r in some] for key, some in by_objective.items()}


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
    inside = [point for point in points if point[0] <= until]
    after = next((point for point in points if point[0] > until), None)
    if after is not None:
        (x0, y0), (x1, y1) = inside[-1], after
        inside.append((until, y0 + (y1 - y0) * (until - x0) / (x1 - x0)))
    area = sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in pairwise(inside))
    return area / (inside[-1][0] - inside[0][0]), inside[-1][1]


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
        found = steering(path, _layout(r)) if path is not None else None
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


def _order(low: list[float], high: list[float]) -> Verdict:
    """Whether all of the first are below all of the second, none is, or some are."""
    return "agrees" if max(low) < min(high) else "disagrees" if min(low) >= max(high) else "undecided"


def _number(m: Measured | None, digits: int) -> str:
    if m is None:
        return "–"
    error = "" if m.error is None else f" ± {m.error:.{digits}f}"
    return f"{m.relation} {m.value:,.{digits}f}{error}".strip()


def _grids(found: dict[str, tuple[Record, Measured]]) -> list[tuple[str, Path]]:
    return [(model, r.grid) for model, (r, _) in found.items() if r.grid is not None]


def _quoted(key: str, value: object) -> str:
    """A setting for a command that somebody may copy into a shell, with a value of whatever origin."""
    return shlex.quote(printable(f"{key}={value}"))


def _layout(record: Record) -> Layout | None:
    shape = record.data.shape
    return None if shape is None else Layout(shape[1], shape[2])


def _aside(record: Record) -> tuple[tuple[str, str], ...]:
    """The settings in which runs of one comparison of objectives agree."""
    return tuple(sorted((key, str(value)) for key, value in record.settings.items() if not key.startswith(ASIDE)))


def _rough(images: Tiles | None) -> Estimate | None:
    return None if images is None else roughness(images)
