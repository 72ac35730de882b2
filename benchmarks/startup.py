"""What a start costs: processor seconds of whole commands, against those of ``import lightning`` in a fresh process.

    make bench BENCHMARKS=benchmarks/startup.py

The commands and the import take turns, so that a busy machine slows both alike. A training ends at its first step.
"""

import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from side_by_side import Row, report

SRC = Path(__file__).parents[1] / "src"
ROUNDS = 3
RUN = "model=vae data=digits callbacks=minimal metrics=none logger=none logs={}"
COMMANDS = {
    "mistake in a name": f"train.py {RUN} model=vea",
    "mistake in a value": f"train.py {RUN} model.latent=abc",
    "first training step": f"train.py {RUN}",
    "sample": "sample.py checkpoint={}/run n=1 out={}/samples.png overwrite=true",
    "evaluate": "evaluate.py checkpoint={}/run metrics=none images=10",
    "figure": "figure.py figure=manifold checkpoint={}/run out={}/figure.png",
}
# Ends at the first step of an optimiser that has more than the few numbers on which one is tried.
UNTIL_FIRST_STEP = """
import os, runpy, sys
from torch.optim.optimizer import register_optimizer_step_post_hook

def stop(optimizer, *_):
    if sum(parameter.numel() for group in optimizer.param_groups for parameter in group["params"]) > 100:
        os._exit(0)

register_optimizer_step_post_hook(stop)
sys.argv, sys.path[0] = sys.argv[1:], os.path.dirname(sys.argv[1])
runpy.run_path(sys.argv[0], run_name="__main__")
"""
WANTED = {"mistake in a value": 5.0, "first training step": 1.85}


def processor_seconds(*arguments: str) -> float:
    """User and system time of a Python process and what it waits for."""
    process = subprocess.Popen(
        [sys.executable, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ
    )
    _, _, usage = os.wait4(process.pid, 0)
    process.returncode = 0  # it was waited for
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            [sys.executable, str(SRC / "train.py"), *RUN.format(folder).split(), "max_updates=1"],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        (run,) = Path(folder).glob("vae-digits/*")
        (Path(folder) / "run").symlink_to(run)
        ours: dict[str, list[float]] = {job: [] for job in COMMANDS}
        lightning = []
        for _ in range(ROUNDS):
            lightning.append(processor_seconds("-c", "import lightning"))
            for job, command in COMMANDS.items():
                script, *arguments = command.replace("{}", folder).split()
                driver = ["-c", UNTIL_FIRST_STEP] if job == "first training step" else []
                ours[job].append(processor_seconds(*driver, str(SRC / script), *arguments))
    others = 1 / statistics.median(lightning)
    rows = [
        Row(job, "starts/CPU s", 1 / statistics.median(times), 1, "import lightning", others, 1, WANTED.get(job))
        for job, times in ours.items()
    ]
    for row in rows:
        print(f"{row.job}: {1 / row.ours:.2f} s of processor time")
    report("startup", rows)


if __name__ == "__main__":
    main()
