"""The tables of benchmarks/README.md hold the numbers of the committed results."""

import importlib
import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from imago.config import check, composed, plain, without_hydra

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SECTIONS = {
    match[1]: section
    for section in (BENCHMARKS / "README.md").read_text(encoding="utf-8").split("\n## ")[1:]
    if (match := re.search(r"\(`(\w+)\.py`\)", section.splitlines()[0]))
}


def rows_of(section: str) -> list[list[str]]:
    """The cells of the first table, without its head."""
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def agrees(shown: str, value: float) -> bool:
    """Whether the first number in a cell is the value, rounded to the digits that are shown: 2,020,000 has three."""
    found = re.match(r"[\d,]+(\.\d+)?", shown)
    assert found, shown
    number = found[0].replace(",", "")
    zeros = 0 if "." in number else len(number) - len(number.rstrip("0"))
    step = 10.0**zeros if "." not in number else 10.0 ** -len(number.split(".")[1])
    return abs(float(number) - value) <= 0.5001 * step


COMPARED = [
    path.stem for path in sorted((BENCHMARKS / "results").glob("*.json")) if path.stem not in ("scaling", "speedrun")
]


@pytest.mark.parametrize("name", COMPARED)
def test_a_table_holds_the_committed_results(name: str) -> None:
    table = rows_of(SECTIONS[name])
    results = json.loads((BENCHMARKS / "results" / f"{name}.json").read_text())["rows"]
    assert len(table) == len(results)
    for (job, ours, other, ratio, wanted), row in zip(table, results, strict=True):
        assert agrees(ours, row["ours"]), (job, ours, row["ours"])
        assert agrees(other, row["others"]), (job, other, row["others"])
        assert agrees(ratio, row["ratio"]), (job, ratio, row["ratio"])
        assert (float(wanted) if wanted else None) == row["target"], (job, wanted, row["target"])


def test_a_wrong_digit_is_noticed() -> None:
    assert agrees("2,020,000 images/s", 2019685.2)
    assert not agrees("2,030,000 images/s", 2019685.2)
    assert agrees("0.22", 0.2231)
    assert not agrees("0.23", 0.2231)
    assert agrees("18", 17.6)
    assert not agrees("18", 17.2)


