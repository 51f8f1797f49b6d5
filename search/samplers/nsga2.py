"""NSGA-II: a population that breeds, for several objectives and many trials.

Deb et al. 2002; parents are chosen by rank and crowding distance. Optuna's; the generation of a trial and the parents
of a generation are kept with the trials.
"""

import optuna

from search.asked import Asked

N_POPULATION = 20  # Optuna's 50 would see its second generation after most budgets


def build(asked: Asked) -> optuna.samplers.BaseSampler:
    return optuna.samplers.NSGAIISampler(population_size=N_POPULATION, seed=asked.seed)
