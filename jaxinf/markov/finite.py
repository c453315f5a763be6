"""Kernels between finitely many states."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxinf.core import Key, record
from jaxinf.core.finite import Finite, check_probabilities, normalise
from jaxinf.core.types import Leaf
from jaxinf.markov.kernel import Exactly, Pullback


@record
class FiniteMessage:
    """A function of the states 0, ..., n - 1 by its logarithms, in nats."""

    log_values: Leaf

    def __call__(self, x: Int[Array, ""]) -> Float[Array, ""]:
        """Return log h(x)."""
        return jnp.where(jnp.asarray(x) < 0, -jnp.inf, self.log_values[x])

    def times(self, other: "FiniteMessage") -> "FiniteMessage":
        """Return the product."""
        return FiniteMessage(self.log_values + other.log_values)

    def weigh(self, law: Finite) -> tuple[Finite, Float[Array, ""]]:
        """Return the law proportional to h times a law, and the log of its sum."""
        log_probs, value = normalise(law.log_probs + self.log_values)
        return Finite(log_probs), value


@record
class FiniteKernel:
    """A matrix of log probabilities, a row for every x; rows without mass lead nowhere."""

    log_matrix: Leaf

    @property
    def sizes(self) -> tuple[tuple[str, int], tuple[str, int]]:
        """Kind and size of the start and of the end."""
        n, m = self.log_matrix.shape[-2:]
        return ("states", n), ("states", m)

    def law(self, x: Int[Array, ""]) -> Finite:
        """Return the law of y given x."""
        return Finite(jnp.where(jnp.asarray(x) < 0, -jnp.inf, self.log_matrix[x]))

    def sample(self, key: Key, x: Int[Array, ""]) -> Int[Array, ""]:
        """Draw y given x."""
        return self.law(x).sample(key)

    def log_prob(self, x: Int[Array, ""], y: Int[Array, ""]) -> Float[Array, ""]:
        """Return log k(y | x), in nats."""
        return self.law(x).log_prob(y)

    def push(self, prior: Finite) -> Finite:
        """Return the law of y for x drawn from a prior."""
        return Finite(jax.nn.logsumexp(prior.log_probs[:, None] + self.log_matrix, axis=0))

    def invert(self, prior: Finite) -> "FiniteKernel":
        """Return the kernel of x given y; its rows for y without mass have none either."""
        joint = prior.log_probs[:, None] + self.log_matrix
        return FiniteKernel(normalise(joint.T)[0])

    def then(self, after: "FiniteKernel") -> "FiniteKernel":
        """Return the kernel of z given x: the product of the matrices."""
        both = self.log_matrix[:, :, None] + after.log_matrix[None]
        return FiniteKernel(jax.nn.logsumexp(both, axis=1))

    def beside(self, other: "FiniteKernel") -> "FiniteKernel":
        """Return the kernel of independent pairs, numbered row by row."""
        a, b = self.log_matrix, other.log_matrix
        both = a[:, None, :, None] + b[None, :, None, :]
        return FiniteKernel(both.reshape(a.shape[0] * b.shape[0], -1))

    def likelihood(self, y: Int[Array, ""]) -> FiniteMessage:
        """Return the message x -> log k(y | x)."""
        return FiniteMessage(jnp.where(jnp.asarray(y) < 0, -jnp.inf, self.log_matrix[:, y]))

    def tilt(self, x: Int[Array, ""], message: FiniteMessage) -> tuple[Finite, Float[Array, ""]]:
        """Return the law proportional to k(y | x) h(y), and log (k h)(x)."""
        return message.weigh(self.law(x))

    def observe(self, prior: Finite, y: Int[Array, ""]) -> tuple[Finite, Float[Array, ""]]:
        """Return the law of x given y, and the log probability of y."""
        return self.likelihood(y).weigh(prior)

    def pullback(self, message: FiniteMessage) -> Pullback:
        """Carry a message back: h -> k h, and the kernel guided by h."""
        rows, values = normalise(self.log_matrix + message.log_values[None, :])
        return Pullback(FiniteMessage(values), Exactly(FiniteKernel(rows)))


def finite(matrix: Array) -> FiniteKernel:
    """A kernel between finitely many states.

    Args:
      matrix: probabilities, shape (n, m): row x is the law of y given x.

    Returns:
      An exact kernel; states are integers, laws :class:`jaxinf.core.Finite`, messages
      :class:`FiniteMessage`.

    Raises:
      ValueError: for a concrete matrix whose rows are not probabilities, and for other shapes.
    """
    if jnp.ndim(matrix) != 2:
        raise ValueError(
            f"a kernel's matrix must have shape (from, to), got {jnp.shape(matrix)}; a stack of "
            "them, a leading axis of time say, is jax.vmap(markov.finite)(stack)."
        )
    check_probabilities(matrix, "a kernel's matrix")
    return FiniteKernel(jnp.log(jnp.asarray(matrix)))
