from pathlib import Path

import pytest
import torch
from torch import Tensor
from torchvision.models import mobilenet_v2, mobilenet_v3_small

from domain.errors import Invalid, Unavailable
from models.build import build, members
from models.weights import load_start, read_weights, save_weights, start_from, torchvision_file

REAL = Path(__file__).parents[4] / "shared" / "data" / "weights"
needs_real = pytest.mark.skipif(not REAL.is_dir(), reason="the real weights lie outside the repository")


@pytest.fixture
def source() -> dict[str, Tensor]:
    return build("tiny_resnet", n_classes=7, seed=11).state_dict()


def test_own_names_round_trip_through_a_file(tmp_path: Path, source: dict[str, Tensor]) -> None:
    save_weights(source, tmp_path / "w.safetensors", {"backbone": "tiny_resnet"})
    weights, metadata = read_weights(tmp_path / "w.safetensors")
    assert metadata["backbone"] == "tiny_resnet"
    assert all(torch.equal(weights[name], source[name]) for name in source)
    network = build("tiny_resnet", n_classes=7, seed=0)
    load_start(network, tmp_path / "w.safetensors", with_head=True)
    assert all(torch.equal(network.state_dict()[name], source[name]) for name in source)


def test_saving_leaves_one_whole_file(tmp_path: Path) -> None:
    shared = torch.arange(6.0)
    save_weights({"a": shared, "b": shared[:3], "c": shared.reshape(2, 3).T}, tmp_path / "deep" / "w.safetensors")
    save_weights({"a": shared + 1}, tmp_path / "deep" / "w.safetensors")
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["w.safetensors"]
    assert torch.equal(read_weights(tmp_path / "deep" / "w.safetensors")[0]["a"], shared + 1)


def test_a_failed_save_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "w.safetensors"
    save_weights({"a": torch.ones(2)}, target)
    with pytest.raises(TypeError):
        save_weights({"a": torch.zeros(2)}, target, {"n": 3})  # type: ignore[dict-item]
    assert [path.name for path in tmp_path.iterdir()] == ["w.safetensors"]
    assert torch.equal(read_weights(target)[0]["a"], torch.ones(2))


def test_start_is_a_clone_of_the_backbone_and_the_head_stays_apart(source: dict[str, Tensor]) -> None:
    network = build("tiny_resnet", n_classes=3, seed=0)
    fresh_head = network.head.state_dict()["weight"].clone()
    start = start_from(network, source)
    parameters = {name for name, _ in network.named_parameters() if not name.startswith("head.")}
    assert set(start.weights) == parameters
    assert set(start.buffers) == {name for name, _ in network.named_buffers()}
    assert start.head is not None
    assert start.n_classes == 7
    assert torch.equal(start.head["weight"], source["head.weight"])
    assert torch.equal(network.head.state_dict()["weight"], fresh_head)
    kept = {name: tensor.clone() for name, tensor in start.weights.items()}
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(1.0)
    assert all(torch.equal(start.weights[name], kept[name]) for name in kept)
    assert all(torch.equal(source[name], kept[name]) for name in kept)


def test_no_file_is_a_start_from_scratch() -> None:
    start = load_start(build("tiny_resnet", n_classes=3), None)
    assert start.n_classes is None
    assert tuple(start) == ({}, {}, None)


def test_half_precision_is_widened(source: dict[str, Tensor]) -> None:
    network = build("tiny_resnet", n_classes=3)
    half = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in source.items()}
    start = start_from(network, half)
    assert {tensor.dtype for tensor in start.weights.values()} == {torch.float32}
    assert torch.equal(start.weights["stem.conv1.weight"], source["stem.conv1.weight"].half().float())


def test_a_wrapped_model_and_a_head_of_another_form_are_read() -> None:
    network = build("mobilenet_v2_w035", n_classes=3)
    theirs = mobilenet_v2(width_mult=0.35).state_dict()
    theirs = {f"module.{name}": tensor for name, tensor in theirs.items() if not name.startswith("classifier.")}
    start = start_from(network, theirs | {"module.classifier.1.0.weight": torch.ones(4, 1280)})
    assert start.head is None


def test_an_mlp_head_is_a_head() -> None:
    source = build("tiny_resnet", n_classes=7, head="mlp").state_dict()
    start = start_from(build("tiny_resnet", n_classes=3), source)
    assert start.n_classes == 7


