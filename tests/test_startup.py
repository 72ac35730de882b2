"""What a start loads, and what it leaves to those who need it. Modules are looked at, not clocks."""

import importlib
import os
import re
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from imago.cli import lazy_imports

ROOT = Path(__file__).parents[1]
RELEASED = ROOT / "tests" / "reliability" / "released" / "0.1.0"
HEAVY = {"sympy", "scipy", "sklearn", "torchvision", "matplotlib", "wandb", "triton", "torch._inductor"}


def run(*arguments: str | Path, code: int = 0) -> set[str]:
    """Run a script, or code after ``-c``, in a new process; gives the modules that it imported."""
    finished = subprocess.run(
        [sys.executable, "-X", "importtime", *map(str, arguments)],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
    )
    assert finished.returncode == code, finished.stderr[-3000:]
    return set(re.findall(r"^import time:.*\| +(\S+)$", finished.stderr, re.MULTILINE))


@pytest.mark.parametrize(
    "command",
    [
        "train.py model.latent=abc",
        "train.py model.optimizer.generator.lr=x",
        "train.py +callbacks.log.other=1",
        "evaluate.py checkpoint=none metrics.samples=1",
        "figure.py figure=manifold out=a.png figure.rows=0",
    ],
)
def test_a_mistake_is_told_without_loading_torch(command: str) -> None:
    script, *settings = command.split()
    loaded = run(ROOT / "src" / script, *settings, code=2)
    assert "imago.config" in loaded
    assert not {"torch", "lightning", "numpy"} & loaded


def test_sampling_loads_torch_and_lightning_without_what_they_seldom_need(tmp_path: Path) -> None:
    loaded = run(ROOT / "src/sample.py", f"checkpoint={RELEASED / 'vae.ckpt'}", f"out={tmp_path / 'a.png'}", "n=1")
    assert {"torch", "lightning"} <= loaded
    assert not HEAVY & loaded


def test_training_begins_without_what_it_seldom_needs(tmp_path: Path) -> None:
    settings = ["data=digits", "callbacks=minimal", "metrics=none", "logger=none", "max_updates=1", f"logs={tmp_path}"]
    loaded = run(ROOT / "src/train.py", *settings)
    assert {"torch", "lightning"} <= loaded
    assert not (HEAVY - {"matplotlib"}) & loaded  # which draws the curves at the end


def test_what_waited_is_the_real_package_at_its_first_use() -> None:
    run(
        "-W",
        "ignore",
        "-c",
        textwrap.dedent("""
            import sys
            from imago.cli import lazy_imports

            lazy_imports.install()
            import lightning, torch

            net = torch.nn.Linear(3, 3)
            optimizer = torch.optim.Adam(net.parameters())

            def step():
                optimizer.zero_grad()
                net(torch.ones(2, 3)).square().sum().backward()
                optimizer.step()

            step()
            from lightning.pytorch.utilities.compile import OptimizedModule

            assert not isinstance(net, OptimizedModule)
            assert not {"sympy", "torchvision", "scipy", "matplotlib", "triton"} & set(sys.modules)

            from lightning.pytorch.utilities.model_summary.model_summary import FlopCounterMode

            with FlopCounterMode(display=False) as counter:
                net(torch.ones(2, 3))
            assert counter.get_total_flops() == 2 * 2 * 3 * 3

            before = net.weight.clone()
            torch.compile(step, backend="eager")()
            assert isinstance(torch.compile(net, backend="eager"), OptimizedModule)
            assert not torch.equal(net.weight, before)

            import torch._dynamo.utils as utils
            assert utils is torch._dynamo.utils is sys.modules["torch._dynamo.utils"]

            import torchvision.models
            import torchmetrics
            from torchmetrics.image.fid import FrechetInceptionDistance
            from torchmetrics.metric import _AX_TYPE

            assert all(hasattr(torchmetrics, name) for name in torchmetrics.__all__)
            assert issubclass(FrechetInceptionDistance, torchmetrics.Metric)
            assert torchmetrics.image.FrechetInceptionDistance is FrechetInceptionDistance
            metric = torchmetrics.MeanMetric()
            metric.update(1.0)
            for _ in range(2):
                assert isinstance(metric.plot()[1], _AX_TYPE)
        """),
    )


