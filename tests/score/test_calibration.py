"""'On Calibrating Diffusion Probabilistic Models': the martingale, the gain, the classes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from score_models import Drifted, unhooked

from jaxinf import core, process, score

DRIFT = 0.3


def line():
    """A mixture on the line."""
    return core.mixture(jnp.array([0.4, 0.6]), jnp.array([[-1.0], [1.2]]), jnp.array([0.4, 0.7]))


def data(count, seed=0):
    """Examples of the line, shape (count, 1), and which component each is of."""
    random = np.random.default_rng(seed)
    k = random.choice(2, count, p=[0.4, 0.6])
    x = np.array([-1.0, 1.2])[k] + np.array([0.4, 0.7])[k] * random.normal(size=count)
    return jnp.asarray(x[:, None]), jnp.asarray(k)


def grid(p, law, t):
    """Points and weights that integrate over the law of x_t on the line."""
    reach = 1.2 * float(p.alpha(t)) + 9 * float(jnp.hypot(0.7 * p.alpha(t), p.sigma(t)))
    x = jnp.linspace(-reach, reach, 2001)[:, None]
    density = jnp.exp(jax.vmap(p.marginal(law, t).log_prob)(x))
    return x, density * float(x[1, 0] - x[0, 0])


def scores(denoiser, x, t, cond=None):
    """A denoiser's scores at points x."""

    def one(x):
        return score.convert(denoiser.process, t, x, denoiser(x, t, cond), score.x0, score.score)

    return jax.vmap(one)(x)


@pytest.mark.parametrize("schedule", [process.cosine, process.edm])
def test_scores_are_a_martingale(schedule, x64):
    """alpha_t s_t(x_t) = E[alpha_u s_u(x_u) | x_t] for u < t, both sides by quadrature.

    The trapezoidal rule on a smooth integrand that has died at the ends is exact to rounding.
    """
    p, law = process.gaussian(schedule()), line()
    u, t = (
        p.t_min + q * (p.t_max - p.t_min) for q in ((0.3, 0.7) if p.t_max == 1 else (0.01, 0.05))
    )
    oracle = score.oracle(p, law)
    x_u, weight = grid(p, law, u)
    a, b = p.transition(u, t)
    earlier = p.alpha(u) * scores(oracle, x_u, u)[:, 0]
    x_t, _ = grid(p, law, t)
    later = p.alpha(t) * scores(oracle, x_t, t)[:, 0]
    for i in (920, 1010, 1130):
        ahead = weight * jnp.exp(-0.5 * ((x_t[i, 0] - a * x_u[:, 0]) / b) ** 2)
        np.testing.assert_allclose(jnp.sum(ahead * earlier) / jnp.sum(ahead), later[i], rtol=1e-7)
    np.testing.assert_allclose(jnp.sum(weight * earlier), 0.0, atol=1e-10)  # so the mean is 0


def test_a_constant_drift_is_removed_and_the_loss_falls_by_its_square(x64, key):
    """A score that is off by c = 0.3 is off by c^2 = 0.09 in loss before, and by noise after.

    The constant is found to within alpha / sigma^2 sqrt(mmse / n), so the loss that is left is at
    most 16 times that squared, and the fall |E s|^2 = 0.09 to the same.
    """
    p, law, (x, _) = process.gaussian(process.cosine(t_max=0.9)), line(), data(4000)
    model, oracle = Drifted(p, law, jnp.array([DRIFT])), score.oracle(p, law)
    times = jnp.array([0.4, 0.6, 0.8])
    calibrated = score.calibrate(key, model, x, times, draws=2)
    for t in times:
        points, weight = grid(p, law, t)

        def loss(denoiser, t=t, points=points, weight=weight):
            wrong = scores(denoiser, points, t) - scores(oracle, points, t)
            return float(weight @ jnp.square(wrong[:, 0])), float(weight @ wrong[:, 0])

        clean = jax.vmap(lambda x, t=t: oracle(x, t))(points)[:, 0]
        mmse = 0.4 * (1 + 0.4**2) + 0.6 * (1.2**2 + 0.7**2) - float(weight @ clean**2)
        error = float(p.alpha(t) / p.sigma(t) ** 2) * np.sqrt(mmse / 4000)  # draws do not hurt
        (before, mean_before), (after, mean_after) = loss(model), loss(calibrated)
        np.testing.assert_allclose([before, mean_before], [DRIFT**2, DRIFT], rtol=1e-9)
        assert abs(mean_after) < 4 * error
        assert abs(before - after - DRIFT**2) < 16 * error**2
        assert 16 * error**2 < 0.1 * DRIFT**2


def test_a_perfect_model_is_left_as_it_is(x64, key):
    """The exact denoiser's mean error is 0 within the noise of the data, |z| < 4 at each time."""
    p, law, (x, _) = process.gaussian(process.cosine()), line(), data(4000, 1)
    times = jnp.array([0.1, 0.5, 0.9])
    table = score.calibrate(key, score.oracle(p, law), x, times).error
    for row, t in zip(table, times, strict=True):
        points, weight = grid(p, law, t)
        clean = jax.vmap(lambda x, t=t: p.posterior_mean(law, x, t))(points)[:, 0]
        mmse = 0.4 * (1 + 0.4**2) + 0.6 * (1.2**2 + 0.7**2) - float(weight @ clean**2)
        assert abs(float(row[0, 0])) < 4 * np.sqrt(mmse / 4000)


