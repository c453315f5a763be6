"""Particle filters against the exact evidence and laws of finite and linear-Gaussian states."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinf import core, markov, smc
from jaxinf.smc import filter as module

LENGTH, RUNS = 5, 1000
GAPS = jnp.array([True, True, False, True, True])


def finite_model():
    """Three states, four symbols, every time its own matrices."""
    rng = np.random.default_rng(0)
    model = markov.state_space(
        core.finite(jnp.array([0.6, 0.3, 0.1])),
        markov.over_time(jax.vmap(markov.finite)(_rows(rng, (LENGTH - 1, 3)))),
        markov.over_time(jax.vmap(markov.finite)(_rows(rng, (LENGTH, 3)))),
    )
    return model, jnp.array([0, 3, 1, 2, 0])


def _rows(rng, shape):
    return jnp.asarray(rng.dirichlet(np.full(4 if shape[0] == LENGTH else 3, 0.7), shape))


def gaussian_model():
    """Two numbers seen through one, the same kernels at all times, the views over time."""
    views = jnp.array([[[1.0, 0.3]], [[0.2, -1.0]], [[1.0, 1.0]], [[0.5, 0.5]], [[-0.4, 1.0]]])
    see = jax.vmap(lambda view: markov.linear_gaussian(view, core.Diagonal(jnp.array([0.4]))))
    model = markov.state_space(
        core.gaussian(jnp.array([1.0, -0.5]), core.dense(jnp.array([[1.0, 0.3], [0.3, 0.5]]))),
        markov.linear_gaussian(
            jnp.array([[0.9, 0.4], [-0.3, 0.7]]), core.Diagonal(jnp.array([0.7, 0.4])),
            jnp.array([0.2, -0.1]),
        ),
        markov.over_time(see(views)),
    )  # fmt: skip
    return model, jnp.array([[0.5], [1.2], [-0.6], [0.9], [0.1]])


MODELS = {"finite": finite_model, "gaussian": gaussian_model}


def peek(transition, emission, x, y):
    """Pitt and Shephard's look-ahead, at the mean; flattened, which does no harm to the mean."""
    return 0.7 * emission.log_prob(transition.at(x)[0], y)


def skewed(transition, emission, x, y):
    """A look-ahead that is wrong."""
    return 0.5 * x + 0.1 * y


def crooked(model):
    """The same kind of model with other numbers, as a surrogate that is wrong."""
    if isinstance(model.initial, core.Gaussian):
        moves = markov.linear_gaussian(0.8 * model.transition.matrix, core.Diagonal(jnp.ones(2)))
        return markov.state_space(model.initial, moves, model.emission)
    flat = jax.tree.map(lambda a: 0.6 * a, (model.transition, model.emission))
    return markov.state_space(model.initial, *flat)


def proposals(kind, model, y, observed):
    back = markov.backward_filter(model, y, observed=observed, surrogate=crooked(model))
    look = peek if kind == "gaussian" else skewed
    return {
        "bootstrap": smc.bootstrap(),
        "optimal": smc.optimal(),
        "optimal by surrogate": smc.optimal(crooked(model)),
        "guided": smc.guided(back),
        "auxiliary": smc.auxiliary(look, smc.bootstrap()),
        "fully adapted": smc.auxiliary(),
    }


NAMES = ["bootstrap", "optimal", "optimal by surrogate", "guided", "auxiliary", "fully adapted"]


def moments(x):
    """What is compared of a state."""
    return jax.nn.one_hot(x, 3) if jnp.ndim(x) == 0 else jnp.concatenate([x, x**2])


def exact(kind, laws):
    if kind == "finite":
        return np.exp(laws.log_probs)
    variance = jnp.sum(laws.covariance.factor**2, axis=2)
    return np.concatenate([laws.mean, laws.mean**2 + variance], axis=1)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["finite", "gaussian"])
def test_evidence_is_unbiased_and_the_last_law_right(kind, name, x64):
    """E[Z] and E[Z f(x_T)]: resampled always with all seen, and adaptively with a gap."""
    model, y = MODELS[kind]()

    @jax.jit
    def runs(keys, observed, threshold):
        proposal = proposals(kind, model, y, observed)[name]

        def one(key):
            run = smc.particle_filter(
                key, model, y, observed=observed, proposal=proposal, particles=20,
                threshold=threshold,
            )  # fmt: skip
            return jnp.exp(run.log_evidence), run.population.mean(moments), run.info

        return jax.vmap(one)(keys)

    keys = jax.random.split(jax.random.key(1), RUNS)
    for observed, threshold in ((jnp.ones(LENGTH, bool), 1.0), (GAPS, 0.6)):
        z, last, info = runs(keys, observed, threshold)
        filtered = markov.filter(model, y, observed=observed)
        truth, laws = np.exp(filtered.log_evidence[-1]), exact(kind, filtered.laws)
        for found, right in ((z[:, None], truth), (z[:, None] * last, truth * laws[-1])):
            found = np.asarray(found, np.float64)
            score = (found.mean(0) - right) / (found.std(0) / np.sqrt(RUNS))
            assert np.abs(score).max() < 4
        assert info.alive.shape == (RUNS, LENGTH)
        np.testing.assert_allclose(info.log_increment.sum(1), jnp.log(z), rtol=1e-9)


