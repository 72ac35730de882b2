"""The lecture's claims: answers turn with the numbers, and what is missing is named."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from imago.board.board import Board
from imago.board.claims import FAMILIES, Answer, answers, budgets
from imago.board.claims_page import write_claims_markdown, write_claims_page
from imago.board.grids import of_originals, roughness, steering, tiles
from imago.board.records import read_record
from imago.config import CONF

from .conftest import MakeRun, likelihood, quality

SHAPE = (1, 28, 28, 256)
RANDOM = np.random.default_rng(0)


def of_model(model: str, **changes: Any) -> dict[str, Any]:
    """A configuration that is recognised as a choice of the model group, with changes of the model's settings."""
    node = yaml.safe_load((CONF / "model" / f"{model}.yaml").read_text())
    node.pop("defaults", None)
    source = {"_target_": "imago.data.ImageDataModule", "source": {"_target_": "imago.data.sources.MNIST"}}
    return {"data": source | {"binarize": None}, "model": node | changes, "seed": 0}


def told(value: float, name: str = "test/bpd", **protocol: Any) -> dict[str, Any]:
    made = quality(**protocol) if name.startswith("fd") else likelihood("test", **protocol)
    return {"name": name, "value": value, "protocol": made}


def ask(*runs: Path) -> dict[str, Answer]:
    """The answers on the only data set, by the name of the claim's function."""
    from imago.board.claims import CLAIMS

    ((_, found),) = answers(Board(read_record(run) for run in runs))
    return dict(zip((claim.__name__ for claim in CLAIMS), found, strict=True))


def grid(path: Path, images: np.ndarray) -> None:
    """Images (rows, columns, 28, 28) as callbacks and figures write them: margins of one, enlarged twice."""
    rows, columns = images.shape[:2]
    picture = np.full((rows * 29 + 1, columns * 29 + 1), 255, np.uint8)
    for k in range(rows):
        for j in range(columns):
            picture[k * 29 + 1 : k * 29 + 29, j * 29 + 1 : j * 29 + 29] = images[k, j]
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture.repeat(2, 0).repeat(2, 1)).save(path)


def smooth(images: np.ndarray) -> np.ndarray:
    images = images.astype(np.float64)
    mean = (images + np.roll(images, 1, -1) + np.roll(images, 1, -2) + np.roll(images, 1, (-1, -2))) / 4
    return mean.astype(np.uint8)


def noise(rows: int = 4, columns: int = 5) -> np.ndarray:
    return RANDOM.integers(0, 200, (rows, columns, 28, 28)).astype(np.float64)


def test_without_runs_every_claim_names_the_run_that_would_answer_it(make_run: MakeRun) -> None:
    run = make_run("logs/x", config=of_model("ddpm"), likelihood="lower_bound", training_seconds=37.4, picture=None)
    found = ask(run)
    for name, answer in found.items():
        assert answer.verdict == "open", name
        assert answer.needed, name
        assert all(command.startswith("python src/train.py -m sweep=") for command in answer.needed)
        assert all("data=mnist" in command and "max_seconds=37" in command for command in answer.needed)
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


@pytest.mark.parametrize(
    ("made", "vae", "verdict"),
    [
        (1.0, 1.30, "agrees"),  # two standard errors of the difference are 0.283
        (1.0, 1.27, "undecided"),
        (1.27, 1.0, "undecided"),
        (1.30, 1.0, "disagrees"),
    ],
)
def test_likelihoods_are_compared_with_their_errors(make_run: MakeRun, made: float, vae: float, verdict: str) -> None:
    runs = [
        make_run("logs/made", config=of_model("made"), evaluation=[told(made, standard_error=0.1)]),
        make_run("logs/vae", config=of_model("vae"), evaluation=[told(vae, kind="lower_bound", standard_error=0.1)]),
    ]
    answer = ask(*runs)["direct"]
    assert answer.verdict == verdict
    assert f"made is {'better' if made < vae else 'worse'} by {abs(made - vae):.3f} ± 0.141" in answer.words


