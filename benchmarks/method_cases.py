"""Where the methods are compared: a target dataset, networks that know a source, and how all of them are trained."""

import io
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from domain.catalogue import Catalogue, PartFacts
from domain.recipe import Part, Recipe, Refusal, refusals
from intake.limits import Limits
from intake.packs import Pack, open_pack, pack
from intake.prepare import prepare
from intake.preprocess.classification import scaled
from models.build import member
from models.facts import facts_of
from transfer.parts import every_part

DATA = Path(__file__).parents[2] / "shared" / "data"


@dataclass(frozen=True)
class Net:
    """A backbone, and the weights of a source; None begins from scratch."""

    backbone: str
    weights: str | None
    n_source_classes: int = 0  # of the head that the weights hold, 0 without one


@dataclass(frozen=True)
class Case:
    """One target. Its networks: `main` for most methods; `student` and `teacher`, the smaller and the larger one, for
    methods that need a teacher; `tokens`, a transformer, for methods that need one."""

    name: str
    similar: bool  # whether the target is like the source
    pack: str
    nets: Mapping[str, Net]
    settings: Mapping[str, Any]  # of every recipe: steps, optimizer, data, batch_norm
    source_pack: str | None = None
    per_net: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # settings of one network that differ
    instead: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # params where a default cannot be
    complete: bool = True  # every method, or only those on which a finding hangs

    @cached_property
    def content(self) -> Pack:
        return open_pack(Path(self.pack))

    def recipe(self, net: str, slots: Mapping[str, Part], *, seed: int, scratch: bool = False) -> Recipe:
        """The settings of this case with the parts given; without weights everything learns at one rate."""
        own = self.nets[net]
        scratch = scratch or own.weights is None
        values: dict[str, Any] = {**self.settings, **self.per_net.get(net, {}), "seed": seed, **slots}
        if scratch:
            values |= {"optimizer": {**values["optimizer"], "inner_ratio": 1.0}, "batch_norm": "train"}
        kind = f"scratch:{own.backbone}" if scratch else "src_0"
        return Recipe.model_validate({"task": "classification", "source": kind, "backbone": own.backbone, **values})

    def refusals(self, net: str, recipe: Recipe, parts: tuple[PartFacts, ...]) -> list[Refusal]:
        """Why this recipe makes no sense here."""
        own = self.nets[net]
        offered = {
            "start": own.weights is not None,
            "source_head": own.n_source_classes > 0,
            "source_data": self.source_pack is not None,
            "teacher": "teacher" in self.nets,
        }
        facts = Catalogue(parts=parts, backbones=(facts_of(member(own.backbone)),), tasks=())
        return refusals(recipe, [need for need, given in offered.items() if given], facts)


def all_parts() -> tuple[PartFacts, ...]:
    return tuple(every_part())


# --- digits: A, the digits 0 to 4, is the source; B, the digits 5 to 9, the target

# Chosen so that plain fine-tuning beats training from scratch: with these the source is worth something. The sweep that
# showed it printed some other rows too; no method's own values were chosen by them.
DIGIT_SETTINGS: dict[str, Any] = {
    "steps": 150,
    "optimizer": {"lr_head": 0.05, "inner_ratio": 1.0},
    "data": {"batch_size": 25, "resolution": 32, "augmentation": 0.2, "flip": False},
    "batch_norm": "train",
}
# Features that bear shifts and stretches serve other digits better.
DIGIT_SOURCE: dict[str, Any] = {
    **DIGIT_SETTINGS,
    "steps": 1200,
    "data": {**DIGIT_SETTINGS["data"], "augmentation": 1.0},
}
# A transformer this small learns little under SGD in so few steps.
DIGIT_TOKENS: dict[str, Any] = {"optimizer": {"name": "adamw", "lr_head": 0.005, "inner_ratio": 0.4}}
# A smaller student has other widths than its teacher, so their Gram matrices cannot be compared.
OTHER_WIDTHS: dict[str, dict[str, Any]] = {"feature.fsp": {"guide": "source"}}
DIGIT_NETS = {"main": "tiny_resnet", "student": "tiny_smallnet", "teacher": "smallnet", "tokens": "tiny_vit"}
N_PER_DIGIT = 10  # in train, and as many in val; all other scans of B are test


def digit_packs(folder: Path) -> tuple[Path, Path]:
    """Packs of A and B. Of A 60 % are train, 20 % test."""
    halves: dict[str, dict[str, list[bytes]]] = {"a": {}, "b": {}}
    digits = load_digits()
    for picture, digit in zip(digits.images, digits.target, strict=True):
        file = io.BytesIO()
        Image.fromarray(np.rint(picture / 16 * 255).astype(np.uint8)).resize((32, 32), Image.Resampling.BILINEAR).save(
            file, "PNG"
        )
        halves["a" if digit < 5 else "b"].setdefault(str(digit), []).append(file.getvalue())
    for name, classes in halves.items():
        with zipfile.ZipFile(folder / f"{name}.zip", "w") as archive:
            for digit, files in classes.items():
                for number, content in enumerate(files):
                    archive.writestr(f"{digit}/{number:04}.png", content)
    n_least = min(len(files) for files in halves["b"].values())
    return (
        packed(folder / "a.zip", folder, "smallnet", 32, {"train": 0.6, "val": 0.2, "test": 0.2}),
        packed(folder / "b.zip", folder, "smallnet", 32, few(N_PER_DIGIT / n_least)),
    )


