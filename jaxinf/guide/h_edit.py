"""h-Edit: a base step of any sampler, and then a step up the gradient of log h."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxinf.core import Leaf, Noise, Scalar, is_concrete, record, root, static
from jaxinf.process import convert, score, x0
from jaxinf.process.prediction import check_signal
from jaxinf.sampler import AnyStepper, Denoise, State
from jaxinf.sampler.bdia import BidirectionalState
from jaxinf.sampler.stepper import Wrapper, advance

Term = Callable[[Array, Array], Array]
"""(x, t) -> grad log h(x, t) for one example, a pytree."""


@record
class HEdit(Wrapper):
    """x_s = base + gamma C sum grad log h, at the base's x_s (implicit) or at x_t (explicit)."""

    stepper: Leaf
    terms: Leaf
    weight: Leaf
    eta: Leaf
    iterations: int = static()
    implicit: bool = static()

    def step(
        self, denoise: Denoise, noise: Noise, state: Any, t: Scalar, s: Scalar, row: Any = None
    ) -> tuple[Any, Any]:
        """Go from t to s by the base, and edit."""
        new, info = advance(self.stepper, denoise, noise, state, t, s, row)
        if not self.implicit:
            return _shifted(new, self._edit(state.x, t, t, s)), info

        def again(x: Array, _: None) -> tuple[Array, None]:
            return (x + self._edit(x, s, t, s)).astype(x.dtype), None

        x, _ = jax.lax.scan(again, new.x, None, self.iterations)
        return _shifted(new, x - new.x), info

    def _edit(self, x: Array, at: Scalar, t: Scalar, s: Scalar) -> Array:
        """Return gamma C grad log h(x, at), gamma being what the step from t to s gives a score."""
        process = self.process
        sigma_t, sigma_s = process.sigma(t), process.sigma(s)
        carried = process.alpha(s) / process.alpha(t) * sigma_t
        back = process.alpha(t) / process.alpha(s) * sigma_s
        tau = self.eta * sigma_s / sigma_t * root((sigma_t - back) * (sigma_t + back))
        along = root((sigma_s - tau) * (sigma_s + tau))
        slope = sum(term(x, at) for term in self.terms)
        gamma = self.weight * process.sigma(at) * (carried - along)
        return gamma * process.covariance.matvec(slope)


def _shifted(state: Any, by: Array) -> Any:
    """Move all examples that a state holds, so that the next step takes the edit along."""
    fields = {"x", "before"} & set(state._fields)
    return state._replace(**{f: (getattr(state, f) + by).astype(by.dtype) for f in fields})


@record
class RewardGradient:
    """(x, t) -> grad log h, by differentiation."""

    log_h: Leaf

    def __call__(self, x: Array, t: Scalar) -> Array:
        """Return the gradient at x."""
        return jax.grad(self.log_h)(x, t)


@record
class ScoreDifference:
    """(x, t) -> the score of one denoiser less that of another."""

    edited: Leaf
    original: Leaf
    cond: Leaf

    def __call__(self, x: Array, t: Scalar) -> Array:
        """Return the difference of scores at x."""
        p, (wanted, given) = self.edited.process, self.cond
        there = convert(p, t, x, self.edited(x, t, wanted), x0, score)
        return there - convert(p, t, x, self.original(x, t, given), x0, score)


def reward_gradient(log_h: Callable[[Array, Array], Array]) -> RewardGradient:
    """The editing term of a reward: the gradient of log h.

    Args:
      log_h: called as ``log_h(x, t)`` for one example, shape (), in nats: a pytree, such as
        ``jax.tree_util.Partial(function, params)``.

    Returns:
      A term for :func:`h_edit`.
    """
    return RewardGradient(log_h)


def score_difference(
    edited: Any, original: Any, wanted: Any = None, given: Any = None
) -> ScoreDifference:
    """The editing term of two conditions: h = p(wanted | x_t) / p(given | x_t) up to a factor.

    Args:
      edited: the denoiser of what is wanted, ``score.guided(denoiser, w, null=null)`` say.
      original: the denoiser of what is there.
      wanted: the condition that ``edited`` is called with.
      given: the condition that ``original`` is called with.

    Returns:
      A term for :func:`h_edit`: score(x, t | wanted) - score(x, t | given); 0 where sigma is.

    Reference:
      h-Edit, Nguyen et al., 2025, equations 23 and 24, without its factor of the noise.
    """
    return ScoreDifference(edited, original, (wanted, given))


