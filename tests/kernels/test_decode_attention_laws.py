from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import paged
import pytest
from jaxinf_kernels import decode_attention as room
from jaxinf_kernels.attention import attention
from jaxinf_kernels.decode_attention import Blocks, api, decode_attention, tpu
from jaxinf_kernels.formats import E4M3, INT4, INT8, NVFP4
from jaxinf_kernels.operation import How
from paged import BLOCKS, EXTRAS, FORMS, Case, attend, relative

kernel, either = paged.kernel, paged.either


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_places_and_orders_do_not_matter_to_a_bit(either, form):
    case = Case(form, 6)
    out, lse = case()
    again = case()
    np.testing.assert_array_equal(out, again[0])
    np.testing.assert_array_equal(lse, again[1])
    q, cache, table, lengths = case.arrays
    pages = len(cache.keys.elements)
    order = np.random.default_rng(1).permutation(pages)
    moved = jax.tree.map(lambda a: jnp.zeros_like(a).at[order].set(a), cache)
    elsewhere = jnp.where(table < pages, jnp.asarray(order)[jnp.minimum(table, pages - 1)], table)
    other = attend()(q, moved, elsewhere, lengths)
    np.testing.assert_array_equal(out, other[0])
    turn = np.array([2, 0, 1])
    turned = attend()(q[turn], cache, table[turn], lengths[turn])
    np.testing.assert_array_equal(out[turn], turned[0])
    np.testing.assert_array_equal(lse[turn], turned[1])


@pytest.mark.parametrize("form", [None, INT8], ids=str)
def test_no_sequence_gives_zero(either, form):
    case = Case(form, 7, lengths=(0, 0))
    out, lse = case()
    np.testing.assert_array_equal(np.asarray(out, np.float32), 0)
    np.testing.assert_array_equal(lse, -np.inf)
    out, lse = case(sinks=jnp.asarray(EXTRAS["sinks"]))
    np.testing.assert_array_equal(np.asarray(out, np.float32), 0)
    np.testing.assert_allclose(lse, np.broadcast_to(EXTRAS["sinks"], (2, 4)), rtol=1e-6)


@pytest.mark.parametrize("form", [None, INT4], ids=str)
def test_ragged_queries_are_those_of_a_filled_array(x64, either, form):
    case, counts = Case(form, 8, queries=5, lengths=(61, 0, 17, 33)), [5, 0, 3, 1]
    out, lse = case(query_lengths=jnp.asarray(counts), window=24)
    expected = case.reference(query_lengths=jnp.asarray(counts), window=24)[0]
    assert relative(out, expected) < 3e-3
    flat = jnp.concatenate([q[:n] for q, n in zip(case.q, counts, strict=True)])
    flat = jnp.concatenate([flat, flat[:2]])  # two that are nobody's
    offsets = jnp.asarray(np.concatenate([[0], np.cumsum(counts)]))
    found, logs = attend(window=24, offsets=offsets)(flat, *case.arrays[1:])
    np.testing.assert_array_equal(np.asarray(found[-2:], np.float32), 0)
    np.testing.assert_array_equal(logs[-2:], -np.inf)
    start = 0
    for b, n in enumerate(counts):
        np.testing.assert_array_equal(found[start : start + n], out[b, :n])
        np.testing.assert_array_equal(logs[start : start + n], lse[b, :n])
        np.testing.assert_array_equal(np.asarray(out[b, n:], np.float32), 0)
        start += n


@pytest.mark.parametrize("form", [None, E4M3], ids=str)
def test_pages_before_the_window_are_not_read(either, form):
    case = Case(form, 9, lengths=(64, 50))
    before = case(window=17)
    q, cache, table, lengths = case.arrays
    gone = table.at[:, :2].set(10**6)
    after = attend(window=17)(q, cache, gone, lengths)
    np.testing.assert_array_equal(before[0], after[0])
    assert np.all(np.isfinite(np.asarray(after[0], np.float32)))


