"""Gaussians along a quasi-Newton path, of which the one with the best bound is taken."""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from jaxinf.core import Gaussian, Key, check_key
from jaxinf.vi.checks import check_least, check_positive, check_target
from jaxinf.vi.quasi_newton import Pairs, inverse_hessian, remember


class PathfinderInfo(NamedTuple):
    """The path; a row is a point of L-BFGS after the start."""

    bound: Float[Array, " steps"]
    """Estimates of the evidence lower bound, in nats; -inf where the path had ended or the bound
    was not finite."""
    best: Int[Array, ""]
    """The row that was taken."""
    steps: Int[Array, ""]
    """How many points the path has."""
    rejected: Int[Array, ""]
    """Pairs of steps and gradients of negative curvature, which were left out."""
    gradient: Float[Array, ""]
    """Norm of the gradient where the path ended."""


class Pathfinder(NamedTuple):
    """What :func:`pathfinder` found."""

    law: Gaussian
    """With a covariance diag + low rank; NaN where no point had a finite bound."""
    bound: Float[Array, ""]
    """Its estimate of the evidence lower bound, the greatest of noisy ones, in nats."""
    info: PathfinderInfo


class Paths(NamedTuple):
    """What :func:`multi_pathfinder` found."""

    draws: Float[Array, "draws dim"]
    """Resampled by importance weights."""
    ess: Float[Array, ""]
    """Effective share of the weighted draws of all paths, in (0, 1]; 0 where none was finite."""
    paths: Pathfinder
    """Every path's, with a leading axis."""


class _Options(NamedTuple):
    """What a path is compiled for."""

    steps: int
    memory: int
    draws: int
    curvature: float


def pathfinder(
    key: Key,
    target: Any,
    start: Float[Array, " dim"],
    *,
    steps: int = 60,
    memory: int = 6,
    draws: int = 25,
    tolerance: Any = None,
    curvature: float = 0.9,
) -> Pathfinder:
    r"""The best Gaussian along a path of L-BFGS.

    At each point :math:`\theta_l` the inverse-Hessian estimate :math:`\Sigma_l` of the last pairs
    of steps and gradient differences is a covariance, and that of the greatest estimated evidence
    lower bound is taken.

    .. math::
       q_l = N(\theta_l + \Sigma_l \nabla \log \pi(\theta_l), \Sigma_l), \quad
       l^* = \arg\max_l \frac1K \sum_k \log \pi(\phi_k) - \log q_l(\phi_k), \quad \phi_k \sim q_l

    :math:`\Sigma_l` is held as a diagonal and a factor of rank 2 memory, see
    :func:`inverse_hessian`: no (dim, dim) matrix is formed.

    Args:
      key: a typed key.
      target: with ``log_prob(z)``, differentiable.
      start: a position (dim,), rather far out than at the mode.
      steps: points of the path, at most.
      memory: pairs that are kept.
      draws: K, of each point's bound.
      tolerance: of the gradient's norm, at which the path ends; by default the square root of the
        machine's epsilon times one plus the norm at the start.
      curvature: of the line search's second Wolfe condition, in (0, 1); next to 0 lines are
        searched to their end, and a Gaussian of up to ``memory`` dimensions is found exactly.

    Returns:
      :class:`Pathfinder`.

    Raises:
      TypeError: for a target without a density or a gradient.
      ValueError: for a start of another dimension, and counts, tolerance or curvature out of range.

    Reference:
      L. Zhang, B. Carpenter, A. Gelman and A. Vehtari, "Pathfinder: parallel quasi-Newton
      variational inference" (2022), algorithm 1. Its line search is optax's.

    Example:
      ``vi.pathfinder(key, posterior, start).law.sample(key)``
    """
    start, tolerance, options = _checked(
        key, target, start, tolerance, _Options(steps, memory, draws, curvature)
    )
    return _pathfinder(key, target, start, tolerance, options)


def multi_pathfinder(
    key: Key,
    target: Any,
    starts: Float[Array, "paths dim"],
    *,
    draws: int = 1000,
    proposals: int = 200,
    steps: int = 60,
    memory: int = 6,
    tolerance: Any = None,
    curvature: float = 0.9,
) -> Paths:
    r"""Draws of many paths, resampled by their importance weights.

    .. math:: w_{is} = \pi(\phi_{is}) / q_i(\phi_{is}), \qquad \phi_{is} \sim q_i

    The paper smooths the greatest weights; here they are as they come, and ``ess`` says what they
    are worth.

    Args:
      key: a typed key.
      target: see :func:`pathfinder`.
      starts: a position for each path (paths, dim).
      draws: how many are resampled, with replacement.
      proposals: draws of each path.
      steps: see :func:`pathfinder`.
      memory: see :func:`pathfinder`.
      tolerance: see :func:`pathfinder`.
      curvature: see :func:`pathfinder`.

    Returns:
      :class:`Paths`.

    Raises:
      TypeError: as :func:`pathfinder`.
      ValueError: as :func:`pathfinder`, and for starts without a leading axis.

    Reference:
      L. Zhang, B. Carpenter, A. Gelman and A. Vehtari, "Pathfinder: parallel quasi-Newton
      variational inference" (2022), algorithm 2, without Pareto smoothing.
    """
    starts = jnp.asarray(starts)
    if starts.ndim != 2 or starts.shape[0] == 0:
        raise ValueError(f"starts must have shape (paths, dim), got {starts.shape}.")
    check_least(draws=draws)
    check_least(proposals=proposals)
    options = _Options(steps, memory, 25, curvature)
    _, tolerance, options = _checked(key, target, starts[0], tolerance, options)
    starts = starts.astype(jnp.result_type(starts, float))
    return _multi(key, target, starts, tolerance, options, draws, proposals)


