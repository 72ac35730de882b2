"""What a search found, in one picture: its history, its trials' courses, what mattered, and where the good ones lie."""

import math
import warnings
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imago.errors import printable
from imago.pictures import write_png
from imago.sweeps import short_names

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from optuna import Study
    from optuna.trial import FrozenTrial

# The worst of the trials say nothing of where good ones lie: colours and axes end at this part of them.
SHOWN = 0.9


def draw_search(study: "Study", objectives: Sequence[str], path: Path) -> None:
    """Draw a study.

    Of one objective: values by trial with the best so far, the courses of the trials, the importance of each setting
    (Optuna's functional analysis of variance), and the settings of all trials as parallel coordinates. Of several: the
    trials by their first two objectives, with those that no other one beats in both.

    Args:
        study: with trials that came to an end.
        objectives: the names of what is optimised.
        path: of the PNG.
    """
    from matplotlib.figure import Figure

    trials = study.get_trials(deepcopy=False)
    done = [trial for trial in trials if trial.state.name == "COMPLETE"]
    figure = Figure(figsize=(12, 8), layout="constrained")
    parts: Any = figure.subfigures(2, 1)
    widths = (1, 1, 0.8) if len(objectives) == 1 else (2, 0.8)
    *panels, right = parts[0].subplots(1, len(widths), width_ratios=widths)
    below = parts[1].subplots()
    if len(objectives) == 1:
        maximised = study.direction.name == "MAXIMIZE"
        _history(panels[0], trials, objectives[0], maximised)
        _courses(panels[1], trials, objectives[0])
        _importances(right, study, objectives)
        _coordinates(below, done, [trial.values[0] for trial in done], objectives[0], maximised)
    else:
        _front(panels[0], study, done, objectives)
        _importances(right, study, objectives)
        first = [trial.values[0] for trial in done]
        _coordinates(below, done, first, objectives[0], study.directions[0].name == "MAXIMIZE")
    write_png(figure, path)


def _limits(values: Sequence[float], maximised: bool) -> tuple[float, float]:
    """A range that shows the better ones of so many values."""
    ordered = sorted((value for value in values if math.isfinite(value)), reverse=maximised)
    best, worst = ordered[0], ordered[max(0, math.ceil(SHOWN * len(ordered)) - 1)]
    margin = 0.08 * abs(worst - best) or abs(best) / 10 or 1.0
    return (worst - margin, best + margin) if maximised else (best - margin, worst + margin)


def _history(axes: "Axes", trials: "Sequence[FrozenTrial]", objective: str, maximised: bool) -> None:
    done = [(trial.number, trial.values[0]) for trial in trials if trial.state.name == "COMPLETE"]
    best, so_far = [], math.nan
    for _, value in done:
        so_far = value if math.isnan(so_far) else (max if maximised else min)(so_far, value)
        best.append(so_far)
    axes.plot([number for number, _ in done], best, color="C1", label="best so far", drawstyle="steps-post")
    axes.scatter([number for number, _ in done], [value for _, value in done], s=18, color="C0", label="trial")
    pruned = [trial for trial in trials if trial.state.name == "PRUNED" and trial.intermediate_values]
    ends = [trial.intermediate_values[max(trial.intermediate_values)] for trial in pruned]
    axes.set_ylim(*_limits([value for _, value in done], maximised))
    low, high = axes.get_ylim()
    within = [min(max(value, low), high) for value in ends]
    if pruned:
        axes.scatter([trial.number for trial in pruned], within, s=18, color="0.6", marker="x", label="pruned")
    failed = [trial.number for trial in trials if trial.state.name == "FAIL"]
    if failed:
        axes.scatter(failed, [high] * len(failed), s=30, color="C3", marker="|", label="failed")
    axes.set(title="history", xlabel="trial", ylabel=objective)
    axes.legend(fontsize=8)


def _courses(axes: "Axes", trials: "Sequence[FrozenTrial]", objective: str) -> None:
    ends = []
    for trial in trials:
        steps = sorted(trial.intermediate_values.items())
        if steps:
            pruned = trial.state.name == "PRUNED"
            colour, width = ("0.7", 0.7) if pruned else ("C0", 1.0)
            look: Any = {"color": colour, "linewidth": width, "marker": ".", "markersize": 3, "zorder": 2 - pruned}
            axes.plot(*zip(*steps, strict=True), **look)
            ends.append(steps[-1][1])
    if ends:
        worst = max(ends) if min(ends) <= 0 else max(3 * min(ends), sorted(ends)[len(ends) // 2])
        axes.set_ylim(min(ends) - 0.05 * (worst - min(ends)), min(axes.get_ylim()[1], worst))
    axes.set(title="courses, pruned ones gray", xlabel="measurement", ylabel=objective)


def importances_of(study: "Study", objectives: Sequence[str]) -> dict[str, dict[str, float]]:
    """By objectives, the share of each setting in the variance of the trials' values.

    Functional analysis of variance of a random forest: Hutter, Hoos & Leyton-Brown 2014, "An efficient approach for
    assessing hyperparameter importance". Nothing where there are too few trials, or all are alike.
    """
    from optuna.importance import FanovaImportanceEvaluator, get_param_importances

    shares: dict[str, dict[str, float]] = {}
    with warnings.catch_warnings(), suppress(ValueError, RuntimeError, ZeroDivisionError):
        warnings.simplefilter("ignore")
        for k, objective in enumerate(objectives):
            target: Any = None if len(objectives) == 1 else (lambda trial, k=k: trial.values[k])
            shares[objective] = get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=0), target=target)
    return shares


