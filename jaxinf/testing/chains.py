"""The laws of stochastic samplers: many chains, whose noises are unknown."""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np

from jaxinf.process import Gaussian
from jaxinf.testing.claims import Curve, Row, Trial, kolmogorov, z_bound
from jaxinf.testing.exact import Law, ends, levels, normal, time_at
from jaxinf.testing.flow import CHAINS, TOLERANCE

PLACES = (4.0, 0.7, 0.15)
"""Where short runs begin: sigma / alpha."""
WIDTH = 1e-4
"""How far they go, as a share of the time."""
SHORT = 4
"""Their steps."""
LAW = normal([0.7, -0.4], [0.6, 0.3])
STEPS = (48, 96)
LONG = 50_000
"""Draws of a long run."""
DOUBLED = (80, 160, 320, 640)


class Affine(NamedTuple):
    """A run on Gaussian data: x -> slope x + shift + noise, for each coordinate."""

    slope: np.ndarray
    noise: np.ndarray
    """What comes out from x = 0, shape (chains, d)."""


def _affine(trial: Trial, law: Law, times: np.ndarray, seed: int) -> Affine:
    """Run twice on the same noise, from 0 and from one standard deviation of the noise."""
    zero = np.zeros((CHAINS, len(law.means)))
    sigma = levels(trial.process, times[0])[1]
    noise = trial.run(law, times, zero, seed)
    moved = trial.run(law, times, zero + sigma, seed)
    return Affine(np.mean(moved - noise, axis=0) / sigma, noise)


def short_runs(trial: Trial) -> Iterator[Row]:
    """Four small steps, where the exact marginal must go over into the exact marginal.

    Starting in the marginal at t, a x + c + noise has mean a m_t + c and variance a^2 v_t + V; both
    must be the marginal's at s, up to the square of a step, which is far below what chains can
    tell. The slope a is exact, so that the chains' error is that of the small V alone.
    """
    z, steps, pairs = [], [], []
    for number, ratio in enumerate(PLACES):
        start = float(time_at(trial.process, np.array([ratio]))[0])
        times = start * (1 - WIDTH * np.arange(SHORT + 1) / SHORT)
        slope, noise = _affine(trial, LAW, times, 10 * number)
        single = trial.run(LAW, times[:2], np.zeros_like(noise), 10 * number + 1)
        (mean_t, var_t), (mean_s, var_s) = (
            LAW.moments(levels(trial.process, t)) for t in (times[0], times[-1])
        )
        variance = np.var(noise, axis=0, ddof=1)
        with np.errstate(divide="ignore", invalid="ignore"):
            shift = slope * mean_t + np.mean(noise, axis=0) - mean_s
            z += list(shift / np.sqrt(variance / CHAINS))
            z += list((slope**2 * var_t + variance - var_s) / (variance * math.sqrt(2 / CHAINS)))
            ratio = variance / (SHORT * np.var(single, axis=0, ddof=1)) - 1
            steps += list(ratio / (SHORT - 1))
            unit = (noise - np.mean(noise, axis=0)) / np.sqrt(variance)
            pairs += [np.mean(unit[:, 0] * unit[:, 1]), *np.mean(unit[1:] * unit[:-1], axis=0)]
    claimed = trial.claims.weak_order is not None
    worst = _largest(z)
    yield Row(
        f"short runs, {trial.name}",
        "the marginals are kept" if claimed else "-",
        f"|z| {worst:.1f} of {len(z)} means and variances",
        f"{z_bound(len(z)):.2f}",
        worst < z_bound(len(z)) if claimed else None,
        "drift and noise do not belong together: a coefficient of either is wrong, or the noise "
        "level that the step starts from is not the one that its noise made.",
    )
    error = 2 / math.sqrt(CHAINS) / (SHORT - 1)
    yield Row(
        f"noise of the steps, {trial.name}",
        "independent" if claimed else "-",
        f"correlation {_largest(steps):.4f}",
        f"{z_bound(len(steps)) * error:.4f}",
        _largest(steps) < z_bound(len(steps)) * error if claimed else None,
        "consecutive steps share their noise: draw anew in each step (a key split, not reused).",
    )
    bound = z_bound(len(pairs)) / math.sqrt(CHAINS)
    yield Row(
        f"noise of samples, coordinates, {trial.name}",
        "independent" if claimed else "-",
        f"correlation {_largest(pairs):.4f}",
        f"{bound:.4f}",
        _largest(pairs) < bound if claimed else None,
        "samples or coordinates share noise: draw it in the shape of the batch.",
    )


def fresh_noise(trial: Trial, claimed: Callable[[Gaussian, float, float], Any]) -> Iterator[Row]:
    """The noise of one step from one x, small and large, against the standard deviation claimed."""
    z = []
    for number, ratio in enumerate(PLACES):
        t, small, large = (
            float(t) for t in time_at(trial.process, np.array([ratio, 0.99 * ratio, ratio / 2]))
        )
        for s in (small, large):
            zero = np.zeros((CHAINS, 2))
            out = trial.run(LAW, np.array([t, s]), zero, 100 + number)
            wanted = float(claimed(trial.process, t, s)) ** 2
            z += list((np.var(out, axis=0, ddof=1) / wanted - 1) / math.sqrt(2 / CHAINS))
    worst = _largest(z)
    yield Row(
        f"fresh noise, {trial.name}",
        "as claimed",
        f"|z| {worst:.1f} of {len(z)} variances",
        f"{z_bound(len(z)):.2f}",
        worst < z_bound(len(z)),
        "a step adds more or less noise than it says, so it is another sampler than it says.",
    )


