"""h-Edit: conjugate posteriors by exact propagation, DDIM's guided step, round trips, its terms."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from jaxinf import core, guide, process, sampler, score

P = process.gaussian(process.linear_beta())
PRIOR = core.gaussian(jnp.zeros(1), core.Diagonal(1.0))
A, S = 1.5, 1.0
BASES = {
    "ancestral": (sampler.ancestral, 1.0),
    "half": (lambda p: sampler.ddim(p, eta=0.5), 0.5),
    "ddim": (sampler.ddim, 0.0),
    "euler_maruyama": (sampler.euler_maruyama, 1.0),
}


class Given(NamedTuple):
    """Noise that is what the test says."""

    z: jax.Array

    def increment(self, t, s):
        return self.z


def log_h(a, s, x, t):
    """log E[exp(-|x_0 - a|^2 / 2 s^2) | x_t = x] for x_0 ~ N(0, I): up to a constant of x."""
    return -jnp.sum((P.alpha(t) * x - a) ** 2 / (s**2 + P.sigma(t) ** 2)) / 2


def slope(a, s):
    return guide.reward_gradient(Partial(log_h, jnp.asarray(a), jnp.asarray(s)))


def posterior(a, s, t):
    """Mean and variance of p_t h_t."""
    width = s**2 + float(P.sigma(t)) ** 2
    variance = 1 / (1 + float(P.alpha(t)) ** 2 / width)
    return variance * float(P.alpha(t)) * a / width, variance


@jax.jit
def law_after(stepper, denoiser, mean, variance, times):
    """Mean and variance of the end, exactly: every step is affine in x and in its draw."""

    def step(law, slot):
        def end(x, z):
            return stepper.step(denoiser, Given(z), stepper.init(x), *slot)[0].x

        zero = jnp.zeros(1)
        slope, spread = jax.jacfwd(end, (0, 1))(zero, zero)
        mean, variance = law
        moved = slope[0, 0] * mean + end(zero, zero)[0]
        return (moved, slope[0, 0] ** 2 * variance + spread[0, 0] ** 2), None

    return jax.lax.scan(step, (mean, variance), (times[:-1], times[1:]))[0]


def errors(stepper, exact, start, steps, power=2.0):
    """Of mean and variance at the end of a polynomial plan, over the exact ones."""
    times = jnp.asarray(sampler.polynomial(P, steps, power).times)
    got = law_after(stepper, score.oracle(P, PRIOR), *map(jnp.asarray, start), times)
    return np.array([float(g) / e - 1 for g, e in zip(got, exact, strict=True)])


@pytest.mark.parametrize("implicit", [True, False])
@pytest.mark.parametrize("base", BASES)
def test_it_reaches_the_conjugate_posterior(base, implicit, x64):
    """N(a / (1 + s^2), s^2 / (1 + s^2)), with an error of order one; 4 % at 200 steps at most."""
    make, eta = BASES[base]
    stepper = guide.h_edit(make(P), slope(A, S), eta=eta, implicit=implicit)
    exact, start = (A / (1 + S**2), S**2 / (1 + S**2)), posterior(A, S, 1.0)
    coarse, fine = (errors(stepper, exact, start, n) for n in (200, 400))
    assert np.abs(coarse).max() < (0.02 if base == "euler_maruyama" else 0.04)
    assert np.abs(2 * fine - coarse).max() < 0.05 * np.abs(coarse).max()


def test_iterations_share_the_edit(x64):
    """Four of a quarter of the weight: the same law, with an error of order one."""
    stepper = guide.h_edit(sampler.ddim(P), slope(A, S), eta=0.0, weight=0.25, iterations=4)
    exact, start = (A / (1 + S**2), S**2 / (1 + S**2)), posterior(A, S, 1.0)
    coarse, fine = (errors(stepper, exact, start, n) for n in (200, 400))
    assert np.abs(2 * fine - coarse).max() < 0.05 * np.abs(coarse).max() < 0.002


def log_rest(first, second, x, t):
    """log E[exp(-|x_0 - a_2|^2 / 2 s_2^2) | x_t = x, first], up to a constant of x."""
    (a, s), (b, r), alpha, width = first, second, P.alpha(t), P.sigma(t) ** 2
    variance = width * s**2 / (width + s**2)
    mean = (alpha * x * s**2 + a * width) / (width + s**2)
    return -jnp.sum((mean - b) ** 2 / (r**2 + variance)) / 2


def test_terms_that_know_of_each_other_reach_the_product(x64):
    """log h = log h_1 + log h_{2|1}: the posterior of two Gaussian experts, to order one."""
    (a, s), (b, r) = first, second = (jnp.asarray(1.5), jnp.asarray(1.0)), (-0.5, 0.8)
    terms = (
        slope(a, s),
        guide.reward_gradient(Partial(log_rest, first, tuple(map(jnp.asarray, second)))),
    )
    stepper = guide.h_edit(sampler.euler_maruyama(P), *terms, eta=1.0)
    variance = 1 / (1 + 1 / float(s) ** 2 + 1 / r**2)
    exact = variance * (float(a) / float(s) ** 2 + b / r**2), variance
    coarse, fine = (errors(stepper, exact, (0.0, 1.0), n) for n in (200, 400))
    assert np.abs(coarse).max() < 0.04
    assert np.abs(2 * fine - coarse).max() < 0.1 * np.abs(coarse).max()
    # each by itself, though both are exact, they lead elsewhere: to no posterior of the prior
    apart = guide.h_edit(sampler.euler_maruyama(P), slope(a, s), slope(b, r), eta=1.0)
    off = errors(apart, exact, (0.0, 1.0), 800)
    assert np.abs(off).max() > 0.05


MATRIX = np.array([[1.0, 0.6], [0.6, 1.5]])
CENTRE, WIDTH = np.array([1.0, -2.0]), np.array([0.5, 0.9])
X, Z = np.array([-0.3, 1.1]), np.array([0.4, -0.8])


def coloured():
    """A process of correlated noise, two times, a state and its noise."""
    p = process.gaussian(process.linear_beta(), core.dense(jnp.asarray(MATRIX)))
    return (
        p,
        jnp.asarray(0.6),
        jnp.asarray(0.4),
        sampler.State(jnp.asarray(X)),
        Given(jnp.asarray(Z)),
    )


def oracle(p, mean):
    return score.oracle(p, core.gaussian(jnp.asarray(mean), core.Diagonal(0.7)))


@core.record
class Tilted:
    """A denoiser given h: the mean with sigma^2 / alpha C grad log h more."""

    denoiser: core.Leaf
    term: core.Leaf

    def __call__(self, x, t, cond=None):
        p = self.denoiser.process
        shift = p.covariance.matvec(self.term(x, t))
        return self.denoiser(x, t) + p.sigma(t) ** 2 / p.alpha(t) * shift


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_the_explicit_form_is_ddim_s_guided_step(eta, x64):
    p, t, s, state, noise = coloured()
    base = sampler.ddim(p, eta=eta)
    denoiser, term = oracle(p, Z), slope(CENTRE, WIDTH)
    wanted, _ = base.step(Tilted(denoiser, term), noise, state, t, s)
    edited = guide.h_edit(base, term, eta=eta, implicit=False)
    got, info = edited.step(denoiser, noise, state, t, s)
    np.testing.assert_allclose(got.x, wanted.x, rtol=1e-12)
    np.testing.assert_allclose(info.clean, denoiser(state.x, t), rtol=1e-12)


def test_the_implicit_form_is_the_paper_s(x64):
    """Three updates of x_s^base by the slopes of two terms at s, by hand (equation 25)."""
    p, t, s, state, noise = coloured()
    base = sampler.ancestral(p)
    denoiser = oracle(p, Z)
    terms = slope(CENTRE, WIDTH), slope(X, 1.0)
    edited = guide.h_edit(base, *terms, eta=1.0, weight=0.7, iterations=3)
    x = base.step(denoiser, noise, state, t, s)[0].x
    (a, b), (c, d) = ((float(p.alpha(u)), float(p.sigma(u))) for u in (t, s))
    tau = d / b * np.sqrt(b**2 - (a / c * d) ** 2)
    gamma = 0.7 * d * (c / a * b - np.sqrt(d**2 - tau**2))
    for _ in range(3):
        pull = (CENTRE - c * x) * c / (WIDTH**2 + d**2) + (X - c * x) * c / (1 + d**2)
        x = x + gamma * MATRIX @ pull
    got, _ = edited.step(denoiser, noise, state, t, s)
    np.testing.assert_allclose(got.x, x, rtol=1e-12)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_a_score_difference_replaces_the_condition(eta, x64):
    """With the scores of what is wanted and of what is there: DDIM's step for the former."""
    p, t, s, state, noise = coloured()
    there, wanted = (oracle(p, m) for m in (Z, CENTRE))
    base = sampler.ddim(p, eta=eta)
    term = guide.score_difference(wanted, there)
    edited = guide.h_edit(base, term, eta=eta, implicit=False)
    got, _ = edited.step(there, noise, state, t, s)
    new, _ = base.step(wanted, noise, state, t, s)
    np.testing.assert_allclose(got.x, new.x, rtol=1e-12)
    assert np.all(term(state.x, jnp.asarray(0.0)) == 0)