def _importances(axes: "Axes", study: "Study", objectives: Sequence[str]) -> None:
    """Of each setting, with respect to each objective."""
    names = short_names({key: None for trial in study.get_trials(deepcopy=False) for key in trial.params})
    shares = importances_of(study, objectives)
    if not shares:
        axes.set_axis_off()
        return
    height = 0.6 / len(shares)
    for k, (objective, found) in enumerate(shares.items()):
        places = [row + k * height for row in range(len(names))]
        axes.barh(places, [found.get(key, 0.0) for key in names], height, label=objective)
    axes.set_yticks([row + 0.3 - height / 2 for row in range(len(names))], [printable(name) for name in names.values()])
    axes.set_ylim(max(len(names), 4) - 0.3, -0.5)
    axes.set(title="importance", xlabel="share of the variance (fANOVA)", xlim=(0, None))
    if len(shares) > 1:
        axes.legend(fontsize=8)


def _coordinates(
    axes: "Axes", trials: "Sequence[FrozenTrial]", values: Sequence[float], objective: str, maximised: bool
) -> None:
    """Each trial a line through its settings, coloured by its value; the best ones on top."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    names = short_names({key: None for trial in trials for key in trial.params})
    scales = {key: _scale([t.params[key] for t in trials if key in t.params], trials, key) for key in names}
    colours: Any = ScalarMappable(Normalize(*_limits(values, maximised)), "viridis" if maximised else "viridis_r")
    order = sorted(zip(values, trials, strict=True), key=lambda pair: pair[0], reverse=not maximised)
    for value, trial in order:
        heights = [scales[key][0].get(trial.params.get(key), math.nan) for key in names]
        width = 3.0 if value == order[-1][0] else 1.2
        axes.plot(range(len(names)), heights, color=colours.to_rgba(value), linewidth=width, marker=".", markersize=6)
    for k, key in enumerate(names):
        axes.axvline(k, color="0.8", linewidth=0.8, zorder=0)
        for text, height in scales[key][1]:
            axes.annotate(printable(text), (k, height), (4, 0), textcoords="offset points", fontsize=7, va="center")
    axes.set_xticks(range(len(names)), [printable(name) for name in names.values()])
    axes.set_yticks([])
    axes.set_xlim(-0.1, len(names) - 0.7)
    axes.margins(y=0.05)
    axes.set_title("settings of the trials, the best one thick")
    axes.figure.colorbar(colours, ax=axes, label=objective, pad=0.01)


def _scale(
    values: Sequence[Any], trials: "Sequence[FrozenTrial]", key: str
) -> tuple[dict[Any, float], list[tuple[str, float]]]:
    """The height of every value of a setting, in [0, 1], and what is written beside which heights."""
    choices = [choice for trial in trials for choice in getattr(trial.distributions.get(key), "choices", ())]
    if not choices:
        log = any(getattr(trial.distributions.get(key), "log", False) for trial in trials)
        place = {value: math.log(value) if log else float(value) for value in values}
        low, high = min(place.values()), max(place.values())
        heights = {value: (at - low) / (high - low or 1.0) for value, at in place.items()}
        ends = dict.fromkeys((min(values), max(values)))
        return heights, [(f"{value:.3g}", heights[value]) for value in ends]
    heights = {choice: k / (len(set(choices)) - 1 or 1) for k, choice in enumerate(dict.fromkeys(choices))}
    return heights, [(str(choice)[:30], height) for choice, height in heights.items()]


def _front(axes: "Axes", study: "Study", trials: "Sequence[FrozenTrial]", objectives: Sequence[str]) -> None:
    axes.scatter([t.values[0] for t in trials], [t.values[1] for t in trials], s=18, color="0.6", label="trial")
    front = sorted((trial.values[0], trial.values[1]) for trial in study.best_trials)
    axes.plot(*zip(*front, strict=True), color="C1", marker="o", markersize=4, label="none is better in both")
    axes.set_xlim(*_limits([t.values[0] for t in trials], study.directions[0].name == "MAXIMIZE"))
    axes.set_ylim(*_limits([t.values[1] for t in trials], study.directions[1].name == "MAXIMIZE"))
    axes.set(title="Pareto front", xlabel=objectives[0], ylabel=objectives[1])
    axes.legend(fontsize=8)
