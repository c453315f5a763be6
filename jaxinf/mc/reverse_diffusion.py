"""Reverse diffusion Monte Carlo: the denoiser of an unnormalised target, without a network."""

from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxinf.core import Key, Leaf, PyTree, Scalar, is_concrete, record, static
from jaxinf.process import Gaussian, custom, gaussian
from jaxinf.process.prediction import check_signal
from jaxinf.target import Target


class Posterior(NamedTuple):
    """The law of the clean position given the noisy one, up to a factor."""

    target: Any
    x: Float[Array, " dim"]
    alpha: Float[Array, ""]
    sigma: Float[Array, ""]

    def proposal(self, key: Key, n: int) -> Float[Array, "n dim"]:
        """Draw from N(x / alpha, (sigma / alpha)^2), the factor without the target."""
        z = jax.random.normal(key, (n, *self.x.shape), self.x.dtype)
        return (self.x[None] + self.sigma * z) / self.alpha

    def log_prob(self, clean: Float[Array, " dim"]) -> Float[Array, ""]:
        """Return the log density without its normaliser."""
        off = (self.x - self.alpha * clean) / self.sigma
        return self.target.log_prob(clean) - jnp.sum(jnp.square(off)) / 2


class Info(NamedTuple):
    """How good one estimate is."""

    ess: Float[Array, ""]
    """Effective sample size of the proposals; near 1 the estimate rests on one of them."""
    finite: Bool[Array, ""]
    """Whether the estimate is finite; it is not where no proposal has mass."""


@runtime_checkable
class Estimate(Protocol):
    """How the posterior's mean is found; a pytree."""

    def __call__(self, key: Key, posterior: Posterior) -> tuple[Float[Array, " dim"], Info]:
        """Return the mean and how good it is."""
        ...


@record
class Importance:
    """Self-normalised importance sampling; see :func:`importance`."""

    draws: int = static()

    def weighted(self, key: Key, posterior: Posterior) -> tuple[Array, Array]:
        """Return proposals and normalised weights."""
        clean = posterior.proposal(key, self.draws)
        return clean, jax.nn.softmax(jax.vmap(posterior.target.log_prob)(clean))

    def __call__(self, key: Key, posterior: Posterior) -> tuple[Array, Info]:
        """Return the weighted mean."""
        clean, weights = self.weighted(key, posterior)
        # from the centre of the proposals, so that few digits are lost where sigma is small
        centre = posterior.x / posterior.alpha
        mean = centre + jnp.matmul(weights, clean - centre[None], precision="highest")
        return mean, Info(1 / jnp.sum(jnp.square(weights)), jnp.all(jnp.isfinite(mean)))


@record
class Langevin:
    """Unadjusted Langevin chains; see :func:`langevin`."""

    step_size: Leaf
    smoothness: Leaf
    start: Importance
    steps: int = static()

    def __call__(self, key: Key, posterior: Posterior) -> tuple[Array, Info]:
        """Return the mean of the chains' ends."""
        key_start, key_choice, key_steps = jax.random.split(key, 3)
        clean, weights = self.start.weighted(key_start, posterior)
        n = self.start.draws
        chosen = clean[jax.random.choice(key_choice, n, (n,), p=weights)]
        h = self.step_size / (jnp.square(posterior.alpha / posterior.sigma) + self.smoothness)
        slope = jax.vmap(jax.grad(posterior.log_prob))

        def step(z: Array, key: Key) -> tuple[Array, None]:
            noise = jax.random.normal(key, z.shape, z.dtype)
            return z + h * slope(z) + jnp.sqrt(2 * h) * noise, None

        ends, _ = jax.lax.scan(step, chosen, jax.random.split(key_steps, self.steps))
        # a weight that is not a number chooses nothing in particular: it must show
        mean = jnp.mean(ends, axis=0) + 0 * jnp.sum(weights)
        return mean, Info(1 / jnp.sum(jnp.square(weights)), jnp.all(jnp.isfinite(mean)))


@record
class ReverseDiffusion:
    """The denoiser; see :func:`reverse_diffusion`."""

    process: Leaf
    target: Leaf
    method: Leaf

    def estimate(self, key: Key, x: Float[Array, " dim"], t: Scalar) -> tuple[Array, Info]:
        """Return an estimate of E[x_0 | x_t = x], and how good it is."""
        alpha, sigma = (
            jnp.asarray(f(t), x.dtype) for f in (self.process.alpha, self.process.sigma)
        )
        return self.method(key, Posterior(self.target, x, alpha, sigma))

    def __call__(self, x: Float[Array, " dim"], t: Scalar, cond: PyTree = None) -> Array:
        """Return the estimate with the sample's key, ``cond``, and this time's randomness."""
        if not (hasattr(cond, "dtype") and jax.dtypes.issubdtype(cond.dtype, jax.dtypes.prng_key)):
            raise TypeError(
                "this denoiser draws: it needs each sample's key as its condition, "
                "sample(..., cond=jax.random.split(key, len(x_T)))"
            )
        bits = jax.lax.bitcast_convert_type(jnp.asarray(t, jnp.float32), jnp.uint32)
        return self.estimate(jax.random.fold_in(cond, bits), x, t)[0]


