"""The lecture's claims: answers turn with the numbers and their errors, and what is missing is named."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from imago.board import claims
from imago.board.board import Board
from imago.board.claims import FAMILIES, KINDS, SEEDS, Answer, Runs, answers, budgets
from imago.board.claims_page import write_claims_markdown, write_claims_page
from imago.board.grids import steering, tiles
from imago.board.records import Data, Measured, Record, read_record
from imago.config import CONF
from imago.measures import Protocol
from imago.pretrained import PACKAGED
from imago.statistics import welch

from .conftest import MakeRun, likelihood, quality

SHAPE = (1, 28, 28, 256)
DATA = Data("mnist", None, SHAPE)
RANDOM = np.random.default_rng(0)
OBJECTIVES = ("NonSaturating", "Minimax")


def of_model(model: str, **changes: Any) -> dict[str, Any]:
    """A configuration that is recognised as a choice of the model group, with changes of the model's settings."""
    node = yaml.safe_load((CONF / "model" / f"{model}.yaml").read_text())
    node.pop("defaults", None)
    source = {"_target_": "imago.data.ImageDataModule", "source": {"_target_": "imago.data.sources.MNIST"}}
    return {"data": source | {"binarize": None}, "model": node | changes, "seed": 0}


def told(value: float, name: str = "test/bpd", **protocol: Any) -> dict[str, Any]:
    made = quality(**protocol) if name.startswith("fd") else likelihood("test", **protocol)
    return {"name": name, "value": value, "protocol": made}


def record(model: str, seed: int = 0, *measured: Measured, **told: Any) -> Record:
    """A run of sixty seconds, as the board reads it."""
    common: dict[str, Any] = {
        "data": DATA,
        "status": "completed",
        "likelihood": KINDS[model],
        "parameters": {"net": 1000, "total": 1000},
        "images_seen": 6000,
        "training_seconds": 90.0,
        "cpu_seconds": 60.0,
        "machine": "a machine",
        "settings": {"model": model, "seed": str(seed)},
    }
    place = Path("logs") / f"{model}-{seed}"
    return Record(place, model, str(seed), model=model, seed=seed, measured=list(measured), **common | told)


def nats(value: float, error: float = 0.1, **entries: Any) -> Measured:
    protocol = likelihood("test", standard_error=error, **entries)
    return Measured("nats", value, "test", Protocol.from_dict(protocol))


def distance(value: float, name: str = "fd_classifier", changes: Any = None, **entries: Any) -> Measured:
    return Measured(name, value, "eval", Protocol.from_dict(quality(**entries)), changes=changes or {})


def seeds(model: str, make: Callable[[float], Measured], values: Sequence[float], **told: Any) -> list[Record]:
    """A run for each value."""
    return [record(model, seed, make(value), **told) for seed, value in enumerate(values)]


def about(mean: float, spread: float = 1.0, count: int = SEEDS) -> list[float]:
    """Values with a mean and a standard deviation."""
    found = np.arange(count) - (count - 1) / 2
    return (mean + spread * found / found.std(ddof=1)).tolist()


def asked(*records: Record) -> dict[str, Answer]:
    """The answers on the only data set, by the name of the claim's function."""
    ((_, found),) = answers(Board(records))
    return dict(zip((claim.__name__ for claim in claims.CLAIMS), found, strict=True))


def ask(*runs: Path) -> dict[str, Answer]:
    return asked(*map(read_record, runs))


def grid(path: Path, images: np.ndarray) -> None:
    """Images (rows, columns, 28, 28) as callbacks and figures write them: margins of one, enlarged twice."""
    rows, columns = images.shape[:2]
    picture = np.full((rows * 29 + 1, columns * 29 + 1), 255, np.uint8)
    for k in range(rows):
        for j in range(columns):
            picture[k * 29 + 1 : k * 29 + 29, j * 29 + 1 : j * 29 + 29] = images[k, j]
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture.repeat(2, 0).repeat(2, 1)).save(path)


def test_without_runs_every_claim_names_the_run_that_would_answer_it(make_run: MakeRun) -> None:
    run = make_run("logs/x", config=of_model("ddpm"), likelihood="lower_bound", training_seconds=37.4, picture=None)
    found = ask(run)
    for name, answer in found.items():
        assert answer.verdict == "open", name
        assert answer.needed or name == "blur", name  # these images have two values
        assert all(command.startswith("python src/train.py -m sweep=") for command in answer.needed)
        assert all("data=mnist" in command and "max_cpu_seconds=37" in command for command in answer.needed)
    named = found["density"].needed[0].split("model=")[1].split()[0].split(",")
    assert set(named) == set(FAMILIES) - {"ddpm"}
    assert "sweep=objectives" in found["objective"].needed[0]


