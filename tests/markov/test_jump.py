"""Jump processes against matrix exponentials, exact posteriors and forward-backward."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.scipy.linalg import expm

from jaxinf import core, markov

TELEGRAPH = np.array([[0.0, 0.8], [0.4, 0.0]])


def three(seed=0):
    rates = np.random.default_rng(seed).exponential(size=(3, 3))
    return markov.jump_process(jnp.asarray(rates))


def test_kernels_are_matrix_exponentials(x64):
    process = three()
    whole = markov.generator(process.rates)
    np.testing.assert_allclose(whole.sum(1), 0, atol=1e-15)
    for dt in (1e-6, 0.1, 1.0, 20.0):
        np.testing.assert_allclose(
            jnp.exp(process.kernel(dt).log_matrix), expm(dt * whole), rtol=1e-9, atol=1e-14
        )
    slope = jax.grad(lambda dt: process.kernel(dt).log_prob(jnp.asarray(0), jnp.asarray(1)))(0.7)
    row = expm(0.7 * whole)[0]
    np.testing.assert_allclose(slope, (row @ whole)[1] / row[1], rtol=1e-9)


def test_small_probabilities_keep_their_digits(x64):
    """Three jumps in a row in a short time: rate^3 dt^3 / 6, far below rounding of one."""
    rates = jnp.zeros((4, 4)).at[jnp.arange(3), jnp.arange(1, 4)].set(2.0)
    log_prob = markov.jump_process(rates).kernel(1e-7).log_matrix[0, 3]
    np.testing.assert_allclose(log_prob, 3 * np.log(2e-7) - np.log(6), rtol=1e-7)


def test_the_telegraph_relaxes_at_the_sum_of_its_rates(x64):
    p = jnp.exp(markov.jump_process(jnp.asarray(TELEGRAPH)).kernel(1.5).log_matrix[0])
    np.testing.assert_allclose(p[1], 2 / 3 * (1 - np.exp(-1.2 * 1.5)), rtol=1e-12)


def test_paths_end_as_the_kernel_says_and_have_their_density(x64):
    process = three()
    other = markov.jump_process(1.2 * process.rates + 0.05)
    keys = jax.random.split(jax.random.key(0), 20_000)
    paths = jax.vmap(lambda key: process.sample(key, jnp.asarray(1), 1.5, 40))(keys)
    assert paths.complete.all()
    found = jax.nn.one_hot(paths.states[:, -1], 3).mean(0)
    exact = jnp.exp(process.kernel(1.5).log_matrix[1])
    assert (jnp.abs(found - exact) / jnp.sqrt(exact * (1 - exact) / 20_000) < 4).all()
    # the ratio of two densities has mean one under the second's paths
    ratio = jnp.exp(
        jax.vmap(lambda path: other.log_prob(path, 1.5) - process.log_prob(path, 1.5))(paths)
    )
    assert jnp.abs(ratio.mean() - 1) < 4 * ratio.std() / np.sqrt(20_000)


def test_too_little_room_is_said():
    path = three().sample(jax.random.key(0), jnp.asarray(0), 100.0, 3)
    assert not path.complete


def observed():
    times = jnp.array([0.0, 0.7, 1.0, 2.5])
    y = jnp.array([0.2, 1.3, 0.9, -0.4])
    log_likelihoods = jax.scipy.stats.norm.logpdf(y[:, None], jnp.array([[0.0, 1.0]]), 0.5)
    return times, log_likelihoods, jnp.array([0.5, 0.5])


def test_the_bound_is_tight_at_the_posterior(x64):
    """And the evidence is that of the room's filter over the same times."""
    times, seen, initial = observed()
    prior = markov.jump_process(jnp.asarray(TELEGRAPH))
    posterior, evidence = markov.jump_posterior(prior, initial, times, seen)
    law = core.finite(initial)
    total = 0.0
    for t in range(4):
        law = prior.kernel(times[t] - times[t - 1]).push(law) if t else law
        law, value = markov.FiniteMessage(seen[t]).weigh(law)
        total += value
    np.testing.assert_allclose(evidence, total, rtol=1e-12)
    coarse, fine = (
        markov.jump_elbo(prior, initial, posterior, times, seen, steps=steps) for steps in (64, 128)
    )
    assert abs(fine - evidence) < 1e-6
    assert abs(fine - evidence) < abs(coarse - evidence) / 10  # fourth order: a sixteenth


