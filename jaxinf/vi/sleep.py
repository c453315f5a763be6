"""The sleep phase: a guide that is taught by what its model dreams."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxinf.core import Key
from jaxinf.grad import Annotated
from jaxinf.vi.checks import check_least
from jaxinf.vi.objective import Info


@dataclass(frozen=True)
class Sleep:
    """See :func:`sleep`."""

    data: tuple[str, ...]
    draws: int

    def __call__(self, key: Key, measures: Any) -> tuple[Float[Array, ""], Info]:
        """Return the guide's mean negative log density of dreams."""
        model, guide = measures.p, measures.q
        for law in (model, guide):
            if not isinstance(law, Annotated):
                raise TypeError(f"{type(law).__name__} cannot dream: pass grad.annotate(program).")
        if len(self.data) > len(guide.args):
            raise ValueError(
                f"data names {self.data}, and the guide has {len(guide.args)} arguments: name the "
                "observed site of each argument, in order."
            )

        def one(key: Key) -> Array:
            dream = jax.lax.stop_gradient(model.simulate(key))
            missing = sorted(set(self.data) - set(dream))
            if missing:
                raise ValueError(f"data names {missing}, and the model has {sorted(dream)}.")
            seen = tuple(dream.pop(name) for name in self.data)
            args = seen + guide.args[len(seen) :]
            return dataclasses.replace(guide, args=args).log_prob(dream)

        found = jax.vmap(one)(jax.random.split(key, self.draws))
        bad = jnp.sum(~jnp.isfinite(found), dtype=jnp.int32)
        mean = jnp.mean(found)
        return -mean, Info(jax.lax.stop_gradient(mean), bad)


def sleep(*data: str, draws: int = 16) -> Sleep:
    r"""The sleep phase of wake-sleep.

    .. math:: \nabla_\phi\, E_{p(z, x)}\bigl[-\log q_\phi(z \mid x)\bigr]

    The model draws latent sites and data; the guide, given these data, is to say what the latent
    sites were. That makes KL(p(z | x), q(z | x)) small on average over the model's own data, by
    unbiased gradients without draws of the guide: any sites will do. The model is not learnt; its
    turn is the wake phase, :func:`forward_kl` or :func:`iwae`.

    Args:
      data: the model's observed site of each of the guide's first arguments, in order.
      draws: dreams in each step.

    Returns:
      The objective, of pairs of annotated programs; its ``bound`` is E[log q], no bound on log Z.

    Raises:
      ValueError: without data, or with fewer than one draw; when used, for names that the model
        does not have.

    Reference:
      G. E. Hinton, P. Dayan, B. J. Frey and R. M. Neal, "The wake-sleep algorithm for unsupervised
      neural networks" (1995); J. Bornschein and Y. Bengio, "Reweighted wake-sleep" (2015), eq. 7.

    Example:
      ``vi.svi(key, model, guide, x, objective=vi.sleep("x"))``
    """
    check_least(draws=draws)
    if not data:
        raise ValueError("sleep needs the names of the observed sites, as vi.sleep('x').")
    return Sleep(data, draws)
