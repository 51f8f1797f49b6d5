"""The bundle on real scans (scikit-learn's digits): files, ONNX graph, export check, and its own predict.py."""

import hashlib
import importlib.util
import io
import json
import os
import subprocess
import sys
import zipfile
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from sklearn.datasets import load_digits

from domain.catalogue import Preprocessing
from domain.errors import Conflict
from domain.recipe import DataTreatment, Recipe
from intake import packs
from intake.packs import Pack, open_pack
from intake.prepare import prepare
from models.build import build
from models.network import Network
from transfer import bundle, evaluate
from transfer.evaluate import PixelNetwork

CLASSES = ("nought", "one", "zwei, ½", "three")
SIDE, CANVAS = 32, 36
TEMPERATURE = 1.7
PREPROCESSING = Preprocessing(
    resize=CANVAS, crop=SIDE, interpolation="bilinear", mean=(0.4, 0.5, 0.6), std=(0.3, 0.2, 0.25)
)
RECIPE = Recipe(
    task="classification", source="scratch:tiny_smallnet", backbone="tiny_smallnet", data=DataTreatment(resolution=SIDE)
)


def digits(n: int) -> tuple[np.ndarray, np.ndarray]:
    """(n, P, P, 3) uint8 scans of 0 to 3, and their labels."""
    scans, labels = load_digits(n_class=len(CLASSES), return_X_y=True)
    grey = (scans[:n].reshape(-1, 8, 8) * 15.9).astype(np.uint8)
    large = [np.asarray(Image.fromarray(g).convert("RGB").resize((CANVAS, CANVAS))) for g in grey]
    return np.stack(large), labels[:n].astype(np.int64)


def write_pack(folder: Path, n_val: int = 20, n_test: int = 30, n_train: int = 50) -> Pack:
    folder.mkdir()
    n = n_train + n_val + n_test
    pixels, labels = digits(n)
    split = np.repeat(np.array([0, 1, 2], np.int8), [n_train, n_val, n_test])
    arrays = {"pixels": pixels, "labels": labels, "split": split, "fold": np.where(split < 2, 0, -1).astype(np.int8)}
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    facts = {
        "n": n, "canvas": CANVAS, "resize": CANVAS, "crop": SIDE, "interpolation": "bilinear", "classes": CLASSES,
        "ids": [hashlib.sha256(p.tobytes()).hexdigest() for p in pixels], "content_hash": "0",
    }  # fmt: skip
    (folder / "pack.json").write_text(json.dumps(facts))
    return open_pack(folder)


@pytest.fixture(scope="module")
def pack(tmp_path_factory) -> Pack:
    return write_pack(tmp_path_factory.mktemp("packs") / "pack")


@pytest.fixture(scope="module")
def network() -> Network:
    built = build("tiny_smallnet", n_classes=len(CLASSES), head="mlp", seed=4)
    pixels, _ = digits(64)
    with torch.no_grad():  # statistics that are not the identity, as after training
        built.train()(PixelNetwork(torch.nn.Identity(), PREPROCESSING)(torch.from_numpy(pixels)))
    return built.eval()


@pytest.fixture(scope="module")
def exported(tmp_path_factory, pack: Pack, network: Network) -> tuple[Path, bundle.ExportCheck]:
    folder = tmp_path_factory.mktemp("bundle") / "a folder"
    check = bundle.export(
        network, recipe=RECIPE, classes=CLASSES, preprocessing=PREPROCESSING, temperature=TEMPERATURE,
        licence="none\n", pack=pack, folder=folder,
    )  # fmt: skip
    return folder, check


