"""Kernels one after another, side by side, copied and observed."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxinf.core import Key, PyTree, Scalar, record
from jaxinf.core.types import Leaf
from jaxinf.markov.kernel import Exact, Pullback, tilted


class Both(NamedTuple):
    """Two laws, messages or guided kernels side by side."""

    first: Any
    second: Any

    def sample(self, key: Key) -> tuple[PyTree, PyTree]:
        """Draw from two laws independently."""
        a, b = jax.random.split(key)
        return self.first.sample(a), self.second.sample(b)

    def log_prob(self, x: tuple[PyTree, PyTree]) -> Scalar:
        """Log density of a pair under two laws."""
        return self.first.log_prob(x[0]) + self.second.log_prob(x[1])

    def __call__(self, x: tuple[PyTree, PyTree]) -> Scalar:
        """Return log h(x) + log g(y) of two messages."""
        return self.first(x[0]) + self.second(x[1])

    def times(self, other: "Both") -> "Both":
        """Return the product of two pairs of messages."""
        return Both(self.first.times(other.first), self.second.times(other.second))

    def weigh(self, law: "Both") -> tuple["Both", Array]:
        """Return two laws weighted by two messages, and the sum of the logarithms."""
        a, log_a = self.first.weigh(law.first)
        b, log_b = self.second.weigh(law.second)
        return Both(a, b), log_a + log_b

    def move(self, key: Key, x: tuple[PyTree, PyTree]) -> tuple[tuple[PyTree, PyTree], Scalar]:
        """Draw from two guided kernels, independently; the weights multiply."""
        a, b = jax.random.split(key)
        y, log_y = self.first.move(a, x[0])
        z, log_z = self.second.move(b, x[1])
        return (y, z), log_y + log_z


@record
class InTurn:
    """Two guided kernels, one after the other."""

    first: Leaf
    second: Leaf

    def move(self, key: Key, x: PyTree) -> tuple[PyTree, Scalar]:
        """Draw the middle and the end; the weights multiply, and the middle is dropped."""
        a, b = jax.random.split(key)
        y, log_y = self.first.move(a, x)
        z, log_z = self.second.move(b, y)
        return z, log_y + log_z


@record
class Composite:
    """First one kernel, then another."""

    first: Leaf
    second: Leaf

    def sample(self, key: Key, x: PyTree) -> PyTree:
        """Draw the end given the start."""
        a, b = jax.random.split(key)
        return self.second.sample(b, self.first.sample(a, x))

    def log_prob(self, x: PyTree, z: PyTree) -> Float[Array, ""]:
        """Return log k(z | x), the middle integrated out, where both are exact and of a kind."""
        return _single(self).log_prob(x, z)

    def tilt(self, x: PyTree, message: Any) -> tuple[Any, Float[Array, ""]]:
        """Return the law of the end weighted by a message, where both are exact and of a kind."""
        return _single(self).tilt(x, message)

    def push(self, prior: Any) -> Any:
        """Return the law of the end for a start drawn from a prior."""
        return self.second.push(self.first.push(prior))

    def invert(self, prior: Any) -> "Composite":
        """Return the inverse of the composite: the composite of the inverses.

        The second is inverted at what the first makes of the prior (Bayesian lenses: Smithe, "The
        Compositional Structure of Bayesian Inference", 2023, theorem 5.2).
        """
        return Composite(self.second.invert(self.first.push(prior)), self.first.invert(prior))

    def then(self, after: Any) -> "Composite":
        """Return the kernel with one more after it."""
        return Composite(self, after)

    def likelihood(self, z: PyTree) -> Any:
        """Return the message x -> log k(z | x)."""
        return self.first.pullback(self.second.likelihood(z)).message

    def observe(self, prior: Any, z: PyTree) -> tuple[Any, Float[Array, ""]]:
        """Return the law of the start given the end, and the log density of the end."""
        return self.likelihood(z).weigh(prior)

    def pullback(self, message: Any) -> Pullback:
        """Carry a message back over the second, then over the first."""
        middle, second = self.second.pullback(message)
        start, first = self.first.pullback(middle)
        return Pullback(start, InTurn(first, second))


def _single(kernel: Any) -> Any:
    """Return one kernel for a tree of composites of a kind."""
    if not isinstance(kernel, Composite):
        return kernel
    first, second = _single(kernel.first), _single(kernel.second)
    if not isinstance(first, Exact) or type(first) is not type(second):
        raise TypeError(
            f"the middle between {type(first).__name__} and {type(second).__name__} cannot be "
            "integrated out; draw with sample, or weight draws by pullback."
        )
    return first.then(second)


@record
class Tensor:
    """Two kernels side by side, on pairs."""

    first: Leaf
    second: Leaf

    def sample(self, key: Key, x: tuple[PyTree, PyTree]) -> tuple[PyTree, PyTree]:
        """Draw a pair given a pair."""
        a, b = jax.random.split(key)
        return self.first.sample(a, x[0]), self.second.sample(b, x[1])

    def log_prob(self, x: tuple[PyTree, PyTree], y: tuple[PyTree, PyTree]) -> Float[Array, ""]:
        """Return log k(y | x) of a pair."""
        return self.first.log_prob(x[0], y[0]) + self.second.log_prob(x[1], y[1])

    def tilt(self, x: tuple[PyTree, PyTree], message: Both) -> tuple[Both, Float[Array, ""]]:
        """Return the laws weighted by a pair of messages."""
        a, log_a = self.first.tilt(x[0], message.first)
        b, log_b = self.second.tilt(x[1], message.second)
        return Both(a, b), log_a + log_b

    def tilted(self, x: tuple[PyTree, PyTree], message: Both) -> tuple[Both, Any]:
        """Return laws about the weighted ones, and the log weight of what they draw."""
        a, weight_a = tilted(self.first, x[0], message.first)
        b, weight_b = tilted(self.second, x[1], message.second)
        return Both(a, b), lambda y: weight_a(y[0]) + weight_b(y[1])

    def observe(self, prior: Both, y: tuple[PyTree, PyTree]) -> tuple[Both, Array]:
        """Return the laws of the starts given the ends, and the log density of these."""
        return self.likelihood(y).weigh(prior)

    def push(self, prior: Both) -> Both:
        """Return the laws of the ends for independent starts."""
        return Both(self.first.push(prior.first), self.second.push(prior.second))

    def invert(self, prior: Both) -> "Tensor":
        """Return the inverse at independent priors: each by itself."""
        return Tensor(self.first.invert(prior.first), self.second.invert(prior.second))

    def then(self, after: "Tensor") -> "Tensor":
        """Return the kernel with one more pair after it: each by itself."""
        return Tensor(self.first.then(after.first), self.second.then(after.second))

    def likelihood(self, y: tuple[PyTree, PyTree]) -> Both:
        """Return the message x -> log k(y | x)."""
        return Both(self.first.likelihood(y[0]), self.second.likelihood(y[1]))

    def pullback(self, message: Both) -> Pullback:
        """Carry a pair of messages back, each by itself."""
        a, first = self.first.pullback(message.first)
        b, second = self.second.pullback(message.second)
        return Pullback(Both(a, b), Both(first, second))


@record
class Copy:
    """x to (x, x): backward it multiplies messages, which is Bayes' rule."""

    def sample(self, key: Key, x: PyTree) -> tuple[PyTree, PyTree]:
        """Return the state twice."""
        return x, x

    def move(self, key: Key, x: PyTree) -> tuple[tuple[PyTree, PyTree], Scalar]:
        """Return the state twice, with weight one."""
        return (x, x), 0.0

    def pullback(self, message: Both) -> Pullback:
        """Return the product of the two messages."""
        return Pullback(message.first.times(message.second), self)


@record
class Nothing:
    """The message that an observed branch takes: there is no state left to speak of."""

    def __call__(self, x: tuple[()]) -> float:
        """Return log 1."""
        return 0.0


@record
class Observed:
    """A kernel whose end has been seen: from a state to nothing, with the likelihood as message."""

    kernel: Leaf
    y: Leaf
    surrogate: Leaf

    def sample(self, key: Key, x: PyTree) -> tuple[()]:
        """Return no state."""
        return ()

    def pullback(self, message: Nothing) -> Pullback:
        """Return the surrogate's likelihood, with the kernel's own left as a weight."""
        back = self.surrogate.likelihood(self.y)
        return Pullback(back, Seen(self.kernel, self.y, back))


@record
class Seen:
    """What an observation weighs where a surrogate's likelihood has been counted already."""

    kernel: Leaf
    y: Leaf
    claimed: Leaf

    def move(self, key: Key, x: PyTree) -> tuple[tuple[()], Scalar]:
        """Return no state, and the log ratio of the likelihoods."""
        return (), self.kernel.log_prob(x, self.y) - self.claimed(x)


def compose(first: Any, second: Any, *more: Any) -> Composite:
    """One kernel after another, from left to right.

    Args:
      first: from x to y.
      second: from y to z.
      *more: further ones.

    Returns:
      The kernel from x to the last state. How it is grouped does not change what it is.

    Raises:
      ValueError: where the matrices of two neighbours do not fit.
    """
    both = Composite(first, second)
    _check_fits(first, second)
    return compose(both, *more) if more else both


def _check_fits(first: Any, second: Any) -> None:
    """Raise where one kernel's end is not the other's start, as far as their shapes say so."""
    while isinstance(first, Composite):
        first = first.second
    while isinstance(second, Composite):
        second = second.first
    end, start = _sizes(first)[1], _sizes(second)[0]
    if end is not None and start is not None and end != start:
        raise ValueError(
            f"kernels do not compose: the first ends in {end[1]} {end[0]}, the second starts from "
            f"{start[1]} {start[0]}. Kernels are composed in the order in which they are run."
        )


def _sizes(kernel: Any) -> tuple[Any, Any]:
    """Return the kinds and sizes of a kernel's start and end; None where it does not say."""
    return kernel.sizes if hasattr(kernel, "sizes") else (None, None)


def tensor(first: Any, second: Any) -> Tensor:
    """Two kernels side by side, on pairs of states."""
    return Tensor(first, second)


def copy() -> Copy:
    """The kernel from x to (x, x)."""
    return Copy()


def condition(kernel: Any, y: PyTree, surrogate: Exact | None = None) -> Observed:
    """See where a kernel ended.

    Args:
      kernel: from a state to what is observed, with ``log_prob``.
      y: what was observed.
      surrogate: whose likelihood goes into the message; by default the kernel's own.

    Returns:
      A kernel from the state to nothing, ``()``, whose ``pullback(Nothing())`` is the likelihood.
    """
    return Observed(
        kernel, jax.tree.map(jnp.asarray, y), kernel if surrogate is None else surrogate
    )
