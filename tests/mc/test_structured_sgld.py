"""Structured Langevin dynamics against the exact stationary law of a Gaussian's chain."""

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jaxinf import mc, target
from jaxinf.mc.structured_sgld import _gradient, _Rule, _run
from jaxinf.run.mesh import make_mesh

PAIR = np.array([[1.0, 0.9], [0.9, 1.0]])
TRIPLE = np.array([[1.0, 0.6, 0.5], [0.6, 1.0, 0.4], [0.5, 0.4, 1.0]])


def quadratic(precision, x):
    return -x @ precision @ x / 2


def gaussian(covariance):
    return target.density(
        quadratic, jnp.zeros(len(covariance)), jnp.asarray(np.linalg.inv(covariance), jnp.float32)
    )


def stationary(precision, labels, h, keep=None):
    """The covariance of the chain with the past an independent draw of its own law.

    A step is theta' = (1 - h A) theta - h B past + noise with A, B random by the masks; the linear
    equation for the covariance S is solved by enumeration. Without dropout the past's draws for
    different groups are independent of each other.
    """
    dim, groups = len(precision), max(labels) + 1
    eye, cases = np.eye(dim), []
    blocks = np.equal.outer(labels, labels)
    if keep is None:
        inside = precision * blocks
        cases.append(
            (1.0, inside, [(precision - inside) * (labels == g)[:, None] for g in range(groups)])
        )
    else:
        for mask in itertools.product([0, 1], repeat=groups):
            on = np.diag(np.array(mask)[labels].astype(float))
            chance = np.prod([keep if m else 1 - keep for m in mask])
            cases.append((chance, on @ precision @ on / keep, [on @ precision @ (eye - on) / keep]))
    system = np.eye(dim * dim)
    for chance, now, pasts in cases:
        system -= chance * np.kron(eye - h * now, eye - h * now)
        for past in pasts:
            system -= chance * h**2 * np.kron(past, past)
    return np.linalg.solve(system, 2 * h * eye.ravel()).reshape(dim, dim)


def within_chains(draws, burn):
    """Covariances about each chain's own mean, their mean over chains and its standard error."""
    z = np.asarray(draws, np.float64)[:, burn:]
    z = z - z.mean(1, keepdims=True)
    each = np.einsum("cti,ctj->cij", z, z) / z.shape[1]
    return each.mean(0), each.std(0, ddof=1) / np.sqrt(len(each))


@pytest.mark.parametrize(
    ("covariance", "labels", "keep"),
    [
        (PAIR, np.array([0, 1]), None),
        (TRIPLE, np.array([0, 0, 1]), None),
        (PAIR, np.array([0, 1]), 0.5),
        (PAIR, np.array([0, 0]), None),
    ],
    ids=["factorised", "blocks", "dropout", "one group"],
)
def test_the_stationary_law_of_a_gaussian(covariance, labels, keep):
    """Variances 1 / Lambda_ii with the step's and the history's share, which are known exactly.

    A chain's mean over T steps has variance 2 tau v / T, which is missing from the covariance about
    it: below 0.4 % here, a fifth of the standard errors that are allowed.
    """
    precision, h = np.linalg.inv(covariance), 0.02
    run = mc.structured_sgld(
        jax.random.key(0),
        gaussian(covariance),
        jnp.zeros((64, len(labels))),
        step_size=h,
        steps=8000,
        partition=jnp.asarray(labels),
        dropout=None if keep is None else 1 - keep,
    )
    assert run.info.finite.all()
    wanted = stationary(precision, labels, h, keep)
    found, error = within_chains(run.draws, 1000)
    slow = 1 / (h * np.linalg.eigvalsh(precision).min())  # at most, in steps
    if keep is None and len(set(labels)) > 1:
        slow = 1 / (h * np.diag(precision).min() / 2)
    missing = 2 * slow / 7000 * np.abs(wanted).max()
    assert np.all(abs(found - wanted) < 4 * error + missing)
    assert np.all(4 * error < 0.1 * np.abs(wanted).max())
    if keep is None and len(labels) == 2 and labels[1] == 1:
        ula = 1 / precision[0, 0] / (1 - h * precision[0, 0] / 2)
        np.testing.assert_allclose(ula, 0.2006, atol=5e-5)
        np.testing.assert_allclose(np.diag(wanted), 0.2100, atol=5e-5)
        assert abs(wanted[0, 1]) < 1e-12


