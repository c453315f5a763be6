"""Revealing masks: the sampler's law exactly, by sums over all states."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from jaxinf import core, process, sampler
from jaxinf.process.masked import bernoulli, masked, uniform
from jaxinf.sampler.unmask import categorical, reveal_probability, unmask

V, L = 4, 3
P = masked(V)
JOINT = np.random.default_rng(0).dirichlet(np.full(V**L, 0.5)).reshape((V,) * L)
STATES = np.stack(np.meshgrid(*[np.arange(V + 1)] * L, indexing="ij"), -1).reshape(-1, L)


@core.record
class Conditionals:
    """The exact denoiser of a joint law: each token's law given those that are not masked."""

    joint: core.Leaf

    def __call__(self, x, t, cond=None):
        joint = jnp.asarray(self.joint)
        size, length = joint.shape[0], joint.ndim
        for i in range(length):
            seen = (x[i] == size) | (jnp.arange(size) == x[i])
            joint = joint * seen.reshape([-1 if j == i else 1 for j in range(length)])
        axes = range(length)
        return jnp.log(jnp.stack([joint.sum([j for j in axes if j != i]) for i in axes]))


def conditionals(joint, states):
    """Each state's laws of its tokens, in float64 with NumPy alone: shape (states, length, V)."""
    size, length = joint.shape[0], joint.ndim
    laws = np.zeros((len(states), length, size))
    for n, x in enumerate(states):
        seen = joint[tuple(slice(None) if a == size else slice(a, a + 1) for a in x)]
        for i in range(length):
            law = seen.sum(tuple(j for j in range(length) if j != i))
            laws[n, i, slice(None) if x[i] == size else slice(x[i], x[i] + 1)] = law
        laws[n] /= laws[n].sum(-1, keepdims=True)
    return laws


def product(factors):
    """Outer products of each state's laws: shape (states, states)."""
    out = factors[:, 0]
    for i in range(1, factors.shape[1]):
        out = (out[:, :, None] * factors[:, i, None, :]).reshape(len(out), -1)
    return out


def backward(r, laws, states):
    """The step's transition matrix over all states for the probability r of revealing."""
    size = laws.shape[-1]
    stay = np.eye(size + 1)[states]
    reveal = np.concatenate([r * laws, np.full((*states.shape, 1), 1 - r)], -1)
    return product(np.where((states == size)[..., None], reveal, stay))


def forward(kept, states, size):
    """The forward transition's matrix."""
    return product(kept * np.eye(size + 1)[states] + (1 - kept) * np.eye(size + 1)[size])


LAWS = conditionals(JOINT, STATES)


def law_at_the_end(p, times, start=None):
    """The sampler's output law over all states, exactly."""
    law = np.zeros(len(STATES)) if start is None else start
    if start is None:
        law[-1] = 1
    for t, s in itertools.pairwise(times):
        t, s = float(t), float(s)
        if s < t:
            law = law @ backward(float(reveal_probability(p, t, s)), LAWS, STATES)
        else:
            law = law @ forward(float(p.transition(t, s)), STATES, V)
    return law


def embedded(joint):
    """The joint law over tokens as a law over states with masks."""
    law = np.zeros((V + 1,) * L)
    law[:V, :V, :V] = joint
    return law.ravel()


def counted(x):
    counts = np.zeros((V + 1,) * L)
    np.add.at(counts, tuple(np.asarray(x).T), 1)
    return counts.ravel()


def chi_square(counts, law):
    """z-score of the statistic, with outcomes of fewer than 5 expected taken together."""
    assert counts[law == 0].sum() == 0
    expected, counts = counts.sum() * law[law > 0], counts[law > 0]
    rare = expected < 5
    expected = np.append(expected[~rare], expected[rare].sum())
    counts = np.append(counts[~rare], counts[rare].sum())
    expected, counts = expected[expected > 0], counts[expected > 0]
    freedom = expected.size - 1
    return abs(np.sum((counts - expected) ** 2 / expected) - freedom) / np.sqrt(2 * freedom)


