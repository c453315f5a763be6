"""How the particles of a state space move, and what they look ahead to: proposals, as values."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from jaxinf.core import Key, Leaf, Scalar, record, static
from jaxinf.markov import Backward, StateSpace
from jaxinf.markov.kernel import guidable, tilted
from jaxinf.markov.state_space import along, at, kind, likelihoods


class Ahead(NamedTuple):
    """What comes next, to be looked at."""

    transition: Any
    emission: Any
    observation: PyTree
    there: Bool[Array, ""]
    """Whether there is a next observation."""


@runtime_checkable
class Proposal(Protocol):
    """How the particles of a state space move; a pytree."""

    def rows(self, model: StateSpace, observations: PyTree, observed: Array) -> PyTree:
        """Return what it needs at each time, a leading axis T, and check that it can have it."""
        ...

    def propose(self, kernel: Any, x: PyTree, row: PyTree) -> tuple[Any, Callable[[Any], Scalar]]:
        """Return the law q of the next state, and y -> log k(y | x) - log q(y)."""
        ...

    def look(self, x: PyTree, row: PyTree, ahead: Ahead) -> Float[Array, ""] | float:
        """Return the log of a guess at what the future will say of x; 0 at the last time."""
        ...


class _Draws(NamedTuple):
    """The law of a kernel at a state."""

    kernel: Any
    x: Any

    def sample(self, key: Key) -> PyTree:
        """Draw."""
        return self.kernel.sample(key, self.x)


@record
class From:
    """A law as a kernel from anywhere."""

    law: Leaf

    def sample(self, key: Key, x: Any) -> PyTree:
        """Draw from the law."""
        return self.law.sample(key)

    def tilt(self, x: Any, message: Any) -> tuple[Any, Array]:
        """Return the law proportional to the law times h, and the log of its integral."""
        return message.weigh(self.law)


@record
class Bootstrap:
    """See :func:`bootstrap`."""

    def rows(self, model: StateSpace, observations: PyTree, observed: Array) -> None:
        """Nothing is needed."""

    def propose(self, kernel: Any, x: PyTree, row: None) -> tuple[Any, Callable[[Any], Scalar]]:
        """Return the kernel's own law."""
        return _Draws(kernel, x), lambda y: 0.0

    def look(self, x: PyTree, row: None, ahead: Ahead) -> float:
        """Look nowhere."""
        return 0.0


@record
class Optimal:
    """See :func:`optimal`."""

    surrogate: Leaf

    def rows(self, model: StateSpace, observations: PyTree, observed: Array) -> PyTree:
        """Return the messages of the observations."""
        _check_tilt(model)
        proxy = model if self.surrogate is None else self.surrogate
        kernel = kind(proxy.emission)
        if not hasattr(kernel, "likelihood"):
            raise TypeError(
                f"the emission {type(kernel).__name__} has no likelihood message; pass "
                "smc.optimal(surrogate=markov.linearise_along(model, path)), or move by "
                "smc.bootstrap()."
            )
        return likelihoods(proxy, observations, observed)

    def propose(self, kernel: Any, x: PyTree, row: Any) -> tuple[Any, Callable[[Any], Scalar]]:
        """Return the law proportional to kernel times likelihood."""
        return _tilted(kernel, x, row)

    def look(self, x: PyTree, row: Any, ahead: Ahead) -> float:
        """Look nowhere."""
        return 0.0


@record
class Guided:
    """See :func:`guided`."""

    messages: Leaf
    pulled: Leaf

    def rows(self, model: StateSpace, observations: PyTree, observed: Array) -> PyTree:
        """Return the messages from each time on, and from after it."""
        _check_tilt(model)
        length, found = observed.shape[0], jax.tree.leaves(self.messages)[0].shape[0]
        if length != found:
            raise ValueError(
                f"the messages are of {found} times and there are {length} observations; carry "
                "these back with markov.backward_filter."
            )
        nothing = jax.tree.map(lambda a: jnp.zeros((1, *a.shape[1:]), a.dtype), self.pulled)
        return self.messages, jax.tree.map(lambda a, b: jnp.concatenate([a, b]), self.pulled,
                                           nothing)  # fmt: skip

    def propose(self, kernel: Any, x: PyTree, row: Any) -> tuple[Any, Callable[[Any], Scalar]]:
        """Return the law proportional to kernel times message."""
        return _tilted(kernel, x, row[0])

    def look(self, x: PyTree, row: Any, ahead: Ahead) -> Float[Array, ""]:
        """Return what the message says of all observations after this time."""
        return row[1](x)