def exact_mean(trial: Trial) -> Iterator[Row]:
    """The mean of Gaussian data, free of the noise, so that its error shows its order.

    Runs of one seed have one noise, which their difference does not see: that from the mean on data
    of this mean, less that from 0 on data of mean 0, is the mean at the end.
    """
    errors, mean = [], LAW.means[:, 0]
    centred = replace(LAW, means=np.zeros_like(LAW.means))
    for steps in DOUBLED:
        times = trial.times(steps)
        start, end = (levels(trial.process, t)[0] for t in (times[0], times[-1]))
        zero = np.zeros((4, len(mean)))
        moved = trial.run(LAW, times, zero + start * mean) - trial.run(centred, times, zero)
        errors.append(float(np.max(np.abs(np.mean(moved, axis=0) - end * mean))))
    claimed = trial.claims.weak_order
    slope = _last_slope(errors, trial.claims.floor)
    yield Row(
        f"mean, {trial.name}",
        "-" if claimed is None else f"order {claimed:g}",
        f"slope {slope:.2f}, error {errors[-1]:.1e} at {DOUBLED[-1]} steps",
        f"slope at most {TOLERANCE} below",
        None if claimed is None else slope > claimed - TOLERANCE,
        "a coefficient of the drift, or of a correction, is off by less than chains can tell.",
    )


def _last_slope(errors: list, floor: float) -> float:
    """Return the order that the last doubling above the floor shows; infinity if none is above."""
    found = np.array(errors)
    if np.any(np.isnan(found)):
        return np.nan
    above = found[found > floor]
    return float(np.log2(above[-2] / above[-1])) if len(above) > 1 else np.inf


def long_runs(trial: Trial, calls: float) -> Iterator[Row | Curve]:
    """Chains from the start to the end: mean, variance and distribution at two numbers of steps.

    An error C / N^p at N and e at 2 N make 2^p e - C / N^p = 0. Slopes within 0.15 of p and the
    error of the chains leave a band, against which the difference is held.
    """
    moments, distances = [], []
    for steps in STEPS:
        times = trial.times(steps)
        moments.append(_moments(trial, times, steps))
        distances.append(_distances(trial, times, steps + 1))
    coarse, fine = np.array(moments)
    spread = np.sqrt(np.array([1.0, 2.0]) / LONG)
    yield Curve(
        f"law, {trial.name}",
        np.array(STEPS) * calls,
        np.max(np.abs(moments), axis=1),
        trial.claims.weak_order,
    )
    p = trial.claims.weak_order
    power = 2.0 ** (1 if p is None else p)
    rest = np.abs(power * fine - coarse)
    room = z_bound(2) * spread * np.hypot(power, 1)
    room = room + power * (2**TOLERANCE - 1) * np.abs(fine)
    yield Row(
        f"Gaussian, {trial.name}",
        "-" if p is None else f"mean and variance at weak order {p:g}",
        f"mean off by {coarse[0]:+.4f}, {fine[0]:+.4f}, variance by {coarse[1]:+.4f}, "
        f"{fine[1]:+.4f} at {STEPS[0]}, {STEPS[1]} steps; extrapolated {rest[0]:.4f}, "
        f"{rest[1]:.4f}",
        f"{room[0]:.4f}, {room[1]:.4f}",
        None if p is None else bool(np.all(rest < room)),
        "the law of the samples goes elsewhere than the data's, or at another order.",
    )
    gap = float(np.max(np.abs(power * distances[1] - distances[0])))
    band = (power + 1) * kolmogorov(LONG)
    band += power * (2**TOLERANCE - 1) * float(np.max(np.abs(distances[1])))
    yield Row(
        f"mixture, {trial.name}",
        "-" if p is None else "the exact law",
        f"distribution off by {np.max(np.abs(distances[0])):.4f}, "
        f"{np.max(np.abs(distances[1])):.4f}, extrapolated {gap:.4f}",
        f"{band:.4f}",
        None if p is None else gap < band,
        "samples lie elsewhere than the data's law puts them.",
    )


def _chains(trial: Trial, law: Law, times: np.ndarray, seed: int) -> np.ndarray:
    """Run chains from the exact marginal."""
    rng = np.random.default_rng([trial.seed, seed])
    x = law.draw(rng, LONG // len(law.means), levels(trial.process, times[0]))
    return trial.run(law, times, x, seed)


def _moments(trial: Trial, times: np.ndarray, seed: int) -> tuple[float, float]:
    """Return the relative errors of mean and variance, from two coordinates of one law."""
    law = normal([0.7, 0.7], [0.6, 0.6])
    y = _chains(trial, law, times, seed).ravel()
    u = np.repeat([[0.5], [NormalDist().cdf(1)]], 2, axis=1)
    (middle, _), (high, _) = ends(trial.process, law, times, u)
    scale = high - middle
    return float(np.mean(y) - middle) / scale, float(np.var(y, ddof=1)) / scale**2 - 1


def _distances(trial: Trial, times: np.ndarray, seed: int) -> np.ndarray:
    """Return the differences of the distribution functions on data of two modes."""
    weights, means, scales = np.array([[[0.4, 0.6]], [[-0.9, 0.8]], [[0.35, 0.5]]])
    law = Law(weights, means, scales, np.eye(1))
    y = np.sort(_chains(trial, law, times, seed)[:, 0])
    u = np.linspace(0.0005, 0.9995, 1000)
    points = ends(trial.process, law, times, u[:, None])[:, 0]
    return np.searchsorted(y, points) / len(y) - u


def _largest(numbers: list) -> float:
    """Largest absolute value, NaN where there is one."""
    return float(np.max(np.abs(numbers)))
