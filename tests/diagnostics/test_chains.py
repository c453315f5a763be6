"""Diagnostics of chains: ArviZ's numbers, and what an autoregression's must be."""

import arviz
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinf import diagnostics

OURS = {
    "mean": (diagnostics.ess, lambda data: arviz.ess(data, method="mean")),
    "bulk": (diagnostics.ess_bulk, lambda data: arviz.ess(data, method="bulk")),
    "tail": (diagnostics.ess_tail, lambda data: arviz.ess(data, method="tail", prob=(0.05, 0.95))),
    "rhat": (diagnostics.rhat, arviz.rhat),
    "mcse": (diagnostics.mcse, lambda data: arviz.mcse(data, method="mean")),
}


def chains(draws, slope, seed=0):
    """Autoregressions, the last number rounded so that there are ties."""
    noise = np.random.default_rng(seed).normal(size=(4, draws, 3))
    x = np.zeros_like(noise)
    x[:, 0] = noise[:, 0] / np.sqrt(1 - slope**2)
    for t in range(1, draws):
        x[:, t] = slope * x[:, t - 1] + noise[:, t]
    x[..., 2] = np.round(x[..., 2])
    return x


@pytest.mark.parametrize("draws", [8, 100, 101])
@pytest.mark.parametrize("name", OURS)
def test_numbers_are_those_of_arviz(name, draws, x64):
    ours, theirs = OURS[name]
    compiled = jax.jit(ours)
    for slope in (0.95, 0.3, -0.6):
        x = chains(draws, slope)
        expected = theirs(arviz.from_dict({"posterior": {"x": x}}))["x"].values
        np.testing.assert_allclose(compiled(jnp.asarray(x)), expected, rtol=1e-9)


def test_an_autoregression_is_worth_what_it_is(x64):
    """N (1 - a) / (1 + a); the estimate's own error is some per cent at this length."""
    x = jnp.asarray(chains(20_000, 0.8)[..., :2])
    np.testing.assert_allclose(diagnostics.ess(x), 80_000 * 0.2 / 1.8, rtol=0.1)
    np.testing.assert_allclose(diagnostics.ess_bulk(x), 80_000 * 0.2 / 1.8, rtol=0.1)
    assert (diagnostics.rhat(x) < 1.01).all()
    apart = x + jnp.arange(4.0)[:, None, None]
    assert (diagnostics.rhat(apart) > 1.1).all()


def test_a_chain_of_another_scale_is_seen(x64):
    """The means agree and the tails do not: one chain holds nearly all of them."""
    x = jnp.asarray(chains(1000, 0.3)[..., :2]) * jnp.array([1.0, 1.0, 1.0, 4.0])[:, None, None]
    assert (diagnostics.rhat(x) > 1.1).all()
    assert (diagnostics.ess_tail(x) < 0.1 * diagnostics.ess_bulk(x)).all()


def test_constants_and_what_is_not_finite():
    x = jnp.zeros((2, 10, 2)).at[0, 3, 1].set(jnp.nan)
    found = diagnostics.ess(x)
    assert found[0] == 20
    assert jnp.isnan(found[1])


@pytest.mark.parametrize("name", OURS)
def test_too_few_draws_are_refused(name):
    with pytest.raises(ValueError, match="at least four draws"):
        OURS[name][0](jnp.zeros((4, 3)))
