"""Blind diffusion posterior sampling: its known-operator case, its bias, and a deconvolution."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from jaxinf import core, data, guide, process, sampler, score

PROCESS = process.gaussian(process.cosine(t_max=0.99))
LATE = process.gaussian(process.cosine(t_max=1 - 1e-4))  # whose start is the reference law
Y, NOISE = 1.2, 0.3


def times(params, parts):
    return parts["k"] * parts["x"]


def pair(x_law, k_law, p=PROCESS):
    """The joint of two priors on single numbers or vectors of one length."""
    like = {"k": jnp.zeros(jnp.shape(k_law.mean)), "x": jnp.zeros(x_law.components.mean.shape[1:])}
    return guide.joint({"k": score.oracle(p, k_law), "x": score.oracle(p, x_law)}, like)


def mixture(*centres):
    means = jnp.asarray(centres, float)[:, None]
    return core.mixture(jnp.ones(len(centres)), means, jnp.full(len(centres), 0.5))


def test_a_known_operator_is_plain_dps(x64, key):
    """To rounding: the part whose prior is one point stays there."""
    k = core.gaussian(jnp.array([1.5]), core.Diagonal(0.0))
    j = pair(mixture(-1.0, 1.5), k)
    plain = score.oracle(PROCESS, mixture(-1.0, 1.5))
    plan, y = sampler.uniform(PROCESS, 8), jnp.array([Y])
    x = PROCESS.prior().sample(key, (4, 1))
    both = jax.vmap(lambda x: j.join({"k": jnp.ones(1), "x": x}))(x)
    made = guide.blind_dps(sampler.ddim(PROCESS), j, times, y, length=0.3)
    found = jax.vmap(j.split)(sampler.sample(key, made, j, plan, both).x)
    known = guide.linear(guide.projection(jnp.array([[1.5]])), y, NOISE)
    alone = guide.dps(sampler.ddim(PROCESS), known, length=0.3)
    wanted = sampler.sample(key, alone, plain, plan, x).x
    np.testing.assert_allclose(found["x"], wanted, rtol=1e-11)
    np.testing.assert_allclose(found["k"], 1.5, rtol=1e-12)


def test_the_penalty_is_of_the_predicted_kernel(x64, key):
    """One deterministic step written out: the norm and lambda |k| down to the noisy parts."""
    j = pair(mixture(-1.0, 1.5), core.gaussian(jnp.array([1.5]), core.Diagonal(0.5)))
    y, t, s = jnp.array([Y]), 0.8, 0.6
    plain = sampler.ddim(PROCESS)
    made = guide.blind_dps(plain, j, times, y, length=0.3, sparsity={"k": 0.2, "x": 0.0})
    x = PROCESS.prior().sample(key, (1, 2))
    plan = sampler.plan(PROCESS, [t, s])

    def down(x):
        k, image = j(x, t)
        return jnp.abs(Y - k * image) + 0.2 * jnp.abs(k)

    found = sampler.sample(key, made, j, plan, x).x[0]
    wanted = sampler.sample(key, plain, j, plan, x).x[0] - 0.3 * jax.grad(down)(x[0])
    np.testing.assert_allclose(found, wanted, rtol=1e-11)


def on_a_grid(x_law, k_law):
    """Evidence and posterior means of (k, x), and standard deviation of x, for y = k x + noise."""
    line = jnp.linspace(-5.0, 6.0, 1201)
    log_x, log_k = (jax.vmap(lambda a, q=q: q.log_prob(a[None]))(line) for q in (x_law, k_law))
    fit = dist.Normal(line[:, None] * line[None], NOISE).log_prob(Y)
    weights = jnp.exp(log_k[:, None] + log_x[None] + fit) * (line[1] - line[0]) ** 2
    total = jnp.sum(weights)
    k, x = jnp.sum(weights, 1) @ line / total, jnp.sum(weights, 0) @ line / total
    square = jnp.sum(weights, 0) @ jnp.square(line) / total
    return [float(a) for a in (total, k, x, jnp.sqrt(square - x**2))]


def seen(j, x):
    parts = j.split(x)
    return dist.Normal(times((), parts), NOISE)


LAWS = {"one": lambda: mixture(0.5), "two": lambda: mixture(-1.0, 1.5)}


@pytest.mark.parametrize("name", LAWS)
def test_its_bias_is_known(name, key):
    """Means within 0.1 of the grid's, the spread less than the posterior's."""
    x_law, k_law = LAWS[name](), core.gaussian(jnp.array([1.5]), core.Diagonal(0.5))
    j = pair(x_law, k_law)
    _, k, x, deviation = on_a_grid(x_law, k_law)
    made = guide.blind_dps(sampler.ancestral(PROCESS), j, times, jnp.array([Y]), length=0.1)
    start = PROCESS.prior().sample(key, (2000, 2))
    found = sampler.sample(key, made, j, sampler.uniform(PROCESS, 100), start).x
    mean = np.asarray(jnp.mean(found, axis=0))
    assert np.all(np.abs(mean - [k, x]) < 0.1), (mean, k, x)
    assert float(jnp.std(found[:, 1])) < 0.9 * deviation


def test_weighted_particles_are_the_posterior(x64):
    """The same joint, conditioned and weighed: evidence and means of the grid, without bias.

    The priors are Gaussian, so the moment-matched chain is exact at any number of steps.
    """
    x_law, k_law = LAWS["one"](), core.gaussian(jnp.array([1.5]), core.Diagonal(0.5))
    j = pair(x_law, k_law, LATE)
    d = guide.conditioned(j, guide.observed(seen, jnp.array([Y]), j), guide.mmps())
    plan = sampler.uniform(LATE, 10)

    @jax.jit
    @jax.vmap
    def estimates(key):
        run = guide.particles(key, sampler.moment_matched(LATE), d, plan, (2,), particles=200)
        mean = run.population.mean(lambda x: jnp.concatenate([jnp.ones(1), x]))
        return jnp.exp(run.log_evidence) * mean

    found = np.asarray(estimates(jax.random.split(jax.random.key(1), 100)))
    total, k, x, _ = on_a_grid(x_law, k_law)
    error = found.std(0, ddof=1) / 10
    z = (found.mean(0) - np.array([total, total * k, total * x])) / error
    assert np.all(np.abs(z) < 4), z


KERNELS, SCALE = 5, 10.0  # kernels are brought to the scale of the images


def blurred(params, parts):
    kernel, image = parts["k"].reshape(KERNELS, KERNELS), parts["x"].reshape(8, 8)
    return guide.blur(kernel / SCALE)(image)


def motions():
    """Kernels of motion in twelve directions and four lengths."""
    line = np.arange(KERNELS) - KERNELS // 2
    x, y = np.meshgrid(line, line)
    made = []
    for angle in np.linspace(0, np.pi, 12, endpoint=False):
        along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
        for length in (0.5, 1.0, 1.5, 2.0):
            kernel = np.exp(-0.5 * (along / length) ** 2 - 0.5 * (across / 0.5) ** 2)
            made.append(kernel.reshape(-1) / kernel.sum())
    return np.stack(made)


def wiener(y, kernel, spectrum, noise):
    padded = np.zeros((8, 8))
    padded[:KERNELS, :KERNELS] = kernel.reshape(KERNELS, KERNELS)
    h = np.fft.fft2(np.roll(padded, (-2, -2), (0, 1)))
    return np.fft.ifft2(np.conj(h) / (np.abs(h) ** 2 + noise**2 / spectrum) * np.fft.fft2(y)).real


def test_a_digit_and_the_kernel_that_blurred_it(key):
    """Kernel's cosine above 0.9 and the image above Wiener's filter with the wrong kernel."""
    images = data.digits().train.x[:300].reshape(300, 64) / 8.0 - 1
    kernels = motions()

    def law(rows):
        return core.mixture(
            jnp.ones(len(rows)), jnp.asarray(rows, jnp.float32), jnp.full(len(rows), 0.1)
        )

    k_law = law(kernels * SCALE)
    parts = {"k": score.oracle(PROCESS, k_law), "x": score.oracle(PROCESS, law(images))}
    j = guide.joint(parts, {"k": jnp.zeros(KERNELS**2), "x": jnp.zeros(64)})
    rng = np.random.default_rng(3)
    cosines, gains = [], []
    for _ in range(3):
        true, kernel = images[rng.integers(300)], kernels[rng.integers(len(kernels))]
        truth = {"k": jnp.asarray(kernel * SCALE, jnp.float32), "x": jnp.asarray(true, jnp.float32)}
        y = blurred((), truth) + 0.02 * rng.standard_normal((8, 8)).astype(np.float32)
        made = guide.blind_dps(
            sampler.ancestral(PROCESS), j, blurred, y, sparsity={"k": 0.01, "x": 0.0}
        )
        start = PROCESS.prior().sample(key, (4, KERNELS**2 + 64))
        found = jax.vmap(j.split)(
            sampler.sample(key, made, j, sampler.uniform(PROCESS, 150), start).x
        )
        ks, xs = np.asarray(found["k"]), np.asarray(found["x"])
        sizes = np.linalg.norm(ks, axis=1) * np.linalg.norm(kernel)
        cosines.append(np.mean(ks @ kernel / sizes))
        wrong = wiener(np.asarray(y), kernels.mean(0), images.var(), 0.02).reshape(-1)
        ours, theirs = (np.mean(np.square(a - true)) for a in (xs, wrong[None]))
        gains.append(10 * np.log10(theirs / ours))
    assert min(cosines) > 0.9, cosines
    assert min(gains) > 0, gains


def test_bad_input_is_refused():
    j = pair(mixture(0.5), core.gaussian(jnp.array([1.5]), core.Diagonal(0.5)))
    plain, y = sampler.ddim(PROCESS), jnp.array([Y])
    with pytest.raises(TypeError, match=r"guide\.joint"):
        guide.blind_dps(plain, score.oracle(PROCESS, mixture(0.5)), times, y)
    with pytest.raises(ValueError, match="sparsity takes a number for every part"):
        guide.blind_dps(plain, j, times, y, sparsity=0.1)
    with pytest.raises(ValueError, match="sparsity must not be negative"):
        guide.blind_dps(plain, j, times, y, sparsity={"k": -0.1, "x": 0.0})
