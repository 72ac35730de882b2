"""The data of a checkpoint, for those who were not there when it was trained."""

import sys
from collections.abc import Mapping
from typing import Any

from imago.config import build, check_node, is_of_plugin, target
from imago.data import sources
from imago.data.base import DEFAULT_DIRECTORY
from imago.data.identity import check_same_data
from imago.data.module import ImageDataModule, folder_data, stream_data, toy1d_data, toy2d_data
from imago.data.places import known
from imago.errors import UserError, printable
from imago.untrusted import check_plain, shortened

# The published data sets and folders of images: all that a checkpoint's data can be, beside those of named plugins.
SOURCES = tuple(getattr(sources, name) for name in sources.__all__)


def data_of(checkpoint: Mapping[str, Any], directory: str | None, path: str | None = None) -> ImageDataModule:
    """The data that a checkpoint's model was trained on, prepared.

    A checkpoint may come from anybody. Of the places that it names only those are opened with which somebody here has
    trained, and no address that it names is asked: published data come from their publishers.

    Args:
        checkpoint: its content.
        directory: the folder that holds the data sets; ``None`` for where they were in training.
        path: where the run's own folder or zip file of images is now; ``None`` for where it was in training.

    Raises:
        UserError: the data cannot be had there, or are others than the model was trained on.
    """
    node = trusted(checkpoint["config"].get("data"), directory, path)
    holder = node if "path" in node else node.get("source", {})
    check_node(node, "data")
    try:
        data: ImageDataModule = build(node, "data")
        data.prepare()
    except UserError as error:
        if path is not None or "path" not in holder:
            raise
        raise UserError(f"{error} If the images were moved, give their place as path=FOLDER.") from None
    place = "path=FOLDER" if "path" in holder else "dir=FOLDER"
    check_same_data(checkpoint, data, f"put those back, or give the place where they are as {place}")
    return data


def trusted(stored: Any, directory: str | None, path: str | None) -> dict[str, Any]:
    """A checkpoint's description of its data with no place and no address in it that nobody here has chosen.

    Args:
        stored: the description.
        directory, path: as in :func:`data_of`.

    Raises:
        UserError: it describes something else, or a folder of images that nobody here has trained with.
    """
    check_plain(stored, "data")
    node, source = _described(stored)
    holder = source if source is not None and "path" in source else node
    for part, key in ((node, "data"), (source, "data.source")):
        if part is not None and part.get("url") is not None:
            _note(f"{key}.url={part['url']}: an address of the checkpoint's, not asked; published data have their own")
            part["url"] = None
    if path is not None and "path" not in holder:
        raise UserError(f"path={path}: the model was trained on a data set that has no path; give its dir=FOLDER")
    if "path" in holder:
        holder["path"] = path if path is not None else _known_path(holder["path"])
    there = node.get("dir", DEFAULT_DIRECTORY)
    if directory is None and there != DEFAULT_DIRECTORY and not (isinstance(there, str) and known(there)):
        _note(
            f"data.dir={there}: the checkpoint's folder of data sets, with which nobody here has trained, so "
            f"{DEFAULT_DIRECTORY}/ is used; if it is right, give dir={there}"
        )
        directory = DEFAULT_DIRECTORY
    return node if directory is None else node | {"dir": directory}


def _described(stored: Any) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Copies of the description and of its source, where that is a part of its own, which are of kinds known here."""
    if not isinstance(stored, Mapping):
        raise UserError("data: the checkpoint does not say what it was trained on; give one that train.py wrote")
    node = dict(stored)
    kind = target(node.get("_target_"), "data")
    source = dict(node["source"]) if kind is ImageDataModule and isinstance(node.get("source"), Mapping) else None
    if source is not None:
        node["source"] = source
        named = target(source.get("_target_"), "data.source")
        if named not in SOURCES and not is_of_plugin(named):
            raise UserError(f"data.source._target_={source['_target_']}: is no source of data")
    elif kind not in (folder_data, stream_data, toy1d_data, toy2d_data):
        raise UserError(f"data._target_={node['_target_']}: is no data that a model can be trained on")
    for part in (node, source or {}):
        for name, value in part.items():
            if isinstance(value, Mapping) and value is not source:
                raise UserError(f"data.{name}: is no setting of data")
    return node, source


def _known_path(stored: Any) -> Any:
    if stored is None or (isinstance(stored, str) and known(stored)):
        return stored
    raise UserError(
        f"data.path={shortened(str(stored))}: the images that the checkpoint names; nobody has trained with them here, "
        "so they are not opened unasked; give the place of the images as path=FOLDER"
    )


def _note(text: str) -> None:
    print(f"note: {printable(text)}", file=sys.stderr)
