"""A target from a NumPyro program."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from jaxinf.core import Key, Leaf, record, static
from jaxinf.target.layout import Layout, layout


@record
class Program:
    """A NumPyro program with its arguments; see :func:`program`."""

    args: Leaf
    kwargs: Leaf
    model: Callable[..., Any] = static()
    layout: Layout = static()

    @property
    def dim(self) -> int:
        """How many unbounded numbers its latent sites have."""
        return self.layout.dim

    @property
    def names(self) -> tuple[str, ...]:
        """A name for each of them."""
        return self.layout.names

    def log_prior(self, z: Float[Array, " dim"]) -> Float[Array, ""]:
        """Return the log density of the latent sites and of the map to their supports."""
        return self._parts(z)[0]

    def log_likelihood(self, z: Float[Array, " dim"]) -> Float[Array, ""]:
        """Return the log density of the observed sites and factors."""
        return self._parts(z)[1]

    def log_prob(self, z: Float[Array, " dim"]) -> Float[Array, ""]:
        """Return their sum."""
        prior, seen = self._parts(z)
        return prior + seen

    def constrain(self, z: Float[Array, " dim"], *, deterministic: bool = False) -> PyTree:
        """Return the values of the latent sites, and of the deterministic ones if asked for."""
        from numpyro.infer.util import constrain_fn

        values = self.layout.split(z)
        return constrain_fn(self.model, self.args, self.kwargs, values, deterministic)

    def unconstrain(self, values: PyTree) -> Float[Array, " dim"]:
        """Return the position of the latent sites' values."""
        from numpyro.infer.util import unconstrain_fn

        missing = set(self.layout.labels) - set(values)
        if missing:
            raise ValueError(f"the latent sites {sorted(missing)} have no value here.")
        latent = {name: values[name] for name in self.layout.labels}
        return self.layout.join(unconstrain_fn(self.model, self.args, self.kwargs, latent))

    def sample_prior(self, key: Key) -> Float[Array, " dim"]:
        """Draw the latent sites from the program as it is written."""
        try:
            trace = _trace(self.model, self.args, self.kwargs, key)
        except NotImplementedError as error:
            raise ValueError(
                "this program's prior cannot be drawn from: one of its sites is improper. Give it "
                "a proper prior, or pass the starts."
            ) from error
        return self.unconstrain({name: trace[name]["value"] for name in self.layout.labels})

    def _parts(self, z: Array) -> tuple[Array, Array]:
        """Return the log densities of prior and likelihood."""
        from numpyro.infer.util import _unconstrain_params, compute_log_probs

        model = _unconstrain_params(self.model, self.layout.split(z))
        values, _ = compute_log_probs(model, self.args, self.kwargs, {})
        zero = jnp.zeros((), z.dtype)
        latent = {*self.layout.labels, *(f"_{name}_log_det" for name in self.layout.labels)}
        prior = sum((values[name] for name in values if name in latent), start=zero)
        seen = sum((values[name] for name in values if name not in latent), start=zero)
        return prior, seen


def program(model: Callable[..., Any], *args: Any, **kwargs: Any) -> Program:
    """A target from a NumPyro program: the posterior of its latent sites, on unbounded numbers.

    Args:
      model: the program; static, so that other data of the same shapes recompile nothing.
      args: its arguments, pytrees of arrays: the leaves of the target.
      kwargs: more of them.

    Returns:
      The target. Factors (``numpyro.factor``) belong to the likelihood.

    Raises:
      ValueError: for a program without latent sites, with discrete ones, with ``numpyro.param``
        sites, and for observations outside their distribution's support.

    Example:
      ``posterior = target.program(eight_schools, sigma, y)``
    """
    from numpyro.infer import init_to_uniform
    from numpyro.infer.util import unconstrain_fn

    args, kwargs = jax.tree.map(jnp.asarray, (args, kwargs))
    trace = _trace(model, args, kwargs, jax.random.key(0), init_to_uniform)
    latent = {}
    for name, site in trace.items():
        if site["type"] == "param":
            raise ValueError(
                f"the program has the parameter {name!r}. A target has data and latent sites "
                "alone: pass it as an argument, or give it a prior by numpyro.sample."
            )
        if site["type"] != "sample":
            continue
        if site["is_observed"]:
            _check_support(name, site)
        elif site["fn"].is_discrete:
            raise ValueError(
                f"the latent site {name!r} is discrete, and a target's positions are continuous. "
                "Sum over it in the program (numpyro.distributions.MixtureSameFamily, or a forward "
                "pass), or observe it."
            )
        else:
            latent[name] = site["value"]
    if not latent:
        raise ValueError("the program has no latent site, so there is nothing to infer.")
    free = jax.eval_shape(lambda values: unconstrain_fn(model, args, kwargs, values), latent)
    return Program(args, kwargs, model, layout(free))


def _trace(
    model: Callable[..., Any], args: Any, kwargs: Any, key: Key, choose: Any = lambda site: None
) -> dict[str, Any]:
    """Run a program once, with latent sites that are chosen, or else drawn."""
    from numpyro.handlers import seed, substitute, trace

    chosen = substitute(seed(model, key), substitute_fn=choose)
    return trace(chosen).get_trace(*args, **kwargs)


def _check_support(name: str, site: dict[str, Any]) -> None:
    """Raise where an observation is outside its distribution's support."""
    from numpyro.distributions import MaskedDistribution, Unit

    law = site["fn"]
    if isinstance(law, Unit | MaskedDistribution):
        return
    inside = law.support(site["value"])
    if isinstance(inside, jax.core.Tracer) or bool(jnp.all(inside)):
        return
    raise ValueError(
        f"{int(jnp.sum(~inside))} observations of {name!r} lie outside the support of "
        f"{type(law).__name__}, {law.support}. Mend the data, or mask them: "
        "numpyro.handlers.mask(mask=...)."
    )
