"""Packages of the user's own: ``plugins=[my_models]`` lets a command use their classes and their configurations."""

import os
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from hydra.core.override_parser.types import Override

from imago.config import CONF, allow, raised
from imago.errors import UserError


def named(overrides: Sequence[Override]) -> list[str]:
    """The packages that a command line names.

    Raises:
        UserError: something else than names.
    """
    given = [override for override in overrides if override.key_or_group == "plugins" and not override.is_delete()]
    if not given:
        return []
    names = given[-1].value()
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{given[-1].input_line}: write plugins=[my_package]")
    return [str(name) for name in names]


def folders_of(packages: Sequence[str]) -> list[Path]:
    """Allow packages, found in the current folder or installed, and give the folders of their configurations.

    A package's own conf/ is searched, and a conf/ beside it in the current folder, as of a project that is no package
    itself.

    Raises:
        UserError: there is none of a name, or a configuration has the name of one of imago's, which would be taken.
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
        except Exception as error:  # of the package that it is in
            raise UserError(f"plugins={package}: cannot be imported ({raised(error)})") from error
        if spec is None:
            raise UserError(
                f"plugins={package}: no such package in {here} or installed; change to the folder that holds it, or "
                "install it"
            )
        places = [Path(place) for place in spec.submodule_search_locations or []]
        around = [place.parent for place in places] or [Path(spec.origin or "").parent]  # of a single module
        beside = [folder / "conf" for folder in around if folder == Path(here)]
        folders += [folder for folder in (*(place / "conf" for place in places), *beside) if folder.is_dir()]
    own = [folder for folder in dict.fromkeys(folders) if not folder.samefile(CONF)]
    for folder in own:
        for file in sorted(folder.glob("*/**/*.yaml")):
            shipped = CONF / file.relative_to(folder)
            if shipped.is_file() and shipped.read_bytes() != file.read_bytes():
                raise UserError(f"{file}: imago has a configuration of this name, which would be taken; rename yours")
    return own
