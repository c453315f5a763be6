"""NumPyro programs whose sites say how they are differentiated."""

import itertools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from jaxinf.core import Key, Leaf, record, static
from jaxinf.grad.reparameterised import reparameterised
from jaxinf.grad.strategy import Strategy


class Draw(NamedTuple):
    """What a law drew, in each of its branches: all leaves have them as leading axis."""

    values: PyTree
    log_prob: Float[Array, " branches"]
    """Of the values, in nats."""
    weight: Float[Array, " branches"]
    """By which what the values cost is multiplied before branches are added up; differentiated."""
    score: Float[Array, " branches"] | None
    """Whose gradient is multiplied by what the branch costs; None where no site has one."""


@record
class Annotated:
    """A program with its parameters and arguments; see :func:`annotate`."""

    params: Leaf
    """Of ``numpyro.param`` sites by name, on unbounded numbers."""
    args: Leaf
    kwargs: Leaf
    program: Callable[..., Any] = static()
    strategies: tuple[tuple[str, Strategy], ...] = static()
    default: Strategy = static()

    def draw(self, key: Key) -> Draw:
        """Draw the latent sites, in all branches at once."""
        sizes: dict[str, tuple[int, bool]] = {}
        jax.eval_shape(lambda key: self._run(key, {}, sizes)[0], key)
        choices = {name: jnp.asarray(rows) for name, rows in _grid(sizes).items()}
        if not choices:
            return jax.tree.map(lambda a: jnp.asarray(a)[None], self._run(key, {}, {}))
        return jax.vmap(lambda choice: self._run(key, choice, {}))(choices)

    def sample(self, key: Key) -> PyTree:
        """Draw the latent sites once, by the program itself."""
        from numpyro.handlers import seed, trace

        found = trace(seed(_with(self.program, self.params), key))
        sites = found.get_trace(*self.args, **self.kwargs)
        return {name: site["value"] for name, site in sites.items() if _latent(site)}

    def simulate(self, key: Key) -> PyTree:
        """Draw all sites, those that are observed too, by the program itself."""
        from numpyro.handlers import seed, trace, uncondition

        found = trace(seed(uncondition(_with(self.program, self.params)), key))
        sites = found.get_trace(*self.args, **self.kwargs)
        return {name: site["value"] for name, site in sites.items() if site["type"] == "sample"}

    def terms(self, values: PyTree) -> dict[str, Float[Array, ""]]:
        """Return the log density of each site, given values for the latent ones."""
        return _log_probs(self._given(jax.random.key(0), values))

    def complete(self, key: Key, values: PyTree) -> tuple[PyTree, Float[Array, ""]]:
        """Draw the sites that have no value yet.

        Returns:
          All latent sites' values, and the log density of those that were given, and of what is
          observed, given the others.
        """
        sites = self._given(key, values)
        drawn = {n: site["value"] for n, site in sites.items() if _latent(site)}
        rest = {n: site for n, site in sites.items() if n in values or not _latent(site)}
        return drawn, _log_joint(rest)

    def part(self, values: PyTree, names: tuple[str, ...]) -> Float[Array, ""]:
        """Return the log density of some sites, and of what is observed, given all others."""
        sites = self._given(jax.random.key(0), values)
        return _log_joint({n: site for n, site in sites.items() if n in names or not _latent(site)})

    def log_prob(self, values: PyTree) -> Float[Array, ""]:
        """Return the log density of the latent sites' values and of what is observed, in nats."""
        # a site without a value would be drawn: that is told by its name
        sites = self._given(jax.random.key(0), values)
        missing = sorted(n for n, site in sites.items() if _latent(site) and n not in values)
        if missing:
            raise ValueError(
                f"the sites {missing} have no value: the program that draws must have the latent "
                f"sites of the one that is held against it; it drew {sorted(values)}."
            )
        extra = sorted(set(values) - set(sites))
        if extra:
            raise ValueError(
                f"the sites {extra} were drawn and are not in the program that they are held "
                "against. Add them to it, or give the law that draws an inversion: vi.marginal."
            )
        return _log_joint(sites)

    def _given(self, key: Key, values: PyTree) -> Mapping[str, Any]:
        """Run the program with values for some of its sites; return all sites."""
        from numpyro.handlers import seed, substitute, trace

        program = substitute(_with(self.program, self.params), data=values)
        return trace(seed(program, key)).get_trace(*self.args, **self.kwargs)

    def _run(self, key: Key, choice: Mapping[str, Any], sizes: dict[str, Any]) -> Draw:
        """Run the program once, in the branches that are chosen."""
        from numpyro.handlers import seed, trace

        walk = _walk(self, choice, sizes)
        with walk:
            found = trace(seed(_with(self.program, self.params), key))
            sites = found.get_trace(*self.args, **self.kwargs)
        unknown = sorted(set(dict(self.strategies)) - set(sites))
        if unknown:
            raise ValueError(
                f"there are strategies for {unknown}, which are no sites of the program; it has "
                f"{sorted(name for name, site in sites.items() if _latent(site))}."
            )
        values = {name: site["value"] for name, site in sites.items() if _latent(site)}
        return Draw(values, _log_joint(sites), walk.weight, walk.score)


def _latent(site: dict[str, Any]) -> bool:
    return site["type"] == "sample" and not site["is_observed"]


