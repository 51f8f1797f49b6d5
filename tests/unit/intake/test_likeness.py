import io
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from intake.likeness import TOLERANCE, Clusters, cluster, fingerprint, pairs

Picture = Callable[..., Image.Image]


def prints_of(images: list[Image.Image]) -> np.ndarray:
    return np.stack([fingerprint(image) for image in images])


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


@pytest.mark.parametrize(
    "change",
    [
        lambda image: jpeg(image, 75),
        lambda image: jpeg(image, 50),
        lambda image: image.resize((image.width // 2, image.height // 2), Image.Resampling.BICUBIC),
        lambda image: image.resize((image.width * 2, image.height * 2), Image.Resampling.LANCZOS),
        lambda image: ImageEnhance.Brightness(image).enhance(1.05),
        lambda image: image.convert("P", palette=Image.Palette.ADAPTIVE).convert("RGB"),
    ],
)
def test_copies_are_found_and_strangers_are_not(change: Callable[[Image.Image], Image.Image], picture: Picture) -> None:
    originals = [picture(seed, (120, 90)) for seed in range(20)]
    found = pairs(prints_of(originals + [change(image) for image in originals]))
    assert sorted(map(tuple, np.sort(found, axis=1).tolist())) == [(i, i + 20) for i in range(20)]


def test_search_finds_exactly_what_comparing_all_pairs_finds(picture: Picture) -> None:
    rng = np.random.default_rng(0)
    base = prints_of([picture(seed) for seed in range(150)]).astype(int)
    noisy = np.clip(base + rng.normal(0, rng.uniform(0, 8, (150, 1)), base.shape), 0, 255).astype(int)
    prints = np.concatenate([base, noisy]).astype(np.uint8)
    centred = prints - prints.mean(axis=1, keepdims=True)
    centred /= np.linalg.norm(centred, axis=1, keepdims=True)
    squares = 2 - 2 * centred @ centred.T
    expected = {(i, j) for i, j in np.argwhere(squares <= TOLERANCE**2).tolist() if i < j}
    assert 50 < len(expected) < 150
    assert {tuple(sorted(pair)) for pair in pairs(prints).tolist()} == expected


def test_digits_are_not_copies_of_one_another() -> None:
    from sklearn.datasets import load_digits

    scans = [Image.fromarray((scan * 15.9).astype(np.uint8)).convert("RGB") for scan in load_digits().images]
    assert len(scans) == 1797
    assert len(pairs(prints_of(scans))) <= 3


def test_blank_pictures_are_never_alike() -> None:
    rng = np.random.default_rng(0)
    blank = [Image.new("RGB", (20, 20), (grey, grey, grey)) for grey in range(0, 250, 5)]
    faint = [Image.fromarray(rng.integers(200, 206, (20, 20, 3), np.uint8)) for _ in range(20)]
    assert len(pairs(prints_of(blank + faint))) == 0


def test_same_shape_in_another_colour_or_light_is_another_picture() -> None:
    def disc(colour: tuple[int, int, int]) -> Image.Image:
        image = np.zeros((32, 32, 3), np.uint8)
        y, x = np.mgrid[:32, :32]
        image[(y - 16) ** 2 + (x - 16) ** 2 < 80] = colour
        return Image.fromarray(image)

    discs = [disc(c) for c in [(250, 0, 0), (0, 250, 0), (0, 0, 250), (200, 200, 200), (100, 100, 100), (250, 250, 0)]]
    assert len(pairs(prints_of(discs))) == 0


def test_a_large_cluster_hangs_together_without_all_its_pairs(picture: Picture) -> None:
    rng = np.random.default_rng(0)
    frame = fingerprint(picture(1)).astype(int)
    frames = np.clip(frame + rng.integers(-2, 3, (3000, len(frame))), 0, 255).astype(np.uint8)
    others = prints_of([picture(seed) for seed in range(2, 600)])
    found = pairs(np.concatenate([frames, others]))
    assert len(found) < 3000 * 65
    clusters = Clusters(3598)
    for i, j in found.tolist():
        clusters.join(i, j)
    assert clusters.names() == [0] * 3000 + list(range(3000, 3598))


def test_cluster_names_are_their_first_members(picture: Picture) -> None:
    a, b, c = (fingerprint(picture(seed)) for seed in range(3))
    assert cluster(np.stack([a, b, a, c, b, c]), "xyxxyx") == ([0, 1, 0, 3, 1, 3], [])
    over_half = cluster(np.stack([a, b, a, c, b, a]), "xyxxyx")  # three of the four of class x
    assert over_half == ([0, 1, 2, 3, 1, 5], [[0, 2, 5]])


def test_a_class_that_looks_alike_altogether_is_not_one_copy(picture: Picture) -> None:
    """A fixed camera: the scene is always the same, what matters is small."""
    rng = np.random.default_rng(0)
    scene = fingerprint(picture(1)).astype(int)
    scenes = np.clip(scene + rng.integers(-7, 8, (40, len(scene))), 0, 255).astype(np.uint8)
    scenes[1] = np.clip(scenes[0].astype(int) + 1, 0, 255)  # one true copy among them
    others = prints_of([picture(seed) for seed in range(2, 12)])
    names, doubted = cluster(np.concatenate([scenes, others]), ["scene"] * 40 + ["other"] * 10)
    assert len(doubted) == 1
    assert len(doubted[0]) == 40
    assert names[1] == 0
    assert len(set(names)) == 49
