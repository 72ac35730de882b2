"""A job of a sweep: what it differs in from the others, how it is called, and which runs it may continue."""

import re
import shlex
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from imago.errors import UserError, printable
from imago.untrusted import read_yaml, shortened

# Characters of a value in a name, and of a name: W&B takes 128.
LONGEST_VALUE, LONGEST_NAME = 40, 120
# Overrides that make no other sweep: where runs lie, and how long they go on.
ASIDE = ("resume", "logs", "max_images", "max_updates", "max_seconds", "max_cpu_seconds", "max_wall_seconds")


@dataclass(frozen=True)
class Job:
    """A job of a sweep.

    Args:
        folder: of the sweep.
        overrides: of the job, ``KEY=VALUE`` each.
        varied: by their keys the values of those that the sweep varies.
    """

    folder: Path
    overrides: tuple[str, ...]
    varied: Mapping[str, str]

    @property
    def recorded(self) -> dict[str, Any]:
        """What the summary of its run says of it."""
        return {**asdict(self), "folder": self.folder.name, "overrides": list(self.overrides)}

    def named(self, base: str, choices: Mapping[str, Any], own: bool) -> str:
        """The name of its run: the base, and what the sweep varies in short: ``gan-digits lr=0.001 seed=2``.

        Args:
            base: the name without that.
            choices: Hydra's, by group.
            own: the base is the user's own, and does not name model and data.
        """
        told = {} if own else {"model": choices.get("model"), "data": choices.get("data")}
        spelled = base.replace("_", "-")
        varied = {
            key: value
            for key, value in self.varied.items()
            if key not in (*told, "name") and (own or key != "experiment" or value.replace("_", "-") != spelled)
        }
        titles = short_names(varied)
        words = [f"{titles[key]}={in_short(value)}" for key, value in varied.items()]
        return shortened(printable(" ".join([base, *words])), LONGEST_NAME)

    def may_continue(self, run: Path, recorded: Any) -> bool:
        """Whether a run is of this sweep: in its folder, or of an earlier one with the same overrides.

        Args:
            run: its directory.
            recorded: what its summary says of its job.
        """
        inside = self.folder.resolve() in run.resolve().parents
        if not isinstance(recorded, dict):
            return inside
        overrides = recorded.get("overrides")
        same = isinstance(overrides, list) and _settled(overrides) == _settled(self.overrides)
        return recorded.get("varied") == self.varied and (inside or same)


def alone(program: Iterable[str], overrides: Iterable[str]) -> str:
    """The command that repeats a job without its sweep.

    Args:
        program: and its options, a word each.
        overrides: of the job.
    """
    given = [text for text in overrides if not re.match(r"\+*(resume|hydra\.)", text)]
    return " ".join(shlex.quote(printable(word)) for word in [*program, *given])


def command_of(summary: Mapping[str, Any]) -> str | None:
    """The command that repeats a run; earlier versions kept that of the whole sweep. ``None`` where it is unknown."""
    command, sweep = summary.get("command"), summary.get("sweep")
    overrides = sweep.get("overrides") if isinstance(sweep, dict) else None
    words = str(command or "").split()
    if isinstance(overrides, list) and {"-m", "--multirun"}.intersection(words):
        return alone(words[:2], map(str, overrides))
    return str(command) if command else None


def in_short(value: str) -> str:
    """Of a real number four digits, of a long text both ends."""
    try:
        return value if len(value) < 8 or set(value) <= set("+-0123456789") else f"{float(value):.4g}"
    except ValueError:
        return shortened(value, LONGEST_VALUE)


def _settled(overrides: Iterable[Any]) -> set[str]:
    return {text for text in map(str, overrides) if text.partition("=")[0] not in ASIDE}


def job_of(folder: Path, overrides: Iterable[str]) -> Job:
    """The job that a launcher runs, in whatever process.

    Args:
        folder: of the sweep, where Hydra's sweepers write ``multirun.yaml``; without it nothing is known to vary.
        overrides: of the job.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser

    given: list[str] = []
    with suppress(OSError, ValueError, UserError, KeyError, TypeError, AttributeError):
        node = read_yaml(folder / "multirun.yaml")["hydra"]
        params = node["sweeper"].get("params") or {}
        given = [*(f"{key}={value}" for key, value in params.items()), *node["overrides"]["task"]]
    parser = OverridesParser.create()
    swept = {override.key_or_group: override.is_sweep_override() for override in parser.parse_overrides(given)}
    own = parser.parse_overrides(list(overrides))
    values = {override.key_or_group: _value(str(override.input_line)) for override in own}
    return Job(folder, tuple(overrides), {key: value for key, value in values.items() if swept.get(key)})


def _value(override: str) -> str:
    value = override.partition("=")[2]
    return value[1:-1] if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"" else value


def short_names(keys: Iterable[str]) -> dict[str, str]:
    """The last parts of dotted keys and groups, as many as tell them apart: ``lr``, or ``generator.lr``."""
    parts = {key: re.split(r"(?<=[./])", key) for key in keys}
    names = {}
    for key, own in parts.items():
        others = [other for rival, other in parts.items() if rival != key]
        length = next(
            (n for n in range(1, len(own)) if all("".join(other[-n:]) != "".join(own[-n:]) for other in others)),
            len(own),
        )
        names[key] = "".join(own[-length:])
    return names
