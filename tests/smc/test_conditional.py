"""Conditional particle filters leave the law of paths as it is, and mix."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinf import core, markov, smc

CHAINS = 20_000


def finite_model():
    """Three states seen through four symbols, one time not at all."""
    rng = np.random.default_rng(0)
    model = markov.state_space(
        core.finite(jnp.asarray(rng.dirichlet(np.ones(3)))),
        markov.finite(jnp.asarray(rng.dirichlet(np.ones(3), 3))),
        markov.finite(jnp.asarray(rng.dirichlet(np.ones(4), 3))),
    )
    return model, jnp.array([1, 3, 0, 2, 1]), jnp.array([True, True, False, True, True])


PROPOSALS = {
    "bootstrap": lambda model, y, seen: smc.bootstrap(),
    "optimal": lambda model, y, seen: smc.optimal(),
    "guided": lambda model, y, seen: smc.guided(
        markov.backward_filter(model, y, observed=seen, surrogate=other(model))
    ),
    "auxiliary": lambda model, y, seen: smc.auxiliary(proposal=smc.bootstrap()),
}


def other(model):
    """A wrong surrogate, so that guided weights differ."""
    flat = jax.nn.log_softmax(0.5 * model.transition.log_matrix, axis=1)
    return markov.state_space(model.initial, markov.FiniteKernel(flat), model.emission)


@pytest.mark.parametrize("name", PROPOSALS)
def test_exact_paths_stay_exact(name, x64):
    """Pairs of neighbouring states after one move, three particles: those of the exact law."""
    model, y, seen = finite_model()
    proposal = PROPOSALS[name](model, y, seen)
    filtered = markov.filter(model, y, observed=seen)
    keys = jax.random.split(jax.random.key(0), (2, CHAINS))
    exact = jax.vmap(lambda key: markov.sample_path(key, model, filtered))(keys[0])
    moved = jax.vmap(
        lambda key, path: smc.conditional(
            key, model, y, path, observed=seen, proposal=proposal, particles=3
        )
    )(keys[1], exact)
    assert (moved != exact).any(axis=1).mean() > 0.3
    # against fresh exact paths would double the noise: the pairs' exact law instead
    inverse = jax.vmap(model.transition.invert)(core.Finite(filtered.laws.log_probs[:-1]))
    smoothed = markov.smooth(model, filtered)
    for t in range(4):
        pair = jnp.exp(smoothed.log_probs[t + 1][:, None] + inverse.log_matrix[t]).ravel()
        found = jax.nn.one_hot(3 * moved[:, t + 1] + moved[:, t], 9).mean(0)
        z = (found - pair) / jnp.sqrt(pair * (1 - pair) / CHAINS)
        assert jnp.abs(z).max() < 4.5  # of nine


def test_paths_forget_where_they_began(x64):
    """From the least and from the most probable path alike, after eight moves."""
    model, y, seen = finite_model()
    keys = jax.random.split(jax.random.key(1), (2, 2000, 8))

    def chain(keys, path):
        def step(path, key):
            return smc.conditional(key, model, y, path, observed=seen, particles=5), None

        return jax.lax.scan(step, path, keys)[0]

    ends = [
        jax.vmap(chain, (0, None))(keys[i], jnp.full(5, state)) for i, state in enumerate((0, 2))
    ]
    one, two = (jax.nn.one_hot(end, 3).mean(0) for end in ends)
    assert (jnp.abs(one - two) < 4.5 * jnp.sqrt(0.5 / 2000)).all()


def step_mean(params, x):
    """Of a nonlinear step."""
    return 0.8 * x + jnp.sin(2 * x)


def step_root(params, x):
    return jnp.array([[0.6]])


def test_a_long_nonlinear_path_is_renewed_everywhere():
    """Ancestor sampling: twenty particles renew the start of 100 states, in a few moves."""
    model = markov.state_space(
        core.gaussian(jnp.zeros(1), core.Diagonal(jnp.ones(1))),
        markov.gaussian_step(step_mean, step_root),
        markov.linear_gaussian(jnp.eye(1), core.Diagonal(jnp.array([0.5]))),
    )
    path, y = model.sample(jax.random.key(2), 100)
    moved = path
    for i in range(5):
        moved = smc.conditional(jax.random.key(i), model, y, moved)
    assert (moved != path).mean() > 0.95
    assert jnp.abs(moved - path).mean() < 1.5  # and stays about the data


def test_bad_input_is_refused():
    model, y, _ = finite_model()
    path = jnp.zeros(5, int)
    with pytest.raises(ValueError, match="the path and one other"):
        smc.conditional(jax.random.key(0), model, y, path, particles=1)
    with pytest.raises(ValueError, match="a state for each of the 5 times"):
        smc.conditional(jax.random.key(0), model, y, path[:4])
