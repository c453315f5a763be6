"""The algebra of denoisers: products of powers of their densities, a denoiser again."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxinf.core import Leaf, PyTree, Scalar, concretely, is_concrete, record
from jaxinf.guide.evaluation import Evaluation, Moments, evaluate, log_final, spread
from jaxinf.process.prediction import check_signal
from jaxinf.score import Denoiser


@record
class Product:
    """The score sum_i a_i s_i, of prod_i q_i^(a_i); see :func:`product`."""

    denoisers: Leaf
    exponents: Leaf

    @property
    def process(self) -> Any:
        """The denoisers'."""
        return self.denoisers[0].process

    def __call__(self, x: Array, t: Scalar, cond: PyTree = None) -> Array:
        """Return sum_i a_i D_i + (1 - sum_i a_i) x / alpha."""
        return self.evaluate(x, t, cond, False).guided.mean

    def evaluate(self, x: Array, t: Scalar, cond: PyTree, full: bool) -> Evaluation:
        """Return the experts of all factors with their exponents multiplied."""
        parts = [evaluate(d, x, t, cond, full) for d in self.denoisers]
        pairs = list(zip(self.exponents, parts, strict=True))
        rest = 1 - sum(self.exponents)
        alpha = self.process.alpha(t)
        bare = jnp.where(rest == 0, 0.0, rest / jnp.where(alpha == 0, 1.0, alpha))
        mean = sum(a * p.guided.mean for a, p in pairs) + bare * x
        covariance = None
        if full:
            eye = jnp.eye(x.size, dtype=x.dtype).reshape(x.size, *x.shape)
            flat = jax.vmap(lambda v: bare * spread(self.process, t, v))(eye)
            covariance = sum(a * p.guided.covariance for a, p in pairs)
            covariance = covariance + flat.reshape(x.size, x.size)
        return Evaluation(
            Moments(mean.astype(x.dtype), covariance),
            tuple(e for _, p in pairs for e in p.experts),
            tuple(a * b for a, p in pairs for b in p.exponents),
            sum((a * p.log_twist for a, p in pairs), jnp.zeros((), x.dtype)),
        )

    def log_final(self, x: Array) -> Float[Array, ""]:
        """Return the sum of the factors', times their exponents."""
        return sum(
            (a * log_final(d, x) for a, d in zip(self.exponents, self.denoisers, strict=True)),
            jnp.zeros((), x.dtype),
        )


def product(denoisers: Sequence[Denoiser], exponents: Sequence[Scalar] | None = None) -> Product:
    r"""The product of powers of the experts' densities, as a denoiser.

    .. math:: s = \sum_i a_i s_i, \qquad
              D = \sum_i a_i D_i + \Bigl(1 - \sum_i a_i\Bigr) \frac{x}{\alpha}

    Its score at t is that of the product of the noised densities, which is not the noised product
    but at time 0: sampled as it stands, its law is biased, and :func:`guide.particles` or
    :func:`guide.feynman_kac` weigh it. A product of products, of conditioned denoisers and so on
    is one too.

    Args:
      denoisers: of one process.
      exponents: a_i, any numbers; 1 each by default.

    Returns:
      The denoiser; each call calls every expert once.

    Raises:
      ValueError: for no denoisers, another number of exponents, experts of processes that differ,
        or exponents whose sum is not 1 where alpha(t_max) is 0.

    Reference:
      Compositional Visual Generation with Composable Diffusion Models, Liu et al., 2022, equation
      11; Reduce, Reuse, Recycle, Du et al., 2023, section 4.
    """
    denoisers = tuple(denoisers)
    exponents = (1.0,) * len(denoisers) if exponents is None else tuple(exponents)
    if not denoisers or len(exponents) != len(denoisers):
        raise ValueError(
            f"a product takes denoisers and an exponent each, got {len(denoisers)} and "
            f"{len(exponents)}"
        )
    check_processes(denoisers, exponents)
    return Product(denoisers, exponents)


