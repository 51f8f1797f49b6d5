"""Swin transformer (Liu et al. 2021): attention in windows that shift from block to block, a stage per resolution.

Maps (B, c, h, w) flow between the stages; inside, channels come last, and the turns at both ends are views. Any
resolution runs: a map that is no multiple of the window is padded with zeros, which attention then sees. The windows of
7 fit exactly at 224; from 160 on at least half of the last window is picture.
"""

from functools import partial

from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.convnext import LayerNorm2d
from torchvision.models.swin_transformer import ShiftedWindowAttention, SwinTransformer, SwinTransformerBlock
from torchvision.ops.misc import Permute

from domain.catalogue import Preprocessing
from models.anatomy import Anatomy, Variant

TO_MAP, FROM_MAP = (0, 3, 1, 2), (0, 2, 3, 1)
VARIANTS = {
    "swin_t": Variant(
        summary="the small transformer with shifted windows: accurate, wants a GPU",
        settings={
            "patch_size": (4, 4),
            "embed_dim": 96,
            "depths": (2, 2, 6, 2),
            "num_heads": (3, 6, 12, 24),
            "window_size": (7, 7),
        },
        weights="Swin_T_Weights.IMAGENET1K_V1",
        min_resolution=64,
        resolutions=(160, 192, 224),
    ),
    "tiny_swin": Variant(
        summary="a miniature for tests",
        settings={
            "patch_size": (4, 4),
            "embed_dim": 16,
            "depths": (2, 2),
            "num_heads": (2, 4),
            "window_size": (4, 4),
        },
        preprocessing=Preprocessing(
            resize=32, crop=32, interpolation="bicubic", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)
        ),
        resolutions=(32,),
        public=False,
    ),
}


class Attention(ShiftedWindowAttention):  # type: ignore[misc]
    """torchvision's, with its table of positions looked up so that the gradient is deterministic on every device.

    Which entry belongs to which pair of pixels follows from the size of the window, so it is in no state dict.
    """

    def define_relative_position_index(self) -> None:
        super().define_relative_position_index()
        self.register_buffer("relative_position_index", self.relative_position_index, persistent=False)

    def get_relative_position_bias(self) -> Tensor:
        n = self.window_size[0] * self.window_size[1]
        entries = functional.embedding(self.relative_position_index, self.relative_position_bias_table)
        return entries.view(n, n, -1).permute(2, 0, 1).unsqueeze(0)


def build(variant: Variant) -> Anatomy:
    settings = {name: list(v) if isinstance(v, tuple) else v for name, v in variant.settings.items()}
    block = partial(SwinTransformerBlock, attn_layer=Attention)
    model = SwinTransformer(**settings, stochastic_depth_prob=0.0, block=block)
    stages: dict[str, nn.Module] = {"stem": nn.Sequential(*model.features[0], Permute(list(TO_MAP)))}
    names = {"features.0": "stem"}
    tables = []
    for n, depth in enumerate(variant.settings["depths"], start=1):
        group = 2 * n - 1  # in torchvision's row a merging of patches stands between two groups of blocks
        stage = nn.Sequential()
        stage.add_module("channels_last", Permute(list(FROM_MAP)))
        if n > 1:
            stage.add_module("merging", model.features[group - 1])
            names[f"features.{group - 1}"] = f"stage{n}.merging"
        for k in range(depth):
            stage.add_module(str(k), model.features[group][k])
            tables.append(f"features.{group}.{k}.attn.relative_position_index")
        names[f"features.{group}"] = f"stage{n}"
        stage.add_module("channels_first", Permute(list(TO_MAP)))
        stages[f"stage{n}"] = stage
    taps = tuple(stages)
    width = model.head.in_features
    stages["norm"] = LayerNorm2d(width, eps=model.norm.eps)
    return Anatomy(
        stages=stages,
        taps=taps,
        feature_dim=width,
        names=names,
        head_name="head",
        head_scope="head",
        block_types=(SwinTransformerBlock,),
        left_out=tuple(tables),
    )
