"""The promise of `make demo`, on a shorter run."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_the_demo_leaves_samples_much_nearer_to_the_data_than_an_untrained_generators(tmp_path: Path) -> None:
    options = ["experiment=gan_digits", "max_images=150000", "max_seconds=null", "logger=csv", f"logs={tmp_path}"]
    command = [sys.executable, str(ROOT / "src" / "train.py"), *options]
    subprocess.run(command, check=True, capture_output=True, timeout=900)
    (path,) = tmp_path.glob("gan-digits/*/summary.json")
    summary = json.loads(path.read_text())
    trained = summary["metrics"]["val/fd_classifier"]["value"]
    assert trained <= summary["untrained"]["val/fd_classifier"] / 4