def test_hidden_layer_of_mobilenet_v3_belongs_to_the_backbone() -> None:
    theirs = mobilenet_v3_small(num_classes=4).state_dict()
    start = start_from(build("mobilenet_v3_small", n_classes=2), theirs)
    assert torch.equal(start.weights["neck.2.weight"], theirs["classifier.0.weight"])
    assert start.n_classes == 4


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"stem.conv1.weight": None}, r"1 missing \(stem\.conv1\.weight\)"),
        ({"layer9.0.weight": torch.ones(1)}, r"1 not known \(layer9\.0\.weight\)"),
        ({"stem.bn1.bias": torch.ones(9)}, r"1 of another shape \(stem\.bn1\.bias \[9\] instead of \[8\]\)"),
        ({"stem.bn1.bias": torch.full((8,), torch.nan)}, r"1 not finite \(stem\.bn1\.bias\)"),
        ({"stem.bn1.running_var": torch.full((8,), torch.inf)}, r"1 not finite \(stem\.bn1\.running_var\)"),
    ],
)
def test_foreign_weights_are_refused_and_the_network_is_unchanged(
    source: dict[str, Tensor], change: dict[str, Tensor | None], told: str
) -> None:
    network = build("tiny_resnet", n_classes=7)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    changed = {name: tensor for name, tensor in (source | change).items() if tensor is not None}
    with pytest.raises(Invalid, match=told) as caught:
        start_from(network, changed)
    assert caught.value.code == "model_incompatible"
    assert all(torch.equal(network.state_dict()[name], before[name]) for name in before)


def test_batch_counts_may_be_missing_and_a_teacher_must_fit(source: dict[str, Tensor]) -> None:
    start_from(
        build("tiny_resnet", n_classes=3),
        {name: tensor for name, tensor in source.items() if not name.endswith("num_batches_tracked")},
    )
    with pytest.raises(Invalid, match=r"head\.weight \[7, 64\] instead of \[3, 64\]"):
        start_from(build("tiny_resnet", n_classes=3), source, with_head=True)
    headless = {name: tensor for name, tensor in source.items() if not name.startswith("head.")}
    with pytest.raises(Invalid, match="2 missing"):
        start_from(build("tiny_resnet", n_classes=7), headless, with_head=True)


def test_messages_name_the_first_few_only() -> None:
    with pytest.raises(Invalid) as caught:
        start_from(build("tiny_resnet", n_classes=3), {})
    assert len(caught.value.facts["missing"]) == 5
    assert caught.value.detail.endswith(", ...)")


@pytest.mark.parametrize("content", [b"", b"\x80\x04pickle", b"\xff" * 64])
def test_what_is_not_safetensors_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "w.pt").write_bytes(content)
    with pytest.raises(Invalid) as caught:
        read_weights(tmp_path / "w.pt")
    assert caught.value.code == "model_format_unsafe"


def test_weights_folder_comes_before_the_network(tmp_path: Path) -> None:
    (tmp_path / "resnet18.safetensors").touch()
    assert torchvision_file("resnet18", tmp_path) == tmp_path / "resnet18.safetensors"


def test_no_network_says_where_to_put_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    with pytest.raises(Unavailable, match=r"weights folder as resnet18\.safetensors") as caught:
        torchvision_file("resnet18", tmp_path)
    assert caught.value.code == "weights_unavailable"
    assert "resnet18" in caught.value.facts["url"]
    assert list(tmp_path.iterdir()) == []


def test_a_backbone_without_published_weights(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="publishes no weights for smallnet"):
        torchvision_file("smallnet", tmp_path)


@needs_real
def test_real_mobilenet_gives_torchvisions_logits() -> None:
    file = REAL / "mobilenet_v2_in1k.safetensors"
    theirs = mobilenet_v2()
    theirs.load_state_dict(read_weights(file)[0])
    ours = build("mobilenet_v2", n_classes=1000)
    start = load_start(ours, file, with_head=True)
    x = torch.randn(4, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = theirs.eval()(x)
        assert (ours.eval()(x) - expected).abs().max() < 1e-5
    assert start.n_classes == 1000


@needs_real
@pytest.mark.parametrize(
    ("file", "backbone", "n_classes"),
    [
        ("mobilenet_v2_in1k", "mobilenet_v2", 1000),
        ("mobilenet_v2_inat_insect", "mobilenet_v2", 1022),
        ("mobilenet_v2_w035_in1k_features", "mobilenet_v2_w035", None),
    ],
)
def test_real_sources_load(file: str, backbone: str, n_classes: int | None) -> None:
    start = load_start(build(backbone, n_classes=4), REAL / f"{file}.safetensors")
    assert start.n_classes == n_classes
    assert {tensor.dtype for tensor in start.weights.values()} == {torch.float32}


@needs_real
def test_a_foreign_network_is_refused() -> None:
    with pytest.raises(Invalid, match="these are not the weights of mobilenet_v2:"):
        load_start(build("mobilenet_v2", n_classes=4), REAL / "squeezenet1_1_in1k.safetensors")


def test_every_torchvision_source_is_a_registered_backbone() -> None:
    published = {entry.variant.weights for entry in members().values()} - {None}
    assert len(published) == 18
