"""Kept activations: the same training as without, whoever computed them, and whatever became of the files."""

import json
import multiprocessing
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from models.build import members
from tests.toys import go, make_order, make_recipe, train, write_source
from transfer import activations, prefix, warm
from transfer.fit import Fit
from transfer.setting import Setting

FROZEN: dict[str, Any] = {"steps": 12, "schedule": ("freeze", {"depth": 2})}
FIXED = {"augmentation": 0.0, "flip": False}
VIEWS = {"augmentation": 0.5, "flip": True, "views": 2}


@pytest.fixture(autouse=True)
def fresh() -> None:
    warm.forget()


def trained(pack: Path, source: Path, scratch: Path, folder: Path | None, **given: Any) -> dict[str, torch.Tensor]:
    recipe = make_recipe(**{**FROZEN, "data": FIXED, **given})
    fit, _ = train(make_order(recipe, pack, source, scratch, activations=None if folder is None else str(folder)))
    outcome = fit.outcome("tr_1")
    assert outcome.state == "COMPLETE", outcome.error
    return load_file(outcome.files["weights"])


def same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def count_extractions(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int | None, int]]:
    """(depth, view, chunk) of everything that is computed from now on."""
    found: list[tuple[int, int | None, int]] = []
    whole = prefix.Prefix._extract

    def counted(self: prefix.Prefix, setting: Setting, net: Any, chunk: int, above: Any) -> None:
        found.append((self.depth, self._view, chunk))
        whole(self, setting, net, chunk, above)

    monkeypatch.setattr(prefix.Prefix, "_extract", counted)
    return found


@pytest.mark.parametrize("data", [FIXED, VIEWS])
def test_files_and_memory_hold_the_same_bits(data: dict[str, Any], pack: Path, source: Path, tmp_path: Path) -> None:
    in_memory = trained(pack, source, tmp_path / "memory", None, data=data, steps=40)
    warm.forget()
    written = trained(pack, source, tmp_path / "written", tmp_path / "shared", data=data, steps=40)
    warm.forget()
    read = trained(pack, source, tmp_path / "read", tmp_path / "shared", data=data, steps=40)
    assert same(in_memory, written)
    assert same(written, read)