def test_the_best_of_either_side_is_compared(make_run: MakeRun) -> None:
    values = {"pixelcnn": 3.0, "made": 1.0, "conv_vae": 5.0, "vae": 2.0}
    runs = [make_run(f"logs/{m}", config=of_model(m), evaluation=[told(v)]) for m, v in values.items()]
    answer = ask(*runs)["direct"]
    assert answer.verdict == "agrees"
    assert answer.words.startswith("made = 1.000 ± 0.250, vae = 2.000")
    assert [row[0] for row in answer.rows] == ["made", "vae", "pixelcnn", "conv_vae"]


def test_numbers_of_another_protocol_are_not_compared(make_run: MakeRun) -> None:
    """The protocol that most models have is told, and of two such the one of more images."""

    def run(model: str, images: int) -> Path:
        evaluation = [told(1.0, images=images)]
        return make_run(f"logs/{model}-{images}", config=of_model(model), metrics=None, evaluation=evaluation)

    answer = ask(run("made", 10_000), run("vae", 17))["direct"]
    assert (answer.verdict, [row[0] for row in answer.rows]) == ("open", ["made"])
    runs = [run("made", 17), run("vae", 10_000)]
    answer = ask(*runs)["direct"]
    assert (answer.verdict, [row[0] for row in answer.rows]) == ("open", ["vae"])
    answer = ask(*runs, run("fvbn", 17))["direct"]
    assert (answer.verdict, {row[0] for row in answer.rows}) == ("open", {"made", "fvbn"})


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
    assert [row[0] for row in found["direct"].rows] == ["vae"]


def test_the_longest_run_speaks_for_a_model_and_of_those_the_newest(make_run: MakeRun) -> None:
    for name, seconds in {"1": 60.0, "2": 60.0, "3": 37.0, "4": 37.0, "5": 37.0}.items():
        make_run(f"logs/made/{name}", training_seconds=seconds, evaluation=[told(float(name))], name=name)
    found = sorted(make_run("logs/x").parent.glob("made/?"))
    for order in (found, found[::-1]):
        answer = ask(*order)["direct"]
        assert [row[1] for row in answer.rows] == ["= 2.000 ± 0.250"]
        assert answer.needed[0].endswith("max_seconds=37"), "what most had"


@pytest.mark.parametrize(
    ("slow", "verdict"), [(0.5, "agrees"), (1.5e-4, "undecided"), (1e-4, "disagrees"), (1e-5, "disagrees")]
)
def test_the_order_of_sampling_times_decides(make_run: MakeRun, slow: float, verdict: str) -> None:
    times = {"gan": 1e-4, "vae": 2e-4, "made": slow} | ({"fvbn": 3 * slow} if slow > 2e-4 else {})
    runs = [
        make_run(f"logs/{m}", config=of_model(m), evaluation=[told(9.0, "fd_classifier", seconds_per_sample=t)])
        for m, t in times.items()
    ]
    answer = ask(*runs)["sampling"]
    assert answer.verdict == verdict
    assert [times[row[0]] for row in answer.rows] == sorted(times.values())
    assert {row[0]: row[3] for row in answer.rows}["vae"] == f"{2e-4 / min(1e-4, slow):,.3g}×"
    assert answer.words.startswith("The fastest autoregressive model, made, takes")
    assert "; the slowest VAE or GAN, vae, " in answer.words
    ratio = max(times.values()) / min(times.values())
    assert f"{ratio:,.0f} times that)" in answer.words if ratio >= 1000 else f"{ratio:.3g} times that)" in answer.words


def test_times_of_another_machine_are_not_compared(make_run: MakeRun) -> None:
    runs = [
        make_run(
            f"logs/{m}",
            config=of_model(m),
            device="a GPU" if m == "made" else "2 CPU cores",
            evaluation=[told(9.0, "fd_classifier", seconds_per_sample=1e-3)],
        )
        for m in ("made", "gan", "vae")
    ]
    answer = ask(*runs)["sampling"]
    assert (answer.verdict, {row[0] for row in answer.rows}) == ("open", {"gan", "vae"})