def _log_probs(sites: Mapping[str, Any]) -> dict[str, Float[Array, ""]]:
    """Return each site's log density."""
    found = {}
    for name, site in sites.items():
        if site["type"] == "sample":
            log_prob = site["fn"].log_prob(site["value"])
            scale = site["scale"]
            found[name] = jnp.sum(log_prob if scale is None else scale * log_prob)
    return found


def _log_joint(sites: Mapping[str, Any]) -> Float[Array, ""]:
    """Return the sum of all sites' log densities."""
    return sum(_log_probs(sites).values(), start=jnp.zeros(()))


def _with(program: Callable[..., Any], params: Mapping[str, PyTree]) -> Any:
    """Return a program whose parameters have values, given on unbounded numbers."""
    from numpyro.distributions import biject_to, constraints
    from numpyro.handlers import substitute

    def value(site: dict[str, Any]) -> Any:
        if site["type"] != "param" or site["name"] not in params:
            return None
        constraint = site["kwargs"].get("constraint", constraints.real)
        found = params[site["name"]]
        return found if constraint is constraints.real else biject_to(constraint)(found)

    return substitute(program, substitute_fn=value)


def _grid(sizes: Mapping[str, tuple[int, bool]]) -> dict[str, np.ndarray]:
    """Return the branches of all sites: those that are gone through by all, others by each."""
    through = {name: count for name, (count, exhaustive) in sizes.items() if exhaustive}
    others = {name: count for name, (count, exhaustive) in sizes.items() if not exhaustive}
    rows = [dict.fromkeys(others, 0)]
    rows += [rows[0] | {name: x} for name, count in others.items() for x in range(1, count)]
    whole = [
        row | dict(zip(through, values, strict=True))
        for values in itertools.product(*map(range, through.values()))
        for row in rows
    ]
    return {name: np.array([row[name] for row in whole]) for name in sizes}


def _walk(law: Annotated, choice: Mapping[str, Any], sizes: dict[str, tuple[int, bool]]) -> Any:
    """Return the handler that lets strategies draw."""
    from numpyro.primitives import Messenger

    strategies = dict(law.strategies)

    class Walk(Messenger):
        """Adds up scores and weights while sites are drawn."""

        score = None
        weight = jnp.ones(())

        def process_message(self, msg: Any) -> None:
            if not _latent(msg) or msg["value"] is not None:
                return
            name, strategy = msg["name"], strategies.get(msg["name"], law.default)
            refusal = strategy.refusal(msg["fn"])
            if refusal:
                raise ValueError(f"at the site {name!r}: {refusal}.")
            if msg["kwargs"]["sample_shape"]:
                raise ValueError(f"the site {name!r} has a sample_shape: use law.expand(shape).")
            count = strategy.branches(msg["fn"])
            if count > 1 or strategy.exhaustive:
                sizes[name] = count, strategy.exhaustive
            site = strategy.draw(msg["kwargs"]["rng_key"], msg["fn"], choice.get(name, 0))
            msg["value"] = site.value
            if site.score is not None:
                self.score = site.score if self.score is None else self.score + site.score
            self.weight = self.weight * site.weight

    return Walk()


def annotate(
    program: Callable[..., Any],
    *args: Any,
    params: Mapping[str, PyTree] | None = None,
    strategies: Mapping[str, Any] | None = None,
    default: Strategy | None = None,
    **kwargs: Any,
) -> Annotated:
    r"""A NumPyro program as a law whose draws are differentiated site by site.

    The program is not rewritten: handlers walk it. Parameters are its ``numpyro.param`` sites.

    Args:
      program: draws by ``numpyro.sample``; static, so that other numbers recompile nothing.
      args: its arguments, pytrees of arrays.
      params: of ``numpyro.param`` sites by name, on unbounded numbers: :func:`initial` finds them.
      strategies: by the name of a site.
      default: of all other sites; :func:`reparameterised` by default.
      kwargs: more arguments.

    Returns:
      The law, with ``draw(key)``, ``sample(key)`` and ``log_prob(values)``. Where a site cannot
      have its strategy, ``draw`` raises a ValueError that names one that it can have.

    Example:
      ``guide = grad.annotate(cluster, data, params=start, strategies={"z": grad.enumeration()})``
    """
    chosen = tuple(sorted((strategies or {}).items()))
    for name, strategy in chosen:
        if not isinstance(strategy, Strategy):
            raise TypeError(
                f"{name!r} has no strategy but {strategy!r}: pass grad.score_function() or another."
            )
    own, args, kwargs = jax.tree.map(jnp.asarray, (dict(params or {}), args, kwargs))
    return Annotated(own, args, kwargs, program, chosen, default or reparameterised())


def initial(program: Callable[..., Any], key: Key, *args: Any, **kwargs: Any) -> dict[str, PyTree]:
    """Return the starting values of a program's ``numpyro.param`` sites, on unbounded numbers."""
    from numpyro.distributions import biject_to, constraints
    from numpyro.handlers import seed, trace

    found = {}
    for name, site in trace(seed(program, key)).get_trace(*args, **kwargs).items():
        if site["type"] == "param":
            constraint = site["kwargs"].get("constraint", constraints.real)
            value = jax.tree.map(jnp.asarray, site["value"])
            real = constraint is constraints.real
            found[name] = value if real else biject_to(constraint).inv(value)
    return found
