import pytest
import torch

from imago.evaluation.network import ClassifierNetwork, accuracy, shift_and_flip, train_classifier

CPU = torch.device("cpu")


@pytest.mark.parametrize("shape", [(1, 1, 2), (1, 4, 4), (1, 8, 8), (1, 28, 20), (3, 32, 48), (3, 64, 64), (3, 70, 33)])
def test_takes_images_of_any_size(shape):
    network = ClassifierNetwork.for_images(*shape, classes=3).eval()
    images = torch.randint(0, 256, (2, *shape), dtype=torch.uint8)
    assert network(images).shape == (2, 3)
    assert network.embed(images).shape == (2, network.dimensions)
    assert 50 <= network.dimensions <= 128


def test_every_parameter_gets_a_gradient_and_flat_images_of_different_gray_differ():
    network = ClassifierNetwork.for_images(1, 8, 8, classes=2)
    images = torch.tensor([0, 255], dtype=torch.uint8)[:, None, None, None].expand(-1, 1, 8, 8)
    network(images)[0, 0].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.features.parameters())
    a, b = network.eval().embed(images)
    assert not torch.allclose(a, b)


def test_shifts_and_flips_move_pixels_and_nothing_else():
    ramp = torch.arange(16, dtype=torch.uint8)
    images = (16 * ramp[:, None] + ramp).expand(200, 3, 16, 16).contiguous()  # a pixel's value is its place
    moved = shift_and_flip(images, flip=True, generator=torch.Generator().manual_seed(0))
    steps = moved[:, 0, 8, 1:].int() - moved[:, 0, 8, :-1].int()
    rightward, leftward = (steps >= 0).all(1), (steps <= 0).all(1)
    assert (rightward ^ leftward).all()
    assert 0.4 < float(leftward.float().mean()) < 0.6
    assert torch.equal(moved[:, 0], moved[:, 2])  # channels move together
    rows = moved[:, 0, 8, 8].int() // 16
    assert set(rows.tolist()) == {6, 7, 8, 9, 10}  # an eighth of 16 pixels, up and down
    unflipped = shift_and_flip(images, flip=False, generator=torch.Generator().manual_seed(0))
    assert (unflipped[:, 0, 8, 1:].int() >= unflipped[:, 0, 8, :-1].int()).all()


def test_learns_and_is_deterministic():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 2, (200,), generator=generator)
    images = torch.randint(0, 150, (200, 1, 8, 8), generator=generator)
    images[:, :, :4] += 100 * labels[:, None, None, None]
    images = images.to(torch.uint8)

    def trained() -> ClassifierNetwork:
        torch.manual_seed(0)
        network = ClassifierNetwork(1, 2, width=6, stem_stride=1)
        options = {"images_seen": 1000, "batch_size": 32, "flip": False, "device": CPU}
        train_classifier(network, images, labels, generator=torch.Generator().manual_seed(1), **options)
        return network

    first, second = trained(), trained()
    assert accuracy(first, images, labels, CPU) > 0.95
    assert not first.training
    for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b)
