"""Two laws of one path: forward from a start, and backward from a target."""

from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from jaxinf.core import Key, Leaf, first, prepend, record, rest
from jaxinf.vi.checks import check_density
from jaxinf.vi.pair import Weighed


@runtime_checkable
class Kernels(Protocol):
    """The steps of a path both ways, for one path; a pytree with ``steps``, how many there are.

    States are positions; kernels whose states hold more say how (:class:`Underdamped`).
    """

    def start(self, target: Any) -> Any:
        """Return the law of the first state, with ``sample(key)`` and ``log_prob(x)``."""
        ...

    def around(self, target: Any, k: Any, state: PyTree) -> tuple[Any, Any]:
        """Return the law of the state before, backward, and that of the one after, forward.

        Both are asked for at once, because they share what is costly: the target's score.
        """
        ...

    def log_target(self, target: Any, state: PyTree) -> Float[Array, ""]:
        """Return the unnormalised log density of the last state."""
        return target.log_prob(state)

    def log_between(self, target: Any, k: Any, state: PyTree) -> Float[Array, ""]:
        """Return the log density of a state after k steps: the start's at 0, the target's at K.

        That is for :func:`resampled`, and no part of a path's density.
        """
        raise TypeError(
            f"{type(self).__name__} knows no densities between start and target, by which paths "
            "are resampled: kernels of vi.annealing do, or give yours log_between."
        )

    def lift(self, target: Any, key: Key, x: Array) -> PyTree:
        """Return a last state at a position, with what else a state has drawn for it."""
        del target, key
        return x

    def position(self, state: PyTree) -> Array:
        """Return the position of a state."""
        return state


class Path(NamedTuple):
    """A path with its two log densities."""

    states: PyTree
    """Leading axis [steps + 1]."""
    log_p: Float[Array, ""]
    """Backward from the target."""
    log_q: Float[Array, ""]
    """Forward from the start."""


@record
class PathMeasures:
    """A pair of measures on paths; see :func:`path_measures`."""

    target: Leaf
    kernels: Leaf

    def draw(self, key: Key) -> Weighed:
        """Draw a path forward."""
        path = self.forward(key)
        states, log_p, log_q = jax.tree.map(lambda a: a[None], path)
        return Weighed(states, log_p, log_q, jnp.ones_like(log_q), None)

    def forward(self, key: Key) -> Path:
        """Draw a path from the start, and return its densities."""
        kernels, target = self.kernels, self.target
        begin, steps = jax.random.split(key)
        law = kernels.start(target)
        state = law.sample(begin)
        _, ahead = kernels.around(target, 0, state)

        def step(held: Any, k: Array) -> tuple[Any, Any]:
            state, ahead, log_p, log_q = held
            new = ahead.sample(jax.random.fold_in(steps, k))
            back, onward = kernels.around(target, k, new)
            held = new, onward, log_p + back.log_prob(state), log_q + ahead.log_prob(new)
            return held, new

        log_q = law.log_prob(state)
        held = state, ahead, jnp.zeros_like(log_q), log_q
        (end, _, log_p, log_q), later = jax.lax.scan(step, held, jnp.arange(1, kernels.steps + 1))
        return Path(prepend(state, later), log_p + kernels.log_target(target, end), log_q)

    def backward(self, key: Key, x: Float[Array, " dim"]) -> Path:
        """Draw a path from its last position, backward, and return its densities."""
        kernels, target = self.kernels, self.target
        lift, key = jax.random.split(key)
        end = kernels.lift(target, lift, x)
        behind, _ = kernels.around(target, kernels.steps, end)

        def step(held: Any, k: Array) -> tuple[Any, Any]:
            state, behind, log_p, log_q = held
            new = behind.sample(jax.random.fold_in(key, k))
            back, onward = kernels.around(target, k, new)
            held = new, back, log_p + behind.log_prob(new), log_q + onward.log_prob(state)
            return held, new

        log_p = kernels.log_target(target, end)
        held = end, behind, log_p, jnp.zeros_like(log_p)
        counts = jnp.arange(kernels.steps)
        (start, _, log_p, log_q), states = jax.lax.scan(step, held, counts, reverse=True)
        states = jax.tree.map(lambda a, b: jnp.concatenate([a, b[None]]), states, end)
        return Path(states, log_p, log_q + kernels.start(target).log_prob(start))

    def evaluate(self, values: PyTree) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """Return the log densities of a path's states, all steps at once."""
        kernels, target = self.kernels, self.target
        counts = jnp.arange(kernels.steps + 1)
        laws = jax.vmap(kernels.around, (None, 0, 0))(target, counts, values)
        behind, ahead = laws
        early, ahead = jax.tree.map(lambda a: a[:-1], (values, ahead))
        late, behind = rest((values, behind))
        forward = jax.vmap(lambda law, state: law.log_prob(state))(ahead, late)
        backward = jax.vmap(lambda law, state: law.log_prob(state))(behind, early)
        log_q = kernels.start(target).log_prob(first(values)) + jnp.sum(forward)
        end = jax.tree.map(lambda a: a[-1], values)
        return kernels.log_target(target, end) + jnp.sum(backward), log_q


def path_measures(target: Any, kernels: Any) -> PathMeasures:
    r"""The pair of a sampler's paths and of the target's, carried back.

    .. math:: q(x_{0:K}) = q_0(x_0) \prod_k F_k(x_{k+1} | x_k), \qquad
              p(x_{0:K}) = \pi(x_K) \prod_k B_k(x_k | x_{k+1})

    so that :math:`E_q[p / q] = Z` whatever the kernels are, and the divergence of the two is what a
    sampler that learns makes small.

    Args:
      target: an unnormalised density, with ``log_prob(z)`` and ``dim``.
      kernels: :func:`langevin_annealing`, :func:`monte_carlo_diffusion`, :func:`controlled`,
        :func:`underdamped`, :func:`denoising_sampler`, :func:`path_integral_sampler`, or your own
        :class:`Kernels`.

    Returns:
      The pair, of which every objective of this room is a divergence.

    Raises:
      TypeError: for what is no target and for what are no kernels.
    """
    check_density(target)
    if not (isinstance(kernels, Kernels) and hasattr(kernels, "steps")):
        raise TypeError(f"{type(kernels).__name__} is no Kernels: it needs start, around, steps.")
    return PathMeasures(target, kernels)