def test_kinds_are_what_runs_report(make_run: MakeRun) -> None:
    kinds = {"made": "exact", "vae": "lower_bound", "gan": "none"}
    runs = [make_run(f"logs/{m}", config=of_model(m), likelihood=kind, metrics=None) for m, kind in kinds.items()]
    answer = ask(*runs)["density"]
    assert answer.verdict == "agrees"
    assert "exactly: made; through a bound: vae; not at all: gan" in answer.words
    runs[0] = make_run("logs/other", config=of_model("made"), likelihood="lower_bound", metrics=None)
    answer = ask(*runs)["density"]
    assert answer.verdict == "disagrees"
    assert answer.words.startswith("made reports lower_bound")


def test_what_is_not_finite_or_no_likelihood_speaks_against_a_density(make_run: MakeRun) -> None:
    runs = [
        make_run(f"logs/{m}", config=of_model(m), likelihood=kind, metrics=None, evaluation=evaluation)
        for m, kind, evaluation in (
            ("made", "exact", [told(math.inf, f"test/{name}") for name in ("nats", "bpd")]),
            ("vae", "lower_bound", [told(2.0)]),
            ("gan", "none", [told(90.0, "test/nats")]),
        )
    ]
    found = ask(*runs)
    assert found["density"].verdict == "disagrees"
    assert found["density"].words.startswith("made measured inf; gan has a number, though it reports none.")
    assert found["direct"].rows == []


# --- no verdict without an error, without five seeds, and without equal training --------------------------------------


def test_one_run_of_each_decides_nothing() -> None:
    some = [record("pixelcnn", 0, nats(500.0), distance(1.0)), record("conv_vae", 0, nats(900.0), distance(2.0))]
    some += [record(m, 0, distance(9.0)) for m in ("autoencoder", "dcgan", "row_lstm")]
    found = asked(*some)
    for name in ("direct", "samples", "training"):
        assert found[name].verdict == "undecided", name
        assert "p = " not in found[name].words
    assert "without a second run it has no error" in found["direct"].words


@pytest.mark.parametrize(("count", "verdict"), [(SEEDS - 1, "undecided"), (SEEDS, "agrees")])
def test_a_verdict_needs_five_seeds_of_each(count: int, verdict: str) -> None:
    found = asked(
        *seeds("pixelcnn", nats, about(500)),
        *seeds("conv_vae", lambda x: nats(x, kind="lower_bound"), about(900, 1, count)),
    )["direct"]
    assert found.verdict == verdict
    assert (f"there are of conv_vae {count}" in found.words) == (verdict == "undecided")


@pytest.mark.parametrize(
    ("gap", "verdict"), [(20.0, "agrees"), (2.0, "undecided"), (-2.0, "undecided"), (-20.0, "disagrees")]
)
def test_likelihoods_are_compared_with_the_errors_of_runs_and_images(gap: float, verdict: str) -> None:
    """Runs differ by 2, images add 1 to each mean: the error is √(2 · 4 / 5 + 2)."""
    runs = [*seeds("pixelcnn", lambda x: nats(x, 1.0), about(100, 2.0))]
    runs += seeds("conv_vae", lambda x: nats(x, 1.0, kind="lower_bound"), about(100 + gap, 2.0))
    answer = asked(*runs)["direct"]
    assert answer.verdict == verdict
    assert f"{gap:+.2f} ± 1.9" in answer.words
    assert [row[0] for row in answer.rows] == (["pixelcnn", "conv_vae"] if gap > 0 else ["conv_vae", "pixelcnn"])


def test_the_same_images_are_compared_in_pairs(tmp_path: Path) -> None:
    """Digits differ by 60 nats from each other, two models by 1 on every one of them."""
    hard, runs = RANDOM.normal(100, 60, 10_000), []
    for model, level in (("pixelcnn", 0.0), ("conv_vae", 1.0)):
        for seed, own in enumerate(about(level, 0.1)):
            values = hard + own
            file = tmp_path / f"{model}{seed}.npy"
            np.save(file, values.astype(np.float32))
            m = nats(float(values.mean()), 0.6)
            runs.append(record(model, seed, Measured(m.name, m.value, m.split, m.protocol, each=file)))
    answer = asked(*runs)["direct"]
    assert answer.verdict == "agrees"
    assert "+1.00 ± 0.063" in answer.words, "0.1 · √(2 / 5), and nothing of 0.6 · √2"
    (tmp_path / "conv_vae3.npy").write_bytes(b"damaged")
    answer = asked(*runs)["direct"]
    assert answer.verdict == "undecided", "without pairs the images' errors hide it"
    assert "+1.00 ± 0.85" in answer.words


def test_the_tighter_bound_speaks_for_the_vae() -> None:
    def both(value: float) -> Measured:
        return nats(value, kind="lower_bound")

    runs = [*seeds("pixelcnn", nats, about(100))]
    for seed, value in enumerate(about(130)):
        tight = Measured("iw/nats", value - 40, "test", both(value).protocol)
        runs.append(record("conv_vae", seed, both(value), tight))
    answer = asked(*runs)["direct"]
    assert answer.verdict == "disagrees"
    assert answer.rows[0][1].endswith("by draws")


