"""Models with closed-form answers, which the tests of the score room share."""

import contextlib

import jax.numpy as jnp
import jaxtyping
import numpy as np

from jaxinf import core, score

TARGETS = {
    "x0": score.x0,
    "eps": score.eps,
    "v": score.v,
    "score": score.score,
    "velocity": score.velocity,
    "preconditioned": score.preconditioned(0.5),
}
COVARIANCE = np.array([[1.0, 0.6, 0.2], [0.6, 1.5, -0.3], [0.2, -0.3, 0.7]])


def three_modes():
    """A mixture in the plane."""
    return core.mixture(
        jnp.array([0.3, 0.3, 0.4]),
        jnp.array([[1.0, -0.5], [-0.7, 0.4], [0.2, 1.2]]),
        jnp.array([0.3, 0.6, 0.8]),
    )


def dense_gaussian():
    """A Gaussian with correlations in three dimensions."""
    return core.gaussian(jnp.array([0.5, -0.3, 0.2]), core.dense(jnp.asarray(COVARIANCE)))


def plane(count, seed=0):
    """Examples of the three modes, shape (count, 2), float64."""
    random, components = np.random.default_rng(seed), three_modes().components
    k = random.choice(3, count, p=[0.3, 0.3, 0.4])
    scales = np.asarray(components.covariance.scale, float)[k, None]
    return jnp.asarray(
        np.asarray(components.mean, float)[k] + scales * random.normal(size=(count, 2))
    )


def time_at(p, level):
    """The time at which ``score.noise_level`` is ``level``."""
    ratio, schedule = jnp.exp(4 * level), p.schedule  # sigma / alpha
    match type(schedule).__name__:
        case "Cosine":
            return jnp.arctan(ratio) * 2 / jnp.pi
        case "LinearBeta":
            integral = jnp.log1p(ratio**2)
            low, slope = schedule.beta_min, schedule.beta_max - schedule.beta_min
            return 2 * integral / (low + jnp.sqrt(low**2 + 2 * slope * integral))
        case "EDM":
            return ratio
        case "LinearInterpolation":
            return ratio / (1 + ratio)
    raise AssertionError(schedule)


def network_input(p, target, x, level):
    """Undo what the denoiser does to its network's input: (x_t, t)."""
    t = time_at(p, level)
    return x * jnp.sqrt((p.alpha(t) * target.data_scale) ** 2 + p.sigma(t) ** 2), t


def oracle_network(params, x, level, cond):
    """``a`` times the perfect prediction ``target`` plus ``b``."""
    a, b, p, law, target = params
    noisy, t = network_input(p, target, x, level)
    clean = p.posterior_mean(law, noisy, t)
    return a * score.convert(p, t, noisy, clean, score.x0, target) + b


def linear_network(params, x, level, cond):
    """The prediction ``target`` of the denoiser a x_t + b."""
    a, b, p, target = params
    noisy, t = network_input(p, target, x, level)
    return score.convert(p, t, noisy, a * noisy + b, score.x0, target)


def denoiser_network(params, x, level, cond):
    """The prediction ``target`` of ``a`` times the perfect denoiser plus ``b``."""
    a, b, p, law, target = params
    noisy, t = network_input(p, target, x, level)
    clean = a * p.posterior_mean(law, noisy, t) + b
    return score.convert(p, t, noisy, clean, score.x0, target)


@core.record
class Drifted:
    """The perfect denoiser of a model whose score is the true one plus a constant a class."""

    process: core.Leaf
    law: core.Leaf
    constants: core.Leaf  # (classes,)

    def __call__(self, x, t, cond=None):
        """(x + sigma^2 (score + c)) / alpha."""
        alpha, sigma = self.process.alpha(t), self.process.sigma(t)
        c = self.constants[0 if cond is None else cond]
        return self.process.posterior_mean(self.law, x, t) + sigma**2 * c / alpha


def z_score(values, wanted, axis=0):
    """How many standard errors the mean of independent values is from what it should be."""
    values = np.asarray(values, np.float64)
    error = values.std(axis, ddof=1) / np.sqrt(values.shape[axis])
    return (values.mean(axis) - wanted) / error


@contextlib.contextmanager
def unhooked():
    """Without the type checker of the tests, as a user meets the library's own messages."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", before)
