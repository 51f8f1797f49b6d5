"""Weights at rest: safetensors files in Graft's naming or torchvision's, and the start of a trial read from them."""

import os
import tempfile
from collections.abc import Iterator, Mapping
from http.client import HTTPException
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torchvision.models import get_weight

from domain.errors import Invalid, Unavailable
from models.build import Member, member, outline
from models.network import HEAD, Network

SHOWN = 5  # names of weights in a message
Weights = dict[str, Tensor]


class Start(NamedTuple):
    """Where a trial starts: clones that no later step changes. Everything is empty for a start from scratch.

    weights  the backbone's parameters by name, as loaded (w0)
    buffers  the backbone's batch-norm statistics by name
    head     the file's own head, by name inside the head (`weight`, `bias`); None if it has none
    """

    weights: Weights
    buffers: Weights
    head: Weights | None

    @property
    def n_classes(self) -> int | None:
        """Classes of the source, if its head came along."""
        if self.head is None:
            return None
        return len(self.head["bias" if "bias" in self.head else "2.bias"])


def load_start(network: Network, file: Path | None, *, with_head: bool = False) -> Start:
    """Load a file's backbone weights into `network` and return them as the start of the trial.

    The file's head is returned, not loaded, unless `with_head` asks for it (a teacher, a finished checkpoint);
    the network must then have as many classes. `file` None leaves the fresh weights: a start from scratch.
    Half precision is widened. Invalid("model_incompatible") names the first weights that are missing, not known,
    of another shape, or not finite; the network is then unchanged.
    """
    if file is None:
        return Start({}, {}, None)
    weights, _ = read_weights(file)
    return start_from(network, weights, with_head=with_head)


def start_from(network: Network, weights: Mapping[str, Tensor], *, with_head: bool = False) -> Start:
    """As `load_start`, from tensors in memory."""
    backbone, head = rename(weights, member(network.backbone))
    own = {name: tensor for name, tensor in network.state_dict().items() if network.stage_of(name) != HEAD}
    own_head = {f"{HEAD}.{name}": tensor for name, tensor in network.head.state_dict().items()}
    wanted = own | own_head if with_head else own
    given = {name: _widened(tensor, name) for name, tensor in backbone.items()}
    given_head = {name: _widened(tensor, name) for name, tensor in head.items()}
    loaded = given | given_head if with_head else given
    _check(network.backbone, wanted, loaded)
    network.load_state_dict(loaded, strict=False)
    parameters = {name for name, _ in network.named_parameters()}
    return Start(
        weights={name: given[name].clone() for name in own if name in parameters},
        buffers={name: given[name].clone() for name in own if name in given and name not in parameters},
        head={name.removeprefix(f"{HEAD}."): tensor.clone() for name, tensor in given_head.items()} or None,
    )


def rename(weights: Mapping[str, Tensor], entry: Member) -> tuple[Weights, Weights]:
    """The backbone's and the head's weights in Graft's naming, from that or torchvision's.

    A head of another form than ours (torchvision's place for it holds something else) is left out. A head that is a 1x1
    convolution of the pooled features is a linear layer, and is read as one.
    """
    anatomy = outline(entry.name)
    prefixes = dict(anatomy.names)
    if anatomy.head_name:
        prefixes[anatomy.head_name] = HEAD
    parallel = bool(weights) and all(name.startswith("module.") for name in weights)  # saved from DataParallel
    backbone: Weights = {}
    head: Weights = {}
    for name, tensor in weights.items():
        theirs = name.removeprefix("module.") if parallel else name
        if any(theirs == prefix or theirs.startswith(f"{prefix}.") for prefix in anatomy.left_out):
            continue
        graft = _translated(theirs, prefixes)
        if graft.partition(".")[0] == HEAD:
            head[graft] = tensor.flatten(1) if tensor.shape[2:] == (1, 1) else tensor
        elif not (anatomy.head_scope and graft.startswith(f"{anatomy.head_scope}.")):
            backbone[graft] = tensor
    return backbone, head if _is_head(head) else {}


