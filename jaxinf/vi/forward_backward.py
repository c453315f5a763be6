"""Gaussian variational inference by proximal gradient steps on the Bures-Wasserstein space."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxinf.core import Dense, Gaussian, Key, check_key
from jaxinf.vi.checks import check_least, check_positive, check_target
from jaxinf.vi.nodes import Nodes, gauss_hermite, monte_carlo


class ForwardBackwardInfo(NamedTuple):
    """What the steps began from; both norms are 0 at the best Gaussian, up to the rule's error."""

    gradient: Float[Array, " steps"]
    """Norm of E[grad V]."""
    curvature: Float[Array, " steps"]
    """Frobenius norm of E[hess V] S - I."""
    finite: Bool[Array, " steps"]
    """Whether the step's result was finite; else it changed nothing."""


class ForwardBackward(NamedTuple):
    """What :func:`forward_backward` found."""

    law: Gaussian
    """After the last finite step, with its covariance in square-root form."""
    info: ForwardBackwardInfo


def forward_backward(
    key: Key,
    target: Any,
    start: Gaussian,
    steps: int,
    step: Any,
    *,
    stochastic: bool = True,
    draws: int = 1,
    nodes: Nodes | None = None,
) -> ForwardBackward:
    r"""Gaussian variational inference by forward and backward steps, FB-GVI.

    A forward step on the mean potential, then the entropy's proximal step in closed form, both in
    the Bures-Wasserstein geometry; :math:`V = -\log \pi`, :math:`M = I - \eta E[\nabla^2 V]`.

    .. math::
       m' = m - \eta E_q[\nabla V], \qquad T = M S M, \qquad
       S' = \tfrac12 \bigl(T + 2 \eta I + [T (T + 4 \eta I)]^{1/2}\bigr)

    Every S' has eigenvalues of at least :math:`\eta`. For :math:`\beta`-smooth V the paper asks for
    :math:`\eta \le 1 / \beta`; at :math:`\eta < 1 / \lambda_{\max}` a Gaussian target is a fixed
    point.

    Args:
      key: a typed key; step i has the key folded from it by i.
      target: with ``log_prob(z)``, twice differentiable.
      start: a Gaussian on positions (dim,), as ``core.gaussian(mean, core.dense(covariance))``.
      steps: how many.
      step: :math:`\eta`, a number, or one for each step (steps,).
      stochastic: whether expectations are means over fresh draws, the paper's second algorithm, or
        by ``gauss_hermite(5)``, which stands for its first and takes 5 ** dim Hessians a step.
      draws: of a stochastic step; the paper's is one.
      nodes: another rule for the expectations, which ``stochastic`` and ``draws`` then do not
        change.

    Returns:
      :class:`ForwardBackward`. A step whose result is not finite changes nothing and is said.

    Raises:
      TypeError: for a target without a density or a gradient.
      ValueError: where dimensions disagree, and for counts and steps that are not positive.

    Reference:
      M. Diao, K. Balasubramanian, S. Chewi and A. Salim, "Forward-backward Gaussian variational
      inference via JKO in the Bures-Wasserstein space" (2023), algorithms 1 and 2.

    Example:
      ``vi.forward_backward(key, posterior, start, 100, 0.1, stochastic=False).law.sample(key)``
    """
    check_key(key)
    check_target(target, start.mean)
    check_least(steps=steps)
    check_least(draws=draws)
    check_positive("step", step)
    if jnp.shape(step) not in ((), (steps,)):
        raise ValueError(f"step must have shape () or ({steps},), got {jnp.shape(step)}.")
    if nodes is None:
        nodes = monte_carlo(draws) if stochastic else gauss_hermite(5)
    return _run(key, target, start, jnp.asarray(step, start.mean.dtype), nodes, steps)


def proximal_entropy(
    covariance: Float[Array, "dim dim"], step: Float[Array, ""]
) -> Float[Array, "dim dim"]:
    """Return the covariance that minimises negative entropy + W2^2 / (2 step) from another."""
    values, vectors = jnp.linalg.eigh(covariance)
    values = jnp.maximum(values, 0)
    values = (values + 2 * step + jnp.sqrt(values * (values + 4 * step))) / 2
    return _symmetric((vectors * values[None]) @ vectors.T)


@partial(jax.jit, static_argnames="steps")
def _run(
    key: Key, target: Any, start: Gaussian, step: Array, nodes: Nodes, steps: int
) -> ForwardBackward:
    """See :func:`forward_backward`."""
    dim = start.mean.shape[0]
    slope, curvature = jax.grad(target.log_prob), jax.hessian(target.log_prob)

    def body(held: tuple[Array, Array], row: tuple[Array, Array]) -> tuple[Any, Any]:
        mean, covariance = held
        i, eta = row
        z, weights = nodes(jax.random.fold_in(key, i), dim)
        z, weights = z.astype(mean.dtype), weights.astype(mean.dtype)
        z = mean[None] + z @ jnp.linalg.cholesky(covariance).T
        gradient = -weights @ jax.vmap(slope)(z)
        hessian = _symmetric(-jnp.tensordot(weights, jax.vmap(curvature)(z), 1))
        shrink = jnp.eye(dim, dtype=mean.dtype) - eta * hessian
        moved = _symmetric(shrink @ covariance @ shrink)
        new = mean - eta * gradient, proximal_entropy(moved, eta)
        fine = jnp.all(jnp.isfinite(new[0])) & jnp.all(jnp.isfinite(new[1]))
        residual = hessian @ covariance - jnp.eye(dim, dtype=mean.dtype)
        info = ForwardBackwardInfo(jnp.linalg.norm(gradient), jnp.linalg.norm(residual), fine)
        return jax.tree.map(lambda a, b: jnp.where(fine, a, b), new, held), info

    first = start.mean, start.covariance.dense(dim)
    rows = jnp.arange(steps), jnp.broadcast_to(step, (steps,))
    (mean, covariance), info = jax.lax.scan(body, first, rows)
    return ForwardBackward(Gaussian(mean, Dense(jnp.linalg.cholesky(covariance))), info)


def _symmetric(matrix: Array) -> Array:
    """Return the symmetric part."""
    return (matrix + matrix.T) / 2
