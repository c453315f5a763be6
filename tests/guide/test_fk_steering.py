"""Feynman-Kac steering held to the exact law of the discretised chain, Gaussian and of tokens."""

import itertools
import math
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinf import core, guide, process, sampler, score, smc
from jaxinf.smc import driver

P = process.gaussian(process.cosine(t_max=0.9))
LAW = core.gaussian(jnp.zeros(1), core.Diagonal(1.0))
DENOISER = score.oracle(P, LAW)
STEPPERS = {"ancestral": sampler.ancestral, "euler_maruyama": sampler.euler_maruyama}
POTENTIALS = {"difference": guide.difference, "maximum": guide.maximum, "sum": guide.sum_}


def near(x0, cond):
    """log N(x_0; cond, 1) up to a constant: with a standard normal law N(1, 1/2) at cond = 2."""
    return -jnp.sum(jnp.square(x0 - cond)) / 2


class Unit(NamedTuple):
    """Noise that is what the test says."""

    z: jax.Array

    def increment(self, t, s):
        return self.z


def variance_at_the_end(stepper, plan):
    """Of the chain's own law: every step is affine in (x, z), and both have mean 0."""

    @jax.jit
    @jax.vmap
    def slopes(t, s):
        def end(x, z):
            return stepper.step(DENOISER, Unit(z), sampler.State(x), t, s)[0].x

        return jax.jacfwd(end, (0, 1))(jnp.zeros(1), jnp.zeros(1))

    times = jnp.asarray(plan.times, jnp.float32)
    variance = float(P.sigma(times[0])) ** 2
    for slope, spread in zip(*map(np.ravel, slopes(times[:-1], times[1:])), strict=True):
        variance = float(slope) ** 2 * variance + float(spread) ** 2
    return variance


def tilted(variance, at=2.0, scale=1.0):
    """Evidence, mean and variance of N(0, variance) exp(-scale (x - at)^2 / 2)."""
    total = variance * scale + 1
    evidence = math.exp(-scale * at**2 / (2 * total)) / math.sqrt(total)
    return evidence, scale * variance * at / total, variance / total


@pytest.mark.parametrize("potential", POTENTIALS)
@pytest.mark.parametrize("name", STEPPERS)
def test_evidence_is_that_of_the_chain(name, potential, key):
    """E[Z] and E[Z f] over 600 runs of 32 particles, for the chain's own law, exactly."""
    stepper = STEPPERS[name](P)
    plan = sampler.uniform(P, 12, end=0.02)
    law = variance_at_the_end(stepper, plan)
    scale = (
        0.3 if potential == "sum" else 0.8
    )  # a sum of rewards weighs the more, the more there are
    truth, mean, variance = tilted(law, scale=scale)
    options = {} if potential == "difference" else {"interval": 5, "threshold": 0.7}

    @jax.jit
    @jax.vmap
    def runs(key):
        run = guide.steer(
            key, stepper, DENOISER, plan, near, (1,), jnp.asarray(2.0), scale=scale,
            potential=POTENTIALS[potential], particles=32, **options,
        )  # fmt: skip
        z = jnp.exp(run.log_evidence)
        return z, z * run.population.mean(lambda x: jnp.append(x, x**2))

    z, parts = map(np.asarray, runs(jax.random.split(key, 600)))
    found = np.concatenate([z[:, None], parts], axis=1).astype(np.float64)
    exact = truth * np.array([1, mean, variance + mean**2])
    scores = (found.mean(0) - exact) / (found.std(0) / np.sqrt(len(found)))
    assert np.abs(scores).max() < 4
    assert found[:, 0].std() < 0.6 * truth


def test_the_paper_s_target(key):
    """Prior N(0, 1) and r = -(x - 2)^2 / 2: N(1, 1/2), Z = 0.26013, with 1,000 particles.

    The errors are held to the chain's own law, whose variance 300 steps bring within 0.02 of 1.
    """
    stepper, plan = sampler.ancestral(P), sampler.uniform(P, 300)
    law = variance_at_the_end(stepper, plan)
    assert abs(law - 1) < 0.02
    run = guide.steer(
        key, stepper, DENOISER, plan, near, (1,), jnp.asarray(2.0), particles=1000, interval=30
    )
    truth, mean, variance = tilted(law)
    assert abs(float(run.log_evidence) - math.log(truth)) < 4 * float(run.standard_error)
    found = run.population.mean(lambda x: jnp.append(x, x**2))
    assert abs(found[0] - mean) < 4 * math.sqrt(variance / run.population.ess() * 3)
    assert abs(found[1] - found[0] ** 2 - variance) < 4 * variance * math.sqrt(6 / 1000)
    assert run.population.particles.shape == (1000, 1)


