import pytest
import torch

from domain.catalogue import BackboneFacts
from models.build import members
from models.facts import backbone_facts
from models.network import pool

FACTS = {facts.name: facts for facts in backbone_facts()}
CONV, HEADED = ("taps", "conv", "conv3x3"), ("source_head", "double_backward")


def test_public_backbones_alone() -> None:
    assert set(FACTS) == {name for name, entry in members().items() if entry.variant.public}


@pytest.mark.parametrize(
    ("name", "resize", "crop", "interpolation"),
    [
        ("resnet18", 256, 224, "bilinear"),
        ("resnet50", 256, 224, "bilinear"),
        ("mobilenet_v2", 256, 224, "bilinear"),
        ("mobilenet_v2_w035", 256, 224, "bilinear"),
        ("efficientnet_b0", 256, 224, "bicubic"),
        ("convnext_tiny", 236, 224, "bilinear"),
        ("vit_b_16", 256, 224, "bilinear"),
        ("resnet101", 256, 224, "bilinear"),
        ("resnet10", 256, 224, "bilinear"),
        ("efficientnet_v2_s", 384, 384, "bilinear"),
        ("inception_v3", 342, 299, "bilinear"),
        ("swin_t", 232, 224, "bicubic"),
        ("cifar_resnet20", 32, 32, "bilinear"),
        ("bit_r50x1", 256, 224, "bilinear"),
        ("smallnet", 32, 32, "bilinear"),
    ],
)
def test_preprocessing_is_the_weights_own(name: str, resize: int, crop: int, interpolation: str) -> None:
    preprocessing = FACTS[name].preprocessing
    assert (preprocessing.resize, preprocessing.crop, preprocessing.interpolation) == (resize, crop, interpolation)
    halves = name in ("smallnet", "bit_r50x1")
    assert preprocessing.mean == ((0.5, 0.5, 0.5) if halves else (0.485, 0.456, 0.406))


@pytest.mark.parametrize(
    ("name", "feature_dim", "n_weights", "provides"),
    [
        # by hand: kernels 5 * 5 * 3 * 32, 9 * 32 * 64 and 9 * 64 * 128; scales and shifts 2 * (32 + 64 + 128)
        ("smallnet", 128, 2400 + 18432 + 73728 + 448, (*CONV, "batch_norm", "double_backward")),
        ("resnet50", 2048, 25_557_032 - 2_049_000, (*CONV, "batch_norm", "blocks", *HEADED)),
        ("mobilenet_v3_small", 1024, 2_542_856 - 1_025_000, (*CONV, "batch_norm", "blocks", "source_head")),
        ("convnext_tiny", 768, 28_589_128 - 769_000, ("taps", "conv", "blocks", *HEADED)),
        ("vgg16_bn", 4096, 138_365_992 - 4_097_000, (*CONV, "batch_norm", *HEADED)),
        ("alexnet", 4096, 61_100_840 - 4_097_000, (*CONV, *HEADED)),
        ("densenet121", 1024, 7_978_856 - 1_025_000, (*CONV, "batch_norm", *HEADED)),
        # the published network without its second head has 23 834 568 weights
        ("inception_v3", 2048, 23_834_568 - 2_049_000, (*CONV, "batch_norm", *HEADED)),
        ("squeezenet1_1", 512, 1_235_496 - 513_000, (*CONV, "double_backward")),
        # 0.27 and 0.85 million in the paper; with the head of ten classes 269 722 and 853 018
        ("cifar_resnet20", 64, 269_722 - 650, (*CONV, "batch_norm", "blocks", *HEADED)),
        ("cifar_resnet56", 64, 853_018 - 650, (*CONV, "batch_norm", "blocks", *HEADED)),
        ("bit_r50x1", 2048, 23_500_352, (*CONV, "blocks", *HEADED)),
        ("vit_b_16", 768, 86_567_656 - 769_000, ("taps", "blocks", "transformer", "source_head")),
        ("swin_t", 768, 28_288_354 - 769_000, ("taps", "blocks", "transformer", *HEADED)),
    ],
)
def test_sizes_and_provisions(name: str, feature_dim: int, n_weights: int, provides: tuple[str, ...]) -> None:
    assert (FACTS[name].feature_dim, FACTS[name].n_weights, FACTS[name].provides) == (feature_dim, n_weights, provides)


def test_norms_of_another_kind_are_no_batch_norms() -> None:
    without = {name for name, facts in FACTS.items() if "batch_norm" not in facts.provides}
    assert without == {"convnext_tiny", "vit_b_16", "swin_t", "bit_r50x1", "alexnet", "squeezenet1_1"}


def test_published_weights_carry_licence_and_address() -> None:
    for facts in FACTS.values():
        for weights in facts.weights:
            assert weights.n_classes == 1000
            assert "non-commercial" in weights.licence
            assert weights.accuracy is not None
            assert 55 < weights.accuracy < 90
    assert not FACTS["smallnet"].weights
    assert FACTS["resnet18"].weights[0].accuracy == 69.758


def test_native_resolution_is_offered() -> None:
    for facts in FACTS.values():
        assert facts.preprocessing.crop in facts.resolutions
        assert min(facts.resolutions) >= facts.min_resolution
        assert BackboneFacts.model_validate_json(facts.model_dump_json()) == facts


def test_widths_of_the_taps() -> None:
    """By the papers: basic blocks of 64 to 512 channels, bottlenecks four times as wide, one width in a transformer."""
    assert FACTS["resnet18"].tap_widths == FACTS["resnet34"].tap_widths == (64, 64, 128, 256, 512)
    assert FACTS["resnet50"].tap_widths == (64, 256, 512, 1024, 2048)
    assert FACTS["vit_b_16"].tap_widths == (768,) * 5
    assert FACTS["smallnet"].tap_widths == (32, 64, 128)
    assert all(len(facts.tap_widths) == len(facts.taps) for facts in FACTS.values())


@pytest.mark.parametrize("name", FACTS)
def test_a_network_takes_the_ends_of_what_a_job_may_ask_for(name: str) -> None:
    sides = FACTS[name].legal_resolutions
    assert set(FACTS[name].resolutions) <= set(sides)
    with torch.device("meta"):
        anatomy = members()[name].anatomy()
    for side in {sides[0], sides[-1], 288}:
        activation = torch.empty(1, 3, side, side, device="meta")
        for stage in anatomy.stages.values():
            activation = stage.eval()(activation)
        assert pool(activation).shape == (1, FACTS[name].feature_dim)