def test_only_pages_that_are_seen_are_planned():
    case = Case(INT8, 9, lengths=(64, 1, 0, 50))
    problem = tpu.Problem(None, 1, (False, False), 1.0, None, 17, How())
    first = jnp.asarray(case.lengths)[None] - 1
    given = tpu.Operands(
        jnp.zeros((1, 4, 2, 2, 32)), jnp.arange(4)[None], first, first + 1,
        jnp.asarray(case.table)[None], None, None, jax.tree.map(lambda a: a[None], case.cache),
    )  # fmt: skip
    sizes = tpu._sizes(given, BLOCKS, 4)
    scalars = tpu._inputs(problem, given, 1, 4, sizes)[1]
    pages = np.maximum(np.asarray(scalars.high) - np.asarray(scalars.low), 0)
    np.testing.assert_array_equal(pages, [2, 1, 0, 2])


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_equal_values_are_returned(either, form):
    case = Case(form, 10)
    cache = room.write(case.cache, case.k, jnp.ones_like(case.v), case.place)
    out = np.asarray(attend()(case.q, cache, *case.arrays[2:])[0], np.float64)[[0, 2]]
    assert np.max(np.abs(out - 1)) <= (0 if form is None else 2.0**-8)


@pytest.mark.parametrize("form", [None, NVFP4], ids=str)
def test_vmap_is_a_loop(form):
    cases = [Case(form, seed) for seed in (11, 12)]
    both = jax.tree.map(lambda *a: jnp.stack(a), *(case.arrays for case in cases))
    out, lse = jax.vmap(attend())(*both)
    for case, o, s in zip(cases, out, lse, strict=True):
        one = case()
        np.testing.assert_array_equal(o, one[0])
        np.testing.assert_array_equal(s, one[1])
    q = jnp.stack([case.q for case in cases])
    shared = jax.vmap(attend(), in_axes=(0, None, None, None))(q, *cases[0].arrays[1:])
    np.testing.assert_array_equal(shared[0][0], out[0])


@pytest.mark.parametrize("form", [None, NVFP4], ids=str)
def test_a_batch_in_the_kernel_is_a_loop(monkeypatch, form):
    given = []

    def noted(*arrays, spec):
        given.append((arrays, spec))
        return paged.interpreted(*arrays, spec=spec)

    monkeypatch.setattr(api, "_decode_attention", noted)
    for seed in (11, 12):
        decode_attention(*Case(form, seed).arrays, blocks=Blocks(tokens=32, rows=4, cores=2))
    (first, spec), (second, _) = given
    both = [jnp.concatenate(pair) for pair in zip(first, second, strict=True)]
    out = paged.interpreted(*both, spec=spec)
    for number, own in enumerate((first, second)):
        for a, b in zip(out, paged.interpreted(*own, spec=spec), strict=True):
            np.testing.assert_array_equal(a[number], b[0])
    shared = [b if i == 0 else a for i, (a, b) in enumerate(zip(first, both, strict=True))]
    np.testing.assert_array_equal(paged.interpreted(*shared, spec=spec)[0][0], out[0][0])


