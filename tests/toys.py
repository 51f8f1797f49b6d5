"""Toy trials: packs of small coloured pictures that a network can learn, and orders to train on them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import save_file

from domain.catalogue import PartFacts
from domain.job import Objective
from domain.lot import LotOrder, SourceFiles, TeacherFiles, TrialOrder
from domain.recipe import Part, Recipe
from domain.trial import Report
from models.build import build
from transfer.fit import Fit

SETTINGS: dict[str, Any] = {
    "optimizer": {"lr_head": 0.05, "inner_ratio": 0.5, "grad_clip": 1.0},
    "data": {"batch_size": 16, "resolution": 32, "augmentation": 0.5, "flip": True},
}


def write_pack(
    folder: Path, *, n_per_class: int = 20, n_classes: int = 3, canvas: int = 36, crop: int = 32, seed: int = 0,
    n_folds: int = 5, noise: float = 40.0,
) -> Path:  # fmt: skip
    """Pictures whose class is a colour and a direction of stripes, under noise; 60 % train, 20 % val, 20 % test."""
    rng = np.random.default_rng(seed)
    n = n_per_class * n_classes
    labels = np.repeat(np.arange(n_classes), n_per_class)
    colours = np.random.default_rng(99).uniform(60, 196, (n_classes, 3))
    at = np.arange(canvas)
    pictures = colours[labels][:, None, None, :] + rng.normal(0, noise, (n, canvas, canvas, 3))
    for c in range(n_classes):
        stripes = 30 * np.sin((at[None] * (c + 1) + at[:, None] * (n_classes - c)) / 4.0)
        pictures[labels == c] += stripes[None, :, :, None]
    place = np.tile(np.arange(n_per_class), n_classes) / n_per_class
    split = np.where(place < 0.6, 0, np.where(place < 0.8, 1, 2)).astype(np.int8)
    fold = np.where(split == 2, -1, np.arange(n) % n_folds).astype(np.int8)
    folder.mkdir(parents=True)
    np.save(folder / "pixels.npy", pictures.clip(0, 255).astype(np.uint8))
    np.save(folder / "labels.npy", labels.astype(np.int64))
    np.save(folder / "split.npy", split)
    np.save(folder / "fold.npy", fold)
    facts = {
        "n": n, "canvas": canvas, "crop": crop, "resize": canvas, "interpolation": "bilinear",
        "classes": [f"class {c}" for c in range(n_classes)], "ids": [f"{i:064x}" for i in range(n)],
        "content_hash": "toy",
    }  # fmt: skip
    (folder / "pack.json").write_text(json.dumps(facts), "utf-8")
    return folder


def write_source(path: Path, backbone: str = "tiny_smallnet", *, n_classes: int = 7, seed: int = 11) -> Path:
    """A source: a network with weights that no other seed gives, its head included."""
    save_file(
        {n: t.contiguous() for n, t in build(backbone, n_classes=n_classes, seed=seed).state_dict().items()}, path
    )
    return path


def make_recipe(backbone: str = "tiny_smallnet", **given: Any) -> Recipe:
    """A recipe with quick settings; slots may be given as (name, params)."""
    values: dict[str, Any] = {
        "task": "classification",
        "source": "src_1",
        "backbone": backbone,
        "steps": 12,
        **SETTINGS,
    }
    for key, value in given.items():
        if isinstance(value, tuple):
            values[key] = Part(name=value[0], params=value[1])
        elif isinstance(value, dict) and key in SETTINGS:
            values[key] = {**SETTINGS[key], **value}
        else:
            values[key] = value
    return Recipe.model_validate(values)


def demanded(*parts: PartFacts) -> dict[str, Any]:
    """What parts ask of the rest of the recipe, where that is not what `make_recipe` gives."""
    asked = {path: values[0] for part in parts for path, values in part.demands.items()}
    return {"batch_norm": "eval", **{path: value for path, value in asked.items() if "." not in path}}


def make_order(
    recipe: Recipe, pack: Path, source: Path | None, scratch: Path, *, n_folds: int = 1, objective: str = "accuracy",
    resume: Path | None = None, teacher: TeacherFiles | None = None, source_pack: Path | None = None,
    n_classes: int = 3, **given: Any,
) -> LotOrder:  # fmt: skip
    trial = TrialOrder(
        trial_id="tr_1", number=0, recipe=recipe, pack=str(pack), resume=None if resume is None else str(resume),
        source=SourceFiles(weights=None if source is None else str(source), n_classes=7),
        teachers=() if teacher is None else (teacher,), source_pack=None if source_pack is None else str(source_pack),
    )  # fmt: skip
    return LotOrder.model_validate({
        "lot_id": "lot_1", "fence": 1, "trials": (trial,), "objective": Objective.model_validate({"name": objective}),
        "n_folds": n_folds, "classes": tuple(f"class {c}" for c in range(n_classes)), "scratch": str(scratch), **given,
    })  # fmt: skip


def go(_: str) -> str:
    return "go"


def train(order: LotOrder) -> tuple[Fit, list[Report]]:
    """The whole lot, uninterrupted."""
    fit = Fit(order, stopped=go)
    return fit, list(fit)
