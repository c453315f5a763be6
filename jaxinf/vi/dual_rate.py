"""Dual-rate variational Bayes: a posterior for each example fitted fast, a decoder slowly."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree

from jaxinf.core import Key, Leaf, check_key, record, static
from jaxinf.vi.checks import check_least
from jaxinf.vi.elbo import elbo
from jaxinf.vi.fit import Fit, fit
from jaxinf.vi.objective import Info
from jaxinf.vi.pair import frozen, pair

FAST = optax.adam(0.1)


@record
class Example:
    """The joint density of an example and its latent vector, as a target."""

    params: Leaf
    data: Leaf
    log_joint: Callable[..., Any] = static()

    def log_prob(self, z: Float[Array, " latent"]) -> Float[Array, ""]:
        """Return log p(x, z)."""
        return self.log_joint(self.params, z, self.data)


class Local(NamedTuple):
    """What :func:`fit_local` found; leaves have the examples as leading axis."""

    family: PyTree
    bound: Float[Array, " examples"]
    """The estimate of each example's evidence lower bound, in nats."""
    skipped: Int[Array, " examples"]
    """Fast steps whose loss or gradient was not finite, and which changed nothing."""


@dataclass(frozen=True)
class _Loss:
    """Minus the mean bound of a batch, at its fitted posteriors."""

    log_joint: Any
    objective: Any
    optimizer: Any
    fast: int
    batch: int | None

    def __call__(self, params: PyTree, key: Key, data: PyTree, family: Any) -> tuple[Array, Info]:
        key_rows, key_fast, key_slow = jax.random.split(key, 3)
        count = jax.tree.leaves(data)[0].shape[0]
        if self.batch is not None:
            rows = jax.random.choice(key_rows, count, (self.batch,), replace=False)
            data, count = jax.tree.map(lambda a: a[rows], data), self.batch

        def one(keys: Array, x: PyTree) -> tuple[Array, Info]:
            held = Example(frozen(params), x, self.log_joint)
            law, skipped = _local(keys[0], held, family, self.objective, self.optimizer, self.fast)
            held = Example(params, x, self.log_joint)
            loss, info = self.objective(keys[1], pair(held, frozen(law)))
            return loss, info._replace(invalid=info.invalid + skipped)

        keys = jnp.stack([jax.random.split(key, count) for key in (key_fast, key_slow)], 1)
        losses, infos = jax.vmap(one)(keys, data)
        return jnp.mean(losses), Info(jnp.mean(infos.bound), jnp.sum(infos.invalid))


def dual_rate(
    key: Key, log_joint: Callable[[PyTree, Array, PyTree], Array], params: PyTree, data: PyTree,
    family: Any, *, steps: int = 1000, fast: int = 16, batch: int | None = None,
    fast_optimizer: optax.GradientTransformation = FAST, objective: Any = None,
    optimizer: optax.GradientTransformation | None = None, opt_state: PyTree = None,
    progress: bool = False,
) -> Fit:  # fmt: skip
    r"""Fit a decoder without an encoder.

    At each slow step every example of the batch gets a posterior of its own, fitted from the start
    by fast steps on its evidence lower bound L; then the decoder takes one step at these, which are
    not differentiated through.

    .. math::
       \lambda_i \leftarrow \lambda_i + \eta_f \nabla_\lambda L(\lambda_i, \theta; x_i), \qquad
       \theta \leftarrow \theta + \eta_s \nabla_\theta \tfrac1n \sum_i L(\lambda_i, \theta; x_i)

    Args:
      key: a typed key.
      log_joint: ``(params, z, x) -> log p(x, z)`` of one example, a function of a module.
      params: the decoder's, a pytree of floats.
      data: a pytree of arrays with the examples as leading axis.
      family: where each posterior starts, as ``mean_field(latent)`` or ``full_rank(latent)``.
      steps: slow ones.
      fast: fast ones for each slow one.
      batch: examples of a slow step, drawn without replacement; all by default.
      fast_optimizer: optax's; Adam at 0.1 by default. Build it once.
      objective: ``elbo(1)`` by default; ``elbo(draws, sticking=True)`` ends without noise where the
        family holds the posterior.
      optimizer: the slow one, see :func:`fit`, as the next two.
      opt_state: of an earlier fit, to go on.
      progress: whether a bar counts the slow steps.

    Returns:
      :class:`Fit` with the decoder's ``params``; ``info.bound`` is the mean of each step's batch,
      and ``info.invalid`` counts the fast steps that were not finite too.

    Raises:
      ValueError: for counts out of range, data without one leading axis, and a joint density that
        is not one number.

    Reference:
      D. Kong et al., "Scalable language models with posterior inference of latent thought vectors"
      (2025), the algorithm of dual-rate learning.

    Example:
      ``vi.dual_rate(key, log_joint, params, data, vi.mean_field(8), optimizer=optax.adam(1e-3))``
    """
    check_key(key)
    count = _check(log_joint, params, data, family, fast)
    if batch is not None and not 1 <= batch <= count:
        raise ValueError(f"batch must lie between 1 and the {count} examples, got {batch}.")
    objective = elbo(1) if objective is None else objective
    loss = _Loss(log_joint, objective, fast_optimizer, fast, batch)
    return fit(
        key, loss, params, data, family, steps=steps, optimizer=optimizer, opt_state=opt_state,
        progress=progress,
    )  # fmt: skip


