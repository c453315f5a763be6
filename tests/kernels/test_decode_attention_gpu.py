from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxinf_kernels import decode_attention as room
from jaxinf_kernels.decode_attention import Blocks, api, decode_attention, gpu, xla
from jaxinf_kernels.formats import E4M3, INT4, INT8, NVFP4
from jaxinf_kernels.operation import OPERATIONS, choose
from paged import EXTRAS, FORMS, Case, relative

INTERPRET = plgpu.InterpretGPUParams(detect_races=True, uninitialized_memory="nan")
BLOCKS = Blocks(tokens=64, rows=8, cores=3, memory=64 * 1024)
SIZES = dict(lengths=(250, 0, 17), groups=1, repeats=2, d=64)


@partial(jax.jit, static_argnames="spec")
def interpreted(*arrays, spec):
    """The kernel in a simulation of a GPU, which raises at a race."""
    return gpu.attend(*arrays, spec=spec, interpret=INTERPRET)


@pytest.fixture
def kernel(monkeypatch):
    monkeypatch.setattr(api, "_decode_attention", interpreted)


def made(form, seed=0, **sizes):
    return Case(form, seed, **{"size": 64 if form in (INT4, NVFP4) else 16, **SIZES, **sizes})


def attend(**options):
    return jax.jit(partial(decode_attention, **{"blocks": BLOCKS, "return_lse": True, **options}))


def rounded(a):
    return np.asarray(jnp.asarray(a, jnp.float32).astype(jnp.bfloat16), np.float64)


