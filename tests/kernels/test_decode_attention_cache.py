import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxinf_kernels import decode_attention as room
from jaxinf_kernels.formats import E4M3, E5M2, INT4, INT8, NVFP4, quantise

FORMS = [None, INT8, INT4, E4M3, NVFP4]
write = jax.jit(room.write)


def tokens(seed, n, groups=2, d=32):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(2, n, groups, d)), jnp.float32)


def empty(form, d=32):
    return room.empty(5, 16, 2, d, form=form, dtype=jnp.float32)


@pytest.mark.parametrize("form", [INT8, E4M3, NVFP4], ids=str)
def test_tokens_are_held_as_their_format_holds_them(form):
    k, v = tokens(0, 7)
    place = jnp.asarray([3, 79, 40, 0, 41, 17, 64])
    cache = write(empty(form), k, v, place)
    for x, read in zip((k, v), room.read(cache, place), strict=True):
        held = jax.vmap(jax.vmap(lambda a: quantise(a, form).dequantise()))(x)
        np.testing.assert_allclose(read, held, rtol=1e-6)
    pages = cache.keys.dequantise()
    np.testing.assert_array_equal(pages.reshape(-1, 2, 32)[place], room.read(cache, place)[0])


def test_full_precision_keeps_every_bit():
    k, v = tokens(1, 7)
    place = jnp.asarray([3, 79, 40, 0, 41, 17, 64])
    read = room.read(write(empty(None), k, v, place), place)
    np.testing.assert_array_equal(jnp.stack(read), jnp.stack([k, v]))


def test_channels_of_a_page_share_a_scale():
    k, v = tokens(2, 32)
    place = jnp.concatenate([jnp.arange(16) + 32, jnp.arange(16)])
    cache = write(empty(INT4), k, v, place)
    for page, part in ((2, k[:16]), (0, k[16:])):
        held = quantise(part.reshape(16, 64), INT4, axis=0)
        np.testing.assert_array_equal(cache.keys.elements[page], held.elements)
        np.testing.assert_allclose(cache.keys.channels[page], held.scales, rtol=1e-6)
    values = jax.vmap(jax.vmap(lambda a: quantise(a, INT4).dequantise()))(v)
    np.testing.assert_allclose(room.read(cache, place)[1], values, rtol=1e-6)


def test_appended_tokens_let_scales_grow_and_nothing_else():
    k, v = tokens(3, 16)
    cache = write(empty(INT4), k[:8], v[:8], jnp.arange(8))
    small = write(cache, 0.01 * k[8:9], v[8:9], jnp.asarray([8]))
    np.testing.assert_array_equal(small.keys.elements[0, :8], cache.keys.elements[0, :8])
    np.testing.assert_array_equal(small.keys.channels, cache.keys.channels)
    for i in range(8, 16):
        cache = write(cache, k[i : i + 1], v[i : i + 1], jnp.asarray([i]))
    exact = np.abs(np.asarray(k).reshape(16, 64)).max(0) / 7
    np.testing.assert_allclose(cache.keys.channels[0, 0], exact, rtol=1e-6)
    # each growth rounds once more, by half a step of what is then the scale
    error = np.abs(np.asarray(room.read(cache, jnp.arange(16))[0] - k)).reshape(16, 64)
    assert np.all(error <= 9 * exact / 2 * (1 + 1e-5))
    whole = write(empty(INT4), k, v, jnp.arange(16))
    once = np.asarray(room.read(whole, jnp.arange(16))[0] - k)
    assert np.linalg.norm(error) < 1.5 * np.linalg.norm(once)


def test_a_page_forgets_what_lies_behind_the_first_token_written():
    k, v = tokens(4, 16)
    used = write(empty(INT4), 100 * k, v, jnp.arange(16))
    fresh, clean = (write(c, k[:3], v[:3], jnp.arange(3)) for c in (used, empty(INT4)))
    np.testing.assert_array_equal(fresh.keys.elements[0], clean.keys.elements[0])
    np.testing.assert_array_equal(fresh.keys.channels[0], clean.keys.channels[0])
    bad = write(empty(INT4), k.at[0, 1, 5].set(jnp.nan), v, jnp.arange(16))
    read = np.isnan(room.read(bad, jnp.arange(16))[0])
    assert read[:, 1, 5].all()
    assert read.sum() == 16
    again = write(bad, k, v, jnp.arange(16))
    assert np.isfinite(room.read(again, jnp.arange(16))[0]).all()


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_other_tokens_keep_their_bits_and_bad_slots_are_left_out(form):
    k, v = tokens(5, 20)
    cache = write(empty(form), k[:16], v[:16], jnp.arange(16) + 16)
    more = write(cache, k[16:], v[16:], jnp.asarray([48, -1, 80, 49]))
    for a, b in zip(jax.tree.leaves(cache), jax.tree.leaves(more), strict=True):
        np.testing.assert_array_equal(np.asarray(a[:3], np.float32), np.asarray(b[:3], np.float32))
        np.testing.assert_array_equal(np.asarray(a[4], np.float32), np.asarray(b[4], np.float32))
    read = room.read(more, jnp.asarray([48, 49]))[1]
    assert np.linalg.norm(read - v[np.array([16, 19])]) < 0.2 * np.linalg.norm(read)


