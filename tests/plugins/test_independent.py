"""Models of one's own that are conditioned on an embedding, or on nothing."""

from pathlib import Path

import pytest
import torch

from helpers import configuration
from imago.checkpoints import load
from imago.errors import UserError
from imago.images import Batch, ImageSpec
from imago.training.run import build_model, train
from models.test_autoregressive import every_image
from models.test_laws import (  # noqa: F401
    Tensors,
    fit,
    images_of,
    make,
    pytest_generate_tests,
    test_a_checkpoint_rebuilds_the_model,
    test_an_image_is_the_same_in_any_batch,
    test_sampling_leaves_the_model_and_the_global_generator_alone,
)

MODELS = ["independent", "described"]
SPECS = {
    "binary-2x2": ImageSpec(1, 2, 2, levels=2, classes=2),
    "tokens-1x3": ImageSpec(1, 1, 3, levels=300, tokens=True),
}
GRAY = ImageSpec(1, 3, 4)
EMBEDDED = ImageSpec(1, 2, 2, levels=2, embedding=3)


def test_probabilities_sum_to_one(name: str) -> None:
    model = make(name, ImageSpec(1, 2, 2, levels=3))
    assert float(model.log_likelihood(every_image(model.spec)).double().exp().sum()) == pytest.approx(1, abs=1e-5)


def test_an_unconditional_model_refuses_a_condition() -> None:
    for spec in (EMBEDDED, ImageSpec(1, 2, 2, classes=2)):
        with pytest.raises(UserError, match=r"^conditional=true: Independent is an unconditional model; leave it out$"):
            build_model(configuration("model=independent", "conditional=true"), spec)


def test_a_condition_that_the_yaml_drops_is_refused() -> None:
    config = configuration("model=described", "conditional=true")
    del config["model"]["conditional"]
    with pytest.raises(UserError, match=r"^conditional=true: the model is built without it"):
        build_model(config, EMBEDDED)


@pytest.mark.parametrize("model", ["described", "pixelcnn"])
def test_a_condition_that_the_data_do_not_give_is_refused(model: str) -> None:
    spec = ImageSpec(1, 2, 2, classes=2) if model == "described" else EMBEDDED
    with pytest.raises(UserError, match=r"^conditional=true: the data has no (embedding|labels); choose"):
        build_model(configuration(f"model={model}", "conditional=true"), spec)


def test_an_embedding_reaches_losses_and_samples() -> None:
    """The class of what is white, told by an embedding and not by a label, is learned and drawn."""
    model = make("described", EMBEDDED, "conditional=true")
    images = torch.zeros(2, 1, 2, 2, dtype=torch.uint8)
    images[0, ..., 0], images[1, ..., 1] = 1, 1
    embeddings = torch.tensor([[1.0, 0, 0], [0, 1, 0]])
    optimizer = torch.optim.Adam(model.parameters(), 0.1)
    losses = []
    for _ in range(200):
        for loss in model.losses(Batch(images, embeddings)):
            optimizer.zero_grad()
            loss.value.backward()
            optimizer.step()
        losses.append(loss.value.item())
    assert losses[-1] < 0.1 < losses[0]
    assert torch.equal(model.sample(2, condition=embeddings), images)
    assert torch.equal(model.sample(3, condition=embeddings[:1]), images[:1].expand(3, -1, -1, -1))
    known = model.log_likelihood(images, embeddings)
    assert float(known.min()) > -0.2
    assert float(model.log_likelihood(images, embeddings.flip(0)).max()) < -5


def test_without_its_condition_a_model_learns_of_images_alone() -> None:
    model = make("described", EMBEDDED)
    (loss,) = model.losses(Batch(images_of(EMBEDDED, 4), torch.randn(4, 3)))
    assert loss.value.isfinite()
    with pytest.raises(UserError, match="unconditional model"):
        model.sample(2, condition=torch.zeros(2, 3))


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        (
            torch.zeros(2, 4),
            r"^condition is torch\.float32 of shape \(2, 4\): give embeddings \(2, 3\) in",
        ),
        (torch.zeros(2, 3, dtype=torch.long), r"^condition is torch\.int64 of shape \(2, 3\)"),
        (torch.zeros(3, 3), r"of shape \(3, 3\): give embeddings \(2, 3\)"),
        (None, r"^condition: the model is conditioned on embeddings; give sample\(n, condition="),
    ],
)
def test_another_condition_is_refused(condition: torch.Tensor | None, message: str) -> None:
    model = make("described", EMBEDDED, "conditional=true")
    with pytest.raises(UserError, match=message):
        model.sample(2, condition=condition)


def test_a_run_draws_the_embeddings_of_its_training_images(tmp_path: Path) -> None:
    options = ["model=described", "data=described", "conditional=true", "logger=csv", "metrics=none", "trainer=cpu"]
    run = train(configuration(*options, "max_images=256", f"logs={tmp_path}"), "x", tmp_path / "run")
    assert len(list(run.samples.glob("*.png"))) >= 1
    measured = run.summary["metrics"]["val/nats"]
    assert measured["protocol"]["conditional"] is True
    model = load(run.path)
    assert (model.spec.embedding, model.spec.classes) == (3, 0)
    assert model.sample(2, condition=torch.rand(2, 3)).shape == (2, 1, 8, 8)