@pytest.mark.parametrize("potential", POTENTIALS)
@pytest.mark.parametrize("interval", [1, 3])
def test_potentials_multiply_to_the_tilt(potential, interval, key, x64):
    """Never resampled, a particle's weights are exp(lambda r(x_0)) to rounding."""
    plan = sampler.uniform(P, 7)
    run = guide.steer(
        key, sampler.ancestral(P), DENOISER, plan, near, (1,), jnp.asarray(2.0), scale=1.7,
        potential=POTENTIALS[potential], interval=interval, threshold=0.0, particles=16,
    )  # fmt: skip
    rewards = jax.vmap(lambda x: 1.7 * near(x, 2.0))(run.population.particles)
    wanted = jax.nn.log_softmax(rewards)
    np.testing.assert_allclose(run.population.normalise(), wanted, atol=1e-12)
    np.testing.assert_allclose(run.log_evidence, jax.nn.logsumexp(rewards) - math.log(16), 1e-12)
    assert run.info.ess.shape == (math.ceil(7 / interval),)


def test_potentials_are_the_papers():
    """Of rewards 1, -2, 3 in a row."""
    rewards = [1.0, -2.0, 3.0]
    wanted = {"difference": [1, -3, 5], "maximum": [1, 1, 3], "sum": [1, -1, 2]}
    for name, potential in POTENTIALS.items():
        memory, found = jnp.asarray(potential.start), []
        for reward in rewards:
            memory, exponent = potential(memory, jnp.asarray(reward))
            found.append(float(exponent))
        assert found == wanted[name]


def test_the_walk_is_the_samplers_own(key):
    """A constant reward leaves the law: the evidence is 1 at every step, and nothing is lost."""
    plan = sampler.uniform(P, 5)
    run = guide.steer(
        key, sampler.dpm_solver(P, 2), DENOISER, plan, lambda x, cond: 0.0, (1,), history=True
    )
    # a deterministic multistep method: each end is the sampler's from one of the starts
    np.testing.assert_allclose(run.log_evidence, 0, atol=1e-5)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.split(key)[0], jnp.arange(64))
    starts = jax.vmap(lambda key: P.prior().sample(key, (1, 1))[0])(keys)
    ends = sampler.sample(key, sampler.dpm_solver(P, 2), DENOISER, plan, starts).x
    np.testing.assert_allclose(run.history.particles[-1], ends, atol=1e-5)


V, L = 4, 6
TOKENS = process.masked(V)
JOINT = np.random.default_rng(1).dirichlet(np.full(V**L, 0.3)).reshape((V,) * L)
STATES = np.stack(np.meshgrid(*[np.arange(V)] * L, indexing="ij"), -1).reshape(-1, L)


@core.record
class Conditionals:
    """The exact denoiser of a joint law: each token's law given those that are not masked."""

    joint: core.Leaf

    def __call__(self, x, t, cond=None):
        joint = self.joint
        for i in range(L):
            seen = (x[i] == V) | (jnp.arange(V) == x[i])
            joint = joint * seen.reshape([-1 if j == i else 1 for j in range(L)])
        return jnp.log(jnp.stack([joint.sum([j for j in range(L) if j != i]) for i in range(L)]))


def ordered_partitions(items):
    """All ways to reveal a set in groups, one after the other."""
    if not items:
        yield ()
    for size in range(1, len(items) + 1):
        for group in itertools.combinations(items, size):
            rest = tuple(i for i in items if i not in group)
            for later in ordered_partitions(rest):
                yield (group, *later)


