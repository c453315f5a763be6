"""The small network that says how a layer of a flow moves its numbers."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxinf.core import Key, Leaf, record, static
from jaxinf.vi.checks import check_least


@record
class Perceptron:
    """A multilayer perceptron as a pytree of its weights; see :func:`perceptron`."""

    weights: Leaf
    """Of each layer, (inputs, outputs)."""
    biases: Leaf
    activation: Callable[..., Any] = static()

    def __call__(self, x: Float[Array, " inputs"]) -> Float[Array, " outputs"]:
        """Return the network's value."""
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            x = self.activation(x @ weight + bias)
        return x @ self.weights[-1] + self.biases[-1]


def perceptron(
    key: Key,
    inputs: int,
    outputs: int,
    *,
    width: int = 32,
    depth: int = 2,
    activation: Callable[..., Any] = jax.nn.silu,
) -> Perceptron:
    """A multilayer perceptron whose last layer starts at zero.

    Args:
      key: a typed key, of the other layers' weights, N(0, 1 / inputs).
      inputs: how many numbers go in.
      outputs: how many come out.
      width: of each hidden layer.
      depth: how many hidden layers.
      activation: a function of a module, so that it is known again.

    Returns:
      The network, a function of one example; it starts as zero.

    Raises:
      ValueError: for a size below 1.
    """
    check_least(inputs=inputs, outputs=outputs, width=width, depth=depth)
    sizes = [inputs, *[width] * depth]
    keys = jax.random.split(key, depth)
    weights = [
        jax.random.normal(key, (before, after)) / before**0.5
        for key, before, after in zip(keys, sizes[:-1], sizes[1:], strict=True)
    ]
    weights.append(jnp.zeros((width, outputs)))
    biases = [jnp.zeros(weight.shape[1]) for weight in weights]
    return Perceptron(tuple(weights), tuple(biases), activation)
