"""One file per format; every class is a :class:`imago.data.Source`."""

from imago.data.sources.bars import Bars
from imago.data.sources.cifar10 import CIFAR10
from imago.data.sources.digits import Digits
from imago.data.sources.folder import Folder
from imago.data.sources.imagenet32 import ImageNet32
from imago.data.sources.mnist import MNIST, FashionMNIST
from imago.data.sources.shards import Shards
from imago.data.sources.toy import Toy

__all__ = ["CIFAR10", "MNIST", "Bars", "Digits", "FashionMNIST", "Folder", "ImageNet32", "Shards", "Toy"]