@pytest.mark.parametrize("name", ["bootstrap", "guided", "auxiliary"])
@pytest.mark.parametrize("kind", ["finite", "gaussian"])
def test_filtering_means_at_all_times(kind, name, x64):
    """The bias is the spread over n, a tenth of the error of these means."""
    model, y = MODELS[kind]()
    n, many = 1000, 16
    proposal = proposals(kind, model, y, None)[name]

    @jax.jit
    @jax.vmap
    def runs(key):
        run = smc.particle_filter(
            key, model, y, proposal=proposal, particles=n, history=True, threshold=1.0
        )
        weights = jnp.exp(run.history.log_weights)
        each = jax.vmap(jax.vmap(moments))(run.history.particles)
        return jnp.einsum("tn,tni->ti", weights, each)

    means = np.asarray(runs(jax.random.split(jax.random.key(2), many)))
    laws = exact(kind, markov.filter(model, y).laws)
    error = means.std(0, ddof=1) / np.sqrt(many) + 1e-12
    # 20 Student-t numbers of 15 degrees of freedom: 6 is exceeded once in 2,000 times
    assert np.abs((means.mean(0) - laws) / error).max() < 6


@pytest.mark.parametrize("threshold", [1.0, 0.5])
@pytest.mark.parametrize("kind", ["finite", "gaussian"])
def test_exact_messages_leave_no_variance(kind, threshold, x64):
    model, y = MODELS[kind]()
    back = markov.backward_filter(model, y, observed=GAPS)
    keys = jax.random.split(jax.random.key(3), 20)
    run = jax.vmap(
        lambda key: smc.particle_filter(
            key, model, y, observed=GAPS, proposal=smc.guided(back), particles=10,
            threshold=threshold,
        )
    )(keys)  # fmt: skip
    truth = markov.filter(model, y, observed=GAPS).log_evidence[-1]
    np.testing.assert_allclose(run.log_evidence, truth, rtol=1e-11)


def test_fully_adapted_weights_are_equal_after_the_move(key, x64):
    model, y = gaussian_model()
    run = smc.particle_filter(
        key, model, y, proposal=smc.auxiliary(), particles=50, threshold=1.0, history=True
    )
    np.testing.assert_allclose(run.history.log_weights[1:], -np.log(50), atol=1e-9)


@pytest.mark.parametrize("name", ["bootstrap", "optimal", "guided", "fully adapted"])
def test_death_is_told(name, key):
    """Symbol 1 is never emitted: no particle can live on from time 2."""
    moves = markov.finite(jnp.array([[0.5, 0.5], [0.1, 0.9]]))
    see = markov.finite(jnp.array([[1.0, 0.0, 0.0], [0.3, 0.0, 0.7]]))
    model = markov.state_space(core.finite(jnp.array([0.5, 0.5])), moves, see)
    y = jnp.array([0, 2, 1, 0])
    proposal = {
        "bootstrap": smc.bootstrap(),
        "optimal": smc.optimal(),
        "guided": smc.guided(markov.backward_filter(model, y)),
        "fully adapted": smc.auxiliary(),
    }[name]
    run = smc.particle_filter(key, model, y, proposal=proposal, particles=30, history=True)
    assert not run.population.alive
    assert run.log_evidence == -jnp.inf
    told = {"guided": 0, "fully adapted": 1}.get(name, 2)  # as far as each looks ahead
    np.testing.assert_array_equal(run.info.alive, np.arange(4) < told)
    assert run.population.invalid == 0
    assert not jnp.isnan(run.history.log_weights).any()
    assert smc.particle_filter(key, model, y[:2], particles=30).population.alive


def test_one_time_is_weighed(key, x64):
    """Without a move, each proposal has the first observation's evidence."""
    model, y = gaussian_model()
    model = markov.state_space(
        model.initial, model.transition,
        markov.over_time(jax.tree.map(lambda a: a[:1], model.emission.kernels)),
    )  # fmt: skip
    run = smc.particle_filter(key, model, y[:1], proposal=smc.optimal(), particles=5)
    truth = markov.filter(model, y[:1]).log_evidence[-1]
    np.testing.assert_allclose(run.log_evidence, truth, rtol=1e-11)


def test_other_numbers_compile_nothing(key):
    model, y = gaussian_model()
    smc.particle_filter(key, model, y, particles=16)
    count = module._filter._cache_size()
    other = jax.tree.map(lambda a: 0.9 * a, model)
    smc.particle_filter(key, other, y + 1, particles=16, threshold=0.7, proposal=smc.bootstrap())
    assert module._filter._cache_size() == count


def test_what_is_wrong_is_said(key):
    model, y = gaussian_model()
    back = markov.backward_filter(model, y)
    curved = markov.state_space(model.initial, model.transition, Seen())
    with pytest.raises(ValueError, match="at least 2"):
        smc.particle_filter(key, model, y, particles=1)
    with pytest.raises(ValueError, match="mask of shape"):
        smc.particle_filter(key, model, y, observed=jnp.ones(2, bool))
    with pytest.raises(ValueError, match=r"of 5 times and there are 3.*backward_filter"):
        smc.particle_filter(key, model, y[:3], proposal=smc.guided(back))
    with pytest.raises(TypeError, match=r"no likelihood message; pass smc\.optimal\(surrogate="):
        smc.particle_filter(key, curved, y, proposal=smc.optimal())
    with pytest.raises(TypeError, match=r"no tilt.*smc\.bootstrap"):
        smc.particle_filter(
            key, markov.state_space(model.initial, Seen(), model.emission), y,
            proposal=smc.optimal(),
        )  # fmt: skip


@core.record
class Seen:
    """A kernel with a density alone."""

    def sample(self, key, x):
        return x[:1]

    def log_prob(self, x, y):
        return -jnp.sum((x[:1] - y) ** 2)
