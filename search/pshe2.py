"""P-SHE2: parallel stochastic Hamiltonian exploration and exploitation, after PaddleHub's AutoDL Finetuner.

A swarm of particles in the cube [-1, 1]^d. Particle i, at x_i with momentum m_i, is drawn to its own best p_i and to
the best of all, g. After its t-th evaluation:

    m_i <- (1 - 3 alpha / t) m_i - alpha (x_i - p_i) - alpha (x_i - g)
    x_i <- x_i + alpha m_i
    x_ij <- x_ij + epsilon rho (1 - x_ij) if rho >= 0, else x_ij + epsilon rho (x_ij + 1);  rho ~ U(-1, 1), each j

This is Nesterov's method as an ordinary differential equation, X'' + (3/t) X' + grad f = 0 (Su, Boyd & Candès 2014),
on quadratic surrogates centred on p_i and g. Formula and constants were read in PaddleHub 1.8,
`paddlehub/autofinetune/autoft.py`; "SHE2: Stochastic Hamiltonian Exploration and Exploitation for Derivative-Free
Optimization", Xiong et al., 2019.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from search.cube import Array

ALPHA = 0.5
EPSILON = 0.2
N_PARTICLES = 5  # the published command's default


def draw(centre: Array, rng: np.random.Generator) -> Array:
    """A first place: half of the mass on either side of the centre, uniform on each."""
    rho = rng.uniform(-1, 1, centre.size)
    return np.asarray(centre + np.where(rho >= 0, 1 - centre, centre + 1) * rho)


def step(x: Array, m: Array, *, p: Array, g: Array, t: int, alpha: float = ALPHA) -> tuple[Array, Array]:
    """Place and momentum after the t-th evaluation (t >= 1), before the noise."""
    m = (1 - 3 * alpha / t) * m - alpha * (x - p) - alpha * (x - g)
    return x + alpha * m, m


def perturb(x: Array, rng: np.random.Generator, *, epsilon: float = EPSILON) -> Array:
    """Noise that keeps a point of the cube inside it, and draws it to the centre by epsilon / 2 on average."""
    rho = rng.uniform(-1, 1, x.size)
    return np.asarray(x + epsilon * rho * np.where(rho >= 0, 1 - x, x + 1))


@dataclass(slots=True)
class _Particle:
    x: Sequence[float] | Array | None = None  # None: nowhere, to be drawn
    m: Sequence[float] | Array | None = None  # None: at rest
    p: Sequence[float] | Array | None = None
    rp: float = math.inf
    stopped_at: tuple[float, float] = (math.inf, math.inf)  # decides where rp does not
    t: int = 0


class Swarm:
    """Ask and tell, one particle at a time and in any order. `r` is what is minimised; None says that a trial failed.

    The state follows from the tells alone: `ask` changes nothing, and a point is told with the momentum it was asked
    with.
    """

    def __init__(self, centre: Array, *, n_particles: int = N_PARTICLES) -> None:
        self.centre = centre
        self._particles = [_Particle() for _ in range(n_particles)]
        self._g: Sequence[float] | Array | None = None
        self._rg = math.inf

    @property
    def best(self) -> float:
        """The smallest r told so far."""
        return self._rg

    def tell(
        self, i: int, x: Sequence[float] | Array, m: Sequence[float] | Array, r: float | None,
        *, stopped_at: tuple[float, float] = (0.0, 0.0),
    ) -> None:  # fmt: skip
        """Particle `i` was tried at `x` with momentum `m`; `stopped_at` orders unfinished trials (r = inf) among each
        other, smaller is better.

        After a failure it is drawn anew and at rest: its momentum belonged to the place that failed.
        """
        particle = self._particles[i]
        if r is None:
            particle.x = particle.m = None
            return
        particle.x, particle.m, particle.t = x, m, particle.t + 1
        if (r, stopped_at) <= (particle.rp, particle.stopped_at):  # of equals the newer
            particle.p, particle.rp, particle.stopped_at = x, r, stopped_at
        self.tell_other(x, r)

    def tell_other(self, x: Sequence[float] | Array, r: float) -> None:
        """A point that no particle stood at: it can be the best of all. An unfinished one (r = inf) cannot."""
        if r <= self._rg and r < math.inf:
            self._g, self._rg = x, r

    def ask(self, i: int, rng: np.random.Generator) -> tuple[Array, Array]:
        """The next place of particle `i`, and its momentum."""
        particle = self._particles[i]
        if particle.x is None or particle.p is None:
            return draw(self.centre, rng), np.zeros_like(self.centre)
        x, p = np.asarray(particle.x), np.asarray(particle.p)
        m = np.zeros_like(x) if particle.m is None else np.asarray(particle.m)
        g = x if self._g is None else np.asarray(self._g)
        x, m = step(x, m, p=p, g=g, t=particle.t)
        return perturb(x, rng), m


class SharedSwarm:
    """The swarm as it was shipped, for reproducing its numbers: all particles share one momentum, in rounds.

    `[[0] * d] * P` made every row of the momenta and of the gradients the same list: only the last particle's gradient
    survived, and the one momentum was updated P times a round. With c = 1 - 3 alpha / t and
    G = alpha [(x_L - p_L) + (x_L - g)] of the last particle L:

        m <- c^P m - G (1 + c + ... + c^(P-1));   x_i <- x_i + alpha m for all i, then the noise
    """

    def __init__(self, centre: Array, *, n_particles: int = N_PARTICLES) -> None:
        self.m = np.zeros_like(centre)
        self._ps, self._rps = [centre] * n_particles, [math.inf] * n_particles
        self._g, self._rg = centre, math.inf
        self._t = 0

    def tell(self, xs: Sequence[Array], rs: Sequence[float]) -> list[Array]:
        """Places and results of one round, one of each for each particle: the next places, before the noise."""
        self._t += 1
        for i, r in enumerate(rs):
            if r <= self._rps[i]:
                self._ps[i], self._rps[i] = xs[i], r
        k = int(np.argmin(rs))
        if rs[k] <= self._rg:
            self._g, self._rg = xs[k], rs[k]
        c = 1 - 3 * ALPHA / self._t
        gradient = ALPHA * ((xs[-1] - self._ps[-1]) + (xs[-1] - self._g))
        self.m = c ** len(rs) * self.m - gradient * sum(c**j for j in range(len(rs)))
        return [x + ALPHA * self.m for x in xs]
