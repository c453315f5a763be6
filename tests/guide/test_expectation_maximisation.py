"""Expectation maximisation of a prior, against the classical algorithm on Gaussians."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinf import core, guide, markov, process, sampler, score

COVARIANCE = np.array([[1.0, 0.6, 0.2], [0.6, 1.5, -0.3], [0.2, -0.3, 0.7]])
MEAN = np.array([0.5, -0.3, 0.2])
NOISE = 0.1


def observe(law, y, mask):
    """The law of x given y = mask x + n."""
    kernel = markov.linear_gaussian(jnp.diag(mask), core.Diagonal(NOISE))
    return kernel.observe(law, y)


def exact_draws(key, law, observations):
    """One draw of every posterior, in closed form."""

    def one(key, y, mask):
        return observe(law, y, mask)[0].sample(key)

    return jax.vmap(one)(jax.random.split(key, len(observations[0])), *observations)


def moments(key, law, x):
    """The maximiser: mean and covariance of the draws."""
    centred = x - jnp.mean(x, axis=0)[None]
    return core.Gaussian(jnp.mean(x, axis=0), core.Full(centred.T @ centred / len(x)))


def log_evidence(key, law, x, observations):
    """Mean log density of the observations."""
    return jnp.mean(jax.vmap(lambda y, mask: observe(law, y, mask)[1])(*observations))


def masked(seed, count):
    """Examples of N(MEAN, COVARIANCE) with half of their numbers hidden, and those examples."""
    random = np.random.default_rng(seed)
    x = random.multivariate_normal(MEAN, COVARIANCE, count)
    mask = (random.uniform(size=x.shape) < 0.5).astype(float)
    y = mask * x + NOISE * random.normal(size=x.shape)
    return (jnp.asarray(y), jnp.asarray(mask)), x


def start():
    return core.Gaussian(jnp.zeros(3), core.Full(jnp.eye(3)))


def test_masked_gaussian_data_give_their_law(x64, key):
    """Within 5 % of C in the Frobenius norm, from examples of which half is hidden."""
    observations, _ = masked(0, 20_000)
    found = guide.expectation_maximisation(
        key, exact_draws, moments, start(), observations, rounds=40
    )
    apart = np.linalg.norm(found.params.covariance.matrix - COVARIANCE)
    assert apart < 0.05 * np.linalg.norm(COVARIANCE)
    np.testing.assert_allclose(found.params.mean, MEAN, atol=0.05)
    assert not found.info.invalid.any()
    assert not found.info.skipped.any()


def two_points(key, variance, y):
    """The posterior of N(0, v) given y = x + n by its two points of one standard deviation."""
    gain = variance / (variance + 1)
    return gain * y[:, None] + jnp.sqrt(gain) * jnp.array([[-1.0, 1.0]])


def second_moment(key, variance, x):
    return jnp.mean(jnp.square(x))


def keep(key, params, x):
    return params


def test_the_rate_is_three_quarters(x64, key):
    """v' = V + K^2 E[y^2] with K = V = v / (v + 1): its slope at v = 1 = s^2 is 3 / 4.

    Two points have the posterior's moments, so that the rounds are the classical algorithm's to
    rounding. The error falls by 3 / 4 + O(error) a round.
    """
    y = jnp.sqrt(2.0) * jnp.array([1.0, -1.0])  # E[y^2] = v + s^2
    found = guide.expectation_maximisation(
        key, two_points, second_moment, jnp.array(1.5), y, rounds=40, record=keep
    )
    variance, wanted = 1.5, []
    for _ in range(40):
        gain = variance / (variance + 1)
        variance = gain + 2 * gain**2
        wanted.append(variance)
    np.testing.assert_allclose(found.info.record, wanted, rtol=1e-13)
    error = found.info.record - 1
    assert abs(float(error[-1] / error[-2]) - 0.75) < float(error[-2])
    assert 0 < float(error[-1]) < 1e-5


@core.record
class Moments:
    """The classical E step: moments of all posteriors in place of draws."""

    scale: core.Leaf

    def __call__(self, key, law, observations):
        """Mean and second moment of each posterior."""

        def one(y, mask):
            posterior = observe(law, y, mask)[0]
            return posterior.mean, posterior.covariance.dense(3)

        return jax.vmap(one)(*observations)


def from_moments(key, law, x):
    means, covariances = x
    centred = means - jnp.mean(means, axis=0)[None]
    covariance = centred.T @ centred / len(means) + jnp.mean(covariances, axis=0)
    return core.Gaussian(jnp.mean(means, axis=0), core.Full(covariance))


def test_the_evidence_never_falls(x64, key):
    """With exact steps every round raises the observations' evidence, by less and less."""
    observations, _ = masked(1, 300)
    found = guide.expectation_maximisation(
        key, Moments(1.0), from_moments, start(), observations, rounds=30,
        record=jax.tree_util.Partial(log_evidence, observations=observations),
    )  # fmt: skip
    rises = np.diff(found.info.record)
    assert (rises > -1e-12).all()
    assert rises[0] > 10 * rises[-1] > 0


def identity(_, x):
    return x


