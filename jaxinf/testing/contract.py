"""What a sampler does besides drawing from the right law: seeds, batch, grid, calls."""

from collections.abc import Iterator

import numpy as np

from jaxinf.testing.claims import Row, Trial
from jaxinf.testing.exact import Denoiser, mixture, spaced, starts
from jaxinf.testing.flow import BATCH

STEPS = 20
WATCHED = 8
"""Steps of a run of which every call is noted."""
SAME_TIME = 1e-3
"""Two times are the same within this share of them: float32 time tables pass, other grids do not.
"""


def calls_per_step(trial: Trial) -> float:
    """Return how often the denoiser is called a step, for each example."""
    times = trial.times(WATCHED)
    return _watch(trial, times)[0].rows / (len(times) - 1)


def calls(trial: Trial) -> Iterator[Row]:
    """The calls of the denoiser, counted against those claimed (by the build, where it can)."""
    times = trial.times(WATCHED)
    counted = _watch(trial, times)[0].rows
    claimed = trial.claims.calls(times) if trial.claims.calls is not None else None
    if claimed is None and hasattr(trial.build, "calls"):
        claimed = trial.build.calls(trial.process, times)
    yield Row(
        f"calls, {trial.name}",
        "-" if claimed is None else f"{claimed:g}",
        f"{counted} in {len(times) - 1} steps",
        "exact",
        None if claimed is None else counted == claimed,
        "the denoiser is called more or less often than is said, so comparisons at equal cost err.",
    )


def grid(trial: Trial) -> Iterator[Row]:
    """The times at which the denoiser is called are the claimed grid's, and the grid matters."""
    times = trial.times(WATCHED)
    denoise, first = _watch(trial, times)
    used = np.unique(denoise.times)
    gaps = [np.min(np.abs(used / t - 1)) if len(used) else np.inf for t in times[:-1]]
    worst = int(np.argmax(gaps))
    claimed = trial.claims.grid is not None or trial.claims.deterministic
    nearest = used[np.argmin(np.abs(used - times[worst]))] if len(used) else np.nan
    yield Row(
        f"grid, {trial.name}",
        "each step starts where the grid says" if claimed else "-",
        f"t={times[worst]:.4g} is claimed, the nearest call is at {nearest:.4g}",
        f"{SAME_TIME:g} of t",
        bool(max(gaps) < SAME_TIME) if claimed else None,
        "the sampler walks another grid than the one claimed (a schedule that is uniform, say, "
        "where a power law was asked for).",
    )
    if trial.claims.grid is not None:
        return
    other = spaced(trial.process, WATCHED, rho=3.0)
    second = _watch(trial, other)[1]
    moved = float(np.max(np.abs(first - second)))
    yield Row(
        f"grid matters, {trial.name}",
        "another grid, another error",
        f"end points move by {moved:.1e}",
        f"{trial.claims.floor:g}",
        moved > trial.claims.floor,
        "the sampler does not look at the times that it is handed; if it makes its own, claim them "
        "with grid.",
    )


def seeds(trial: Trial) -> Iterator[Row]:
    """The same seed gives the same samples; another seed others, where noise is drawn."""
    times, x = trial.times(STEPS), _starts(trial)
    one, two, other = (trial.run(mixture(trial.seed), times, x, seed) for seed in (1, 1, 2))
    again, moved = float(np.max(np.abs(one - two))), float(np.max(np.abs(one - other)))
    yield Row(
        "seed",
        "the same seed, the same samples",
        f"difference {again:.1e}",
        "0",
        again == 0,
        "noise comes from elsewhere than the seed: set the generator from it in the adapter.",
    )
    deterministic = trial.claims.deterministic
    yield Row(
        "noise",
        "none" if deterministic else "drawn",
        f"another seed moves samples by {moved:.1e}",
        "0" if deterministic else "above 0",
        moved == 0 if deterministic else moved > 0,
        "it is not deterministic, or not stochastic, as claimed.",
    )


def batch(trial: Trial) -> Iterator[Row]:
    """Sample 0 beside 63 others, beside 63 different ones, and alone."""
    times, x = trial.times(STEPS), _starts(trial)
    other = x.copy()
    other[1:] *= 3.0
    whole = trial.run(mixture(trial.seed), times, x)[0]
    beside = trial.run(mixture(trial.seed), times, other)[0]
    alone = trial.run(mixture(trial.seed), times, x[:1])[0]
    scale = float(np.max(np.abs(whole)))
    bound = trial.claims.floor * scale
    for name, out in (("others changed", beside), ("alone", alone)):
        gap = float(np.max(np.abs(out - whole)))
        # one generator for the whole batch may give sample 0 other noise when it is alone
        held = trial.claims.independent_of_batch and (
            trial.claims.deterministic or name == "others changed"
        )
        yield Row(
            f"batch: {name}",
            "no difference" if held else "-",
            f"sample 0 moves by {gap:.1e}, {gap / scale:.1e} of its size",
            f"{bound:.1e}",
            gap <= bound if held else None,
            "a sample depends on its batch: a norm, mean or step size is taken over all samples.",
        )


def _watch(trial: Trial, times: np.ndarray) -> tuple[Denoiser, np.ndarray]:
    """Run one example and note every call."""
    denoise = Denoiser(trial.process, mixture(trial.seed), recording=True)
    return denoise, trial.watched(denoise, times, _starts(trial)[:1])


def _starts(trial: Trial) -> np.ndarray:
    u = np.random.default_rng([trial.seed, 2]).uniform(0.05, 0.95, size=(BATCH, 4))
    return starts(trial.process, mixture(trial.seed), trial.times(STEPS), u)
