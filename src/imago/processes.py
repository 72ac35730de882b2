"""Several processes at one piece of work: how they are started, share it, and end together.

A launcher starts them on one or several machines (torchrun, or srun of Slurm), or the first one starts the others of
its machine: :func:`started`. From then on all do the same, and what only one of them may do, the first one does.
"""

import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from imago.errors import Interrupted, UserError

if TYPE_CHECKING:  # torch is loaded by whoever shares work
    from torch import Tensor

T = TypeVar("T")
I = TypeVar("I")  # noqa: E741 - an item

# Of a process that another one started: the number of that one.
PARENT = "IMAGO_PARENT"
# Seconds that processes have to end by themselves: once another one has failed, once the first one has, and at the end.
GRACE, FAREWELL, LAST = 10.0, 2.0, 60.0
_LOOK = 0.2  # seconds between two looks at the others


class Launch(NamedTuple):
    """What started the processes, and how many.

    Attributes:
        launcher: its name.
        each: processes on each machine.
        machines: their number.
    """

    launcher: str
    each: int
    machines: int


def launch() -> Launch | None:
    """What a launcher's variables say of the processes that it has started; ``None`` where none has."""
    given = os.environ
    if "TORCHELASTIC_RUN_ID" in given:
        each = int(given["LOCAL_WORLD_SIZE"])
        return Launch("torchrun", each, int(given["WORLD_SIZE"]) // each)
    # Without a step, one process in an allocation that may be for more; srun of a shell is no launcher.
    if {"SLURM_NTASKS", "SLURM_STEP_ID"} <= given.keys() and given.get("SLURM_JOB_NAME") not in ("bash", "interactive"):
        machines = int(given.get("SLURM_NNODES", 1))
        return Launch("srun", int(given.get("SLURM_NTASKS_PER_NODE", int(given["SLURM_NTASKS"]) // machines)), machines)
    return None


def launched_rank() -> int:
    """The number of this process among all, by the variables of whoever has started it; 0 where nobody says."""
    slurm = launch()
    names = ["SLURM_PROCID"] if slurm is not None and slurm.launcher == "srun" else ["RANK", "LOCAL_RANK"]
    return int(next((os.environ[name] for name in names if name in os.environ), 0))


def agreed_devices(devices: Any, nodes: int | None, key: str = "trainer.devices") -> tuple[Any, int]:
    """How many devices of each machine, and machines, a setting means: what a launcher has started decides.

    Args:
        devices: ``auto``, a number, or the numbers of devices.
        nodes: machines; ``None``: as many as there are.
        key: of the setting.

    Raises:
        UserError: the launcher has started other numbers.
    """
    found = launch()
    if found is None:
        return devices, nodes or 1
    count = len(devices) if isinstance(devices, list) else devices
    if count not in ("auto", -1, found.each):
        raise UserError(
            f"{key}={devices}: {found.launcher} has started {found.each} processes on each machine; give {key}=auto"
        )
    if nodes not in (None, found.machines):
        raise UserError(
            f"trainer.num_nodes={nodes}: {found.launcher} has started processes on {found.machines}; leave it out"
        )
    return devices if isinstance(devices, list) else found.each, found.machines


@contextmanager
def started(count: int, command: Sequence[str] | None = None) -> Iterator[None]:
    """Inside, this process has others beside it: as many as make ``count``, which carry out the same command.

    Their variables are torchrun's. If one of them fails, this process and all others end soon, with exit code 1; if
    this one ends, however it does, they end too. Where somebody else has started the processes, nothing is done.

    Args:
        count: processes on this machine, with this one.
        command: of the others; ``None``: this process's own.
    """
    if count == 1 or "LOCAL_RANK" in os.environ or launch() is not None:
        _end_with_parent()
        yield
        return
    machine = int(os.environ.get("NODE_RANK", 0))
    own = {
        "MASTER_ADDR": os.environ.get("MASTER_ADDR", "127.0.0.1"),
        "MASTER_PORT": os.environ.get("MASTER_PORT") or str(_free_port()),
        "NODE_RANK": str(machine),
        "LOCAL_RANK": "0",
    }
    before = {name: os.environ.get(name) for name in own}
    os.environ.update(own)
    command = [sys.executable, *sys.orig_argv[1:]] if command is None else command
    others = [
        subprocess.Popen(command, env={**os.environ, "LOCAL_RANK": str(k), PARENT: str(os.getpid())})
        for k in range(1, count)
    ]
    done = threading.Event()
    watch = threading.Thread(target=_watch, args=(others, done), daemon=True, name="other-processes")
    watch.start()
    grace = FAREWELL
    try:
        yield
        grace = LAST
    finally:
        done.set()
        watch.join()
        until = time.monotonic() + grace
        for other in others:
            try:
                other.wait(max(0.0, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                other.kill()
                other.wait()
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _watch(others: Sequence[subprocess.Popen[bytes]], done: threading.Event) -> None:
    """End this process and the others soon after one of these has failed: it may wait for what never comes."""
    while not done.wait(_LOOK):
        failed = [(k, other) for k, other in enumerate(others, 1) if other.poll()]
        if failed:
            k, other = failed[0]
            code = other.returncode
            how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"has failed with exit code {code}"
            with suppress(OSError):
                print(f"error: process {k} of {len(others) + 1} {how}; all end", file=sys.stderr, flush=True)
            if not done.wait(GRACE):
                for one in others:
                    one.kill()
                os._exit(1)
            return


def _end_with_parent() -> None:
    """Where the first process has started this one, end soon after it has."""
    parent = os.environ.get(PARENT)
    if parent is None:
        return

    def watch() -> None:
        while os.getppid() == int(parent):
            time.sleep(_LOOK)
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="parent-process").start()


# --- sharing work -----------------------------------------------------------------------------------------------------


def several() -> bool:
    """Whether this process belongs to a group that works together."""
    from torch import distributed

    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def first_process() -> bool:
    """Whether this process is the first one of its group, or alone."""
    from torch import distributed

    return not several() or distributed.get_rank() == 0


def in_all(work: Callable[[], T]) -> list[T]:
    """What ``work()`` gives in each process of the group, in order; where it fails in one, it fails in all with that.

    All of them call it; alone, it gives a list of one.

    Args:
        work: gives an object that can be pickled, of tensors on the CPU.
    """
    from torch import distributed

    if not several():
        return [work()]
    own: tuple[T | None, BaseException | None]
    try:
        own = work(), None
    except (Interrupted, KeyboardInterrupt, SystemExit):
        raise  # this process ends, and with it all
    except BaseException as error:
        own = None, _sendable(error)
    found: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(found, own)
    for _, failure in found:
        if failure is not None:
            raise failure
    return [result for result, _ in found]


def _sendable(error: BaseException) -> BaseException:
    """The error, or its text where it cannot be pickled."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def by_first(work: Callable[[], T]) -> T:
    """What ``work()`` gives in the first process, which alone does it; arguments and failures as in :func:`in_all`."""
    return in_all(lambda: work() if first_process() else None)[0]  # type: ignore[return-value]


def of_first(value: T) -> T:
    """What the first process gives here; all of them call it, with an object that can be pickled."""
    return by_first(lambda: value)


def of_first_process(tensors: Iterable["Tensor"]) -> None:
    """Give all processes the numbers of the first one, in place."""
    from torch import distributed

    if several():
        for tensor in tensors:
            whole = tensor.contiguous()
            distributed.broadcast(whole, src=0)
            if whole is not tensor:
                tensor.copy_(whole)


def shared(work: Callable[[I], T], items: Sequence[I]) -> Iterator[T]:
    """``work(item)`` of every item, in order; of a group each process works on a share, and all get everything.

    All of them call it with the same items and go through it to the end; failures as in :func:`in_all`.

    Args:
        work: gives an object that can be pickled, of tensors on the CPU.
        items: the work.
    """
    from torch import distributed

    if not several():
        yield from map(work, items)
        return
    size, rank = distributed.get_world_size(), distributed.get_rank()
    for start in range(0, len(items), size):
        part = items[start : start + size]
        found: list[Any] = in_all(lambda part=part: work(part[rank]) if rank < len(part) else None)  # type: ignore[misc]
        yield from found[: len(part)]
