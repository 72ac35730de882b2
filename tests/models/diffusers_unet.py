"""diffusers' U-Net of Ho et al. 2020, and its weights in ours: an independent reference, and a peer in benchmarks."""

from typing import Any

import torch

from imago.images import ImageSpec
from imago.nets.unet import UNet


def diffusers_unet(
    spec: ImageSpec, width: int, multipliers: list[int], blocks: int, attention: list[int], head: int
) -> Any:
    """``UNet2DModel`` with the time code of the paper's code."""
    from diffusers.models.unets.unet_2d import UNet2DModel

    levels = range(len(multipliers))
    return UNet2DModel(
        sample_size=(spec.height, spec.width),
        in_channels=spec.channels,
        out_channels=spec.channels,
        layers_per_block=blocks,
        block_out_channels=tuple(width * m for m in multipliers),
        down_block_types=tuple("AttnDownBlock2D" if k in attention else "DownBlock2D" for k in levels),
        up_block_types=tuple("AttnUpBlock2D" if k in attention else "UpBlock2D" for k in reversed(levels)),
        attention_head_dim=head,
        norm_num_groups=32,  # ours has as many from 128 channels on
        freq_shift=1,
        flip_sin_to_cos=False,
    )


@torch.no_grad()
def copy_weights(ours: UNet, theirs: Any) -> None:
    """Every weight of theirs, in our layout."""
    for here, there in (
        (ours.embed_time[0], theirs.time_embedding.linear_1),
        (ours.embed_time[2], theirs.time_embedding.linear_2),
        (ours.first, theirs.conv_in),
        (ours.norm, theirs.conv_norm_out),
        (ours.last, theirs.conv_out),
    ):
        here.load_state_dict(there.state_dict())
    shifts = []

    def copy(block: Any, residual: Any, attention: Any) -> None:
        for mine, other in (("norm_in", "norm1"), ("conv_in", "conv1"), ("norm_out", "norm2"), ("conv_out", "conv2")):
            getattr(block.residual, mine).load_state_dict(getattr(residual, other).state_dict())
        if residual.conv_shortcut is not None:
            block.residual.skip.load_state_dict(residual.conv_shortcut.state_dict())
        shifts.append(residual.time_emb_proj)
        if attention is not None:
            block.attention.norm.load_state_dict(attention.group_norm.state_dict())
            qkv = (attention.to_q, attention.to_k, attention.to_v)
            block.attention.qkv.weight.copy_(torch.cat([part.weight for part in qkv])[:, :, None, None])
            block.attention.qkv.bias.copy_(torch.cat([part.bias for part in qkv]))
            block.attention.out.weight.copy_(attention.to_out[0].weight[:, :, None, None])
            block.attention.out.bias.copy_(attention.to_out[0].bias)

    for k, (stack, other) in enumerate(zip(ours.down, theirs.down_blocks, strict=True)):
        for j, block in enumerate(stack):  # type: ignore[arg-type]
            copy(block, other.resnets[j], other.attentions[j] if hasattr(other, "attentions") else None)
        if k < len(ours.halvings):
            ours.halvings[k].load_state_dict(other.downsamplers[0].conv.state_dict())
    middle = theirs.mid_block
    copy(ours.middle[0], middle.resnets[0], middle.attentions[0])
    copy(ours.middle[1], middle.resnets[1], None)
    for k, (stack, other) in enumerate(zip(ours.up, theirs.up_blocks, strict=True)):
        for j, block in enumerate(stack):  # type: ignore[arg-type]
            copy(block, other.resnets[j], other.attentions[j] if hasattr(other, "attentions") else None)
        if k < len(ours.doublings):
            ours.doublings[k].load_state_dict(other.upsamplers[0].conv.state_dict())
    ours.shift.weight.copy_(torch.cat([s.weight for s in shifts]))
    ours.shift.bias.copy_(torch.cat([s.bias for s in shifts]))
