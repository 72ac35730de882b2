"""The U-Net: any image size, times and labels reach every block, attention is what it says."""

import pytest
import torch
from torch.nn import functional as F

from diffusers_unet import copy_weights, diffusers_unet
from imago.errors import UserError
from imago.images import ImageSpec
from imago.nets.unet import Attention, NormSiLU, UNet, groups_of, time_code

SMALL = {"width": 8, "multipliers": [1, 2], "blocks": 1, "attention": [1], "head": 4}


@pytest.mark.parametrize("patch", [1, 2, 3])
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 13, 22), (1, 4, 4), (2, 1, 2), (1, 9, 5)])
def test_any_image_size(shape: tuple[int, int, int], patch: int) -> None:
    spec = ImageSpec(*shape)
    net = UNet(spec, 2, 0, **SMALL | {"patch": patch})
    out = net(torch.randn(3, *shape), torch.tensor([0.1, 0.5, 1.0]))
    assert out.shape == (3, 2, *shape)
    out.square().sum().backward()
    for name, parameter in net.named_parameters():
        assert bool(torch.isfinite(parameter.grad).all()), name
        assert bool(parameter.grad.any()), name


def test_maps_follow_the_multipliers_and_never_shrink_below_four_pixels_by_themselves() -> None:
    def maps(side: int, **more: object) -> int:
        return len(UNet(ImageSpec(1, side, side), 1, 0, **SMALL | {"multipliers": [1, 1, 1, 1]} | more).down)

    assert [maps(side) for side in (64, 32, 16, 8, 4, 2)] == [4, 4, 3, 2, 1, 1]
    assert maps(8, depth=3) == 4
    with pytest.raises(UserError, match=r"depth: 3 halvings do not fit into images of 4x4 pixels; give at most 2"):
        maps(4, depth=3)
    with pytest.raises(UserError, match=r"depth=4: 5 map sizes, and multipliers=\[1, 1, 1, 1\] are 4; .* at most 3"):
        maps(64, depth=4)


def test_one_time_for_all_is_the_same_time_for_each() -> None:
    net = UNet(ImageSpec(1, 12, 12), 1, 3, **SMALL)
    x, labels = torch.randn(4, 1, 12, 12), torch.tensor([0, 1, 2, 0])
    together = net(x, torch.full((4,), 0.3), labels)
    torch.testing.assert_close(net(x, torch.tensor([0.3]), labels), together)
    for k in range(4):  # images do not see each other
        torch.testing.assert_close(net(x[k : k + 1], torch.tensor([0.3]), labels[k : k + 1]), together[k : k + 1])
    assert not torch.allclose(net(x, torch.tensor([0.4]), labels), together)
    assert not torch.allclose(net(x, torch.tensor([0.3]), labels.roll(1)), together)


def test_every_pixel_reaches_every_pixel() -> None:
    net = UNet(ImageSpec(1, 12, 12), 1, 0, **SMALL).eval()
    x = torch.randn(1, 1, 12, 12, requires_grad=True)
    net(x, torch.tensor([0.5]))[0, 0, 0, 0, 0].backward()
    assert bool((x.grad != 0).all())


def test_attention_is_the_formula() -> None:
    layer = Attention(12, head=4)
    x = torch.randn(2, 12, 3, 5)
    q, k, v = layer.qkv(layer.norm(x)).flatten(2).chunk(3, 1)
    heads = []
    for c in range(0, 12, 4):
        qh, kh, vh = (y[:, c : c + 4].transpose(1, 2) for y in (q, k, v))
        heads.append(torch.softmax(qh @ kh.transpose(1, 2) / 2, -1) @ vh)
    expected = x + layer.out(torch.cat(heads, -1).transpose(1, 2).unflatten(2, (3, 5)))
    torch.testing.assert_close(layer(x), expected, atol=1e-5, rtol=1e-5)


def test_the_code_of_a_time() -> None:
    code = time_code(torch.tensor([0.001, 1.0]), 9)
    assert code.shape == (2, 9)
    torch.testing.assert_close(code[0, 0], torch.sin(torch.tensor(1.0)))
    torch.testing.assert_close(code[1, 7], torch.cos(torch.tensor(1000.0 / 10_000)))
    assert not code[:, 8].any()
    # Neighbouring times of a chain of 1,000 steps are told apart.
    codes = time_code(torch.arange(1, 1001) / 1000, 32)
    assert float(torch.pdist(codes).min()) > 0.1