@record
class Auxiliary:
    """See :func:`auxiliary`."""

    proposal: Leaf
    potential: Callable[..., Array] = static()

    def rows(self, model: StateSpace, observations: PyTree, observed: Array) -> PyTree:
        """Return what the proposal needs."""
        return self.proposal.rows(model, observations, observed)

    def propose(self, kernel: Any, x: PyTree, row: Any) -> tuple[Any, Callable[[Any], Scalar]]:
        """Return the proposal's law."""
        return self.proposal.propose(kernel, x, row)

    def look(self, x: PyTree, row: Any, ahead: Ahead) -> Float[Array, ""]:
        """Return the potential of the next observation, if there is one."""
        value = self.potential(ahead.transition, ahead.emission, x, ahead.observation)
        return jnp.where(ahead.there, value, 0.0)


def bootstrap() -> Bootstrap:
    """Particles move by the transition and are weighed by the likelihood.

    Returns:
      The proposal for :func:`particle_filter`; it asks of the kernels only that the transition can
      be drawn from and the emission has a ``log_prob``.

    Reference:
      N. Gordon, D. Salmond and A. Smith, "Novel approach to nonlinear/non-Gaussian Bayesian state
      estimation", 1993.
    """
    return Bootstrap()


def optimal(surrogate: StateSpace | None = None) -> Optimal:
    r"""Particles are guided by the next observation: the locally optimal proposal.

    .. math:: q(y \mid x) = \frac{k(y \mid x)\, e(y)}{(k e)(x)}, \qquad
              w = (k e)(x)\, \frac{g(y)}{e(y)}

    Args:
      surrogate: a state space whose emission gives the likelihood messages e, where the model's
        own does not: ``markov.linearise_along(model, path)``. What it gets wrong is weighed.

    Returns:
      The proposal for :func:`particle_filter`; the transition must have ``tilt`` or a surrogate.

    Reference:
      A. Doucet, S. Godsill and C. Andrieu, "On sequential Monte Carlo sampling methods for Bayesian
      filtering", 2000.
    """
    return Optimal(surrogate)


def guided(backward: Backward) -> Guided:
    r"""Particles are guided by all observations to come, through messages carried back.

    .. math:: q_t(y \mid x) = \frac{k_t(y \mid x)\, h_t(y)}{(k_t h_t)(x)}, \qquad
              w_t = \frac{(k_t h_t)(x)}{(\tilde k_t h_t)(x)}\, \frac{g_t(y)}{e_t(y)}

    from the integral of h_0. Where the surrogate is the model all weights are its evidence. It is
    the auxiliary particle filter whose look-ahead is the message.

    Args:
      backward: ``markov.backward_filter(model, observations, surrogate=...)``.

    Returns:
      The proposal for :func:`particle_filter`; the transition must have ``tilt`` or a surrogate.

    Reference:
      F. van der Meulen and M. Schauer, "Automatic backward filtering forward guiding for Markov
      processes and graphical models", 2020; P. Del Moral, "Feynman-Kac Formulae", 2004, for changes
      of measure by potentials.
    """
    return Guided(backward.messages, backward.pulled)


def predictive(transition: Any, emission: Any, x: PyTree, observation: PyTree) -> Array:
    """Return the log density of the next observation given a state, in nats.

    Args:
      transition: of the next step, with ``tilt``, or a surrogate with it.
      emission: of the next time, with ``likelihood``.
      x: the state.
      observation: the next one.

    Returns:
      log of the integral of k(dy | x) g(observation | y).
    """
    transition = getattr(transition, "tiltable", transition)
    return transition.tilt(x, emission.likelihood(observation))[1]


