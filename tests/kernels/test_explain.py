"""What a program holds on each platform is said before it is compiled."""

import jax
import jax.numpy as jnp
import pytest
from jax.extend.core import Primitive
from jaxinf_kernels import explain
from jaxinf_kernels.attention import attention
from jaxinf_kernels.compat import OLD
from jaxinf_kernels.operation import Kernel, Kernels, choose, operation


def shaped(*shape, dtype=jnp.bfloat16):
    return jax.ShapeDtypeStruct(shape, dtype)


Q = shaped(512, 2, 64)


def forms(function, *args):
    return {(a.operation, a.platform): a.form for a in explain(function, *args).found}


def test_values_and_derivatives_inside_of_any_program():
    def loss(q):
        out = jax.jit(jax.vmap(lambda q: attention(q, q, q)))(q[None])
        return jnp.sum(out.astype(jnp.float32))

    own = {("attention", p): f for p, f in (("cpu", "plain"), ("tpu", "kernel"), ("cuda", "plain"))}
    assert forms(loss, Q) == own
    assert forms(jax.grad(loss), Q) == own | {(f"{n}_vjp", p): f for (n, p), f in own.items()}
    found = forms(lambda q: jax.jvp(loss, [q], [q]), Q)
    assert found["attention", "tpu"] == "kernel"
    assert found["attention_jvp", "tpu"] == "plain"


def test_what_a_program_holds_is_what_is_said(monkeypatch):
    """Each reason against a kernel, and the lowering that follows it."""
    for dtype, keys, form, why in (
        (jnp.float16, 512, "plain", "not float16: cast"),
        (jnp.bfloat16, 0, "plain", "no queries or no keys"),
        (jnp.bfloat16, 16, "plain", "fewer than"),
        (jnp.bfloat16, 512, "kernel", "takes it"),
    ):
        args = shaped(512, 2, 64, dtype=dtype), *[shaped(keys, 2, 64, dtype=dtype)] * 2
        (row,) = explain(attention, *args, platforms=("tpu",)).found
        assert (row.form, why in row.why) == (form, True)
        text = jax.jit(attention).trace(*args).lower(lowering_platforms=("tpu",)).as_text()
        assert ("tpu_custom_call" in text) == (form == "kernel")


def test_what_is_asked_for_by_name_is_had_or_refused():
    def named(q):
        return attention(q, q, q, implementation="tpu")

    assert forms(named, shaped(16, 2, 64))["attention", "tpu"] == "kernel"  # though idle
    found = {a.platform: a for a in explain(named, shaped(512, 2, 64, dtype=jnp.float16)).found}
    assert found["tpu"].form == found["cpu"].form == "error"
    assert "cast with astype. Without implementation=" in found["tpu"].why
    assert "in a program for another platform" in found["cpu"].why


def test_what_has_never_run_is_taken_where_it_is_asked_for():
    class Spec(tuple):
        __slots__ = ()
        how = None

    def call(a, spec):
        return (a,)

    toy = operation("untried", Kernels(call, cuda=Kernel(call)))
    (row,) = explain(lambda a: toy(a, spec=Spec()), shaped(1, 2), platforms=("cuda",)).found
    assert row.form == "plain"
    assert "never run" in row.why or row.why == OLD["cuda"]
    assert list(OLD) == ["cuda"] * (jax.__version_info__ < (0, 12))


def test_nothing_of_ours_is_said_too():
    assert "no operation" in str(explain(jnp.sin, shaped(2)))
    assert "attention(bfloat16[1,2,512,64]" in str(explain(lambda q: attention(q, q, q), Q))
    with pytest.raises(KeyError):
        choose(Primitive("none"), None, (), "tpu")


def test_an_implementation_or_a_chip_that_does_not_exist():
    q = jnp.ones((4, 1, 2))
    with pytest.raises(ValueError, match="must be one of 'xla', 'tpu', 'gpu' or None"):
        attention(q, q, q, implementation="cuda")
    with pytest.raises(ValueError, match="no chip is named 'v9'"):
        attention(q, q, q, chip="v9")