@pytest.mark.parametrize("name", ["scaling", "speedrun"])
def test_a_page_of_its_own_holds_the_committed_results(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    script = importlib.import_module(name)
    content = json.loads((BENCHMARKS / "results" / f"{name}.json").read_text())
    page = (BENCHMARKS.parent / "docs" / f"{name}.md").read_text(encoding="utf-8")
    begin, end = script.MARKS
    assert page.split(begin)[1].split(end)[0].strip() == script.tables(content)


def test_records_are_run_once_and_nights_only_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    speedrun = importlib.import_module("speedrun")
    done = []
    result = {"nats": 90.0, "wall_seconds": 1.0}
    monkeypatch.setattr(speedrun, "ROOT", tmp_path.parent)
    monkeypatch.setattr(speedrun, "OUT", tmp_path)
    monkeypatch.setattr(speedrun, "own", lambda row, seed: done.append(f"{row.name}/{seed}") or result)
    monkeypatch.setattr(speedrun, "peer", lambda row: done.append(row.name) or result)
    monkeypatch.setattr(speedrun, "report", lambda: None)
    monkeypatch.setattr("sys.argv", ["speedrun.py", "made/", "row_lstm-"])
    speedrun.main()
    assert done == ["made/1", "made/2", "made/3", "made", "row_lstm-night/1", "row_lstm-night/2", "row_lstm-night/3"]
    (tmp_path / "made" / "2.json").unlink()
    done.clear()
    speedrun.main()
    assert done == ["made/2"]
    monkeypatch.setattr("sys.argv", ["speedrun.py"])
    speedrun.main()
    assert "pixelcnn/1" in done
    assert "row_lstm/1" in done
    assert not [name for name in done if "night" in name or "hour" in name]


def test_records_that_were_run_elsewhere_stay(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Until their part is run here, or their commands are others."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    speedrun = importlib.import_module("speedrun")
    out = tmp_path / speedrun.OUT.relative_to(speedrun.ROOT)
    monkeypatch.setattr(speedrun, "ROOT", tmp_path)
    monkeypatch.setattr(speedrun, "OUT", out)
    committed = json.loads((BENCHMARKS / "results" / "speedrun.json").read_text())
    assert {"rows": speedrun.collected(committed), "command": committed["command"]} == committed
    (out / "fvbn").mkdir(parents=True)
    here = {"nats": 95.0, "wall_seconds": 1.0, "date": "2026-12-02", "machine": "another"}
    of_another_recipe = here | {"commands": ["src/train.py experiment=another seed=3"]}
    (out / "fvbn" / "1.json").write_text(json.dumps(of_another_recipe))
    part = next(part for part in speedrun.parts() if part.name == "fvbn/3")
    (out / "fvbn" / "3.json").write_text(json.dumps(here | {"commands": part.commands}))
    fvbn = speedrun.collected(committed)[0]
    assert fvbn["seeds"] == [*committed["rows"][0]["seeds"], here | {"part": "3"}]
    assert "another; 2026-12-02." in speedrun.tables({"rows": [fvbn]})
    committed["rows"][0]["commands"][0] += " model.optimizer.net.lr=1"
    assert [seed["nats"] for seed in speedrun.collected(committed)[0]["seeds"]] == [95.0]


def test_commands_of_records_end_by_the_processor_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    speedrun = importlib.import_module("speedrun")
    for row in {row.experiment: row for row in speedrun.ROWS}.values():
        config = plain(without_hydra(composed("train", row.train(1)[1:])))
        settings = check(config)
        assert settings.max_cpu_seconds == row.seconds
        assert {settings.max_images, settings.max_updates, settings.max_seconds, settings.max_wall_seconds} == {None}
        assert config["data"]["binarize"] == ("dynamic" if row.samples is None else None)
        assert (config["model"]["schedule"] or {"end": None})["end"] is None
    assert composed("distance", speedrun.distance("run")[1:]).metrics.full is False


def test_records_by_samples_are_planned_and_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any) -> None:
    """In a table of their own, without a goal; ours and the peer's are of one kind and number of samples."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    speedrun = importlib.import_module("speedrun")
    monkeypatch.setattr(speedrun, "ROOT", tmp_path.parent)
    monkeypatch.setattr(speedrun, "OUT", tmp_path)
    monkeypatch.setattr("sys.argv", ["speedrun.py", "--plan", "ddpm/", "dcgan/"])
    speedrun.main()
    said = capsys.readouterr().out
    assert re.findall(r"^(\S+/\S+) \(about", said, re.MULTILINE) == [
        *("dcgan/1", "dcgan/2", "dcgan/3", "dcgan/torchgan"),
        *("ddpm/1", "ddpm/2", "ddpm/3", "ddpm/diffusers"),
    ]
    assert "`ddpm` | 2,400 |  | not run yet | 1,000 | 0 | diffusers: not run yet |  |" in told_of(speedrun)
    made_up = {"ddpm/1": 0.5, "ddpm/2": 0.7, "ddpm/diffusers": 1.25}
    for part in speedrun.parts():
        if part.name in made_up:
            result = {"fd_classifier": made_up[part.name], "samples": 1000, "wall_seconds": 9.0, "parameters": 1234}
            part.file.parent.mkdir(parents=True, exist_ok=True)
            part.file.write_text(
                json.dumps(result | {"commands": part.commands, "date": "2026-12-02", "machine": "one"})
            )
    told = told_of(speedrun)
    assert "| `ddpm` | 2,400 | 9 | 0.600 ± 0.100 | 1,000 | 2 | diffusers: 1.250 | 1,234 |" in told
    assert "python src/distance.py a=<run>/samples.npz b=mnist:test" in told
    head = next(line for line in told.splitlines() if "samples" in line)
    assert "wanted" not in head
    assert "nats" not in head


def told_of(speedrun: Any) -> str:
    """The tables of what is there, of nothing committed."""
    return speedrun.tables({"rows": speedrun.collected({"rows": []})})


def test_a_peers_samples_are_measured_by_the_command_of_ours(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    speedrun = importlib.import_module("speedrun")
    monkeypatch.setattr(speedrun, "ROOT", tmp_path)
    ran = []

    def run(words: list[str]) -> None:
        ran.append(words)
        measured = [{"name": name, "value": value, "protocol": {"samples": 150}} for name, value in values.items()]
        (tmp_path / "ddpm" / "peer" / "distance.json").write_text(json.dumps({"measurements": measured}))

    values = {"kd_classifier": 3.0, "fd_classifier": 2.5}
    monkeypatch.setattr(speedrun, "run", run)
    row = next(row for row in speedrun.ROWS if row.name == "ddpm")
    found = speedrun.of_samples(
        lambda n: torch.linspace(-2, 2, n * 784).view(n, 1, 28, 28), 150, tmp_path / "ddpm/peer"
    )
    assert found == {"fd_classifier": 2.5, "samples": 150}
    assert ran == [row.evaluate("ddpm/peer")[-1]]
    images = np.load(tmp_path / "ddpm" / "peer" / "samples.npz")["images"]
    assert (images.shape, images.dtype, images.min(), images.max()) == ((150, 28, 28, 1), np.uint8, 0, 255)


@pytest.mark.parametrize(("name", "package"), [("ddpm", "diffusers"), ("dcgan", "torchgan")])
@pytest.mark.filterwarnings("default")  # of the peers
def test_a_peer_trains_and_draws(monkeypatch: pytest.MonkeyPatch, name: str, package: str) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    monkeypatch.setattr(sys, "path", [*sys.path, str(BENCHMARKS.parent / ".venv" / "peers")])
    pytest.importorskip(package)
    speedrun = importlib.import_module("speedrun")
    monkeypatch.setattr(speedrun, "CALLS", 3)
    make, _ = speedrun.DRAWING[name]
    net, step, draw = make()
    before = [parameter.detach().clone() for parameter in net.parameters()]
    for _ in range(2):  # the first has a rate of 0, of a warm-up
        step(torch.randint(0, 256, (4, 1, 28, 28), dtype=torch.uint8), 0.0)
    assert any(not torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))
    drawn = draw(2)
    assert drawn.shape == (2, 1, 28, 28)
    assert drawn.abs().max() <= 1
    assert drawn.std() > 0


def test_a_peer_is_measured_as_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    speedrun = importlib.import_module("speedrun")
    mean, log_scale, signal = torch.tensor([[0.3, -2.0]]), torch.tensor([[-1.0, 0.5]]), torch.tensor([[-1.0, 1.0]])
    seen = []
    code = SimpleNamespace(embedding=mean, log_covariance=2 * log_scale)
    assert torch.equal(
        speedrun.TheirEncoder(lambda x: seen.append(x) or code)(signal, None), torch.cat([mean, log_scale], 1)
    )
    assert torch.equal(seen[0], torch.tensor([[0.0, 1.0]]))
    logits = torch.tensor([[-8.0, 0.0, 3.0]])
    decoder = speedrun.TheirDecoder(lambda z: SimpleNamespace(reconstruction=logits.sigmoid()))
    torch.testing.assert_close(decoder(mean, None)[..., 0], logits, atol=1e-3, rtol=1e-3)


def test_what_wants_a_gpu_goes_on_where_it_stopped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    gpu = importlib.import_module("gpu")
    words = ["gpu.py", "--rehearse", f"--out={tmp_path}", "speed/vae-float32", "speed/vae-bfloat16"]
    monkeypatch.setattr("sys.argv", words)
    assert gpu.main() == 0
    row = json.loads((tmp_path / "speed" / "vae-bfloat16.json").read_text())
    assert row["flop_per_image"] > 1e4
    assert row["images_per_second"] == pytest.approx(1000 * row["batch_size"] / row["step_ms"])
    assert (tmp_path / "report.md").read_text().count("| vae |") == 2
    done = []
    monkeypatch.setattr(gpu, "speed", lambda name, mode, rehearse: done.append(mode) or row)
    (tmp_path / "speed" / "vae-float32.json").unlink()
    assert gpu.main() == 0
    assert done == ["float32"]


def test_a_part_that_ends_the_process_twice_is_left_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    gpu = importlib.import_module("gpu")
    tries = []

    def killed(*_: object) -> None:
        tries.append(1)
        raise SystemExit

    monkeypatch.setattr(gpu, "speed", killed)
    monkeypatch.setattr("sys.argv", ["gpu.py", "--rehearse", f"--out={tmp_path}", "speed/vae-float32"])
    for _ in range(2):
        with pytest.raises(SystemExit):
            gpu.main()
    assert gpu.main() == 0
    assert len(tries) == 2
    assert "ended the process" in (tmp_path / "report.md").read_text()


@pytest.mark.slow
def test_all_that_wants_a_gpu_is_rehearsed(tmp_path: Path) -> None:
    words = [sys.executable, str(BENCHMARKS / "gpu.py"), "--rehearse", f"--out={tmp_path}"]
    assert subprocess.run(words, check=False, capture_output=True).returncode == 0
    kept = json.loads((tmp_path / "report.json").read_text())["parts"]
    assert not [name for name, content in kept.items() if "error" in content]
    assert {name.split("/")[0] for name in kept} == {"tests", "speed", "train", "evaluate"}
    assert "nats" in (tmp_path / "report.md").read_text()
