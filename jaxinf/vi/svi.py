"""A NumPyro guide fitted to a NumPyro model."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import optax
from jaxtyping import Array, PyTree

from jaxinf.core import Key, check_key
from jaxinf.grad import Annotated, annotate, initial
from jaxinf.vi.elbo import elbo
from jaxinf.vi.fit import Fit, fit
from jaxinf.vi.objective import Info
from jaxinf.vi.pair import Pair, pair


@dataclass(frozen=True)
class _Loss:
    """An objective of two programs whose parameters are learnt together."""

    objective: Any

    def __call__(self, params: PyTree, key: Key, model: Any, guide: Any) -> tuple[Array, Info]:
        return self.objective(key, _with(params, model, guide))


def _with(params: Mapping[str, PyTree], model: Annotated, guide: Annotated) -> Pair:
    """Return the pair with new parameters, of which both programs may name the same."""
    import dataclasses

    own = [{n: params[n] for n in law.params} for law in (model, guide)]
    return pair(
        *(dataclasses.replace(a, params=b) for a, b in zip((model, guide), own, strict=True))
    )


def svi(
    key: Key,
    model: Callable[..., Any],
    guide: Callable[..., Any],
    *args: Any,
    objective: Any = None,
    strategies: Mapping[str, Any] | None = None,
    params: PyTree = None,
    steps: int = 2000,
    optimizer: optax.GradientTransformation | None = None,
    opt_state: PyTree = None,
    progress: bool = False,
) -> Fit:
    r"""Fit a NumPyro guide, and a model's parameters, to a model with its data.

    Args:
      key: a typed key.
      model: a program; its ``numpyro.param`` sites are learnt too.
      guide: a program of the same arguments, with the model's latent sites.
      args: the arguments of both.
      objective: ``elbo()`` by default.
      strategies: how the guide's sites are differentiated, by name; all others are reparameterised.
      params: where to start, on unbounded numbers; the programs' own starts by default.
      steps: how many.
      optimizer: optax's; Adam at 1e-2 by default.
      opt_state: of an earlier fit, to go on.
      progress: whether a bar counts the steps.

    Returns:
      :class:`Fit`; ``params`` are the parameters of both programs by name, on unbounded numbers.

    Raises:
      ValueError: for a guide that misses one of the model's latent sites or adds one, and for a
        site that cannot have its strategy.
    """
    check_key(key)
    laws = [
        annotate(program, *args, params=initial(program, key, *args), strategies=chosen)
        for program, chosen in ((model, None), (guide, strategies))
    ]
    start = {**laws[0].params, **laws[1].params} if params is None else params
    objective = elbo() if objective is None else objective
    return fit(
        key, _Loss(objective), start, *laws, steps=steps, optimizer=optimizer, opt_state=opt_state,
        progress=progress,
    )  # fmt: skip
