"""NSGA-III: a population that breeds, for several objectives and many trials.

Deb & Jain 2014; survivors are chosen by rank and reference directions, made for more objectives than the three that a
job may have at most: with two or three, NSGA-II's crowding distance serves as well. Optuna's; the generation of a trial
and the parents of a generation are kept with the trials.
"""

import warnings

import optuna

from search.asked import Asked

N_POPULATION = 20  # Optuna's 50 would see its second generation after most budgets


def build(asked: Asked) -> optuna.samplers.BaseSampler:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.samplers.NSGAIIISampler(population_size=N_POPULATION, seed=asked.seed)
