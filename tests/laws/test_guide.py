"""The laws of a guidance: every method joins here, with where it is exact and what weights mend."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from jaxinf import core, guide, process, sampler, score

PROCESS = process.gaussian(process.cosine(t_max=0.99))
DIM, NOISE = 4, 0.4
METHODS = {
    "mmps": guide.mmps,
    "mmps by gradients": lambda: guide.mmps(2, solve=guide.ConjugateGradients),
    "mmps by residuals": lambda: guide.mmps(2),
    "tmpd": guide.tmpd,
    "pigdm": guide.pigdm,
    "point": guide.point,
    "convolved": guide.convolved,
}
methods = pytest.mark.parametrize("method", METHODS)


class Problem(NamedTuple):
    """A Gaussian prior, a linear observation, and all that follows from them."""

    prior: core.laws.Gaussian
    likelihood: guide.Linear
    posterior: core.laws.Gaussian
    log_evidence: float


def problem(covariance, matrix, mean=None, noise=NOISE, seed=1):
    rng = np.random.default_rng(seed)
    mean = rng.standard_normal(len(covariance)) if mean is None else mean
    y = rng.standard_normal(len(matrix))
    s = matrix @ covariance @ matrix.T + noise**2 * np.eye(len(matrix))
    gain = np.linalg.solve(s, matrix @ covariance).T
    r = y - matrix @ mean
    law = core.gaussian(jnp.asarray(mean), core.dense(jnp.asarray(covariance)))
    left = covariance - gain @ matrix @ covariance
    posterior = core.gaussian(jnp.asarray(mean + gain @ r), core.dense(jnp.asarray(left)))
    log_evidence = -0.5 * (r @ np.linalg.solve(s, r) + np.linalg.slogdet(2 * np.pi * s)[1])
    likelihood = guide.linear(guide.projection(jnp.asarray(matrix)), jnp.asarray(y), noise)
    return Problem(law, likelihood, posterior, log_evidence)


def correlated():
    rng = np.random.default_rng(0)
    root = np.tril(rng.standard_normal((DIM, DIM)))
    return problem(root @ root.T + 0.3 * np.eye(DIM), rng.standard_normal((2, DIM)))


EXACT = {  # where a method's assumption holds, it has the posterior's denoiser
    "mmps": correlated,
    "mmps by gradients": correlated,  # as many steps as the observation has numbers
    "mmps by residuals": correlated,
    "tmpd": lambda: problem(np.diag([0.5, 1.0, 2.0, 0.3]), np.eye(DIM)[:3] * 1.7),
    "pigdm": lambda: problem(np.eye(DIM), np.random.default_rng(2).standard_normal((2, DIM))),
}


@pytest.mark.parametrize("method", EXACT)
def test_it_is_exact_where_it_says_so(method, x64):
    """The guided denoiser is E[x_0 | x_t, y] to rounding, at any time and point."""
    case = EXACT[method]()
    d = guide.conditioned(score.oracle(PROCESS, case.prior), case.likelihood, METHODS[method]())
    true = score.oracle(PROCESS, case.posterior)
    x = jax.random.normal(jax.random.key(3), (5, DIM))
    for t in (0.01, 0.3, 0.9):
        found, wanted = jax.vmap(lambda x, t=t: (d(x, t), true(x, t)))(x)
        np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-9)


@methods
def test_the_gradient_is_that_of_the_twist(method, x64):
    """Guided minus plain is (sigma^2 / alpha) grad log twist, covariances held still."""
    case, t = correlated(), 0.4
    plain = score.oracle(PROCESS, case.prior)
    made = METHODS[method]()
    if method in ("mmps by gradients", "mmps by residuals", "tmpd"):
        pytest.skip("its twist's determinant is not the one of its solve")
    d = guide.conditioned(plain, case.likelihood, made)
    x = jax.random.normal(jax.random.key(4), (DIM,))
    still = jax.vjp(lambda x: plain(x, t), x)[1]

    def twist(x):
        power = jnp.square(PROCESS.sigma(t)) / PROCESS.alpha(t)
        view = made.view(PROCESS, x, t, plain(x, t), lambda v: power * still(v)[0])
        return case.likelihood.tilt(view.belief).log_evidence

    np.testing.assert_allclose(d.evaluate(x, t, None, False).log_twist, twist(x), rtol=1e-12)
    shift = jnp.square(PROCESS.sigma(t)) / PROCESS.alpha(t) * jax.grad(twist)(x)
    np.testing.assert_allclose(d(x, t) - plain(x, t), shift, rtol=1e-9, atol=1e-11)


def test_a_perfect_twist_makes_weights_constant(x64, key):
    """Gaussian prior, full covariance: the evidence is exact but for the start's own law.

    x_T is drawn from N(0, sigma^2) and the prior's is N(alpha m, alpha^2 C + sigma^2); for a
    process whose alpha at the start is a ten thousandth nothing of that is left.
    """
    p = process.gaussian(process.cosine(t_max=1 - 1e-5))
    case = correlated()
    d = guide.conditioned(score.oracle(p, case.prior), case.likelihood, guide.mmps())
    plan = sampler.uniform(p, 5)
    run = guide.particles(key, sampler.moment_matched(p), d, plan, (DIM,), particles=50)
    np.testing.assert_allclose(run.log_evidence, case.log_evidence, atol=1e-3)
    assert float(jnp.min(run.info.ess)) > 50 * (1 - 1e-4)


def chain_evidence(case, stepper, plan):
    """Log evidence of y under the discretised prior chain, whose every step is affine."""
    d = score.oracle(PROCESS, case.prior)
    sigma = float(PROCESS.sigma(plan.times[0]))
    mean, covariance = np.zeros(DIM), sigma**2 * np.eye(DIM)
    for t, s in zip(plan.times[:-1], plan.times[1:], strict=True):

        def at(x, t=t, s=s):
            return stepper.proposal(d, sampler.State(x), t, s)

        origin = at(jnp.zeros(DIM))
        slope = np.asarray(jax.jacfwd(lambda x: at(x).mean)(jnp.zeros(DIM)))
        spread = np.asarray(origin.covariance.dense(DIM))
        mean, covariance = slope @ mean + origin.mean, slope @ covariance @ slope.T + spread
    a = np.asarray(case.likelihood.operator.params)
    s = a @ covariance @ a.T + NOISE**2 * np.eye(len(a))
    r = np.asarray(case.likelihood.y) - a @ mean
    return -0.5 * (r @ np.linalg.solve(s, r) + np.linalg.slogdet(2 * np.pi * s)[1])


@pytest.mark.parametrize("stepper", ["ancestral", "moment_matched"])
@pytest.mark.parametrize("method", ["mmps by gradients", "tmpd", "pigdm"])
def test_evidence_is_unbiased_for_the_chain(method, stepper, x64):
    """Whatever the twist: E[Z] is the discretised prior chain's, over independent runs."""
    case = correlated()
    made = getattr(sampler, stepper)(PROCESS)
    plan = sampler.uniform(PROCESS, 12, end=0.3)  # to a level where steps keep their noise
    d = guide.conditioned(
        score.oracle(PROCESS, case.prior), case.likelihood, METHODS[method](), scale=0.5
    )
    keys = jax.random.split(jax.random.key(5), 200)

    @jax.jit
    @jax.vmap
    def log_z(key):
        return guide.particles(key, made, d, plan, (DIM,), particles=64).log_evidence

    z = np.exp(np.asarray(log_z(keys)) - chain_evidence(case, made, plan))
    assert abs(z.mean() - 1) < 4 * z.std(ddof=1) / np.sqrt(len(z)), (z.mean(), z.std())