def test_unequal_training_decides_nothing() -> None:
    def run(seconds: float) -> Answer:
        vaes = seeds("conv_vae", lambda x: nats(x, kind="lower_bound"), about(900), cpu_seconds=seconds)
        return asked(*seeds("pixelcnn", nats, about(500)), *vaes)["direct"]

    assert run(65.0).verdict == "agrees"
    answer = run(70.0)
    assert answer.verdict == "undecided"
    assert "pixelcnn was trained for 60 s and conv_vae for 70 s" in answer.words


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"machine": "a GPU"}, "they were trained on several machines: a machine; a GPU"),
        ({"cpu_seconds": None, "training_seconds": None}, "nobody knows how long conv_vae was trained"),
    ],
)
def test_what_cannot_be_called_equal_decides_nothing(changes: dict[str, Any], told: str) -> None:
    vaes = seeds("conv_vae", lambda x: nats(x, kind="lower_bound"), about(900), **changes)
    answer = asked(*seeds("pixelcnn", nats, about(500)), *vaes)["direct"]
    assert answer.verdict == "undecided"
    assert told in answer.words


def test_one_image_is_no_sample_of_images() -> None:
    runs = [r for m in ("pixelcnn", "conv_vae") for r in seeds(m, lambda x: nats(x, images=1), about(500))]
    assert asked(*runs)["direct"].verdict == "undecided"


def test_runs_that_are_all_equal_decide_nothing() -> None:
    runs = [r for m, v in (("pixelcnn", 500.0), ("conv_vae", 900.0)) for r in seeds(m, lambda x: nats(x, 0.0), [v] * 5)]
    assert asked(*runs)["direct"].verdict == "undecided"


def test_numbers_of_another_protocol_are_not_compared() -> None:
    """The protocol that most models have is told, and of two such the one of more images."""

    def run(model: str, images: int) -> Record:
        return record(model, images, nats(100.0, images=images))

    answer = asked(run("made", 10_000), run("vae", 17))["direct"]
    assert (answer.verdict, [row[0] for row in answer.rows]) == ("open", ["made"])
    runs = [run("made", 17), run("vae", 10_000)]
    assert [row[0] for row in asked(*runs)["direct"].rows] == ["vae"]
    assert {row[0] for row in asked(*runs, run("fvbn", 17))["direct"].rows} == {"made", "fvbn"}


def test_the_most_seeds_speak_for_a_model_and_of_those_the_longest() -> None:
    def some(value: float, count: int, seconds: float, setting: str) -> list[Record]:
        told = {"training_seconds": seconds, "cpu_seconds": seconds, "settings": {"width": setting}}
        return seeds("made", nats, about(value, 1, count), **told)

    few, long, short = some(100, 2, 90.0, "a"), some(200, 3, 60.0, "b"), some(300, 3, 30.0, "c")
    for order in ([*few, *long, *short], [*short, *long, *few]):
        (row,) = asked(*order)["direct"].rows
        assert row[2] == "3"
        assert row[1] == f"= {200 / 784 / math.log(2):.3f} ± {1 / math.sqrt(3) / 784 / math.log(2):.3f}"


def test_a_pretrained_model_speaks_only_beside_runs_of_its_settings() -> None:
    own, other = seeds("pixelcnn", nats, about(80)), record("conv_vae", 0, nats(100.0), training_seconds=900.0)
    (shipped,) = seeds("conv_vae", nats, [90.0])
    shipped.path = PACKAGED / "conv_vae-digits"
    runs = Runs(DATA, [*own, shipped])
    assert (runs.of("conv_vae"), runs.left_out) == ([], [shipped])
    assert "left out: 1" in budgets(runs)
    shipped.settings["width"] = "9"
    assert Runs(DATA, [shipped, *own, other]).of("conv_vae") == [other]
    alike = seeds("conv_vae", nats, [100.0, 101.0], settings=shipped.settings)
    alike[0].path = shipped.path
    assert Runs(DATA, [*own, *alike]).of("conv_vae") == alike


def test_all_claims_are_counted() -> None:
    """A p of 0.03 is enough alone, and not beside another claim that is asked as well."""
    vae, gan = about(2.0, 0.1), about(1.0, 0.1)
    p = 0.03
    error = 0.1 * math.sqrt(2 / 5)
    from scipy import stats

    apart = error * float(stats.t.isf(p / 2, 8))
    answer = asked(
        *seeds("conv_vae", distance, vae),
        *seeds("autoencoder", distance, about(2.0 + apart, 0.1), settings={"model.fitted": "false"}),
    )
    assert answer["autoencoder"].verdict == "agrees"
    assert answer["autoencoder"].words.endswith("p = 0.03.")
    beside = asked(
        *seeds("conv_vae", distance, vae),
        *seeds("autoencoder", distance, about(2.0 + apart, 0.1), settings={"model.fitted": "false"}),
        *seeds("dcgan", distance, gan),
        *seeds("pixelcnn", distance, about(1.0, 0.2)),
    )
    assert beside["autoencoder"].verdict == "undecided"
    assert "p = 0.03, 0.06 counted among 2 claims." in beside["autoencoder"].words


