"""Search over a sampler's noise against a verifier: best of N, and zero-order local search."""

from functools import partial
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxinf.core import Key, Leaf, PyTree, Scalar, check_key, is_concrete, record, static
from jaxinf.guide.reward import as_record, value_of
from jaxinf.sampler import AnyStepper, Plan, sample
from jaxinf.sampler.driver import check_walk


class SearchInfo(NamedTuple):
    """What a search did."""

    calls: Int[Array, ""]
    """Of the denoiser, in all."""
    scores: Float[Array, " rounds"]
    """The best score that was known after each round."""


class Search(NamedTuple):
    """What a search found."""

    x: Array
    """The best clean example."""
    score: Float[Array, ""]
    """The verifier's of it; -inf where no candidate had a number for its score."""
    info: SearchInfo


@record
class Problem:
    """What is searched: a generator, a verifier and a condition."""

    stepper: Leaf
    denoiser: Leaf
    plan: Leaf
    verifier: Leaf
    cond: Leaf
    shape: tuple[int, ...] = static()

    def starts(self, key: Key, count: int) -> Array:
        """Draw x_T of some candidates."""
        return self.stepper.process.prior().sample(key, (count, *self.shape))

    def walked(self, key: Key, x: Array, plan: Plan) -> tuple[Array, Array]:
        """Walk candidates along a plan; return them, and which stayed finite."""
        cond = jax.tree.map(lambda a: jnp.broadcast_to(a, (len(x), *jnp.shape(a))), self.cond)
        out = sample(key, self.stepper, self.denoiser, plan, x, cond)
        return out.x, out.info.finite

    def scores(self, x0: Array, finite: Array) -> Float[Array, " n"]:
        """Return the verifier's scores of clean candidates; -inf where there is none."""
        scores = jax.vmap(lambda x: value_of(self.verifier, x, self.cond))(x0)
        return jnp.where(finite & ~jnp.isnan(scores), scores, -jnp.inf)

    def ends(self, key: Key, x: Array) -> tuple[Array, Array]:
        """Walk candidates to the end; return the clean ones and their scores."""
        x0, finite = self.walked(key, x, self.plan)
        return x0, self.scores(x0, finite)


@runtime_checkable
class Method(Protocol):
    """A way to search: ``random_search``, ``zero_order`` or ``path_search``."""

    def run(self, key: Key, problem: Problem) -> tuple[Array, Array, Array]:
        """Return the best example, its score, and the best score after each round."""
        ...

    def calls(self, stepper: AnyStepper, plan: Plan) -> int:
        """How often the denoiser is called in all."""
        ...

    def check(self, problem: Problem) -> None:
        """Raise where the method does not suit the problem."""
        ...


@record
class RandomSearch:
    """See :func:`random_search`."""

    candidates: int = static()

    def run(self, key: Key, problem: Problem) -> tuple[Array, Array, Array]:
        """Return the best of N."""
        start, walk = jax.random.split(key)
        x0, scores = problem.ends(walk, problem.starts(start, self.candidates))
        best = jnp.argmax(scores)
        return x0[best], scores[best], scores[best][None]

    def calls(self, stepper: AnyStepper, plan: Plan) -> int:
        """N walks."""
        return self.candidates * plan.calls(stepper)

    def check(self, problem: Problem) -> None:
        """Any problem will do."""


@record
class ZeroOrder:
    """See :func:`zero_order`."""

    radius: Leaf
    candidates: int = static()
    rounds: int = static()

    def run(self, key: Key, problem: Problem) -> tuple[Array, Array, Array]:
        """Return the best that was met."""
        start, walk, rounds = jax.random.split(key, 3)
        pivot = problem.starts(start, 1)
        x0, scores = problem.ends(walk, pivot)
        radius = jnp.asarray(self.radius, pivot.dtype)

        def turn(best: tuple[Array, ...], key: Key) -> tuple[tuple[Array, ...], Array]:
            fresh, walk = jax.random.split(key)
            near = jnp.sqrt(1 - radius**2) * best[0][None]
            near = near + radius * problem.starts(fresh, self.candidates)
            x0, scores = problem.ends(walk, near)
            first = jnp.argmax(scores)
            found = near[first], x0[first], scores[first]
            best = jax.tree.map(partial(jnp.where, scores[first] > best[2]), found, best)
            return best, best[2]

        best = pivot[0], x0[0], scores[0]
        best, later = jax.lax.scan(turn, best, jax.random.split(rounds, self.rounds))
        return best[1], best[2], jnp.append(scores, later)

    def calls(self, stepper: AnyStepper, plan: Plan) -> int:
        """1 + K N walks."""
        return (1 + self.rounds * self.candidates) * plan.calls(stepper)

    def check(self, problem: Problem) -> None:
        """Raise where the noise is not Gaussian."""
        check_gaussian(problem)


