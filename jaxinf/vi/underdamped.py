"""Annealed Langevin paths with momentum, with a control or without."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxinf.core import Diagonal, Gaussian, Key, Leaf, record, static
from jaxinf.vi.annealing import Annealed, Annealing


class Moving(NamedTuple):
    """A position with its momentum."""

    x: Array
    v: Array
    fresh: Array
    """The momentum with which the last step began: what was drawn for it."""


@record
class Ahead:
    """The law of the next state: a refreshed momentum, and a leapfrog step that it drives."""

    kernels: Leaf
    target: Leaf
    k: Leaf
    state: Moving
    law: Leaf

    def sample(self, key: Key) -> Moving:
        """Draw the momentum and move."""
        fresh = self.law.sample(key)
        x, v = self.kernels.leap(self.target, self.k, self.state.x, fresh)
        return Moving(x, v, fresh)

    def log_prob(self, new: Moving) -> Float[Array, ""]:
        """Return the log density: leapfrog steps keep volumes."""
        return self.law.log_prob(new.fresh)


@record
class Behind:
    """The law of the state before: where the leapfrog step came from, and an older momentum."""

    kernels: Leaf
    target: Leaf
    k: Leaf
    state: Moving
    law: Leaf

    def sample(self, key: Key) -> Moving:
        """Go back and draw the momentum."""
        h = self.kernels.path.step(self.k - 1)
        x = self.state.x - 0.5 * h * (self.state.v + self.state.fresh)
        v = self.law.sample(key)
        _, before = self.kernels.leap(self.target, jnp.maximum(self.k - 2, 0), x, v, -1.0)
        return Moving(x, v, jnp.where(self.k > 1, before, 0.0))

    def log_prob(self, old: Moving) -> Float[Array, ""]:
        """Return the log density."""
        return self.law.log_prob(old.v)


@record
class _Start:
    """A position of the start with a momentum."""

    law: Leaf

    def sample(self, key: Key) -> Moving:
        """Draw both."""
        one, two = jax.random.split(key)
        x = self.law.sample(one)
        return Moving(x, jax.random.normal(two, x.shape, x.dtype), jnp.zeros_like(x))

    def log_prob(self, state: Moving) -> Float[Array, ""]:
        """Return the log density."""
        return self.law.log_prob(state.x) + _still(state.v)


def _still(v: Array) -> Float[Array, ""]:
    """Return the log density of a momentum in equilibrium."""
    return Gaussian(jnp.zeros_like(v), Diagonal(1.0)).log_prob(v)


@record
class Underdamped(Annealed):
    """See :func:`underdamped`."""

    params: Leaf
    log_friction: Leaf
    apply: Callable[..., Any] | None = static()

    def start(self, target: Any) -> _Start:
        """Return the start, with momenta in equilibrium."""
        del target
        return _Start(self.path.law)

    def around(self, target: Any, k: Any, state: Moving) -> tuple[Behind, Ahead]:
        """Return the laws of the states before and after."""
        t = k / self.steps
        before, after = self.path.step(jnp.maximum(k - 1, 0)), self.path.step(k)
        friction = jnp.exp(self.log_friction)
        back, onward = jnp.exp(-friction * before), jnp.exp(-friction * after)
        u = self.control(state.x, state.v, t)
        # the control is of the place where a momentum is drawn: the start of the leapfrog step
        there = state.x - 0.5 * before * (state.v + state.fresh)
        undone = self.control(there, state.fresh, jnp.maximum(k - 1, 0) / self.steps)
        behind = Gaussian(
            back * state.fresh - before * undone, Diagonal(jnp.sqrt(1 - jnp.square(back)))
        )
        ahead = Gaussian(onward * state.v + after * u, Diagonal(jnp.sqrt(1 - jnp.square(onward))))
        return Behind(self, target, k, state, behind), Ahead(self, target, k, state, ahead)

    def control(self, x: Array, v: Array, t: Any) -> Array:
        """Return the control at a place with a momentum."""
        if self.apply is None:
            return jnp.zeros_like(x)
        return self.apply(self.params, jnp.concatenate([x, v]), t)

    def leap(
        self, target: Any, k: Any, x: Array, v: Array, sign: float = 1.0
    ) -> tuple[Array, Array]:
        """Move by half a step, change momentum, move by the other half; or undo that."""
        h = sign * self.path.step(k)
        middle = x + 0.5 * h * v
        v = v + h * self.path.score(target, k + 1, middle)
        return middle + 0.5 * h * v, v

    def log_target(self, target: Any, state: Moving) -> Float[Array, ""]:
        """Return the log density of a position of the target, its momentum in equilibrium."""
        return target.log_prob(state.x) + _still(state.v)

    def log_between(self, target: Any, k: Any, state: Moving) -> Float[Array, ""]:
        """Return the log density that the path has at a step, momenta being in equilibrium."""
        return self.path.at(target, k).log_prob(state.x) + _still(state.v)

    def lift(self, target: Any, key: Key, x: Array) -> Moving:
        """Return a last state at a position."""
        v = jax.random.normal(key, x.shape, x.dtype)
        _, fresh = self.leap(target, self.steps - 1, x, v, -1.0)
        return Moving(x, v, fresh)

    def position(self, state: Moving) -> Array:
        """Return where a state is."""
        return state.x


def underdamped(
    path: Annealing, apply: Callable[..., Any] | None = None, params: Any = (), *,
    friction: float = 1.0,
) -> Underdamped:  # fmt: skip
    r"""Annealed Langevin paths with momentum.

    .. math:: \hat v &\sim N\bigl(e^{-\gamma h} v + h\, u(x, v, t_k), \sigma^2 I\bigr),
              \qquad (x', v') = \mathrm{leapfrog}_{\pi_{k+1}}(x, \hat v) \\
              v &\sim N\bigl(e^{-\gamma h} \hat v - h\, u(x, \hat v, t_k), \sigma^2 I\bigr)
              \quad \text{backward,} \qquad \sigma^2 = 1 - e^{-2 \gamma h}

    Without control it is uncorrected Hamiltonian annealing; with it, controlled Monte Carlo
    diffusion with momentum. Leapfrog steps keep volumes and are undone exactly, so that densities
    are those of the momenta that were drawn.

    Args:
      path: :func:`annealing`.
      apply: u, ``apply(params, xv, t)`` of one position and momentum, (2 dim,), and a time in
        [0, 1]; (dim,).
      params: its parameters.
      friction: gamma.

    Returns:
      The kernels, for :func:`jaxinf.vi.path_measures`; gamma is learnt too.

    Raises:
      ValueError: for a friction that is not positive.

    Reference:
      T. Geffner and J. Domke, "Langevin diffusion variational inference" (2023), section 4;
      F. Vargas, S. Padhy, D. Blessing and N. Nusken, "Transport meets variational inference:
      controlled Monte Carlo diffusions" (2024), appendix D.
    """
    if friction <= 0:
        raise ValueError(f"friction must be positive, got {friction}.")
    return Underdamped(path, params, jnp.log(friction), apply)
