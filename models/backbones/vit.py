"""Vision transformer (Dosovitskiy et al. 2021): patch embedding, groups of encoder blocks, final layer norm.

Tokens (B, 1 + n, D), class token first, flow between the stages. Any resolution of at least two patches a side works:
the position embeddings are resampled to the grid of the input, and stay as they are stored at their own.
"""

from math import isqrt

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.vision_transformer import EncoderBlock, VisionTransformer, vit_b_16

from models.anatomy import SMALL_PICTURES, Anatomy, Variant

GROUPS = 4
VARIANTS = {
    "vit_b_16": Variant(
        summary="the base vision transformer with patches of 16 pixels: wants a GPU",
        settings={},
        weights="ViT_B_16_Weights.IMAGENET1K_V1",
        min_resolution=64,
    ),
    "tiny_vit": Variant(
        summary="a miniature for tests",
        settings={
            "image_size": 32,
            "patch_size": 8,
            "num_layers": 4,
            "num_heads": 2,
            "hidden_dim": 16,
            "mlp_dim": 32,
        },
        preprocessing=SMALL_PICTURES,
        min_resolution=16,
        resolutions=(32,),
        public=False,
    ),
}


class Embedding(nn.Module):
    """Picture -> tokens: patches projected, class token in front, position embeddings added."""

    def __init__(self, conv_proj: nn.Module, class_token: nn.Parameter, pos_embedding: nn.Parameter) -> None:
        super().__init__()
        self.conv_proj = conv_proj
        self.class_token = class_token
        self.pos_embedding = pos_embedding

    def forward(self, x: Tensor) -> Tensor:
        patches = self.conv_proj(x)
        side = patches.shape[2]
        tokens = patches.flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_token.expand(x.shape[0], -1, -1), tokens], dim=1)
        return tokens + resampled(self.pos_embedding, side)


def resampled(embedding: Tensor, side: int) -> Tensor:
    """Position embeddings (1, 1 + g * g, D) on a grid of `side` x `side`, bicubic; themselves where g = side.

    Written as a product with the matrix of the resampling, so that its gradient is deterministic on every device.
    """
    grid = isqrt(embedding.shape[1] - 1)
    if grid == side:
        return embedding
    with torch.no_grad():
        corners = torch.eye(grid * grid, device=embedding.device).view(1, grid * grid, grid, grid)
        matrix = functional.interpolate(corners, size=(side, side), mode="bicubic", align_corners=False)
        matrix = matrix.view(grid * grid, side * side).T.to(embedding.dtype)
    return torch.cat([embedding[:, :1], matrix @ embedding[:, 1:]], dim=1)


def build(variant: Variant) -> Anatomy:
    model = VisionTransformer(**variant.settings) if variant.settings else vit_b_16(weights=None)
    encoder = model.encoder
    stages: dict[str, nn.Module] = {"embed": Embedding(model.conv_proj, model.class_token, encoder.pos_embedding)}
    names = {
        "conv_proj": "embed.conv_proj",
        "class_token": "embed.class_token",
        "encoder.pos_embedding": "embed.pos_embedding",
        "encoder.ln": "norm",
    }
    blocks = list(encoder.layers.named_children())
    size = len(blocks) // GROUPS
    for n in range(GROUPS):
        group = nn.Sequential()
        for name, block in blocks[n * size : (n + 1) * size]:
            group.add_module(name.removeprefix("encoder_layer_"), block)
            names[f"encoder.layers.{name}"] = f"blocks{n + 1}.{name.removeprefix('encoder_layer_')}"
        stages[f"blocks{n + 1}"] = group
    stages["norm"] = encoder.ln
    return Anatomy(
        stages=stages,
        taps=tuple(name for name in stages if name != "norm"),
        feature_dim=model.hidden_dim,
        names=names,
        head_name="heads.head",
        head_scope="heads",
        block_types=(EncoderBlock,),
    )
