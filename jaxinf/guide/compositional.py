"""Posteriors of many observations, from the scores of their posteriors one by one."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxinf.core import Leaf, Noise, PyTree, Scalar, is_concrete, record, static
from jaxinf.guide.evaluation import spread
from jaxinf.process import Gaussian, convert, eps, x0
from jaxinf.process.prediction import check_signal
from jaxinf.sampler import Denoise, State, StepInfo
from jaxinf.sampler.langevin import stream
from jaxinf.score import Denoiser


@record
class Compositional:
    """(1 - n)(1 - t / t_max) grad log p + sum_i s_i as a denoiser; see :func:`compositional`."""

    denoiser: Leaf
    observations: Leaf
    prior: Leaf

    @property
    def process(self) -> Any:
        """The denoiser's."""
        return self.denoiser.process

    def __call__(self, x: Array, t: Scalar, cond: PyTree = None) -> Array:
        """Return sum_i D_i + (1 - n) (x + (1 - t / t_max) sigma^2 C grad log p) / alpha."""
        each = jax.vmap(self.denoiser, (None, None, 0))(x, t, self.observations)
        rest = 1 - each.shape[0]
        pull = spread(self.process, t, jax.grad(self.prior.log_prob)(x))
        bridge = 1 - t / self.process.t_max
        moved = rest * (x / self.process.alpha(t) + bridge * pull)
        return (jnp.sum(each, axis=0) + moved).astype(x.dtype)


def compositional(denoiser: Denoiser, observations: PyTree, prior: Any) -> Compositional:
    r"""The posterior of n independent observations from a model of one, by bridging densities.

    .. math:: \nabla \log p_t(\theta) = (1 - n)(1 - t) \nabla \log p(\theta)
              + \sum_{i=1}^n \nabla \log p_t(\theta \mid x_i)

    with time in units of t_max. At t = 0 it is the score of p(theta | x_1, ..., x_n); in between it
    is that of no noised posterior, so samplers that reverse the process are biased:
    :func:`guide.annealed_langevin` is the sampler.

    Args:
      denoiser: of p(theta | x_i) for one observation, called as ``(theta, t, x_i)``.
      observations: x_1, ..., x_n, a pytree of arrays with a leading axis of n.
      prior: p(theta), with ``log_prob(theta)``.

    Returns:
      The denoiser of that score.

    Raises:
      TypeError: for a prior without a density.
      ValueError: where alpha(t_max) is 0.

    Reference:
      Compositional Score Modeling for Simulation-based Inference, Geffner et al., 2023, section
      3.
    """
    if not hasattr(prior, "log_prob"):
        raise TypeError(f"the prior must have log_prob(theta), got {type(prior).__name__}")
    process = denoiser.process
    check_signal(process, "a sum of scores as a denoiser")
    return Compositional(denoiser, observations, prior)


@record
class AnnealedLangevin:
    """x <- x + h C score(x, t) + sqrt(2 h) C^(1/2) z, K times; see :func:`annealed_langevin`."""

    process: Leaf
    size: Leaf
    repeats: int = static()

    def init(self, x: Array) -> State:
        """Return the state at the start."""
        return State(x)

    def step(
        self, denoise: Denoise, noise: Noise, state: State, t: Scalar, s: Scalar
    ) -> tuple[State, StepInfo]:
        """Move at the level t, as often as said; s only says which level comes next."""
        process = self.process

        def move(x: Array, k: Array) -> tuple[Array, Array]:
            clean = denoise(x, t)
            # C score = -e / sigma
            pull = -convert(process, t, x, clean, x0, eps) / process.sigma(t)
            fresh = process.covariance.sqrt(stream(noise, k).increment(t, s))
            new = x + self.size * pull + jnp.sqrt(2 * self.size) * fresh
            return new.astype(x.dtype), clean

        x, clean = jax.lax.scan(move, state.x, jnp.arange(self.repeats))
        return State(x), StepInfo(clean[-1])

    def calls(self, t: float, s: float) -> int:
        """One call a move."""
        return self.repeats


def annealed_langevin(process: Gaussian, size: Scalar, repeats: int = 10) -> AnnealedLangevin:
    r"""Langevin steps at every level of a plan: a sampler of densities that are no reversal's.

    .. math:: x \leftarrow x + h\, C \nabla \log p_t(x) + \sqrt{2 h}\, C^{1/2} z

    h is one number for all levels, since the last densities of :func:`guide.compositional` keep
    their width where a process's own shrink with sigma. On a Gaussian of variance V it ends in the
    variance V / (1 - h / (2 V)), and diverges for h from 2 V on.

    Args:
      process: of which the score is.
      size: h, positive, well below the narrowest variance.
      repeats: K, at every time of the plan but its last, where no step starts.

    Returns:
      The stepper, for plans that may end at 0.

    Raises:
      ValueError: for a size that is not positive, or repeats below 1.

    Reference:
      Generative Modeling by Estimating Gradients of the Data Distribution, Song and Ermon, 2019,
      algorithm 1, with steps of one length; Compositional Score Modeling for Simulation-based
      Inference, Geffner et al., 2023, section 3.
    """
    if is_concrete(size) and not float(size) > 0:
        raise ValueError(f"size must be positive, got {size}; a tenth of the variance, say")
    if not (isinstance(repeats, int | np.integer) and repeats >= 1):
        raise ValueError(f"repeats must be a whole number, at least 1, got {repeats!r}")
    return AnnealedLangevin(process, size, int(repeats))
