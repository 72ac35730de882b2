"""The data of a checkpoint, for those who were not there when it was trained."""

from collections.abc import Mapping
from typing import Any

from imago.config import build, check_node
from imago.data.identity import check_same_data
from imago.data.module import ImageDataModule
from imago.errors import UserError


def data_of(checkpoint: Mapping[str, Any], directory: str | None, path: str | None = None) -> ImageDataModule:
    """The data that a checkpoint's model was trained on, prepared.

    Args:
        checkpoint: its content.
        directory: the folder that holds the data sets, ``None`` for where they were in training.
        path: where the run's own folder or zip file of images is now, ``None`` for where it was in training.

    Raises:
        UserError: the data cannot be had there, or are others than the model was trained on.
    """
    node = checkpoint["config"]["data"] | ({} if directory is None else {"dir": directory})
    if path is not None and "path" not in node:
        raise UserError(f"path={path}: the model was trained on a data set that has no path; give its dir=FOLDER")
    node |= {} if path is None else {"path": path}
    check_node(node, "data")
    try:
        data: ImageDataModule = build(node, "data")
        data.prepare()
    except UserError as error:
        if path is not None or "path" not in node:
            raise
        raise UserError(f"{error} If the images were moved, give their place as path=FOLDER.") from None
    place = "path=FOLDER" if "path" in node else "dir=FOLDER"
    check_same_data(checkpoint, data, f"put those back, or give the place where they are as {place}")
    return data
