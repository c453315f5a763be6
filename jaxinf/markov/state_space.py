"""State spaces: a law, a kernel a step, a kernel to what is seen; guided by what is seen."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxinf.core import Key, PyTree, first, prepend, record, rest
from jaxinf.core.types import Leaf
from jaxinf.markov.gaussian_step import linearise
from jaxinf.markov.kernel import Law, tilted


@record
class OverTime:
    """Kernels of one kind, their leaves with a leading axis of time."""

    kernels: Leaf


@record
class StateSpace:
    """x_0 from a law, x_t from x_{t-1} by a transition, y_t from x_t by an emission."""

    initial: Leaf
    transition: Leaf
    emission: Leaf

    def sample(self, key: Key, length: int) -> tuple[PyTree, PyTree]:
        """Draw states and observations, a leading axis of time each."""
        key_start, key_seen, key_steps = jax.random.split(key, 3)
        start = self.initial.sample(key_start)

        def step(x: PyTree, slot: Any) -> tuple[PyTree, PyTree]:
            key, transition = slot
            x = at(self.transition, transition).sample(key, x)
            return x, x

        slots = jax.random.split(key_steps, length - 1), along(self.transition)
        _, later = jax.lax.scan(step, start, slots)
        path = prepend(start, later)

        def see(key: Key, x: PyTree, emission: Any) -> PyTree:
            return at(self.emission, emission).sample(key, x)

        keys = jax.random.split(key_seen, length)
        return path, jax.vmap(see)(keys, path, along(self.emission))


def kind(kernel: Any) -> Any:
    """Return the record of a kernel, or of those of all times: its type says what it can do."""
    return kernel.kernels if isinstance(kernel, OverTime) else kernel


def along(kernel: Any) -> Any:
    """Return what a scan over time takes of a kernel: nothing if it is the same at all times."""
    return kernel.kernels if isinstance(kernel, OverTime) else None


def at(kernel: Any, now: Any) -> Any:
    """Return the kernel of a time from what a scan handed over."""
    return now if isinstance(kernel, OverTime) else kernel


def over_time(kernels: Any) -> OverTime:
    """Kernels that change with time.

    Args:
      kernels: one record whose leaves have a leading axis, as ``jax.vmap(markov.finite)(matrices)``
        makes; T - 1 of them for transitions, the first one from time 0 to 1, T for emissions.

    Returns:
      What :func:`state_space` takes for a transition or an emission.
    """
    return OverTime(kernels)


def sizes(kernel: Any) -> tuple[Any, Any]:
    """Return kind and size of a kernel's start and end, None for one that does not say."""
    return getattr(kind(kernel), "sizes", (None, None))


def state_space(initial: Law, transition: Any, emission: Any) -> StateSpace:
    """A hidden Markov process.

    Args:
      initial: the law of x_0.
      transition: the kernel from x_{t-1} to x_t, or ``over_time(kernels)``.
      emission: the kernel from x_t to y_t, or ``over_time(kernels)``.

    Returns:
      The process, with ``sample(key, length)``.

    Raises:
      ValueError: where the transition does not lead back to its own states, or the emission starts
        from others.
    """
    start, end = sizes(transition)
    if start != end:
        raise ValueError(
            f"a transition must lead to the same states, got one from {start[1]} to {end[1]} "
            f"{end[0]}."
        )
    seen = sizes(emission)[0]
    if end is not None and seen is not None and end != seen:
        raise ValueError(
            f"the emission starts from {seen[1]} {seen[0]}, but the transition leads to {end[1]} "
            f"{end[0]}."
        )
    return StateSpace(initial, transition, emission)


class Backward(NamedTuple):
    """What the observations say of every state, carried back from the end."""

    messages: Any
    """[T] h_t: of the observations from t on."""
    pulled: Any
    """[T - 1] about x_t: of those after t."""
    likelihoods: Any
    """[T] of those at t."""
    observations: PyTree
    observed: Bool[Array, " T"]
    log_evidence: Float[Array, ""]
    """Of all observations under the surrogate, which is the model where none was given; in nats."""


