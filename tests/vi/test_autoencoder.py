"""Autoencoders against probabilistic principal components, and bounds in closed form."""

import dataclasses

import chex
import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxinf import vi

LATENT = 10


def encode(params, x):
    return params["w"] @ x + params["b"], params["log_scale"]


def decode(params, z):
    return params["w"] @ z + params["b"], params["log_scale"]


@pytest.fixture(scope="module")
def digits():
    from sklearn.datasets import load_digits

    return load_digits().data / 16


def principal(x, latent=LATENT):
    """The autoencoder at probabilistic PCA's optimum, whose posterior is diagonal, and evidence."""
    from sklearn.decomposition import PCA

    found = PCA(latent, svd_solver="full").fit(x)
    noise, variance = found.noise_variance_, found.explained_variance_
    w = found.components_.T * np.sqrt(variance - noise)
    into = w.T / variance[:, None]
    encoder = {"w": into, "b": -into @ found.mean_, "log_scale": np.log(noise / variance) / 2}
    decoder = {"w": w, "b": found.mean_, "log_scale": np.log(noise) / 2}
    encoder, decoder = jax.tree.map(jnp.asarray, (encoder, decoder))
    model = vi.autoencoder(
        encode, decode, encoder, decoder, latent, likelihood=vi.GaussianLikelihood()
    )
    return model, found.score_samples(x)


def closed(model, x):
    """The bound of a linear autoencoder in closed form, at one example."""
    (mean, log_scale), noise = encode(model.encoder, x), jnp.exp(2 * model.decoder["log_scale"])
    variance, w = jnp.exp(2 * log_scale), model.decoder["w"]
    off = x - w @ mean - model.decoder["b"]
    square = off @ off + jnp.sum(jnp.square(w) @ variance)
    likelihood = -square / (2 * noise) - x.size * jnp.log(2 * jnp.pi * noise) / 2
    return likelihood - jnp.sum(variance + mean**2 - 1 - 2 * log_scale) / 2


def moved(model, by, seed=0):
    """The autoencoder with other numbers."""
    leaves, shape = jax.tree.flatten(model)
    draw = np.random.default_rng(seed)
    return shape.unflatten([a + by * jnp.asarray(draw.normal(size=a.shape)) for a in leaves])


def z_scores(found, wanted):
    found = np.asarray(found, np.float64)
    return (found.mean(axis=0) - wanted) / (found.std(axis=0, ddof=1) / np.sqrt(len(found)))


@pytest.mark.parametrize(
    "objective",
    [
        vi.elbo(), vi.elbo(2, sticking=True), vi.iwae(3), vi.renyi(0.5, 3),
        vi.iwae(3, path=vi.GradientPath.DOUBLY),
    ],
    ids=str,
)  # fmt: skip
def test_at_principal_components_every_draw_is_the_evidence(objective, digits, key, x64):
    model, evidence = principal(digits)
    np.testing.assert_allclose(evidence.mean(), 17.45194, atol=1e-5)
    x, keys = jnp.asarray(digits[:64]), jax.random.split(key, 64)
    found = jax.vmap(lambda key, x: objective(key, model.pair(x))[1].bound)(keys, x)
    np.testing.assert_allclose(found, evidence[:64], atol=1e-3)
    np.testing.assert_allclose(found, evidence[:64], atol=1e-9)


def test_principal_components_are_the_optimum(digits, key, x64):
    """The bound's mean over all digits is 17.45 nats there, stationary, and less elsewhere."""
    model, evidence = principal(digits)
    x = jnp.asarray(digits)

    def mean(model):
        return jnp.mean(jax.vmap(lambda x: closed(model, x))(x))

    value, slopes = jax.jit(jax.value_and_grad(mean))(model)
    np.testing.assert_allclose(value, evidence.mean(), atol=1e-9)
    # scikit-learn divides by n - 1, which moves the optimum's scale by 1 / (2 n)
    for slope in jax.tree.leaves(slopes):
        assert float(jnp.max(jnp.abs(slope))) < 64 / len(digits)
    for seed in range(3):
        assert mean(moved(model, 0.01, seed)) < value - 1e-3
    found = vi.bounds(key, model, x, 1)
    np.testing.assert_allclose(found.mean, evidence.mean(), atol=1e-9)
    np.testing.assert_allclose(
        found.standard_error, evidence.std(ddof=1) / np.sqrt(len(x)), rtol=1e-9
    )


