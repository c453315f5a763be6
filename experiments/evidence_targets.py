"""Targets whose log evidence is known, or agreed on, for ``log_evidence.py`` and others.

Priors are proper and normalised; the target's own density is prior times likelihood.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxinf import core, target

HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


class Case(NamedTuple):
    """A target, its log evidence, and how it is known."""

    make: Callable[[Path | None], Any]
    truth: float
    tolerance: float
    """What the mean over seeds should keep to."""
    known: str
    sample: Callable[[Any], Any] | None = None
    """An exact draw by a key, where there is one."""


def normal(x: Any, scale: float) -> Any:
    """The log density of independent normal numbers."""
    return jnp.sum(-jnp.square(x / scale) / 2 - math.log(scale) - HALF_LOG_2PI)


def against(log_density: Callable[[Any, Any], Any], dim: int, scale: float, data: Any = ()) -> Any:
    """A normalised density as prior N(0, scale^2) times the likelihood that is left."""
    prior = core.gaussian(jnp.zeros(dim), core.Diagonal(scale * jnp.ones(dim)))

    def likelihood(data: Any, x: Any) -> Any:
        return log_density(data, x) - normal(x, scale)

    return target.density(likelihood, jnp.zeros(dim), data, prior=prior)


def funnel(_: Path | None) -> Any:
    """Neal's, d = 10: v ~ N(0, 9), x_i ~ N(0, e^v)."""

    def log_density(_: Any, x: Any) -> Any:
        v, x = x[0], x[1:]
        return normal(v, 3.0) + normal(x * jnp.exp(-v / 2), 1.0) - x.size * v / 2

    return against(log_density, 10, 3.0)


def funnel_sample(key: Any) -> Any:
    """An exact draw of the funnel."""
    z = jax.random.normal(key, (10,))
    return jnp.concatenate([3 * z[:1], jnp.exp(1.5 * z[0]) * z[1:]])


def mixture(_: Path | None) -> Any:
    """Forty Gaussians of standard deviation 1 in the plane."""
    key = jax.random.PRNGKey(0)
    means = 40 * jax.random.uniform(key, (40, 2), minval=-1, maxval=1)

    def log_density(means: Any, x: Any) -> Any:
        each = -jnp.sum(jnp.square(x - means), axis=1) / 2 - 2 * HALF_LOG_2PI
        return jax.nn.logsumexp(each) - math.log(len(means))

    with jax.numpy_rank_promotion("allow"):
        return against(log_density, 2, 40.0, means)


def many_well(_: Path | None) -> Any:
    """Sixteen pairs of a double well and a normal number, d = 32."""

    def log_density(_: Any, x: Any) -> Any:
        a, b = x[:16], x[16:]
        return jnp.sum(0.5 * a + 6 * a**2 - a**4 - b**2 / 2)

    return against(log_density, 32, 1.0)


def logistic(x: Any, y: Any) -> Any:
    """Coefficients N(0, I) of standardised features and a bias; y is -1 or 1."""
    x = np.asarray(x, np.float64)
    spread = x.std(axis=0)
    x = (x - x.mean(axis=0)) / np.where(spread > 0, spread, 1)
    signed = np.asarray(y)[:, None] * np.concatenate([np.ones((len(x), 1)), x], axis=1)
    dim = signed.shape[1]
    prior = core.gaussian(jnp.zeros(dim), core.Diagonal(jnp.ones(dim)))

    def likelihood(signed: Any, beta: Any) -> Any:
        return -jnp.sum(jax.nn.softplus(-(signed @ beta)))

    return target.density(likelihood, jnp.zeros(dim), signed.astype(np.float32), prior=prior)


def from_file(name: str) -> Callable[[Path | None], Any]:
    """A logistic regression on a file with x and y."""

    def make(folder: Path | None) -> Any:
        file = None if folder is None else folder / f"{name}.npz"
        if file is None or not file.is_file():
            raise ValueError(f"there is no {name}.npz. Pass --data FOLDER that holds it.")
        with np.load(file) as data:
            return logistic(data["x"], data["y"])

    return make


def breast_cancer(_: Path | None) -> Any:
    """Scikit-learn's, d = 31."""
    from sklearn.datasets import load_breast_cancer

    x, y = load_breast_cancer(return_X_y=True)
    return logistic(x, 2 * np.asarray(y) - 1)


CASES = {
    "funnel": Case(funnel, 0.0, 0.03, "exact", funnel_sample),
    "mixture": Case(mixture, 0.0, 0.02, "exact"),
    "many_well": Case(many_well, 164.696, 0.05, "one-dimensional quadrature"),
    "breast_cancer": Case(breast_cancer, -55.23, 0.03, "long runs of BlackJAX's sampler"),
    "ionosphere": Case(from_file("ionosphere"), -111.60, 0.06, "long runs of BlackJAX's sampler"),
    "sonar": Case(from_file("sonar"), -108.40, 0.15, "SMC of 256 temperatures, Vargas et al. 2024"),
}