def likelihoods(model: StateSpace, observations: PyTree, observed: Array) -> Any:
    """Return the messages of the observations, nothing said where there is none."""

    def one(y: PyTree, seen: Array, emission: Any) -> Any:
        message = at(model.emission, emission).likelihood(y)
        return jax.tree.map(lambda a: jnp.where(seen, a, 0), message)

    return jax.vmap(one)(observations, observed, along(model.emission))


def check_observations(observations: PyTree, observed: Any) -> tuple[PyTree, Array]:
    """Return observations and their mask as arrays."""
    observations = jax.tree.map(jnp.asarray, observations)
    length = jax.tree.leaves(observations)[0].shape[0]
    if observed is None:
        observed = jnp.ones(length, bool)
    observed = jnp.asarray(observed)
    if observed.shape != (length,) or observed.dtype != bool:
        raise ValueError(
            f"observed must be a mask of shape {(length,)}, one flag a time, got "
            f"{observed.dtype} of shape {observed.shape}."
        )
    return observations, observed


def backward_filter(
    model: StateSpace,
    observations: PyTree,
    *,
    observed: Bool[Array, " T"] | None = None,
    surrogate: StateSpace | None = None,
) -> Backward:
    r"""Carry what is observed back to every state.

    .. math:: h_{T-1} = e_{T-1}, \qquad h_t = e_t\, \tilde k_{t+1} h_{t+1}, \qquad
              e_t(x) = \tilde g_t(y_t \mid x)

    Args:
      model: what is to be guided.
      observations: a leading axis T of time.
      observed: which of them are there; all by default. What stands at the others is not read as an
        observation, but must be finite.
      surrogate: a state space of exact kernels about the model, :func:`linearise_along` makes one;
        by default the model itself, whose kernels must then be exact or have surrogates of their
        own (``markov.guide``).

    Returns:
      :class:`Backward`; its evidence is exact where the surrogate is the model.

    Raises:
      TypeError: where a kernel carries no messages back.
      ValueError: for a mask of another shape.

    Reference: van der Meulen, Schauer and Sommer, "Automatic Backward Filtering Forward Guiding for
    Markov processes and graphical models" (2020).
    """
    observations, observed = check_observations(observations, observed)
    proxy = model if surrogate is None else surrogate
    for name, kernel in (("transition", proxy.transition), ("emission", proxy.emission)):
        inner = kind(kernel)
        if not hasattr(inner, "likelihood" if name == "emission" else "pullback"):
            raise TypeError(
                f"the {name} {type(inner).__name__} carries no messages back; pass "
                "surrogate=markov.linearise_along(model, path) or another state space of finite or "
                "linear-Gaussian kernels, or give the kernel itself one with markov.guide."
            )
    return _backward(proxy, observations, observed)


@jax.jit
def _backward(proxy: Any, observations: Any, observed: Array) -> Backward:
    """See :func:`backward_filter`."""
    seen = likelihoods(proxy, observations, observed)

    def step(later: Any, slot: Any) -> tuple[Any, Any]:
        likelihood, transition = slot
        pulled = at(proxy.transition, transition).pullback(later).message
        now = likelihood.times(pulled)
        return now, (now, pulled)

    last = jax.tree.map(lambda a: a[-1], seen)
    slots = jax.tree.map(lambda a: a[:-1], seen), along(proxy.transition)
    _, (earlier, pulled) = jax.lax.scan(step, last, slots, reverse=True)
    messages = jax.tree.map(lambda a, b: jnp.concatenate([a, b[None]]), earlier, last)
    evidence = first(messages).weigh(proxy.initial)[1]
    return Backward(messages, pulled, seen, observations, observed, evidence)


def forward_guide(key: Key, model: StateSpace, back: Backward) -> tuple[PyTree, Float[Array, ""]]:
    r"""Draw a path under guidance, with its log weight.

    .. math:: x_t \sim \frac{h_t(x)\, k_t(dx \mid x_{t-1})}{(k_t h_t)(x_{t-1})}, \qquad
              w = \int h_0\, d\mu \; \prod_t \frac{g_t(y_t \mid x_t)}{e_t(x_t)}
                  \prod_t \frac{(k_t h_t)(x_{t-1})}{(\tilde k_t h_t)(x_{t-1})}

    Args:
      key: a typed key.
      model: its transition must have ``tilt`` or a surrogate, its emission ``log_prob``.
      back: from :func:`backward_filter`.

    Returns:
      The path, a leading axis T of time, and log w in nats: E[w] is the density of the observations
      whatever the surrogate was, and w-weighted paths follow the law given them. Where the
      surrogate is the model, w is its evidence and the paths are exact. Many: ``jax.vmap`` over
      keys.
    """
    return _forward(key, model, back)


