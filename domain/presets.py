"""Three ways to search: what a job gets that says how much it is worth, and no more than that.

fast      Something usable within a quarter of an hour. Small networks at three quarters of their resolution, a quarter
          of the usual steps, and the dimensions that matter most wherever fine-tuning was measured: rates, strengths,
          depth, steps. Every trial is tried at the lowest resolution first, at a third of the cost, and the median rule
          stops what lags behind. One fit per trial, one network as the answer.
balanced  The default. The twelve dimensions recommended for image classification, crops and mirroring beside them, and
          three networks from small to middling. Thirty trials: three are anchors and a sampler's first ten or so are
          random, so that fewer would hardly be a search.
best      What a night on a GPU buys: larger networks, twice the steps, and the settings that seldom matter and
          sometimes do (batch norm, label smoothing, rates by depth, averaged weights, a head that is solved first).
          Three folds however large `val` is, so that a hundred trials do not find the luckiest split; the best three
          are trained again with two other seeds before one is chosen, and soups and ensembles may win.

Whatever a request names itself stands in place of the preset's. The parts of a budget are ends, not aims: the search is
over with whichever comes first.
"""

from pydantic import BaseModel, ConfigDict, Field

from domain.job import Budget, Confirm


class Preset(BaseModel):
    """What a preset decides, as data."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    summary: str
    budget: Budget
    sources: tuple[str, ...]  # those of them that are published
    pruner: str = "median"
    low_resolution: bool = False  # whether trials are tried at the lowest resolution first
    n_folds: int | None = None  # None: by the size of val
    confirm: Confirm | None = None
    combine: bool = True
    # --- of the space
    searched: tuple[str, ...]  # settings that are searched; the others stay at their fixed values
    parts: dict[str, tuple[str, ...]] = Field(default_factory=dict)  # slot -> what is searched beside the usual parts
    usual_steps: float = 1.0  # the default, in units of the rule for the size of the dataset
    around_steps: float = 4.0  # and how far the range goes up and down from there
    resolution: float = 1.0  # the default, as a share of the backbone's own


_RATES = ("optimizer.lr_head", "optimizer.inner_ratio", "steps")
_USUAL = (
    *_RATES, "optimizer.momentum", "data.resolution", "data.mixup_alpha", "data.batch_size", "data.augmentation",
    "data.flip",
)  # fmt: skip
PRESETS: dict[str, Preset] = {
    "fast": Preset(
        summary="small networks and few dimensions: something usable within a quarter of an hour",
        budget=Budget(trials=12, wall_s=15 * 60),
        sources=("torchvision:mobilenet_v3_small", "torchvision:resnet18"),
        low_resolution=True, combine=False, n_folds=1, searched=(*_RATES, "data.flip"),
        usual_steps=0.25, around_steps=2.0, resolution=0.75,
    ),
    "balanced": Preset(
        summary="the recommended dimensions over three networks, up to two hours",
        budget=Budget(trials=30, wall_s=2 * 3600),
        sources=("torchvision:mobilenet_v3_large", "torchvision:resnet18", "torchvision:resnet50"),
        searched=_USUAL,
    ),
    "best": Preset(
        summary="a night on a GPU: larger networks, folds, several seeds for the best, ensembles",
        budget=Budget(trials=100, wall_s=12 * 3600),
        sources=(
            "torchvision:resnet50", "torchvision:mobilenet_v3_large", "torchvision:efficientnet_v2_s",
            "torchvision:convnext_tiny", "torchvision:vit_b_16",
        ),
        n_folds=3, confirm=Confirm(top=3, seeds=2),
        searched=(*_USUAL, "batch_norm", "data.label_smoothing", "optimizer.stage_decay"),
        parts={"averaging": ("ema",), "schedule": ("lp_ft",)},
        usual_steps=2.0,
    ),
}  # fmt: skip
