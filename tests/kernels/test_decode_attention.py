import jax.numpy as jnp
import numpy as np
import paged
import pytest
from jaxinf_kernels.attention import attention
from jaxinf_kernels.decode_attention import Blocks
from jaxinf_kernels.formats import E4M3, INT4, INT8, NVFP4
from paged import BLOCKS, EXTRAS, FORMS, Case, attend, relative

kernel, either = paged.kernel, paged.either


def rounded(a, dtype):
    return np.asarray(jnp.asarray(a, jnp.float32).astype(dtype), np.float64)


def emulated(case, counts, blocks, window=None, soft_cap=None, alibi=None, sinks=None):
    """The kernel's arithmetic, chunk by chunk, in float64, with its operands and its rounding."""
    q = np.asarray(case.q.astype(jnp.float32), np.float64)
    q = q if q.ndim == 4 else q[:, None]
    dtype, cache, out = case.q.dtype, case.cache, np.zeros(q.shape)
    repeats, size = q.shape[2] // cache.groups, cache.page_size
    keys, values = ([np.asarray(a, np.float64) for a in (
        half.widened(jnp.float64), jnp.ones(()) if half.scales is None else half.scales,
        jnp.ones(()) if half.channels is None else half.channels)]
        for half in (cache.keys, cache.values))  # fmt: skip
    together, most = max(1, blocks.tokens // size), max(1, blocks.rows // repeats)
    for b, i, h in np.ndindex(q.shape[:3]):
        g, at = h // repeats, int(case.lengths[b]) - int(counts[b]) + i
        if i >= counts[b] or at < 0:
            continue
        end = int(case.lengths[b]) - int(counts[b]) + min(counts[b], i // most * most + most)
        low = max(0, at - i % most - window + 1) // size if window else 0
        top = -np.inf if sinks is None else sinks[h]
        total, mean = float(sinks is not None), np.zeros(q.shape[3])
        for begin in range(low, -(-end // size), together):
            pages = case.table[b, begin : min(begin + together, -(-end // size))]
            logits, seen, value, weight = [], [], [], []
            for number, page in enumerate(pages):
                row = q[b, i, h]
                if cache.keys.channels is not None:
                    channels = keys[2][page, 0].reshape(cache.groups, -1)[g]
                    row = rounded(row.astype(np.float32) * channels.astype(np.float32), dtype)
                scale = keys[1][page, g] if keys[1].ndim else 1
                s = keys[0][page, :, g] @ row * scale * q.shape[3] ** -0.5
                j = (begin + number) * size + np.arange(size)
                s = s if soft_cap is None else soft_cap * np.tanh(s / soft_cap)
                logits.append(s if alibi is None else s - alibi[h] * (at - j))
                seen.append((j <= at) & (j > at - (window or np.inf)))
                value.append(values[0][page, :, g])
                weight.append(values[1][page, g] if values[1].ndim else np.ones(size))
            s, seen, value, weight = map(np.concatenate, (logits, seen, value, weight))
            if not seen.any():
                continue
            new = max(top, s[seen].max())
            p = np.where(seen, np.exp(np.where(seen, s, new) - new), 0)
            w = np.where(seen, rounded(p * np.where(seen, weight, 0), dtype), 0)
            fall = np.exp(top - new)
            total = total * fall + (p if values[1].ndim else w).sum()
            mean = mean * fall + w[seen] @ value[seen]
            top = new
        out[b, i, h] = mean / total
    return out.reshape(case.q.shape)


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("queries", [None, 5])
def test_kernel_is_its_emulation_in_float64(x64, kernel, form, queries):
    options = {} if queries is None else EXTRAS
    counts = [1, 1, 1] if queries is None else [5, 1, 3]
    given = {} if queries is None else {"query_lengths": jnp.asarray(counts)}
    run = attend(**given, **options)
    for seed in range(3):
        case = Case(form, seed, queries=queries, outliers=seed == 2)
        bound = 2.5e-3 if form is None else 3e-3
        assert relative(run(*case.arrays)[0], emulated(case, counts, BLOCKS, **options)) < bound


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_wide_queries_are_exact(x64, either, form):
    counts = jnp.asarray([5, 0, 3])
    case = Case(form, 4, queries=5, dtype=jnp.float32)
    out, lse = case(query_lengths=counts, **EXTRAS)
    expected, logs = case.reference(query_lengths=counts, **EXTRAS)
    assert relative(out, expected) < 2e-6
    there = np.isfinite(np.asarray(logs))
    np.testing.assert_array_equal(np.isfinite(np.asarray(lse)), there)
    np.testing.assert_allclose(np.asarray(lse)[there], logs[there], atol=1e-5)


# relative error of normal data and of data with two keys' channels five times as large, cosine, dB
GATES = {
    None: (2.5e-3, 2.5e-3, 0.99999, 52),
    INT8: (0.012, 0.032, 0.9999, 38),
    E4M3: (0.045, 0.045, 0.999, 27),
    INT4: (0.18, 0.18, 0.984, 15),
    NVFP4: (0.16, 0.2, 0.987, 16),
}


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_formats_keep_their_bounds(x64, kernel, form):
    sizes = dict(lengths=(512, 300), size=64, groups=1, repeats=4, d=128)
    run = attend(blocks=Blocks(tokens=256))
    smooth, outlying, cosine, decibels = GATES[form]
    for seed in range(3):
        case = Case(form, seed, **sizes)
        out, exact = (np.asarray(a, np.float64) for a in (run(*case.arrays)[0], case.exact()))
        error = relative(out, exact)
        assert error < smooth
        assert -20 * np.log10(error) > decibels
        assert np.sum(out * exact) > cosine * np.linalg.norm(out) * np.linalg.norm(exact)
        case = Case(form, seed, **sizes, outliers=True)
        error = relative(run(*case.arrays)[0], case.exact())
        assert error < outlying


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_it_is_attention_to_a_contiguous_cache(either, dtype):
    case = Case(None, 5, lengths=(48, 33), queries=4, dtype=dtype)
    out, lse = case(window=20, soft_cap=3.0, alibi=jnp.asarray(EXTRAS["alibi"]))
    for b, length in enumerate(case.lengths):
        k, v = (a[case.sequence == b] for a in (case.k, case.v))
        i, j = length - 4 + jnp.arange(4)[:, None], jnp.arange(length)[None]
        seen = (j <= i) & (j > i - 20)
        # of alibi a head's own zero of positions is of no account
        bias = -jnp.asarray(EXTRAS["alibi"])[:, None, None] * (i - j)[None]
        expected, logs = attention(
            case.q[b], k, v, mask=seen, bias=bias.astype(jnp.float32), soft_cap=3.0,
            return_lse=True,
        )  # fmt: skip
        bound = 3e-3 if dtype == jnp.bfloat16 else 2e-6
        assert relative(out[b].astype(jnp.float32), expected.astype(jnp.float32)) < bound
        np.testing.assert_allclose(lse[b], logs, atol=3e-3 if dtype == jnp.bfloat16 else 2e-6)