def read_weights(path: Path) -> tuple[Weights, dict[str, str]]:
    """The tensors and the metadata of a safetensors file; Invalid("model_format_unsafe") if it is not one."""
    try:
        with safe_open(path, framework="pt", device="cpu") as opened:
            return {name: opened.get_tensor(name) for name in opened.keys()}, opened.metadata() or {}  # noqa: SIM118
    except SafetensorError as error:
        detail = f"{path.name} is not a safetensors file ({error}); convert it with `graft convert`"
        raise Invalid("model_format_unsafe", detail) from error


def save_weights(
    weights: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None, *, durable: bool = True
) -> None:
    """Write tensors as safetensors: to a temporary name, synced, then renamed, so the file is whole or absent.

    `durable` False leaves out the syncs, for a file that is copied to its place right away.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    try:
        save_file(dict(_alone(weights)), temporary, metadata={"format": "pt", **(metadata or {})})
        if durable:
            _sync(Path(temporary))
        Path(temporary).replace(path)
        if durable:
            _sync(path.parent)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _alone(weights: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Tensors that share no memory, as safetensors wants them."""
    seen = set()
    for name, tensor in weights.items():
        own = tensor.detach().cpu().contiguous()
        place = own.untyped_storage().data_ptr()
        yield name, own.clone() if place in seen else own
        seen.add(place)


def torchvision_file(backbone: str, weights_dir: Path | None = None) -> Path:
    """The safetensors file of torchvision's weights: `<weights_dir>/<backbone>.safetensors`, downloaded if absent.

    Without a folder they are kept in `~/.cache/graft/weights`.

    Unavailable("weights_unavailable") says how to put the file there by hand where nothing can be downloaded.
    """
    weights_dir = weights_dir or Path.home() / ".cache" / "graft" / "weights"
    file = weights_dir / f"{backbone}.safetensors"
    if file.exists():
        return file
    published = member(backbone).variant.weights
    if published is None:
        raise Invalid("weights_unknown", f"torchvision publishes no weights for {backbone}; put them at {file}")
    enum = get_weight(published)
    try:
        weights_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".download-", dir=weights_dir) as folder:
            state = enum.get_state_dict(progress=False, check_hash=True, model_dir=folder, weights_only=True)
    except (OSError, HTTPException, RuntimeError) as error:  # no route, half an answer, or bytes of another hash
        detail = (
            f"the weights of {backbone} could not be fetched from {enum.url} ({error}); "
            f"download that file where there is a network, turn it into safetensors with `graft convert`, "
            f"and put it into the weights folder as {file.name}"
        )
        raise Unavailable("weights_unavailable", detail, url=enum.url, file=str(file)) from error
    save_weights(state, file, {"source": published, "url": enum.url})
    return file


def _translated(name: str, prefixes: Mapping[str, str]) -> str:
    """`name` with the longest known prefix replaced; unchanged if there is none."""
    words = name.split(".")
    for n in range(len(words), 0, -1):
        prefix = ".".join(words[:n])
        if prefix in prefixes:
            return ".".join([prefixes[prefix], *words[n:]])
    return name


def _is_head(head: Weights) -> bool:
    linear = {f"{HEAD}.weight", f"{HEAD}.bias"}
    mlp = {f"{HEAD}.{layer}.{kind}" for layer in (0, 2) for kind in ("weight", "bias")}
    return set(head) in (linear, mlp)


def _widened(tensor: Tensor, name: str) -> Tensor:
    if name.endswith("num_batches_tracked"):
        return tensor.to(torch.int64).reshape(())
    return tensor.to(torch.float32)


def _check(backbone: str, wanted: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> None:
    missing = [name for name in wanted if name not in given and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in given if name not in wanted]
    both = [name for name in wanted if name in given]
    misshapen = [
        f"{name} {list(given[name].shape)} instead of {list(wanted[name].shape)}"
        for name in both
        if given[name].shape != wanted[name].shape
    ]
    broken = [name for name in both if not bool(torch.isfinite(given[name]).all())]
    faults = {"missing": missing, "not known": unexpected, "of another shape": misshapen, "not finite": broken}
    told = [f"{len(names)} {fault} ({_first(names)})" for fault, names in faults.items() if names]
    if told:
        raise Invalid(
            "model_incompatible",
            f"these are not the weights of {backbone}: {'; '.join(told)}",
            **{fault.replace(" ", "_"): names[:SHOWN] for fault, names in faults.items() if names},
        )


def _first(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
