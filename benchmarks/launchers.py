"""What launchers and searches cost: seconds of three small runs by each, against those of three commands in turn.

    make bench BENCHMARKS=benchmarks/launchers.py

The runs end after three updates, so that this is the time of starting, composing and ending them.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import count
from pathlib import Path

from side_by_side import Row, report

SRC = Path(__file__).parents[1] / "src"
ROUNDS, JOBS = 3, 3
RUN = "model=fvbn data=digits callbacks=minimal metrics=none logger=none max_updates=3 trainer=cpu"
SEARCH = f"-m hydra/sweeper=optuna hydra.sweeper.n_trials={JOBS} objective=train/bpd every.log=64 seed=1,2,3"
SWEEPS = {
    "basic": "-m seed=1,2,3",
    "joblib, two at a time": "-m hydra/launcher=joblib seed=1,2,3",
    "submitit_local": "-m hydra/launcher=submitit_local seed=1,2,3",
    "search by Optuna": SEARCH,
}


def seconds(*arguments: str) -> float:
    """Seconds of a command, by the clock."""
    began = time.perf_counter()
    subprocess.run(
        [sys.executable, str(SRC / "train.py"), *arguments, *RUN.split()], check=True, stdout=subprocess.DEVNULL
    )
    return time.perf_counter() - began


def main() -> None:
    os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    ours: dict[str, list[float]] = {job: [] for job in SWEEPS}
    alone = []
    number = count()
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(ROUNDS):
            alone.append(sum(seconds(f"seed={seed}", f"logs={folder}/{next(number)}") for seed in range(JOBS)))
            for job, arguments in SWEEPS.items():
                ours[job].append(seconds(*arguments.split(), f"logs={folder}/{next(number)}"))
    others = JOBS / statistics.median(alone)
    rows = [
        Row(job, "runs/s", JOBS / statistics.median(times), 1, "three commands", others, 1, None)
        for job, times in ours.items()
    ]
    for row in rows:
        print(f"{row.job}: {JOBS / row.ours:.1f} s; three commands: {JOBS / others:.1f} s")
    report("launchers", rows)


if __name__ == "__main__":
    main()
