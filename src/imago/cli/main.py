"""``imago COMMAND``: every command at one word, from any folder, and lists of what there is."""

import os
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

import imago
from imago.cli.streams import make_forgiving
from imago.start import start

COMMANDS = {
    "train": "train a model, or many with -m",
    "evaluate": "measure trained models: likelihood, quality of samples",
    "distance": "measure how far two sets of images are from each other",
    "sample": "draw images from a trained model",
    "compress": "code images as bytes with a model, and back without a loss",
    "figure": "draw a figure of a model",
    "compare": "put runs side by side on a board",
    "export": "write a trained model as a folder for others",
    "prepare": "write images as shards, for data larger than the memory",
    "dashboard": "build the W&B dashboard of a project",
    "train_classifier": "train the classifier behind metrics=classifier",
}
# Lightning starts further processes with the arguments that are left once the command is taken away.
COMMAND = "IMAGO_COMMAND"
LISTS = {
    "models": ("model", "what model= can be; with --pretrained, trained ones for checkpoint="),
    "data": ("data", "what data= can be"),
    "experiments": ("experiment", "settings that suit a model and data, for experiment="),
}


def main() -> None:
    """Carry out a command, with Hydra's command line behind it; ends the process with its exit code."""
    make_forgiving()
    given = sys.argv[1:]
    if "LOCAL_RANK" in os.environ and given[:1] != [os.environ.get(COMMAND)]:
        given = [*filter(None, [os.environ.get(COMMAND)]), *given]
    name = given[0].replace("-", "_") if given and not given[0].startswith("-") else None
    if name in COMMANDS:
        sys.argv[1:] = given[1:]
        os.environ[COMMAND] = name
        start(name)
    elif name in LISTS and given[1:] in (["--help"], ["-h"]):
        print(f"imago {name} [plugins=[NAME]]: {LISTS[name][1]}")
    elif given == ["models", "--pretrained"]:
        print("\n".join(pretrained_lines()))
    elif name in LISTS and all(word.startswith("plugins=") for word in given[1:]):
        from imago import cli  # Hydra is slower than the help

        sys.exit(cli.report(lambda: print("\n".join(lines_of(LISTS[name][0], given[1:]))), "train"))
    elif given in (["--version"], ["-V"]):
        print(f"imago {imago.__version__}")
    elif not given or given in (["--help"], ["-h"], ["help"]):
        print(usage())
    else:
        known = ", ".join((*COMMANDS, *LISTS))
        close = get_close_matches(given[0], (*COMMANDS, *LISTS), 1)
        meant = f"; did you mean {close[0]}?" if close else ""
        said = (
            f"{' '.join(given)}: takes plugins=[NAME] at most" + ", or --pretrained alone" * (name == "models")
            if name in LISTS
            else f"{given[0]}: no such command{meant}"
        )
        print(f"error: {said}; commands are {known}; imago --help explains them", file=sys.stderr)
        sys.exit(2)


def usage() -> str:
    """What ``imago --help`` says."""
    explained = {**COMMANDS, **{name: told for name, (_, told) in LISTS.items()}}
    width = max(map(len, explained))
    return "\n".join(
        [
            "imago COMMAND [KEY=VALUE ...]; imago COMMAND --help lists what can be chosen",
            "",
            *(f"  {name:{width}}  {told}" for name, told in explained.items()),
            "",
            "  imago train model=gan data=digits",
            "  imago --version",
        ]
    )


def lines_of(group: str, given: Sequence[str] = ()) -> list[str]:
    """Each choice of a group with its file's comment; ``given`` may name packages of the user's own.

    Raises:
        UserError: there is no such package.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser

    from imago.config import CONF
    from imago.plugins import folders_of, named

    own = folders_of(named(OverridesParser.create().parse_overrides(list(given))))
    files = sorted(
        (file for place in (CONF, *own) for file in (place / group).glob("*.yaml") if file.is_file()),
        key=lambda file: file.stem,
    )
    width = max(len(file.stem) for file in files)
    return [f"{file.stem:{width}}  {_comment(file)}".rstrip() for file in files]


def pretrained_lines() -> list[str]:
    """Each pretrained model with what it is, its bytes, and for those that are fetched the SHA-256 of its weights."""
    from imago import pretrained

    names, released = pretrained.packaged(), pretrained.released()
    width = max(map(len, [*names, *released]))
    lines = []
    for name in names:
        told = pretrained.told(pretrained.PACKAGED / name)
        lines.append(f"{name:{width}}  {told}")
    for name, known in released.items():
        weights = known["files"][pretrained.WEIGHTS]
        lines.append(f"{name:{width}}  {known['told']}; {weights['bytes']:,} bytes, SHA-256 {weights['sha256']}")
    if released:
        lines.append(f"Those with a SHA-256 are fetched once, from the address in {pretrained.ADDRESS}.")
    return lines


def _comment(file: Path) -> str:
    words: list[str] = []
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        if not line.startswith("#"):
            break
        if not line.startswith("# @package"):
            words.append(line.removeprefix("#").strip())
    return " ".join(words)
