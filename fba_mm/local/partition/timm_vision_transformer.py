"""How timm's Vision Transformer unrolls: tokens flow, and one layer is one segment."""

from functools import partial
from typing import Tuple

from torch import Tensor, nn

from ...errors import LocalLearningError
from .family import backbone_family
from .segment import Segment, Unrolled, run_submodule

# As with mmpretrain's: auxiliary networks put one layer in the place of each group that is left.
_NUM_GROUPS = 4


def _run_stem(network: nn.Module, x: Tensor) -> Tensor:
    x = network.patch_drop(network._pos_embed(network.patch_embed(x)))
    return network.norm_pre(x)


def _head(network: nn.Module, x: Tensor) -> Tensor:
    return network.forward_head(network.norm(x))


def _as_map(x: Tensor, prefix: int, grid: Tuple[int, int]) -> Tensor:
    """The patch tokens of (N, L, C) as a map (N, C, H, W)."""
    return x[:, prefix:].transpose(1, 2).unflatten(2, grid)


class ReducedTimmLayer(nn.Module):
    """One layer of timm's, with a quarter of the channels inside its feed-forward network.

    Args:
        in_channels: Channels of the input's tokens.
        out_channels: Channels of the output's.
        stride: 1, for tokens stay as they are.
        head_channels: Channels of one attention head.
        mlp_ratio: Channels inside the network's feed-forward networks over those outside.
        qkv_bias: See timm's ``Block``.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int,
        head_channels: int,
        mlp_ratio: float,
        qkv_bias: bool,
    ):
        super().__init__()
        from timm.models.vision_transformer import Block

        if stride != 1:
            raise LocalLearningError(
                f'a transformer layer keeps its tokens, stride={stride} does not fit: leave the '
                'strides of the auxiliary network as the partition tells them'
            )
        same = in_channels == out_channels
        self.project = nn.Identity() if same else nn.Linear(in_channels, out_channels)
        heads = max(out_channels // head_channels, 1)
        while out_channels % heads:
            heads -= 1
        self.layer = Block(out_channels, heads, mlp_ratio / 4, qkv_bias=qkv_bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens (N, L, in_channels) to (N, L, out_channels)."""
        return self.layer(self.project(x))


class TokenScores(nn.Module):
    """A classifier on the class token, or on the mean of the patch tokens where there is none.

    Args:
        level: Always 0.
        channels: Channels of the tokens.
        num_classes: Number of classes.
        prefix: Number of tokens before those of the patches.
        pooling: timm's ``global_pool``.
    """

    def __init__(self, level: int, channels: int, num_classes: int, prefix: int, pooling: str):
        super().__init__()
        self.prefix, self.first = prefix, pooling == 'token'
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens (N, L, C) to scores (N, num_classes)."""
        x = self.norm(x)
        return self.fc(x[:, 0] if self.first else x[:, self.prefix :].mean(1))


@backbone_family('timm.models.vision_transformer.VisionTransformer', replaces=('forward_features',))
def unroll_timm_vision_transformer(network: nn.Module) -> Unrolled:
    """Stem, then one segment per layer; the norm and the classifier go with the last one.

    Args:
        network: A ``VisionTransformer`` of timm, such as ``deit_small_patch16_224``.

    Raises:
        LocalLearningError: It makes no scores, drops patches, or takes images of any size.
    """
    for what, is_so in (
        ('num_classes=0', not network.num_classes),
        ('patch_drop_rate', not isinstance(network.patch_drop, nn.Identity)),
        ('dynamic_img_size=True', network.dynamic_img_size),
    ):
        if is_so:
            raise LocalLearningError(
                f'a VisionTransformer of timm with {what} cannot be cut: create it without'
            )
    own = tuple(
        name
        for name in ('cls_token', 'reg_token', 'pos_embed')
        if getattr(network, name) is not None
    )
    depth = len(network.blocks)
    groups = min(_NUM_GROUPS, depth)
    segments = [
        Segment('stem', _run_stem, ('patch_embed', 'norm_pre'), stage=-1, own_parameters=own)
    ]
    for i in range(depth):
        path = f'blocks.{i}'
        last = i == depth - 1
        ends = ('norm', 'fc_norm', 'head') if last else ()
        if last and network.attn_pool is not None:
            ends += ('attn_pool',)
        segments.append(
            Segment(
                path,
                partial(run_submodule, path=path),
                (path, *ends),
                stage=i * groups // depth,
                level=0 if last else None,
                level_output=_head if last else None,
            )
        )
    attention = network.blocks[-1].attn
    return Unrolled(
        segments,
        partial(
            ReducedTimmLayer,
            head_channels=network.embed_dim // attention.num_heads,
            mlp_ratio=network.blocks[-1].mlp.fc1.out_features / network.embed_dim,
            qkv_bias=attention.qkv.bias is not None,
        ),
        partial(
            TokenScores,
            num_classes=network.num_classes,
            prefix=network.num_prefix_tokens,
            pooling=network.global_pool,
        ),
        as_map=partial(
            _as_map, prefix=network.num_prefix_tokens, grid=tuple(network.patch_embed.grid_size)
        ),
        input_shape=(network.patch_embed.proj.in_channels, *network.patch_embed.img_size),
        returns_tuple=False,
        num_scores=network.num_classes,
    )