def _checked(
    key: Key, target: Any, start: Any, tolerance: Any, options: _Options
) -> tuple[Array, Any, _Options]:
    """Return start, tolerance and options; raise for what is wrong with them."""
    check_key(key)
    start = jnp.asarray(start, jnp.result_type(start, float))
    check_target(target, start)
    for name, value in zip(options._fields[:3], options[:3], strict=True):
        check_least(**{name: value})
    if not 0 < options.curvature < 1:
        raise ValueError(f"curvature must lie between 0 and 1, got {options.curvature}.")
    if tolerance is not None:
        check_positive("tolerance", tolerance)
    return start, tolerance, options


@partial(jax.jit, static_argnames="options")
def _pathfinder(
    key: Key, target: Any, start: Array, tolerance: Any, options: _Options
) -> Pathfinder:
    """See :func:`pathfinder`."""

    def row(held: Any, key: Key) -> tuple[Any, tuple[Gaussian, Array]]:
        held = advance(held)
        z, pairs, grad = held.z, held.pairs, held.grad
        covariance = inverse_hessian(pairs)
        law = Gaussian(z - covariance.matvec(grad), covariance)
        found = _bound(key, target, law, options.draws)
        use = held.moved & jnp.isfinite(found)
        return held, (law, jnp.where(use, found, -jnp.inf))

    first, advance = _path(target, start, tolerance, options)
    end, (laws, bounds) = jax.lax.scan(row, first, jax.random.split(key, options.steps))
    best = jnp.argmax(bounds)
    lost = bounds[best] == -jnp.inf
    law = jax.tree.map(lambda a: jnp.where(lost, jnp.nan, a[best]), laws)
    norm = jnp.linalg.norm(end.grad)
    info = PathfinderInfo(bounds, best, end.count, end.rejected, norm)
    return Pathfinder(law, bounds[best], info)


class _Point(NamedTuple):
    """A point of the path; ``grad`` is that of minus the log density."""

    z: Array
    grad: Array
    state: Any
    pairs: Pairs
    moved: Array
    """Whether the last step went anywhere; once it did not, none does."""
    count: Array
    rejected: Array


def _path(target: Any, start: Array, tolerance: Any, options: _Options) -> tuple[_Point, Any]:
    """Return the path's start, and the function to the next point."""

    def potential(z: Array) -> Array:
        return -target.log_prob(z)

    search = optax.scale_by_zoom_linesearch(
        max_linesearch_steps=30, curv_rtol=options.curvature, initial_guess_strategy="one"
    )
    optimiser = optax.lbfgs(memory_size=options.memory, linesearch=search)
    value, grad = jax.value_and_grad(potential)(start)
    if tolerance is None:
        size = 1 + jnp.linalg.norm(grad)
        tolerance = math.sqrt(jnp.finfo(start.dtype).eps) * size
    fine = jnp.isfinite(value) & jnp.all(jnp.isfinite(grad))
    none = jnp.zeros((), jnp.int32)
    first = _Point(
        start, grad, optimiser.init(start), Pairs.empty(start, options.memory), fine, none, none
    )

    def advance(at: _Point) -> _Point:
        value = potential(at.z)
        found: Any = optimiser.update(
            at.grad, at.state, at.z, value=value, grad=at.grad, value_fn=potential
        )
        updates, state = found
        z = at.z + updates
        grad = jax.grad(potential)(z)
        on = at.moved & (jnp.linalg.norm(at.grad) > tolerance) & jnp.any(z != at.z)
        on = on & jnp.all(jnp.isfinite(z)) & jnp.all(jnp.isfinite(grad))
        pairs, kept = remember(at.pairs, z - at.z, grad - at.grad)
        new = _Point(z, grad, state, pairs, on, at.count + 1, at.rejected + (~kept))
        held = at._replace(moved=on)
        return jax.tree.map(lambda a, b: jnp.where(on, a, b), new, held)

    return first, advance


def _bound(key: Key, target: Any, law: Gaussian, draws: int) -> Array:
    """Return an estimate of the evidence lower bound."""

    def one(key: Key) -> Array:
        z = law.sample(key)
        return target.log_prob(z) - law.log_prob(z)

    return jnp.mean(jax.vmap(one)(jax.random.split(key, draws)))


@partial(jax.jit, static_argnames=("options", "draws", "proposals"))
def _multi(
    key: Key, target: Any, starts: Array, tolerance: Any, options: _Options, draws: int,
    proposals: int,
) -> Paths:  # fmt: skip
    """See :func:`multi_pathfinder`."""
    own, again = jax.random.split(key)
    walk, draw = jnp.split(jax.vmap(jax.random.split)(jax.random.split(own, len(starts))), 2, 1)
    paths = jax.vmap(lambda key, z: _pathfinder(key, target, z, tolerance, options))(
        walk[:, 0], starts
    )

    def propose(key: Key, law: Gaussian) -> tuple[Array, Array]:
        z = jax.vmap(law.sample)(jax.random.split(key, proposals))
        log_w = jax.vmap(target.log_prob)(z) - jax.vmap(law.log_prob)(z)
        return z, jnp.where(jnp.isfinite(log_w), log_w, -jnp.inf)

    z, log_w = jax.vmap(propose)(draw[:, 0], paths.law)
    log_w = log_w.ravel()
    chosen = jax.random.categorical(again, log_w, shape=(draws,))
    alive = jnp.max(log_w) > -jnp.inf
    share = jnp.where(alive, jax.nn.softmax(log_w), 1.0)
    ess = jnp.where(alive, 1 / jnp.sum(jnp.square(share)) / log_w.size, 0.0)
    found = z.reshape(-1, starts.shape[1])[chosen]
    return Paths(jnp.where(alive, found, jnp.nan), ess, paths)