@pytest.mark.parametrize(("minimax", "verdict"), [(3.0, "agrees"), (1.2, "undecided")])
def test_two_standard_errors_of_few_runs_are_no_test(minimax: float, verdict: str) -> None:
    """Welch's test at five runs wants 2.3 standard errors at least, and more where one side varies alone."""
    runs = of_objectives(about(1.0, 0.02), about(minimax, 0.2))
    assert asked(*runs)["objective"].verdict == verdict


def of_objectives(quick: Sequence[float], slow: Sequence[float]) -> list[Record]:
    """Runs whose distance to the training images stays at a level each."""
    from imago.tables import Block, Table

    found = []
    for name, levels in zip(OBJECTIVES, (quick, slow), strict=True):
        for seed, level in enumerate(levels):
            images = [100 * k for k in range(9)]
            block = Block(images=images, seconds=list(map(float, range(9))), curves={"val/fd_classifier": [level] * 9})
            settings = {"model": "gan", "seed": str(seed), "model.objective": name}
            found.append(record("gan", seed, settings=settings, table=Table(blocks=[block])))
    return found


# --- each claim -------------------------------------------------------------------------------------------------------


def sampled(batched: float, alone: float) -> Callable[[float], Measured]:
    return lambda factor: distance(9.0, seconds_per_sample=batched * factor, seconds_alone=alone * factor)


@pytest.mark.parametrize(
    ("slow", "alone", "verdict"),
    [(0.5, 0.6, "agrees"), (1.5e-4, 0.6, "disagrees"), (0.5, 0.5e-3, "disagrees"), (2.1e-4, 0.6, "undecided")],
)
def test_every_order_of_sampling_times_decides(slow: float, alone: float, verdict: str) -> None:
    """In batches and alone: one that is as fast as a VAE decides nothing, one that is faster all."""
    times = {"gan": (1e-4, 1e-3), "vae": (2e-4, 1e-3), "made": (slow, alone), "fvbn": (1.0, 2.0)}
    answer = asked(*(r for m, t in times.items() for r in seeds(m, sampled(*t), about(1.0, 0.05))))["sampling"]
    assert answer.verdict == verdict
    assert [times[row[0]][0] for row in answer.rows] == sorted(batched for batched, _ in times.values())
    assert answer.words.startswith("Of an image, in batches the fastest autoregressive model, made, takes")
    assert "; alone the fastest" in answer.words


def test_times_of_another_machine_are_not_compared() -> None:
    sets = {"made": "a GPU", "gan": "2 cores", "vae": "2 cores"}
    runs = [r for m, where in sets.items() for r in seeds(m, sampled(1e-3, 1e-2), about(1.0, 0.1), machine=where)]
    answer = asked(*runs)["sampling"]
    assert (answer.verdict, {row[0] for row in answer.rows}) == ("open", {"gan", "vae"})


@pytest.mark.parametrize(("faster", "verdict"), [(1.5, "agrees"), (1.0, "undecided"), (0.5, "disagrees")])
def test_training_speed_is_for_processor_seconds_and_equal_parameters(faster: float, verdict: str) -> None:
    def run(model: str, rate: float, parameters: int, bits: float) -> list[Record]:
        return [
            record(model, seed, nats(bits * 784 * math.log(2)), images_seen=round(6000 * rate * noise),
                   training_seconds=1000.0, parameters={"net": parameters, "total": parameters})
            for seed, noise in enumerate(about(1.0, 0.05))
        ]  # fmt: skip

    answer = asked(*run("pixelcnn", faster, 1050, 1.25), *run("row_lstm", 1.0, 1000, 1.0))["training"]
    assert answer.verdict == verdict
    assert f"{faster:.3g} times as many images as row_lstm" in answer.words
    assert "after the same time it has +0.250 ± 0.000 bits/dim" in answer.words
    larger = asked(*run("pixelcnn", faster, 1250, 1.25), *run("row_lstm", 1.0, 1000, 1.0))["training"]
    assert larger.verdict == "undecided"
    assert "pixelcnn has 1,250 parameters and row_lstm 1,000" in larger.words


def test_runs_whose_processor_seconds_are_unknown_say_nothing_of_speed() -> None:
    runs = [record(m, seed, cpu_seconds=None) for m in ("pixelcnn", "row_lstm") for seed in range(SEEDS)]
    answer = asked(*runs)["training"]
    assert (answer.verdict, answer.rows) == ("open", [])


