"""Feynman-Kac correctors: a product's reverse equation with the weight that makes it exact."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxinf import smc
from jaxinf.core import Key, Leaf, PyTree, Scalar, check_key, is_concrete, record, static
from jaxinf.guide.conditioned import Conditioned
from jaxinf.guide.evaluation import evaluate
from jaxinf.guide.particles import check_start, draw_start
from jaxinf.process import convert, eps, x0
from jaxinf.sampler import Plan
from jaxinf.score import Denoiser


@record
class DriftTransform:
    """(x, t) -> (drift, log_weight_rate); see :func:`drift_transform`."""

    denoiser: Leaf
    noise: Leaf
    cond: Leaf

    def __call__(self, x: Array, t: Scalar) -> tuple[Array, Float[Array, ""]]:
        """Return the drift and the rate of the log weight, both in reverse time."""
        process = self.denoiser.process
        here = evaluate(self.denoiser, x, t, self.cond, False)
        # C s = -e / sigma, and |s|^2 in C is that of white noise, over sigma^2
        noises = [convert(process, t, x, e.mean, x0, eps) for e in here.experts]
        total = sum(a * e for a, e in zip(here.exponents, noises, strict=True))
        sizes = [jnp.sum(jnp.square(process.covariance.whiten(e))) for e in (total, *noises)]
        apart = sizes[0] - sum(a * n for a, n in zip(here.exponents, sizes[1:], strict=True))
        f, squared, sigma = process.drift(t), process.dispersion_squared(t), process.sigma(t)
        drift = -f * x - 0.5 * (1 + self.noise) * squared / sigma * total
        rate = (sum(here.exponents) - 1) * x.size * f + 0.5 * squared / jnp.square(sigma) * apart
        return drift.astype(x.dtype), rate.astype(x.dtype)


def drift_transform(
    denoiser: Denoiser, cond: PyTree = None, *, noise: Scalar = 1.0
) -> DriftTransform:
    r"""The weighted reverse equation of a product prod_i q_i^(a_i) of noised densities.

    .. math:: dx = \Bigl(-f x + \tfrac{1 + k}{2} g^2 C S\Bigr) d\tau + \sqrt{k}\, g\, C^{1/2} dW,
              \quad S = \sum_i a_i s_i

    .. math:: d \log w = \Bigl[\Bigl(\sum_i a_i - 1\Bigr) d f + \tfrac12 g^2
              \Bigl(|S|^2 - \sum_i a_i |s_i|^2\Bigr)\Bigr] d\tau, \quad |s|^2 = s^\top C s

    in reverse time tau, for examples of d numbers. By the Fokker-Planck equations of the q_i the
    rate is the same for every k: at k = 0 the equation is a flow.

    Args:
      denoiser: ``guide.product``, ``anneal``, ``contrast``, ... or any expert, whose rate is 0.
      cond: one condition.
      noise: k, not negative; 1 is the paper's target score, 1 / b for q^b its tempered noise.

    Returns:
      A pytree, called as ``(x, t) -> (drift, log_weight_rate)`` for one example at t > 0.

    Raises:
      TypeError: for a denoiser that is conditioned.
      ValueError: for a negative noise.

    Reference:
      Feynman-Kac Correctors in Diffusion: Annealing, Guidance, and Product of Experts, Skreta et
      al., 2025, section 3; their annealing, guidance and products are cases of it.
    """
    nodes = jax.tree.leaves(denoiser, is_leaf=lambda d: isinstance(d, Conditioned))
    if any(isinstance(node, Conditioned) for node in nodes):
        raise TypeError(
            "a conditioned denoiser has a twist, whose rate is not known in closed form; "
            "guide.particles weighs it by its transitions"
        )
    if is_concrete(noise) and not float(noise) >= 0:
        raise ValueError(f"noise must not be negative, got {noise}; 1 is the reverse equation's")
    return DriftTransform(denoiser, noise, cond)


@record
class WeightedDiffusion:
    """The Feynman-Kac model of a weighted reverse equation; see :func:`feynman_kac`."""

    transform: Leaf
    start: Leaf
    shape: tuple[int, ...] = static()

    def init(self, key: Key) -> smc.Weighted:
        """Draw x_T from the product of the experts' reference laws."""
        d = self.transform
        return smc.Weighted(*draw_start(key, d.denoiser, self.start, d.cond, self.shape))

    def step(
        self, key: Key, particle: Array, inputs: tuple[Array, Array]
    ) -> tuple[Array, Float[Array, ""]]:
        """Go from t to s by Euler-Maruyama; weigh by the rate at t."""
        (t, s), x = inputs, particle
        process = self.transform.denoiser.process
        drift, rate = self.transform(x, t)
        scale = jnp.sqrt(self.transform.noise * process.dispersion_squared(t) * (t - s))
        fresh = process.covariance.sqrt(jax.random.normal(key, x.shape, x.dtype))
        return (x + (t - s) * drift + scale * fresh).astype(x.dtype), (t - s) * rate


def feynman_kac(
    key: Key,
    denoiser: Denoiser,
    plan: Plan,
    shape: tuple[int, ...],
    cond: PyTree = None,
    *,
    noise: Scalar = 1.0,
    particles: int = 1000,
    resample: smc.Scheme = smc.systematic,
    threshold: Scalar = 0.5,
    progress: bool = False,
) -> smc.Run:
    """Sample a product of powers of densities by its weighted reverse equation.

    Euler-Maruyama on :func:`drift_transform`, weighted and resampled: exact as the steps shrink,
    of first order, and for particles enough. One call of every expert a step, and no transition
    densities; :func:`guide.particles` weighs any stepper with one, and conditioned denoisers.

    Args:
      key: a typed key.
      denoiser: ``guide.product``, ``anneal``, ``contrast``, ...: no conditioned one.
      plan: the times; the equation's rates are those at the start of each step.
      shape: an example's.
      cond: one condition, for all particles.
      noise: k of :func:`drift_transform`.
      particles: how many.
      resample: the scheme, as in :func:`smc.run`.
      threshold: the share of effective particles below which they are resampled.
      progress: whether a bar counts the steps.

    Returns:
      :class:`smc.Run`: ``population.particles``, [particles, *shape], weighted; ``log_evidence``,
      the logarithm of the integral of prod_i q_i^(a_i) at the plan's end, with a standard error.
      Start levels that are not far above the data's scale bias both.

    Raises:
      TypeError: for a denoiser that is conditioned.
      ValueError: for a plan that rises or leaves the process's range, a negative noise, and
        exponents whose sum is not positive.

    Reference:
      Feynman-Kac Correctors in Diffusion: Annealing, Guidance, and Product of Experts, Skreta et
      al., 2025, section 4.

    Example:
      ``guide.feynman_kac(key, guide.anneal(model, 2.0), sampler.karras(process, 200), (3,))``
    """
    check_key(key)
    transform = drift_transform(denoiser, cond, noise=noise)
    check_start(denoiser, plan, cond, shape)
    times = jnp.asarray(plan.times, float)
    return smc.run(
        key, WeightedDiffusion(transform, times[0], tuple(shape)), (times[:-1], times[1:]),
        particles=particles, resample=resample, threshold=threshold, progress=progress,
    )  # fmt: skip