def h_edit(
    stepper: AnyStepper,
    *terms: Term,
    eta: Scalar,
    weight: Scalar = 1.0,
    iterations: int = 1,
    implicit: bool = True,
) -> AnyStepper:
    r"""Edit while sampling: each step of a base, then a step along grad log h.

    Doob's transform of the reverse chain, p(x_s | x_t) h(x_s, s) / h(x_t, t), by one step of
    Langevin's method from the base's sample:

    .. math:: x_s = x_s^{base} + \gamma_s \sum_i \nabla \log h_i(x_s^{base}, s)
              \quad\text{(implicit)}, \qquad
              x_s = x_s^{base} + \gamma_t \sum_i \nabla \log h_i(x_t, t) \quad\text{(explicit)}

    with gamma_r = weight sigma_r (sigma_t alpha_s / alpha_t - sqrt(sigma_s^2 - tau^2)), what
    DDIM's step multiplies a score by (tau is its fresh noise): the explicit form over
    ``sampler.ddim(process, eta)`` is that step with grad log h added to the score. Where
    h(x, t) = E[h_0(x_0) | x_t = x] both forms tend to p h_0, with an error of the order of the
    step. Such terms add to another one where each is given what the others saw, or sees what is
    independent of that; any other sum steers somewhere between, and nothing here weighs it.

    Args:
      stepper: the base: one that keeps nothing but x, or ``sampler.bidirectional``.
      *terms: each called as ``term(x, t)``, grad log h of x's shape: :func:`reward_gradient`,
        :func:`score_difference` or any pytree; they add. None returns the base itself.
      eta: the amount of fresh noise of the base's steps, as ``sampler.ddim`` takes it: 0 for
        deterministic ones, 1 for the ancestral sampler and ``sampler.euler_maruyama``.
      weight: what log h is multiplied by.
      iterations: K, how often the implicit form repeats its update; the edit grows K times, and
        weight / K keeps its size. The paper's pull back to the base between them is left out.
      implicit: whether grad log h is taken at the base's x_s, where a step to time 0 edits nothing
        as sigma_s is 0; otherwise at x_t.

    Returns:
      The stepper. It calls the denoiser as often as the base.

    Raises:
      TypeError: for a base whose next step starts from more than x.
      ValueError: for iterations that are no whole number, below 1 or, in the explicit form, above;
        a negative eta; or where alpha(t_max) is 0 and so gamma infinite.

    Reference:
      h-Edit: Effective and Flexible Diffusion-Based Editing via Doob's h-Transform, Nguyen et al.,
      2025, equations 22 to 25.

    Example::

        reward = jax.tree_util.Partial(lambda to, x, t: -jnp.sum((x - to) ** 2) / 2, 2.0)
        p = process.gaussian(process.linear_beta())
        stepper = guide.h_edit(sampler.ancestral(p), guide.reward_gradient(reward), eta=1.0)
    """
    if not terms:
        return stepper
    _check(stepper, eta, iterations, implicit)
    return HEdit(stepper, terms, weight, eta, int(iterations), implicit)


def _check(stepper: Any, eta: Scalar, iterations: int, implicit: bool) -> None:
    """Raise on what cannot be edited with."""
    state = jax.eval_shape(stepper.init, jax.ShapeDtypeStruct((1,), jnp.float32))
    if not isinstance(state, State | BidirectionalState):
        raise TypeError(
            f"the edit moves x, and the next step of {type(stepper).__name__} starts from more of "
            f"its {type(state).__name__} than x; wrap a one-step method, sampler.ddim(process) say"
        )
    whole = isinstance(iterations, int | np.integer) and iterations >= 1
    if not whole or (iterations > 1 and not implicit):
        raise ValueError(
            f"iterations must be a whole number, at least 1, and 1 in the explicit form, which has "
            f"nothing to repeat; got {iterations!r} and implicit={implicit}"
        )
    if is_concrete(eta) and not float(eta) >= 0:
        raise ValueError(f"eta must not be negative, got {eta}; 1 is the ancestral sampler's")
    check_signal(stepper.process, "gamma of h-Edit")
