import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxinf_kernels import attention as room
from jaxinf_kernels.attention import attention


def reference(*args, **options):
    return room.reference(*args, **options)[0]


def inputs(seed, n=6, m=5, heads=2, d=8, dtype=np.float64):
    rng = np.random.default_rng(seed)
    draws = [rng.normal(size=(length, heads, d)) for length in (n, m, m)]
    return [jnp.asarray(a, dtype) for a in draws]


def masks(n=6, m=5, heads=2):
    rng = np.random.default_rng(9)
    per_head = rng.random((heads, n, m)) < 0.6
    per_head[1, 2] = False
    shared = per_head[0].copy()
    shared[4] = False
    return {"none": None, "shared": jnp.asarray(shared), "per_head": jnp.asarray(per_head)}


def by_hand(q, k, v, mask):
    q, k, v = (np.asarray(a, np.float64) for a in (q, k, v))
    n, heads, d = q.shape
    out = np.zeros((n, heads, v.shape[-1]))
    for h in range(heads):
        for i in range(n):
            seen = np.ones(len(k), bool)
            if mask is not None:
                seen = np.asarray(mask if mask.ndim == 2 else mask[h])[i]
            weights = np.where(seen, np.exp(k[:, h] @ q[i, h] / np.sqrt(d)), 0)
            if seen.any():
                out[i, h] = weights @ v[:, h] / weights.sum()
    return out


@pytest.mark.parametrize("name", ["none", "shared", "per_head"])
def test_reference_is_the_formula(x64, name):
    q, k, v = inputs(0)
    mask = masks()[name]
    np.testing.assert_allclose(reference(q, k, v, mask=mask), by_hand(q, k, v, mask), rtol=1e-12)


def weighted(function, mask):
    """A function of q, k, v whose gradient sees every output."""

    def value(q, k, v):
        out = function(q, k, v, mask=mask)
        w = jnp.cos(jnp.arange(out.size, dtype=out.dtype)).reshape(out.shape)
        return jnp.sum(w * out)

    return jax.grad(value, argnums=(0, 1, 2))


@pytest.mark.parametrize("name", ["none", "shared", "per_head"])
def test_values_and_gradients_equal_the_reference(x64, name):
    q, k, v = inputs(1)
    mask = masks()[name]
    expected = reference(q, k, v, mask=mask)
    np.testing.assert_allclose(attention(q, k, v, mask=mask), expected, rtol=1e-12, atol=1e-14)
    chex.assert_trees_all_close(
        weighted(attention, mask)(q, k, v),
        weighted(reference, mask)(q, k, v),
        rtol=1e-11,
        atol=1e-13,
    )


@pytest.mark.parametrize("function", [reference, attention])
@pytest.mark.parametrize("name", ["shared", "per_head"])
def test_a_query_that_sees_nothing_gives_zero_and_finite_gradients(function, name):
    q, k, v = inputs(2, dtype=np.float32)
    mask = masks()[name]
    out = function(q, k, v, mask=mask)
    blind = (4, slice(None)) if name == "shared" else (2, 1)
    np.testing.assert_array_equal(out[blind], 0)
    gradients = weighted(function, mask)(q, k, v)
    chex.assert_tree_all_finite(gradients)
    np.testing.assert_array_equal(gradients[0][blind], 0)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_low_precision_accumulates_in_float32(x64, dtype):
    q, k, v = inputs(3, n=4, m=64, dtype=dtype)
    q = 8 * q  # logits of about ten, so that their rounding would show
    out = attention(q, k, v)
    assert out.dtype == dtype
    wide = [a.astype(jnp.float64) for a in (q, k, v)]
    exact, scale = reference(*wide), reference(*wide[:2], jnp.abs(wide[2]))
    logits = jnp.einsum("nhd,mhd->hnm", *map(jnp.abs, wide[:2])) / 8**0.5
    # Probabilities and output are rounded once each, half a unit in the last place; logits and
    # sums have the errors of float32 over 8 and 64 terms.
    single = 2.0**-24 * (2 * 10 * float(jnp.max(logits)) + 64)
    bound = (float(jnp.finfo(dtype).eps) + single) * scale
    assert np.all(np.abs(np.asarray(out, np.float64) - exact) <= bound)


@pytest.mark.parametrize("causal", [False, True])
def test_slopes_are_a_bias_that_falls_with_distance(x64, causal):
    q, k, v = inputs(5, n=7, m=7)
    slopes = jnp.asarray([0.5, 0.25])
    apart = jnp.abs(jnp.arange(7)[:, None] - jnp.arange(7)[None]).astype(jnp.float64)
    mask = jnp.tril(jnp.ones((7, 7), bool)) if causal else None
    found = attention(q, k, v, mask=mask, alibi=slopes)
    written = attention(q, k, v, mask=mask, bias=-slopes[:, None, None] * apart[None])
    np.testing.assert_allclose(found, written, rtol=1e-12, atol=1e-14)


def test_large_logits_stay_finite():
    q, k, v = inputs(4, dtype=np.float32)
    for function in (reference, attention):
        chex.assert_tree_all_finite(function(100 * q, 100 * k, v))


def test_vmap_is_a_loop(x64):
    examples = [inputs(seed) for seed in range(3)]
    batch = [jnp.stack(a) for a in zip(*examples, strict=True)]
    mask = masks()["per_head"]
    mapped = jax.jit(jax.vmap(lambda q, k, v: attention(q, k, v, mask=mask)))(*batch)
    each = jnp.stack([attention(*e, mask=mask) for e in examples])
    np.testing.assert_allclose(mapped, each, rtol=1e-12, atol=1e-14)


def test_bad_arguments_name_the_mend():
    q, k, v = inputs(0, dtype=np.float32)
    with pytest.raises(TypeError, match="astype"):
        attention(q.astype(jnp.bfloat16), k, v)
    with pytest.raises(ValueError, match="mask must be"):
        attention(q, k, v, mask=jnp.ones((5, 6), bool))
