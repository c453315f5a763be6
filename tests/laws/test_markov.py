"""Laws of conditional laws; every exact kernel joins."""

import functools
import itertools
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from jaxinf import core, markov


class Case(NamedTuple):
    """Three kernels in a row, a law of the start, a message about every state, states of each."""

    kernels: tuple
    unit: object
    prior: object
    messages: tuple
    states: tuple


def finite():
    rng = np.random.default_rng(0)
    sizes = (3, 4, 2, 5)
    kernels = tuple(
        markov.finite(jnp.asarray(rng.dirichlet(np.ones(m), n)))
        for n, m in itertools.pairwise(sizes)
    )
    messages = tuple(markov.FiniteMessage(jnp.asarray(rng.normal(size=n))) for n in sizes)
    states = tuple(jnp.asarray(rng.integers(n)) for n in sizes)
    prior = core.finite(jnp.asarray(rng.dirichlet(np.ones(3))))
    return Case(kernels, markov.finite(jnp.eye(4)), prior, messages, states)


def linear_gaussian():
    rng = np.random.default_rng(1)
    sizes = (2, 3, 2, 1)

    def positive(n):
        root = rng.normal(size=(n, n))
        return jnp.asarray(root @ root.T + 0.3 * np.eye(n))

    kernels = tuple(
        markov.linear_gaussian(
            jnp.asarray(rng.normal(size=(m, n))),
            core.dense(positive(m)),
            jnp.asarray(rng.normal(size=m)),
        )
        for n, m in itertools.pairwise(sizes)
    )
    messages = tuple(
        markov.Quadratic(jnp.asarray(rng.normal()), jnp.asarray(rng.normal(size=n)), positive(n))
        for n in sizes
    )
    states = tuple(jnp.asarray(rng.normal(size=n)) for n in sizes)
    prior = core.gaussian(jnp.asarray(rng.normal(size=2)), core.dense(positive(2)))
    unit = markov.linear_gaussian(jnp.eye(3), core.Diagonal(jnp.zeros(3)))
    return Case(kernels, unit, prior, messages, states)


def side_by_side():
    a, b = finite(), linear_gaussian()
    return Case(
        tuple(map(markov.tensor, a.kernels, b.kernels)),
        markov.tensor(a.unit, b.unit),
        markov.Both(a.prior, b.prior),
        tuple(map(markov.Both, a.messages, b.messages)),
        tuple(zip(a.states, b.states, strict=True)),
    )


CASES = {"finite": finite, "linear-Gaussian": linear_gaussian, "side by side": side_by_side}


@core.record
class Plain:
    """A kernel that only draws and has a density."""

    kernel: object

    def sample(self, key, x):
        return self.kernel.sample(key, x)

    def log_prob(self, x, y):
        return self.kernel.log_prob(x, y)


WAYS = {"tilted": lambda kernel: kernel, "drawn and weighed": Plain}


@pytest.fixture(params=CASES)
def case(request, x64):
    return CASES[request.param]()


def close(a, b, tolerance=1e-11):
    chex.assert_trees_all_close(a, b, rtol=tolerance, atol=tolerance)


def test_tilting_is_bayes_rule(case):
    k, h, x, y = case.kernels[0], case.messages[1], case.states[0], case.states[1]
    law, value = k.tilt(x, h)
    close(law.log_prob(y), k.log_prob(x, y) + h(y) - value)
    close(k.pullback(h).message(x), value)


def test_a_guided_kernel_is_the_tilted_law(case):
    k, h, x = case.kernels[0], case.messages[1], case.states[0]
    law, _ = k.tilt(x, h)
    guided = k.pullback(h).guided
    keys = jax.random.split(jax.random.key(0), 20_000)
    drawn, weight = jax.vmap(guided.move, (0, None))(keys, x)
    assert jnp.all(weight == 0)
    for leaf, straight in zip(
        *map(jax.tree.leaves, (drawn, jax.vmap(law.sample)(keys))), strict=True
    ):
        n = leaf.shape[0]
        error = jnp.sqrt((leaf.var(0) + straight.var(0)) / n) + 1e-12
        assert jnp.all(jnp.abs(leaf.mean(0) - straight.mean(0)) < 4 * error)


