"""Products of mixtures on a line, and the exact laws of weighted chains by quadrature."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxinf import core, guide, process, sampler, score

PROCESS = process.gaussian(process.edm(0.1, 40.0))
POINTS = 801


def law(weights, means, variances):
    means = jnp.asarray(means, float)[:, None]
    return core.mixture(jnp.asarray(weights), means, jnp.sqrt(jnp.asarray(variances)))


class Case(NamedTuple):
    """A product prod_i q_i^(a_i) and the function that makes its denoiser."""

    laws: tuple
    exponents: tuple

    def denoiser(self):
        experts = [score.oracle(PROCESS, q) for q in self.laws]
        return guide.product(experts, self.exponents)

    def density(self, x, t):
        """prod_i q_i^(a_i) at time t, of points [n]."""
        noised = [q if t == 0 else PROCESS.marginal(q, t) for q in self.laws]
        pairs = zip(self.exponents, noised, strict=True)
        return jnp.exp(sum(a * jax.vmap(q.log_prob)(x[:, None]) for a, q in pairs))


def cases():
    """Made anew in each test, in its precision."""
    skew = law([0.5, 0.5], [-2.0, 2.0], [0.1, 1.0])
    near = law([0.5, 0.5], [-1.0, 1.5], [0.2, 0.5])
    wide = law([0.7, 0.3], [-1.5, 1.5], [1.0, 1.0])
    narrow = law([0.6, 0.4], [-1.5, 1.0], [0.7, 0.7])
    return {
        "squared": Case((skew,), (2.0,)),
        "cubed": Case((skew,), (3.0,)),
        "product": Case((skew, near), (1.0, 1.0)),
        "guidance": Case((wide, narrow), (-1.0, 2.0)),
        "mean": Case((skew, near), (0.5, 0.5)),
    }


class Measure(NamedTuple):
    """Of an unnormalised law on a line: its integral, and that over x < 0."""

    total: jax.Array
    below: jax.Array

    @property
    def mass(self):
        return float(self.below / self.total)


def grid(t):
    return jnp.linspace(-1, 1, POINTS) * (7 + 5 * t)


def measure(values, x):
    step = x[1] - x[0]
    below = jnp.where(x < 0, values, 0) + 0.5 * values[POINTS // 2] * (x == 0)
    return Measure(jnp.sum(values) * step, jnp.sum(below) * step)


def target(case, t=0.0):
    """The exact measure at time t."""
    x = grid(jnp.asarray(t))
    return measure(case.density(x, t), x)


def normal(x, mean, variance):
    return -0.5 * (jnp.square(x - mean) / variance + jnp.log(2 * jnp.pi * variance))


@partial(jax.jit, static_argnames="kernel")
def chain(start, kernel, inputs, times):
    """Push the start's reference density through weighted kernels, by the trapezoid rule."""
    x = grid(times[0])
    values = jnp.exp(start * normal(x, 0.0, jnp.square(times[0])))

    def step(values, pair):
        t, s = pair
        x, y = grid(t), grid(s)
        return jnp.exp(kernel(inputs, y, x, t, s)) @ values * (x[1] - x[0]), None

    values, _ = jax.lax.scan(step, values, (times[:-1], times[1:]))
    return measure(values, grid(times[-1]))


def corrected(inputs, y, x, t, s):
    """Log kernel [y, x] of one weighted Euler-Maruyama step."""
    transform, weighted = inputs
    drift, rate = jax.vmap(lambda x: transform(x[None], t))(x)
    mean = x + (t - s) * drift[:, 0]
    variance = transform.noise * PROCESS.dispersion_squared(t) * (t - s)
    return normal(y[:, None], mean[None], variance) + weighted * (t - s) * rate[None]


def reweighed(inputs, y, x, t, s):
    """Log kernel [y, x] of guide.particles: prod_i p_i(y | x)^(a_i) k(x | y)^(1 - sum_i a_i)."""
    experts, exponents, stepper = inputs
    out = (1 - sum(exponents)) * normal(x[None], y[:, None], jnp.square(t) - jnp.square(s))
    for a, q in zip(exponents, experts, strict=True):

        def moments(x, q=q):
            made = stepper.proposal(score.oracle(PROCESS, q), sampler.State(x[None]), t, s)
            return made.mean[0], made.covariance.dense(1)[0, 0]

        mean, variance = jax.vmap(moments)(x)
        out = out + a * normal(y[:, None], mean[None], variance[None])
    return out


def z_scores(run, keys, wanted):
    """Of the estimates of the total and of x < 0, which are without bias, over runs.

    ``run`` takes a key to a ``smc.Run`` of particles [n, 1].
    """

    @jax.jit
    @jax.vmap
    def estimates(key):
        found = run(key)
        below = found.population.mean(lambda x: jnp.asarray(x[0] < 0, x.dtype))
        return jnp.exp(found.log_evidence) * jnp.stack([jnp.ones_like(below), below])

    found = np.asarray(estimates(keys))
    error = found.std(0, ddof=1) / np.sqrt(len(found))
    return (found.mean(0) - np.asarray([wanted.total, wanted.below])) / error
