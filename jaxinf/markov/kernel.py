"""What a conditional law is, what is pulled back through it, and what is guided by that."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

from jaxtyping import Array, Float

from jaxinf.core import Key, PyTree, Scalar, record
from jaxinf.core.types import Leaf


@runtime_checkable
class Law(Protocol):
    """A distribution of one state."""

    def sample(self, key: Key) -> PyTree:
        """Draw a state."""
        ...

    def log_prob(self, x: PyTree) -> Float[Array, ""]:
        """Log density, in nats."""
        ...


@runtime_checkable
class Message(Protocol):
    """A positive function h of a state, known by its logarithm: what the future says of it."""

    def __call__(self, x: PyTree) -> Float[Array, ""]:
        """Return log h(x), in nats."""
        ...

    def times(self, other: Any) -> Any:
        """Return the product of two messages of one kind about the same state."""
        ...

    def weigh(self, law: Any) -> tuple[Any, Float[Array, ""]]:
        """Return the law proportional to h times a law, and the log of its integral (Bayes)."""
        ...


@runtime_checkable
class MarkovKernel(Protocol):
    """A conditional law k(dy | x) of one state y given one state x."""

    def sample(self, key: Key, x: PyTree) -> PyTree:
        """Draw y given x."""
        ...

    def log_prob(self, x: PyTree, y: PyTree) -> Float[Array, ""]:
        """Return the log density of y given x, in nats."""
        ...


@runtime_checkable
class Tiltable(MarkovKernel, Protocol):
    """A kernel that can be weighted by a message, state by state."""

    def tilt(self, x: PyTree, message: Any) -> tuple[Any, Float[Array, ""]]:
        """Return the law of y proportional to k(dy | x) h(y), and log (k h)(x)."""
        ...


class Guided(Protocol):
    """A kernel under guidance: what it draws carries a weight."""

    def move(self, key: Key, x: PyTree) -> tuple[PyTree, Float[Array, ""]]:
        """Draw y given x; return it with its log weight, in nats."""
        ...


class Pullback(NamedTuple):
    """A message carried back over a kernel, with the kernel guided by it.

    The pair is an optic: backward a message becomes a message, forward a state becomes a weighted
    state, and composites of pairs are the pairs of composites.
    """

    message: Any
    """x -> log (k h)(x), of the surrogate where there is one."""
    guided: Any
    """Draws about k(dy | x) h(y), with the log weight log (k h)(x) - message(x)."""


@runtime_checkable
class Exact(Tiltable, Protocol):
    """A kernel whose laws, inverses and messages are of one kind that is closed under it."""

    def push(self, prior: Any) -> Any:
        """Return the law of y for x drawn from a prior."""
        ...

    def invert(self, prior: Any) -> Any:
        """Return the kernel of x given y for x drawn from a prior (Bayes' rule)."""
        ...

    def then(self, after: Any) -> Any:
        """Return the kernel of z given x as one of the kind."""
        ...

    def likelihood(self, y: PyTree) -> Any:
        """Return the message x -> log k(y | x)."""
        ...

    def observe(self, prior: Any, y: PyTree) -> tuple[Any, Float[Array, ""]]:
        """Return the law of x given y, for x drawn from a prior, and the log density of y."""
        ...

    def pullback(self, message: Any) -> Pullback:
        """Carry a message back."""
        ...


@record
class Point:
    """A law on one state."""

    at: Leaf

    def sample(self, key: Key) -> PyTree:
        """Return the state."""
        return self.at


@record
class Exactly:
    """A guided kernel that is a kernel again, so that no weight is left."""

    kernel: Leaf

    def move(self, key: Key, x: PyTree) -> tuple[PyTree, float]:
        """Draw y given x, with weight one."""
        return self.kernel.sample(key, x), 0.0


@record
class Tilted:
    """A kernel guided by a message that a surrogate carried back."""

    kernel: Leaf
    message: Leaf
    """About y."""
    claimed: Leaf
    """About x: what the surrogate takes log (k h)(x) to be."""

    def move(self, key: Key, x: PyTree) -> tuple[PyTree, Float[Array, ""]]:
        """Draw y about k(dy | x) h(y), with its log weight against claimed(x)."""
        law, weight = tilted(self.kernel, x, self.message)
        y = law.sample(key)
        return y, weight(y) - self.claimed(x)


@record
class Guide:
    """A kernel whose messages are carried back over a surrogate of it."""

    kernel: Leaf
    surrogate: Leaf

    @property
    def tiltable(self) -> Any:
        """The kernel if it can be weighted by messages, its surrogate if not."""
        return self.kernel if isinstance(self.kernel, Tiltable) else self.surrogate

    def sample(self, key: Key, x: PyTree) -> PyTree:
        """Draw y given x, from the kernel."""
        return self.kernel.sample(key, x)

    def log_prob(self, x: PyTree, y: PyTree) -> Float[Array, ""]:
        """Return the kernel's log density."""
        return self.kernel.log_prob(x, y)

    def tilted(self, x: PyTree, message: Any) -> tuple[Any, Callable[[PyTree], Scalar]]:
        """Return a law about k(dy | x) h(y), and the log weight of what it draws."""
        kernel = self.tiltable
        law, value = kernel.tilt(x, message)
        if kernel is self.kernel:
            return law, lambda y: value
        return law, lambda y: value + self.log_prob(x, y) - kernel.log_prob(x, y)

    def likelihood(self, y: PyTree) -> Any:
        """Return the surrogate's message x -> log k(y | x)."""
        return self.surrogate.likelihood(y)

    def pullback(self, message: Any) -> Pullback:
        """Carry a message back over the surrogate, and guide the kernel by it."""
        back = self.surrogate.pullback(message).message
        return Pullback(back, Tilted(self, message, back))


def tilted(kernel: Any, x: PyTree, message: Any) -> tuple[Any, Callable[[PyTree], Scalar]]:
    """Return a law q about k(dy | x) h(y), and y -> log of k(y | x) h(y) / q(y).

    The second is (k h)(x) for all y where the kernel itself can be weighted by a message.
    """
    if hasattr(kernel, "tilted"):
        return kernel.tilted(x, message)
    law, value = kernel.tilt(x, message)
    return law, lambda y: value


def guidable(kernel: Any) -> bool:
    """Whether :func:`tilted` takes a kernel."""
    return isinstance(kernel, Guide | Tiltable)


def guide(kernel: Any, surrogate: Any) -> Guide:
    r"""Give a kernel a tractable surrogate for the way back.

    Backward the message is the surrogate's, :math:`\tilde k h`; forward the kernel itself is
    guided, and what the surrogate got wrong becomes a weight:

    .. math:: k^\circ(dy \mid x) = \frac{h(y)\, k(dy \mid x)}{(k h)(x)}, \qquad
              w(x) = \frac{(k h)(x)}{(\tilde k h)(x)}

    A kernel that only draws and has a density is guided as its surrogate is, and weighed by the
    ratio of the two:

    .. math:: k^\circ(dy \mid x) = \frac{h(y)\, \tilde k(dy \mid x)}{(\tilde k h)(x)}, \qquad
              w(x, y) = \frac{k(y \mid x)}{\tilde k(y \mid x)}

    whose variance is finite where the surrogate's tails are no lighter than the kernel's.

    Args:
      kernel: what is to be drawn from; with ``tilt``, or with ``sample`` and ``log_prob``, such as
        :func:`conditional` makes.
      surrogate: exact, of the same states; a linearisation say.

    Returns:
      A kernel with ``pullback``, and with ``likelihood`` for what is observed: state spaces and
      graphs of such kernels are their own surrogates. An equal copy as the surrogate gives weights
      of one.

    Raises:
      TypeError: where one of the two cannot do its part.

    Reference: van der Meulen, Schauer and Sommer, "Automatic Backward Filtering Forward Guiding for
    Markov processes and graphical models" (2020).
    """
    if not isinstance(kernel, MarkovKernel):
        raise TypeError(
            f"{type(kernel).__name__} has no sample(key, x) and log_prob(x, y): make it a kernel, "
            "by markov.conditional(law) for a law that depends on x."
        )
    if not isinstance(surrogate, Exact):
        raise TypeError(
            f"the surrogate must carry messages back, and {type(surrogate).__name__} does not; "
            "markov.linearise makes one of a Gaussian step."
        )
    return Guide(kernel, surrogate)
