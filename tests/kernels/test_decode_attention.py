from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.pallas.mosaic.interpret import interpret_pallas_call
from jax.experimental.pallas import tpu as pltpu
from jaxinf_kernels import decode_attention as room
from jaxinf_kernels.attention import attention
from jaxinf_kernels.decode_attention import Blocks, api, decode_attention, tpu
from jaxinf_kernels.formats import E4M3, INT4, INT8, NVFP4

FORMS = [None, INT8, INT4, E4M3, NVFP4]
EXTRAS = {
    "window": 20,
    "soft_cap": 3.0,
    "alibi": jnp.array([0.1, 0.2, 0.05, 0.0], jnp.float32),
    "sinks": jnp.array([0.5, 1.0, -1.0, 0.0], jnp.float32),
}
BLOCKS = Blocks(tokens=32, rows=4)


def interpreted(*arrays, spec):
    """The kernel in a simulation of a TPU, where memory is NaN until it is written."""
    params = pltpu.InterpretParams(detect_races=True, uninitialized_memory="nan")
    return tpu.attend(*arrays, spec=spec, interpret=params)


@pytest.fixture
def kernel(monkeypatch):
    """Whatever decode_attention is asked for is done by the kernel, and without races."""
    monkeypatch.setattr(api, "_decode_attention", interpreted)
    yield
    races = interpret_pallas_call.races
    assert races is not None and not races.races_found


@pytest.fixture(params=["xla", "kernel"])
def either(request):
    if request.param == "kernel":
        request.getfixturevalue("kernel")
    return request.param


def attend(**options):
    return jax.jit(partial(decode_attention, **{"blocks": BLOCKS, "return_lse": True, **options}))


class Case:
    """Sequences in a cache whose pages lie in any order, with NaN where nothing was written."""

    def __init__(self, form, seed=0, *, lengths=(61, 0, 17), size=16, groups=2, repeats=2, d=32,
                 queries=None, dtype=jnp.bfloat16, outliers=False):  # fmt: skip
        rng = np.random.default_rng(seed)
        pages = [-(-length // size) for length in lengths]
        width, count = max(pages) + 1, sum(pages) + 2
        order = rng.permutation(count)
        self.table = np.full((len(lengths), width), 10**6, np.int32)
        for row, n in zip(self.table, pages, strict=True):
            row[:n], order = order[:n], order[n:]
        self.lengths = np.array(lengths, np.int32)
        self.cache = room.empty(count, size, groups, d, form=form, dtype=dtype)
        if form is None:
            self.cache = jax.tree.map(lambda a: jnp.full_like(a, jnp.nan), self.cache)
        sequence = np.concatenate([np.full(n, i) for i, n in enumerate(lengths)])
        position = np.concatenate([np.arange(n) for n in lengths])
        k, v = rng.normal(size=(2, len(position), groups, d))
        if outliers:
            k[..., :2] *= 5
        self.k, self.v = (jnp.asarray(a, dtype) for a in (k, v))
        place = room.slots(self.cache, *map(jnp.asarray, (self.table, sequence, position)))
        self.place = place
        self.cache = room.write(self.cache, self.k, self.v, place)
        self.sequence = sequence
        shape = (len(lengths), groups * repeats, d)
        shape = shape if queries is None else (shape[0], queries, *shape[1:])
        self.q = jnp.asarray(rng.normal(size=shape), dtype)

    @property
    def arrays(self):
        return self.q, self.cache, jnp.asarray(self.table), jnp.asarray(self.lengths)

    def __call__(self, **options):
        return attend(**options)(*self.arrays)

    def reference(self, cache=None, **options):
        q = jnp.asarray(self.q, jnp.float64)
        q = q if q.ndim == 4 else q[:, None]
        out, lse = room.reference(q, cache or self.cache, *self.arrays[2:], **options)
        return out.reshape(self.q.shape), lse.reshape(self.q.shape[:-1])

    def exact(self, **options):
        """Float64 attention to the numbers that were written, unquantised."""
        size, (groups, d) = self.cache.page_size, self.k.shape[1:]
        wide = room.empty(len(self.cache.keys.elements), size, groups, d, dtype=jnp.float64)
        k, v = (a.astype(jnp.float64) for a in (self.k, self.v))
        return self.reference(room.write(wide, k, v, self.place), **options)[0]


def relative(a, b):
    a, b = (np.asarray(x, np.float64) for x in (a, b))
    return np.linalg.norm(a - b) / np.linalg.norm(b)


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


GATES = {
    None: (2.5e-3, 2.5e-3, 0.99999, 52),
    INT8: (0.012, 0.032, 0.9999, 38),
    E4M3: (0.045, 0.072, 0.999, 27),
    INT4: (0.18, 0.206, 0.984, 15),
    NVFP4: (0.16, 0.24, 0.987, 16),
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
        print(form, error)
        assert error < smooth
        assert -20 * np.log10(error) > decibels
        assert np.sum(out * exact) > cosine * np.linalg.norm(out) * np.linalg.norm(exact)
        case = Case(form, seed, **sizes, outliers=True)
        error = relative(run(*case.arrays)[0], case.exact())
        print(form, "outliers", error)
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
def test_ragged_queries_are_those_of_a_filled_array(either, form):
    case, counts = Case(form, 8, queries=5, lengths=(61, 0, 17, 33)), [5, 0, 3, 1]
    out, lse = case(query_lengths=jnp.asarray(counts), window=24)
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
    problem = tpu.Problem(None, 1, (False, False), 1.0, None, 17, api.How())
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
def test_vmap_is_a_loop(either, form):
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
    mesh = jax.make_mesh((2, 4), ("sequences", "groups"))
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
