"""Packages of the user's own: ``plugins=[my_models]`` lets a command use their classes and their configurations."""

import os
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from hydra.core.override_parser.types import Override

from imago.config import allow
from imago.errors import UserError


def named(overrides: Sequence[Override]) -> list[str]:
    """The packages that a command line names.

    Raises:
        UserError: something else than names.
    """
    given = [override for override in overrides if override.key_or_group == "plugins" and not override.is_delete()]
    if not given:
        return []
    value = given[-1].value()
    names = value if isinstance(value, list) else [value]
    if not all(isinstance(name, str) for name in names):
        raise UserError(f"{given[-1].input_line}: write plugins=[my_package]")
    return [str(name) for name in names]


def search_path(packages: Sequence[str]) -> list[str]:
    """Allow packages, found in the current folder or installed, and give the folders of their configurations.

    A package's own conf/ is searched, and a conf/ beside it, as of a project that is no package itself.

    Raises:
        UserError: there is none of a name.
    """
    here = str(Path.cwd())
    if packages and here not in sys.path:
        sys.path.insert(0, here)
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))  # of launchers
    folders = []
    for package in packages:
        allow(package)
        try:
            spec = find_spec(package)
        except ImportError:
            spec = None
        if spec is None:
            raise UserError(
                f"plugins={package}: no such package in {here} or installed; change to the folder that holds it, or "
                "install it"
            )
        for place in spec.submodule_search_locations or []:
            beside = Path(place).parent / "conf" if Path(place).parent == Path(here) else None
            folders += [f"file://{path}" for path in (Path(place) / "conf", beside) if path and path.is_dir()]
    return folders