@pytest.mark.parametrize(("images", "verdict"), [(4000, "agrees"), (50, "disagrees")])
def test_training_speed_and_the_cost_in_bits(make_run: MakeRun, images: int, verdict: str) -> None:
    common: dict[str, Any] = {"metrics": None, "checkpoint": None, "training_seconds": 10.0}
    runs = [
        make_run("logs/cnn", config=of_model("pixelcnn"), images_seen=images, evaluation=[told(1.25)], **common),
        make_run("logs/rnn", config=of_model("row_lstm"), images_seen=400, evaluation=[told(1.0)], **common),
    ]
    answer = ask(*runs)["training"]
    assert answer.verdict == verdict
    assert f"{images / 400:.3g} times as many images" in answer.words
    assert "after the same time pixelcnn has +0.250" in answer.words
    assert "model=gated_pixelcnn,diagonal_bilstm " in answer.needed[0]


def test_the_fastest_and_the_best_of_either_side_tell_the_cost_in_bits(make_run: MakeRun) -> None:
    def run(model: str, seen: int, bits: float, seconds: float = 10.0, **protocol: Any) -> Path:
        return make_run(
            f"logs/{model}-{seconds}", config=of_model(model), images_seen=seen, training_seconds=seconds,
            evaluation=[told(bits, **protocol)], metrics=None, checkpoint=None, picture=None,
        )  # fmt: skip

    runs = [
        run("pixelcnn", 3000, 1.25, standard_error=0.3),
        run("gated_pixelcnn", 4000, 1.5),
        run("row_lstm", 200, 1.0, standard_error=0.4),
        run("diagonal_bilstm", 400, 2.0),
    ]
    words = ask(*runs)["training"].words
    assert words.startswith("gated_pixelcnn sees 10 times as many images a second as diagonal_bilstm")
    assert words.endswith("; after the same time pixelcnn has +0.250 ± 0.500 bits/dim over row_lstm.")
    words = ask(*runs[:3], run("diagonal_bilstm", 800, 0.5, seconds=20.0))["training"].words
    assert "; after 10 s against 20 s pixelcnn has +0.750" in words
    other = run("diagonal_bilstm", 800, 0.5, seconds=30.0, images=17)
    words = ask(*runs[:3], other)["training"].words
    assert words.endswith("; after the same time pixelcnn has +0.250 ± 0.500 bits/dim over row_lstm."), "one protocol"
    words = ask(*runs[:2], other)["training"].words
    assert words.endswith("; bits of both by one protocol are missing.")


@pytest.mark.parametrize(("distance", "verdict"), [(30.0, "agrees"), (3.0, "disagrees")])
def test_samples_of_the_autoencoder(make_run: MakeRun, distance: float, verdict: str) -> None:
    values = {"autoencoder": distance, "vae": 10.0}
    runs = [make_run(f"logs/{m}", config=of_model(m), evaluation=[told(v, "fd_classifier")]) for m, v in values.items()]
    found = ask(*runs)
    assert found["autoencoder"].verdict == verdict
    assert found["samples"].verdict == "open"
    assert "model=gan,dcgan," in found["samples"].needed[0]


def test_samples_of_the_gan_need_rivals_of_both_families(make_run: MakeRun) -> None:
    runs = {
        m: make_run(f"logs/{m}", config=of_model(m), evaluation=[told(v, "fd_classifier")], picture=None)
        for m, v in {"gan": 3.0, "vae": 5.0, "pixelcnn": 1.0}.items()
    }
    answer = ask(runs["gan"], runs["vae"])["samples"]
    assert answer.verdict == "open"
    assert "pixelcnn" in answer.needed[0]
    assert ask(*runs.values())["samples"].verdict == "disagrees"


def test_blur_is_in_units_of_real_images(make_run: MakeRun) -> None:
    """Real images are smooth here, as white noise is not."""
    runs = {m: make_run(f"logs/{m}", config=of_model(m), picture=None) for m in ("vae", "gan")}
    for run in runs.values():
        grid(run / "samples" / "images-0000000200.png", noise(8, 8))
    real = smooth(noise(8, 8))
    pairs = np.stack([real, smooth(real)], 1).reshape(-1, *real.shape[1:])
    grid(runs["vae"] / "samples" / "reconstructions-0000000200.png", pairs)
    answer = ask(*runs.values())["blur"]
    assert answer.verdict == "agrees"
    found = {row[0]: float(row[2].split()[0]) for row in answer.rows}
    assert found["gan"] == pytest.approx(2, abs=0.15)
    assert found["vae"] == pytest.approx(2 / 3, abs=0.1)
    assert " gan: rougher than real images" in answer.words