@core.record
class Conditioned:
    """The denoiser given one's own observation, the condition of a call, by moment matching."""

    denoiser: core.Leaf
    operator: core.Leaf
    method: core.Leaf

    @property
    def process(self):
        """The denoiser's."""
        return self.denoiser.process

    def __call__(self, x, t, cond):
        """E[x_0 | x_t, y]."""
        y, mask = cond
        seen = guide.linear(self.operator, y, jnp.where(mask > 0, NOISE, jnp.inf))
        return guide.conditioned(self.denoiser, seen, self.method)(x, t)


@core.record
class Carried:
    """The E step by MMPS, from starts that have the moments of N(0, I): sqrt(3) e_i and minus it.

    The flow of a Gaussian posterior is affine, so that what they become has its moments.
    """

    plan: core.Leaf
    operator: core.Leaf
    method: core.Leaf

    def __call__(self, key, law, observations):
        """Six draws of each posterior, [6 n, 3]."""
        p = process.gaussian(process.cosine())
        corners = jnp.sqrt(3.0) * jnp.concatenate([jnp.eye(3), -jnp.eye(3)])
        x_T = jnp.tile(corners, (len(observations[0]), 1))
        model = Conditioned(score.oracle(p, law), self.operator, self.method)
        cond = jax.tree.map(lambda a: jnp.repeat(a, 6, axis=0), observations)
        return sampler.sample(key, sampler.heun(p), model, self.plan, x_T, cond).x


def test_moment_matching_is_the_exact_e_step_of_a_gaussian(x64, key):
    """Rounds by MMPS and the flow are those in closed form, to the integrator's second order."""
    observations, _ = masked(3, 12)
    operator, p = guide.operator(identity, (), (3,)), process.gaussian(process.cosine())
    run = guide.expectation_maximisation
    wanted = run(key, Moments(1.0), from_moments, start(), observations, rounds=3).params
    errors = []
    for steps in (60, 120):
        plan = sampler.plan(p, np.linspace(1 - 1e-4, 0, steps + 1))  # alpha is 0 at 1
        step = Carried(plan, operator, guide.mmps())
        found = run(key, step, moments, start(), observations, rounds=3).params
        errors.append(float(jnp.abs(found.covariance.matrix - wanted.covariance.matrix).max()))
    assert errors[1] < 5e-4
    assert errors[1] < errors[0] / 3


def test_nothing_hidden_gives_the_moments_at_once(x64, key):
    """One round without masks and next to no noise: the moments of the examples themselves."""
    _, x = masked(2, 200)
    observations = jnp.asarray(x), jnp.ones(x.shape)
    found = guide.expectation_maximisation(
        key, Moments(1.0), from_moments, start(), observations, rounds=200
    )
    wanted = np.cov(x.T, ddof=0) - NOISE**2 * np.eye(3)
    np.testing.assert_allclose(found.params.covariance.matrix, wanted, atol=1e-6)


def failing(key, params, x):
    """Refit that breaks down once the parameter is 2."""
    return jnp.where(params >= 2, jnp.nan, params + 1)


def half_broken(key, params, observations):
    return observations.at[0].set(jnp.nan)


def test_rounds_that_fail_keep_the_parameters_and_are_told(key):
    found = guide.expectation_maximisation(
        key, half_broken, failing, jnp.array(0.0), jnp.ones(5), rounds=4
    )
    assert float(found.params) == 2
    np.testing.assert_array_equal(found.info.skipped, [0, 0, 1, 1])
    np.testing.assert_array_equal(found.info.invalid, 1)


@core.record
class Shifted:
    by: core.Leaf

    def __call__(self, key, params, observations):
        """Draws that depend on the record's number."""
        return observations + params + self.by


def test_other_numbers_compile_nothing_and_it_is_mapped(key):
    traced = chex.assert_max_traces(lambda key, params, x: jnp.mean(x), n=2)
    found = []
    for number in (1.0, 2.0):
        run = guide.expectation_maximisation(
            key, Shifted(number), traced, jnp.array(number), jnp.arange(4.0), rounds=3
        )
        found.append(float(run.params))
    np.testing.assert_allclose(found, [8.5, 12.5])  # 4 number + 3 * 1.5

    def one(key, shift):
        return guide.expectation_maximisation(
            key, Shifted(shift), second_moment, shift, jnp.ones(3), rounds=2
        ).params

    keys = jax.random.split(key, 2)
    both = jax.jit(jax.vmap(one))(keys, jnp.array([0.0, 0.5]))
    np.testing.assert_allclose(both, [one(k, s) for k, s in zip(keys, [0.0, 0.5], strict=True)])


def test_bad_input_names_its_mend(key):
    run = guide.expectation_maximisation
    with pytest.raises(ValueError, match="at least 1"):
        run(key, exact_draws, moments, start(), masked(0, 4)[0], rounds=0)
    with pytest.raises(TypeError, match=r"jax\.random\.key"):
        run(jax.random.PRNGKey(0), exact_draws, moments, start(), masked(0, 4)[0], rounds=1)
    with pytest.raises(ValueError, match="start from parameters of that form"):
        run(key, two_points, lambda *_: (0.0,), jnp.array(1.0), jnp.ones(2), rounds=1)