@core.record
class Classes:
    """The perfect denoiser of each component apart, with a drift of its own each."""

    process: core.Leaf
    law: core.Leaf
    constants: core.Leaf

    def __call__(self, x, t, cond=None):
        """(x + sigma^2 (score + c)) / alpha, for the component ``cond``."""
        k = jnp.minimum(cond, 1)
        part = jax.tree.map(lambda leaf: leaf[k], self.law.components)
        return Drifted(self.process, part, self.constants[k][None])(x, t)


def test_classes_are_calibrated_apart(x64, key):
    """Each class loses its own drift; a label that is no class is left as it is."""
    p, law, (x, labels) = process.gaussian(process.cosine(t_max=0.9)), line(), data(4000, 2)
    drifts = jnp.array([0.3, -0.5])
    model, t = Classes(p, law, drifts), jnp.asarray(0.5)
    calibrated = score.calibrate(key, model, x, jnp.array([0.5, 0.8]), labels, classes=2)
    alpha, sigma = p.alpha(t), p.sigma(t)
    point = jnp.array([0.3])
    for k, scale in enumerate((0.4, 0.7)):
        mmse = (sigma * scale) ** 2 / ((alpha * scale) ** 2 + sigma**2)
        error = float(jnp.sqrt(mmse / jnp.sum(labels == k)))
        fall = (model(point, t, k) - calibrated(point, t, k))[0]
        assert abs(float(fall - sigma**2 * drifts[k] / alpha)) < 4 * error
    np.testing.assert_array_equal(calibrated(point, t, 2), model(point, t, 2))
    together = score.calibrate(key, model, x, jnp.array([0.5, 0.8]), labels)
    assert together.error.shape == (2, 1, 1)
    share = jnp.mean(labels)
    wanted = (1 - share) * calibrated.error[:, 0] + share * calibrated.error[:, 1]
    np.testing.assert_allclose(together.error[:, 0], wanted, rtol=1e-10)


def test_between_the_times_it_is_linear_and_outside_it_stops(x64):
    """The table is interpolated linearly in time, and holds its ends' values beyond them."""
    p = process.gaussian(process.cosine())
    model = Drifted(p, line(), jnp.zeros(1))
    table = jnp.array([1.0, 3.0, -2.0])[:, None, None]
    calibrated = score.Calibrated(model, jnp.array([0.2, 0.4, 0.8]), table, False)
    x = jnp.array([0.4])
    for t, wanted in (
        (0.0, 1),
        (0.1, 1),
        (0.2, 1),
        (0.25, 1.5),
        (0.4, 3),
        (0.5, 1.75),
        (0.8, -2),
        (0.95, -2),
    ):
        t = jnp.asarray(float(t))
        np.testing.assert_allclose(model(x, t) - calibrated(x, t), wanted, rtol=1e-12)


_traces = []


def _network(params, x, t, cond):
    _traces.append(t)
    return params * x


def test_float32_and_other_numbers_compile_nothing(key):
    """In float32, images and all; another model, data and times run the compiled program.

    The prediction v = c x_t has the denoiser (alpha - sigma c) x_t on this schedule, whose mean
    error on the data themselves is ((alpha - sigma c) alpha - 1) times their mean, up to the noise.
    """
    x = jnp.linspace(0.0, 2.0, 400).reshape(100, 2, 2, 1)
    for number in (0.3, 0.4):
        p = process.gaussian(process.cosine(t_max=0.9 + 0.1 * number))
        model = score.denoiser(p, _network, jnp.float32(number), predicts=score.v)
        times = jnp.array([0.1, 0.5, 0.8]) + 0.1 * number
        calibrated = score.calibrate(key, model, x, times, draws=3)
        assert bool(_traces) == (number == 0.3)
        assert calibrated.error.dtype == jnp.float32
        for error, t in zip(calibrated.error[:, 0], times, strict=True):
            gain = p.alpha(t) - p.sigma(t) * number
            wanted = (gain * p.alpha(t) - 1) * jnp.mean(x, 0)
            noise = float(jnp.abs(gain) * p.sigma(t)) / np.sqrt(300)
            np.testing.assert_allclose(error, wanted, atol=4.5 * noise)
        assert calibrated(x[0], jnp.float32(0.3)).shape == (2, 2, 1)
        _traces.clear()


def test_bad_input_names_its_mend(key):
    """What is wrong is said before anything is compiled."""
    model = Drifted(process.gaussian(process.cosine()), line(), jnp.zeros(1))
    x, times = jnp.zeros((2, 1)), jnp.array([0.2, 0.8])

    def call(key=key, x=x, times=times, cond=None, **options):
        with unhooked():
            score.calibrate(key, model, x, times, cond, **options)

    with pytest.raises(ValueError, match=r"x\[None\] makes"):
        call(x=x[:0])
    with pytest.raises(TypeError, match=r"data\.dequantise"):
        call(x=jnp.zeros((2, 1), jnp.uint8))
    for bad in (times[::-1], times[:1], jnp.array([0.2, 0.2]), jnp.array([0.2, jnp.nan])):
        with pytest.raises(ValueError, match=r"jnp\.sort\(times\)"):
            call(times=bad)
    with pytest.raises(ValueError, match="pass cond=labels"):
        call(classes=2)
    with pytest.raises(ValueError, match="leading axis 2"):
        call(cond=jnp.zeros(3, int))
    with pytest.raises(ValueError, match="draws must be at least 1"):
        call(draws=0)
    with pytest.raises(ValueError, match="classes must be at least 1"):
        call(cond=jnp.zeros(2, int), classes=0)
    with pytest.raises(TypeError, match=r"jax\.random\.key\(seed\)"):
        call(key=jax.random.PRNGKey(0))
