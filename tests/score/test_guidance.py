"""Classifier-free guidance: neutral values, linearity, rescaling and the interval."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinf import process, score

NULL = {"label": 0, "text": np.zeros(2, np.float32)}
COND = {"label": np.int32(2), "text": np.array([0.5, -1.0], np.float32)}
X = jnp.array([[0.3, -1.2, 0.8], [1.5, 0.1, -0.4]])
T = jnp.float32(0.6)


def _network(params, x, t, cond):
    shift = jnp.sum(params * cond["text"]) + 0.3 * cond["label"]
    return jnp.tanh(x + shift) * (1 + t) + 0.2 * shift


def model(predicts=score.v, schedule=process.cosine):
    """A network whose answer depends on every leaf of its condition."""
    p = process.gaussian(schedule())
    return score.denoiser(p, _network, jnp.array([0.7, -0.4]), predicts=predicts)


def ulps(a, b, of):
    """The largest difference in units of the last place of the largest of the terms."""
    return np.max(np.abs(a - b)) / np.spacing(np.max(np.abs(np.asarray(of))))


def test_scale_one_is_the_model_itself():
    """A static 1 returns the very object; a traced 1 agrees to 4 ulp."""
    denoiser = model()
    for one in (1.0, 1, np.float32(1.0), jnp.float32(1.0)):
        assert score.guided(denoiser, float(one), null=NULL) is denoiser
    plain = denoiser(X, T, COND)
    traced = jax.jit(lambda w: score.guided(denoiser, w, null=NULL)(X, T, COND))(1.0)
    assert ulps(traced, plain, [plain, denoiser(X, T, NULL)]) <= 4


def test_scale_zero_ignores_the_condition():
    """Scale 0 is the unconditional prediction."""
    denoiser = model()
    np.testing.assert_allclose(
        score.guided(denoiser, 0.0, null=NULL)(X, T, COND), denoiser(X, T, NULL), rtol=1e-6
    )


def test_it_is_linear_in_the_scale_in_any_prediction(x64):
    """F_w = F_0 + w (F_1 - F_0), with the same w for every prediction F."""
    denoiser, w, x, t = model(schedule=process.linear_beta), 3.5, X.astype(float), 0.6
    p = denoiser.process
    guided = score.guided(denoiser, w, null=NULL)(x, t, COND)
    predictions = (score.x0, score.eps, score.v, score.score, score.velocity)
    for target in (*predictions, score.preconditioned(0.5)):

        def seen(clean, target=target):
            return score.convert(p, t, x, clean, score.x0, target)

        with_cond, without = seen(denoiser(x, t, COND)), seen(denoiser(x, t, NULL))
        wanted = without + w * (with_cond - without)
        np.testing.assert_allclose(seen(guided), wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("output", [score.v, score.eps, score.x0])
def test_rescaling_keeps_the_standard_deviation(output, x64):
    """At phi = 1 the output's deviation over the example is the conditional one's; phi = 0 no-op.

    In between it is the mix of the two, since the rescaled output is a multiple of the guided one.
    """
    denoiser, x, t = model(schedule=process.linear_beta), X.astype(float), 0.6
    p = denoiser.process

    def outputs(**options):
        guided = score.guided(denoiser, 5.0, null=NULL, output=output, **options)
        return score.convert(p, t, x, guided(x, t, COND), score.x0, output)

    plain = score.convert(p, t, x, denoiser(x, t, COND), score.x0, output)
    pushed = outputs()
    assert abs(float(jnp.std(pushed) / jnp.std(plain)) - 1) > 0.1
    np.testing.assert_allclose(jnp.std(outputs(rescale=1.0)), jnp.std(plain), rtol=1e-12)
    np.testing.assert_allclose(outputs(rescale=0.0), pushed, rtol=1e-12)
    mixed = 0.7 * jnp.std(plain) + 0.3 * jnp.std(pushed)
    np.testing.assert_allclose(jnp.std(outputs(rescale=0.7)), mixed, rtol=1e-12)
    np.testing.assert_allclose(outputs(rescale=0.7) / pushed, mixed / jnp.std(pushed), rtol=1e-12)


def test_outside_its_interval_it_is_the_model():
    """Outside [low, high], bitwise the plain conditional prediction; inside, the guided one."""
    denoiser = model()
    inside = score.guided(denoiser, 3.0, null=NULL)
    limited = score.guided(denoiser, 3.0, null=NULL, interval=(0.2, 0.8))
    for t in (0.0, 0.1999, 0.8001, 1.0):
        t = jnp.float32(t)
        np.testing.assert_array_equal(limited(X, t, COND), denoiser(X, t, COND))
    for t in (0.2, 0.5, 0.8):
        t = jnp.float32(t)
        np.testing.assert_array_equal(limited(X, t, COND), inside(X, t, COND))
        assert not np.allclose(limited(X, t, COND), denoiser(X, t, COND))


def test_vmap_and_jit_change_nothing():
    """A batch with conditions of its own, compiled, is its examples one by one."""
    guided = score.guided(model(), 2.5, null=NULL, rescale=0.7, interval=(0.1, 0.9))
    cond = {"label": jnp.array([1, 2]), "text": jnp.array([[0.5, -1.0], [0.2, 0.3]])}
    times = jnp.array([0.6, 0.95])
    batch = jax.jit(lambda g, x, t, c: jax.vmap(g)(x, t, c))(guided, X, times, cond)
    for i in range(2):
        one = guided(X[i], times[i], jax.tree.map(lambda a, i=i: a[i], cond))
        np.testing.assert_allclose(batch[i], one, rtol=1e-5, atol=1e-6)


def test_bad_guidance_names_its_mend():
    """What is wrong with the numbers is said when it is built, with the condition when called."""
    denoiser = model()
    for phi in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match=r"\[0, 1\].*the paper's is 0\.7"):
            score.guided(denoiser, 2.0, null=NULL, rescale=phi)
    for interval in ((0.8, 0.2), (0.2, 0.2)):
        with pytest.raises(ValueError, match="low < high"):
            score.guided(denoiser, 2.0, null=NULL, interval=interval)
    guided = score.guided(denoiser, 2.0, null=NULL)
    for cond in (None, 3, {"label": 1}):
        with pytest.raises(ValueError, match="pass cond with the examples"):
            guided(X, T, cond)
    with pytest.raises(ValueError, match="pass cond with the examples"):
        score.guided(denoiser, 2.0, null=None)(X, T, None)
    with pytest.raises(ValueError, match="pass rescale=None"):
        score.guided(denoiser, 2.0, null=NULL, rescale=0.7)(jnp.ones(1), T, COND)