def check_processes(denoisers: tuple[Any, ...], exponents: tuple[Any, ...]) -> None:
    """Raise where experts are of different processes, or a sum is not defined at t_max."""
    processes = [d.process for d in denoisers]
    if not is_concrete((processes, exponents)):
        return
    first = processes[0]
    latest = float(first.t_max)
    with concretely():
        times = jnp.linspace(float(first.t_min), latest, 5)
        levels = [[(p.alpha(t), p.sigma(t)) for t in times] for p in processes]
        levels = jnp.asarray(levels)
        apart = float(jnp.max(jnp.abs(levels - levels[:1])))
        scale = 1 + float(jnp.max(levels))
        total = float(sum(exponents))
    if apart > 1e-5 * scale:
        raise ValueError(
            f"the experts' processes differ, by {apart:.3g} in alpha or sigma: at one time "
            "they must be as noisy as each other"
        )
    if abs(total - 1) > 1e-6:
        check_signal(first, f"a product with exponents that sum to {total:.6g} and not to 1")


def geometric_mean(
    denoisers: Sequence[Denoiser], weights: Sequence[Scalar] | None = None
) -> Product:
    """The geometric mean prod_i q_i^(w_i) of experts, with weights that are made to sum to 1.

    Args:
      denoisers: of one process.
      weights: positive; equal by default. Two with weights (1 - l, l) interpolate.

    Returns:
      The denoiser, sum_i w_i D_i.
    """
    weights = [1.0] * len(tuple(denoisers)) if weights is None else list(weights)
    total = sum(weights)
    return product(denoisers, [w / total for w in weights])


def interpolate(a: Denoiser, b: Denoiser, share: Scalar) -> Product:
    """The geometric path q_a^(1 - l) q_b^l from one denoiser to another; l = ``share``."""
    return product((a, b), (1 - share, share))


def anneal(denoiser: Denoiser, power: Scalar) -> Product:
    """The density to a power, q^b: colder above 1, warmer below; the score b s.

    Args:
      denoiser: of q.
      power: b, positive.

    Returns:
      The denoiser, b D + (1 - b) x / alpha.

    Raises:
      ValueError: for a power that is not positive.
    """
    if is_concrete(power) and not float(power) > 0:
        raise ValueError(f"power must be positive, got {power}: q^0 is no density")
    return product((denoiser,), (power,))


def contrast(denoiser: Denoiser, other: Denoiser, scale: Scalar) -> Product:
    """Guidance away from another denoiser: q^w other^(1 - w), D_other + w (D - D_other).

    With the model without its condition as ``other`` it is classifier-free guidance, with another
    condition's negative guidance, with a worse model of the same data autoguidance.

    Args:
      denoiser: what is guided.
      other: what it is guided away from, for a scale above 1.
      scale: w.

    Returns:
      The denoiser. ``guide.given(model, cond)`` binds a condition; ``score.guided`` is the same
      drift for a batch with a condition each.

    Reference:
      Classifier-Free Diffusion Guidance, Ho and Salimans, 2022, equation 6; Guiding a Diffusion
      Model with a Bad Version of Itself, Karras et al., 2024, equation 3.
    """
    return product((denoiser, other), (scale, 1 - scale))


@record
class Given:
    """A denoiser with its condition bound."""

    denoiser: Leaf
    cond: Leaf

    @property
    def process(self) -> Any:
        """The wrapped denoiser's."""
        return self.denoiser.process

    def __call__(self, x: Array, t: Scalar, cond: PyTree = None) -> Array:
        """Return the wrapped denoiser's prediction under the bound condition."""
        return self.denoiser(x, t, self.cond)

    def evaluate(self, x: Array, t: Scalar, cond: PyTree, full: bool) -> Evaluation:
        """Return the wrapped denoiser's evaluation under the bound condition."""
        return evaluate(self.denoiser, x, t, self.cond, full)

    def log_final(self, x: Array) -> Float[Array, ""]:
        """Return the wrapped denoiser's."""
        return log_final(self.denoiser, x)


def given(denoiser: Denoiser, cond: PyTree) -> Given:
    """A denoiser with one condition bound, whatever is passed with the example.

    Args:
      denoiser: what takes conditions.
      cond: one example's condition.
    """
    return Given(denoiser, cond)