def test_a_law_pushed_and_a_message_pulled_meet(case):
    k, h, prior = case.kernels[0], case.messages[1], case.prior
    close(h.weigh(k.push(prior))[1], k.pullback(h).message.weigh(prior)[1])


def test_an_inverse_has_the_same_joint_law(case):
    k, prior, (x, y) = case.kernels[0], case.prior, case.states[:2]
    joint = prior.log_prob(x) + k.log_prob(x, y)
    close(k.push(prior).log_prob(y) + k.invert(prior).log_prob(y, x), joint)
    law, value = k.observe(prior, y)
    close(law.log_prob(x) + value, joint)


def test_a_likelihood_is_the_density(case):
    k, x, y = case.kernels[0], case.states[0], case.states[1]
    close(k.likelihood(y)(x), k.log_prob(x, y))


def test_units(case):
    k, h, x = case.kernels[0], case.messages[1], case.states[0]
    after = markov.compose(k, case.unit)
    close(after.pullback(h).message(x), k.pullback(h).message(x))
    close(
        after.push(case.prior).log_prob(case.states[1]), k.push(case.prior).log_prob(case.states[1])
    )


def test_grouping_does_not_matter(case):
    """Messages, laws, inverses and evidence of every grouping, and of one collapsed kernel."""
    a, b, c = case.kernels
    h, x, z = case.messages[3], case.states[0], case.states[3]
    groups = [
        markov.compose(a, b, c),
        markov.compose(a, markov.compose(b, c)),
        a.then(b).then(c),
        a.then(b.then(c)),
    ]
    first = groups[0]
    for other in groups[1:]:
        close(first.pullback(h).message(x), other.pullback(h).message(x))
        close(first.push(case.prior).log_prob(z), other.push(case.prior).log_prob(z))
        close(first.log_prob(x, z), other.log_prob(x, z))
        close(first.likelihood(z)(x), other.likelihood(z)(x))
        close(first.observe(case.prior, z)[1], other.observe(case.prior, z)[1])
        close(first.tilt(x, h)[1], other.tilt(x, h)[1])


def test_the_inverse_of_a_composite_is_the_composite_of_inverses(case):
    a, b, _ = case.kernels
    x, z = case.states[0], case.states[2]
    lens = markov.compose(a, b).invert(case.prior)
    close(lens.log_prob(z, x), a.then(b).invert(case.prior).log_prob(z, x))


@pytest.mark.parametrize("shown", WAYS.values(), ids=WAYS)
def test_an_equal_copy_as_surrogate_leaves_no_weight(case, shown):
    """Through the general path: the kernel is tilted, the surrogate's message divided out."""
    equal = [markov.guide(shown(k), jax.tree.map(jnp.copy, k)) for k in case.kernels]
    chain = functools.reduce(markov.compose, equal)
    message, guided = chain.pullback(case.messages[3])
    exact = markov.compose(*case.kernels).pullback(case.messages[3]).message
    close(message(case.states[0]), exact(case.states[0]))
    keys = jax.random.split(jax.random.key(1), 50)
    weights = jax.vmap(lambda key: guided.move(key, case.states[0])[1])(keys)
    close(weights, jnp.zeros(50))


def wrong(kernel):
    """A kernel of the same kind that is off."""
    if isinstance(kernel, markov.FiniteKernel):
        off = 0.2 * jnp.cos(jnp.arange(kernel.log_matrix.size)).reshape(kernel.log_matrix.shape)
        return markov.FiniteKernel(jax.nn.log_softmax(kernel.log_matrix + off, axis=1))
    if isinstance(kernel, markov.Tensor):
        return markov.tensor(wrong(kernel.first), wrong(kernel.second))
    return markov.LinearGaussian(0.8 * kernel.matrix, kernel.offset + 0.1, kernel.root)


