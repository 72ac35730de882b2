"""What holds in every test: one thread, enforced tensor shapes, no network, no account."""

import atexit
import gc
import importlib
import os
import shutil
import socket
import sys
import tempfile
from pathlib import Path

# Before torch is imported: spinning OpenMP threads cost 6x where cores are shared.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytest
import torch
from jaxtyping import install_import_hook
from matplotlib.figure import Figure

from helpers import Command

# What a user has trained with is kept there, and tests are no user.
os.environ["XDG_STATE_HOME"] = tempfile.mkdtemp(prefix="imago-state-")
atexit.register(shutil.rmtree, os.environ["XDG_STATE_HOME"], ignore_errors=True)
torch.set_num_threads(1)
install_import_hook("imago", "typecheck.check")  # every annotated shape and type in imago is checked at each call


def pytest_collection_finish() -> None:
    """Leave what is imported by now out of every later search for garbage: each would take a third of a second."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    """What was left out of the search is torn down like everything else, and nothing is reported as leaked."""
    gc.unfreeze()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what is marked ``gpu`` where there is none."""
    if item.get_closest_marker("gpu") is not None and not torch.cuda.is_available():
        pytest.skip("needs a GPU")


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reaches the network or an account, whatever is configured on this machine."""
    for name in ("WANDB_API_KEY", "WANDB_PROJECT", "WANDB_ENTITY", "WANDB_RUN_ID", "WANDB_DIR", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.setenv("NETRC", os.devnull)

    connect = socket.socket.connect

    def connect_locally(self: socket.socket, address: object) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in ("127.0.0.1", "::1", "localhost"):
            raise OSError(f"tests have no network, but something connects to {address}")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect_locally)


@pytest.fixture(autouse=True)
def _quick_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs draw their curves as an empty picture: letters and axes would take as long as the run itself.

    Processes of their own draw them whole, as does test_curves.py.
    """
    monkeypatch.setattr("imago.figures.curves.drawn", lambda panels, title: Figure(figsize=(1, 1)))


@pytest.fixture
def script(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Command:
    """Runs a script of src/ in this process, in an empty folder; gives exit code, standard output and errors."""
    source = Path(__file__).parents[1] / "src"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")

    def run(name: str, *arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [str(source / f"{name}.py"), *arguments])
        with pytest.raises(SystemExit) as exit_info:
            importlib.import_module(f"imago.cli.{name}").command()
        captured = capsys.readouterr()
        return int(exit_info.value.code or 0), captured.out, captured.err

    return run


@pytest.fixture
def data_dir() -> Path:
    """The folder with the real data sets; tests that need one skip where it is not."""
    folder = os.environ.get("IMAGO_DATA_DIR")
    if not folder:
        pytest.skip("needs real data: set IMAGO_DATA_DIR to a folder with cifar-10-batches-bin and MNIST")
    return Path(folder)
