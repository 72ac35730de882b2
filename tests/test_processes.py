"""Processes that work together end together, whichever of them fails."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from imago.errors import UserError
from imago.processes import agreed_devices, launch, launched_rank

ROOT = Path(__file__).parents[1]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "PYTHONPATH": str(ROOT / "src")}
# What two of them do, without a run's imports.
BODY = """
import os, sys, time
from imago import processes
processes.GRACE = 0.3
me = int(os.environ.get("LOCAL_RANK", 0))
with processes.started(2):
    print(me, os.getpid(), flush=True)
    {}
"""


@pytest.mark.parametrize(
    ("body", "code", "told"),
    [
        ("pass", 0, ""),
        ("sys.exit(3) if me == 1 else time.sleep(60)", 1, "error: process 1 of 2 has failed with exit code 3; all end"),
        ("sys.exit(3) if me == 0 else time.sleep(60)", 3, ""),
        ("os.kill(os.getpid(), 9) if me == 1 else time.sleep(60)", 1, "process 1 of 2 was ended by SIGKILL; all end"),
        ("os.kill(os.getpid(), 9) if me == 0 else time.sleep(60)", -9, ""),
    ],
)
def test_when_one_of_two_ends_both_end(body: str, code: int, told: str, tmp_path: Path) -> None:
    script = tmp_path / "two.py"
    script.write_text(BODY.format(body))
    process = subprocess.Popen(
        [sys.executable, script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT
    )
    out, err = process.communicate(timeout=30)  # until the other has closed them too
    assert process.returncode == code, err
    assert told in err
    ids = dict(line.split() for line in out.splitlines())
    assert not any(alive(int(number)) for number in ids.values())


def alive(number: int) -> bool:
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    return "Z" not in Path(f"/proc/{number}/stat").read_text().rsplit(")", 1)[1].split()[0]


TORCHRUN = {"TORCHELASTIC_RUN_ID": "1", "RANK": "5", "LOCAL_RANK": "1", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4"}
SRUN = {
    "SLURM_NTASKS": "8",
    "SLURM_NTASKS_PER_NODE": "4",
    "SLURM_NNODES": "2",
    "SLURM_PROCID": "5",
    "SLURM_STEP_ID": "0",
}


@pytest.mark.parametrize("variables", [TORCHRUN, SRUN], ids=["torchrun", "srun"])
def test_a_launcher_says_how_many_there_are(variables: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert launch() is None
    assert agreed_devices("auto", None) == ("auto", 1)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert launched_rank() == 5
    assert agreed_devices("auto", None) == agreed_devices(4, 2) == (4, 2)
    assert agreed_devices([3, 2, 1, 0], None) == ([3, 2, 1, 0], 2)
    with pytest.raises(
        UserError, match=r"trainer.devices=2: \w+ has started 4 processes on each machine; give .*=auto"
    ):
        agreed_devices(2, None)
    with pytest.raises(UserError, match=r"trainer.num_nodes=3: \w+ has started processes on 2; leave it out"):
        agreed_devices("auto", 3)


@pytest.mark.parametrize("launcher", ["torchrun", "itself"])
def test_a_run_whose_process_is_killed_ends_within_seconds(launcher: str, tmp_path: Path) -> None:
    options = [
        str(ROOT / "src" / "train.py"), "model=gan", "data=digits", "trainer=ddp_cpu", "logger=csv", "metrics=none",
        "model.generator.hidden=[16]", "model.discriminator.hidden=[16]", "data.batch_size=16",
        "callbacks.samples=null", "max_images=100000000", "every.log=1600",
    ]  # fmt: skip
    before = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"] if launcher == "torchrun" else []
    log = tmp_path / "log.txt"
    with log.open("w") as file:
        command = [sys.executable, *before, *options]
        process = subprocess.Popen(
            command, cwd=tmp_path, stdout=file, stderr=subprocess.STDOUT, env=ENVIRONMENT, start_new_session=True
        )
    try:
        deadline = time.monotonic() + 200
        while process.poll() is None and time.monotonic() < deadline and "images/s" not in log.read_text():
            time.sleep(0.1)
        children = [int(child) for child in children_of(process.pid)]
        assert children, log.read_text()
        os.kill(children[-1], signal.SIGKILL)
        killed = time.monotonic()
        assert process.wait(60) == 1, log.read_text()
        assert time.monotonic() - killed < 30
        assert not any(alive(child) for child in children)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    assert "SIGKILL" in log.read_text()
    (summary,) = tmp_path.glob("logs/*/*/summary.json")
    assert '"status": "failed"' in summary.read_text()


def children_of(number: int) -> list[str]:
    return Path(f"/proc/{number}/task/{number}/children").read_text().split()