def test_gradients_to_a_cache_in_full_precision_are_those_of_attention(x64):
    case = Case(None, 13, lengths=(20, 9), queries=3, dtype=jnp.float64)
    q, _, table, lengths = case.arrays
    options = dict(soft_cap=3.0, window=12, sinks=jnp.asarray(EXTRAS["sinks"]))

    def decoded(q, k, v):
        empty = room.empty(len(case.cache.keys.elements), 16, 2, 32, dtype=jnp.float64)
        cache = room.write(empty, k, v, case.place)
        return attend(**options)(q, cache, table, lengths)[0]

    def plain(q, k, v):
        outs = []
        for b, length in enumerate(case.lengths):
            mine = np.flatnonzero(case.sequence == b)
            i, j = length - 3 + jnp.arange(3)[:, None], jnp.arange(length)[None]
            mask = (j <= i) & (j > i - 12)
            outs.append(attention(q[b], k[mine], v[mine], mask=mask, soft_cap=3.0,
                                  sinks=options["sinks"]))  # fmt: skip
        return jnp.stack(outs)

    args = q, case.k, case.v
    np.testing.assert_allclose(decoded(*args), plain(*args), rtol=1e-12, atol=1e-13)
    got, expected = (
        jax.jit(jax.grad(lambda *a, f=f: jnp.sum(jnp.cos(f(*a))), argnums=(0, 1, 2)))(*args)
        for f in (decoded, plain)
    )
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)
    moved = jax.jit(lambda *a: jax.jvp(decoded, a, a)[1])(*args)
    np.testing.assert_allclose(moved, jax.jvp(plain, args, args)[1], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("form", FORMS[1:], ids=str)
def test_a_cache_in_few_bits_has_no_derivative(form):
    case = Case(form, 14)
    rest = case.arrays[1:]
    value = lambda q: jnp.sum(attend()(q, *rest)[0].astype(jnp.float32))  # noqa: E731
    with pytest.raises(TypeError, match=r"attention\.attention"):
        jax.grad(value)(case.q)
    with pytest.raises(TypeError, match=r"attention\.attention"):
        jax.jvp(value, (case.q,), (case.q,))
    assert np.isfinite(value(jax.lax.stop_gradient(case.q)))


@pytest.mark.parametrize("form", [None, INT8, INT4, NVFP4], ids=str)
def test_groups_and_sequences_are_shared_among_devices(form):
    case = Case(form, 15, lengths=(40, 7), groups=4, repeats=2)
    mesh = jax.sharding.Mesh(np.array(jax.devices()).reshape(2, 4), ("sequences", "groups"))
    spec = jax.sharding.PartitionSpec

    def split(path, a):
        name = path[-1].name
        groups = (None, "groups", None) if name in ("scales", "blocks") else (None, None, "groups")
        return spec(*groups)

    cache = jax.tree_util.tree_map_with_path(split, case.cache)
    mapped = jax.jit(
        jax.shard_map(
            partial(decode_attention, blocks=BLOCKS, return_lse=True),
            mesh=mesh,
            in_specs=(spec("sequences", "groups"), cache, spec("sequences"), spec("sequences")),
            out_specs=spec("sequences", "groups"),
        )
    )
    for a, b in zip(mapped(*case.arrays), case(), strict=True):
        np.testing.assert_allclose(
            np.asarray(a, np.float32), np.asarray(b, np.float32), rtol=1e-6, atol=1e-6
        )


def test_bad_arguments_name_the_mend():
    case = Case(None, 0)
    q, cache, table, lengths = case.arrays
    for error, match, args, options in [
        (TypeError, "astype", (q.astype(jnp.float32), cache, table, lengths), {}),
        (ValueError, "multiple of its groups", (q[:, :3], cache, table, lengths), {}),
        (ValueError, "as many numbers", (q[..., :8], cache, table, lengths), {}),
        (ValueError, "vmap", (q[:2], cache, table, lengths), {}),
        (ValueError, "row for each", (q, cache, table[:2], lengths), {}),
        (ValueError, "or offsets", (q[:, None], cache, table, lengths),
         {"query_lengths": lengths, "offsets": jnp.arange(4)}),
        (ValueError, "query_lengths", (q, cache, table, lengths), {"query_lengths": lengths}),
        (ValueError, "alibi must have", (q, cache, table, lengths), {"alibi": jnp.ones(3)}),
        (ValueError, "sinks must have", (q, cache, table, lengths), {"sinks": jnp.ones(3)}),
        (ValueError, "leave it out", (q, cache, table, lengths), {"soft_cap": 0.0}),
        (ValueError, "leave it out", (q, cache, table, lengths), {"window": 0}),
        (ValueError, "no chip is named", (q, cache, table, lengths), {"chip": "v2"}),
        (NotImplementedError, "another platform", (q, cache, table, lengths),
         {"implementation": "tpu"}),
    ]:  # fmt: skip
        with pytest.raises(error, match=match):
            decode_attention(*args, **options)