def test_a_bound_on_pages_changes_nothing():
    k, v = tokens(6, 20)
    place = jnp.arange(20) + 30
    some = room.write(empty(INT4), k, v, place, most_pages=3)
    for a, b in zip(*map(jax.tree.leaves, (some, write(empty(INT4), k, v, place))), strict=True):
        np.testing.assert_array_equal(a, b)


def test_slots_follow_the_page_table():
    table = jnp.asarray([[3, 1], [0, 4]])
    where = room.slots(empty(None), table, jnp.asarray([0, 0, 1, 1, 1]),
                       jnp.asarray([0, 17, 5, 31, 32]))  # fmt: skip
    np.testing.assert_array_equal(where, [48, 17, 5, 79, -1])


def test_bytes_of_a_token():
    # a key and a value of 128 numbers in each of 8 groups, pages of 128 tokens
    def held(form, dtype=jnp.bfloat16):
        return room.empty(1, 128, 8, 128, form=form, dtype=dtype).bytes_per_token

    assert held(None) == 2 * 1024 * 2
    assert held(INT8) == held(E4M3) == 2 * (1024 + 8 * 4)
    assert held(INT4) == (512 + 1024 * 4 / 128) + (512 + 8 * 4)
    assert held(NVFP4) == 2 * (512 + 64 + 8 * 4)


def test_bad_arguments_name_the_mend():
    with pytest.raises(ValueError, match="take one of int8"):
        empty(E5M2)
    with pytest.raises(ValueError, match="fill them up"):
        empty(NVFP4, d=24)
    k, v = tokens(0, 3)
    with pytest.raises(ValueError, match="slots of this cache"):
        room.write(empty(None), k, v[:, :, :16], jnp.arange(3))


def filled(form, k, v, pages, size=16):
    """A cache of one sequence, in pages of a given order, and its table."""
    cache = room.empty(len(pages), size, *k.shape[1:], form=form, dtype=k.dtype)
    table = jnp.asarray(pages, jnp.int32)[None]
    position = jnp.arange(len(k), dtype=jnp.int32)
    place = room.slots(cache, table, jnp.zeros(len(k), jnp.int32), position)
    return write(cache, k, v, place), table


@pytest.mark.parametrize("pages", [(0, 1, 2), (2, 0, 1)])
def test_pages_in_any_order_are_one_sequence(x64, pages):
    """Against the softmax written out."""
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.normal(size=(n, 2, 64)), jnp.float32) for n in (1, 40, 40))
    cache, table = filled(None, k, v, pages)
    found = room.decode_attention(q, cache, table, jnp.asarray([40], jnp.int32))
    wide = [np.asarray(a, np.float64) for a in (q[0], k, v)]
    logits = np.einsum("hd,mhd->hm", wide[0], wide[1]) / 8
    weights = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(found[0], np.einsum("hm,mhd->hd", weights, wide[2]), atol=2e-6)


def test_few_bits_lose_less_of_keys_channel_by_channel(x64):
    """Keys with large channels: a scale for each channel, or one for each token."""
    rng = np.random.default_rng(1)
    q, k, v = (jnp.asarray(rng.normal(size=(n, 2, 64)), jnp.float32) for n in (1, 48, 48))
    k = k.at[..., :2].mul(10)
    length, pages = jnp.asarray([48], jnp.int32), (1, 2, 0)
    exact = room.decode_attention(q, *filled(None, k, v, pages), length)
    channels = room.decode_attention(q, *filled(INT4, k, v, pages), length)
    rounded = quantise(k, INT4).dequantise()
    tokens = quantise(v, INT4).dequantise()
    each = room.decode_attention(q, *filled(None, rounded, tokens, pages), length)
    lost = [float(jnp.linalg.norm(a - exact) / jnp.linalg.norm(exact)) for a in (channels, each)]
    assert lost[0] < 0.6 * lost[1]