def digits_source(pack_a: Path) -> Case:
    """A from scratch: what makes the source weights."""
    nets = {name: Net(backbone, None) for name, backbone in DIGIT_NETS.items()}
    return Case("digits 0-4", False, str(pack_a), nets, DIGIT_SOURCE, per_net={"tokens": DIGIT_TOKENS})


def digits_target(pack_a: Path, pack_b: Path, weights: Mapping[str, str]) -> Case:
    """B, from networks that know A."""
    nets = {name: Net(backbone, weights[name], 5) for name, backbone in DIGIT_NETS.items()}
    return Case(
        "digits 5-9", True, str(pack_b), nets, DIGIT_SETTINGS, source_pack=str(pack_a),
        per_net={"tokens": DIGIT_TOKENS}, instead=OTHER_WIDTHS,
    )  # fmt: skip


# --- photographs

# Name, whether it is like ImageNet, the share of items in train, whether every method is trained on it. The ants and
# bees are ImageNet's own pictures.
PHOTOS = (("hymenoptera", True, 0.25, True), ("neu_surface", False, 0.034, False), ("blood_cells", False, 0.06, False))
# Working the attention out channel by channel takes a quarter of an hour a run.
QUICKLY: dict[str, dict[str, Any]] = {"feature.delta": {"weighting": "gradient"}}
# One rate for all stages, ten times what is usual: plain fine-tuning then forgets much of its source (KL of the source
# head above 5 nats; 0.6 at a fifth of the rate), so that a penalty towards the start has something to hold.
PHOTO_SETTINGS: dict[str, Any] = {
    "steps": 100,
    "optimizer": {"lr_head": 1e-2, "inner_ratio": 1.0},
    "data": {"batch_size": 16, "resolution": 64, "augmentation": 0.5, "flip": True},
    "batch_norm": "eval",  # with so few pictures train mode loses more than any method can win
}
CIFAR_SETTINGS: dict[str, Any] = {
    **PHOTO_SETTINGS,
    "steps": 150,
    "data": {"batch_size": 32, "resolution": 32, "augmentation": 0.5, "flip": True},
}


def photo_cases(data: Path, folder: Path) -> Iterator[Case]:
    """The cases whose pictures and weights lie in `data`."""
    files = {path.stem: str(path) for path in (data / "weights").glob("*.safetensors")}
    large, small = files.get("mobilenet_v2_in1k"), files.get("mobilenet_v2_w035_in1k_features")
    for name, similar, share, complete in PHOTOS:
        if large and small and (data / f"{name}.zip").exists():
            nets = {
                "main": Net("mobilenet_v2", large, 1000),
                "teacher": Net("mobilenet_v2", large, 1000),
                "student": Net("mobilenet_v2_w035", small),
            }
            made = packed(data / f"{name}.zip", folder, "mobilenet_v2", 64, few(share))
            yield Case(
                name, similar, str(made), nets, PHOTO_SETTINGS, instead={**OTHER_WIDTHS, **QUICKLY}, complete=complete
            )
    deep, shallow = files.get("cifar_resnet56_cifar10"), files.get("cifar_resnet20_cifar10")
    if deep and shallow and (data / "cifar10_subset.zip").exists():
        nets = {"main": Net("cifar_resnet20", shallow, 10), "teacher": Net("cifar_resnet56", deep, 10)}
        nets["student"] = nets["main"]
        unseen = only_test_pictures(data / "cifar10_subset.zip", folder / "cifar10_unseen.zip")
        made = packed(unseen, folder, "cifar_resnet20", 32, few(0.2))
        yield Case("cifar10_unseen", True, str(made), nets, CIFAR_SETTINGS, complete=False)


def only_test_pictures(archive: Path, out: Path) -> Path:
    """The pictures of CIFAR-10's own test split: the source weights were trained on all others."""
    with zipfile.ZipFile(archive) as given, zipfile.ZipFile(out, "w") as kept:
        for name in given.namelist():
            if Path(name).name.startswith("test_"):
                kept.writestr(name, given.read(name))
    return out


def few(share: float) -> dict[str, float]:
    """Few labels: `share` of the items train, as many choose, all others judge."""
    return {"train": share, "val": share, "test": 1 - 2 * share}


def packed(archive: Path, folder: Path, backbone: str, resolution: int, split: dict[str, float]) -> Path:
    """The pack of an archive, made once per folder; the same archive gives the same splits."""
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{archive.stem}-{resolution}"
    items = folder / f"{archive.stem}-items.zip"
    if not (target / "pack.json").exists():
        prepare(archive, items, task="classification", options={"split": split}, limits=Limits())
        facts = facts_of(member(backbone)).preprocessing
        canvas, crop = scaled(facts.resize, facts.crop, resolution)
        pack(items, target, resize=canvas, crop=crop, interpolation=facts.interpolation)
    return target
