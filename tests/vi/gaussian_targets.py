"""Posteriors with closed-form answers, which the tests of this room share."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxinf import target


def quadratic(data, x):
    mean, precision, height = data
    return height - (x - mean) @ precision @ (x - mean) / 2


def normal(mean, precision, height=0.0):
    """A Gaussian whose log density is ``height`` at its mean."""
    data = jnp.asarray(mean), precision, height
    return target.density(quadratic, jnp.zeros(len(mean)), data)


def rotated(values, seed):
    """A matrix with these eigenvalues."""
    basis = np.linalg.qr(np.random.default_rng(seed).normal(size=(len(values),) * 2))[0]
    return basis @ np.diag(values) @ basis.T


def banana(bend, x):
    """Normalised: the second number's mean is a parabola of the first."""
    return jax.scipy.stats.norm.logpdf(x[0]) + jax.scipy.stats.norm.logpdf(
        x[1] - bend * (x[0] ** 2 - 1), 0.0, 0.5
    )
