"""The classifier two-sample test."""

from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float

from jaxinf.core import Key, check_key
from jaxinf.diagnostics.samples import check_samples


def c2st(
    key: Key,
    x: Float[Array | np.ndarray, "n ..."],
    y: Float[Array | np.ndarray, "m ..."],
    *,
    folds: int = 5,
    classifier: Any = None,
) -> float:
    r"""How often a classifier that was trained on others tells which sample an example is of.

    .. math:: \hat t = \frac{1}{n + m} \sum_i 1[\hat c_{-i}(w_i) = c_i]

    It is 1/2 for two samples of one law and of one size, with standard error
    :math:`1 / (2 \sqrt{n + m})`, and at most what Bayes' rule attains, 1/2 plus half the total
    variation between the laws. A classifier that learns nothing finds 1/2 for any two.

    Data are scaled by x's mean and deviation. It runs on the host.

    Args:
      key: for the folds and the classifier's start.
      x: a sample, one example a row; examples of any shape are flattened.
      y: another sample of examples of the same shape, best of the same size.
      folds: into how many parts the samples are cut, each classified by what the others taught.
      classifier: anything with scikit-learn's ``fit(x, labels)`` and ``predict(x)`` that its
        ``clone`` copies; by default a perceptron with two hidden layers of ten units a dimension.

    Returns:
      The accuracy over all examples.

    Raises:
      ValueError: when examples differ in shape, are fewer than the folds, or are not finite.

    Reference:
      D. Lopez-Paz, M. Oquab, "Revisiting Classifier Two-Sample Tests", ICLR 2017; the
      classifier and the folds are those of J. Lueckmann et al., "Benchmarking Simulation-Based
      Inference", AISTATS 2021, appendix, with a mean over examples in place of one over folds.
    """
    from sklearn.base import clone
    from sklearn.model_selection import KFold, cross_val_predict
    from sklearn.neural_network import MLPClassifier

    check_key(key)
    if folds < 2:
        raise ValueError(f"folds must be at least 2, got {folds}; 5 is usual.")
    x, y = map(np.asarray, check_samples(jax.numpy.asarray(x), jax.numpy.asarray(y), folds))
    scale = x.std(axis=0)
    if not (scale > 0).all():
        still = np.flatnonzero(scale == 0).tolist()
        raise ValueError(f"the entries {still} of x do not vary. Leave them out.")
    order, start = jax.random.randint(key, (2,), 0, 2**31 - 1).tolist()
    if classifier is None:
        units = 10 * x.shape[1]
        classifier = MLPClassifier(
            hidden_layer_sizes=(units, units), max_iter=1000, random_state=start
        )
    both = (np.concatenate([x, y]) - x.mean(axis=0)) / scale
    labels = np.repeat([0, 1], [len(x), len(y)])
    parts = KFold(folds, shuffle=True, random_state=order)
    found = cross_val_predict(clone(classifier), both, labels, cv=parts)
    return float(np.mean(found == labels))