def test_blur_is_measured_in_the_pictures(make_run: MakeRun) -> None:
    """Real images are noise here, the VAE's smooth; draws of p(x|z) are not looked at, because they are noisy."""
    real, grids = noise(), {}
    for m, noisy in {"vae": True, "gan": False}.items():
        config = of_model(m, **({"observation_noise": True} if noisy else {}))
        grids[m] = make_run(f"logs/{m}", config=config, picture=None)
        grid(grids[m] / "samples" / "images-0000000200.png", noise() if noisy else real)
    pairs = np.stack([real, smooth(real)], 1).reshape(-1, *real.shape[1:])
    grid(grids["vae"] / "samples" / "reconstructions-0000000200.png", pairs)
    answer = ask(*grids.values())["blur"]
    assert answer.verdict == "agrees"
    assert answer.rows[0][:2] == ("vae", "means of reconstructions")
    assert float(answer.rows[0][2].split()[0]) == pytest.approx(0.5, abs=0.1), "means of 2x2 pixels"
    assert float(answer.rows[1][2].split()[0]) == pytest.approx(1, abs=0.05)
    assert "rougher" not in answer.words, "one is real images"
    grid(grids["gan"] / "samples" / "images-0000000200.png", smooth(smooth(noise())))
    assert ask(*grids.values())["blur"].verdict == "undecided"
    grid(grids["vae"] / "samples" / "reconstructions-0000000200.png", np.roll(pairs, 1, 0))
    assert ask(*grids.values())["blur"].verdict == "disagrees"


def curve(*distances: float) -> str:
    lines = [f"{100 * k},{k},{d},{k}.0" for k, d in enumerate(distances)]
    return "\n".join(["images_seen,updates,val/fd_classifier,time/training_seconds", *lines, ""])


@pytest.mark.parametrize(("quick", "verdict"), [("NonSaturating", "agrees"), ("Minimax", "disagrees")])
def test_the_objective_that_learns_faster_at_the_start(make_run: MakeRun, quick: str, verdict: str) -> None:
    runs = []
    for name in ("NonSaturating", "Minimax"):
        for seed in range(3):
            # the slow one wins in the end, which is not asked
            some = [50, 20, 10, 9, 9, 9, 9, 9, 9] if name == quick else [50, 45, 40, 30, 20, 10, 5, 2, 1]
            config = of_model("gan", objective={"_target_": f"imago.models.gan.{name}"}) | {"seed": seed}
            metrics = curve(*(d + seed / 10 for d in some))
            runs.append(make_run(f"logs/{name}{seed}", config=config, metrics=metrics, images_seen=800))
    found = ask(*runs)
    answer = found["objective"]
    assert answer.verdict == verdict
    assert answer.needed == []
    assert "± 0.082 over 3 runs each" in answer.words, "the errors of both"
    means = {row[1]: row[3] for row in answer.rows}
    assert means[quick].startswith("25.1 ± 0.058"), "the mean of 50, 20, 10 over two steps, and the mean of the seeds"
    assert [run for run in found["density"].rows if run[0] == "gan"], "the usual objective speaks for the model"


def of_objective(make_run: MakeRun, name: str, seed: int, distances: list[float], latent: int = 4) -> Path:
    config = of_model("gan", objective={"_target_": f"imago.models.gan.{name}"}, latent=latent) | {"seed": seed}
    place = f"logs/{name}-{seed}-{latent}-{len(distances)}-{distances[0]}"
    return make_run(place, config=config, metrics=curve(*distances), picture=None, checkpoint=None)


@pytest.mark.parametrize(
    ("gap", "verdict"), [(1.8, "agrees"), (1.5, "undecided"), (-1.5, "undecided"), (-1.8, "disagrees")]
)
def test_objectives_are_compared_with_the_errors_of_the_seeds(make_run: MakeRun, gap: float, verdict: str) -> None:
    """Three seeds that differ by 1 have an error of 1 / √3; two of the difference are 1.63."""
    runs = [
        of_objective(make_run, name, seed, [level + seed] * 9)
        for name, level in (("NonSaturating", 10.0), ("Minimax", 10.0 + gap))
        for seed in range(3)
    ]
    assert ask(*runs)["objective"].verdict == verdict