def test_the_autoencoder_is_measured_as_the_lecture_means_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Codes from N(0, I), against the VAE of the same networks, however good another VAE is."""
    fitted, normal = about(3.0, 0.1), about(30.0, 0.1)
    autoencoders = [
        record("autoencoder", seed, distance(own), distance(far, changes={"fitted": False}))
        for seed, (own, far) in enumerate(zip(fitted, normal, strict=True))
    ]
    others = [*seeds("conv_vae", distance, about(10.0, 0.1)), *seeds("vae", distance, about(40.0, 0.1))]
    answer = asked(*autoencoders, *others)["autoencoder"]
    assert answer.verdict == "agrees"
    assert [row[:2] for row in answer.rows] == [
        ("conv_vae", "10.00 ± 0.04"),
        ("autoencoder", "30.00 ± 0.04"),
        ("autoencoder, fitted codes", "3.00 ± 0.04"),
    ]
    monkeypatch.setattr(claims, "_checkpointed", lambda record: True)
    only_fitted = asked(*seeds("autoencoder", distance, fitted), *others)["autoencoder"]
    assert only_fitted.verdict == "open"
    assert "model.fitted=false" in only_fitted.needed[-1]
    settings = {"model.fitted": "false"}
    trained_so = asked(*seeds("autoencoder", distance, fitted, settings=settings), *others)["autoencoder"]
    assert trained_so.verdict == "disagrees"


@pytest.mark.parametrize(("pixels", "verdict"), [(9.0, "agrees"), (1.0, "disagrees"), (3.05, "undecided")])
def test_samples_of_the_gan_are_held_against_both_rivals(pixels: float, verdict: str) -> None:
    values = {"dcgan": 3.0, "conv_vae": 8.0, "pixelcnn": pixels}
    runs = [r for m, v in values.items() for r in seeds(m, distance, about(v, 0.1))]
    assert asked(*runs)["samples"].verdict == verdict
    assert asked(*runs[: 2 * SEEDS])["samples"].verdict == "open"
    for run in runs:
        run.measured = [distance(0.0, "fd_infinity_classifier"), *run.measured]
    assert asked(*runs)["samples"].verdict == verdict, "of infinitely many samples is another question"


def test_held_out_images_stand_in_the_table() -> None:
    real = {"held_out": "mnist val", "held_out_images": 10000, "held_out_value": 0.5}
    runs = seeds("dcgan", lambda x: distance(x, **real), about(3.0, 0.1))
    assert ("held-out images", "0.50", "–") in asked(*runs)["samples"].rows


@pytest.mark.parametrize(
    ("vae", "gan", "verdict"),
    [(2.5, 1.9, "agrees"), (2.5, 2.5, "undecided"), (1.9, 2.5, "disagrees"), (1.7, 1.5, "disagrees")],
)
def test_blur_is_the_width_of_edges_beside_real_ones(vae: float, gan: float, verdict: str) -> None:
    """Sharper than real images is not blurry, even if another is sharper still."""
    real = {"held_out": "mnist val", "held_out_images": 1000, "held_out_value": 1.8, "held_out_error": 0.003}
    runs = [
        r
        for m, width in (("conv_vae", vae), ("dcgan", gan))
        for r in seeds(m, lambda x: distance(x, "edge_width", **real), about(width, 0.02))
    ]
    answer = asked(*runs)["blur"]
    assert answer.verdict == verdict
    assert "Held-out images have 1.800 ± 0.003." in answer.words


def test_edges_of_real_images_have_an_error_too() -> None:
    """A VAE that is as sharp as real images is not called blurry because few of those were measured."""
    real = {"held_out": "mnist val", "held_out_images": 50, "held_out_value": 1.8, "held_out_error": 0.05}
    runs = [
        r
        for m, width in (("conv_vae", 1.85), ("dcgan", 1.5))
        for r in seeds(m, lambda x: distance(x, "edge_width", **real), about(width, 0.002))
    ]
    assert asked(*runs)["blur"].verdict == "undecided"
    unknown = {name: value for name, value in real.items() if name != "held_out_error"}
    runs = [
        r
        for m, width in (("conv_vae", 2.85), ("dcgan", 1.5))
        for r in seeds(m, lambda x: distance(x, "edge_width", **unknown), about(width, 0.002))
    ]
    answer = asked(*runs)["blur"]
    assert answer.verdict == "undecided"
    assert "not with its error" in answer.words
    binary = [record("conv_vae", data=Data("mnist", "threshold", (1, 28, 28, 2)))]
    assert asked(*binary)["blur"].needed == []


def curve(*distances: float) -> str:
    lines = [f"{100 * k},{k},{d},{k}.0" for k, d in enumerate(distances)]
    return "\n".join(["images_seen,updates,val/fd_classifier,time/training_seconds", *lines, ""])


def of_objective(make_run: MakeRun, name: str, seed: int, distances: list[float], latent: int = 4) -> Path:
    config = of_model("gan", objective={"_target_": f"imago.models.gan.{name}"}, latent=latent) | {"seed": seed}
    place = f"logs/{name}-{seed}-{latent}-{len(distances)}-{distances[0]}"
    return make_run(place, config=config, metrics=curve(*distances), picture=None, checkpoint=None, seed=seed)


@pytest.mark.parametrize(("quick", "verdict"), [("NonSaturating", "agrees"), ("Minimax", "disagrees")])
def test_the_objective_that_learns_faster_at_the_start(make_run: MakeRun, quick: str, verdict: str) -> None:
    runs = []
    for name in OBJECTIVES:
        for seed in range(SEEDS):
            # the slow one wins in the end, which is not asked
            some = [50, 20, 10, 9, 9, 9, 9, 9, 9] if name == quick else [50, 45, 40, 30, 20, 10, 5, 2, 1]
            runs.append(of_objective(make_run, name, seed, [d + seed / 10 for d in some]))
    found = ask(*runs)
    answer = found["objective"]
    assert answer.verdict == verdict
    assert answer.needed == []
    means = {row[1]: row[3] for row in answer.rows}
    assert means[quick] == "25.2 ± 0.1", "the mean of 50, 20, 10 over two steps, and the mean of the seeds"
    assert [run for run in found["density"].rows if run[0] == "gan"], "the usual objective speaks for the model"


@pytest.mark.parametrize("order", [1, -1])
def test_the_comparison_of_objectives_with_the_most_seeds_is_told(make_run: MakeRun, order: int) -> None:
    counts = {("NonSaturating", 2): 3, ("Minimax", 2): 2, ("NonSaturating", 3): 1, ("Minimax", 3): 4}
    quick = {("NonSaturating", 2), ("Minimax", 3)}
    runs = [
        of_objective(make_run, name, seed, [(5.0 if (name, latent) in quick else 50.0) + seed / 10] * 9, latent)
        for (name, latent), count in counts.items()
        for seed in range(count)
    ]
    answer = ask(*runs[::order])["objective"]
    assert answer.verdict == "undecided"
    assert answer.words.startswith("gan: 5.1 ± 0.1 with the non-saturating, 50.0 ± 0.1 with the minimax")
    assert "there are of NonSaturating 3, Minimax 2" in answer.words.replace(
        "Minimax 2, NonSaturating 3", "NonSaturating 3, Minimax 2"
    )
    assert answer.needed


def test_the_start_of_training_is_that_of_the_shortest_run(make_run: MakeRun) -> None:
    """A quarter of 600 images ends between two measurements: (35 · 100 + 17.5 · 50) / 150, and 15 there."""
    slow = of_objective(make_run, "Minimax", 0, [50, 45, 40, 35, 30, 25, 20])
    quick = of_objective(make_run, "NonSaturating", 0, [50, 20, 10, *[9] * 10])
    rows = {row[1]: row for row in ask(slow, quick)["objective"].rows}
    assert rows["NonSaturating"][3:] == ("29.2", "15")
    assert rows["Minimax"][3:] == ("46.2", "42.5")
    brief = of_objective(make_run, "Minimax", 0, [50, 45, 40])
    answer = ask(brief, quick)["objective"]
    assert answer.verdict == "open", "nothing but the untrained model was measured in the first 50 images"
    assert "not each was measured in its first 25%" in answer.words


def test_a_start_may_be_measured_at_its_end_alone(make_run: MakeRun) -> None:
    lines = curve(50, 45, 40, 35, 30).splitlines()
    runs = [
        make_run(f"logs/{name}", config=of_model("gan", objective={"_target_": f"imago.models.gan.{name}"}),
                 metrics="\n".join([lines[0], *lines[2:], ""]))
        for name in OBJECTIVES
    ]  # fmt: skip
    assert {row[3:] for row in ask(*runs)["objective"].rows} == {("45.0", "45")}


def test_other_settings_must_be_equal(make_run: MakeRun) -> None:
    runs = [of_objective(make_run, name, 0, [5, 4, 3, 2, 1], k) for k, name in enumerate(OBJECTIVES)]
    assert ask(*runs)["objective"].verdict == "open"


def test_runs_of_the_comparison_of_objectives_speak_for_the_model_only_without_another(make_run: MakeRun) -> None:
    def gan(place: str, objective: str, value: float, latent: int, seconds: float) -> Path:
        config = of_model("gan", objective={"_target_": f"imago.models.gan.{objective}"}, latent=latent)
        return make_run(place, config=config, evaluation=[told(value, "fd_classifier")], training_seconds=seconds)

    compared = [gan("logs/a", "Minimax", 1.0, 7, 61.0), gan("logs/b", "NonSaturating", 2.0, 7, 61.0)]
    alone = ask(*compared)["samples"]
    assert [row for row in alone.rows if row[0] == "gan"] == [("gan", "2.00", "1")]
    beside = ask(*compared, gan("logs/c", "NonSaturating", 3.0, 8, 60.0))["samples"]
    assert [row for row in beside.rows if row[0] == "gan"] == [("gan", "3.00", "1")]


def completions(path: Path, share: float, hidden: slice = slice(14, None), until: int = 28) -> None:
    """Below, down to a row, lies a gray that belongs to the image, with noise that belongs to each completion."""
    images = np.zeros((30, 6, 28, 28))
    images += RANDOM.normal(0, np.sqrt(share), (30, 1, 1, 1)) + RANDOM.normal(0, np.sqrt(1 - share), images.shape)
    images[:, :, until:] = RANDOM.normal(0, 1, images[:, :, until:].shape)
    images = np.clip(127 + 20 * images, 0, 254).round()
    images[:, 1, hidden] = 128
    grid(path, images)


@pytest.mark.parametrize("share", [0.6, 0.0])
def test_the_share_that_is_explained_is_found_again(make_run: MakeRun, share: float) -> None:
    run = make_run("logs/made", config=of_model("made"))
    answer = ask(run)["first_pixels"]
    assert answer.verdict == "open"
    assert answer.needed[0].startswith(f"python src/figure.py figure=completion checkpoint={run} ")
    picture = run / "samples" / "completions.png"
    assert f"out={picture}" in answer.needed[0]
    completions(picture, share)
    assert ask(run)["first_pixels"].verdict == "undecided"
    found = steering(picture, SHAPE)
    assert found is not None
    assert (found.images, found.completions, found.shown) == (30, 4, 0.5)
    assert found.whole.value == pytest.approx(share, abs=4 * found.whole.error + 0.01)
    assert found.whole.error < 0.1


def test_what_is_shown_has_to_steer_the_farthest_third_of_every_model(make_run: MakeRun) -> None:
    made, cnn = (
        [make_run(f"logs/{m}-{seed}", config=of_model(m) | {"seed": seed}, seed=seed) for seed in range(SEEDS)]
        for m in ("made", "pixelcnn")
    )
    for run in (*made, *cnn):
        completions(run / "samples" / "completions.png", 0.6, until=28 if run in made else 21)
    near = ask(*cnn)["first_pixels"]
    assert near.verdict == "undecided"
    assert float(near.rows[0][3].split()[0]) > 0.1, "though it explains some of the whole"
    assert ask(*made, *cnn)["first_pixels"].verdict == "undecided"
    for run in cnn:
        completions(run / "samples" / "completions.png", 0.6)
    assert ask(*made, *cnn)["first_pixels"].verdict == "agrees"


def test_pictures_that_are_something_else_tell_nothing(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    assert tiles(path, SHAPE) is None
    path.write_bytes(b"no picture")
    assert tiles(path, SHAPE) is None
    completions(path, 0.5, hidden=slice(0, 14))
    assert steering(path, SHAPE) is None, "hidden above: what is shown came later"
    assert tiles(path, (1, 16, 16, 256)) is None
    assert tiles(path, None) is None
    grid(path, RANDOM.integers(0, 200, (3, 3, 28, 28)).astype(np.float64))
    assert tiles(path, SHAPE).shape == (3, 3, 28, 28)  # type: ignore[union-attr]


# --- all claims together ----------------------------------------------------------------------------------------------


def test_verdicts_without_any_difference_are_as_rare_as_they_say() -> None:
    """Eight claims, of one difference and of several, on numbers that differ by chance alone: 5% of 1,000 boards."""

    def claim(count: int) -> Answer:
        drawn = [RANDOM.normal(size=(2, SEEDS)).tolist() for _ in range(count)]
        return Answer("", "", "", differences=[welch(*pair) for pair in drawn])

    boards = [claims.decided([claim(count) for count in (1, 1, 1, 1, 2, 2, 6, 6)]) for _ in range(1000)]
    false = sum(any(a.verdict != "undecided" for a in board) for board in boards) / 1000
    assert 0.01 < false < 0.05 + 2 * math.sqrt(0.05 * 0.95 / 1000)


@pytest.mark.slow
def test_boards_without_any_difference_have_a_false_verdict_as_rarely_as_they_say(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every model is alike in everything that is measured, seeds differ: of 300 boards at most 5% decide anything.

    And where all that the lecture says holds, by three standard deviations of the seeds, they decide most.
    """
    steered = "imago.board.claims.steering"

    def board(shift: float) -> dict[str, Answer]:
        def spread(model: str, worse: Sequence[str]) -> float:
            return RANDOM.normal() + (shift if model in worse else 0.0)

        records = []
        for model in FAMILIES:
            for seed in range(SEEDS):
                fd = distance(
                    50 + spread(model, ("autoencoder", "conv_vae", "pixelcnn")),
                    seconds_per_sample=math.exp(spread(model, claims.AUTOREGRESSIVE) / 10),
                    seconds_alone=math.exp(spread(model, claims.AUTOREGRESSIVE) / 10),
                    held_out="mnist val", held_out_value=50.0,
                )  # fmt: skip
                unfitted = distance(50 + spread(model, ()) + 2 * shift, changes={"fitted": False})
                edges = distance(
                    50 + spread(model, ("conv_vae",)), "edge_width",
                    held_out_value=50.0, held_out_error=0.1, held_out_images=1000,
                )  # fmt: skip
                known = [nats(500 + spread(model, ("conv_vae",)), 1e-3)] if KINDS[model] != "none" else []
                count = round(6000 * math.exp(spread(model, ("pixelcnn",)) / 50))
                records.append(record(model, seed, fd, unfitted, edges, *known, images_seen=count))
        levels = [[50 + RANDOM.normal() + extra for _ in range(SEEDS)] for extra in (0.0, shift)]
        runs = claims.Runs(DATA, [*records, *of_objectives(*levels)])
        found = claims.decided([claim(runs) for claim in claims.CLAIMS])
        return dict(zip((claim.__name__ for claim in claims.CLAIMS), found, strict=True))

    class Steered:
        images, completions, shown = 40, 6, 0.5

        def __init__(self, shift: float) -> None:
            self.whole = self.near = self.far = type("Share", (), {"value": RANDOM.normal() + shift})

    monkeypatch.setattr(claims, "newest", lambda record, name: record.path)
    monkeypatch.setattr(steered, lambda path, shape: Steered(0.0))
    false = sum(
        any(a.verdict in ("agrees", "disagrees") for name, a in board(0.0).items() if name != "density")
        for _ in range(300)
    )
    assert false / 300 <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / 300), "two standard errors of 300 boards"
    monkeypatch.setattr(steered, lambda path, shape: Steered(6.0))
    true = [sum(a.verdict == "agrees" for a in board(6.0).values()) for _ in range(10)]
    assert min(true) >= 8, "nothing is found by never deciding"


