"""The linear probe of a whole trial against scikit-learn on the source's own features."""

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from sklearn.linear_model import LogisticRegression

from tests.toys import go, make_order, make_recipe, train
from transfer.bench import Bench
from transfer.closed_form import STRENGTHS
from transfer.evaluate import softmax
from transfer.setting import Setting


def test_a_trial_says_what_scikit_learn_says(pack: Path, source: Path, tmp_path: Path) -> None:
    """C = 1 / (n strength); nothing but the head differs from the source, batch norm's statistics included."""
    order = make_order(
        make_recipe(schedule=("linear_probe", {}), batch_norm="train"), pack, source, tmp_path, objective="log_loss"
    )
    fit, _ = train(order)
    outcome = fit.outcome("tr_1")
    weights = load_file(outcome.files["weights"])
    for name, tensor in load_file(source).items():
        if not name.startswith("head"):
            assert torch.equal(weights[name], tensor), name
    bench = Bench(Setting(order, order.trials[0], go), 0)
    with torch.no_grad():
        x, val = (
            torch.cat([bench.net.features(v) for v, _ in bench.batches(items)]).double().numpy()
            for items in (bench.train, bench.val)
        )
    strength = STRENGTHS[outcome.facts["phases"][0]["choice"]]
    reference = LogisticRegression(C=1 / (len(x) * strength), tol=1e-10, max_iter=50_000).fit(x, bench.train_labels)
    with np.load(outcome.files["predictions"]) as saved:
        np.testing.assert_allclose(softmax(saved["logits"]), reference.predict_proba(val), atol=1e-4)