def test_another_process_reads_what_was_written(
    pack: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained(pack, source, tmp_path / "1", tmp_path / "shared", data=VIEWS)
    warm.forget()  # as a new process would be
    extracted = count_extractions(monkeypatch)
    trained(pack, source, tmp_path / "2", tmp_path / "shared", data=VIEWS, seed=5)
    assert extracted == []


def test_what_is_kept_without_a_folder_is_written_for_others_once_there_is_one(
    pack: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained(pack, source, tmp_path / "probe", None)
    first = trained(pack, source, tmp_path / "1", tmp_path / "shared")
    warm.forget()
    extracted = count_extractions(monkeypatch)
    assert same(first, trained(pack, source, tmp_path / "2", tmp_path / "shared"))
    assert extracted == []


def test_views_are_shared_and_shown_in_turn(
    pack: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extracted = count_extractions(monkeypatch)
    trained(pack, source, tmp_path / "1", None, data=VIEWS, steps=20)
    assert sorted(extracted, key=str) == [(2, 0, 0), (2, 1, 0), (2, None, 0)]  # each once; None is for val


BACKBONES = ["tiny_smallnet", "tiny_mobilenet_v2", "tiny_vit"]
MINIATURES = sorted(name for name, entry in members().items() if name.startswith("tiny_"))
DEEPEST = 3  # cut of the job below


def cut_at(depth: int, pack: Path, source: Path, scratch: Path, backbone: str, **given: Any) -> dict[str, torch.Tensor]:
    """A trial above `depth` stages, of a job that cuts after one, two and three of them."""
    recipe = make_recipe(backbone, steps=12, schedule=("freeze", {"depth": depth}), data={**FIXED, **given})
    order = make_order(recipe, pack, source, scratch, activations=str(scratch.parent / "shared"))
    fit = Fit(order.model_copy(update={"cuts": (1, 2, DEEPEST)}), stopped=go)
    list(fit)
    return load_file(fit.outcome("tr_1").files["weights"])


def entries(job: Path) -> dict[int, Path]:
    """Of a job, by depth."""
    folders = [path for path in (job / "shared").iterdir() if not path.name.startswith(".")]
    return {json.loads((folder / activations.FACTS).read_text())["of"]["depth"]: folder for folder in folders}


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("data", [{}, VIEWS])
def test_one_pass_at_the_deepest_cut_fills_the_others(
    data: dict[str, Any], backbone: str, pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_source(tmp_path / "s.safetensors", backbone)
    own = {depth: cut_at(depth, pack, source, tmp_path / f"own-{depth}" / "s", backbone, **data) for depth in (1, 2)}
    warm.forget()
    cut_at(DEEPEST, pack, source, tmp_path / "job" / "3", backbone, **data)
    warm.forget()  # as another process would be
    extracted = count_extractions(monkeypatch)
    for depth in (1, 2):
        assert same(cut_at(depth, pack, source, tmp_path / "job" / str(depth), backbone, **data), own[depth])
    assert extracted == []


@pytest.mark.parametrize("backbone", MINIATURES)
def test_a_deeper_cut_begins_at_the_deepest_that_is_there(
    backbone: str, pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_source(tmp_path / "s.safetensors", backbone)
    own = cut_at(DEEPEST, pack, source, tmp_path / "own" / "3", backbone)
    warm.forget()
    cut_at(2, pack, source, tmp_path / "job" / "2", backbone)
    looked: list[Any] = []
    monkeypatch.setattr(prefix, "_looks", lambda *given: looked.append(given))
    assert same(cut_at(DEEPEST, pack, source, tmp_path / "job" / "3", backbone), own)
    assert not looked


def test_chunks_begin_wherever_each_is_found_and_a_damaged_one_is_repaired(
    pack: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (activations, prefix):
        monkeypatch.setattr(module, "CHUNK", 16)
    own = cut_at(DEEPEST, pack, source, tmp_path / "own" / "3", "tiny_smallnet")
    warm.forget()
    cut_at(1, pack, source, tmp_path / "job" / "1", "tiny_smallnet")
    cut_at(2, pack, source, tmp_path / "job" / "2", "tiny_smallnet")
    warm.forget()
    _damage_values(entries(tmp_path / "job")[2])  # its first chunk
    assert same(cut_at(DEEPEST, pack, source, tmp_path / "job" / "3", "tiny_smallnet"), own)
    warm.forget()
    extracted = count_extractions(monkeypatch)
    cut_at(2, pack, source, tmp_path / "job" / "2 again", "tiny_smallnet")
    assert extracted == []


def test_what_is_passed_is_not_kept_where_it_is_large(
    pack: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prefix, "MAX_PASSED_BYTES", 0)
    cut_at(DEEPEST, pack, source, tmp_path / "job" / "3", "tiny_smallnet")
    assert entries(tmp_path / "job").keys() == {DEEPEST}
    assert sum(found.n_bytes for found in prefix.SHARED._things.values()) == 0


def test_a_linear_probe_passes_val_on_to_trials_that_cut_before(
    pack: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(activations, "CHUNK", 4)
    monkeypatch.setattr(prefix, "CHUNK", 4)
    shared, probe = tmp_path / "shared", make_recipe(schedule=("linear_probe", {}))
    order = make_order(probe, pack, source, tmp_path / "probe", activations=str(shared))
    list(Fit(order.model_copy(update={"cuts": (1,)}), stopped=go))
    warm.forget()
    extracted = count_extractions(monkeypatch)
    trained(pack, source, tmp_path / "1", shared, data={"augmentation": 0.5}, schedule=("freeze", {"depth": 1}))
    assert extracted == []


def test_a_network_of_its_own_keeps_its_views_as_well(
    pack: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extracted = count_extractions(monkeypatch)
    trained(pack, source, tmp_path / "1", tmp_path / "shared", data=VIEWS, steps=20, surgery=("stochnorm", {}))
    assert sorted(extracted, key=str) == [(2, 0, 0), (2, 1, 0), (2, None, 0)]
    assert not (tmp_path / "shared").exists()  # it is nobody else's


@pytest.mark.parametrize("backbone", ["tiny_smallnet", "tiny_vit"])
def test_views_train_alike_kept_and_computed(
    backbone: str, pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_source(tmp_path / "s.safetensors", backbone)
    kept = trained(pack, source, tmp_path / "kept", None, backbone=backbone, data=VIEWS)
    warm.forget()
    monkeypatch.setattr(prefix, "MAX_BYTES", 0)
    computed = trained(pack, source, tmp_path / "computed", None, backbone=backbone, data=VIEWS)
    for name in kept:
        np.testing.assert_allclose(kept[name], computed[name], atol=1e-4, err_msg=name)


def test_an_interrupted_trial_reads_the_same_view(pack: Path, source: Path, tmp_path: Path) -> None:
    whole = trained(pack, source, tmp_path / "whole", None, data=VIEWS, steps=20)
    recipe = make_recipe(**{**FROZEN, "data": VIEWS, "steps": 20})
    answers = iter(["go"] * 9 + ["pause"] * 50)
    fit = Fit(make_order(recipe, pack, source, tmp_path / "half"), stopped=lambda _: next(answers))
    list(fit)
    assert fit.outcome("tr_1").state == "PAUSED"
    fit.save(tmp_path / "point", "tr_1")
    warm.forget()
    rest = Fit(make_order(recipe, pack, source, tmp_path / "rest", resume=tmp_path / "point"), stopped=go)
    list(rest)
    assert same(whole, load_file(rest.outcome("tr_1").files["weights"]))


def _entry(shared: Path) -> Path:
    (folder,) = (path for path in shared.iterdir() if not path.name.startswith("."))
    return folder


def _damage_values(folder: Path) -> None:
    with (folder / activations.VALUES).open("r+b") as file:
        file.seek(8)
        file.write(b"\xff\xff\xff\xff")


def _cut_short(folder: Path) -> None:
    with (folder / activations.VALUES).open("r+b") as file:
        file.truncate(100)


def _make_foreign(folder: Path) -> None:
    facts = json.loads((folder / activations.FACTS).read_text())
    facts["of"]["depth"] = 1
    (folder / activations.FACTS).write_text(json.dumps(facts))


def _spoil_facts(folder: Path) -> None:
    (folder / activations.FACTS).write_text("{")


@pytest.mark.parametrize("damage", [_damage_values, _cut_short, _make_foreign, _spoil_facts])
def test_a_damaged_or_foreign_entry_is_computed_again(
    damage: Any, pack: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = tmp_path / "shared"
    first = trained(pack, source, tmp_path / "1", shared)
    warm.forget()
    damage(_entry(shared))
    extracted = count_extractions(monkeypatch)
    assert same(first, trained(pack, source, tmp_path / "2", shared))
    assert extracted == [(2, None, 0)]
    warm.forget()
    assert same(first, trained(pack, source, tmp_path / "3", shared))
    assert extracted == [(2, None, 0)]  # and is whole again


def test_an_entry_may_be_evicted_under_its_reader(pack: Path, source: Path, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    first = trained(pack, source, tmp_path / "1", shared)
    shutil.rmtree(_entry(shared))
    assert same(first, trained(pack, source, tmp_path / "2", shared))  # this process still holds it
    warm.forget()
    assert same(first, trained(pack, source, tmp_path / "3", shared))


def _train_beside(barrier: Any, arguments: tuple[Any, ...]) -> None:
    barrier.wait()
    trained(*arguments)


def test_two_workers_fill_one_entry_at_once(pack: Path, source: Path, tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(2)
    workers = [
        context.Process(target=_train_beside, args=(barrier, (pack, source, tmp_path / name, tmp_path / "shared")))
        for name in ("a", "b")
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
        assert worker.exitcode == 0
    a, b = (load_file(tmp_path / name / "tr_1" / "weights.safetensors") for name in ("a", "b"))
    assert same(a, b)
    assert same(a, trained(pack, source, tmp_path / "c", tmp_path / "shared"))


def test_half_precision_is_kept_as_it_was_computed(tmp_path: Path) -> None:
    rows = torch.randn(70, 3).bfloat16()
    facts = {"of": "a test"}
    store = activations.created(tmp_path / "entry", facts, 70, rows)
    assert store is not None
    store.put(0, rows[:64])
    assert (store.has(0), store.has(1)) == (True, False)
    store.put(1, rows[64:])
    again = activations.opened(tmp_path / "entry", facts, 70)
    assert again is not None
    assert again.has(0)
    assert again.has(1)
    assert torch.equal(again.read(np.array([69, 0, 65])), rows[[69, 0, 65]])
    assert activations.opened(tmp_path / "entry", {"of": "another"}, 70) is None
    assert activations.opened(tmp_path / "entry", facts, 71) is None
