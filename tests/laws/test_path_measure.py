"""Every pair of path measures: its weights' mean is the evidence, and both ways agree."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jaxinf import core, mcmc, target, vi
from jaxinf.vi.resampled import Weighted

DIM, STEPS = 2, 8
LOG_Z = 1.3


def bump(data, x):
    """A skewed density whose evidence is known: N(0.5, 0.8^2) and N(sin x0, 0.6^2), times Z."""
    first = -0.5 * jnp.square((x[0] - 0.5) / 0.8) - jnp.log(0.8)
    second = -0.5 * jnp.square((x[1] - jnp.sin(x[0])) / 0.6) - jnp.log(0.6)
    return first + second - jnp.log(2 * jnp.pi) + data


def target_of(log_z=LOG_Z):
    return target.density(bump, jnp.zeros(DIM), jnp.asarray(log_z))


def exact(key, count):
    a, b = jax.random.normal(key, (2, count))
    x = 0.5 + 0.8 * a
    return jnp.stack([x, jnp.sin(x) + 0.6 * b], axis=1)


def bent(params, x, t):
    """A control that is not zero."""
    return jnp.tanh(params["in"] @ x + params["t"] * t) @ params["out"]


def network(key, inputs=DIM):
    keys = jax.random.split(key, 3)
    shapes = {"in": (5, inputs), "t": (5,), "out": (5, DIM)}
    drawn = zip(shapes.items(), keys, strict=True)
    return bent, {name: 0.5 * jax.random.normal(k, shape) for (name, shape), k in drawn}


def kernels(name, key=None, steps=STEPS):
    key = jax.random.key(0) if key is None else key
    path = vi.annealing(DIM, steps, step=0.15)
    return {
        "langevin annealing": lambda: vi.langevin_annealing(path),
        "monte carlo diffusion": lambda: vi.monte_carlo_diffusion(path, *network(key)),
        "controlled": lambda: vi.controlled(path, *network(key)),
        "path integral": lambda: vi.path_integral_sampler(DIM, steps, *network(key)),
        "denoising": lambda: vi.denoising_sampler(DIM, steps, *network(key)),
        "momentum": lambda: vi.underdamped(path),
        "annealed importance": lambda: vi.annealed_importance(path, mcmc.hmc(2, 0.7)),
        "controlled momentum": lambda: vi.underdamped(path, *network(key, 2 * DIM)),
    }[name]()


NAMES = (
    "langevin annealing", "monte carlo diffusion", "controlled", "path integral", "denoising",
    "momentum", "controlled momentum", "annealed importance",
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_weights_average_to_the_evidence(name):
    measures = vi.path_measures(target_of(), kernels(name))
    found = vi.evidence(jax.random.key(1), measures, 4000, exact=exact(jax.random.key(2), 2000))
    weights = np.exp(np.asarray(found.log_weights, np.float64) - LOG_Z)
    assert abs(weights.mean() - 1) < 4 * weights.std() / np.sqrt(4000)
    assert found.elbo < LOG_Z + 4 * found.elbo_error
    assert found.eubo > LOG_Z - 4 * found.eubo_error
    assert found.elbo < found.log_z < found.eubo
    chex.assert_trees_all_equal(found.invalid, 0)


@pytest.mark.parametrize("name", NAMES)
def test_crooks_identity(name):
    """Of paths ahead and back: E_q[w f(log w)] = Z E_p[f(log w)], here for tails of both sides."""
    measures, count = vi.path_measures(target_of(), kernels(name)), 4000
    ahead = jax.jit(jax.vmap(measures.forward))(jax.random.split(jax.random.key(3), count))
    keys = jax.random.split(jax.random.key(4), count)
    back = jax.jit(jax.vmap(measures.backward))(keys, exact(jax.random.key(5), count))
    there, here = (np.asarray(p.log_p - p.log_q, np.float64) - LOG_Z for p in (ahead, back))
    for low in (-1.0, 0.0, 0.5):
        weighed, plain = np.exp(there) * (there < low), (here < low).astype(float)
        error = np.sqrt((weighed.var() + plain.var()) / count)
        assert abs(weighed.mean() - plain.mean()) < 4 * error


ANNEALED = (
    "langevin annealing", "controlled", "momentum", "controlled momentum", "annealed importance",
)  # fmt: skip


@pytest.mark.parametrize("threshold", [0.0, 1.0])
@pytest.mark.parametrize("name", ANNEALED)
def test_resampled_paths_average_to_the_evidence(name, threshold):
    measures = vi.path_measures(target_of(), kernels(name))

    def run(key):
        found = vi.resampled(key, measures, 32, threshold=threshold)
        here = found.population.mean()
        return found.log_evidence, measures.kernels.position(here)

    log_z, _ = jax.jit(jax.vmap(run))(jax.random.split(jax.random.key(1), 400))
    weights = np.exp(np.asarray(log_z, np.float64) - LOG_Z)
    assert abs(weights.mean() - 1) < 4 * weights.std() / np.sqrt(400)


@pytest.mark.parametrize("name", ANNEALED)
def test_the_weights_of_steps_multiply_to_that_of_the_path(name, x64):
    measures = vi.path_measures(target_of(), kernels(name))
    model, keys = Weighted(measures), jax.random.split(jax.random.key(1), STEPS + 1)
    first = model.init(keys[0])

    def step(held, row):
        new, log_w = model.step(row[0], held, row[1])
        return new, (new, log_w)

    _, (later, log_w) = jax.lax.scan(step, first, (keys[1:], jnp.arange(1, STEPS + 1)))
    log_p, log_q = measures.evaluate(core.prepend(first, later))
    chex.assert_trees_all_close(jnp.sum(log_w), log_p - log_q, rtol=1e-10)


def test_resampling_keeps_paths_even():
    """Annealed without control: more effective paths at the end, at one estimate of log Z."""
    measures = vi.path_measures(target_of(), kernels("langevin annealing"))
    plain = vi.resampled(jax.random.key(0), measures, 2000, threshold=0.0)
    drawn = vi.resampled(jax.random.key(0), measures, 2000, threshold=1.0)
    assert drawn.population.ess() > 1.5 * plain.population.ess()
    for run in (plain, drawn):
        assert abs(run.log_evidence - LOG_Z) < 4 * run.standard_error


@pytest.mark.parametrize("name", NAMES)
def test_paths_have_one_density_however_they_were_drawn(name, x64):
    measures = vi.path_measures(target_of(), kernels(name))
    there = measures.forward(jax.random.key(1))
    back = measures.backward(jax.random.key(2), exact(jax.random.key(3), 1)[0])
    for path in (there, back):
        log_p, log_q = measures.evaluate(path.states)
        chex.assert_trees_all_close((log_p, log_q), (path.log_p, path.log_q), rtol=1e-10)
        chex.assert_tree_all_finite((log_p, log_q))


@pytest.mark.parametrize("name", NAMES)
def test_it_runs_on_a_mesh_and_has_gradients(name):
    mesh = jax.make_mesh((8,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
    measures = vi.path_measures(target_of(), kernels(name))

    def weights(keys):
        return jax.vmap(lambda key: measures.forward(key).log_p)(keys)

    keys = jax.random.split(jax.random.key(0), 8)
    spread = jax.shard_map(weights, mesh=mesh, in_specs=P("batch"), out_specs=P("batch"))
    chex.assert_trees_all_close(jax.jit(spread)(keys), weights(keys), rtol=2e-5)
    slopes = jax.grad(lambda k: vi.elbo(4)(jax.random.key(0), vi.path_measures(target_of(), k))[0])
    chex.assert_tree_all_finite(slopes(measures.kernels))


def moving(steps, u):
    """A Gaussian whose mean goes from 0 to 4 in unit time, with a constant control."""

    def far(_, x):
        return jnp.sum(-0.5 * jnp.square(x - 4) - 0.5 * jnp.log(2 * jnp.pi))

    path = vi.annealing(1, steps, step=1 / steps, falling=False)
    found = vi.controlled(path, constant, jnp.array(u))
    return vi.path_measures(target.density(far, jnp.zeros(1)), found)


def constant(params, x, t):
    return params + 0 * x


def test_perfect_control_makes_weights_constant():
    variances = []
    for steps in (16, 64, 256):
        found = vi.evidence(jax.random.key(0), moving(steps, 4.0), 4000)
        assert abs(found.log_z) < 4 * found.log_z_error + 1e-4
        variances.append(np.var(np.asarray(found.log_weights, np.float64)))
    # published beside it: 8.7e-4, 5.4e-5, 3.3e-6; a variance of 4,000 draws is known to 2.3 %
    np.testing.assert_allclose(variances, [8.7e-4, 5.4e-5, 3.3e-6], rtol=4 * 0.023 + 0.02)
    order = np.diff(np.log(variances)) / np.log(4)
    np.testing.assert_allclose(order, -2, atol=0.1)


def test_without_control_they_are_annealed_langevins():
    found = vi.evidence(jax.random.key(0), moving(64, 0.0), 4000)
    spread = np.var(np.asarray(found.log_weights, np.float64))
    assert abs(spread - 12) < 4 * 12 * np.sqrt(2 / 4000) + 0.3
    assert abs(found.elbo + 5.9) < 4 * found.elbo_error + 0.1


LOSSES = (
    vi.elbo(32), vi.elbo(32, sticking=True), vi.log_variance(32), vi.log_derivative(32),
    vi.trajectory_balance(32), vi.forward_kl(32),
)  # fmt: skip


@pytest.mark.parametrize("loss", LOSSES, ids=str)
def test_every_divergence_finds_the_control(loss):
    """At the perfect control each is least: a control of 3 learns that 4 is better."""
    measures = moving(16, 3.0)

    def value(u, key):
        changed = vi.path_measures(
            measures.target, vi.controlled(measures.kernels.path, constant, u)
        )
        given = vi.balanced(changed) if isinstance(loss, vi.TrajectoryBalance) else changed
        return loss(key, given)[0]

    keys = jax.random.split(jax.random.key(0), 200)
    slopes = np.asarray(jax.vmap(jax.grad(value), (None, 0))(jnp.array(3.0), keys), np.float64)
    assert slopes.mean() < -4 * slopes.std() / np.sqrt(200)


def test_bad_input():
    with pytest.raises(TypeError, match="has no log_prob"):
        vi.path_measures(lambda x: x, kernels("controlled"))
    with pytest.raises(TypeError, match="is no Kernels"):
        vi.path_measures(target_of(), vi.annealing(2, 3))
    with pytest.raises(ValueError, match="at least 1"):
        vi.annealing(0, 3)
    with pytest.raises(ValueError, match="positive"):
        vi.annealing(2, 3, step=0.0)
    with pytest.raises(TypeError, match="densities between"):
        vi.resampled(jax.random.key(0), vi.path_measures(target_of(), kernels("denoising")))
    with pytest.raises(TypeError, match="no chain"):
        vi.annealed_importance(vi.annealing(2, 3), 0.3)
    with pytest.raises(ValueError, match="draws"):
        vi.evidence(jax.random.key(0), vi.path_measures(target_of(), kernels("controlled")), 1)