def emulated(case, counts, parts, tokens=64, window=None, soft_cap=None, alibi=None, sinks=None):
    """The kernel's arithmetic, part by part, in float64, with its operands and its rounding."""
    q, cache = np.asarray(case.q.astype(jnp.float32), np.float64), case.cache
    q = q if q.ndim == 4 else q[:, None]
    out, repeats, size = np.zeros(q.shape), q.shape[2] // cache.groups, cache.page_size
    keys, values = ([np.asarray(a, np.float64) for a in (
        half.widened(jnp.float64), jnp.ones(()) if half.scales is None else half.scales,
        jnp.ones(()) if half.channels is None else half.channels)]
        for half in (cache.keys, cache.values))  # fmt: skip
    for b, i, h in np.ndindex(q.shape[:3]):
        g, at = h // repeats, int(case.lengths[b]) - int(counts[b]) + i
        if i >= counts[b] or at < 0:
            continue
        j = np.arange(at + 1)
        page, place = case.table[b, j // size], j % size
        row = np.broadcast_to(q[b, i, h], (len(j), q.shape[3]))
        if cache.keys.channels is not None:
            channels = keys[2].reshape(-1, cache.groups, q.shape[3])[page, g]
            row = rounded(row.astype(np.float32) * channels.astype(np.float32))
        s = np.sum(keys[0][page, place, g] * row, axis=1) * q.shape[3] ** -0.5
        s = s * keys[1][page, g, place] if keys[1].ndim else s
        s = s if soft_cap is None else soft_cap * np.tanh(s / soft_cap)
        s = s if alibi is None else s - alibi[h] * (at - j)
        scale = values[1][page, g, place] if values[1].ndim else np.ones(len(j))
        seen = j > at - (window or np.inf)
        start = max(0, int(case.lengths[b]) - int(counts[b]) - (window or 10**9) + 1) // tokens
        each = -(-(-(-int(case.lengths[b]) // tokens) - start) // parts)
        top, whole, mean = (-np.inf, 0, 0) if sinks is None else (sinks[h], 1, 0)
        for part in range(parts):
            low = start + part * each
            own = -np.inf, 0.0, np.zeros(values[0].shape[-1])
            for chunk in range(low, low + each):
                here = seen & (j // tokens == chunk)
                if here.any():
                    new = max(own[0], s[here].max())
                    p, fall = np.exp(s[here] - new), np.exp(own[0] - new)
                    w = rounded(p * scale[here])
                    more = np.sum(p if values[1].ndim else w)
                    own = (new, own[1] * fall + more,
                           own[2] * fall + w @ values[0][page, place, g][here])  # fmt: skip
            new = max(top, own[0])
            if np.isfinite(new):
                a, c = np.exp(top - new), np.exp(own[0] - new)
                top, whole, mean = new, whole * a + own[1] * c, mean * a + own[2] * c
        out[b, i, h] = mean / whole
    return out.reshape(case.q.shape)


@pytest.mark.parametrize(
    ("queries", "form"), [*((None, f) for f in FORMS), (5, None), (5, INT8), (5, INT4)], ids=str
)
def test_kernel_is_its_emulation_in_float64(x64, kernel, form, queries):
    alibi, sinks = (EXTRAS[name][:2] for name in ("alibi", "sinks"))
    options = {} if queries is None else dict(window=150, soft_cap=3.0, alibi=alibi, sinks=sinks)
    counts = [1, 1, 1] if queries is None else [5, 1, 3]
    given = {} if queries is None else {"query_lengths": jnp.asarray(counts)}
    blocks = Blocks(tokens=64, rows=8, cores=3 if queries is None else 9, memory=64 * 1024)
    run = attend(blocks=blocks, **given, **options)
    for seed in range(3 if form is None else 2):
        case = made(form, seed, queries=queries, outliers=seed == 1)
        out, lse = run(*case.arrays)
        bound = 2.5e-3 if form is None else 3e-3
        assert relative(out, emulated(case, counts, 2, **options)) < bound
        logs = case.reference(query_lengths=jnp.asarray(counts), **options)[1]
        there = np.isfinite(logs)
        np.testing.assert_array_equal(np.isfinite(np.asarray(lse)), there)
        # of a cache without scales rounded weights are summed, of INT4 queries are rounded
        np.testing.assert_allclose(
            np.asarray(lse)[there], logs[there], atol=3e-3 if form in (None, INT4) else 1e-5
        )


@pytest.mark.parametrize("form", [None, NVFP4], ids=str)
def test_places_and_orders_do_not_matter_to_a_bit(kernel, form):
    case = made(form, 6, lengths=(130, 0, 17))
    run = attend()
    out, lse = run(*case.arrays)
    q, cache, table, lengths = case.arrays
    pages = len(cache.keys.elements)
    order = np.random.default_rng(1).permutation(pages)
    moved = jax.tree.map(lambda a: jnp.zeros_like(a).at[order].set(a), cache)
    elsewhere = jnp.where(table < pages, jnp.asarray(order)[jnp.minimum(table, pages - 1)], table)
    turn = np.array([2, 0, 1])
    for again, back in (
        (run(*case.arrays), slice(None)),
        (run(q, moved, elsewhere, lengths), slice(None)),
        (run(q[turn], cache, table[turn], lengths[turn]), np.argsort(turn)),
    ):
        np.testing.assert_array_equal(out, again[0][back])
        np.testing.assert_array_equal(lse, again[1][back])


@pytest.mark.parametrize("form", [None, INT4], ids=str)
def test_equal_values_are_returned(kernel, form):
    case = made(form, 10, lengths=(130, 0, 17))
    cache = room.write(case.cache, case.k, jnp.ones_like(case.v), case.place)
    out, lse = attend()(case.q, cache, *case.arrays[2:])
    error = np.abs(np.asarray(out, np.float64)[[0, 2]] - 1)
    assert np.max(error) <= (0 if form is None else 2.0**-8)
    np.testing.assert_array_equal(np.asarray(out[1], np.float32), 0)
    np.testing.assert_array_equal(lse[1], -np.inf)


def test_pages_before_the_window_are_not_read(kernel):
    case = made(E4M3, 9, lengths=(300, 50))
    run = attend(window=100)
    before = run(*case.arrays)
    q, cache, table, lengths = case.arrays
    after = run(q, cache, table.at[0, :12].set(10**6), lengths)  # whole fetches of 64
    np.testing.assert_array_equal(before[0], after[0])
    assert np.all(np.isfinite(np.asarray(after[0], np.float32)))


@pytest.mark.parametrize(("tokens", "size"), [(64, 192), (128, 32)])
def test_pages_of_any_size_are_fetched(x64, kernel, tokens, size):
    case = made(INT8, 3, size=size, lengths=(140,), groups=1, repeats=12)
    # two tiles of rows, keys and values of different widths
    cache = room.empty(len(case.cache.keys.elements), size, 1, 64, e=128, form=INT8)
    v = jnp.concatenate([case.v, -case.v], axis=-1)
    cache = room.write(cache, case.k, v, case.place)
    blocks = Blocks(tokens=tokens, rows=8, cores=1, memory=200 * 1024)
    out = attend(blocks=blocks)(case.q, cache, *case.arrays[2:])[0]
    expected = room.reference(case.q[:, None].astype(jnp.float64), cache, *case.arrays[2:])[0]
    assert relative(out, expected[:, 0]) < 3e-3


def test_a_batch_in_the_kernel_is_a_loop(monkeypatch):
    given = []

    def noted(*arrays, spec):
        given.append((arrays, spec))
        return interpreted(*arrays, spec=spec)

    monkeypatch.setattr(api, "_decode_attention", noted)
    for seed in (11, 12):
        case = made(INT8, seed, lengths=(70,))
        decode_attention(*case.arrays, blocks=BLOCKS, alibi=EXTRAS["alibi"][:2])
    (first, spec), (second, _) = given
    both = [jnp.concatenate(pair) for pair in zip(first, second, strict=True)]
    out = interpreted(*both, spec=spec)
    for number, own in enumerate((first, second)):
        for a, b in zip(out, interpreted(*own, spec=spec), strict=True):
            np.testing.assert_array_equal(a[number], b[0])
    shared = [b if i == 0 else a for i, (a, b) in enumerate(zip(first, both, strict=True))]
    np.testing.assert_array_equal(interpreted(*shared, spec=spec)[0][0], out[0][0])


def test_it_is_planned_for_the_chip(monkeypatch):
    def sizes(sequences, form=None, chip="h100", **more):
        case = made(form, lengths=(1,) * sequences, size=64, groups=8, repeats=4, d=128, **more)
        table = jnp.zeros((sequences, 512), jnp.int32)
        found = []

        def noted(*arrays, spec):
            given = spec.operands(arrays)
            blocks = gpu.blocks_for(spec.how.known)
            found.append(gpu._sizes(spec, given, blocks, spec.how.known.memory, 1, True))
            return gpu.attend(*arrays, spec=spec)

        monkeypatch.setattr(api, "_decode_attention", noted)
        q, cache, _, lengths = case.arrays
        jax.eval_shape(partial(decode_attention, chip=chip), q, cache, table, lengths)
        return found[0]

    few, many = sizes(1), sizes(40)
    assert few.parts * 8 <= 2 * 132 < (few.parts + 1) * 8  # two blocks of threads a core
    assert (many.parts, many.stages, many.rows, many.tokens) == (1, 3, 8, 64)
    assert sizes(1, INT4).parts > few.parts  # smaller ones, so that more fit
    assert sizes(1, chip="b200").parts > few.parts
    wide = sizes(1, queries=16)
    assert (wide.blocks, wide.tiles, wide.rows, wide.stages) == (2, 1, 32, 3)


def test_refusals_name_the_mend(monkeypatch):
    (primitive,) = (p for p in OPERATIONS if p.name == "decode_attention")

    def refused(form, size=64, d=64, dtype=jnp.bfloat16, **options):
        cache = jax.eval_shape(lambda: room.empty(2, size, 1, d, form=form, dtype=dtype))
        table, lengths = (jax.ShapeDtypeStruct(shape, jnp.int32) for shape in ((1, 2), (1,)))
        q, arrays, specs = jax.ShapeDtypeStruct((1, 4, d), dtype), [], []

        def noted(*given, spec):
            arrays.append(given)
            specs.append(spec)
            return xla.attend(*given, spec=spec)

        monkeypatch.setattr(api, "_decode_attention", noted)
        jax.eval_shape(partial(decode_attention, **options), q, cache, table, lengths)
        return choose(primitive, specs[0], arrays[0], "cuda")

    assert refused(None).kernel is None  # never run: by default not taken
    assert refused(None, implementation="gpu").kernel is not None
    for match, given in [
        ("astype", dict(form=None, dtype=jnp.float32)),
        ("zeros", dict(form=None, d=32)),
        ("zeros", dict(form=None, d=320)),
        ("64 tokens", dict(form=INT4, size=32)),
        ("64 tokens", dict(form=NVFP4, size=96)),
        ("multiple of 64", dict(form=INT8, size=48)),
    ]:
        with pytest.raises(NotImplementedError, match=match):
            refused(**given, implementation="gpu")
        assert refused(**given).kernel is None
