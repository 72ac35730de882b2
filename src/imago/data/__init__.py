"""Data sets and the batches cut from them."""

from imago.data.base import Dataset, ImageSet, MapStyle, Source, Splits
from imago.data.module import ImageDataModule, folder_data, stream_data, toy1d_data, toy2d_data
from imago.data.restore import data_of
from imago.data.stream import BatchStream

__all__ = [
    "BatchStream",
    "Dataset",
    "ImageDataModule",
    "ImageSet",
    "MapStyle",
    "Source",
    "Splits",
    "data_of",
    "folder_data",
    "stream_data",
    "toy1d_data",
    "toy2d_data",
]