PLAN = sampler.polynomial(P, 40)


def test_without_terms_an_exact_inversion_reconstructs(key):
    """Down, back and down again over sampler.bidirectional, in float32: to 1e-5."""
    data = core.mixture(jnp.ones(2), jnp.array([[-1.0], [1.0]]), jnp.array([0.4, 0.6]))
    stepper, denoiser = (
        guide.h_edit(sampler.bidirectional(sampler.ddim(P)), eta=0.0),
        score.oracle(P, data),
    )
    out = sampler.sample(key, stepper, denoiser, PLAN, P.prior().sample(key, (64, 1)))
    start = sampler.invert(stepper, denoiser, PLAN, out.state)
    again = sampler.sample(key, stepper, denoiser, PLAN, start)
    assert np.abs(again.x - out.x).max() < 1e-5


def test_an_edit_stays_over_an_exact_inversion(x64, key):
    """Over the leapfrog at half its correction, an affine map: the posterior, to order one."""
    stepper = guide.h_edit(
        sampler.bidirectional(sampler.ddim(P), 0.5), slope(A, S), eta=0.0, implicit=False
    )
    exact, start = (A / (1 + S**2), S**2 / (1 + S**2)), posterior(A, S, 1.0)

    def off(steps):
        plan = sampler.polynomial(P, steps)
        ends = sampler.sample(
            key, stepper, score.oracle(P, PRIOR), plan, jnp.array([[0.0], [1.0]])
        ).x[:, 0]
        gain = float(ends[1] - ends[0])
        found = float(ends[0]) + gain * start[0], gain**2 * start[1]
        return np.array([g / e - 1 for g, e in zip(found, exact, strict=True)])

    coarse, fine = off(100), off(200)
    assert np.abs(2 * fine - coarse).max() < 0.2 * np.abs(coarse).max() < 0.02