def law_of_the_sampler(steps):
    """The law over all 4^6 states of ``unmask`` with equal steps of the linear schedule, exactly.

    A token is revealed in each of the steps with the same probability, so that an order of m
    groups has probability C(steps, m) / steps^6; a group's tokens are drawn independently of each
    other given the groups before.
    """
    given = {}
    for subset in itertools.chain.from_iterable(
        itertools.combinations(range(L), n) for n in range(L + 1)
    ):
        hidden = tuple(i for i in range(L) if i not in subset)
        given[subset] = np.broadcast_to(JOINT.sum(hidden, keepdims=True), JOINT.shape)
    law = np.zeros(JOINT.shape)
    for order in ordered_partitions(tuple(range(L))):
        term, seen = np.full(JOINT.shape, math.comb(steps, len(order)) / steps**L), ()
        for group in order:
            for i in group:
                term = term * given[tuple(sorted((*seen, i)))] / given[seen]
            seen = tuple(sorted((*seen, *group)))
        law += term
    return law.ravel()


def few_repeats(x0, cond):
    """A reward of tokens: how often neighbours differ, and ``cond`` a first token of 0."""
    return 0.5 * jnp.sum(x0[1:] != x0[:-1]) + jnp.where(x0[0] == 0, cond, 0.0)


INTERMEDIATE = {"likeliest": guide.likeliest, "drawn": guide.drawn(3)}


@pytest.mark.parametrize(
    ("name", "potential"), [("likeliest", "difference"), ("drawn", "maximum"), ("drawn", "sum")]
)
def test_tokens_against_all_states(name, potential, key):
    """4^6 states: E[Z] and E[Z f] over 300 runs of 24 particles, by the sampler's exact law."""
    steps, bonus = 5, 1.3
    law = law_of_the_sampler(steps)
    np.testing.assert_allclose(law.sum(), 1, rtol=1e-12)
    assert 0.01 < 0.5 * np.abs(law - JOINT.ravel()).sum() < 0.3  # not the joint: steps are few
    rewards = np.asarray(jax.vmap(lambda x: few_repeats(x, bonus))(STATES), np.float64)
    plan = sampler.Plan(np.linspace(1, 0, steps + 1))
    scale = 0.4 if potential == "sum" else 1.0

    @jax.jit
    @jax.vmap
    def runs(key):
        run = guide.steer(
            key, sampler.unmask(TOKENS), Conditionals(jnp.asarray(JOINT, jnp.float32)), plan,
            few_repeats, (L,), jnp.asarray(bonus), potential=POTENTIALS[potential], scale=scale,
            intermediate=INTERMEDIATE[name], interval=2, particles=24,
        )  # fmt: skip
        z = jnp.exp(run.log_evidence)
        return z, z * run.population.mean(lambda x: jax.nn.one_hot(x, V)).ravel()

    z, parts = map(np.asarray, runs(jax.random.split(key, 300)))
    found = np.concatenate([z[:, None], parts], axis=1).astype(np.float64)
    weights = law * np.exp(scale * rewards)
    exact = np.append(weights.sum(), np.einsum("n,nlv->lv", weights, np.eye(V)[STATES]).ravel())
    scores = (found.mean(0) - exact) / (found.std(0) / np.sqrt(len(found)))
    assert np.abs(scores).max() < 4


def test_intermediate_rewards_of_tokens_are_those_of_the_law(key):
    """Two masks: exp of ``drawn`` averages to E[exp r], and ``likeliest`` fills in the modes."""
    x = jnp.array([1, V, 0, 2, V, 3])
    logits = Conditionals(jnp.asarray(JOINT, jnp.float32))(x, 0.5)
    laws = np.asarray(jax.nn.softmax(logits), np.float64)

    def reward(x0):
        return few_repeats(x0, 1.3)

    def value(key, intermediate):
        at = guide.Unfinished(x, jnp.asarray(0.5), None, lambda x, t: logits, TOKENS)
        return intermediate(key, reward, at)

    fill = lambda a, b: x.at[1].set(a).at[4].set(b)  # noqa: E731
    pairs = itertools.product(range(V), range(V))
    wanted = sum(laws[1, a] * laws[4, b] * float(jnp.exp(reward(fill(a, b)))) for a, b in pairs)
    draws = jax.vmap(lambda key: jnp.exp(value(key, guide.drawn(3))))(jax.random.split(key, 4000))
    draws = np.asarray(draws, np.float64)
    assert abs(draws.mean() - wanted) < 4 * draws.std() / np.sqrt(4000)
    modes = fill(*laws[jnp.array([1, 4])].argmax(1))
    assert value(key, guide.likeliest) == reward(modes)