def test_the_law_falls_to_the_variational_optimum_with_the_step():
    """As h falls the exact law above goes to the inverses of the precision's blocks."""
    precision = np.linalg.inv(TRIPLE)
    labels = np.array([0, 0, 1])
    blocks = precision * np.equal.outer(labels, labels)
    for keep, wanted in ((None, blocks), (0.3, 0.7 * blocks + 0.3 * precision)):
        off = [
            abs(stationary(precision, labels, h, keep) - np.linalg.inv(wanted)).max()
            for h in (2e-4, 1e-4)
        ]
        np.testing.assert_allclose(off[0] / off[1], 2, atol=0.05)


def test_more_averages_have_less_noise():
    """With K draws of the past its noise is a K-th."""
    past = jax.random.normal(jax.random.key(1), (50, 2))
    rule = _Rule(0.1, jnp.array([0, 1]), None, None)
    z, found = jnp.array([0.4, -0.7]), []
    for averages in (1, 16):
        keys = jax.random.split(jax.random.key(averages), 4000)
        slope = jax.jit(
            jax.vmap(
                lambda key, k=averages: _gradient(
                    key, gaussian(PAIR), rule, 2, k, z, past, jnp.array(49)
                )[0]
            )
        )(keys)
        found.append(np.asarray(slope, np.float64))
    precision = np.linalg.inv(PAIR)
    mean = precision.diagonal() * np.asarray(z) + precision[0, 1] * np.asarray(past)[:, ::-1].mean(
        0
    )
    variance = precision[0, 1] ** 2 * np.asarray(past, np.float64)[:, ::-1].var(0)
    for slope, k in zip(found, (1, 16), strict=True):
        assert np.all(abs(slope.mean(0) - mean) < 4 * np.sqrt(variance / k / len(slope)))
        # the relative error of a variance is at most root (kurtosis - 1) / n, of kurtosis below 4
        np.testing.assert_allclose(slope.var(0), variance / k, rtol=4 * np.sqrt(3 / len(slope)))


def test_one_group_is_plain_sgld_to_the_last_bit():
    precision = jnp.asarray(np.linalg.inv(PAIR), jnp.float32)
    start, key, h = jnp.ones((3, 2)), jax.random.key(2), 0.02

    @jax.jit
    def plain(precision, start):
        density = target.density(quadratic, jnp.zeros(2), precision)

        def step(z, i):
            def one(number, z):
                own = jax.random.fold_in(jax.random.fold_in(key, number), i)
                noise = jax.random.normal(jax.random.split(own)[0], z.shape)
                slope = jax.grad(lambda z: -density.log_prob(z))(z)
                return z - h * slope + jnp.sqrt(2 * h) * noise

            z = jax.vmap(one)(jnp.arange(len(z)), z)
            return z, z

        return jnp.moveaxis(jax.lax.scan(step, start, jnp.arange(200))[1], 0, 1)

    wanted = plain(precision, start)
    for partition in (None, jnp.zeros(2, jnp.int32)):
        run = mc.structured_sgld(
            key, gaussian(PAIR), start, step_size=h, steps=200, partition=partition, averages=3
        )
        np.testing.assert_array_equal(run.draws, wanted)


def observe(data, mean):
    return -jnp.sum((data - mean[None]) ** 2) / 2


def test_subsamples_are_unbiased():
    """Over all subsets of two of four examples the gradient is that of all of them."""
    data = jnp.array([[0.5], [1.0], [-2.0], [3.0]])
    prior_target = target.density(observe, jnp.zeros(1), data)
    z, batches = jnp.array([0.3]), mc.subsample(2)
    keys = jax.random.split(jax.random.key(3), 4000)
    slopes = jax.jit(
        jax.vmap(lambda key: jax.grad(batches(key, prior_target).log_prob)(z)),
    )(keys)
    whole = jax.grad(prior_target.log_prob)(z)
    error = jnp.std(slopes) / jnp.sqrt(len(keys))
    assert jnp.abs(jnp.mean(slopes) - whole[0]) < 4 * error
    # the variance of a sample without replacement, n^2 s^2 / m (1 - m / n)
    wanted = 16 * jnp.var(data, ddof=1) / 2 * (1 - 2 / 4)
    np.testing.assert_allclose(jnp.var(slopes), wanted, rtol=0.1)
    run = mc.structured_sgld(
        jax.random.key(4),
        prior_target,
        jnp.zeros((4, 1)),
        step_size=0.01,
        steps=50,
        batches=batches,
    )
    assert run.info.finite.all()


