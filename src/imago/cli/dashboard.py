"""Build the W&B dashboard of a project: ``python src/dashboard.py project=imago``."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from omegaconf import DictConfig
from pydantic import Field

from imago import cli
from imago.config import WandbName, check_settings, plain
from imago.errors import UserError, reason_of
from imago.files import write_text
from imago.paths import check_file_place
from imago.untrusted import read_json

Name = Annotated[str, Field(min_length=1)]


@dataclass(frozen=True)
class Settings:
    """What dashboard.yaml explains."""

    project: WandbName
    entity: WandbName | None
    kind: Literal["workspace", "report"]
    name: Annotated[str, Field(min_length=1, max_length=128)]
    out: Name | None


def main(config: DictConfig) -> None:
    """Save a workspace or report at W&B and print its address, or write its specification to ``out``."""
    settings = check_settings(plain(config), Settings)
    if settings.out is not None:
        check_file_place(Path(settings.out), make_parents=True, ours=_is_specification)
    from imago.wandb_report import build_report, build_workspace, save, sign_in, specification

    build = build_report if settings.kind == "report" else build_workspace
    if settings.out is None:
        print(save(build(sign_in(settings.entity), settings.project, settings.name)))
        return
    built = build(settings.entity or "", settings.project, settings.name)
    out = Path(settings.out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_text(out, json.dumps(specification(built), indent=2) + "\n")
    except OSError as error:
        raise UserError(f"out={out}: {reason_of(error)}; choose another file") from None
    print(out)


def _is_specification(path: Path) -> bool:
    found = read_json(path)
    return isinstance(found, dict) and {"displayName", "project", "spec"} <= set(found)


def command() -> None:
    """Carry out ``dashboard`` as the command line says."""
    cli.run(main, "dashboard")
