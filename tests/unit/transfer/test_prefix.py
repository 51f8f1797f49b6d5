"""Cached activations of frozen stages: the same training as without, only cheaper."""

import gc
import json
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.toys import make_order, make_recipe, train, write_source
from transfer import activations, loop, pace, prefix, warm
from transfer.setting import Found, Setting

FIXED = {"augmentation": 0.0, "flip": False}


@pytest.mark.parametrize("backbone", ["tiny_smallnet", "tiny_mobilenet_v2", "tiny_vit"])
@pytest.mark.parametrize("data", [FIXED, {"augmentation": 0.5}])
def test_caching_changes_nothing_but_rounding(
    backbone: str, data: dict[str, Any], pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_source(tmp_path / "s.safetensors", backbone)
    recipe = make_recipe(backbone, steps=8, schedule=("freeze", {"depth": 2}), data=data)
    cached, reports = train(make_order(recipe, pack, source, tmp_path / "cached"))
    warm.forget()
    monkeypatch.setattr(prefix, "MAX_BYTES", 0)  # nothing fits
    plain, others = train(make_order(recipe, pack, source, tmp_path / "plain"))
    one, two = (load_file(f.outcome("tr_1").files["weights"]) for f in (cached, plain))
    for name in one:
        np.testing.assert_allclose(one[name], two[name], atol=1e-4, err_msg=name)
    for report, other in zip(reports, others, strict=True):
        assert report.terms["val/log_loss"] == pytest.approx(other.terms["val/log_loss"], abs=1e-4)


def test_a_later_trial_reads_what_an_earlier_one_extracted(
    pack: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    warm.forget()
    extracted: list[int] = []
    whole = prefix.Prefix._extract

    def counted(self: prefix.Prefix, setting: Setting, net: Any, chunk: int, above: Any) -> None:
        extracted.append(chunk)
        whole(self, setting, net, chunk, above)

    monkeypatch.setattr(prefix.Prefix, "_extract", counted)
    for seed in range(3):
        recipe = make_recipe(steps=6, seed=seed, schedule=("freeze", {"depth": 3}), data=FIXED)
        train(make_order(recipe, pack, source, tmp_path / str(seed)))
    assert extracted == [0]
    train(make_order(make_recipe(schedule=("linear_probe", {})), pack, source, tmp_path / "probe"))
    assert extracted == [0]  # the probe needs the very same features


def test_training_uses_the_cache_only_where_it_is_exact(pack: Path, source: Path, tmp_path: Path) -> None:
    def keeps_looks(**given: Any) -> bool:
        found = []
        begin = loop.Loop.begin

        def watched(self: loop.Loop) -> None:
            found.append(self.kept is not None and self.kept.looks)
            begin(self)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loop.Loop, "begin", watched)
            recipe = make_recipe(**{"steps": 6, "schedule": ("freeze", {"depth": 2}), "data": FIXED, **given})
            assert train(make_order(recipe, pack, source, tmp_path))[0].outcome("tr_1").state == "COMPLETE"
        return bool(found[0])

    assert keeps_looks()
    assert keeps_looks(regularizer=("l2_sp", {}))
    assert not keeps_looks(data={**FIXED, "flip": True})
    assert not keeps_looks(data={**FIXED, "augmentation": 0.1})
    assert not keeps_looks(data={**FIXED, "mixup_alpha": 0.2})
    assert not keeps_looks(feature=("attention", {}))
    assert not keeps_looks(schedule=("freeze", {"depth": 0}))


def test_activations_are_read_item_by_item(pack: Path, source: Path, tmp_path: Path) -> None:
    order = make_order(make_recipe(), pack, source, tmp_path)
    setting = Setting(order, order.trials[0], lambda _: "go")
    net, _ = setting.borrow(0)
    net.eval()
    cache = prefix.Prefix(setting, 2)
    train_items, val_items = setting.items(0)
    assert cache.fill(setting, net, val_items)
    assert cache.fill(setting, net, train_items)
    picked = train_items[[5, 1, 30]]
    expected = net.prefix(setting.problem.evaluation_inputs(picked), 2)
    np.testing.assert_allclose(cache.read(picked).numpy(), expected.detach().numpy(), atol=1e-5)
    assert cache.read(picked).is_contiguous(memory_format=__import__("torch").channels_last)


def test_activations_outlive_the_trial_but_hold_on_to_none_of_it(pack: Path, source: Path, tmp_path: Path) -> None:
    warm.forget()
    order = make_order(make_recipe(), pack, source, tmp_path)
    setting = Setting(order, order.trials[0], lambda _: "go")
    net, _ = setting.borrow(0)
    cache = prefix.open_prefix(setting, 2, untouched=True)
    assert cache.fill(setting, net.eval(), setting.items(0)[1])
    gone = weakref.ref(setting)
    del setting
    gc.collect()
    assert gone() is None  # and with it the pictures, which on a GPU may be gigabytes
    assert cache.n_bytes > 0


def test_keeping_pays_where_less_is_computed_than_is_shown(pack: Path, source: Path, tmp_path: Path) -> None:
    """1.3 n_items n_looks <= n_shown T, where four trials share what lies in files; without a clock reading is free."""
    order = make_order(make_recipe(), pack, source, tmp_path)
    alone = Setting(order, order.trials[0], lambda _: "go")
    shared = order.model_copy(update={"activations": str(tmp_path)})
    together = Setting(shared, order.trials[0], lambda _: "go")
    net, _ = alone.borrow(0)

    def pays(setting: Setting, n_shown: int, n_items: int, n_looks: int) -> bool:
        return prefix.pays(setting, net, 2, n_shown=n_shown, n_items=n_items, n_looks=n_looks)

    assert pays(alone, 1300, 1000, 1)
    assert not pays(alone, 1299, 1000, 1)
    assert not pays(alone, 2599, 1000, 2)
    assert pays(together, 650, 1000, 2)
    assert not pays(together, 649, 1000, 2)
    assert not pays(together, 10**9, 1, 0), "a new look every epoch"


def test_a_clock_decides_whether_keeping_pays(pack: Path, source: Path, tmp_path: Path) -> None:
    """n_shown (c - r) >= 1.3 n_items n_looks (c + r) / T, by what is noted of this kind of machine; a trial that goes
    on elsewhere stays with what it has found."""
    order = make_order(make_recipe(), pack, source, tmp_path).model_copy(update={"paces": str(tmp_path / "paces")})

    def setting(found: Found | None = None) -> Setting:
        return Setting(order, order.trials[0], lambda _: "go", found)

    net, _ = setting().borrow(0)

    def pays(setting: Setting, n_shown: int) -> bool:
        return prefix.pays(setting, net.eval(), 2, n_shown=n_shown, n_items=1000, n_looks=1)

    pays(setting(), 10_000)
    (note,) = [n for n in (tmp_path / "paces").iterdir() if "computing_s" in json.loads(n.read_text())]
    told = json.loads(note.read_text())
    assert told["computing_s"] > 0
    assert told["reading_s"] > 0
    # c = 3, r = 1: 2 n >= 1.3 * 1000 * 4, so from 2600 items on.
    note.write_text(json.dumps(told | {"computing_s": 3.0, "reading_s": 1.0}))
    pace.KNOWN.clear()
    here = setting()
    assert pays(here, 2600)
    assert not pays(here, 2599)
    note.write_text(json.dumps(told | {"computing_s": 1.0, "reading_s": 2.0}))
    pace.KNOWN.clear()
    assert not pays(setting(), 10**9), "reading takes longer"
    assert pays(setting(here.found), 2600)
    assert here.found.keeping == {2: (3.0, 1.0)}


@pytest.mark.parametrize("backbone", ["tiny_smallnet", "tiny_mobilenet_v2", "tiny_resnet"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_at_one_batch_shape_cached_and_uncached_training_have_the_same_bits(
    precision: str, backbone: str, pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole chunks of activations, and batches of as many items."""
    for module in (activations, prefix):
        monkeypatch.setattr(module, "CHUNK", 16)
    source = write_source(tmp_path / "s.safetensors", backbone)
    recipe = make_recipe(backbone, steps=8, schedule=("freeze", {"depth": 2}), data={**FIXED, "batch_size": 16})

    def trained(name: str) -> dict[str, Any]:
        warm.forget()
        fit, _ = train(make_order(recipe, pack, source, tmp_path / name, precision=precision))
        found: dict[str, Any] = load_file(fit.outcome("tr_1").files["weights"])
        return found

    cached = trained("cached")
    monkeypatch.setattr(prefix, "MAX_BYTES", 0)
    uncached = trained("uncached")
    assert [name for name in cached if not torch.equal(cached[name], uncached[name])] == []


def test_entries_of_whatever_changes_the_bits_are_others(pack: Path, tmp_path: Path) -> None:
    def name_of(depth: int = 1, view: int | None = None, seed: int = 1, data: Any = None, **given: Any) -> str:
        source = write_source(tmp_path / f"{seed}.safetensors", seed=seed)
        order = make_order(make_recipe(data=data or {}), pack, source, tmp_path, activations=str(tmp_path))
        order = order.model_copy(update=given)
        setting = Setting(order, order.trials[0], lambda _: "go")
        opened = prefix.Prefix(setting, depth, view=view, folder=tmp_path)
        assert opened._folder is not None
        return opened._folder.name

    views = {"augmentation": 0.5, "flip": True, "views": 2}
    names = [
        name_of(), name_of(depth=2), name_of(view=0, data=views), name_of(view=1, data=views),
        name_of(view=1, data={**views, "augmentation": 0.6}), name_of(view=1, data={**views, "flip": False}),
        name_of(seed=2), name_of(precision="bfloat16"), name_of(n_threads=2), name_of(n_folds=3),
    ]  # fmt: skip
    assert len(set(names)) == len(names)
    assert name_of() == name_of(data={"label_smoothing": 0.1, "batch_size": 4}), "what looks at nothing changes nothing"
    facts = ["format", "folds", "torch", "weights", "backbone", "depth", "items", "pixels", "preprocessing", "view"]
    order = make_order(make_recipe(), pack, write_source(tmp_path / "s.safetensors"), tmp_path)
    found = prefix._facts(Setting(order, order.trials[0], lambda _: "go"), 1, None)
    assert set(facts) < found.keys(), "pixels are the resolution's: canvas, crop and how they were resized"