def test_a_fit_reaches_the_evidence_of_principal_components(digits, key, x64):
    """From below, and by no more than the Newton decrement at its end says, twice over."""
    digits, steps = digits[:600], 1000
    model, evidence = principal(digits, 2)
    x = jnp.asarray(digits)
    adam = optax.adam(optax.cosine_decay_schedule(1e-2, steps))
    loss = vi.amortised(vi.elbo(sticking=True))
    found = vi.fit(key, loss, moved(model, 0.1), x, steps=steps, optimizer=adam).params
    flat, shape = jax.flatten_util.ravel_pytree(found)

    def below(flat):
        return -jnp.mean(jax.vmap(lambda x: closed(shape(flat), x))(x))

    value, slope = jax.jit(jax.value_and_grad(below))(flat)
    # weights of pixels that never have ink do nothing
    step = np.linalg.lstsq(jax.jit(jax.hessian(below))(flat), slope, rcond=1e-9)[0]
    decrement = float(slope @ step) / 2
    gap = evidence.mean() + float(value)
    assert 0 < gap < 2 * decrement < 0.01


@pytest.fixture
def small(digits, x64):
    """A linear autoencoder away from its optimum, and examples."""
    x = digits[:200, 20:28]
    return moved(principal(x, 3)[0], 0.2), jnp.asarray(x[:8])


def gradients(objective, model, x, count=3000):
    """Values and gradients of one example's loss, one a key."""
    keys = jax.random.split(jax.random.key(1), count)
    slope = jax.value_and_grad(lambda model, key: objective(key, model.pair(x))[0])
    value, slopes = jax.jit(jax.vmap(slope, (None, 0)))(model, keys)
    flat = [a.reshape(count, -1) for a in jax.tree.leaves(slopes)]
    return np.asarray(value), np.concatenate([np.asarray(a) for a in flat], axis=1)


@pytest.mark.parametrize(
    "objective", [vi.elbo(), vi.elbo(sticking=True), vi.analytic_elbo(), vi.analytic_elbo(4)],
    ids=str,
)  # fmt: skip
def test_pathwise_gradients_are_the_closed_forms(objective, small):
    model, x = small
    wanted, slopes = jax.value_and_grad(lambda model: -closed(model, x[0]))(model)
    slopes = np.concatenate([np.asarray(a).ravel() for a in jax.tree.leaves(slopes)])
    value, found = gradients(objective, model, x[0])
    assert abs(z_scores(value, wanted)) < 4
    spread = found.std(axis=0) > 1e-12
    assert (np.abs(z_scores(found[:, spread], slopes[spread])) < 4).all()
    np.testing.assert_allclose(found[0, ~spread], slopes[~spread], atol=1e-9)


def test_gradients_with_the_divergence_in_closed_form_vary_less(small):
    """By the same draws; the decoder's are the same, the encoder's have no prior in them."""
    model, x = small
    a, b = (gradients(o, model, x[0] + 1)[1] for o in (vi.elbo(), vi.analytic_elbo()))
    names = ["b", "log_scale", "w"]  # the encoder's, in this order, and then the decoder's
    ends = np.cumsum([model.encoder[name].size for name in names])
    parts = dict(zip([*names, "decoder"], np.split(np.arange(a.shape[1]), ends), strict=True))
    for name in ("b", "w"):  # a theorem for the mean's parameters, as the likelihood is log-concave
        assert (b[:, parts[name]].var(axis=0) < a[:, parts[name]].var(axis=0)).all()
    assert b.var(axis=0).sum() < a.var(axis=0).sum()
    np.testing.assert_allclose(a[:, parts["decoder"]], b[:, parts["decoder"]], atol=1e-9)