def drawn(key, logits):
    """One draw of each law."""
    return categorical(uniform(key, (2, *logits.shape[:-1])), logits)


def run(key, times, rises=False, batch=20_000, p=P):
    plan = sampler.Plan(np.asarray(times), rises)
    x = p.prior().sample(key, (batch, L))
    return sampler.sample(key, unmask(p), Conditionals(jnp.asarray(JOINT)), plan, x).x


def test_the_denoiser_of_the_tests_is_exact():
    """JAX's conditionals are NumPy's."""
    got = jax.vmap(lambda x: jax.nn.softmax(Conditionals(jnp.asarray(JOINT))(x, 0.5)))(STATES)
    np.testing.assert_allclose(got, LAWS, atol=1e-6)


def test_the_error_falls_like_one_over_steps(x64):
    """Total variation to the joint law, exact, halves with every doubling of the steps."""
    for p in (P, masked(V, process.cosine())):
        errors = [
            0.5 * np.abs(law_at_the_end(p, np.linspace(1, 0, n + 1)) - embedded(JOINT)).sum()
            for n in (32, 64, 128, 256)
        ]
        assert errors[0] < 0.02
        np.testing.assert_allclose(np.log2(np.array(errors[:-1]) / errors[1:]), 1, atol=0.05)


def test_one_token_at_a_time_is_exact(x64):
    """For one token any plan gives its law, to rounding."""
    law = np.array([[0.1, 0.2, 0.3, 0.4]])
    states = np.arange(V + 1)[:, None]
    out = np.array([0.0, 0, 0, 0, 1])
    for t, s in ((1.0, 0.7), (0.7, 0.1), (0.1, 0.0)):
        laws = np.where((states == V)[..., None], law, np.eye(V + 1, V)[:, None])
        out = out @ backward(float(reveal_probability(P, t, s)), laws, states)
    np.testing.assert_allclose(out, [0.1, 0.2, 0.3, 0.4, 0], atol=1e-15)


@pytest.mark.parametrize("times", [[1, 0.6, 0.3, 0.0], [1, 0.7, 0.4, 0.15]])
def test_draws_have_the_exact_law(times, key):
    """Chi-square of 20,000 runs over all states; three steps are far from the joint law."""
    counts = counted(run(key, times))
    assert chi_square(counts, law_at_the_end(P, times)) < 4
    if times[-1] == 0:
        assert chi_square(counts, embedded(JOINT)) > 20


def test_the_cosine_schedule_draws_its_law(key):
    """The schedule of the process is the one that reveals."""
    times, p = [1, 0.6, 0.3, 0.0], masked(V, process.cosine())
    counts = counted(run(key, times, p=p))
    assert chi_square(counts, law_at_the_end(p, times)) < 4
    assert chi_square(counts, law_at_the_end(P, times)) > 20


def test_a_rise_leaves_the_joint_law(x64):
    """From data back to masks and down again: the joint law up to an error of order 1 / steps."""
    errors = []
    for n in (32, 64, 128):
        times = [0.0, *np.linspace(0.6, 0, n + 1)]
        errors.append(np.abs(law_at_the_end(P, times, embedded(JOINT)) - embedded(JOINT)).sum() / 2)
    assert errors[0] < 0.02
    np.testing.assert_allclose(np.log2(np.array(errors[:-1]) / errors[1:]), 1, atol=0.05)


def test_draws_along_a_plan_that_rises_have_the_exact_law(key):
    """The driver masks by the process's own forward transition."""
    times = [1, 0.5, 0.0, 0.7, 0.3, 0.1]
    assert chi_square(counted(run(key, times, True)), law_at_the_end(P, times)) < 4


