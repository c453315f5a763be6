"""What is claimed of a sampler, and what a certificate measured."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from jaxinf import process
from jaxinf.process import Gaussian
from jaxinf.testing.exact import Build, Denoiser, Law, spaced


@dataclass(frozen=True)
class Claims:
    """What a sampler's author says of it. What is None is measured, and gets no verdict."""

    order: float | int | None = None
    """Order of a deterministic sampler's end points."""
    deterministic: bool = True
    """Whether it draws no noise after the start."""
    weak_order: float | int | None = None
    """Order of a stochastic sampler's law."""
    grid: Callable[[Gaussian, int], Any] | None = None
    """(process, steps) -> the times, or the ``sampler.Plan``, of a sampler that makes its own and
    does not look at those which it is handed. None: it walks the times that it is handed."""
    local: bool = True
    """Whether a step depends on its own two times and on what was before, so that a short run is a
    part of a long one. EDM's churn, which depends on the number of steps, is not local."""
    independent_of_batch: bool = True
    """Whether a sample does not depend on the others of its batch."""
    calls: Callable[[np.ndarray], float] | None = None
    """times -> how often the denoiser is called for each example."""
    fresh: Callable[[Gaussian, float, float], Any] | None = None
    """(process, t, s) -> standard deviation of the noise that one step from t to s adds."""
    processes: tuple[Gaussian, ...] | None = None
    """The processes that it runs on; by default one that explodes and one that preserves variance.
    """
    floor: float = 1e-11
    """Errors below this are rounding: 1e-11 in float64, 1e-5 or so for a sampler in float32."""


@dataclass(frozen=True)
class Row:
    """One law, measured."""

    law: str
    claim: str
    measured: str
    tolerance: str
    verdict: bool | None
    """Whether the claim holds; None where nothing was claimed."""
    meaning: str
    """What it means where it fails, and what to look for."""


@dataclass(frozen=True)
class Curve:
    """An error against the number of calls."""

    law: str
    calls: np.ndarray
    errors: np.ndarray
    order: float | int | None
    """The order claimed."""


@dataclass(frozen=True)
class Trial:
    """A sampler on one process."""

    build: Build
    claims: Claims
    process: Gaussian
    seed: int

    @property
    def name(self) -> str:
        """The process's name."""
        return type(self.process.schedule).__name__

    def times(self, steps: int) -> np.ndarray:
        """Return the times that are walked in so many steps."""
        if self.claims.grid is None:
            return spaced(self.process, steps)
        grid = self.claims.grid(self.process, steps)
        return np.asarray(getattr(grid, "times", grid), np.float64)

    def run(self, law: Law, times: np.ndarray, x: np.ndarray, seed: int = 0) -> np.ndarray:
        """Return the end points of the starts x."""
        return self.watched(Denoiser(self.process, law), times, x, seed)

    def watched(
        self, denoise: Denoiser, times: np.ndarray, x: np.ndarray, seed: int = 0
    ) -> np.ndarray:
        """Run with a denoiser that is given, and check what comes back."""
        out = np.asarray(self.build(self.process, times)(denoise, x.copy(), self.seed + seed))
        if out.shape != x.shape:
            raise ValueError(
                f"run(denoise, x_T, seed) must return the samples, of x_T's shape {x.shape}; it "
                f"returned {out.shape}"
            )
        return out.astype(np.float64)


def processes(claims: Claims) -> tuple[Gaussian, ...]:
    """Return the processes on which the claims are checked."""
    if claims.processes is not None:
        return claims.processes
    return process.gaussian(process.edm()), process.gaussian(process.cosine(t_max=0.995))


def z_bound(count: int) -> float:
    """Return what the largest of ``count`` |z| exceeds as rarely as one |z| exceeds 4."""
    return -NormalDist().inv_cdf(NormalDist().cdf(-4.0) / count)


def kolmogorov(count: int) -> float:
    """Return what the largest error of an empirical distribution exceeds as rarely as |z| does 4.

    Reference: The Tight Constant in the Dvoretzky-Kiefer-Wolfowitz Inequality, Massart, 1990.
    """
    return math.sqrt(math.log(1 / NormalDist().cdf(-4.0)) / (2 * count))


def check(claims: Claims) -> None:
    """Raise on claims that contradict each other."""
    if claims.deterministic and (claims.weak_order is not None or claims.fresh is not None):
        raise ValueError(
            "weak_order and fresh are claims of a stochastic sampler; pass deterministic=False, or "
            "claim order instead"
        )
    if not claims.deterministic and claims.order is not None:
        raise ValueError(
            f"a stochastic sampler has a weak order; claim weak_order={claims.order:g} in place of "
            f"order={claims.order:g}"
        )
    if claims.fresh is not None and (claims.grid is not None or not claims.local):
        raise ValueError(
            "fresh is measured on single steps, which a sampler with its own grid, or with noise "
            "that depends on the number of steps, does not make; leave out fresh, or let the "
            "sampler walk the times that it is handed (grid=None, local=True)"
        )
    if claims.processes is not None and not claims.processes:
        raise ValueError("processes is empty; leave it out for the two usual ones")