def test_the_closed_divergence_is_what_the_draw_leaves(small, key):
    model, x = small
    measures = model.pair(x[0])
    (mean, log_scale), count = encode(model.encoder, x[0]), 5
    draws = jax.vmap(measures.q.sample)(jax.random.split(key, count))
    likelihood = jnp.mean(jax.vmap(measures.p.log_likelihood)(draws))
    divergence = jnp.sum(jnp.exp(2 * log_scale) + mean**2 - 1 - 2 * log_scale) / 2
    loss, info = vi.analytic_elbo(count)(key, measures)
    np.testing.assert_allclose(loss, divergence - likelihood, rtol=1e-12)
    np.testing.assert_allclose(info.bound, -loss, rtol=1e-12)


def test_many_draws_are_above_the_bound_and_below_the_evidence(small, key):
    model, x = small
    w, noise = model.decoder["w"], jnp.exp(2 * model.decoder["log_scale"])
    from scipy.stats import multivariate_normal

    covariance = np.asarray(w @ w.T + noise * np.eye(len(w)))
    evidence = multivariate_normal(model.decoder["b"], covariance).logpdf(x)
    keys = jax.random.split(key, 200)
    found = [
        np.asarray(jax.vmap(lambda key, k=k: vi.bounds(key, model, x, k).mean)(keys))
        for k in (1, 5, 50)
    ]
    means = [a.mean() for a in found]
    errors = [a.std() / np.sqrt(len(a)) for a in found]
    lower = float(jnp.mean(jax.vmap(lambda x: closed(model, x))(x)))
    assert abs(means[0] - lower) < 4 * errors[0]
    assert means[1] - means[0] > 4 * np.hypot(*errors[:2])
    assert means[2] - means[1] > 4 * np.hypot(*errors[1:])
    assert means[2] < evidence.mean() + 4 * errors[2]


def constant(params, z):
    return params, jnp.zeros(())


def nothing(params, x):
    return params, jnp.zeros(2)


def bayesian(x):
    """An autoencoder whose decoder forgets z, so that its bias has a Gaussian posterior."""
    count = len(x)
    model = vi.autoencoder(
        nothing, constant, jnp.zeros(2), jnp.sum(x, axis=0) / (count + 1), 2,
        likelihood=vi.GaussianLikelihood(),
    )  # fmt: skip
    return vi.bayesian_autoencoder(model, (count + 1) ** -0.5)


def test_full_bayes_at_the_posterior_is_the_evidence_of_all_examples(key, x64):
    from scipy.stats import multivariate_normal

    x = jax.random.normal(key, (12, 3)) + 1
    covariance = np.eye(12) + 1
    evidence = multivariate_normal(np.zeros(12), covariance).logpdf(np.asarray(x).T).sum()
    params = bayesian(x)
    _, info = vi.full_bayes(vi.elbo(), 12)(params, key, x)
    np.testing.assert_allclose(info.bound, evidence, atol=1e-9)  # at every draw
    keys = jax.random.split(key, 4000)

    def part(key):
        """A batch of four of them, drawn uniformly."""
        rows = jax.random.choice(key, 12, (4,), replace=False)
        return vi.full_bayes(vi.analytic_elbo(), 12, draws=2)(params, key, x[rows])[1].bound

    assert abs(z_scores(jax.vmap(part)(keys), evidence)) < 4


def test_full_bayes_slopes(key, x64):
    """In the weights' means and scales, against the divergence from their posterior."""
    x = jax.random.normal(key, (12, 3)) + 1
    params = bayesian(x)
    off = dataclasses.replace(
        params,
        model=dataclasses.replace(params.model, decoder=params.model.decoder + 0.1),
        log_scale=params.log_scale + 0.2,
    )
    loss = vi.full_bayes(vi.elbo(), 12)
    slope = jax.vmap(jax.grad(lambda p, key: loss(p, key, x)[0]), (None, 0))
    found = slope(off, jax.random.split(key, 4000))
    assert (np.abs(z_scores(found.model.decoder, 13 * 0.1)) < 4).all()
    assert (np.abs(z_scores(found.log_scale, np.exp(0.4) - 1)) < 4).all()


