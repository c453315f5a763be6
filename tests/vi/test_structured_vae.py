"""Structured variational auto-encoders against Kalman's filter and dense Gaussian algebra."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxinf import core, markov, vi

LENGTH = 20
EXACT = vi.gauss_hermite(2)


def chain(length=LENGTH, seed=0):
    """A linear-Gaussian model of 2 states and 3 numbers, data, and a mask without 30 %."""
    rng = np.random.default_rng(seed)
    angle = 0.3
    turn = 0.95 * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    model = markov.state_space(
        core.gaussian(jnp.array([0.5, -0.2]), core.dense(jnp.array([[1.0, 0.3], [0.3, 0.8]]))),
        markov.linear_gaussian(
            jnp.asarray(turn),
            core.dense(jnp.array([[0.2, 0.05], [0.05, 0.1]])),
            jnp.array([0.1, 0.0]),
        ),
        markov.linear_gaussian(
            jnp.asarray(rng.normal(size=(3, 2))), core.Diagonal(jnp.array([0.5, 0.4, 0.7]))
        ),
    )
    _, data = model.sample(jax.random.key(seed), length)
    missing = rng.permutation(length)[: int(0.3 * length)]
    return model, data, jnp.ones(length, bool).at[missing].set(False)


def recognised(model, data, kept=None, block=None):
    potentials = jax.vmap(model.emission.likelihood)(data)
    return vi.structured_posterior(
        model.initial, model.transition, potentials, kept=kept, block=block
    )


def log_likelihood(emission, z, x):
    return emission.log_prob(z, x)


def dense(model, data, mask):
    """Log evidence and the means of the states, by the joint law of all numbers."""
    a, b = np.asarray(model.transition.matrix), np.asarray(model.transition.offset)
    c, noise = np.asarray(model.emission.matrix), np.asarray(model.emission.root)
    step, root = np.asarray(model.transition.root), np.asarray(model.initial.covariance.factor)
    means, blocks = [np.asarray(model.initial.mean)], [root @ root.T]
    for _ in range(1, len(data)):
        means.append(a @ means[-1] + b)
        blocks.append(a @ blocks[-1] @ a.T + step @ step.T)
    power = np.linalg.matrix_power
    joint = np.block([
        [power(a, i - j) @ blocks[j] if i >= j else blocks[i] @ power(a, j - i).T
         for j in range(len(data))] for i in range(len(data))
    ])  # fmt: skip
    seen = np.flatnonzero(mask)
    look = np.kron(np.eye(len(data))[seen], c)
    covariance = look @ joint @ look.T + np.kron(np.eye(len(seen)), noise @ noise.T)
    mean, y = np.concatenate(means), np.asarray(data)[seen].ravel()
    evidence = stats.multivariate_normal(look @ mean, covariance).logpdf(y)
    posterior = mean + joint @ look.T @ np.linalg.solve(covariance, y - look @ mean)
    return evidence, posterior.reshape(len(data), -1)


@pytest.mark.parametrize("masked", [False, True])
def test_exact_potentials_give_the_evidence_and_the_smoothed_means(x64, key, masked):
    model, data, mask = chain()
    mask = mask if masked else jnp.ones(LENGTH, bool)
    data = jnp.where(mask[:, None], data, jnp.nan)  # what is not there is not read
    posterior = recognised(model, data, mask)
    found = vi.structured_elbo(
        key, posterior, log_likelihood, model.emission, data, observed=mask, nodes=EXACT
    )
    filled = jnp.where(mask[:, None], data, 0)
    filtered = markov.filter(model, filled, observed=mask)
    smoothed = markov.smooth(model, filtered)
    evidence, means = dense(model, filled, mask)
    assert abs(found.bound - filtered.log_evidence[-1]) < 1e-6
    assert abs(found.bound - evidence) < 1e-6
    np.testing.assert_allclose(posterior.marginals.mean, smoothed.mean, atol=1e-8)
    np.testing.assert_allclose(posterior.marginals.mean, means, atol=1e-8)


def test_the_associative_scan_is_the_sequential_smoother(x64):
    model, data, mask = chain(512)
    one, other = (recognised(model, data, mask, block) for block in (None, 16))
    np.testing.assert_allclose(one.marginals.mean, other.marginals.mean, atol=1e-8)
    np.testing.assert_allclose(one.divergence(), other.divergence(), atol=1e-6)


def hidden():
    model = markov.state_space(
        core.finite(jnp.array([0.5, 0.3, 0.2])),
        markov.finite(jnp.array([[0.8, 0.2, 0.0], [0.1, 0.7, 0.2], [0.3, 0.1, 0.6]])),
        markov.finite(
            jnp.array([[0.7, 0.1, 0.1, 0.1], [0.1, 0.6, 0.2, 0.1], [0.1, 0.1, 0.1, 0.7]])
        ),
    )
    return model, model.sample(jax.random.key(3), 8)[1]


def test_a_hidden_markov_chain_by_enumeration(x64, key):
    model, data = hidden()
    mask = jnp.arange(8) % 3 != 1
    states = np.stack(np.meshgrid(*[np.arange(3)] * 8, indexing="ij"), -1).reshape(-1, 8)
    start, move, see = (
        np.exp(a) for a in (model.initial.log_probs, model.transition.log_matrix,
                            model.emission.log_matrix)
    )  # fmt: skip
    prior = start[states[:, 0]] * np.prod(move[states[:, :-1], states[:, 1:]], axis=1)
    joint = prior * np.prod(np.where(mask, see[states, np.asarray(data)], 1.0), axis=1)
    found = vi.structured_elbo(
        key, recognised(model, data, mask), log_likelihood, model.emission, data, observed=mask
    )
    np.testing.assert_allclose(found.bound, np.log(joint.sum()), atol=1e-10)
    # other potentials: the divergence and the bound are those of the law that they make
    values = jax.random.normal(key, (8, 3))
    other = vi.structured_posterior(model.initial, model.transition, markov.FiniteMessage(values))
    weights = prior * np.exp(np.asarray(values)[np.arange(8), states].sum(axis=1))
    q = weights / weights.sum()
    there = prior > 0
    kl = np.sum(q[there] * np.log(q[there] / prior[there]))
    np.testing.assert_allclose(other.divergence(), kl, atol=1e-10)
    logs = jax.vmap(other.log_prob)(jnp.asarray(states[there]))
    np.testing.assert_allclose(np.exp(logs), q[there], atol=1e-12)


def test_the_divergence_is_that_of_the_draws(x64, key):
    model, data, mask = chain()
    rng = np.random.default_rng(4)
    factors = jnp.asarray(rng.normal(size=(LENGTH, 2, 2)))
    potentials = vi.gaussian_potentials(
        jnp.asarray(rng.normal(size=(LENGTH, 2))), factors @ jnp.swapaxes(factors, 1, 2)
    )
    posterior = vi.structured_posterior(model.initial, model.transition, potentials, kept=mask)
    prior = vi.structured_posterior(
        model.initial, model.transition, jax.tree.map(jnp.zeros_like, potentials)
    )
    np.testing.assert_allclose(prior.divergence(), 0, atol=1e-9)

    def ratio(key):
        path, log_q = posterior.sample_and_log_prob(key)
        return log_q - prior.log_prob(path)

    draws = np.asarray(jax.vmap(ratio)(jax.random.split(key, 4000)))
    assert abs(draws.mean() - posterior.divergence()) < 4 * draws.std() / np.sqrt(4000)
    # and the bound lies below the evidence
    found = vi.structured_elbo(key, posterior, log_likelihood, model.emission, data, nodes=EXACT)
    assert found.bound < dense(model, data, np.ones(LENGTH))[0]


def test_as_a_family_it_is_held_against_the_joint(x64, key):
    model, data, _ = chain()
    posterior = recognised(model, data)
    prior = recognised(model, data, jnp.zeros(LENGTH, bool))

    class Joint:
        def log_prob(self, path):
            seen = jax.vmap(model.emission.log_prob)(path, data)
            return prior.log_prob(path) + jnp.sum(seen)

    _, info = vi.elbo(2)(key, vi.pair(Joint(), posterior))
    np.testing.assert_allclose(info.bound, dense(model, data, np.ones(LENGTH))[0], atol=1e-6)


def test_gradients_of_the_bound(x64, key):
    """Fisher's identity at the exact potentials, where the bound is flat, and differences off."""
    model, data, mask = chain(6)
    potentials = jax.vmap(model.emission.likelihood)(data)

    def bound(potentials, angle):
        h = potentials.precision  # what is not symmetric in it is no function of the state
        potentials = markov.Quadratic(
            potentials.constant, potentials.linear, (h + jnp.swapaxes(h, 1, 2)) / 2
        )
        kernel = markov.LinearGaussian(
            angle * model.transition.matrix, model.transition.offset, model.transition.root
        )
        posterior = vi.structured_posterior(model.initial, kernel, potentials, kept=mask)
        return vi.structured_elbo(
            key, posterior, log_likelihood, model.emission, data, observed=mask, nodes=EXACT
        ).bound

    def evidence(angle):
        kernel = markov.LinearGaussian(
            angle * model.transition.matrix, model.transition.offset, model.transition.root
        )
        moved = markov.state_space(model.initial, kernel, model.emission)
        return markov.filter(moved, data, observed=mask).log_evidence[-1]

    slopes = jax.jit(jax.value_and_grad(bound, (0, 1)))
    _, (slope, turn) = slopes(potentials, 0.9)
    chex.assert_trees_all_close(slope, jax.tree.map(jnp.zeros_like, slope), atol=1e-9)
    np.testing.assert_allclose(turn, jax.grad(evidence)(0.9), atol=1e-8)
    off = jax.tree.map(lambda a: 1.5 * a, potentials)
    _, (slope, _) = slopes(off, 0.9)
    line = jax.tree.map(lambda a: 1e-5 * a, potentials)
    up, down = (slopes(jax.tree.map(f, off, line), 0.9)[0] for f in (jnp.add, jnp.subtract))
    ahead = sum(jnp.vdot(a, b) for a, b in zip(*map(jax.tree.leaves, (slope, line)), strict=True))
    np.testing.assert_allclose(ahead, (up - down) / 2, rtol=1e-6)
    assert abs(ahead) > 1e-8