def test_forbidden_everywhere_is_told(key):
    """Only x_0 > 100 is allowed: every weight is lost at the end, and the run says so."""

    def far(x0, cond):
        return jnp.where(x0[0] > 100, 0.0, -jnp.inf)

    plan = sampler.uniform(P, 4)

    @core.record
    class Late:
        def __call__(self, key, reward, at):
            return jnp.zeros(())

    run = guide.steer(
        key, sampler.ancestral(P), DENOISER, plan, far, (1,), intermediate=Late(), particles=8
    )
    np.testing.assert_array_equal(run.info.alive, [True, True, True, False])
    assert run.log_evidence == -jnp.inf
    assert run.population.invalid == 0


def test_a_constraint_is_kept(key):
    """x_0 > 0 as a reward of 0 or -inf: every particle of weight obeys, and none is invalid."""

    def positive(x0, cond):
        return jnp.where(x0[0] > 0, 0.0, -jnp.inf)

    plan = sampler.uniform(P, 6)
    run = guide.steer(key, sampler.ancestral(P), DENOISER, plan, positive, (1,), threshold=0.5)
    x, weights = run.population.particles[:, 0], run.population.normalise()
    assert bool(jnp.all(jnp.where(weights > -jnp.inf, x > 0, True)))
    assert run.population.invalid == 0
    assert run.info.alive.all()


@core.record
class Near:
    """A reward with numbers of its own."""

    at: core.Leaf

    def __call__(self, x0, cond):
        return near(x0, self.at)


def test_other_numbers_recompile_nothing_and_problems_lie_side_by_side(key):
    def run(at, law, plan, cond):
        denoiser = score.oracle(P, core.gaussian(jnp.zeros(1), core.Diagonal(law)))
        return guide.steer(
            key, sampler.ancestral(P), denoiser, plan, Near(at), (1,), cond, particles=8
        )

    one = run(jnp.asarray(1.0), jnp.asarray(1.0), sampler.uniform(P, 4), jnp.zeros(2))
    count = driver._run._cache_size()
    run(jnp.asarray(-1.0), jnp.asarray(0.5), sampler.uniform(P, 4, end=0.01), jnp.ones(2))
    assert driver._run._cache_size() == count
    plan = sampler.uniform(P, 4)
    many = jax.jit(jax.vmap(lambda at: run(at, jnp.asarray(1.0), plan, None)))
    found = many(jnp.array([1.0, 3.0]))
    chex.assert_shape(found.population.particles, (2, 8, 1))
    np.testing.assert_allclose(found.log_evidence[0], one.log_evidence, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"reward": lambda x, cond: x}, ValueError, "one number"),
        ({"reward": 3.0}, TypeError, "called as reward"),
        ({"interval": 0}, ValueError, "at least 1"),
        ({"particles": 1}, ValueError, "at least 2"),
        ({"plan": sampler.restart(sampler.uniform(P, 4), (0.3, 0.6), 1)}, ValueError, "fall"),
        ({"intermediate": guide.likeliest}, TypeError, "masking process"),
        ({"stepper": sampler.unmask(TOKENS), "plan": sampler.Plan(np.linspace(1, 0, 3 + 1))},
         TypeError, "no prediction 'clean'"),
    ],
)  # fmt: skip
def test_bad_input_is_refused(options, error, message, key):
    base = {
        "stepper": sampler.ancestral(P), "plan": sampler.uniform(P, 4), "reward": near,
        "intermediate": guide.clean, "interval": 1, "particles": 4,
    }  # fmt: skip
    base |= options
    tokens = base["stepper"].process is TOKENS
    denoiser = Conditionals(jnp.asarray(JOINT)) if tokens else DENOISER
    with pytest.raises(error, match=message):
        guide.steer(
            key, base["stepper"], denoiser, base["plan"], base["reward"], (L,) if tokens else (1,),
            jnp.zeros(()), intermediate=base["intermediate"], interval=base["interval"],
            particles=base["particles"],
        )  # fmt: skip
    with pytest.raises(ValueError, match="at least 1"):
        guide.drawn(0)


def test_resampling_schemes_are_values(key):
    run = guide.steer(
        key, sampler.ancestral(P), DENOISER, sampler.uniform(P, 4), near, (1,), jnp.asarray(2.0),
        resample=smc.multinomial, particles=8,
    )  # fmt: skip
    assert np.isfinite(run.log_evidence)
