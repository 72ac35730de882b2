"""The table of docs/mistakes.md: what the commonest mistakes are answered with, and in how many seconds.

``python tools/mistakes.py`` runs every command in an empty folder and writes what it said, and the seconds of processor
time (user and system) that it took.
"""

import os
import re
import resource
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "mistakes.md"
SLOWEST = 3.0  # seconds of processor time that an answer may take
# What only the data or a network can tell, which need torch.
LATER = ("train model=ddpm model.guidance=3", "train data=bars conditional=true")

COMMANDS = """
train modle=gan
train model=gna
train model=GAN
train model=
train model=stylegan data=cifar10
train --model=gan
train --batch-size 32
train --model.latent=50
train batch_size=32
train lr=0.001
train learning_rate=0.001
train epochs=5
train trainer.max_epochs=5
train trainer.gpus=2
train optimizer=sgd
train max_steps=1000
train seed=abc
train seed=-1
train data.batch_size=0
train data.batch_size=many
train model.latent=1.5
train model.latnet=8
train model=dcgan model.generator.widht=8
train model/objective=wgan
train model=vae model/objective=hinge
train model=ddpm model/sampler=eueler
train model=ddpm model.guidance=3
train experiment=vae_cifar
train experiment=vae_mnist model=gan
train data=mnsit
train data=folder
train data=folder data.path=nowhere
train data=bars conditional=true
train metrics=fid
train logger=tensorbord
train trainer=tpu
train trainer.precision=16-mixed
train trainer.accelerator=tpu
train max_images=null max_updates=null max_seconds=null
train max_images=1e6x
train resume=logs/nothing
train plugins=[not_there]
train name=a/b
train +callbacks.x._target_=os.system
train -m model=gan,dcan
train hydra/launcher=joblib
sample
sample checkpoint=nowhere
evaluate checkpoint=nowhere
figure figure=completions
compare runs=nowhere
trian model=gan
""".strip().splitlines()


def main() -> None:
    """Run the commands, write the page."""
    rows, slow = [], []
    for command in COMMANDS:
        code, said, seconds = answer(command)
        if code != 2 or len(said.splitlines()) != 1:
            sys.exit(f"imago {command}: exit code {code}: {said}")
        slow += [command] if seconds > SLOWEST and command not in LATER else []
        rows.append(f"| `imago {command}` | {told(said)} | {seconds:.1f} |")
    head, _, _ = PAGE.read_text(encoding="utf-8").partition("| command |")
    table = ["| command | answer | seconds |", "|---|---|---|", *rows]
    PAGE.write_text(head + "\n".join(table) + "\n", encoding="utf-8")
    print(f"{PAGE.relative_to(ROOT)}: {len(rows)} commands")
    if slow:
        sys.exit(f"slower than {SLOWEST} s: {', '.join(slow)}")


def answer(command: str) -> tuple[int, str, float]:
    """Exit code, message and processor seconds of a command in an empty folder."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with tempfile.TemporaryDirectory() as folder:
        arguments = [sys.executable, "-m", "imago", *shlex.split(command)]
        done = subprocess.run(arguments, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        said = done.stderr.replace(f"{folder}", ".")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return done.returncode, said, seconds


def told(said: str) -> str:
    """A message as the page has it: without the middle of a long one."""
    message = said.removeprefix("error: ").strip()
    return cell(message if len(message) <= 260 else f"{message[:180]} … {message[-60:]}")


def cell(text: str) -> str:
    """Text as a cell of a Markdown table, nothing of it read as Markdown."""
    return re.sub(r"([|*_<>\[\]`])", r"\\\1", " ".join(text.split()))


if __name__ == "__main__":
    main()