def test_what_does_not_fit_is_said(key):
    model, data, mask = chain(4)
    messages = jax.vmap(model.emission.likelihood)(data)
    make = vi.structured_posterior
    with pytest.raises(TypeError, match="FiniteMessage"):
        make(model.initial, model.transition, markov.FiniteMessage(jnp.zeros((4, 2))))
    with pytest.raises(ValueError, match=r"wanted \(T, 2\)"):
        make(model.initial, model.transition, vi.gaussian_potentials(*[jnp.zeros((4, 3))] * 2))
    stack = jax.tree.map(lambda a: jnp.stack([a] * 4), model.transition)
    with pytest.raises(ValueError, match="need 3 transitions"):
        make(model.initial, markov.over_time(stack), messages)
    with pytest.raises(ValueError, match="kept must be a mask"):
        make(model.initial, model.transition, messages, kept=jnp.ones(3, bool))
    with pytest.raises(ValueError, match="positive semi-definite"):
        vi.gaussian_potentials(jnp.zeros((4, 2)), -jnp.ones((4, 2)))
    posterior = recognised(model, data, mask)
    for found, wrong in (("leading axis", data[:3]), ("one number", data)):
        with pytest.raises(ValueError, match=found):
            vi.structured_elbo(key, posterior, lambda p, z, x: x, (), wrong)