@pytest.mark.parametrize("shown", WAYS.values(), ids=WAYS)
def test_a_wrong_surrogate_is_weighed_right(case, shown):
    """E[w] claimed(x) = (k h)(x) whatever the surrogate."""
    a, b, _ = case.kernels
    h, x = case.messages[2], case.states[0]
    chain = markov.compose(*[markov.guide(shown(k), wrong(k)) for k in (a, b)])
    message, guided = chain.pullback(h)
    truth = markov.compose(a, b).pullback(h).message(x)
    keys = jax.random.split(jax.random.key(2), 50_000)
    weights = jnp.exp(jax.vmap(lambda key: guided.move(key, x)[1])(keys) + message(x) - truth)
    error = weights.std() / np.sqrt(len(keys))
    assert weights.std() > 0.01
    assert jnp.abs(weights.mean() - 1) < 4 * error < 0.1


def test_interchange(case):
    """Pairs of composites are composites of pairs."""
    a, b, _ = case.kernels
    of_pairs = markov.compose(markov.tensor(a, b), markov.tensor(b, case.kernels[2]))
    pairs = markov.tensor(markov.compose(a, b), markov.compose(b, case.kernels[2]))
    message = markov.Both(case.messages[2], case.messages[3])
    x = case.states[0], case.states[1]
    close(of_pairs.pullback(message).message(x), pairs.pullback(message).message(x))
    one, two = (m.pullback(message).guided.move(jax.random.key(3), x) for m in (of_pairs, pairs))
    chex.assert_trees_all_equal_shapes(one[0], two[0])


def test_copying_multiplies_messages(case):
    h, g, x = case.messages[1], case.messages[1], case.states[1]
    back, guided = markov.copy().pullback(markov.Both(h, g))
    close(back(x), h(x) + g(x))
    chex.assert_trees_all_equal(guided.move(jax.random.key(0), x)[0], (x, x))


def test_seeing_an_end_is_its_likelihood(case):
    """Copy, then see one branch and go on with the other: a step of a hidden Markov process."""
    a, b, _ = case.kernels
    x, y = case.states[0], case.states[1]
    step = markov.compose(
        markov.copy(), markov.tensor(markov.condition(a, y), markov.compose(a, b))
    )
    back, guided = step.pullback(markov.Both(markov.Nothing(), case.messages[2]))
    close(back(x), a.log_prob(x, y) + markov.compose(a, b).pullback(case.messages[2]).message(x))
    (nothing, _), weight = guided.move(jax.random.key(0), x)
    assert nothing == ()
    close(weight, 0.0)


def test_composition_under_transformations(case):
    """Under jit(shard_map(vmap)) on all devices, and under grad, as alone."""
    kernel, h, x = case.kernels[0], case.messages[1], case.states[0]
    copies = jax.tree.map(lambda a: jnp.broadcast_to(a, (8, *a.shape)), x)
    keys = jax.random.split(jax.random.key(0), 8)

    def one(key, x):
        drawn, weight = kernel.pullback(h).guided.move(key, x)
        return drawn, kernel.pullback(h).message(x) + weight

    alone = jax.vmap(one)(keys, copies)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    spec = PartitionSpec("data")
    mapped = jax.shard_map(jax.vmap(one), mesh=mesh, in_specs=(spec, spec), out_specs=spec)
    close(jax.jit(mapped)(keys, copies), alone)

    def value(kernel, prior):
        return h.weigh(kernel.push(prior))[1]

    slopes = jax.grad(value)(kernel, case.prior)
    step = 1e-6
    moved = value(jax.tree.map(lambda a, s: a + step * s, kernel, slopes), case.prior)
    steepest = sum(float(jnp.sum(jnp.square(s))) for s in jax.tree.leaves(slopes))
    assert steepest > 0
    np.testing.assert_allclose(moved - value(kernel, case.prior), step * steepest, rtol=1e-3)


def test_other_numbers_compile_nothing(case):
    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(1)
    def value(kernel, h, x):
        return kernel.pullback(h).message(x)

    kernel, h, x = case.kernels[0], case.messages[1], case.states[0]
    value(kernel, h, x)
    value(jax.tree.map(lambda a: a * 1.01, kernel), h, x)