def test_every_file_is_there_and_says_what_it_should(exported, network: Network) -> None:
    folder, _ = exported
    assert {p.name for p in folder.iterdir()} == {
        "model.safetensors", "recipe.json", "labels.json", "preprocessing.json", "preprocess.py", "model.onnx",
        "predict.py", "requirements.txt", "LICENSE-WEIGHTS.txt",
    }  # fmt: skip
    assert Recipe.model_validate_json((folder / "recipe.json").read_text("utf-8")) == RECIPE
    assert json.loads((folder / "labels.json").read_text("utf-8")) == list(CLASSES)
    assert json.loads((folder / "preprocessing.json").read_text())["mean"] == [0.4, 0.5, 0.6]
    with safe_open(folder / "model.safetensors", "pt") as weights:
        assert set(weights.keys()) == set(network.state_dict())
        assert torch.equal(weights.get_tensor("head.0.weight"), network.head[0].weight)


def test_the_graph_takes_pixels_and_describes_itself(exported) -> None:
    folder, _ = exported
    model = onnx.load(folder / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    (pixels,), outputs = model.graph.input, model.graph.output
    sizes = [d.dim_value or d.dim_param for d in pixels.type.tensor_type.shape.dim]
    assert (pixels.name, pixels.type.tensor_type.elem_type) == ("pixels", onnx.TensorProto.UINT8)
    assert sizes == ["n_items", SIDE, SIDE, 3]
    assert [o.name for o in outputs] == ["logits", "probabilities"]
    told = {p.key: p.value for p in model.metadata_props}
    assert json.loads(told["labels"]) == list(CLASSES)
    assert json.loads(told["preprocessing"])["crop"] == SIDE
    assert (told["task"], float(told["calibration_temperature"])) == ("classification", TEMPERATURE)
    assert str(Path(bundle.__file__).parent.parent).encode() not in (folder / "model.onnx").read_bytes()


@pytest.mark.parametrize("n", [1, 2, 33])
def test_any_batch_gives_what_torch_gives(exported, pack: Pack, network: Network, n: int) -> None:
    folder, _ = exported
    pixels = evaluate.evaluation_pixels(pack, np.arange(n))
    logits, probabilities = bundle.open_onnx(folder / "model.onnx").run(None, {"pixels": pixels})
    # By hand: normalise outside, softmax with the temperature outside.
    images = (torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - torch.tensor(PREPROCESSING.mean).view(3, 1, 1)) / (
        torch.tensor(PREPROCESSING.std).view(3, 1, 1)
    )
    with torch.no_grad():
        expected = network(images)
    assert np.abs(logits - expected.numpy()).max() < 1e-4
    assert np.abs(probabilities - (expected / TEMPERATURE).softmax(1).numpy()).max() < 1e-5
    assert probabilities.sum(1) == pytest.approx(np.ones(n), abs=1e-6)


def test_the_check_covers_val_and_train_never_test(exported) -> None:
    _, check = exported
    assert (check.n_items, check.n_val) == (70, 20)  # all that there is outside test
    assert 0 <= check.largest_difference < 1e-4
    assert check.n_top1_different <= check.n_near_ties < 70
    rows, n_val = bundle.checked_rows(np.repeat([2, 1, 0], [500, 300, 400]))
    assert (len(rows), n_val) == (300, 300)  # all of val, though it is more than 256
    rows, _ = bundle.checked_rows(np.repeat([2, 0, 1], [500, 400, 30]))
    assert (len(rows), rows.min()) == (256, 500)
    assert set(range(900, 930)) <= set(rows.tolist())


def test_another_network_is_found_out(exported, pack: Pack, network: Network) -> None:
    folder, _ = exported
    other = build("tiny_smallnet", n_classes=len(CLASSES), head="mlp", seed=4)
    other.load_state_dict(network.state_dict())
    with torch.no_grad():
        other.head[2].bias[1] += 5e-3  # one logit, barely over the tolerance
    with pytest.raises(Conflict, match=r"differ by up to 0\.005") as caught:
        bundle.check_export(PixelNetwork(other, PREPROCESSING), folder / "model.onnx", pack, temperature=TEMPERATURE)
    assert caught.value.code == "export_mismatch"
    assert caught.value.facts["n_items"] == 70
    with pytest.raises(Conflict):  # another temperature shows in the probabilities
        bundle.check_export(PixelNetwork(network, PREPROCESSING), folder / "model.onnx", pack, temperature=1.0)
    with torch.no_grad():
        other.head[2].bias[1] = float("nan")
    with pytest.raises(Conflict):
        bundle.check_export(PixelNetwork(other, PREPROCESSING), folder / "model.onnx", pack, temperature=TEMPERATURE)


def test_near_ties_are_counted() -> None:
    logits = np.array([[3.0, 1.0, 2.9985], [0.0, 1.0, 0.9979], [5.0, 5.0, 0.0]])
    assert bundle.near_ties(logits).tolist() == [True, False, True]


def test_manifest_and_zip_are_whole_and_repeatable(exported, tmp_path: Path) -> None:
    folder, _ = exported
    bundle.write_manifest(folder, {"job_id": "job_1"})
    first, second = bundle.write_zip(folder, tmp_path / "a.zip"), bundle.write_zip(folder, tmp_path / "b.zip")
    assert first.read_bytes() == second.read_bytes()
    with zipfile.ZipFile(first) as archive:
        assert archive.testzip() is None
        manifest = json.loads(archive.read("MANIFEST.json"))
        assert set(manifest["files"]) | {"MANIFEST.json"} == set(archive.namelist())
        for name, facts in manifest["files"].items():
            content = archive.read(name)
            assert (len(content), hashlib.sha256(content).hexdigest()) == (facts["size_bytes"], facts["sha256"])
    assert [p.name for p in tmp_path.iterdir() if p.suffix == ".partial"] == []


def test_requirements_are_pinned_to_what_was_tested(exported) -> None:
    lines = (exported[0] / "requirements.txt").read_text().split()
    assert lines == [f"{name}=={version(name)}" for name in ("numpy", "onnxruntime", "pillow")]


def run_predict(folder: Path, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    # -I: without this repository on the path; the bundle must stand alone.
    environment = {"PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-I", str(folder / "predict.py"), *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=60, check=False)


def test_predict_script(exported, pack: Pack, tmp_path: Path) -> None:
    folder, _ = exported
    small, gone, broken = tmp_path / "small.png", tmp_path / "gone.png", tmp_path / "broken.jpg"
    Image.fromarray(np.asarray(pack.pixels[3])).save(small)
    broken.write_bytes(b"\xff\xd8\xff no picture")
    done = run_predict(folder, "small.png", "gone.png", "broken.jpg", ".", "--json", "--top", "2", cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    answers = json.loads(done.stdout)
    expected = bundle.open_onnx(folder / "model.onnx").run(
        ["probabilities"], {"pixels": evaluate.evaluation_pixels(pack, np.array([3]))}
    )[0][0]
    first, second = np.argsort(-expected)[:2]
    assert [p["label"] for p in answers[0]["predictions"]] == [CLASSES[first], CLASSES[second]]
    assert answers[0]["predictions"][0]["probability"] == pytest.approx(float(expected[first]), abs=1e-6)
    assert answers[1]["error"] == "there is no such file"
    assert "is not an image" in answers[2]["error"]
    assert "is a folder" in answers[3]["error"]
    assert done.stderr.count("\n") == 3
    assert not gone.exists()


def test_predict_script_in_lines(exported, pack: Pack, tmp_path: Path) -> None:
    folder, _ = exported
    Image.fromarray(np.asarray(pack.pixels[0])).save(tmp_path / "x.png")
    done = run_predict(folder, str(tmp_path / "x.png"), "--top", "9", cwd=Path("/"))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{tmp_path / 'x.png'}: ")
    assert done.stdout.count(".") >= len(CLASSES)


def test_the_script_sees_the_pixels_of_the_pack(exported, tmp_path: Path) -> None:
    """Uploaded files of many kinds -> prepare -> pack, against the bundle's preprocess.py on the original bytes."""
    folder, _ = exported
    rng = np.random.default_rng(0)
    photo = Image.fromarray(np.kron(rng.integers(0, 256, (9, 7, 3)), np.ones((8, 8, 1))).astype(np.uint8))
    turned = Image.Exif()
    turned[0x0112] = 6
    sixteen = Image.fromarray(np.asarray(photo.convert("L")).astype(np.uint16) * 257)
    kinds: dict[str, tuple[Image.Image, str, dict[str, object]]] = {
        "plain": (photo, "PNG", {}),
        "turned": (photo, "JPEG", {"exif": turned}),
        "cmyk": (photo.convert("CMYK"), "JPEG", {}),
        "palette": (photo.convert("P"), "GIF", {}),
        "clear": (photo.copy(), "PNG", {}),
        "sixteen": (sixteen, "PNG", {}),
        "wide": (photo.resize((150, 40)), "WEBP", {"lossless": True}),
    }
    kinds["clear"][0].putalpha(Image.linear_gradient("L").resize(photo.size))
    with zipfile.ZipFile(tmp_path / "up.zip", "w") as archive:
        for n, (name, (image, kind, settings)) in enumerate(kinds.items()):
            for label in ("a", "b"):
                file = io.BytesIO()
                image.rotate(90 * (label == "b") + 7 * n, expand=True).save(file, kind, **settings)
                archive.writestr(f"{label}/{name}.{kind.lower()}", file.getvalue())
    prepare(tmp_path / "up.zip", tmp_path / "items.zip", task="classification", options={})
    packs.pack(tmp_path / "items.zip", tmp_path / "pack", resize=CANVAS, crop=SIDE, interpolation="bilinear")
    made = open_pack(tmp_path / "pack")
    assert len(made.ids) >= 10

    specification = importlib.util.spec_from_file_location("bundled_preprocess", folder / "preprocess.py")
    bundled = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(bundled)
    assert bundled.__file__ == str(folder / "preprocess.py")
    facts = json.loads((folder / "preprocessing.json").read_text())
    view = {name: facts[name] for name in ("resize", "crop", "interpolation")}
    with zipfile.ZipFile(tmp_path / "items.zip") as items:
        for row, item in enumerate(made.ids.astype(str)):
            original = bundled.load_rgb(io.BytesIO(items.read(f"items/{item}")))
            seen = bundled.evaluation_pixels(original, **view)
            assert np.array_equal(seen, evaluate.evaluation_pixels(made, np.array([row]))[0])


@pytest.mark.parametrize("backbone", ["tiny_resnet", "tiny_mobilenet_v2", "tiny_densenet"])
def test_convolutions_do_what_batch_norms_did(backbone: str) -> None:
    net = with_statistics(build(backbone, n_classes=4, seed=0))
    pictures = torch.randn(3, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        before, n_before = net(pictures), n_norms(net)
        bundle.fold_batch_norms(net)
        torch.testing.assert_close(net(pictures), before, rtol=1e-4, atol=1e-5)
    assert n_norms(net) < n_before


def test_what_hooks_see_into_is_left_as_it_is() -> None:
    """Between a convolution and its batch norm something else may happen."""
    net = with_statistics(build("tiny_resnet", n_classes=4, seed=0))
    pictures = torch.randn(3, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    for name in net.stage_names:
        conv = next(m for m in net.get_submodule(name).modules() if isinstance(m, torch.nn.Conv2d))
        conv.register_forward_hook(lambda _, given, made: made + 0.1 * given[0].mean())
    with torch.no_grad():
        before, n_before = net(pictures), n_norms(net)
        bundle.fold_batch_norms(net)
        assert torch.equal(net(pictures), before)
    assert n_norms(net) == n_before


def with_statistics(net: Network) -> Network:
    draw = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1, generator=draw)
                module.running_var.uniform_(0.5, 1.5, generator=draw)
                module.weight.uniform_(0.5, 1.5, generator=draw)
    return net.eval()


def n_norms(net: Network) -> int:
    return sum(isinstance(module, torch.nn.BatchNorm2d) for module in net.modules())