def test_it_runs_in_the_driver_and_compiles_once(key):
    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(1)
    def draw(keys, stepper, denoiser, x):
        return jax.vmap(lambda key: sampler.sample(key, stepper, denoiser, PLAN, x).x)(keys)

    x = P.prior().sample(key, (3, 1))
    for a in (0.5, 1.0):
        stepper = guide.h_edit(sampler.ancestral(P), slope(a, a), eta=a, weight=a)
        got = draw(jax.random.split(key), stepper, score.oracle(P, PRIOR), x)
    assert got.shape == (2, 3, 1)
    assert stepper.calls(1.0, 0.5) == 1


def test_bad_input():
    term = slope(A, S)
    with pytest.raises(TypeError, match="starts from more of its History than x"):
        guide.h_edit(sampler.exponential(P), term, eta=0.0)
    for wrong in ({"iterations": 0}, {"iterations": 2, "implicit": False}):
        with pytest.raises(ValueError, match="iterations must be a whole number"):
            guide.h_edit(sampler.ddim(P), term, eta=0.0, **wrong)
    with pytest.raises(ValueError, match="eta must not be negative"):
        guide.h_edit(sampler.ddim(P), term, eta=-1.0)
    cosine = process.gaussian(process.cosine())
    with pytest.raises(ValueError, match="needs alpha"):
        guide.h_edit(sampler.ddim(cosine), term, eta=0.0)
