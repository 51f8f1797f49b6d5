"""What a sampler may know when it is built: every ask builds it anew."""

from dataclasses import dataclass
from typing import Any

from domain.space import Space


@dataclass(frozen=True, slots=True)
class Asked:
    """One question for the next recipe. The history itself is read from the study, as Optuna's samplers do.

    `kept` lives as long as the study does in this process. It may hold what the history says, worked out before; a
    sampler that finds it empty must propose the same.
    """

    space: Space
    number: int  # of the trial asked for
    study_seed: int
    seed: int  # of (study seed, number, again)
    again: int  # proposals for this number that were refused before
    kept: dict[str, Any]
