"""Run directories as train.py and evaluate.py leave them, made without training."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

MakeRun = Callable[..., Path]

SPEC = {"channels": 1, "height": 28, "width": 28, "levels": 2, "classes": 10}
MODELS = {
    "made": "imago.models.made.MADE",
    "vae": "imago.models.vae.VAE",
    "gan": "imago.models.gan.GAN",
    "dcgan": "imago.models.gan.GAN",
    "row_lstm": "imago.models.pixelrnn.PixelRNN",
    "diagonal_bilstm": "imago.models.pixelrnn.PixelRNN",
}
NETS = {
    "vae": {"encoder": {"_target_": "imago.nets.mlp.MLPEncoder", "_partial_": True}},
    "gan": {"generator": {"_target_": "imago.nets.mlp.MLPGenerator", "_partial_": True}},
    "dcgan": {"generator": {"_target_": "imago.nets.dcgan.DCGANGenerator", "_partial_": True}},
    "row_lstm": {"layer": {"_target_": "imago.models.pixelrnn.RowLSTM", "_partial_": True}},
    "diagonal_bilstm": {"layer": {"_target_": "imago.models.pixelrnn.DiagonalBiLSTM", "_partial_": True}},
}


def likelihood(split: str = "val", kind: str = "exact", **changes: Any) -> dict[str, Any]:
    """A protocol of a likelihood."""
    return {
        "data": f"mnist {split}",
        "data_fingerprint": "f7b1",
        "images": 10000,
        "likelihood": kind,
        "binarization": "white with probability intensity / 255, one fixed draw",
        "conditional": False,
        "weights": "averaged",
        "caveat": "none",
        "standard_error": 0.25,
    } | changes


def quality(**changes: Any) -> dict[str, Any]:
    """A protocol of a distance of samples."""
    return {
        "extractor": "classifier (mnist, shipped)",
        "extractor_fingerprint": "36b8",
        "reference": "mnist train",
        "reference_fingerprint": "f7b1",
        "reference_images": 50000,
        "samples": 10000,
        "caveat": "none",
        "weights": "averaged",
        "seed": 1,
    } | changes


def rows(nats: list[float]) -> str:
    """A metrics.csv: each training row costs half a second and 100 images; a measurement follows each."""
    lines = ["images_seen,updates,val/nats,val/bpd,train/nats,time/training_seconds,time/peak_memory_mib"]
    for k, value in enumerate(nats):
        lines.append(f"{100 * k},{k},,,{value + 1},{k / 2},{900 + k}")
        lines.append(f"{100 * k},{k},{value},{value / 543.4},,,")
    return "\r\n".join(lines) + "\r\n"


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """Makes a run directory below ``tmp_path``; ``None`` leaves a file out, text takes its place."""

    def make(
        where: str,
        *,
        model: str = "made",
        data: str = "mnist",
        binarize: str | None = "dynamic",
        config: dict[str, Any] | str | None = None,
        summary: dict[str, Any] | str | None = None,
        metrics: str | None = rows([200.0, 120.0, 100.0]),
        evaluation: list[dict[str, Any]] | str | None = None,
        checkpoint: dict[str, Any] | str | None = "",
        left_out: tuple[str, ...] = (),
        picture: tuple[int, int] | None = (582, 466),
        **told: Any,
    ) -> Path:
        path = tmp_path / where
        (path / "checkpoints").mkdir(parents=True)
        chosen = {
            "data": {
                "_target_": "imago.data.ImageDataModule",
                "source": {"_target_": f"imago.data.sources.{data.upper()}"},
                "binarize": binarize,
                "dir": "somewhere",
            },
            "model": {"_target_": MODELS[model], "optimizer": {"net": {"lr": 0.001}}, "hidden": [500]}
            | NETS.get(model, {}),
            "seed": 0,
        }
        chosen = chosen | config if isinstance(config, dict) else chosen
        said = {
            "name": f"{model}-{data}",
            "model": MODELS[model],
            "likelihood": "exact",
            "data": data,
            "spec": SPEC,
            "seed": 0,
            "parameters": {"net": 1000, "total": 1000},
            "device": "2 CPU cores",
            "threads": 1,
            "status": "completed",
            "images_seen": 200,
            "training_seconds": 1.0,
            "peak_memory_mib": 902.0,
        } | told
        said = said | summary if isinstance(summary, dict) else said
        files = {
            "config.yaml": config if isinstance(config, str) else yaml.safe_dump(chosen),
            "summary.json": summary if isinstance(summary, str) else json.dumps(said),
            "metrics.csv": metrics,
            "evaluation.json": evaluation if isinstance(evaluation, str | None) else json.dumps(evaluation),
        }
        for name, content in files.items():
            if content is not None and name not in left_out:
                (path / name).write_text(content, newline="")
        if checkpoint == "":
            checkpoint = {"config": chosen, "spec": SPEC, "progress": {"images_seen": 200}}
        if isinstance(checkpoint, dict):
            weights = {"state_dict": {"net.weight": torch.zeros(3, 3)}, "random": {"python": (3, (1, 2), None)}}
            torch.save(checkpoint | weights, path / "checkpoints" / "last.ckpt")
        elif checkpoint is not None:
            (path / "checkpoints" / "last.ckpt").write_text(checkpoint)
        if picture is not None:
            (path / "samples").mkdir()
            noise = np.random.default_rng(0).integers(0, 2, picture[::-1], dtype=np.uint8) * 255
            Image.fromarray(noise).save(path / "samples" / "images-0000000200.png")
        return path

    return make