def test_budgets_are_said(make_run: MakeRun) -> None:
    runs = [
        make_run(f"logs/{m}", config=of_model(m), training_seconds=t) for m, t in {"made": 60.0, "gan": 600.0}.items()
    ]
    ((of_data, _),) = answers(Board(read_record(run) for run in runs))
    assert "Trained unequally long: 60 to 600 s by the clock." in budgets(of_data)
    ((of_data, _),) = answers(Board([record("made"), record("gan"), record("gan", 1)]))
    assert "2 of 13 models, 1 to 2 seed(s) of each. Trained equally long: 60 s of the processor." in budgets(of_data)


def test_the_page_is_complete_and_safe(make_run: MakeRun, tmp_path: Path) -> None:
    evil = '<script>alert("x")</script>'
    runs = [
        make_run(f"logs/{m}", config=of_model(m), name=evil, device=evil, evaluation=[told(v, "fd_classifier")])
        for m, v in {"dcgan": 3.0, "conv_vae": 1.0}.items()
    ]
    found = answers(Board(read_record(run) for run in runs))
    write_claims_page(found, tmp_path / "claims.html")
    write_claims_markdown(found, tmp_path / "claims.md")
    page = (tmp_path / "claims.html").read_text()
    assert "<script" not in page
    assert "{{" not in page
    assert page.count('class="claim"') == len(found[0][1])
    assert page.count("data:image/png") >= 2
    assert "http://" not in page
    assert "https://" not in page
    for answer in found[0][1]:
        assert f"### {answer.claim}" in (tmp_path / "claims.md").read_text().replace("\\", "")


