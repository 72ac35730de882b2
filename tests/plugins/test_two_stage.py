"""A model of one's own that is trained in two stages."""

import torch

from imago.images import Batch, ImageSpec
from models.test_laws import (  # noqa: F401
    images_of,
    make,
    pytest_generate_tests,
    test_a_checkpoint_rebuilds_the_model,
    test_a_model_learns_two_images,
    test_an_image_is_the_same_in_any_batch,
    test_conditional_models_react_to_labels_and_others_refuse_them,
    test_sampling_leaves_the_model_and_the_global_generator_alone,
)

MODELS = ["two_stage"]
SPECS = {
    "binary-2x2": ImageSpec(1, 2, 2, levels=2, classes=2),
    "rgb-1x2": ImageSpec(3, 1, 2, levels=4, classes=2),
    "gray-7x5": ImageSpec(1, 7, 5, classes=3),
}
GRAY = SPECS["gray-7x5"]


def test_every_stage_trains_its_networks_and_counts_updates() -> None:
    model = make("two_stage", GRAY, "conditional=true", "model.autoencoder_images=24")
    assert model.prior.spec.levels == 512
    batch = Batch(images_of(GRAY, 12), torch.arange(12) % 3)
    optimizers = dict(zip(model.networks, model.configure_optimizers(), strict=True))
    stages = []
    for update in range(4):
        before = {name: [p.clone() for p in network.parameters()] for name, network in model.networks.items()}
        stages.append(model.stage)
        for loss in model.losses(batch):
            optimizers[loss.network].zero_grad()
            loss.value.backward()
            optimizers[loss.network].step()
        for name, network in model.networks.items():
            moved = [not torch.equal(p, q) for p, q in zip(before[name], network.parameters(), strict=True)]
            assert all(moved) if name == stages[-1] else not any(moved)
        assert model.state.updates == update + 1
    assert stages == ["autoencoder", "autoencoder", "prior", "prior"]