def test_rare_reveals_come_at_their_rate():
    """Probability 1e-3, 120 million draws: within 1 %, with a standard error of 0.29 %."""
    p, rounds, size = 1e-3, 12, 10_000_000

    @jax.jit
    def count(key):
        return jnp.sum(bernoulli(key, p, (size,)))

    total = sum(int(count(key)) for key in jax.random.split(jax.random.key(0), rounds))
    n = rounds * size
    assert np.sqrt((1 - p) / (p * n)) < 0.003
    assert abs(total / n / p - 1) < 0.01
    assert abs(total - n * p) / np.sqrt(n * p) < 4


def test_a_large_vocabulary_is_drawn_exactly():
    """V = 50,000, Zipf: shares of the first 100 tokens and of the last 25,000, |z| < 4."""
    size, n = 50_000, 160_000
    law = 1 / np.arange(1, size + 1)
    law /= law.sum()
    logits = jnp.log(jnp.asarray(law, jnp.float32)) + 3.0

    @jax.jit
    def draw(key):
        return jax.vmap(lambda key: drawn(key, logits))(jax.random.split(key, 4000))

    tokens = np.concatenate([draw(k) for k in jax.random.split(jax.random.key(1), n // 4000)])
    for part in (slice(0, 100), slice(100, 25_000), slice(25_000, size)):
        share = law[part].sum()
        hit = np.mean((tokens >= part.start) & (tokens < part.stop))
        assert abs(hit - share) / np.sqrt(share * (1 - share) / n) < 4
    share = law[:100].sum()
    assert np.sqrt((1 - share) / share / n) < 0.003
    first = np.bincount(tokens, minlength=size)[:50]
    expected = n * law[:50]
    z = (first - expected) / np.sqrt(expected * (1 - law[:50]))
    assert np.max(np.abs(z)) < 4


def test_impossible_tokens_are_never_drawn():
    """-inf among the logits, at both ends of blocks and of the whole; the others by their law."""
    allowed = np.array([3, 4, 9, 10, 11, 17])
    law = np.array([0.05, 0.1, 0.2, 0.3, 0.15, 0.2])
    logits = np.full(20, -np.inf, np.float32)
    logits[allowed] = np.log(law)
    keys = jax.random.split(jax.random.key(2), 50_000)
    tokens = np.asarray(jax.vmap(lambda k: drawn(k, jnp.asarray(logits)))(keys))
    counts = np.bincount(tokens, minlength=20)
    full = np.zeros(20)
    full[allowed] = law
    assert chi_square(counts, full) < 4


@pytest.mark.parametrize("size", [1, 2, 3, 5, 16, 17])
def test_any_number_of_outcomes(size):
    """Blocks are filled up with nothing; a batch of laws is drawn each by its own."""
    law = np.random.default_rng(size).dirichlet(np.ones(size), size=2)
    logits = jnp.log(jnp.asarray(law, jnp.float32))
    tokens = jax.vmap(lambda k: drawn(k, logits))(jax.random.split(jax.random.key(3), 20_000))
    assert tokens.dtype == jnp.int32
    for i in range(2 if size > 1 else 0):
        assert chi_square(np.bincount(tokens[:, i], minlength=size), law[i]) < 4
    assert np.asarray(tokens).max() < size


def step(denoise, x, t=0.5, s=0.4, row=1.0, dtype=jnp.int32):
    noise = core.Independent(jax.random.key(0), 0, 0, x.shape, dtype)
    state, info = unmask(P).step(denoise, noise, sampler.State(x), t, s, row)
    return state.x, info


def test_a_mask_without_a_law_stays_a_mask():
    """Logits that are not numbers reveal nothing; the others are revealed, tokens stay."""
    logits = jnp.zeros((4, V)).at[1, 2].set(jnp.nan)
    x, info = step(lambda x, t: logits, jnp.array([V, V, V, 2]))
    np.testing.assert_array_equal(info.revealed, [True, False, True, False])
    np.testing.assert_array_equal(np.asarray(x) == V, [False, True, False, False])
    assert int(x[3]) == 2


def test_half_precision_logits_are_normalised_in_single():
    """bfloat16 logits far from 0 draw the law they hold."""
    logits = jnp.full((2000, V), 300, jnp.bfloat16).at[:, 0].set(302)
    x, _ = step(lambda x, t: logits, jnp.full(2000, V))
    law = np.asarray(jax.nn.softmax(logits[0].astype(jnp.float32)))
    assert chi_square(np.bincount(x, minlength=V), law) < 4


def test_a_step_to_time_zero_reveals_all():
    """reveal_probability is 1 there, in float32 as in float64."""
    assert float(reveal_probability(P, jnp.float32(1e-3), jnp.float32(0))) == 1
    x = run(jax.random.key(4), [1, 0.3, 1e-3, 0], batch=500)
    assert int(jnp.max(x)) < V


def test_samples_do_not_see_each_other(key):
    """Prefix-stable, in blocks, and bitwise unchanged when the others change."""
    plan, denoiser = sampler.Plan(np.array([1, 0.6, 0.3, 0.0])), Conditionals(jnp.asarray(JOINT))
    x = P.prior().sample(key, (8, L))
    whole = sampler.sample(key, unmask(P), denoiser, plan, x).x
    part = sampler.sample(
        key, unmask(P), denoiser, plan, x[3:5], index=jnp.array([3, 4]), block=1
    ).x
    np.testing.assert_array_equal(part, whole[3:5])
    other = sampler.sample(key, unmask(P), denoiser, plan, x.at[1:].set(0)).x
    np.testing.assert_array_equal(other[0], whole[0])
    assert len({tuple(row) for row in np.asarray(whole)}) > 1


def test_composes_under_shard_map(key):
    """On eight devices the samples are those of one."""
    plan, denoiser = sampler.Plan(np.array([1, 0.6, 0.3, 0.0])), Conditionals(jnp.asarray(JOINT))
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = PartitionSpec("data")

    def run(x, index):
        return sampler.sample(key, unmask(P), denoiser, plan, x, index=index).x

    x = P.prior().sample(key, (16, L))
    sharded = jax.jit(jax.shard_map(run, mesh=mesh, in_specs=(spec, spec), out_specs=spec))
    np.testing.assert_array_equal(sharded(x, jnp.arange(16)), run(x, jnp.arange(16)))


def test_another_process_compiles_nothing(key):
    """Other numbers in schedule, plan and denoiser: one trace."""
    traces = []

    @core.record
    class Counting:
        scale: core.Leaf

        def __call__(self, x, t, cond=None):
            traces.append(1)
            return jnp.zeros((L, V)) * self.scale

    for t_max in (0.9, 0.8):
        p = masked(V, process.cosine(t_max=t_max))
        plan = sampler.Plan(np.linspace(t_max, 0, 4))
        sampler.sample(key, unmask(p), Counting(t_max), plan, p.prior().sample(key, (2, L)))
    assert len(traces) == 1


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: unmask(process.gaussian(process.cosine())),
            TypeError,
            r"process\.masked|Masked",
        ),
        (
            lambda: sampler.sample(
                jax.random.key(0), unmask(P), JOINTLY, FALL, jnp.zeros((2, L)) + V
            ),
            TypeError,
            "tokens must be integers",
        ),
        (
            lambda: sampler.sample(
                jax.random.key(0), unmask(P), JOINTLY, FALL, MASKS, noise=core.brownian(1.0)
            ),
            TypeError,
            "noise at None",
        ),
        (
            lambda: step(lambda x, t: jnp.zeros((2, V + 1)), MASKS[0, :2]),
            ValueError,
            r"logits of shape \(2, 4\), without the mask",
        ),
    ],
)
def test_bad_input(call, error, message):
    """Each mistake is named with its mend."""
    with pytest.raises(error, match=message):
        call()


JOINTLY = Conditionals(jnp.asarray(JOINT))
FALL = sampler.Plan(np.array([1.0, 0.5, 0.0]))
MASKS = jnp.full((2, L), V, jnp.int32)
