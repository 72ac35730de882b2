"""The data of a checkpoint, for those who were not there when it was trained."""

from collections.abc import Mapping
from typing import Any

from imago.config import build, check_node
from imago.data.module import ImageDataModule
from imago.errors import UserError
from imago.images import ImageSpec


def data_of(checkpoint: Mapping[str, Any], directory: str | None) -> ImageDataModule:
    """The data that a checkpoint's model was trained on, prepared.

    Args:
        checkpoint: its content.
        directory: the folder that holds the data sets, ``None`` for where they were in training.

    Raises:
        UserError: the data cannot be had there.
    """
    node = checkpoint["config"]["data"] | ({} if directory is None else {"dir": directory})
    check_node(node, "data")
    data: ImageDataModule = build(node, "data")
    data.prepare()
    trained_on = ImageSpec(**checkpoint["spec"])
    if str(data.spec) != str(trained_on):
        raise UserError(
            f"dir={node['dir']}: its images are {data.spec}, the model was trained on {trained_on}; give the folder of "
            "those as dir=FOLDER"
        )
    return data
