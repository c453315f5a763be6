"""The cone's programs, and the fits of variational_steps.py by flowjax and NumPyro."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from numpyro.infer import SVI, RenyiELBO, Trace_ELBO, TraceMeanField_ELBO


class Contender(NamedTuple):
    """One way to fit."""

    fit: Callable[[Any], Any]
    """``key -> found``, all steps."""
    log_weights: Callable[[Any, Any], Any]
    """``(key, found) ->`` log p - log q at fresh draws, whose mean is the bound."""


def flowjax(
    key: Any, log_density: Any, dim: int, layers: int, draws: int, steps: int, optimizer: Any,
    evaluated: int,
) -> dict[str, Contender]:  # fmt: skip
    """Its affine coupling flow, fitted under one compiled scan and by its own loop."""
    import equinox as eqx
    import paramax
    from flowjax import distributions, flows
    from flowjax.train import fit_to_key_based_loss
    from flowjax.train.losses import ElboLoss

    start = flows.coupling_flow(
        key, base_dist=distributions.Normal(jnp.zeros(dim)), flow_layers=layers, nn_width=32,
        nn_depth=2, nn_activation=jax.nn.silu, invert=False,
    )  # fmt: skip

    def fixed(leaf: Any) -> bool:
        return isinstance(leaf, paramax.NonTrainable)

    params, static = eqx.partition(start, eqx.is_inexact_array, is_leaf=fixed)
    loss = ElboLoss(log_density, draws)

    @jax.jit
    def scan(key: Any, params: Any) -> Any:
        def step(held: Any, key: Any) -> tuple[Any, Any]:
            params, state = held
            value, slopes = eqx.filter_value_and_grad(loss)(params, static, key)
            updates, state = optimizer.update(slopes, state, params)
            return (eqx.apply_updates(params, updates), state), value

        keys = jax.random.split(key, steps)
        (params, _), losses = jax.lax.scan(step, (params, optimizer.init(params)), keys)
        return params, losses

    def loop(key: Any) -> Any:
        found, losses = fit_to_key_based_loss(
            key, start, loss_fn=loss, steps=steps, optimizer=optimizer, show_progress=False
        )
        return eqx.partition(found, eqx.is_inexact_array, is_leaf=fixed)[0], losses

    @jax.jit
    def log_weights(key: Any, found: Any) -> Any:
        x, log_q = eqx.combine(found[0], static).sample_and_log_prob(key, (evaluated,))
        return jax.vmap(log_density)(x) - log_q

    return {
        "flowjax, scan": Contender(lambda key: scan(key, params), log_weights),
        "flowjax, its loop": Contender(loop, log_weights),
    }


def numpyro_svi(
    model: Any, guide: Any, z: float, particles: int, steps: int, optimizer: Any, log_weights: Any
) -> dict[str, Contender]:
    """``SVI.run`` as it is called, which compiles anew each time, and compiled once."""
    svi = SVI(model, guide, optimizer, Trace_ELBO(particles))

    def run(key: Any) -> Any:
        found = svi.run(key, steps, z, progress_bar=False)
        return unbounded(found.params), found.losses

    return {
        "NumPyro, its run": Contender(run, log_weights),
        "NumPyro, compiled": Contender(jax.jit(run), log_weights),
    }


def unbounded(params: Any) -> Any:
    """Return the cone's guide's parameters, scales as logarithms."""
    return {k: jnp.log(v) if k.startswith("scale") else v for k, v in params.items()}


def numpyro_digits(
    draws: int, optimizer: Any, encode: Any, decode: Any, binarise: Any, latent: int
) -> dict[str, tuple[Any, Any, Any]]:
    """By name: a step, its state's networks averaged as jaxinf's are, and a start from networks.

    All sites are in one plate, so that RenyiELBO weighs each digit's draws by themselves: it is
    the mean over digits of the importance-weighted bounds, not the bound of the batch.
    """

    def model(x: Any, networks: Any = ()) -> None:
        decoder = numpyro.param("decoder", lambda _: networks[1])
        with numpyro.plate("digits", len(x)):
            z = numpyro.sample("z", dist.Normal(0, 1).expand([latent]).to_event(1))
            logits = jax.vmap(partial(decode, decoder))(z)
            numpyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

    def guide(x: Any, networks: Any = ()) -> None:
        encoder = numpyro.param("encoder", lambda _: networks[0])
        mean, log_scale = jax.vmap(partial(encode, encoder))(x)
        with numpyro.plate("digits", len(x)):
            numpyro.sample("z", dist.Normal(mean, jnp.exp(log_scale)).to_event(1))

    if draws == 1:
        losses = {"Trace_ELBO": Trace_ELBO(), "TraceMeanField_ELBO": TraceMeanField_ELBO()}
    else:
        losses = {"RenyiELBO": RenyiELBO(0, draws)}
    return {
        f"NumPyro, {name}": _averaged(SVI(model, guide, optimizer, loss), binarise)
        for name, loss in losses.items()
    }


def _averaged(svi: Any, binarise: Any) -> tuple[Any, Any, Any]:
    """Step, networks and start of SVI with the moving average of :func:`jaxinf.nets.training`."""

    def start(key: Any, networks: Any, batch: int) -> Any:
        x = jnp.zeros((batch, networks[0].weights[0].shape[0]))
        return svi.init(key, x, networks), networks, jnp.float32(0)

    def step(key: Any, state: Any, levels: Any) -> Any:
        inner, average, n = state
        inner, loss = svi.update(inner, binarise(key, levels))
        params = svi.get_params(inner)
        decay = jnp.minimum(0.999, (1 + n) / (10 + n))
        now = params["encoder"], params["decoder"]
        return (inner, optax.incremental_update(now, average, 1 - decay), n + 1), loss

    return step, lambda state: state[1], start


def cone(z: Any) -> None:
    """A point of the plane whose squared distance from the origin is seen, with noise."""
    x = numpyro.sample("x", dist.Normal(0, 10))
    y = numpyro.sample("y", dist.Normal(0, 10))
    square = x**2 + y**2
    numpyro.sample("z", dist.Normal(square, 0.1 + square / 100), obs=z)


def mean_field(z: Any) -> None:
    """Independent normals."""
    for name, start in (("x", 3.0), ("y", 0.0)):
        mean = numpyro.param(f"mean {name}", start)
        scale = numpyro.param(f"scale {name}", jnp.e, constraint=dist.constraints.positive)
        numpyro.sample(name, dist.Normal(mean, scale))


def where(found: Any) -> np.ndarray:
    """Return a guide's distance from the origin, and its lesser and greater scale."""
    params = found[0]
    scales = np.exp([float(params["scale x"]), float(params["scale y"])])
    return np.array([np.hypot(params["mean x"], params["mean y"]), *np.sort(scales)])