def importance(draws: int = 500) -> Importance:
    r"""Estimate the clean mean by self-normalised importance sampling.

    .. math:: \hat x_0 = \frac{\sum_i \pi(z_i) z_i}{\sum_i \pi(z_i)}, \qquad
              z_i \sim N(x / \alpha, (\sigma / \alpha)^2)

    Its error falls as draws^(-1/2), its bias as 1 / draws; it degenerates in high dimension and
    where x / alpha is far from all mass, which ``Info.ess`` shows.

    Args:
      draws: how many proposals for each estimate, one evaluation of the target each.

    Returns:
      A method for :func:`reverse_diffusion`.

    Raises:
      ValueError: for no draw.

    Reference:
      X. Huang, H. Dong, Y. Hao, Y. Ma and T. Zhang, "Reverse Diffusion Monte Carlo", ICLR 2024,
      section 3.2.
    """
    if draws < 1:
        raise ValueError(f"draws must be at least 1, got {draws}.")
    return Importance(draws)


def langevin(
    chains: int = 100, steps: int = 20, *, step_size: Scalar = 0.3, smoothness: Scalar = 1.0
) -> Langevin:
    r"""Estimate the clean mean by unadjusted Langevin chains on the posterior.

    .. math:: z \leftarrow z + h \nabla\Bigl[\log\pi(z) - \frac{|x - \alpha z|^2}{2 \sigma^2}\Bigr]
              + \sqrt{2 h}\, \xi, \qquad h = \frac{\epsilon}{\alpha^2 / \sigma^2 + L}

    The posterior is the more concave the smaller the noise, so the chains mix where the target's
    own do not. They begin at proposals of importance sampling, resampled.

    Args:
      chains: how many, whose ends are averaged.
      steps: of each.
      step_size: epsilon, in units of the posterior's curvature; below 2, and its bias in the
        spread is of its order.
      smoothness: L, the largest curvature of -log pi, in inverse squared units of positions.

    Returns:
      A method for :func:`reverse_diffusion`.

    Raises:
      ValueError: for no chain, no step or numbers that are not positive.

    Reference:
      X. Huang, H. Dong, Y. Hao, Y. Ma and T. Zhang, "Reverse Diffusion Monte Carlo", ICLR 2024,
      algorithms 1 and 2. There chains may go on from the time before; a denoiser carries nothing
      from time to time, so here each begins at resampled proposals.
    """
    for name, value in (("chains", chains), ("steps", steps)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}.")
    for name, value in (("step_size", step_size), ("smoothness", smoothness)):
        if is_concrete(value) and not value > 0:
            raise ValueError(f"{name} must be positive, got {value}.")
    return Langevin(step_size, smoothness, importance(chains), steps)


def ornstein_uhlenbeck(t_min: Scalar = 1e-3, t_max: Scalar = 5.0) -> Gaussian:
    r"""The Ornstein-Uhlenbeck process that reverse diffusion Monte Carlo reverses.

    .. math:: dx = -x\, dt + \sqrt2\, dW, \qquad \alpha = e^{-t}, \quad \sigma^2 = 1 - e^{-2 t}

    Args:
      t_min: the earliest time.
      t_max: the latest; a target of second moment m is then within a divergence of about
        :math:`e^{-2 t_{max}} m / 2` from the normal law that samplers start from.

    Returns:
      A process.

    Raises:
      ValueError: unless 0 < t_min < t_max.

    Reference:
      X. Huang, H. Dong, Y. Hao, Y. Ma and T. Zhang, "Reverse Diffusion Monte Carlo", ICLR 2024,
      equation 1.
    """
    return gaussian(custom(_decay, _noise, t_min, t_max))


def _decay(t: Array) -> Array:
    return jnp.exp(-t)


def _noise(t: Array) -> Array:
    return jnp.sqrt(-jnp.expm1(-2 * t))


def reverse_diffusion(
    process: Gaussian, target: Target, method: Estimate | None = None
) -> ReverseDiffusion:
    r"""The denoiser of an unnormalised target, by Monte Carlo at every call.

    .. math:: \nabla\log p_t(x) = E_{q_t}\Bigl[-\frac{x - \alpha x_0}{\sigma^2}\Bigr], \qquad
              q_t(x_0 \mid x) \propto \pi(x_0)\, e^{-|x - \alpha x_0|^2 / (2 \sigma^2)}

    and so E[x_0 | x_t = x] = E_q[x_0], which is estimated. Reverse diffusion Monte Carlo is this
    denoiser with ``sampler.sample``; ``sampler.euler_maruyama`` and ``sampler.ancestral`` are of
    first order as the paper's step, and any stepper will do. A stepper that calls the denoiser
    several times at one time gets the same random numbers there.

    Args:
      process: with white noise and alpha(t_max) > 0; :func:`ornstein_uhlenbeck` is the paper's.
      target: the law at time 0.
      method: ``importance()``, by default, or ``langevin()``.

    Returns:
      A denoiser whose condition is each sample's key. ``estimate(key, x, t)`` also returns
      :class:`Info`; within ``sample`` an estimate that is not finite stops its sample and shows
      in ``info.finite``.

    Raises:
      ValueError: for a process whose noise is not white, or alpha(t_max) = 0.
      TypeError: on a call without a key as condition.

    Reference:
      X. Huang, H. Dong, Y. Hao, Y. Ma and T. Zhang, "Reverse Diffusion Monte Carlo", ICLR 2024,
      lemma 1 and algorithm 1.

    Example:
      ``sample(key, ancestral(process), denoiser, plan, x_T, cond=jax.random.split(key, len(x_T)))``
    """
    if is_concrete(process):
        probe = jnp.arange(1.0, 3.0)
        if not bool(jnp.all(process.covariance.matvec(probe) == probe)):
            raise ValueError(
                "reverse diffusion Monte Carlo draws from white noise, and the process has another "
                "covariance; use process.gaussian(schedule), and whiten the target instead"
            )
        mend = "take mc.ornstein_uhlenbeck(), or end the schedule earlier"
        check_signal(process, "a proposal x / alpha", mend=mend)
    return ReverseDiffusion(process, target, importance() if method is None else method)
