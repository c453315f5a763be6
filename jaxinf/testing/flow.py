"""The laws of deterministic samplers: the exact flow, and the exact law of Gaussian data."""

from collections.abc import Callable, Iterator
from statistics import NormalDist

import numpy as np

from jaxinf.testing.claims import Curve, Row, Trial, kolmogorov
from jaxinf.testing.exact import ends, mixture, normal, starts, time_at

STEPS = (20, 40, 80, 160, 320, 640, 1280)
BATCH = 64
CHAINS = 200_000
TOLERANCE = 0.15
PLACES = (4.0, 0.7, 0.15)
"""Where single steps begin: sigma / alpha."""
WIDTHS = (1e-3, 5e-4)
"""How far they go, as shares of the time: so little that two percent of a step exceed its square.
"""


def doublings(
    trial: Trial, error: Callable[[np.ndarray], float], steps: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return steps, errors and slopes of the doublings whose errors are above the floor."""
    used, errors = [], []
    for count in steps:
        used.append(count)
        errors.append(error(trial.times(count)))
        if not errors[-1] > trial.claims.floor:
            break
    counts, found = np.array(used), np.array(errors)
    above = found > trial.claims.floor
    with np.errstate(invalid="ignore"):
        slopes = -np.diff(np.log(found[above])) / np.diff(np.log(counts[above]))
    return counts, found, slopes


def order(trial: Trial, calls: float) -> Iterator[Row | Curve]:
    """End points on a mixture against the exact flow: order, and the distance of the laws."""
    law = mixture(trial.seed)
    u = np.random.default_rng([trial.seed, 1]).uniform(0.02, 0.98, size=(BATCH, 4))
    finest = np.full_like(u, np.nan)

    def error(times: np.ndarray) -> float:
        finest[:] = trial.run(law, times, starts(trial.process, law, times, u))
        return rms(finest - ends(trial.process, law, times, u))

    claimed = trial.claims.order
    counts, errors, slopes = doublings(trial, error, STEPS)
    yield Curve(f"flow, {trial.name}", counts * calls, errors, claimed)
    slope = float(np.mean(slopes[-2:])) if len(slopes) else np.nan
    yield Row(
        f"order, {trial.name}",
        "-" if claimed is None else f"{claimed:g}",
        f"{slope:.2f}, last doublings {_listed(slopes[-3:])}, error {errors[-1]:.1e} at "
        f"{counts[-1]} steps",
        f"{TOLERANCE}",
        None if claimed is None else abs(slope - claimed) < TOLERANCE and len(slopes) >= 2,
        "slope 0: it converges to something else, a coefficient of the first order is wrong or "
        "belongs to the step's other end. One less than claimed: a correction's coefficient.",
    )
    times = trial.times(int(counts[-1]))
    grid = np.linspace(0.0005, 0.9995, 1000)[:, None] + np.zeros(4)
    points = ends(trial.process, law, times, grid) @ law.rotation
    y = finest @ law.rotation
    distance = max(
        float(np.max(np.abs(np.interp(y[:, i], points[:, i], grid[:, i]) - u[:, i])))
        for i in range(4)
    )
    band = kolmogorov(CHAINS)
    yield Row(
        f"mixture, {trial.name}",
        "-" if claimed is None else "the exact law",
        f"distribution off by {distance:.1e} at {counts[-1]} steps",
        f"{band:.1e}, what {CHAINS:,} draws can tell",
        None if claimed is None else distance < band,
        "samples lie elsewhere than the data's law puts them, however many steps are taken.",
    )


def one_step(trial: Trial) -> Iterator[Row]:
    """A single step from within, whose error must fall faster than the step.

    Long runs begin where there is next to no signal, and hide what is wrong in the first steps of a
    method that starts with a lower order.
    """
    law = mixture(trial.seed)
    u = np.random.default_rng([trial.seed, 3]).uniform(0.02, 0.98, size=(BATCH, 4))
    errors = np.zeros((len(PLACES), len(WIDTHS)))
    for i, t in enumerate(time_at(trial.process, np.array(PLACES))):
        for j, width in enumerate(WIDTHS):
            times = np.array([t, t * (1 - width)])
            end = trial.run(law, times, starts(trial.process, law, times, u))
            errors[i, j] = rms(end - ends(trial.process, law, times, u))
    above = errors[:, 1] > trial.claims.floor
    with np.errstate(divide="ignore", invalid="ignore"):
        slopes = np.log2(errors[:, 0] / errors[:, 1])
    worst = float(np.min(slopes, where=above, initial=np.inf))
    claimed = trial.claims.order
    wanted = 2.0 if claimed is None else 1 + min(float(claimed), 1.0)
    yield Row(
        f"one step, {trial.name}",
        "-" if claimed is None else f"error of order {wanted:g} in the step, or more",
        f"slope {worst:.2f}, errors {', '.join(f'{e:.1e}' for e in errors[:, 1])}",
        f"slope at most {TOLERANCE} below",
        None if claimed is None else bool(worst > wanted - TOLERANCE and np.all(errors >= 0)),
        "a step from the start is wrong in its first order; long runs hide it where they begin.",
    )


def gaussian_law(trial: Trial, calls: float) -> Iterator[Row | Curve]:
    """Mean and scale on Gaussian data, exactly: the sampler is affine, so three starts tell all."""
    law = normal([0.7, -0.3, 0.0, 1.2], [0.6, 0.25, 1.0, 0.4])
    bent = []

    def error(times: np.ndarray) -> float:
        u = np.array([[0.5], [NormalDist().cdf(1)], [NormalDist().cdf(-1)]]) + np.zeros(4)
        x = starts(trial.process, law, times, u)
        y = trial.run(law, times, x[np.arange(BATCH) % 3])[:3]
        wanted = ends(trial.process, law, times, u)
        scale = wanted[1] - wanted[0]
        mean, spread = (y[0] - wanted[0]) / scale, (y[1] - y[0]) / scale - 1
        bent.append(float(np.max(np.abs(y[1] + y[2] - 2 * y[0]) / scale)))
        return float(max(np.max(np.abs(mean)), np.max(np.abs(spread))))

    claimed = trial.claims.order
    counts, errors, slopes = doublings(trial, error, (80, 160, 320, 640))
    yield Curve(f"Gaussian, {trial.name}", counts * calls, errors, claimed)
    slope = float(np.mean(slopes[-2:])) if len(slopes) else np.nan
    exact = errors[0] <= trial.claims.floor
    good = claimed is not None and slope > claimed - TOLERANCE and len(slopes) >= 1
    yield Row(
        f"Gaussian, {trial.name}",
        "-" if claimed is None else f"mean and scale at order {claimed:g}",
        "exact"
        if exact
        else f"slope {slope:.2f}, error {errors[-1]:.1e} at {counts[-1]} steps, "
        f"curvature {max(bent):.0e}",
        f"slope at most {TOLERANCE} below",
        None if claimed is None else bool(exact or good),
        "the exact mean and scale of what comes out do not approach the marginal's: a wrong "
        "coefficient. A curvature: the step depends on x otherwise than through the denoiser.",
    )


def rms(errors: np.ndarray) -> float:
    """Root mean square."""
    return float(np.sqrt(np.mean(np.square(errors))))


def _listed(numbers: np.ndarray) -> str:
    return " ".join(f"{number:.2f}" for number in numbers)