def test_the_bound_is_below_the_evidence_elsewhere(x64):
    times, seen, initial = observed()
    prior = markov.jump_process(jnp.asarray(TELEGRAPH))
    exact, evidence = markov.jump_posterior(prior, initial, times, seen)
    for scale in (0.7, 1.4):
        other = exact._replace(rates=lambda i, t, scale=scale: scale * exact.rates(i, t))
        assert markov.jump_elbo(prior, initial, other, times, seen) < evidence - 0.01
    start = exact._replace(initial=initial)
    assert markov.jump_elbo(prior, initial, start, times, seen) < evidence - 0.01


def test_the_cost_is_the_mean_log_ratio_of_paths(x64):
    """Without observations the bound is minus the relative entropy of the path measures."""
    p, q = three(), three(1)
    start = jnp.array([0.0, 1.0, 0.0])
    posterior = markov.JumpPosterior(start, lambda i, t: q.rates)
    times = jnp.array([0.0, 1.5])
    bound = markov.jump_elbo(p, start, posterior, times, jnp.zeros((2, 3)))
    keys = jax.random.split(jax.random.key(1), 20_000)
    paths = jax.vmap(lambda key: q.sample(key, jnp.asarray(1), 1.5, 40))(keys)
    ratio = jax.vmap(lambda path: q.log_prob(path, 1.5) - p.log_prob(path, 1.5))(paths)
    assert jnp.abs(ratio.mean() + bound) < 4 * ratio.std() / np.sqrt(20_000)


def learned(params, odds, times):
    """A posterior by a network of the time left and of the odds of what is seen next."""
    ahead = jnp.concatenate([odds, jnp.zeros(3)])

    def rates(i, t):
        following = jax.lax.dynamic_slice(ahead, (i + 1,), (3,))
        left = times[i + 1] - t
        features = jnp.concatenate([following, left[None], jnp.ones(1), following * left])
        hidden = jnp.tanh(params["in"] @ features)
        log_rates = params["out"] @ hidden + params["straight"] @ features
        return two(jnp.exp(jnp.clip(log_rates, -6, 6)))

    start = params["start"] @ jnp.append(odds[:3], 1.0)
    return markov.JumpPosterior(jax.nn.softmax(jnp.append(0.0, start)), rates)


def two(rates):
    """The matrix of two rates."""
    return jnp.zeros((2, 2)).at[jnp.array([0, 1]), jnp.array([1, 0])].set(rates)


def test_rates_are_learned_through_the_bound():
    """Two rates from 200 paths seen through noise, the posterior's from a small network."""
    times, length, steps = jnp.arange(0.0, 5.0, 0.5), 10, 400
    truth = markov.jump_process(jnp.asarray(TELEGRAPH, jnp.float32))
    law = jnp.array([1 / 3, 2 / 3])
    kernel = truth.kernel(0.5)
    model = markov.state_space(core.finite(law), kernel, kernel)
    keys = jax.random.split(jax.random.key(2), 200)
    paths = jax.vmap(lambda key: model.sample(key, length)[0])(keys)
    y = paths + 0.3 * jax.random.normal(jax.random.key(3), paths.shape)
    seen = jax.scipy.stats.norm.logpdf(y[..., None], jnp.array([0.0, 1.0])[None, None], 0.3)
    keys = jax.random.split(jax.random.key(4))
    params = {
        "log_rates": jnp.zeros(2),
        "in": 0.5 * jax.random.normal(keys[0], (24, 8)),
        "out": 0.1 * jax.random.normal(keys[1], (2, 24)),
        "straight": jnp.zeros((2, 8)),
        "start": jnp.zeros(4),
    }

    def loss(params):
        prior = markov.JumpProcess(two(jnp.exp(params["log_rates"])))

        def one(seen):
            posterior = learned(params, (seen[:, 1] - seen[:, 0]) / 4, times)
            return markov.jump_elbo(prior, law, posterior, times, seen, steps=3)

        return -jnp.mean(jax.vmap(one)(seen))

    optimiser = optax.adam(optax.cosine_decay_schedule(0.03, steps))

    @jax.jit
    def train(params):
        def step(carry, _):
            params, state = carry
            updates, state = optimiser.update(jax.grad(loss)(params), state)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, optimiser.init(params)), None, length=steps)[0][0]

    found = jnp.exp(train(params)["log_rates"])
    np.testing.assert_allclose(found, [0.8, 0.4], rtol=0.15)


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match=r"shape \(states, states\)"):
        markov.jump_process(jnp.ones((2, 3)))
    with pytest.raises(ValueError, match="must not be negative"):
        markov.jump_process(-jnp.ones((2, 2)))
    times, seen, initial = observed()
    prior = markov.jump_process(jnp.asarray(TELEGRAPH))
    posterior, _ = markov.jump_posterior(prior, initial, times, seen)
    with pytest.raises(ValueError, match="at least 1"):
        markov.jump_elbo(prior, initial, posterior, times, seen, steps=0)
