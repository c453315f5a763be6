"""Two layers of latent variables, whose posterior is a Gaussian that couples them."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from scipy import stats

from jaxinf import grad, vi

X = 1.1


def model(x):
    top = numpyro.sample("top", dist.Normal(0.0, 1.0))
    low = numpyro.sample("low", dist.Normal(0.8 * top, 0.6))
    numpyro.sample("x", dist.Normal(1.2 * low, 0.5), obs=x)


def scale(name):
    return numpyro.param(name, 0.8, constraint=dist.constraints.positive)


def layered(x):
    """The lower layer knows what was drawn of the upper one."""
    top = numpyro.sample("top", dist.Normal(numpyro.param("m", 0.0), scale("s")))
    mean = numpyro.param("slope", 0.0) * top + numpyro.param("offset", 0.0) * x
    numpyro.sample("low", dist.Normal(mean, scale("t")))


def apart(x):
    numpyro.sample("top", dist.Normal(numpyro.param("m", 0.0), scale("s")))
    numpyro.sample("low", dist.Normal(numpyro.param("offset", 0.0) * x, scale("t")))


EVIDENCE = stats.norm(0, np.sqrt(1.44 + 0.25)).logpdf(X)
PRECISION = np.array([[1 + 0.64 / 0.36, -0.8 / 0.36], [-0.8 / 0.36, 1 / 0.36 + 1.44 / 0.25]])
# independent factors have the conditional variances: half the log of what their product lacks
GAP = 0.5 * np.log(np.prod(np.diag(PRECISION)) / np.linalg.det(PRECISION))


@pytest.mark.parametrize(("guide", "gap"), [(layered, 0.0), (apart, GAP)], ids=["layered", "apart"])
def test_bounds_of_deep_models(guide, gap):
    found = vi.svi(
        jax.random.key(0), model, guide, jnp.array(X), objective=vi.elbo(16, sticking=True),
        steps=2500, optimizer=optax.adam(optax.exponential_decay(0.03, 500, 0.25)),
    )  # fmt: skip
    fitted = grad.annotate(guide, X, params=found.params)
    bound = vi.evidence(jax.random.key(1), vi.pair(grad.annotate(model, X), fitted), 20_000)
    assert abs(bound.elbo - (EVIDENCE - gap)) < 4 * bound.elbo_error + 1e-4
    assert abs(bound.log_z - EVIDENCE) < 4 * bound.log_z_error + 1e-4