def auxiliary(
    potential: Callable[..., Array] = predictive, proposal: Proposal | None = None
) -> Auxiliary:
    r"""Particles are resampled by how they fit the next observation too.

    Weights are multiplied by a look-ahead :math:`\eta_t(x_t)` and divided by it one step later.
    The default is fully adapted: what is resampled by is the density of the next observation, and
    after the move the weights are equal.

    Args:
      potential: log eta, of (transition, emission, x, observation), all but x of the next time;
        that of Pitt and Shephard, with the transition's mean, is
        ``lambda k, g, x, y: g.log_prob(k.at(x)[0], y)``. Define it at the top of a file: a new
        function compiles anew.
      proposal: how particles move; :func:`optimal` by default.

    Returns:
      The proposal for :func:`particle_filter`.

    Reference:
      M. Pitt and N. Shephard, "Filtering via simulation: auxiliary particle filters", JASA
      1999.
    """
    return Auxiliary(Optimal(None) if proposal is None else proposal, potential)


class View(NamedTuple):
    """What is seen at a time; what kernels hand over, as ``markov.state_space.along`` does."""

    emission: Any
    observation: Any
    there: Any
    row: Any
    next: Ahead


def views(model: StateSpace, proposal: Any, observations: PyTree, observed: Array) -> View:
    """Return what is seen at all times, a leading axis T."""
    length = observed.shape[0]

    def later(tree: Any) -> Any:
        """One time on, the last of them again."""
        return jax.tree.map(lambda a: jnp.concatenate([a[1:], a[-1:]]), tree)

    def padded(a: Array) -> Array:
        """As many kernels as times."""
        tail = a[-1:] if length > 1 else jnp.zeros((1, *a.shape[1:]), a.dtype)
        return jnp.concatenate([a, tail])

    emissions = along(model.emission)
    ahead = Ahead(
        jax.tree.map(padded, along(model.transition)), later(emissions), later(observations),
        jnp.append(observed[1:], False),
    )  # fmt: skip
    rows = proposal.rows(model, observations, observed)
    return View(emissions, observations, observed, rows, ahead)


def weigh(
    model: Any, proposal: Any, correction: Any, y: PyTree, past: Scalar, view: View
) -> tuple[Array, Array]:
    """Return the log weight of a moved particle, and the look-ahead that is in it."""
    value = at(model.emission, view.emission).log_prob(y, view.observation)
    seen = jnp.where(view.there, value, 0.0)
    transition, emission = at(model.transition, view.next.transition), view.next.emission
    ahead = view.next._replace(transition=transition, emission=at(model.emission, emission))
    future = jnp.asarray(proposal.look(y, view.row, ahead), seen.dtype)
    alive = past > -jnp.inf
    total = correction(y) + seen + future - jnp.where(alive, past, 0)
    return jnp.where(alive, total, -jnp.inf), future


def move(
    key: Key, model: Any, proposal: Any, kernel: Any, particle: Any, view: View
) -> tuple[tuple[PyTree, Array], Array]:
    """Move a particle, a state with the look-ahead it was weighed with; return its log weight."""
    x, past = particle
    law, correction = proposal.propose(kernel, x, view.row)
    y = law.sample(key)
    log_weight, future = weigh(model, proposal, correction, y, past, view)
    return (y, future), log_weight


def _tilted(kernel: Any, x: PyTree, message: Any) -> tuple[Any, Callable[[Any], Scalar]]:
    """Return the tilted law, and log k - log q."""
    law, weight = tilted(kernel, x, message)

    def correction(y: PyTree) -> Array:
        value = weight(y)
        return jnp.where(value == -jnp.inf, -jnp.inf, value - message(y))

    return law, correction


def _check_tilt(model: StateSpace) -> None:
    """Raise where the transition cannot be weighted by a message."""
    kernel = kind(model.transition)
    if not guidable(kernel):
        raise TypeError(
            f"the transition {type(kernel).__name__} has no tilt(x, message): make it a "
            "markov.gaussian_step, give it a surrogate with markov.guide, or move by "
            "smc.bootstrap()."
        )
