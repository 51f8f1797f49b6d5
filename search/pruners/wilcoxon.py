"""Stops a trial across folds once its folds are worse than the best trial's, fold by fold.

    d_k = y_k - y*_k     loss of fold k at the end of its fit, minus that of the best finished trial on the same fold
    stop if  P(W >= w | H0: d symmetric around 0)  <=  1/8      the one-sided signed-rank test of Wilcoxon (1945)

Folds pair the trials: what makes one fold hard makes it hard for both. With n folds all worse the probability is 2^-n,
so that nothing can be told before the third fold: a job with fewer folds is refused.
"""

from collections.abc import Sequence

from scipy.stats import wilcoxon

from search.fits import ranked_fits
from search.tracks import Pruner, Track, best_complete

LARGEST_P = 1 / 8


class Wilcoxon:
    def stops(self, track: Track, others: Sequence[Track], /) -> bool:
        best = best_complete(others)
        if best is None:
            return False
        both = [fit.end for fit in ranked_fits(track.n_folds) if fit.end in track.grid and fit.end in best.grid]
        differences = [track.grid[end] - best.grid[end] for end in both]
        if 0.5 ** len(differences) > LARGEST_P or not any(differences):
            return False
        return bool(wilcoxon(differences, alternative="greater", zero_method="zsplit").pvalue <= LARGEST_P)


def build() -> Pruner:
    return Wilcoxon()
