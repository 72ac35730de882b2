"""All that wants a GPU, in parts that are written at once and skipped where they are there: `make gpu`.

    python benchmarks/gpu.py --plan              # the parts, and how long each takes
    python benchmarks/gpu.py --within 9          # minutes: begins no part that would end later; the next call goes on
    python benchmarks/gpu.py speed/ddpm train/   # those whose names begin so
    python benchmarks/gpu.py --rehearse          # on the CPU, in tiny sizes

Parts are the tests that are marked `gpu`; of every model at 32x32x3 a training step in float32, bfloat16, compiled, and
compiled into CUDA graphs; and runs of the experiments of CIFAR-10, which are then measured. Everything lies in
`--out`: a JSON file for each part, and `report.md`.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from imago.config import composed, plain, without_hydra
from imago.images import Batch, ImageSpec
from imago.models.base import GenerativeModel, count_parameters
from imago.runs import device_name, forget_peak_memory, peak_memory_mib
from imago.training.estimate import flop_of
from imago.training.run import build_model
from side_by_side import machine

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from helpers import TINY

ROOT = Path(__file__).parents[1]
MODES = {"float32": 20, "bfloat16": 15, "compiled": 100, "graphs": 100}  # seconds that a model takes, expected
RUNS = ("pixelcnn", "diagonal_bilstm", "ddpm", "gated_pixelcnn", "row_lstm", "dcgan")  # <name>_cifar10
PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12}  # FLOP/s of bfloat16, dense, as NVIDIA prints them
TIMED = 5.0  # seconds of steps
EVALUATED = 600  # seconds that evaluate.py takes, expected


@dataclass(frozen=True)
class Part:
    """A piece of work: what it returns is kept as a file of its name."""

    name: str
    seconds: float  # expected
    work: Callable[[], dict[str, Any]]


def settings_of(name: str, rehearse: bool) -> list[str]:
    """The experiment of a model on CIFAR-10 where there is one, or the model as its yaml has it."""
    given = [f"experiment={name}_cifar10"] if name in RUNS and not rehearse else [f"model={name}", "data=cifar10"]
    binary = ["data.binarize=threshold"] if name == "rbm" else []
    return [*given, *binary, *([s for s in TINY[name] if not s.startswith("data.")] if rehearse else [])]


def speed(name: str, mode: str, rehearse: bool) -> dict[str, Any]:
    """Of training steps on noise of 32x32x3: their time, memory and arithmetic, or why they fail."""
    device = torch.device("cpu" if rehearse else "cuda")
    config = plain(without_hydra(composed("train", settings_of(name, rehearse))))
    side, size = (8, 2) if rehearse else (32, config["data"]["batch_size"])
    spec = ImageSpec(3, side, side, levels=2 if name == "rbm" else 256)
    batch = Batch(torch.randint(spec.levels, (size, *spec.shape), device=device, dtype=torch.uint8))
    torch.manual_seed(0)
    try:
        model = build_model(config, spec).to(device).train()
        model.configure_optimizers()
        model.log_grad_norm = False
        few = Batch(batch.images[:2])
        flop = flop_of(lambda: update(model, few)) / (len(few.images) * model.batches_per_update)
        with ExitStack() as stack:
            stack.enter_context(torch.autocast(device.type, torch.bfloat16, enabled=mode != "float32"))
            if mode in ("compiled", "graphs"):
                if mode == "graphs":
                    options = torch._inductor.list_mode_options("reduce-overhead")
                    stack.enter_context(torch._inductor.config.patch(options))
                model.compile_networks("eager" if rehearse else "inductor")
            began = time.perf_counter()
            for _ in range(3):
                update(model, batch)
            synchronize(device)
            warm_up = time.perf_counter() - began
            forget_peak_memory(device)
            seconds, steps = timed(partial(update, model, batch), device, 0.0 if rehearse else TIMED)
    except Exception as error:  # of one model, in one mode: the others go on
        return {"model": name, "mode": mode, "error": f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"}
    images = steps * size * model.batches_per_update
    peak = next((value for key, value in PEAKS.items() if key in device_name(device)), None)
    return {
        "model": name,
        "mode": mode,
        "parameters": sum(map(count_parameters, model.networks.values())),
        "batch_size": size,
        "step_ms": 1000 * seconds / steps,
        "images_per_second": images / seconds,
        "peak_memory_mib": peak_memory_mib(device),
        "flop_per_image": flop,
        "tflop_per_second": flop * images / seconds / 1e12,
        "share_of_peak": None if peak is None else flop * images / seconds / peak,
        "warm_up_seconds": warm_up,
    }


def update(model: GenerativeModel, batch: Batch) -> None:
    """The batches of one update of the model."""
    for _ in range(model.batches_per_update):
        torch.compiler.cudagraph_mark_step_begin()
        for loss in model.losses(batch):
            model.optimize(loss)


def timed(step: Callable[[], None], device: torch.device, least: float) -> tuple[float, int]:
    """Seconds of steps, and how many: at least ``least`` seconds, in rounds between which alone a GPU is waited for."""
    began, steps, size = time.perf_counter(), 0, 1
    while True:
        for _ in range(size):
            step()
        synchronize(device)
        steps, seconds = steps + size, time.perf_counter() - began
        if seconds >= least:
            return seconds, steps
        size = min(2 * size, 50)


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def command(*words: str) -> dict[str, Any]:
    """Run a script of the project, show what it says, and keep how it ended."""
    began = time.time()
    print("   ", " ".join(words), flush=True)
    done = subprocess.run([sys.executable, *words], cwd=ROOT, check=False, capture_output=True, text=True)
    tail = (done.stdout + done.stderr)[-2000:]
    print(tail, flush=True)
    return {"command": " ".join(words), "code": done.returncode, "seconds": time.time() - began, "tail": tail}


def train(name: str, out: Path, minutes: float, rehearse: bool) -> dict[str, Any]:
    """A run of an experiment for some minutes of training, continued where there is one."""
    words = [f"experiment={name}_cifar10", f"name={name}", f"logs={out / 'runs'}", "logger=csv", "resume=auto"]
    words += ["metrics=none", "callbacks.checkpoints.seconds=120", f"max_seconds={60 * minutes:g}"]
    if rehearse:
        words += ["data=digits", *TINY[name], "data.batch_size=4", "trainer=cpu", "max_updates=2"]
        words += ["callbacks.samples=null", "callbacks.likelihood=null"]
    else:
        words += ["trainer=gpu"]
    return command("src/train.py", *words)


def evaluate(name: str, out: Path, rehearse: bool) -> dict[str, Any]:
    """The likelihood of test images where the model knows it, and the distance of samples where they are drawn fast."""
    words = [f"checkpoint={out / 'runs' / name}"]
    if name in ("dcgan", "ddpm"):
        words += ["metrics=classifier", f"metrics.samples={20 if rehearse else 50_000}", "batch_size=1000"]
    else:
        words += ["metrics=none"]
    words += ["images=4"] if rehearse else []
    words += ["bound_steps=20"] if name == "ddpm" else []
    return command("src/evaluate.py", *words)


def parts(out: Path, minutes: float, rehearse: bool) -> Iterator[Part]:
    """All of them, the most telling first."""
    folder = ["tests/test_rng.py"] if rehearse else ["tests"]
    yield Part("tests", 300, partial(command, "-m", "pytest", "-n", "0", "-m", "gpu", *folder))
    for mode, seconds in MODES.items():
        names = ("vae", "pixelcnn") if rehearse and mode in ("compiled", "graphs") else TINY
        for name in names:
            yield Part(f"speed/{name}-{mode}", seconds, partial(speed, name, mode, rehearse))
    for name in RUNS[::2][:2] if rehearse else RUNS:
        yield Part(f"train/{name}", 60 * minutes + 60, partial(train, name, out, minutes, rehearse))
        yield Part(f"evaluate/{name}", EVALUATED, partial(evaluate, name, out, rehearse))


def result_of(out: Path, part: Part) -> dict[str, Any] | None:
    """What is kept of a part that is done; of a command that failed, nothing."""
    file = out / f"{part.name}.json"
    if not file.exists():
        return None
    content: dict[str, Any] = json.loads(file.read_text())
    return None if content.get("code", 0) not in (0, 5) else content  # 5 of pytest: no test was chosen


def keep(out: Path, part: Part, content: dict[str, Any]) -> None:
    file = out / f"{part.name}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content, indent=2) + "\n")


def report(out: Path, all_parts: list[Part]) -> str:
    """The tables of what is there."""
    found = {part.name: content for part in all_parts if (content := result_of(out, part)) is not None}
    lines = [
        "| model | mode | parameters | batch | ms / step | images / s | MiB | TFLOP/s | of bf16's peak | warm-up, s |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in (content for name, content in found.items() if name.startswith("speed/")):
        if "error" in row:
            lines.append(f"| {row['model']} | {row['mode']} | {row['error'].replace('|', '/')} |{' |' * 7}")
            continue
        share = "" if row["share_of_peak"] is None else f"{100 * row['share_of_peak']:.1f}%"
        numbers = f"{row['step_ms']:.3g} | {row['images_per_second']:,.0f} | {row['peak_memory_mib']:,.0f}"
        lines.append(
            f"| {row['model']} | {row['mode']} | {row['parameters']:,} | {row['batch_size']} | {numbers} "
            f"| {row['tflop_per_second']:.3g} | {share} | {row['warm_up_seconds']:.1f} |"
        )
    lines += ["", "| run | images | images / s | measured |", "|---|---:|---:|---|"]
    for name in RUNS:
        runs = sorted((out / "runs" / name).glob("*/summary.json"))
        if f"train/{name}" in found and runs:
            run = json.loads(runs[-1].read_text())
            measured = runs[-1].with_name("evaluation.json")
            told = json.dumps(values_of(json.loads(measured.read_text()))) if measured.exists() else ""
            lines.append(f"| {name} | {run.get('images_seen', 0):,} | {run.get('images_per_second')} | {told} |")
    if "tests" in found:
        lines += ["", f"Tests: {found['tests']['tail'].strip().splitlines()[-1]}"]
    text = "\n".join(lines) + "\n"
    (out / "report.md").write_text(text)
    (out / "report.json").write_text(json.dumps({"machine": machine(), "parts": found}, indent=2) + "\n")
    return text


def values_of(evaluation: list[dict[str, Any]]) -> dict[str, float]:
    """What was measured, without how."""
    return {entry["name"]: entry["value"] for entry in evaluation}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wanted", nargs="*", metavar="PART", help="beginnings of names of parts; none: all")
    parser.add_argument("--out", type=Path, help="default: logs/gpu, for a rehearsal logs/gpu-rehearsal")
    parser.add_argument("--minutes", type=float, default=8, help="of training, of each run")
    parser.add_argument("--within", type=float, help="minutes: begin no part that is expected to end later")
    parser.add_argument("--plan", action="store_true", help="say what is left and how long it takes; start nothing")
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, in tiny sizes")
    given = parser.parse_args()
    out = (given.out or ROOT / "logs" / ("gpu-rehearsal" if given.rehearse else "gpu")).resolve()
    if not (given.plan or given.rehearse or torch.cuda.is_available()):
        print("there is no GPU that torch can use; --rehearse runs everything on the CPU, --plan says what there is")
        return 2
    began = time.time()
    all_parts = list(parts(out, given.minutes, given.rehearse))
    chosen = [part for part in all_parts if not given.wanted or part.name.startswith(tuple(given.wanted))]
    left = [part for part in chosen if result_of(out, part) is None]
    told = "" if given.rehearse else f", {sum(part.seconds for part in left) / 60:.0f} minutes"
    print(f"{len(left)} of {len(chosen)} parts are left{told}; {out}")
    for part in left:
        end = "" if given.rehearse else f" (about {part.seconds:.0f} s)"
        late = given.within is not None and time.time() - began + part.seconds > 60 * given.within
        print(f"{part.name}{end}{': too long for the time that is left' if late else ''}", flush=True)
        if given.plan or late:
            continue
        if part.name.startswith("speed/"):  # what ends the process a second time is not asked again
            model, mode = part.name.removeprefix("speed/").rsplit("-", 1)
            error = {"model": model, "mode": mode, "error": "ended the process, or was ended with it"}
            keep(out, part, error | {"code": 0 if (out / f"{part.name}.json").exists() else 1})
        keep(out, part, part.work())
        report(out, all_parts)
    if not given.plan:
        print(report(out, all_parts))
    return 0


if __name__ == "__main__":
    sys.exit(main())
