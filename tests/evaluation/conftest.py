"""Small data sets for the metrics: squares whose brightness says their class, in any shape; and a file server."""

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from torch import nn
from torch_fidelity import feature_extractor_inceptionv3

from imago.data import ImageDataModule, ImageSet, Source, Splits
from imago.evaluation import ExtractorChoice, FeatureExtractor, choices

CPU = torch.device("cpu")


@dataclass
class Squares(Source):
    """Noisy squares; class 1 is brighter than class 0."""

    channels: int = 1
    height: int = 28
    width: int = 20
    labelled: bool = True
    levels: int = 256
    count: int = 300
    name: str = "squares"

    def load(self, directory: Path) -> Splits:
        generator = torch.Generator().manual_seed(0)
        parts = []
        for n in (self.count, 40, 40):
            labels = torch.randint(0, 2, (n,), generator=generator)
            shape = (n, self.channels, self.height, self.width)
            images = torch.randint(0, 100, shape, generator=generator)
            images[:, :, self.height // 4 : -(self.height // 4) or None] += 100 * labels[:, None, None, None]
            images = (images * (self.levels - 1) // 255).to(torch.uint8)
            parts.append(ImageSet(images, labels if self.labelled else None))
        return Splits(*parts, classes=("dark", "bright") if self.labelled else (), description="", levels=self.levels)


@pytest.fixture
def squares(tmp_path, monkeypatch):
    """Builds prepared data; the working directory and the data directory are empty folders."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()

    def build(**options) -> ImageDataModule:
        module_options = {name: options.pop(name) for name in ("binarize", "batch_size") if name in options}
        data = ImageDataModule(Squares(**options), dir=str(tmp_path / "data"), **module_options)
        data.prepare()
        return data

    return build


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """No test knows which downloads failed in another."""
    monkeypatch.setattr(choices, "_failed_downloads", {})
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))


def extractor_of(
    choice: ExtractorChoice, data: ImageDataModule, weights: object = None
) -> tuple[FeatureExtractor | None, str]:
    """What a choice builds on the CPU, of the weights in a file if one is named, and all that it tells the user."""
    notices: list[str] = []
    return choice.build(data, CPU, weights and str(weights), notices.append), " ".join(notices)


@pytest.fixture
def serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[dict[str, bytes]], tuple[str, list[str]]]]:
    """Serves files by name on this machine; gives the address of their folder, and the paths asked for so far."""
    with ExitStack() as stack:

        def start(files: dict[str, bytes]) -> tuple[str, list[str]]:
            folder = tmp_path_factory.mktemp("server")
            for name, content in files.items():
                (folder / name).write_bytes(content)
            requests: list[str] = []

            class Handler(SimpleHTTPRequestHandler):
                def log_message(self, *args: object) -> None:
                    requests.append(self.path)

            server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
            stack.callback(server.server_close)
            stack.callback(server.shutdown)
            threading.Thread(target=server.serve_forever, daemon=True).start()
            return f"http://127.0.0.1:{server.server_port}", requests

        yield start


@pytest.fixture(scope="session")
def inception_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Random weights in the published layout, of a size that carries differences between images to the last layer."""
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        patch.setattr(feature_extractor_inceptionv3, "load_state_dict_from_url", lambda url, progress: {})
        patch.setattr(nn.Module, "load_state_dict", lambda self, state: None)
        network = feature_extractor_inceptionv3.FeatureExtractorInceptionV3("inception", ["2048"])
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.running_mean, std=0.1)
                nn.init.uniform_(module.running_var, 0.5, 1.5)
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, std=0.1)
        path = tmp_path_factory.mktemp("inception") / "weights.pth"
        torch.save(network.state_dict(), path)
    return str(path)