def test_guided_samplers_converge_to_the_posterior(x64, key):
    """Gaussian prior, exact method: a deterministic sampler maps the start as the posterior's."""
    case = correlated()
    d = guide.conditioned(score.oracle(PROCESS, case.prior), case.likelihood, guide.mmps())
    true = score.oracle(PROCESS, case.posterior)
    x = PROCESS.prior().sample(key, (3, DIM))
    plan = sampler.uniform(PROCESS, 20)
    found, wanted = (sampler.sample(key, sampler.heun(PROCESS), m, plan, x).x for m in (d, true))
    np.testing.assert_allclose(found, wanted, rtol=1e-8, atol=1e-8)


@methods
def test_a_start_without_signal_is_left_alone(method):
    """Where alpha is 0 the guided denoiser is the plain one: no division by it."""
    p = process.gaussian(process.cosine())
    case = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), correlated())
    plain = score.oracle(p, case.prior)
    d = guide.conditioned(plain, case.likelihood, METHODS[method]())
    x = jax.random.normal(jax.random.key(7), (DIM,))
    np.testing.assert_array_equal(d(x, 1.0), plain(x, 1.0))
    assert bool(jnp.isfinite(d.evaluate(x, 1.0, None, False).log_twist))


def test_two_observations_are_both(x64):
    """Conditioning twice is conditioning on both, where the method is exact."""
    case = correlated()
    first = guide.linear(guide.select([0]), jnp.array([0.3]), 0.5)
    rows = np.concatenate([np.eye(DIM)[:1], np.asarray(case.likelihood.operator.params)])
    y = jnp.concatenate([first.y, case.likelihood.y])
    noise = jnp.array([0.5, NOISE, NOISE])
    both = guide.linear(guide.projection(jnp.asarray(rows)), y, noise)
    plain = score.oracle(PROCESS, case.prior)
    one = guide.conditioned(plain, first, guide.mmps())
    x = jax.random.normal(jax.random.key(6), (DIM,))
    twice = guide.conditioned(one, case.likelihood, guide.mmps()).evaluate(x, 0.4, None, True)
    at_once = guide.conditioned(plain, both, guide.mmps()).evaluate(x, 0.4, None, True)
    np.testing.assert_allclose(twice.log_twist, at_once.log_twist, rtol=1e-9)
    chex.assert_trees_all_close(twice.guided, at_once.guided, rtol=1e-9, atol=1e-11)
    # and without covariances the second is held against the first one's derivative
    short = guide.conditioned(one, case.likelihood, guide.mmps())(x, 0.4)
    np.testing.assert_allclose(short, at_once.guided.mean, rtol=1e-9)


