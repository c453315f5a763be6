import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxinf.nets import convolution


def native(x, kernel, strides, padding):
    return lax.conv_general_dilated(
        x, kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def inputs(n, h, w, c, a, b, d, dtype=np.float64):
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(n, h, w, c)), rng.normal(size=(a, b, c, d))
    return jnp.asarray(x, dtype), jnp.asarray(kernel, dtype)


CASES = [
    ((2, 8, 8, 3, 3, 3, 4), (1, 1), "SAME"),
    ((1, 7, 6, 2, 3, 3, 2), (2, 2), "SAME"),
    ((2, 8, 6, 2, 3, 2, 3), (2, 1), "VALID"),
    ((2, 5, 5, 1, 1, 1, 2), (1, 1), "SAME"),
    ((1, 6, 5, 2, 2, 4, 2), (1, 3), ((2, 0), (1, 3))),
    ((1, 2, 2, 2, 5, 5, 2), (1, 1), "SAME"),
]


@pytest.mark.parametrize(("sizes", "strides", "padding"), CASES)
def test_values_and_gradients_equal_the_native_convolution(x64, sizes, strides, padding):
    x, kernel = inputs(*sizes)

    def both(function):
        def value(x, kernel):
            y = function(x, kernel, strides, padding)
            return jnp.sum(jnp.sin(y)), y

        return jax.jit(jax.value_and_grad(value, (0, 1), has_aux=True))(x, kernel)

    ours, theirs = both(convolution), both(native)
    # Sums of at most 100 terms of unit size in float64.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), ours, theirs)


def test_forward_mode_vmap_and_scan(x64):
    x, kernel = inputs(3, 4, 4, 2, 3, 3, 2)

    def loop(function):
        def one(image, kernel):
            return lax.scan(
                lambda h, _: (jnp.tanh(function(h[None], kernel, (1, 1), "SAME")[0]), None),
                image,
                length=3,
            )[0]

        mapped = jax.vmap(one, (0, None))
        return jax.jit(lambda *p: jax.jvp(mapped, p, p))(x, kernel)

    for ours, theirs in zip(loop(convolution), loop(native), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-12)


def test_bfloat16_accumulates_in_float32(x64):
    x, kernel = inputs(1, 4, 4, 256, 3, 3, 2, dtype=jnp.bfloat16)
    y = convolution(x, kernel, (1, 1), "SAME")
    assert y.dtype == jnp.bfloat16
    wide = [a.astype(jnp.float64) for a in (x, kernel)]
    exact = np.asarray(native(*wide, (1, 1), "SAME"))
    scale = np.asarray(native(*map(jnp.abs, wide), (1, 1), "SAME"))
    # One rounding of the output, and float32's over 2304 terms, which add up like a random walk.
    bound = 2.0**-8 * np.abs(exact) + 4 * 2304**0.5 * 2.0**-24 * scale
    assert np.all(np.abs(np.asarray(y, np.float64) - exact) <= bound)


def test_the_platform_lowered_for_decides():
    x, kernel = inputs(1, 4, 4, 2, 3, 3, 2, dtype=np.float32)
    traced = jax.jit(lambda x, kernel: convolution(x, kernel, (1, 1), "SAME")).trace(x, kernel)
    text = {p: traced.lower(lowering_platforms=(p,)).as_text() for p in ("cpu", "tpu")}
    assert "stablehlo.convolution" in text["tpu"]
    assert "stablehlo.convolution" not in text["cpu"]
    assert "stablehlo.dot_general" in text["cpu"]
    assert "stablehlo.dot_general" not in text["tpu"]


@pytest.mark.parametrize(
    "argument",
    [
        {"rhs_dilation": (2, 2)},
        {"lhs_dilation": (2, 1)},
        {"feature_group_count": 2},
        {"dimension_numbers": ("NCHW", "OIHW", "NCHW")},
    ],
)
def test_what_it_does_not_have_names_the_mend(argument):
    x, kernel = inputs(1, 4, 4, 4, 3, 3, 4, dtype=np.float32)
    with pytest.raises(ValueError, match=r"Use jax\.lax\.conv_general_dilated"):
        convolution(x, kernel, (1, 1), "SAME", **argument)