def test_groups() -> None:
    assert [groups_of(c) for c in (1, 7, 8, 48, 64, 128, 1024)] == [1, 1, 2, 12, 16, 32, 32]


def test_dropout_is_for_training() -> None:
    net = UNet(ImageSpec(1, 8, 8), 1, 0, **SMALL | {"dropout": 0.5})
    x, t = torch.randn(2, 1, 8, 8), torch.tensor([0.5])
    assert not torch.equal(net(x, t), net(x, t))
    net.eval()
    assert torch.equal(net(x, t), net(x, t))
    with torch.no_grad():
        assert F.mse_loss(net.train()(x, t), net.eval()(x, t)) > 0


@pytest.mark.parametrize(
    ("multipliers", "blocks", "attention"), [([1, 1], 1, [1]), ([1, 2, 1], 2, [0, 2])], ids=["small", "deep"]
)
def test_the_network_is_that_of_ho_et_al_as_diffusers_has_it(
    multipliers: list[int], blocks: int, attention: list[int]
) -> None:
    """Their weights in our network give their outputs, at every time."""
    torch.manual_seed(0)
    spec, width = ImageSpec(3, 8, 16), 128
    theirs = diffusers_unet(spec, width, multipliers, blocks, attention, head=64).eval()
    settings = {"width": width, "multipliers": multipliers, "blocks": blocks, "attention": attention, "head": 64}
    ours = UNet(spec, 1, 0, **settings, depth=len(multipliers) - 1).eval()
    for parameter in theirs.parameters():  # norms and biases are ones and zeros at first
        parameter.data += 0.1 * torch.randn(parameter.shape)
    copy_weights(ours, theirs)
    x, t = torch.randn(3, *spec.shape), torch.tensor([1.0, 30.0, 999.0])
    with torch.no_grad():
        torch.testing.assert_close(ours(x, t / 1000)[:, 0], theirs(x, t).sample, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("gradients", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last, "neither"])
def test_norm_and_silu_in_one_have_the_values_and_gradients_of_the_two(
    layout: torch.memory_format | str, gradients: torch.memory_format
) -> None:
    layer = NormSiLU(12).double()
    torch.nn.init.normal_(layer.weight)
    torch.nn.init.normal_(layer.bias)
    x = torch.randn(2, 12, 3, 5, dtype=torch.float64)
    x = x.transpose(2, 3) if isinstance(layout, str) else x.contiguous(memory_format=layout)
    x.requires_grad_()
    expected = F.silu(F.group_norm(x, layer.num_groups, layer.weight, layer.bias, layer.eps))
    torch.testing.assert_close(layer(x), expected)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), expected)
    inputs = (x, layer.weight, layer.bias)
    weights = torch.randn(expected.shape, dtype=torch.float64).contiguous(memory_format=gradients)
    for ours, theirs in zip(
        torch.autograd.grad((layer(x) * weights).sum(), inputs),
        torch.autograd.grad((expected * weights).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)
    assert torch.autograd.gradcheck(layer, (x,))


def test_norm_and_silu_keep_nothing_but_their_input() -> None:
    layer = NormSiLU(32)
    x = torch.randn(2, 32, 16, 16, requires_grad=True)
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        layer(x)
    assert [t.data_ptr() for t in kept if t.numel() == x.numel()] == [x.data_ptr()]


def test_under_autocast_the_norm_computes_in_full_and_keeps_half() -> None:
    layer = NormSiLU(32)
    x = torch.randn(2, 32, 8, 8).bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    reference = x.detach().float().requires_grad_()
    expected = layer(reference)
    torch.testing.assert_close(y, expected.bfloat16())
    y.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(x.grad, reference.grad.bfloat16(), atol=1e-2, rtol=1e-2)


def test_a_second_derivative_of_the_norm_is_refused() -> None:
    x = torch.randn(2, 8, 4, 4, requires_grad=True)
    (slope,) = torch.autograd.grad(NormSiLU(8)(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.square().sum().backward()