@jax.jit
def _forward(key: Key, model: Any, back: Any) -> Any:
    """See :func:`forward_guide`."""
    key_start, key_steps = jax.random.split(key)
    keys = jax.random.split(key_steps, back.observed.shape[0] - 1)
    return _walk(lambda law, key: law.sample(key), key_start, keys, model, back)


def guided_path(
    innovations: Float[Array, "T d"], model: StateSpace, back: Backward
) -> tuple[Float[Array, "T d"], Float[Array, ""]]:
    """Make the path under guidance that white noise stands for, with its log weight.

    :func:`forward_guide` with its noise as an argument: both results are smooth in it and in the
    model's parameters. White noise weighted by w is the posterior of the path and, where the
    parameters have a prior, of these: a target with a Gaussian prior, which
    ``mcmc.crank_nicolson`` moves however long the path, and ``mcmc.nuts`` by gradients.

    Args:
      innovations: a number for each of every state's.
      model: as for :func:`forward_guide`, of states with Gaussian laws.
      back: from :func:`backward_filter`.

    Returns:
      The path and log w, in nats.

    Raises:
      ValueError: for innovations of another length.

    Reference: van der Meulen and Schauer, "Automatic backward filtering forward guiding for Markov
    processes and graphical models" (2020), whose chains move innovations and parameters.
    """
    length = back.observed.shape[0]
    if innovations.shape[0] != length:
        raise ValueError(
            f"innovations must have a row for each of the {length} times, got shape "
            f"{innovations.shape}."
        )
    return _walk(_shifted, innovations[0], innovations[1:], model, back)


def _shifted(law: Any, white: Array) -> Array:
    """Return the draw of a Gaussian law that white noise stands for."""
    return law.mean + law.covariance.sqrt(white)


def _walk(draw: Any, at_start: Any, at_steps: Any, model: Any, back: Any) -> Any:
    """Return a guided path and its log weight; every state is drawn from its law by a source."""

    def seen(x: PyTree, emission: Any, likelihood: Any, y: PyTree, there: Array) -> Array:
        ratio = at(model.emission, emission).log_prob(x, y) - likelihood(x)
        return jnp.where(there, ratio, 0.0)

    views = along(model.emission), back.likelihoods, back.observations, back.observed
    law, log_weight = first(back.messages).weigh(model.initial)
    start = draw(law, at_start)
    log_weight += seen(start, *first(views))

    def step(carry: Any, slot: Any) -> Any:
        x, log_weight = carry
        source, transition, message, pulled, view = slot
        law, weight = tilted(at(model.transition, transition), x, message)
        y = draw(law, source)
        log_weight += weight(y) - pulled(x)
        return (y, log_weight + seen(y, *view)), y

    slots = at_steps, along(model.transition), rest(back.messages), back.pulled, rest(views)
    (_, log_weight), later = jax.lax.scan(step, (start, log_weight), slots)
    return prepend(start, later), log_weight


def linearise_along(model: StateSpace, path: Float[Array, "T d"]) -> StateSpace:
    """The linear-Gaussian state space that agrees with a model to first order along a path.

    Args:
      model: Gaussian steps, the transition and the emission.
      path: a state at every time, where it is expanded: the means of a smoother say.

    Returns:
      The surrogate for :func:`backward_filter`, exact where the model is linear.
    """
    length = path.shape[0]

    def expand(kernel: Any, points: Array) -> OverTime:
        axes = (0 if isinstance(kernel, OverTime) else None, 0)
        return OverTime(
            jax.vmap(lambda now, x: linearise(at(kernel, now), x), axes)(along(kernel), points)
        )

    return StateSpace(
        model.initial, expand(model.transition, path[: length - 1]), expand(model.emission, path)
    )