@pytest.fixture
def lazily(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[lazy_imports.StandIns], ModuleType]:
    """Imports a package through a finder of its own, with given stand-ins. Its two modules count how often they run."""
    folder = tmp_path / "imago_waits"
    folder.mkdir()
    (folder / "__init__.py").write_text("from imago_waits import part\nheavy = 'real'\nlight = 'real'\n")
    (folder / "part.py").write_text("import sys\nsys.imago_runs = sys.imago_runs + 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "imago_runs", 0, raising=False)
    monkeypatch.setattr(sys, "meta_path", [lazy_imports.LazyFinder(), *sys.meta_path])
    for name in ("imago_waits", "imago_waits.part"):
        monkeypatch.delitem(sys.modules, name, raising=False)

    def imported(stand_ins: lazy_imports.StandIns) -> ModuleType:
        monkeypatch.setattr(lazy_imports, "STAND_INS", {"imago_waits": stand_ins})
        return importlib.import_module("imago_waits")

    return imported


def light(module: ModuleType, load: Callable[[], None]) -> None:
    vars(module).update(light="stand-in")


def test_a_package_waits_until_another_name_is_asked_for(
    lazily: Callable[[lazy_imports.StandIns], ModuleType],
) -> None:
    package = lazily(light)
    assert (package.light, sys.imago_runs) == ("stand-in", 0)  # type: ignore[attr-defined]
    assert package.heavy == package.light == "real"
    with pytest.raises(AttributeError, match="imago_waits"):
        _ = package.unknown


def test_a_submodule_loads_its_package_and_itself_once(
    lazily: Callable[[lazy_imports.StandIns], ModuleType],
) -> None:
    package = lazily(light)
    part = importlib.import_module("imago_waits.part")
    assert (package.light, sys.imago_runs) == ("real", 1)  # type: ignore[attr-defined]
    assert part is package.part is sys.modules["imago_waits.part"]
    for module in (package, part):
        assert module.__spec__ is not None
        assert module.__spec__.loader is module.__loader__
        assert Path(str(module.__spec__.origin)).is_file()


def test_a_package_without_the_expected_names_is_loaded_at_once(
    lazily: Callable[[lazy_imports.StandIns], ModuleType],
) -> None:
    def outdated(module: ModuleType, load: Callable[[], None]) -> None:
        light(module, load)
        importlib.import_module("imago_waits.gone")

    assert lazily(outdated).light == "real"


@pytest.mark.parametrize(
    "command", [*([str(path)] for path in sorted((ROOT / "src").glob("*.py"))), ["-m", "imago", "train"]]
)
def test_an_interrupted_import_ends_without_a_word(command: list[str], tmp_path: Path) -> None:
    """Ctrl-C comes in the first of the libraries that take their time, which would hide the exception."""
    interrupted = "try:\n    os.kill(os.getpid(), signal.SIGINT)\nexcept KeyboardInterrupt:\n    raise ImportError"
    (tmp_path / "hydra.py").write_text(f"import os, signal\n{interrupted}")
    done = with_modules_of(tmp_path, *command)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_an_interrupt_is_not_lost_in_torch(tmp_path: Path) -> None:
    """Which would go on without NumPy, whose import it has taken for one that failed."""
    (tmp_path / "numpy.py").write_text("import os, signal\nos.remove(__file__)\nos.kill(os.getpid(), signal.SIGINT)")
    checkpoint = f"checkpoint={RELEASED / 'vae.ckpt'}"
    done = with_modules_of(tmp_path, str(ROOT / "src" / "sample.py"), checkpoint, "out=a.png")
    assert done.returncode == 130
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "a.png").exists()


def with_modules_of(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """A command whose libraries are first looked for in a folder; Ctrl-C ends it also where it does not end us."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), str(ROOT / "src")])}
    return subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, env=environment, cwd=folder,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
