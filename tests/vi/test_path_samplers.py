"""Samplers of path measures, fitted to Neal's funnel, whose log Z is 0."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxinf import target, vi

DIM, STEPS = 10, 8


def funnel(_, z):
    v, x = z[0], z[1:]
    inner = jnp.sum(jnp.square(x)) * jnp.exp(-v) / 2 + x.size * v / 2
    return -(v * v) / 18 - inner - jnp.log(3.0) - z.size / 2 * jnp.log(2 * jnp.pi)


def exact(key, count):
    z = jax.random.normal(key, (count, DIM))
    return jnp.concatenate([3 * z[:, :1], jnp.exp(1.5 * z[:, :1]) * z[:, 1:]], axis=1)


def control(network, x, t):
    angles = jnp.pi * t * jnp.arange(1, 5)
    return network(jnp.concatenate([x, jnp.sin(angles), jnp.cos(angles)]))


POSTERIOR = target.density(funnel, jnp.zeros(DIM))
PATH = vi.annealing(DIM, STEPS, step=0.3 / STEPS, falling=False)


def error_above(known, count):
    """The standard error of log Z by the weights of paths back, by the delta method."""
    return jnp.sqrt((1 / known.reverse_ess - 1) / count)


def test_controlled_diffusion_reaches_the_published_bound():
    """Vargas et al. (2024): -1.063 with 8 steps, and -0.304 by weights."""
    network = vi.perceptron(jax.random.key(0), DIM + 8, DIM, width=64)
    schedule = optax.cosine_decay_schedule(0.02, 400)
    found = vi.approximate(
        jax.random.key(1), POSTERIOR, vi.controlled(PATH, control, network),
        objective=vi.elbo(300), steps=400,
        optimizer=optax.chain(optax.clip_by_global_norm(5.0), optax.adam(schedule)),
    )  # fmt: skip
    chex.assert_trees_all_equal(found.info.skipped, np.zeros(400, np.int32))
    measures = vi.path_measures(POSTERIOR, found.params)
    known = vi.evidence(jax.random.key(2), measures, 20_000, exact=exact(jax.random.key(3), 20_000))
    assert known.elbo > -1.063 + 2 * known.elbo_error
    assert known.elbo < known.log_z < 4 * known.log_z_error
    assert -4 * error_above(known, 20_000) < known.reverse_log_z < known.eubo


def test_a_path_back_that_no_float_holds_keeps_both_bounds():
    """From far down the neck Langevin's steps back explode; all other paths count as before."""
    measures = vi.path_measures(POSTERIOR, vi.langevin_annealing(PATH))
    ends = exact(jax.random.key(1), 1000)
    usual = vi.evidence(jax.random.key(0), measures, 1000, exact=ends)
    lost = vi.evidence(
        jax.random.key(0), measures, 1000, exact=ends.at[0].set(1.0).at[0, 0].set(-100)
    )
    chex.assert_trees_all_equal((usual.invalid, lost.invalid), (0, 1))
    assert jnp.isfinite(usual.eubo)
    assert lost.eubo == jnp.inf
    # without one weight of a thousand
    chex.assert_trees_all_close(lost.reverse_log_z, usual.reverse_log_z, atol=0.05)