def test_a_window_of_history_and_dropouts_share():
    run = mc.structured_sgld(
        jax.random.key(5),
        gaussian(PAIR),
        jnp.zeros((32, 2)),
        step_size=0.02,
        steps=500,
        partition=jnp.array([0, 1]),
        dropout=0.25,
        history=50,
    )
    share = np.asarray(run.info.active, np.float64)
    error = np.sqrt(0.25 * 0.75 / (2 * share.size))
    assert abs(share.mean() - 0.75) < 4 * error
    none = mc.structured_sgld(
        jax.random.key(5),
        gaussian(PAIR),
        jnp.zeros((2, 2)),
        step_size=0.02,
        steps=20,
        partition=jnp.array([0, 1]),
        dropout=0.0,
    )
    alone = mc.structured_sgld(
        jax.random.key(5),
        gaussian(PAIR),
        jnp.zeros((2, 2)),
        step_size=0.02,
        steps=20,
    )
    np.testing.assert_allclose(none.draws, alone.draws, rtol=1e-5, atol=1e-6)


def test_a_chain_that_fails_stays_and_it_shows():
    steep = target.density(lambda _, x: -jnp.sum(x**4), jnp.zeros(2))
    start = jnp.array([[0.1, 0.1], [30.0, 30.0]])
    run = mc.structured_sgld(
        jax.random.key(6), steep, start, step_size=0.01, steps=50, partition=jnp.array([0, 1])
    )
    assert run.info.finite[0].all()
    assert not run.info.finite[1, -1]
    assert jnp.all(jnp.isfinite(run.draws))


def test_it_compiles_once_and_composes():
    before = _run._cache_size()
    for seed in range(3):
        mc.structured_sgld(
            jax.random.key(seed),
            gaussian(PAIR + seed * np.eye(2)),
            jnp.ones((4, 2)) * seed,
            step_size=0.01 * (seed + 1),
            steps=11,
            partition=jnp.array([1, 0]),
            dropout=0.1 * seed,
        )
    assert _run._cache_size() == before + 1
    chex.clear_trace_counter()

    def ends(key, start):
        return mc.structured_sgld(
            key, gaussian(PAIR), start, step_size=0.01, steps=9, partition=np.array([0, 1])
        ).draws

    counted = jax.jit(chex.assert_max_traces(ends, 1))
    starts = jax.random.normal(jax.random.key(7), (8, 3, 2))
    keys = jax.random.split(jax.random.key(8), 8)
    one = [counted(keys[i], starts[i]) for i in (0, 7)]
    inner = jax.shard_map(
        jax.vmap(ends), mesh=make_mesh("data=8"), in_specs=P("data"), out_specs=P("data")
    )
    found = jax.jit(inner)(keys, starts)
    np.testing.assert_allclose(found[0], one[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found[7], one[1], rtol=1e-5, atol=1e-6)
    fewer = mc.structured_sgld(
        keys[0], gaussian(PAIR), starts[0, :2], step_size=0.01, steps=9, partition=np.array([0, 1])
    )
    np.testing.assert_allclose(fewer.draws, one[0][:2], rtol=1e-5, atol=1e-6)


GOOD = {"step_size": 0.1, "steps": 3}


@pytest.mark.parametrize(
    ("start", "change", "message"),
    [
        (jnp.zeros((2, 3)), {}, "shape"),
        (jnp.zeros((2, 2)), {"steps": 0}, "steps"),
        (jnp.zeros((2, 2)), {"averages": 0}, "averages"),
        (jnp.zeros((2, 2)), {"history": -1}, "history"),
        (jnp.zeros((2, 2)), {"step_size": 0.0}, "positive"),
        (jnp.zeros((2, 2)), {"dropout": 1.0}, "dropout"),
        (jnp.zeros((2, 2)), {"partition": jnp.array([0, 2])}, "without gaps"),
        (jnp.zeros((2, 2)), {"partition": jnp.array([0, 0, 1])}, "each of 2 coord"),
        (jnp.zeros((2, 2)), {"batches": mc.subsample(5)}, "at least 5"),
    ],
)
def test_bad_input_is_refused(start, change, message):
    with pytest.raises(ValueError, match=message):
        mc.structured_sgld(jax.random.key(0), gaussian(PAIR), start, **(GOOD | change))


def test_bad_batches_are_refused():
    with pytest.raises(ValueError, match="size"):
        mc.subsample(0)
    with pytest.raises(TypeError, match=r"target\.density"):
        mc.subsample(1)(jax.random.key(0), None)
