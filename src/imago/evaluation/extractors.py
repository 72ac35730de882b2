"""What every feature extractor promises, and the kinds there are.

torch-fidelity is imported by those that need it: it takes as long as torch.
"""

import hashlib
import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float, Float32, UInt8
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from imago.evaluation.efficientnet import FEATURES, load_efficientnet
from imago.evaluation.network import ClassifierNetwork


class FeatureExtractor(nn.Module, ABC):
    """Turns images into feature vectors; frozen, deterministic, in float32 whatever precision the model trains in.

    Attributes:
        name: what protocols call it.
        dimensions: length d of a feature vector.
        metric_names: names of the Fréchet and of the kernel distance between its features.
        suffix: of the names of all other metrics in its features.
        fingerprint: hexadecimal digest of its weights.
        doubt: why nothing should be concluded from its features; empty where nothing is known against them.
        side: height and width that images are resized to; ``None``: they are seen as they are, or nearly.
        resized: how, for messages.
    """

    name: str
    dimensions: int
    metric_names: tuple[str, str]
    suffix: str
    fingerprint: str
    doubt: str = ""
    side: int | None = None
    resized: str = ""

    @property
    def num_features(self) -> int:
        """:attr:`dimensions` by torchmetrics' name, so that its metrics take our extractors."""
        return self.dimensions

    @abstractmethod
    def features(self, images: UInt8[Tensor, "n c h w"]) -> Float[Tensor, "n d"]:
        """The feature vectors of checked images."""

    def logits(self, features: Float[Tensor, "n d"]) -> Float[Tensor, "n classes"] | None:
        """What the network behind the features takes for the classes of their images; ``None``: it is no classifier."""
        return None

    @torch.no_grad()
    def forward(self, images: Tensor) -> Float32[Tensor, "n d"]:
        """Feature vectors (n, d) of uint8 images (n, channels, height, width) with values 0..255.

        Raises:
            TypeError: the images are not uint8. Nothing here guesses the range of floating-point images.
            ValueError: they are not (n, 1 or 3, height, width).
        """
        if images.dtype != torch.uint8:
            raise TypeError(f"images are {images.dtype}: feature extractors take uint8 with values 0..255")
        if images.ndim != 4 or images.shape[1] not in (1, 3):
            raise ValueError(f"images are {tuple(images.shape)}: expected (n, 1 or 3, height, width)")
        with torch.autocast(images.device.type, enabled=False):
            return self.features(images).float()


def weights_fingerprint(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, shapes and values, so that a file's format and packing do not matter."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        value = weights[name].detach().cpu().float().contiguous()
        digest.update(f"{name}{tuple(value.shape)}".encode())
        digest.update(value.numpy().tobytes())
    return digest.hexdigest()


def in_one_line(error: Exception) -> str:
    """The kind of an error and the first line of its text: loaders append stack traces, or hundreds of names."""
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0].rstrip('.')}"


def fold_batch_norms(network: nn.Module) -> None:
    """Multiply the batch normalisations of all conv-bn pairs into the convolutions: the same function, fewer passes."""
    for module in network.modules():
        convolution, norm = getattr(module, "conv", None), getattr(module, "bn", None)
        if isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            module.conv = fuse_conv_bn_eval(convolution, norm)
            module.bn = nn.Identity()
    network.to(memory_format=torch.channels_last)


class FidelityExtractor(FeatureExtractor):
    """A network of torch-fidelity's, with its scaling and its resize: TensorFlow 1's bilinear, no antialiasing.

    Gray images are repeated to three channels.
    """

    network: Any
    resized = "bilinearly without antialiasing"

    def features(self, images: UInt8[Tensor, "n c h w"]) -> Float[Tensor, "n d"]:
        """See :meth:`FeatureExtractor.features`."""
        return self.network(images.expand(-1, 3, -1, -1))[0]


class InceptionExtractor(FidelityExtractor):
    """The Inception network of the FID: TensorFlow's of 2015-12-05, as ported by torch-fidelity; d = 2048.

    Features are the pooled activations of its last block.

    The network, its TF1-bilinear resize to 299x299 without antialiasing and its scaling are torch-fidelity's module.
    Folding the batch normalisations and the channels-last layout make it 1.6 times as fast with equal features.

    Args:
        weights: path of a file in the layout of torch-fidelity's ``weights-inception-2015-12-05-6726825d.pth``.

    Raises:
        ValueError: the file is not such a file.
    """

    name = "inception"
    dimensions = 2048
    metric_names = ("fid", "kid")
    suffix = ""
    side = 299

    def __init__(self, weights: str) -> None:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        super().__init__()
        try:
            # torch-fidelity unpickles whatever a file holds, so it only gets to see files that passed the safe loader.
            self.fingerprint = weights_fingerprint(torch.load(weights, weights_only=True, map_location="cpu"))
            with torch.random.fork_rng(devices=[]):
                self.network = FeatureExtractorInceptionV3(
                    "inception", ["2048"], feature_extractor_weights_path=weights
                )
        except Exception as error:
            # Whatever a broken file makes the unpickler do, the user needs to know one thing.
            raise ValueError(f"not Inception weights in torch-fidelity's layout: {in_one_line(error)}") from error
        fold_batch_norms(self.network)
        self.requires_grad_(False).eval()

    @torch.no_grad()
    def logits(self, features: Float[Tensor, "n 2048"]) -> Float[Tensor, "n 1008"]:
        """Without the bias, as in TensorFlow's Inception score."""
        return features @ self.network.fc.weight.T