def fit_local(
    key: Key,
    log_joint: Callable[[PyTree, Array, PyTree], Array],
    params: PyTree,
    data: PyTree,
    family: Any,
    *,
    fast: int = 16,
    fast_optimizer: optax.GradientTransformation = FAST,
    objective: Any = None,
) -> Local:
    r"""Fit a posterior to each example, for a decoder that is given.

    .. math:: \lambda_i = \arg\max_\lambda L(\lambda, \theta; x_i)

    Args:
      key: a typed key.
      log_joint: see :func:`dual_rate`.
      params: see :func:`dual_rate`.
      data: see :func:`dual_rate`.
      family: see :func:`dual_rate`.
      fast: steps.
      fast_optimizer: see :func:`dual_rate`.
      objective: see :func:`dual_rate`.

    Returns:
      :class:`Local`.

    Raises:
      ValueError: as :func:`dual_rate`.
    """
    check_key(key)
    count = _check(log_joint, params, data, family, fast)
    objective = elbo(1) if objective is None else objective
    keys = jax.random.split(key, count)
    return _locals(keys, params, data, family, log_joint, objective, fast_optimizer, fast)


@partial(jax.jit, static_argnames=("log_joint", "objective", "optimizer", "fast"))
def _locals(
    keys: Array, params: PyTree, data: PyTree, family: Any, log_joint: Any, objective: Any,
    optimizer: Any, fast: int,
) -> Local:  # fmt: skip
    """See :func:`fit_local`."""

    def one(key: Key, x: PyTree) -> Local:
        walk, weigh = jax.random.split(key)
        held = Example(params, x, log_joint)
        law, skipped = _local(walk, held, family, objective, optimizer, fast)
        return Local(law, objective(weigh, pair(held, law))[1].bound, skipped)

    return jax.vmap(one)(keys, data)


def _local(
    key: Key, example: Example, family: Any, objective: Any, optimizer: Any, fast: int
) -> tuple[Any, Array]:
    """Return an example's fitted posterior, and how many steps changed nothing."""
    gradient = jax.value_and_grad(lambda law, key: objective(key, pair(example, law))[0])

    def step(held: Any, key: Key) -> tuple[Any, Array]:
        law, state = held
        value, grads = gradient(law, key)
        fine = jnp.isfinite(value) & jnp.isfinite(optax.tree.norm(grads))
        updates, new = optimizer.update(grads, state, law)
        moved = optax.apply_updates(law, updates), new
        held = jax.tree.map(lambda a, b: jnp.where(fine, a, b), moved, held)
        return held, 1 - fine.astype(jnp.int32)

    first = family, optimizer.init(family)
    (law, _), skipped = jax.lax.scan(step, first, jax.random.split(key, fast))
    return law, jnp.sum(skipped)


def _check(log_joint: Any, params: PyTree, data: PyTree, family: Any, fast: int) -> int:
    """Return how many examples there are; raise for what is wrong."""
    check_least(fast=fast)
    leaves = jax.tree.leaves(data)
    sizes = {jnp.shape(leaf)[:1] for leaf in leaves}
    if len(sizes) != 1 or sizes & {(), (0,)}:
        shapes = [jnp.shape(leaf) for leaf in leaves]
        raise ValueError(
            f"data must be arrays with the examples as leading axis, got shapes {shapes}."
        )
    first = jax.tree.map(lambda a: a[0], data)
    found = jax.eval_shape(log_joint, params, jnp.zeros(family.dim), first)
    if getattr(found, "shape", None) != ():
        raise ValueError(f"log_joint must give one number for one example, got {found}.")
    return leaves[0].shape[0]