def logits(params, z):
    return params @ z


def flat(params, x):
    return params["mean"] + 0 * jnp.sum(x), params["log_scale"]


def test_bernoulli_bounds_reach_a_sum_over_a_grid(key):
    """The evidence of binary numbers with one latent number, by the trapezoid rule."""
    params = {"mean": jnp.array([0.3]), "log_scale": jnp.array([-0.2])}
    w, x = jnp.array([[1.5], [-0.7], [0.4]]), jnp.array([1.0, 0.0, 1.0])
    model = vi.autoencoder(flat, logits, params, w, 1)
    z = np.linspace(-12, 12, 4001)
    on = 1 / (1 + np.exp(-z[:, None] * np.asarray(w)[:, 0]))
    density = np.prod(np.where(np.asarray(x) > 0, on, 1 - on), axis=1) * np.exp(-(z**2) / 2)
    evidence = np.log(np.sum(density) * (z[1] - z[0]) / np.sqrt(2 * np.pi))
    keys = jax.random.split(key, 500)
    found = jax.vmap(lambda key: vi.iwae(500)(key, model.pair(x))[1].bound)(keys)
    assert abs(z_scores(found, evidence)) < 5
    drawn = jax.vmap(model.sample)(jax.random.split(key, 20_000))
    assert set(np.unique(drawn)) == {0.0, 1.0}
    assert np.all(np.abs(drawn.mean(axis=0) - 0.5) < 4 * 0.5 / np.sqrt(20_000))
    assert z_scores(drawn[:, 0] * drawn[:, 1], 0.25) < -4  # they share z
    np.testing.assert_allclose(model.mean(jnp.ones(1)), jax.nn.sigmoid(w[:, 0]), rtol=1e-6)
    assert model.reconstruct(key, x).shape == (3,)


def test_gaussian_draws_have_the_models_covariance(small):
    model, _ = small
    x = jax.vmap(model.sample)(jax.random.split(jax.random.key(2), 20_000))
    w, noise = model.decoder["w"], jnp.exp(2 * model.decoder["log_scale"])
    off = np.asarray(x) - np.asarray(model.decoder["b"])
    covariance = np.asarray(w @ w.T + noise * jnp.eye(len(w)))
    assert (np.abs(z_scores(off[:, :, None] * off[:, None], covariance)) < 4.5).all()


def test_other_numbers_compile_nothing_anew(small, key):
    model, x = small
    traced = chex.assert_max_traces(encode, n=3)  # one fit: value, gradient and shapes
    loss = vi.amortised(vi.iwae(2))
    for by in (0.0, 0.1):
        start = dataclasses.replace(moved(model, by), encode=traced)
        found = vi.fit(jax.random.fold_in(key, int(10 * by)), loss, start, x, steps=3)
        chex.assert_tree_all_finite(found.params)
        assert found.info.bound.shape == (3,)


def test_bad_input(small, key):
    model, x = small
    with pytest.raises(ValueError, match="latent"):
        vi.autoencoder(encode, decode, {}, {}, 0)
    with pytest.raises(ValueError, match="gives 3 latent numbers"):
        dataclasses.replace(model, latent=2).pair(x[0])
    with pytest.raises(ValueError, match="one latent vector into one"):
        vi.elbo()(key, vi.pair(model.joint(x), model.infer(x[0])))
    with pytest.raises(TypeError, match="standard_divergence"):
        vi.analytic_elbo()(key, vi.pair(vi.mean_field(2), vi.mean_field(2)))
    with pytest.raises(ValueError, match="draws"):
        vi.analytic_elbo(0)
    with pytest.raises(ValueError, match="examples"):
        vi.full_bayes(vi.elbo(), 0)
    with pytest.raises(ValueError, match="scale"):
        vi.bayesian_autoencoder(model, 0.0)
    for kind in (vi.BernoulliLikelihood(), vi.GaussianLikelihood()):
        assert isinstance(kind, vi.Likelihood)