class ClipExtractor(FidelityExtractor):
    """The image encoder of CLIP (Radford et al. 2021): the embedding that it compares with texts; d = 512 for ViT-B/32.

    Embeddings are not normalised to length 1.

    Network, resize (TF1 bilinear, no antialiasing) and scaling are torch-fidelity's module; the file's float16 weights
    compute in float32.

    Args:
        weights: path of a TorchScript archive as OpenAI publishes them; the file says which encoder it holds.
        name: what protocols call it.

    Raises:
        ValueError: the file is not such a file.
    """

    metric_names = ("fd_clip", "kd_clip")
    suffix = "_clip"

    def __init__(self, weights: str, name: str) -> None:
        from torch_fidelity.feature_extractor_clip import FeatureExtractorCLIP

        super().__init__()
        try:
            with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch calls TorchScript deprecated
                # The name only says what would be downloaded, were there no path.
                self.network = FeatureExtractorCLIP("clip-vit-b-32", ["clip"], feature_extractor_weights_path=weights)
        except Exception as error:
            # Whatever a wrong file makes the loader do, the user needs to know one thing.
            raise ValueError(f"not a CLIP model in OpenAI's TorchScript layout: {in_one_line(error)}") from error
        self.name = name
        self.side = int(self.network.resolution)
        self.dimensions = int(self.network.model.visual.output_dim)
        self.fingerprint = weights_fingerprint(self.network.model.state_dict())
        self.requires_grad_(False).eval()


class DinoV2Extractor(FidelityExtractor):
    """DINOv2 (Oquab et al. 2023), the features of the FD-DINOv2 of Stein et al. 2023; d = 1024 for ViT-L/14.

    Features are the class tokens after the last normalisation.

    The resize to 224x224 (TF1 bilinear, no antialiasing) and the scaling are torch-fidelity's module.

    Args:
        backbone: a network of facebookresearch/dinov2: images (n, 3, 224, 224) to class tokens (n, d); it is frozen.
        name: what protocols call it.
    """

    metric_names = ("fd_dinov2", "kd_dinov2")
    suffix = "_dinov2"
    side = 224

    def __init__(self, backbone: nn.Module, name: str) -> None:
        from torch_fidelity.feature_extractor_base import FeatureExtractorBase
        from torch_fidelity.feature_extractor_dinov2 import FeatureExtractorDinoV2

        super().__init__()
        self.name = name
        self.dimensions = cast(int, backbone.embed_dim)
        # Around the backbone that is there: the constructor of torch-fidelity fetches whatever code is newest.
        self.network = FeatureExtractorDinoV2.__new__(FeatureExtractorDinoV2)
        FeatureExtractorBase.__init__(self.network, "dinov2", ["dinov2"])
        self.network.feature_extractor_internal_dtype = torch.float32
        self.network.model = backbone.float()
        self.fingerprint = weights_fingerprint(backbone.state_dict())
        self.requires_grad_(False).eval()


class EfficientNetExtractor(FeatureExtractor):
    """EfficientNet-lite0, trained on ImageNet's classes (:mod:`imago.evaluation.efficientnet`); d = 1280.

    Features are the globally averaged activations of its last convolution. Images are resized to 96x96, bilinearly with
    antialiasing, and gray ones repeated to three channels. The network was trained on 224x224, which costs five times
    as much (docs/metrics.md has what smaller sides lose).

    Args:
        weights: path of a file in the published layout.
        name: what protocols call it.

    Raises:
        ValueError: the file is not such a file.
    """

    dimensions = FEATURES
    metric_names = ("fd_efficientnet", "kd_efficientnet")
    suffix = "_efficientnet"
    side = 96
    resized = "bilinearly with antialiasing"

    def __init__(self, weights: str, name: str = "efficientnet-lite0") -> None:
        super().__init__()
        self.name = name
        self.network = load_efficientnet(Path(weights))
        self.fingerprint = weights_fingerprint(self.network.state_dict())
        fold_batch_norms(self.network)
        self.requires_grad_(False)

    def features(self, images: UInt8[Tensor, "n c h w"]) -> Float[Tensor, "n d"]:
        """See :meth:`FeatureExtractor.features`."""
        colours = images.expand(-1, 3, -1, -1).float()
        return self.network.embed(F.interpolate(colours, (self.side, self.side), mode="bilinear", antialias=True))

    @torch.no_grad()
    def logits(self, features: Float[Tensor, "n 1280"]) -> Float[Tensor, "n 1000"]:
        """Of ImageNet's classes."""
        return self.network.classifier(features)


class ClassifierExtractor(FeatureExtractor):
    """The last hidden layer of a classifier trained on the data set itself.

    Args:
        network: a trained network; it is changed (its batch normalisations are folded) and frozen.
        origin: where its weights come from, for protocols.
        doubt: see :class:`FeatureExtractor`.
    """

    metric_names = ("fd_classifier", "kd_classifier")
    suffix = "_classifier"

    def __init__(self, network: ClassifierNetwork, origin: str, doubt: str = "") -> None:
        super().__init__()
        self.doubt = doubt
        self.name = f"classifier ({origin})"
        self.dimensions = network.dimensions
        self.channels = network.channels
        self.fingerprint = weights_fingerprint(network.state_dict())
        self.network = network.eval()
        fold_batch_norms(network)
        self.requires_grad_(False)

    def features(self, images: UInt8[Tensor, "n c h w"]) -> Float[Tensor, "n d"]:
        """Globally averaged activations of the last convolutional block."""
        if images.shape[1] != self.channels:
            raise ValueError(f"images have {images.shape[1]} channels: this classifier was trained on {self.channels}")
        return self.network.embed(images)

    @torch.no_grad()
    def logits(self, features: Float[Tensor, "n d"]) -> Float[Tensor, "n classes"]:
        """Of the classes of the data."""
        return self.network.head(features)
