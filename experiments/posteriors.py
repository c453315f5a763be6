"""Twelve posteriors of posteriordb as NumPyro programs; a table for ``reference_posteriors.py``.

Sites have the names of the reference's parameters. A site without a stated prior is flat on its
support.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.distributions import constraints


def flat(name: str, support: Any, *shape: int) -> Any:
    """A site with density one."""
    return numpyro.sample(name, dist.ImproperUniform(support, (), shape))


def regression(features: Any, y: Any, scale: Any) -> None:
    """Coefficients that are flat, and normal errors."""
    beta = flat("beta", constraints.real_vector, features.shape[1])
    sigma = flat("sigma", constraints.positive) if scale is None else numpyro.sample("sigma", scale)
    numpyro.sample("y", dist.Normal(features @ beta, sigma), obs=y)


def columns(*parts: Any) -> np.ndarray:
    """Features side by side, a one first."""
    features = [np.asarray(part, np.float32) for part in parts]
    return np.stack([np.ones_like(features[0]), *features], axis=1)


def ark(y: Any) -> None:
    order = 5
    alpha = numpyro.sample("alpha", dist.Normal(0, 10))
    beta = numpyro.sample("beta", dist.Normal(0, 10).expand([order]))
    sigma = numpyro.sample("sigma", dist.HalfCauchy(2.5))
    past = jnp.stack([y[order - k : len(y) - k] for k in range(1, order + 1)], axis=1)
    numpyro.sample("y", dist.Normal(alpha + past @ beta, sigma), obs=y[order:])


def eight_schools(y: Any, sigma: Any) -> None:
    mu = numpyro.sample("mu", dist.Normal(0, 5))
    tau = numpyro.sample("tau", dist.HalfCauchy(5))
    z = numpyro.sample("theta_trans", dist.Normal(0, 1).expand([len(y)]))
    theta = numpyro.deterministic("theta", mu + tau * z)
    numpyro.sample("y", dist.Normal(theta, sigma), obs=y)


def garch(y: Any, sigma1: Any) -> None:
    mu = flat("mu", constraints.real)
    alpha0 = flat("alpha0", constraints.positive)
    alpha1 = flat("alpha1", constraints.unit_interval)
    beta1 = flat("beta1", constraints.interval(0.0, 1 - alpha1))

    def step(variance: Any, y: Any) -> Any:
        return alpha0 + alpha1 * (y - mu) ** 2 + beta1 * variance, variance

    _, variances = jax.lax.scan(step, sigma1**2 * jnp.ones_like(mu), y)
    numpyro.sample("y", dist.Normal(mu, jnp.sqrt(variances)), obs=y)


def gaussian_process(x: Any, y: Any) -> None:
    rho = numpyro.sample("rho", dist.Gamma(25.0, 4.0))
    alpha = numpyro.sample("alpha", dist.HalfNormal(2.0))
    sigma = numpyro.sample("sigma", dist.HalfNormal(1.0))
    apart = jnp.square(x[:, None] - x[None])
    covariance = alpha**2 * jnp.exp(-apart / (2 * rho**2)) + sigma * jnp.eye(len(x))
    numpyro.sample("y", dist.MultivariateNormal(jnp.zeros(len(x)), covariance), obs=y)


def hidden_markov(y: Any) -> None:
    rows = [numpyro.sample(f"theta{k}", dist.Dirichlet(jnp.ones(2))) for k in (1, 2)]
    mu = flat("mu", constraints.positive_ordered_vector, 2)
    numpyro.factor("prior", dist.Normal(jnp.array([3.0, 10.0]), 1.0).log_prob(mu).sum())
    transition = jnp.log(jnp.stack(rows))
    seen = dist.Normal(mu[None], 1.0).log_prob(y[:, None])

    def step(log_forward: Any, seen: Any) -> Any:
        return jax.nn.logsumexp(log_forward[:, None] + transition, axis=0) + seen, None

    log_forward, _ = jax.lax.scan(step, seen[0], seen[1:])
    numpyro.factor("y", jax.nn.logsumexp(log_forward))


def lotka_volterra(y_init: Any, y: Any) -> None:
    mean, scale = jnp.array([1.0, 0.05, 1.0, 0.05]), jnp.array([0.5, 0.05, 0.5, 0.05])
    theta = numpyro.sample("theta", dist.TruncatedNormal(mean, scale, low=0.0))
    sigma = numpyro.sample("sigma", dist.LogNormal(-1.0, 1.0).expand([2]))
    z_init = numpyro.sample("z_init", dist.LogNormal(jnp.log(10.0), 1.0).expand([2]))
    a, b, c, d = jnp.asarray(theta)
    substeps = 16

    def rate(z: Any) -> Any:
        return jnp.stack([a - b * z[1], -c + d * z[0]]) * z

    def step(z: Any, _: Any) -> Any:
        h = 1 / substeps
        k1 = rate(z)
        k2 = rate(z + h / 2 * k1)
        k3 = rate(z + h / 2 * k2)
        return z + h / 6 * (k1 + 2 * k2 + 2 * k3 + rate(z + h * k3)), None

    def year(z: Any, _: Any) -> Any:
        z, _ = jax.lax.scan(step, z, None, length=substeps)
        return z, z

    _, z = jax.lax.scan(year, z_init, None, length=len(y))
    numpyro.sample("y_init", dist.LogNormal(jnp.log(z_init), sigma), obs=y_init)
    numpyro.sample("y", dist.LogNormal(jnp.log(z), jnp.asarray(sigma)[None]), obs=y)


def mixture(y: Any) -> None:
    mu = flat("mu", constraints.ordered_vector, 2)
    numpyro.factor("prior", dist.Normal(0, 2).log_prob(mu).sum())
    sigma = numpyro.sample("sigma", dist.HalfNormal(2.0).expand([2]))
    theta = numpyro.sample("theta", dist.Beta(5.0, 5.0))
    weights = dist.Categorical(probs=jnp.stack([theta, 1 - theta]))
    numpyro.sample("y", dist.MixtureSameFamily(weights, dist.Normal(mu, sigma)), obs=y)


def linear(X: Any, y: Any) -> None:
    beta = numpyro.sample("beta", dist.Normal(0, 10).expand([X.shape[1]]))
    sigma = numpyro.sample("sigma", dist.HalfNormal(10.0))
    numpyro.sample("y", dist.Normal(X @ beta, sigma), obs=y)


def kidiq(features: Any, y: Any) -> None:
    regression(features, y, dist.HalfCauchy(2.5))


def flat_regression(features: Any, y: Any) -> None:
    regression(features, y, None)


def earnings(d: dict[str, Any]) -> Any:
    height, male = np.array(d["height"]), np.array(d["male"])
    return columns(height, male, height * male), np.log(d["earn"])


def election(d: dict[str, Any]) -> Any:
    age = np.array(d["age_discrete"])
    groups = [age == k for k in (2, 3, 4)]
    rest = (d["educ1"], d["gender"], d["income"])
    return columns(d["real_ideo"], d["race_adj"], *groups, *rest), d["partyid7"]


def mesquite(d: dict[str, Any]) -> Any:
    one, two, height = (np.array(d[name]) for name in ("diam1", "diam2", "canopy_height"))
    parts = one * two * height, one * two, one / two, d["total_height"], d["density"]
    return columns(*(np.log(part) for part in parts), d["group"]), np.log(d["weight"])


MODELS: dict[str, tuple[Callable[..., None], Callable[[dict[str, Any]], Any]]] = {
    "arK-arK": (ark, lambda d: (d["y"],)),
    "earnings-logearn_interaction": (flat_regression, earnings),
    "eight_schools-eight_schools_noncentered": (eight_schools, lambda d: (d["y"], d["sigma"])),
    "garch-garch11": (garch, lambda d: (d["y"], d["sigma1"])),
    "gp_pois_regr-gp_regr": (gaussian_process, lambda d: (d["x"], d["y"])),
    "hmm_example-hmm_example": (hidden_markov, lambda d: (d["y"],)),
    "hudson_lynx_hare-lotka_volterra": (lotka_volterra, lambda d: (d["y_init"], d["y"])),
    "kidiq-kidscore_momhsiq": (
        kidiq, lambda d: (columns(d["mom_hs"], d["mom_iq"]), d["kid_score"]),
    ),
    "low_dim_gauss_mix-low_dim_gauss_mix": (mixture, lambda d: (d["y"],)),
    "mesquite-logmesquite_logvas": (flat_regression, mesquite),
    "nes1996-nes": (flat_regression, election),
    "sblrc-blr": (linear, lambda d: (d["X"], d["y"])),
}  # fmt: skip
"""By the reference's name: the program, and its arguments from the reference's data."""
