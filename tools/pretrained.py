"""Train, measure and export the models that the package carries: ``.venv/bin/python tools/pretrained.py [MODEL ...]``.

Every model of conf/model on scikit-learn's digits, narrow enough for 300 kB, 60 seconds of one core each, of which the
state that measured best on the validation images is taken; what is done already is not done again. Runs lie in
logs/pretrained/, what is exported in src/imago/pretrained/; the table of docs/pretrained.md and its picture are written
anew.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch.nn import functional as F

import imago
from imago.downloads import digest_of
from imago.exports import export
from imago.files import write_text
from imago.measures import Protocol
from imago.pictures import write_png
from imago.pretrained import PACKAGED, RELEASED, WEIGHTS, packaged, told
from imago.untrusted import read_json

ROOT = Path(__file__).parents[1]
RUNS = ROOT / "logs" / "pretrained"
PAGE = ROOT / "docs" / "pretrained.md"
MARKS = ("<!-- pretrained: `python tools/pretrained.py` writes what follows -->", "<!-- pretrained: end -->")
CPU_SECONDS = 60
LICENSE = "mit"

_HALF = "model.{0}.width=16 model.{0}.widest=28"
_NARROW = f"{_HALF.format('encoder')} {_HALF.format('decoder')} model.latent=16"
_UNET = "model.network.width=16 model.network.multipliers=[1,1]"
_ADAM = "model/schedule=cosine model.optimizer.net.lr=0.002"
# What makes each model small, by its choice of the model group.
MODELS = {
    "fvbn": _ADAM,
    "made": f"model.hidden=[200] {_ADAM}",
    "pixelcnn": f"model.features=44 {_ADAM}",
    "gated_pixelcnn": f"model.features=20 {_ADAM}",
    "row_lstm": f"model.features=24 {_ADAM}",
    "diagonal_bilstm": f"model.features=24 {_ADAM}",
    "autoencoder": f"{_NARROW} {_ADAM}",
    "vae": f"model.encoder.hidden=[220] model.decoder.hidden=[220] model.latent=16 {_ADAM}",
    "conv_vae": f"{_NARROW} {_ADAM}",
    "hvae": f"model.width=16 model.widest=28 {_ADAM}",
    "gan": "model.generator.hidden=[128,128] model.discriminator.hidden=[128,128] model.latent=32",
    "dcgan": "model.generator.width=64 model.discriminator.width=48 model.latent=32",
    "ddpm": f"{_UNET} {_ADAM}",
    "ncsn": f"{_UNET} {_ADAM}",
    "flow_matching": f"{_UNET} {_ADAM}",
    "masked_diffusion": f"model.network.width=12 model.network.multipliers=[1,1] {_ADAM}",
    "realnvp": f"model.width=32 {_ADAM}",
    "glow": f"model.width=48 {_ADAM}",
    "maf": f"model.hidden=[80] {_ADAM}",
    "ebm": "model.energy.width=16",
    "gsn": f"model.network.hidden=[170,170] {_ADAM}",
    "rbm": "data.binarize=dynamic model.persistent=true",
}


def make(model: str) -> None:
    """Train, measure and export one model; steps that are done already are left out."""
    name = f"{model}-digits"
    run = RUNS / name
    here = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}

    def carry_out(script: str, *arguments: str) -> None:
        subprocess.run([sys.executable, f"src/{script}.py", *arguments], cwd=ROOT, env=here, check=True)

    summary = run / "summary.json"
    if not summary.exists() or json.loads(summary.read_text())["status"] != "completed":
        limits = ["max_images=null", f"max_cpu_seconds={CPU_SECONDS}"]
        kept = ["logger=csv", f"name={name}", f"hydra.run.dir={run.relative_to(ROOT)}"]
        carry_out("train", f"model={model}", "data=digits", *MODELS[model].split(), *limits, *kept)
    best, results = run / "checkpoints" / "best.ckpt", run / "evaluation.json"
    if not best.exists():  # of a model whose samples take too long to have been measured in a minute
        best = best.with_name("last.ckpt")
    checkpoint = f"checkpoint={best.relative_to(ROOT)}"
    if not results.exists() or all(result["checkpoint"] != best.name for result in json.loads(results.read_text())):
        carry_out("evaluate", checkpoint)
    out = f"out={PACKAGED.relative_to(ROOT)}/{name}"
    carry_out("export", checkpoint, out, f"license={LICENSE}")


def release(name: str, checkpoint: str) -> None:
    """Export a larger model to build/release/, to be put where IMAGO_MODELS_URL points, and list it."""
    folder = ROOT / "build" / "release" / name
    shutil.rmtree(folder, ignore_errors=True)
    export(checkpoint, folder, license=LICENSE)
    files = sorted(file for file in folder.rglob("*") if file.is_file() and not file.name.startswith("."))
    listed = {str(f.relative_to(folder)): {"bytes": f.stat().st_size, "sha256": digest_of(f, "sha256")} for f in files}
    entry = {"told": told(folder), "files": listed}
    write_text(RELEASED, json.dumps(dict(sorted({**read_json(RELEASED), name: entry}.items())), indent=2) + "\n")
    print(f"{folder}: {len(files)} files, listed in {RELEASED}")


def table() -> str:
    """The models with what was measured, for docs/pretrained.md."""
    rows = [
        "| name | parameters | test nats | FD classifier | bytes |",
        "|---|---:|---:|---:|---:|",
    ]
    for name in packaged():
        folder = PACKAGED / name
        results = {r["name"]: r for r in json.loads((folder / "evaluation.json").read_text())}
        parameters = json.loads((folder / "summary.json").read_text())["parameters"]["total"]
        nats = results.get("test/nats")
        likelihood = "–" if nats is None else number_of(nats)
        size = (folder / WEIGHTS).stat().st_size
        distance = f"{results['fd_classifier']['value']:.3g}" if "fd_classifier" in results else "–"
        rows.append(f"| `{name}` | {parameters:,} | {likelihood} | {distance} | {size:,} |")
    return "\n".join(rows)


def number_of(result: dict[str, Any]) -> str:
    """A likelihood with its relation and error."""
    protocol = Protocol.from_dict(result["protocol"])
    binary = " (binarised)" if protocol.binarization not in (None, "none") else ""
    return f"{protocol.relation} {result['value']:.2f} ± {protocol.error:.2f}{binary}"


def draw(file: Path) -> None:
    """Eight samples of every model in the package, in two columns, each with its name."""
    names = packaged()
    rows = (len(names) + 1) // 2
    figure = Figure(figsize=(9, 0.5 * rows), dpi=100)
    for k, name in enumerate(names):
        images = imago.load(name).sample(8)
        axes = figure.add_axes((0.15 + 0.5 * (k // rows), 1 - (k % rows + 0.95) / rows, 0.34, 0.9 / rows))
        apart = F.pad(images[:, 0].float() / images.max(), (0, 2), value=1.0)
        axes.imshow(torch.cat(list(apart), 1)[:, :-2], cmap="gray", vmin=0, vmax=1)
        axes.set_axis_off()
        axes.text(-2, 4, name.removesuffix("-digits"), ha="right", va="center", fontsize=9)
    write_png(figure, file)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", choices=[*MODELS, []], help="models; all of them by default")
    parser.add_argument("--release", nargs=2, metavar=("NAME", "CHECKPOINT"), help="list a larger model instead")
    given = parser.parse_args()
    if given.release:
        release(*given.release)
        sys.exit()
    for chosen in given.names or MODELS:
        make(chosen)
    before, _, rest = PAGE.read_text().partition(MARKS[0])
    write_text(PAGE, f"{before}{MARKS[0]}\n\n{table()}\n\n{MARKS[1]}{rest.partition(MARKS[1])[2]}")
    draw(PAGE.parent / "images" / "pretrained.png")