@pytest.mark.parametrize("order", [1, -1])
def test_the_comparison_of_objectives_with_the_most_seeds_is_told(make_run: MakeRun, order: int) -> None:
    seeds = {("NonSaturating", 2): 3, ("Minimax", 2): 2, ("NonSaturating", 3): 1, ("Minimax", 3): 4}
    quick = {("NonSaturating", 2), ("Minimax", 3)}
    runs = [
        of_objective(make_run, name, seed, [(5.0 if (name, latent) in quick else 50.0) + seed / 10] * 9, latent)
        for (name, latent), count in seeds.items()
        for seed in range(count)
    ]
    answer = ask(*runs[::order])["objective"]
    assert answer.verdict == "agrees"
    assert "over 2 runs each" in answer.words
    assert answer.needed == []


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
        for name in ("NonSaturating", "Minimax")
    ]  # fmt: skip
    assert {row[3:] for row in ask(*runs)["objective"].rows} == {("45", "45")}


def test_runs_of_the_comparison_of_objectives_speak_for_the_model_only_without_another(make_run: MakeRun) -> None:
    def gan(place: str, objective: str, distance: float, latent: int, seconds: float) -> Path:
        config = of_model("gan", objective={"_target_": f"imago.models.gan.{objective}"}, latent=latent)
        evaluation = [told(distance, "fd_classifier")]
        return make_run(place, config=config, evaluation=evaluation, training_seconds=seconds)

    compared = [gan("logs/a", "Minimax", 1.0, 7, 61.0), gan("logs/b", "NonSaturating", 2.0, 7, 61.0)]
    pixels = make_run("logs/p", config=of_model("pixelcnn"), evaluation=[told(5.0, "fd_classifier")])
    vae = make_run("logs/v", config=of_model("vae"), evaluation=[told(5.0, "fd_classifier")])
    alone = ask(*compared, pixels, vae)["samples"]
    assert [row for row in alone.rows if row[0] == "gan"] == [("gan", "2.00")]
    beside = ask(*compared, pixels, vae, gan("logs/c", "NonSaturating", 3.0, 8, 60.0))["samples"]
    assert [row for row in beside.rows if row[0] == "gan"] == [("gan", "3.00")]


def test_other_settings_must_be_equal(make_run: MakeRun) -> None:
    runs = [
        make_run(
            f"logs/{name}",
            config=of_model("gan", objective={"_target_": f"imago.models.gan.{name}"}, latent=latent),
            metrics=curve(5, 4, 3, 2, 1),
        )
        for name, latent in (("NonSaturating", 2), ("Minimax", 3))
    ]
    assert ask(*runs)["objective"].verdict == "open"


def completions(path: Path, share: float, hidden: slice = slice(14, None), until: int = 28) -> None:
    """Below, down to a row, lies a gray that belongs to the image, with noise that belongs to each completion."""
    images = np.zeros((30, 6, 28, 28))
    images += RANDOM.normal(0, np.sqrt(share), (30, 1, 1, 1)) + RANDOM.normal(0, np.sqrt(1 - share), images.shape)
    images[:, :, until:] = RANDOM.normal(0, 1, images[:, :, until:].shape)
    images = np.clip(127 + 20 * images, 0, 254).round()
    images[:, 1, hidden] = 128
    grid(path, images)


@pytest.mark.parametrize(("share", "verdict"), [(0.6, "agrees"), (0.0, "disagrees")])
def test_the_share_that_is_explained_is_found_again(make_run: MakeRun, share: float, verdict: str) -> None:
    run = make_run("logs/made", config=of_model("made"))
    answer = ask(run)["first_pixels"]
    assert answer.verdict == "open"
    assert answer.needed[0].startswith(f"python src/figure.py figure=completion checkpoint={run} ")
    picture = run / "samples" / "completions.png"
    assert f"out={picture}" in answer.needed[0]
    completions(picture, share)
    answer = ask(run)["first_pixels"]
    assert answer.verdict == verdict
    found = steering(picture, SHAPE)
    assert found is not None
    assert (found.images, found.completions, found.shown) == (30, 4, 0.5)
    assert found.whole.value == pytest.approx(share, abs=4 * found.whole.error + 0.01)
    assert found.whole.error < 0.1