def check_gaussian(problem: Problem) -> None:
    """Raise where the process is not Gaussian."""
    process = problem.stepper.process
    if not hasattr(process, "sigma"):
        raise TypeError(
            f"this search moves Gaussian noise, and the process is {type(process).__name__}; "
            "guide.random_search(n) takes any"
        )


def check_count(name: str, value: int) -> None:
    """Raise for a count below 1."""
    if not (isinstance(value, int | np.integer) and value >= 1):
        raise ValueError(f"{name} must be a whole number, at least 1, got {value!r}")


def random_search(candidates: int) -> RandomSearch:
    """Best of N: independent candidates, of which the verifier picks one.

    Args:
      candidates: N.

    Returns:
      A method of :func:`search`. It walks the plan N times.

    Raises:
      ValueError: for no candidate.

    Reference:
      N. Ma et al., "Inference-Time Scaling for Diffusion Models beyond Scaling Denoising Steps"
      (2025), section 3.2, Random Search.
    """
    check_count("candidates", candidates)
    return RandomSearch(int(candidates))


def zero_order(candidates: int, rounds: int, radius: Scalar = 0.5) -> ZeroOrder:
    r"""Zero-order local search around a pivot noise, which moves to the best of its neighbours.

    .. math:: x_T^{(i)} = \sqrt{1 - \lambda^2}\, n + \lambda z_i, \qquad z_i \sim p(x_T)

    N neighbours of the pivot n a round, for K rounds; the pivot moves where one of them is better.
    The paper's neighbourhood is a sphere of radius lambda about n in a distance left open; this one
    keeps the law of the noise, so that the sampler sees noise as it was trained on. lambda = 1 is
    random search.

    Args:
      candidates: N, of a round.
      rounds: K.
      radius: lambda, in (0, 1].

    Returns:
      A method of :func:`search`, for Gaussian processes, made for deterministic steppers. It walks
      the plan 1 + K N times; the first is the pivot's.

    Raises:
      ValueError: for no candidate or round, or a radius outside (0, 1].

    Reference:
      N. Ma et al., "Inference-Time Scaling for Diffusion Models beyond Scaling Denoising Steps"
      (2025), section 3.2, Zero-Order Search.
    """
    check_count("candidates", candidates)
    check_count("rounds", rounds)
    if is_concrete(radius) and not 0 < float(radius) <= 1:
        raise ValueError(f"radius must be in (0, 1], got {radius}; 1 is random search")
    return ZeroOrder(radius, int(candidates), int(rounds))


def search(
    key: Key,
    method: Method,
    stepper: AnyStepper,
    denoiser: Any,
    plan: Plan,
    verifier: Any,
    shape: tuple[int, ...],
    cond: PyTree = None,
) -> Search:
    """Search a sampler's noise for the example that a verifier scores highest.

    Compiled once for shapes and structures; other numbers recompile nothing. One problem: many lie
    side by side by ``jax.vmap`` over keys and conditions.

    Args:
      key: a typed key.
      method: ``random_search(n)``, ``zero_order(n, rounds, radius)``, ``path_search(...)``.
      stepper: the sampler's increment; deterministic ones make the start the only noise.
      denoiser: called as ``denoiser(x, t, cond)`` for one example.
      plan: the times to walk.
      verifier: called as ``verifier(x0, cond)`` for one clean example, higher being better: a
        function (the same object each time, as it is part of the program), or a pytree.
      shape: one example's.
      cond: one problem's condition, for denoiser and verifier.

    Returns:
      :class:`Search`. A candidate that is not finite, or whose score is NaN, scores -inf.

    Raises:
      TypeError: for a verifier that cannot be called, a method that does not suit the process, or
        a plan whose times are traced.
      ValueError: for a verifier's value that is not one number, a plan that leaves the process, or
        one that does not suit the method.

    Reference:
      N. Ma et al., "Inference-Time Scaling for Diffusion Models beyond Scaling Denoising Steps"
      (2025), section 3.

    Example:
      ``guide.search(key, guide.random_search(16), sampler.heun(p), denoiser, plan, score, (8,))``
    """
    check_key(key)
    if not is_concrete(plan):
        raise TypeError(
            "the calls of the denoiser are counted on the host: make the plan outside jit"
        )
    problem = Problem(stepper, denoiser, plan, as_record(verifier), cond, tuple(shape))
    method.check(problem)
    like = jax.eval_shape(lambda: problem.starts(key, 1))
    check_walk(stepper, plan, jnp.zeros(like.shape, like.dtype), None, None, None)
    return _search(key, method, problem, jnp.asarray(method.calls(stepper, plan), jnp.int32))


@jax.jit
def _search(key: Key, method: Any, problem: Problem, calls: Array) -> Search:
    x, score, scores = method.run(key, problem)
    return Search(x, score, SearchInfo(calls, scores))
