import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinf import data, diagnostics


def scaled(x):
    return x.astype(np.float32) / 8 - 1


@pytest.fixture(scope="module")
def fitted():
    train, _ = data.digits()
    return diagnostics.kernel_classifier(scaled(train.x), train.label, classes=10)


def test_recognises_the_digits(fitted):
    _, test = data.digits()
    accuracy = np.mean(np.asarray(fitted.predict(jnp.asarray(scaled(test.x)))) == test.label)
    assert accuracy >= 0.98


def test_solves_the_regression(x64):
    rng = np.random.default_rng(0)
    x, labels = rng.normal(size=(12, 2, 2)), rng.integers(0, 3, 12)
    model = diagnostics.kernel_classifier(x, labels, classes=3, bandwidth=0.7, ridge=0.3)
    distance = np.sum((x[:, None] - x[None]) ** 2, axis=(2, 3))
    kernel = np.exp(-distance / (2 * 0.7**2))
    values = kernel @ model.weights
    # (K + ridge I) w = Y at the training examples.
    np.testing.assert_allclose(values + 0.3 * model.weights, np.eye(3)[labels], atol=1e-12)
    np.testing.assert_array_equal(model.predict(jnp.asarray(x)), np.argmax(values, axis=1))


def test_jit_vmap_and_one_compilation(fitted):
    _, test = data.digits()
    x = jnp.asarray(scaled(test.x[:6]))
    expected = fitted.predict(x)
    predict = jax.jit(chex.assert_max_traces(lambda model, x: model.predict(x), n=1))
    np.testing.assert_array_equal(predict(fitted, x), expected)
    np.testing.assert_array_equal(predict(jax.tree.map(lambda a: a * 1, fitted), x), expected)
    np.testing.assert_array_equal(
        jax.vmap(fitted.predict)(x.reshape(2, 3, 8, 8, 1)), expected.reshape(2, 3)
    )


def test_bad_arguments_name_the_mend(fitted):
    x, labels = np.zeros((3, 2)), np.array([0, 1, 2])
    with pytest.raises(ValueError, match=r"\[0, 2\)"):
        diagnostics.kernel_classifier(x, labels, classes=2)
    with pytest.raises(ValueError, match="one length"):
        diagnostics.kernel_classifier(x, labels[:2], classes=3)
    with pytest.raises(ValueError, match="positive"):
        diagnostics.kernel_classifier(x, labels, classes=3, ridge=0.0)
    with pytest.raises(ValueError, match="64 entries"):
        fitted.predict(jnp.ones((3, 5)))