def test_what_is_shown_has_to_steer_the_farthest_third_of_every_model(make_run: MakeRun) -> None:
    runs = {m: make_run(f"logs/{m}", config=of_model(m)) for m in ("made", "pixelcnn")}
    completions(runs["made"] / "samples" / "completions.png", 0.6)
    completions(runs["pixelcnn"] / "samples" / "completions.png", 0.6, until=21)
    near = ask(runs["pixelcnn"])["first_pixels"]
    assert near.verdict == "disagrees"
    assert float(near.rows[0][3].split()[0]) > 0.1, "though it explains some of the whole"
    assert ask(*runs.values())["first_pixels"].verdict == "undecided"
    completions(runs["pixelcnn"] / "samples" / "completions.png", 0.6)
    assert ask(*runs.values())["first_pixels"].verdict == "agrees"


def test_pictures_that_are_something_else_tell_nothing(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    assert tiles(path, SHAPE) is None
    path.write_bytes(b"no picture")
    assert tiles(path, SHAPE) is None
    completions(path, 0.5, hidden=slice(0, 14))
    assert steering(path, SHAPE) is None, "hidden above: what is shown came later"
    assert tiles(path, (1, 16, 16, 256)) is None
    assert tiles(path, None) is None
    grid(path, noise(3, 3))
    assert of_originals(path, SHAPE).shape == (2, 3, 28, 28)  # type: ignore[union-attr]


def test_roughness_is_of_the_texture_not_of_the_contrast() -> None:
    images = noise(8, 8)
    white = roughness(images)
    assert white is not None
    assert white.value == pytest.approx(1, abs=5 * white.error)
    assert roughness(images / 4).value == pytest.approx(white.value)  # type: ignore[union-attr]
    assert roughness(np.ones((2, 2, 28, 28))) is None


def test_unequal_budgets_are_said(make_run: MakeRun) -> None:
    runs = [
        make_run(f"logs/{m}", config=of_model(m), training_seconds=t) for m, t in {"made": 60.0, "gan": 600.0}.items()
    ]
    ((of_data, _),) = answers(Board(read_record(run) for run in runs))
    assert "60 s (made) to 600 s (gan), so unequally long" in budgets(of_data)


def test_the_page_is_complete_and_safe(make_run: MakeRun, tmp_path: Path) -> None:
    evil = '<script>alert("x")</script>'
    runs = [
        make_run(f"logs/{m}", config=of_model(m), name=evil, device=evil, evaluation=[told(v, "fd_classifier")])
        for m, v in {"autoencoder": 3.0, "vae": 1.0}.items()
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
        assert f"### {answer.claim}" in (tmp_path / "claims.md").read_text()


def test_who_was_measured_by_more_protocols_speaks_in_the_one_that_all_have(make_run: MakeRun) -> None:
    def in_training(bpd: float, kind: str) -> dict[str, Any]:
        return {"metrics": {"val/bpd": {"value": bpd, "protocol": likelihood("val", kind, standard_error=0.01)}}}

    evaluated = told(1.1, kind="lower_bound", standard_error=0.01)
    made = make_run("logs/made", config=of_model("made"), summary=in_training(1.0, "exact"))
    vae = make_run("logs/vae", config=of_model("vae"), summary=in_training(1.3, "lower_bound"), evaluation=[evaluated])
    found = ask(made, vae)
    assert found["direct"].verdict == "agrees"
    assert [row[:2] for row in found["direct"].rows] == [("made", "= 1.000 ± 0.010"), ("vae", "≤ 1.300 ± 0.010")]
    assert [row[3:] for row in found["density"].rows] == [
        ("= 1.000 ± 0.010", "val 10k"),
        ("≤ 1.300 ± 0.010", "val 10k"),
    ]
    both = make_run(
        "logs/again", config=of_model("made"), summary=in_training(1.0, "exact"), training_seconds=2.0,
        evaluation=[told(0.9, standard_error=0.01)],
    )  # fmt: skip
    found = ask(both, vae)
    assert [row[1] for row in found["direct"].rows] == ["= 0.900 ± 0.010", "≤ 1.100 ± 0.010"], "test before validation"
    assert {row[4] for row in found["density"].rows} == {"test 10k"}