@methods
def test_it_composes(method, key):
    """Samples are the same in any batch, under jit, shard_map and vmap on eight devices."""
    case = correlated()
    to_single = jax.tree_util.Partial(jax.tree.map, lambda a: jnp.asarray(a, jnp.float32))
    d = guide.conditioned(
        score.oracle(PROCESS, to_single(case.prior)), to_single(case.likelihood),
        METHODS[method](), scale=0.01 if method == "point" else 1.0,
    )  # fmt: skip
    plan = sampler.uniform(PROCESS, 4)
    x = PROCESS.prior().sample(key, (8, DIM))
    mesh = jax.make_mesh((8,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = PartitionSpec("batch")

    def draw(x, index):
        return sampler.sample(key, sampler.ancestral(PROCESS), d, plan, x, index=index).x

    sharded = jax.jit(jax.shard_map(draw, mesh=mesh, in_specs=(rows, rows), out_specs=rows))
    whole = draw(x, jnp.arange(8))
    np.testing.assert_allclose(sharded(x, jnp.arange(8)), whole, rtol=1e-3, atol=1e-4)
    assert bool(jnp.all(jnp.isfinite(whole)))
    moved = x.at[1:].multiply(3.0)
    np.testing.assert_array_equal(draw(moved, jnp.arange(8))[0], whole[0])


def test_other_numbers_compile_nothing(key):
    """An observation, its noise and the scale are leaves."""
    chex.clear_trace_counter()
    case = correlated()
    plain = score.oracle(PROCESS, case.prior)

    @jax.jit
    @chex.assert_max_traces(1)
    def draw(d):
        plan = sampler.uniform(PROCESS, 3, end=PROCESS.t_min)
        return guide.particles(
            key, sampler.ancestral(PROCESS), d, plan, (DIM,), particles=8
        ).log_evidence

    for y, noise, scale in ((0.1, 0.5, 1.0), (0.3, 0.2, 0.7)):
        matrix = jnp.full((1, DIM), y)
        likelihood = guide.linear(guide.projection(matrix), jnp.array([y]), noise)
        d = guide.conditioned(plain, likelihood, guide.mmps(), scale=jnp.float32(scale))
        assert bool(jnp.isfinite(draw(d)))


@pytest.mark.parametrize("stepper", [sampler.ancestral, sampler.moment_matched])
def test_a_problem_does_not_see_the_others(stepper, key):
    """Runs side by side, a key and an observation each: run 0 is bitwise its own; alone, the same.

    Alone it is another program, whose sums round otherwise: 1e-5 of the numbers' size, where no
    resampling turns on a weight's last digit.
    """
    case = correlated()
    prior = core.gaussian(case.prior.mean.astype(jnp.float32), core.Diagonal(jnp.float32(1.3)))
    d, matrix = score.oracle(PROCESS, prior), case.likelihood.operator
    plan = sampler.uniform(PROCESS, 4, end=0.05)

    @jax.jit
    @jax.vmap
    def runs(key, y):
        given = guide.conditioned(d, guide.linear(matrix, y, NOISE), guide.pigdm())
        run = guide.particles(key, stepper(PROCESS), given, plan, (DIM,), particles=32)
        return run.population.particles, run.log_evidence

    keys, y = jax.random.split(key, 3), jax.random.normal(key, (3, 2))
    one, other = runs(keys, y), runs(keys, y.at[1:].add(3.0))
    chex.assert_trees_all_equal(*(jax.tree.map(lambda a: a[0], found) for found in (one, other)))
    assert not np.array_equal(one[1][1], other[1][1])
    alone = jax.tree.map(lambda a: a[0], runs(keys[:1], y[:1]))
    chex.assert_trees_all_close(alone, jax.tree.map(lambda a: a[0], one), rtol=1e-5, atol=1e-5)


def test_residuals_are_least_for_a_matrix_that_is_not_symmetric(x64):
    """Each step of GMRES has the residual of a direct fit in Krylov's space; the last is exact."""
    rng = np.random.default_rng(8)
    m, r = jnp.asarray(rng.standard_normal((5, 5))), jnp.asarray(rng.standard_normal(5))
    whole = np.eye(5) + np.asarray(m)
    for k in (1, 2, 5):
        x, _ = guide.GMRES(k).solve(lambda v: m @ v, r)
        krylov = np.stack([np.linalg.matrix_power(whole, j) @ r for j in range(k)], 1)
        shares = np.linalg.lstsq(whole @ krylov, np.asarray(r), rcond=None)[0]
        np.testing.assert_allclose(x, krylov @ shares, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(whole @ x, r, rtol=1e-8, atol=1e-8)
    nothing, _ = guide.GMRES(3).solve(lambda v: m @ v, jnp.zeros(5))
    np.testing.assert_array_equal(nothing, jnp.zeros(5))


def test_known_numbers_are_checked_while_a_program_is_traced():
    """What is concrete is looked at under jit as outside of it."""

    @jax.jit
    def log_prob(y):
        seen = guide.linear(guide.select([0]), y[None], 0.7)
        within = guide.interval(lambda _, x: x, -1.0, 1.0)
        return seen.log_prob(jnp.zeros(1)), within.log_prob(jnp.zeros(1))

    assert bool(jnp.isfinite(jnp.stack(jax.tree.leaves(log_prob(jnp.float32(0.3))))).all())
    with pytest.raises(ValueError, match="must be positive"):
        jax.jit(lambda y: guide.linear(guide.select([0]), y, 0.0).y)(jnp.zeros(1))
