"""The facts of every registered backbone, for the catalogue; sizes are counted without allocating a weight."""

import torch
from torch import nn
from torchvision.models import get_weight
from torchvision.models.swin_transformer import SwinTransformerBlock
from torchvision.models.vision_transformer import EncoderBlock

from domain.catalogue import BackboneFacts, Preprocessing, WeightsFacts
from models.anatomy import Anatomy
from models.build import Member, members, outline
from models.network import as_map

LICENCE = "BSD-3-Clause (torchvision); trained on ImageNet-1K, whose terms are for non-commercial research"
# torch has no second derivative of these: no loss on an input gradient can be trained through them.
ONCE_DIFFERENTIABLE = (nn.Hardsigmoid, nn.MultiheadAttention)
TRANSFORMER_BLOCKS = (EncoderBlock, SwinTransformerBlock)


def backbone_facts() -> list[BackboneFacts]:
    """Every public backbone, by family and then as its file lists them."""
    return [facts_of(entry) for entry in members().values() if entry.variant.public]


def facts_of(entry: Member) -> BackboneFacts:
    """What the catalogue says of one backbone."""
    variant = entry.variant
    anatomy = outline(entry.name)
    return BackboneFacts(
        family=entry.family,
        name=entry.name,
        summary=variant.summary,
        stages=tuple(anatomy.stages),
        taps=anatomy.taps,
        tap_widths=_tap_widths(entry, anatomy),
        provides=_provides(anatomy),
        feature_dim=anatomy.feature_dim,
        n_weights=sum(weight.numel() for stage in anatomy.stages.values() for weight in stage.parameters()),
        preprocessing=preprocessing_of(entry),
        head=anatomy.head_name,
        min_resolution=variant.min_resolution,
        fixed_resolution=variant.fixed_resolution,
        resolutions=variant.resolutions,
        weights=_published(entry),
    )


def preprocessing_of(entry: Member) -> Preprocessing:
    """The evaluation transforms of the published weights, or what the variant states."""
    if entry.variant.preprocessing is not None:
        return entry.variant.preprocessing
    transforms = get_weight(entry.variant.weights).transforms()
    mean, std = (tuple(float(value) for value in values) for values in (transforms.mean, transforms.std))
    return Preprocessing.model_validate(
        {
            "resize": transforms.resize_size[0],
            "crop": transforms.crop_size[0],
            "interpolation": transforms.interpolation.value,
            "mean": mean,
            "std": std,
        }
    )


def _provides(anatomy: Anatomy) -> tuple[str, ...]:
    modules = [module for stage in anatomy.stages.values() for module in stage.modules()]
    # A patch projection alone is no convolutional network: `conv` wants kernels that look at neighbours.
    n_convs = sum(isinstance(module, nn.Conv2d) for module in modules)
    has = {
        "taps": bool(anatomy.taps),
        "conv": n_convs > 1,
        "conv3x3": any(isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3) for module in modules),
        "batch_norm": any(isinstance(module, nn.BatchNorm2d) for module in modules),
        "blocks": any(isinstance(module, anatomy.block_types) for module in modules),
        "transformer": any(isinstance(module, TRANSFORMER_BLOCKS) for module in modules),
        # Weights of this network come with a linear head over the same features.
        "source_head": anatomy.head_name is not None,
        "double_backward": not any(isinstance(module, ONCE_DIFFERENTIABLE) for module in modules),
    }
    return tuple(name for name, provided in has.items() if provided)


def _tap_widths(entry: Member, anatomy: Anatomy) -> tuple[int, ...]:
    """Channels of the map at each tap, seen without computing one."""
    side = preprocessing_of(entry).crop
    widths: list[int] = []
    activation = torch.empty(1, 3, side, side, device="meta")
    with torch.no_grad():
        for name, stage in anatomy.stages.items():
            activation = stage.eval()(activation)
            if name in anatomy.taps:
                widths.append(as_map(activation).shape[1])
    return tuple(widths)


def _published(entry: Member) -> tuple[WeightsFacts, ...]:
    if entry.variant.weights is None:
        return ()
    weights = get_weight(entry.variant.weights)
    return (
        WeightsFacts(
            name=weights.name,
            n_classes=len(weights.meta["categories"]),
            licence=LICENCE,
            accuracy=weights.meta["_metrics"]["ImageNet-1K"]["acc@1"],
        ),
    )
