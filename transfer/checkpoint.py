"""Checkpoints: from a recipe and a file of weights back to the network that was trained."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from domain.catalogue import Preprocessing
from domain.recipe import Recipe
from intake.packs import Pack
from models.build import build, member
from models.ensemble import Ensemble
from models.facts import preprocessing_of
from models.network import Network
from models.weights import read_weights, start_from
from transfer.parts import bind_all
from transfer.phase import Site

MEMBERS = "members"


def open_checkpoint(recipe: Recipe, weights: Path, n_classes: int) -> Network | Ensemble:
    """The trained network, on the CPU, in evaluation mode; several of them if the trial has kept its generations.

    Invalid("model_incompatible") if the file holds the weights of another network.
    """
    tensors, _ = read_weights(weights)
    members = members_of(tensors)
    networks = [restore(recipe, each, n_classes) for each in members or [tensors]]
    return (Ensemble(networks) if members else networks[0]).eval()


def join_members(members: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The checkpoint of an ensemble."""
    return {f"{MEMBERS}.{m}.{name}": tensor for m, member in enumerate(members) for name, tensor in member.items()}


def members_of(tensors: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    """The members' weights in the checkpoint of an ensemble; none in that of a single network."""
    found: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith(f"{MEMBERS}."):
            _, member, rest = name.split(".", 2)
            found.setdefault(int(member), {})[rest] = tensor
    return [found[member] for member in sorted(found)]


def restore(recipe: Recipe, weights: Mapping[str, Tensor], n_classes: int) -> Network:
    """One network, from its tensors in memory."""
    network = build(recipe.backbone, n_classes=n_classes, head=recipe.head.kind)
    for part in bind_all(recipe):
        if part.slot == "surgery" and part.says("rebuild"):  # what other parts add is for training alone
            network = part.call("rebuild", network, Site(torch.Generator().manual_seed(0), n_classes)).net
    start_from(network, weights, with_head=True)
    return network


def preprocessing_at(recipe: Recipe, pack: Pack) -> Preprocessing:
    """The backbone's evaluation preprocessing, as the pack was made with."""
    native = preprocessing_of(member(recipe.backbone))
    made = {"resize": pack.resize, "crop": pack.crop, "interpolation": pack.interpolation}
    return native.model_copy(update=made)
