"""The 25-mode mixture under a linear observation: problems, exact posteriors, azula's methods."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np


class Problem(NamedTuple):
    """A mixture with unit covariances, and y = A x + noise e of one draw x of it."""

    weights: Any
    means: Any
    matrix: Any
    noise: Any
    y: Any
    x: Any


def problem(dim: int, observed: int, seed: int) -> Problem:
    """MCGDiff's problem of a seed: means (8 i, 8 j, 8 i, ...), random weights, A = U diag(s) V."""
    rng = np.random.default_rng([dim, observed, seed])
    corners = np.array([[8.0 * i, 8.0 * j] for i in range(-2, 3) for j in range(-2, 3)])
    means = np.tile(corners, (1, dim // 2))
    weights = rng.standard_normal(len(means)) ** 2
    weights /= weights.sum()
    u, s, v = np.linalg.svd(rng.standard_normal((observed, dim)), full_matrices=False)
    s = np.sort(rng.uniform(size=observed))[::-1]
    matrix = (u * s) @ v
    noise = rng.uniform() * s.max()
    x = means[rng.choice(len(means), p=weights)] + rng.standard_normal(dim)
    y = matrix @ x + noise * rng.standard_normal(observed)
    return Problem(weights, means, matrix, noise, y, x)


class Posterior(NamedTuple):
    """A mixture with one covariance for all its modes, and the log evidence."""

    log_evidence: float
    weights: np.ndarray
    means: np.ndarray
    factor: np.ndarray

    def sample(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Draw exactly."""
        k = rng.choice(len(self.weights), size=count, p=self.weights)
        z = rng.standard_normal((count, self.means.shape[1]))
        return self.means[k] + z @ self.factor.T


def posterior(p: Problem) -> Posterior:
    """The exact posterior, in float64."""
    a, dim = p.matrix, p.means.shape[1]
    s = a @ a.T + p.noise**2 * np.eye(len(a))
    gain = np.linalg.solve(s, a).T
    left = p.y - p.means @ a.T
    powers = np.einsum("ki,ij,kj->k", left, np.linalg.inv(s), left)
    joint = np.log(p.weights) - 0.5 * (powers + np.linalg.slogdet(2 * np.pi * s)[1])
    log_evidence = np.logaddexp.reduce(joint)
    covariance = np.eye(dim) - gain @ a
    factor = np.linalg.cholesky((covariance + covariance.T) / 2)
    means = p.means + left @ gain.T
    return Posterior(float(log_evidence), np.exp(joint - log_evidence), means, factor)


def azula(alpha: np.ndarray, sigma: np.ndarray) -> dict[str, Callable[..., np.ndarray]]:
    """Azula's methods as functions of (problem, seed, count), along given levels of noise.

    Its DPS divides by the norm of the residuals of the whole batch: its zeta, 1 for one example, is
    here the root of their number.
    """
    import torch
    from azula.denoise import Denoiser, DiracPosterior
    from azula.guidance.dps import DPSSampler
    from azula.guidance.mmps import MMPSDenoiser
    from azula.guidance.pgdm import PGDMSampler
    from azula.guidance.tds import TDSSampler
    from azula.guidance.tmpd import TMPDenoiser
    from azula.linalg.covariance import IsotropicCovariance
    from azula.noise import Schedule
    from azula.sample import DDPMSampler

    steps = len(alpha) - 1
    levels = torch.tensor(np.stack([alpha, sigma])[:, ::-1].copy(), dtype=torch.float32)

    class Table(Schedule):
        """The levels, at t = i / steps."""

        def __call__(self, t: Any) -> Any:
            i = torch.round(t * steps).long()
            return levels[0, i], levels[1, i]

    class Mixture(Denoiser):
        """E[x_0 | x_t] of the mixture."""

        def __init__(self, p: Problem) -> None:
            super().__init__()
            self.schedule = Table()
            self.log_weights = tensor(np.log(p.weights))
            self.means = tensor(p.means)

        def forward(self, x_t: Any, t: Any) -> Any:
            """Return the components' means by their responsibilities."""
            alpha, sigma = self.schedule(t)
            variance = alpha**2 + sigma**2
            powers = alpha * (x_t @ self.means.T - 0.5 * alpha * (self.means**2).sum(-1))
            mean = (self.log_weights + powers / variance).softmax(-1) @ self.means
            return DiracPosterior(mean=mean + alpha / variance * (x_t - alpha * mean))

    def tensor(values: Any) -> Any:
        return torch.tensor(np.asarray(values), dtype=torch.float32)

    def run(make: Callable[..., Any], p: Problem, seed: int, count: int) -> np.ndarray:
        torch.manual_seed(seed)
        matrix = tensor(p.matrix)
        sampler = make(p, Mixture(p), tensor(p.y), lambda x: x @ matrix.T)
        if hasattr(sampler, "zeta"):
            sampler.zeta = math.sqrt(count)
        return sampler(sampler.init((count, p.means.shape[1]))).numpy()

    along: dict[str, Any] = {"steps": steps, "silent": True}

    def mmps(p: Problem, d: Any, y: Any, a: Any, iterations: int | None = None) -> Any:
        cov_y = IsotropicCovariance(tensor(p.noise**2))
        iterations = len(p.y) if iterations is None else iterations
        return DDPMSampler(MMPSDenoiser(d, y, a, cov_y, iterations=iterations), **along)

    def tmpd(p: Problem, d: Any, y: Any, a: Any) -> Any:
        return DDPMSampler(TMPDenoiser(d, y, a, tensor(p.noise**2)), **along)

    def pigdm(p: Problem, d: Any, y: Any, a: Any) -> Any:
        inverse = tensor(np.linalg.pinv(p.matrix))
        return PGDMSampler(d, y, a, lambda y: y @ inverse.T, **along)

    def dps(p: Problem, d: Any, y: Any, a: Any) -> Any:
        return DPSSampler(d, y, a, **along)

    def tds(p: Problem, d: Any, y: Any, a: Any) -> Any:
        u, s, _ = np.linalg.svd(p.matrix)
        turn, scales = tensor(u), tensor(s)

        def twist(x: Any, r: Any) -> Any:
            """Log N(y; A x, noise^2 + r^2 / (1 + r^2) A A^T), in A's own directions."""
            variance = p.noise**2 + scales**2 * r**2 / (1 + r**2)
            return -0.5 * ((y - a(x)) @ turn) ** 2 / variance - 0.5 * variance.log()

        return TDSSampler(d, twist, **along)

    makers = {"MMPS": mmps, "MMPS, 1 step": partial(mmps, iterations=1), "TMPD": tmpd,
              "PiGDM": pigdm, "DPS": dps, "TDS": tds}  # fmt: skip

    return {f"azula {name}": partial(run, make) for name, make in makers.items()}
