"""Search held to order statistics: of a standard normal law the flow leaves noise as it is."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

from jaxinf import core, guide, process, sampler, score
from jaxinf.guide import noise_search

P = process.gaussian(process.cosine())
DENOISER = score.oracle(P, core.gaussian(jnp.zeros(1), core.Diagonal(1.0)))
PLAN = sampler.uniform(P, 4)
EXACT = sampler.heun(P)


def first(x0, cond):
    """The verifier r(x) = x."""
    return x0[0]


def largest(n):
    """E[max of n standard normals], by quadrature."""
    density = lambda x: x * n * stats.norm.cdf(x) ** (n - 1) * stats.norm.pdf(x)  # noqa: E731
    return integrate.quad(density, -10, 10, epsabs=1e-10)[0]


def means(key, method, runs, stepper=EXACT, plan=PLAN):
    """Scores of many problems, side by side."""

    def one(key):
        found = guide.search(key, method, stepper, DENOISER, plan, first, (1,))
        return found.score, found.x, found.info

    score, x, info = jax.jit(jax.vmap(one))(jax.random.split(key, runs))
    np.testing.assert_array_equal(x[:, 0], score)
    return np.asarray(score, np.float64), info


def z_score(x, wanted):
    return (x.mean() - wanted) / (x.std() / np.sqrt(len(x)))


def test_the_sampler_is_exact(key):
    """The probability flow of N(0, 1) is the identity, and so is Heun's step."""
    x_T = P.prior().sample(key, (100, 1))
    np.testing.assert_allclose(
        sampler.sample(key, EXACT, DENOISER, PLAN, x_T).x, x_T, rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize(("n", "wanted"), [(4, 1.0294), (16, 1.7660), (64, 2.3437)])
def test_best_of_n_is_the_largest_of_n(n, wanted, key):
    np.testing.assert_allclose(largest(n), wanted, atol=6e-5)
    scores, info = means(key, guide.random_search(n), 10_000)
    assert abs(z_score(scores, largest(n))) < 4
    assert (np.asarray(info.calls) == n * 7).all()


def test_best_of_n_of_a_stochastic_sampler(key):
    """The noise of the way is searched too: ancestral steps from one and the same start."""

    def one(key):
        found = guide.search(
            key, guide.random_search(4), sampler.ancestral(P), DENOISER, PLAN, first, (1,)
        )
        return found.score

    scores = np.asarray(jax.jit(jax.vmap(one))(jax.random.split(key, 5000)), np.float64)
    x_T = P.prior().sample(key, (20_000, 1))
    spread = sampler.sample(key, sampler.ancestral(P), DENOISER, PLAN, x_T).x.std()
    error = largest(4) * spread / np.sqrt(2 * 20_000)  # of the scale, which is estimated
    error = np.hypot(scores.std() / np.sqrt(5000), error)
    assert abs(scores.mean() - largest(4) * spread) < 4 * error


def test_zero_order_of_one_neighbour_is_the_larger_of_two(key):
    """E[max(n, sqrt(1 - l^2) n + l z)] = sqrt((1 - sqrt(1 - l^2)) / pi)."""
    for radius in (0.3, 0.8):
        scores, info = means(key, guide.zero_order(1, 1, radius), 20_000)
        wanted = np.sqrt((1 - np.sqrt(1 - radius**2)) / np.pi)
        assert abs(z_score(scores, wanted)) < 4
        assert (np.asarray(info.calls) == 2 * 7).all()


def test_zero_order_at_radius_one_is_random_search(key):
    scores, _ = means(key, guide.zero_order(4, 3, 1.0), 10_000)
    assert abs(z_score(scores, largest(13))) < 4


def test_zero_order_climbs_above_random_search_at_the_same_calls(key):
    """33 walks each, r(x) = x: the pivot's climb against the largest of 33."""
    scores, info = means(key, guide.zero_order(4, 8, 0.5), 4000)
    assert (np.asarray(info.calls) == 33 * 7).all()
    assert z_score(scores, largest(33)) > 4
    rng = np.random.default_rng(0)
    pivot = rng.normal(size=20_000)
    for _ in range(8):
        near = np.sqrt(0.75) * pivot[:, None] + 0.5 * rng.normal(size=(20_000, 4))
        pivot = np.maximum(pivot, near.max(axis=1))
    error = np.hypot(scores.std() / np.sqrt(4000), pivot.std() / np.sqrt(20_000))
    assert abs(scores.mean() - pivot.mean()) < 4 * error
    rounds = np.asarray(info.scores)
    assert rounds.shape == (4000, 9)
    assert (np.diff(rounds, axis=1) >= 0).all()  # a pivot is left for a better one alone


def shares(plan, feet, up):
    """a and b of x_s = a x + b z, where the level of each foot is raised."""
    alpha = np.cos(np.pi / 2 * np.asarray(plan.times))
    a = np.array([alpha[foot - up] / alpha[foot] for foot in feet])
    return a, np.sqrt(1 - a**2)


def test_paths_of_width_one_have_a_mean_in_closed_form(key):
    """The flow is the identity: m <- a m + b E[max of M] in each round, from 0."""
    plan, up, down, branches = sampler.uniform(P, 8), 1, 3, 5
    feet = range(2, 8, down - up)
    wanted = 0.0
    for a, b in zip(*shares(plan, feet, up), strict=True):
        wanted = a * wanted + b * largest(branches)
    method = guide.path_search(1, branches, first=2, up=up, down=down)
    scores, info = means(key, method, 10_000, plan=plan)
    assert abs(z_score(scores, wanted)) < 4
    # 2 steps down; 3 steps in each of 3 rounds, of two calls but the one to 0; 2 predictions
    assert (np.asarray(info.calls) == 2 * 2 + branches * (3 * 3 * 2 - 1 + 2)).all()


def test_paths_of_width_three_are_the_simulated_ones(key):
    """Against the same recursion in NumPy: the three best of twelve are kept."""
    plan, rng, runs = sampler.uniform(P, 6), np.random.default_rng(0), 10_000
    x = rng.normal(size=(runs, 3))
    for a, b in zip(*shares(plan, range(2, 6), 1), strict=True):
        x = a * np.repeat(x, 4, axis=1) + b * rng.normal(size=(runs, 12))
        x = np.sort(x, axis=1)[:, -3:]
    wanted = x[:, -1]
    scores, _ = means(key, guide.path_search(3, 4, first=2), runs, plan=plan)
    error = np.hypot(scores.std(), wanted.std()) / np.sqrt(runs)
    assert abs(scores.mean() - wanted.mean()) < 4 * error
    assert abs(scores.std() / wanted.std() - 1) < 4 * np.sqrt(1 / runs)


def test_the_verifier_sees_the_prediction_on_the_way(key):
    """Of x^2 with nothing to choose from: alpha(s)^2 on average on the way, and 1 at the end."""

    def one(key):
        method = guide.path_search(1, 1, first=2)
        return guide.search(
            key, method, EXACT, DENOISER, PLAN, lambda x, cond: x @ x, (1,)
        ).info.scores

    scores = np.asarray(jax.jit(jax.vmap(one))(jax.random.split(key, 10_000)), np.float64)
    assert abs(z_score(scores[:, 0], np.cos(np.pi / 2 * 0.25) ** 2)) < 4
    assert abs(z_score(scores[:, 1], 1.0)) < 4


def test_tokens_are_searched_at_random(key):
    """Masked tokens of equal odds: the sum of two fair bits is 2 with probability 1 - (3/4)^8."""
    p = process.masked(2)

    @core.record
    class Fair:
        """Equal logits."""

        def __call__(self, x, t, cond):
            return jnp.zeros((2, 2))

    def one(key):
        plan = sampler.Plan(np.linspace(1, 0, 3))
        method, stepper = guide.random_search(8), sampler.unmask(p)
        return guide.search(key, method, stepper, Fair(), plan, lambda x, _: jnp.sum(x), (2,)).score

    scores = np.asarray(jax.jit(jax.vmap(one))(jax.random.split(key, 4000)))
    wanted = 1 - 0.75**8
    assert abs((scores == 2).mean() - wanted) < 4 * np.sqrt(wanted * (1 - wanted) / 4000)


def test_what_has_no_score_is_not_found(key):
    """NaN on the negative side: the best is positive; NaN everywhere: -inf."""
    nan_below = lambda x, cond: jnp.where(x[0] > 0, -x[0], jnp.nan)  # noqa: E731
    found = guide.search(key, guide.random_search(16), EXACT, DENOISER, PLAN, nan_below, (1,))
    assert found.x[0] > 0
    for method in (
        guide.random_search(3),
        guide.zero_order(2, 2),
        guide.path_search(1, 2, first=2),
    ):
        lost = guide.search(key, method, EXACT, DENOISER, PLAN, lambda x, _: jnp.nan, (1,))
        assert lost.score == -jnp.inf


@core.record
class Near:
    """A verifier with numbers of its own, and a condition."""

    at: core.Leaf

    def __call__(self, x0, cond):
        return -jnp.sum(jnp.square(x0 - self.at - cond))


METHODS = {
    "random": lambda r: guide.random_search(4),
    "zero_order": lambda r: guide.zero_order(2, 2, r),
    "paths": lambda r: guide.path_search(2, 2, first=2),
}


@pytest.mark.parametrize("name", METHODS)
def test_other_numbers_recompile_nothing_and_problems_lie_side_by_side(name, key):
    def run(key, cond, at=0.0, radius=0.5, end=0.0):
        plan, method = sampler.uniform(P, 4, end=end), METHODS[name](radius)
        return guide.search(key, method, EXACT, DENOISER, plan, Near(at), (1,), cond)

    one = run(key, jnp.ones(1))
    count = noise_search._search._cache_size()
    run(key, jnp.zeros(1), 2.0, 0.7, 0.01)
    assert noise_search._search._cache_size() == count
    keys, conds = jnp.stack([key, jax.random.key(5)]), jnp.array([[1.0], [-1.0]])
    many = jax.jit(jax.vmap(run))(keys, conds)
    chex.assert_shape(many.x, (2, 1))
    np.testing.assert_allclose(many.score[0], one.score, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: guide.random_search(0), ValueError, "candidates must be"),
        (lambda: guide.zero_order(0, 1), ValueError, "candidates must be"),
        (lambda: guide.zero_order(1, 0), ValueError, "rounds must be"),
        (lambda: guide.zero_order(1, 1, 1.5), ValueError, "radius must be"),
        (lambda: guide.path_search(0, 1, first=2), ValueError, "width must be"),
        (lambda: guide.path_search(1, 1, first=2, up=2, down=2), ValueError, "more than up"),
        (lambda: guide.path_search(1, 1, first=1, up=2, down=3), ValueError, "at least up"),
    ],
)
def test_bad_methods_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"verifier": 3.0}, TypeError, "called as reward"),
        ({"verifier": lambda x, cond: x}, ValueError, "one number"),
        ({"method": guide.path_search(1, 1, first=2, down=4)}, ValueError, "first=1 would"),
        ({"method": guide.path_search(1, 1, first=9)}, ValueError, "first=3 would"),
        ({"method": guide.path_search(1, 1, first=1),
          "plan": sampler.restart(PLAN, (0.2, 0.6), 1)}, ValueError, "restarts"),
        ({"method": guide.zero_order(1, 1), "stepper": sampler.unmask(process.masked(2))},
         TypeError, "Gaussian noise"),
    ],
)  # fmt: skip
def test_bad_problems_are_refused(change, error, message, key):
    base = {"method": guide.random_search(2), "stepper": EXACT, "plan": PLAN, "verifier": first}
    base |= change
    with pytest.raises(error, match=message):
        guide.search(
            key, base["method"], base["stepper"], DENOISER, base["plan"], base["verifier"], (1,)
        )


def test_a_traced_plan_is_refused(key):
    def run(times):
        method, plan = guide.random_search(2), sampler.Plan(times)
        return guide.search(key, method, EXACT, DENOISER, plan, first, (1,)).x

    with pytest.raises(TypeError, match="outside jit"):
        jax.jit(run)(jnp.linspace(1, 0, 3))
