import pytest

from domain.catalogue import BackboneFacts
from models.build import members
from models.facts import backbone_facts

FACTS = {facts.name: facts for facts in backbone_facts()}


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
        ("smallnet", 32, 32, "bilinear"),
    ],
)
def test_preprocessing_is_the_weights_own(name: str, resize: int, crop: int, interpolation: str) -> None:
    preprocessing = FACTS[name].preprocessing
    assert (preprocessing.resize, preprocessing.crop, preprocessing.interpolation) == (resize, crop, interpolation)
    assert preprocessing.mean == ((0.5, 0.5, 0.5) if name == "smallnet" else (0.485, 0.456, 0.406))


@pytest.mark.parametrize(
    ("name", "feature_dim", "n_weights", "provides"),
    [
        # by hand: kernels 5 * 5 * 3 * 32, 9 * 32 * 64 and 9 * 64 * 128; scales and shifts 2 * (32 + 64 + 128)
        ("smallnet", 128, 2400 + 18432 + 73728 + 448, ("taps", "conv", "batch_norm", "double_backward")),
        ("resnet50", 2048, 25_557_032 - 2_049_000, ("taps", "conv", "batch_norm", "blocks", "double_backward")),
        ("convnext_tiny", 768, 28_589_128 - 769_000, ("taps", "conv", "blocks", "double_backward")),
        ("vit_b_16", 768, 86_567_656 - 769_000, ("taps", "blocks")),
    ],
)
def test_sizes_and_provisions(name: str, feature_dim: int, n_weights: int, provides: tuple[str, ...]) -> None:
    assert (FACTS[name].feature_dim, FACTS[name].n_weights, FACTS[name].provides) == (feature_dim, n_weights, provides)


def test_published_weights_carry_licence_and_address() -> None:
    for facts in FACTS.values():
        for weights in facts.weights:
            assert weights.n_classes == 1000
            assert "non-commercial" in weights.licence
            assert weights.accuracy is not None
            assert 60 < weights.accuracy < 90
    assert not FACTS["smallnet"].weights
    assert FACTS["resnet18"].weights[0].accuracy == 69.758


def test_native_resolution_is_offered() -> None:
    for facts in FACTS.values():
        assert facts.preprocessing.crop in facts.resolutions
        assert min(facts.resolutions) >= facts.min_resolution
        assert BackboneFacts.model_validate_json(facts.model_dump_json()) == facts
