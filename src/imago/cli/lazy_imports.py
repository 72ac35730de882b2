"""Load what Lightning imports but a command seldom uses at its first use: two thirds of the CPU time of a start.

``import lightning`` imports the whole of torchmetrics for two base classes, torchvision and scipy.signal behind it,
matplotlib for annotations, Triton to count operations, and torch's compiler (``torch._dynamo`` with sympy), which
optimisers ask for whether anything is compiled or not. A finder in :data:`sys.meta_path` lets the packages of
:data:`STAND_INS` begin as modules with the few names that a start asks for; any other name, or a submodule, executes
the real package into the same module. Nothing is replaced for good: a version of these packages that asks for more only
starts slower. The scripts install the finder, ``import imago`` does not.
"""

import functools
import importlib
import inspect
import logging
import sys
import threading
from abc import ABC
from collections.abc import Callable
from contextlib import suppress
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

# Sets names of a module; what it is given besides loads the real package.
StandIns = Callable[[ModuleType, Callable[[], None]], None]

_lock = threading.RLock()


class LazyPackage(Loader):
    """Fills a module with stand-ins, and at the first access to anything else with the real package.

    Args:
        loader: of the real package.
        stand_ins: sets the names that need not wait.
    """

    def __init__(self, loader: Loader, stand_ins: StandIns) -> None:
        self.loader = loader
        self.stand_ins = stand_ins
        self.module: ModuleType | None = None  # while it waits

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """As the real loader does."""
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Set the stand-ins; where that fails, because the package has changed, load it at once."""
        assert module.__spec__ is not None
        module.__spec__.loader = module.__loader__ = self.loader
        self.module = module

        def wanted(name: str) -> Any:
            if name != "__path__":  # which packages have, and every import from a module asks for
                self.load()
            try:
                return vars(module)[name]
            except KeyError:
                raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}") from None

        vars(module)["__getattr__"] = wanted  # PEP 562
        try:
            self.stand_ins(module, self.load)
        except (ImportError, AttributeError):
            for name in [name for name in sys.modules if name.startswith(f"{module.__name__}.")]:
                del sys.modules[name]
            self.load()

    def load(self) -> None:
        """Execute the real package, unless that is done."""
        with _lock:
            module, self.module = self.module, None
            if module is not None:
                del vars(module)["__getattr__"]
                self.loader.exec_module(module)


class Loaded(Loader):
    """Hands out a module that was loaded while it was looked for."""

    def __init__(self, module: ModuleType) -> None:
        self.module, self.spec = module, module.__spec__

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """The module that is there."""
        return self.module

    def exec_module(self, module: ModuleType) -> None:
        """Nothing but its own specification."""
        module.__spec__ = self.spec


class LazyFinder(MetaPathFinder):
    """Finds the packages of :data:`STAND_INS`, and loads them before any submodule that is not :data:`ALONE`."""

    def __init__(self) -> None:
        self.found: dict[str, LazyPackage] = {}

    def find_spec(self, fullname: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        """See :class:`importlib.abc.MetaPathFinder`."""
        if fullname == "torch":  # which imports it from C, and takes a Ctrl-C there for a NumPy that is missing
            with suppress(ImportError):
                importlib.import_module("numpy")
        if fullname in STAND_INS:
            spec = PathFinder.find_spec(fullname, path)
            if spec is not None and spec.loader is not None:
                spec.loader = self.found[fullname] = LazyPackage(spec.loader, STAND_INS[fullname])
            return spec
        for package, loader in self.found.items():
            if fullname.startswith(f"{package}.") and not fullname.startswith(ALONE):
                loader.load()
                module = sys.modules.get(fullname)
                if module is not None:
                    # Of a module that appeared while it was looked for, importlib takes the module's own specification.
                    module.__spec__ = ModuleSpec(fullname, Loaded(module))
                    return module.__spec__
        return None


def real_class(module: str, name: str) -> type:
    """A class whose instances and subclasses are those of another one, which is loaded only by who makes them."""

    class StandIn(ABC):  # noqa: B024
        @classmethod
        def __subclasshook__(cls, subclass: type) -> bool:
            real = getattr(sys.modules.get(module), name, None)
            return real is not None and issubclass(subclass, real)

    return StandIn


def calling(module: ModuleType, load: Callable[[], None], name: str) -> Callable[..., Any]:
    """A function that loads the real one, or the class, and calls it."""

    def call(*args: Any, **kwargs: Any) -> Any:
        load()
        return getattr(module, name)(*args, **kwargs)

    return call


def compiler(module: ModuleType, load: Callable[[], None]) -> None:
    """``torch._dynamo`` as long as nothing is compiled: then these do nothing in the real one either."""

    def disable(fn: Any = None, recursive: bool = True, **options: Any) -> Any:
        if not inspect.isfunction(fn):
            load()
            return module.disable(fn, recursive, **options)
        real = None

        @functools.wraps(fn)
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal real
            if real is None and module.disable is not disable:
                real = module.disable(fn, recursive, **options)
            return (real or fn)(*args, **kwargs)

        return call

    def graph_break(msg: str = "") -> None:
        pass

    vars(module).update(
        OptimizedModule=real_class("torch._dynamo.eval_frame", "OptimizedModule"),
        disable=disable,
        graph_break=graph_break,
    )


def metrics(module: ModuleType, load: Callable[[], None]) -> None:
    """Torchmetrics with its base classes alone."""
    about = importlib.import_module("torchmetrics.__about__")
    vars(module).update(__version__=about.__version__, _logger=logging.getLogger("torchmetrics"))
    importlib.import_module("torchmetrics.utilities")  # first: it and torchmetrics.metric import each other
    vars(module).update(
        Metric=importlib.import_module("torchmetrics.metric").Metric,
        MetricCollection=importlib.import_module("torchmetrics.collections").MetricCollection,
    )


def plots(module: ModuleType, load: Callable[[], None]) -> None:
    """The types and the function by which a metric of torchmetrics plots itself."""
    vars(module).update(
        _AX_TYPE=real_class("matplotlib.axes", "Axes"),
        _PLOT_OUT_TYPE=tuple[object, object],
        plot_single_or_multi_val=calling(module, load, "plot_single_or_multi_val"),
    )


def flops(module: ModuleType, load: Callable[[], None]) -> None:
    """The counter of Lightning's model summary, which knows Triton's kernels too."""
    vars(module).update(FlopCounterMode=calling(module, load, "FlopCounterMode"))


STAND_INS: dict[str, StandIns] = {
    "torch._dynamo": compiler,
    "torch.utils.flop_counter": flops,
    "torchmetrics": metrics,
    "torchmetrics.utilities.plot": plots,
}
# What can be imported while its package waits.
ALONE = tuple(f"torchmetrics.{name}" for name in ("__about__", "collections", "metric", "utilities"))


def install() -> None:
    """Let the packages of :data:`STAND_INS` wait from now on; those that are imported already stay as they are."""
    if not any(isinstance(finder, LazyFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, LazyFinder())
