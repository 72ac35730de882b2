"""Data sets as whole uint8 tensors, and the batches cut from them."""

from imago.data.base import ImageSet, Source, Splits
from imago.data.module import ImageDataModule, folder_data
from imago.data.restore import data_of
from imago.data.stream import BatchStream

__all__ = ["BatchStream", "ImageDataModule", "ImageSet", "Source", "Splits", "data_of", "folder_data"]