def test_who_was_measured_by_more_protocols_speaks_in_the_one_that_all_have(make_run: MakeRun) -> None:
    def in_training(value: float, kind: str) -> dict[str, Any]:
        return {"metrics": {"val/nats": {"value": value, "protocol": likelihood("val", kind, standard_error=0.01)}}}

    evaluated = told(500.0, "test/nats", kind="lower_bound", standard_error=0.01)
    made = make_run("logs/made", config=of_model("made"), summary=in_training(543.4, "exact"))
    vae = make_run(
        "logs/vae", config=of_model("vae"), summary=in_training(600.0, "lower_bound"), evaluation=[evaluated]
    )
    found = ask(made, vae)
    assert [row[:2] for row in found["direct"].rows] == [("made", "= 1.000 ± 0.000"), ("vae", "≤ 1.104 ± 0.000")]
    assert [row[2] for row in found["density"].rows] == ["= 543.40 ± 0.01", "≤ 600.00 ± 0.01"]
    both = make_run(
        "logs/again", config=of_model("made"), summary=in_training(543.4, "exact"), training_seconds=2.0,
        evaluation=[told(490.0, "test/nats", standard_error=0.01)],
    )  # fmt: skip
    found = ask(both, vae)
    assert [row[2] for row in found["density"].rows] == ["= 490.00 ± 0.01", "≤ 500.00 ± 0.01"], "test before validation"
