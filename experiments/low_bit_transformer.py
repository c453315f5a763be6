"""Digits by a transformer in INT8, attention and linear layers, beside the same in bfloat16.

Papers: SageAttention (Zhang et al., 2025) with the 8-bit training of SageAttention3; Integer-Only
Inference (Jacob et al., 2018) for the layers' products, trained straight through (Bengio et al.,
2013); Scalable Diffusion Models with Transformers (Peebles and Xie, 2023); Denoising Diffusion
Probabilistic Models (Ho et al., 2020), predicting v.
Command: ``jaxinf run experiments/low_bit_transformer.py``.
Hardware: 2 CPU cores, a quarter of an hour; the same file on a TPU takes its kernels.
Expected, of one seed: test loss 0.2535 in bfloat16 and 0.2541 trained in INT8 (difference 0.0006,
standard error 0.00014); 99.2 % of the samples of both are recognised, at distance ratios of 1.391
and 1.395. Used in INT8, the network trained in bfloat16 loses 0.0001; its v is off by 0.0140
instead of 0.0095.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxinf_kernels.attention import attention
from jaxinf_kernels.formats import INT8
from jaxinf_kernels.lowbit_attention import SAGE8, lowbit_attention
from jaxinf_kernels.quantized_matmul import quantized_linear

from jaxinf import data, diagnostics, nets, process, sampler, score
from jaxinf.run import Experiment

CLASSES, LEVELS = 10, 17
ATTEND = {"bfloat16": attention, "int8": partial(lowbit_attention, precision=SAGE8)}
MATMUL = {"bfloat16": jnp.matmul, "int8": partial(quantized_linear, forward=INT8, gradient=INT8)}


@dataclass(frozen=True, kw_only=True)
class Config:
    """What can be set on the command line."""

    steps: int = 1500
    """Training steps."""
    batch: int = 64
    """Images a step."""
    width: int = 64
    """Of a token."""
    depth: int = 4
    """Blocks."""
    heads: int = 2
    """Of attention."""
    patch: int = 2
    """Side of the square of pixels that is a token."""
    learning_rate: float = 2e-3
    """Adam's rate at its highest, after a warm-up and before a cosine decay."""
    samples: int = 500
    """Images drawn from each network."""
    sampler_steps: int = 40
    """Steps of the sampler."""
    draws: int = 16
    """Times that each test digit's loss is measured, at other noise."""


class Drawn(NamedTuple):
    """What is measured of a trained network's samples."""

    recognised: jax.Array
    """Share of samples that a classifier of real digits takes for their class."""
    distance_ratio: jax.Array
    """Sliced Wasserstein distance to the test set, over that of the training set to it."""
    images: jax.Array
    """Ten samples of each class."""


class Compared(NamedTuple):
    """The two trainings, and what rounding does to the network that was trained in bfloat16."""

    loss_bfloat16: jax.Array
    """Mean squared error of v over test digits and noise levels."""
    loss_int8: jax.Array
    """Of the network that was trained, and is used, in INT8."""
    difference: jax.Array
    """The second less the first, at the same noise."""
    difference_error: jax.Array
    """Its standard error over draws of the noise."""
    loss_rounded: jax.Array
    """Of the network that was trained in bfloat16 and is used in INT8."""
    error_of_attention: jax.Array
    """Relative error of v, against float32, with INT8 attention alone."""
    error_of_layers: jax.Array
    """With INT8 layers alone."""
    error_of_both: jax.Array
    error_of_bfloat16: jax.Array
    """Without either."""


def build(config: Config) -> Experiment:
    digits = data.digits()
    train, test = digits.train, digits.test
    vp = process.gaussian(process.cosine())
    make = partial(
        nets.transformer, config.width, config.depth, heads=config.heads, patch=config.patch,
        classes=CLASSES,
    )  # fmt: skip
    both = partial(make, dtype=jnp.bfloat16)
    networks = {name: both(attend=ATTEND[name], matmul=MATMUL[name]) for name in ATTEND}
    losses = {n: score.denoising(vp, net.apply, target=score.v) for n, net in networks.items()}
    rate = optax.warmup_cosine_decay_schedule(
        0.0, config.learning_rate, min(100, config.steps // 2), config.steps
    )
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate))
    training = {name: nets.training(loss, optimizer) for name, loss in losses.items()}
    classifier = diagnostics.kernel_classifier(
        data.midpoints(train.x, LEVELS), train.label, classes=CLASSES
    )

    def init(key):
        params = networks["bfloat16"].init(key, jnp.zeros((8, 8, 1)))
        return {name: training[name].init(params) for name in networks}

    def batch(seed, step, index):
        rows = data.rows(seed, step, index, batch=config.batch, examples=len(train.x))
        return train.x[rows], train.label[rows]

    def step(key, state, batch):
        key_data, key_loss = jax.random.split(key)
        x = data.dequantise(key_data, batch[0], LEVELS)
        found = {n: training[n].step(key_loss, state[n], (x, batch[1])) for n in networks}
        metrics = {f"loss_{name}": metric["loss"] for name, (_, metric) in found.items()}
        return {name: one for name, (one, _) in found.items()}, metrics

    def compared(key, state):
        x, label = data.dequantise(key, test.x, LEVELS), jnp.asarray(test.label)
        keys = jax.random.split(key, config.draws)
        params = {name: one.average for name, one in state.items()}

        def test_loss(used, trained):
            return jax.lax.map(lambda k: losses[used](params[trained], k, (x, label))[0], keys)

        plain, low = (test_loss(name, name) for name in ("bfloat16", "int8"))
        times = jnp.linspace(vp.t_min, vp.t_max, len(x))
        noisy = jax.vmap(vp.perturb)(x, jax.random.normal(key, x.shape), times)[0]

        def v(**options):
            model = score.denoiser(vp, make(**options).apply, params["bfloat16"], predicts=score.v)
            return jax.vmap(model.output)(noisy, times, label).astype(jnp.float32)

        exact, attend, matmul = v(), ATTEND["int8"], MATMUL["int8"]
        options = {"attend": attend}, {"matmul": matmul}, {"attend": attend, "matmul": matmul}, {}
        found = [v(dtype=jnp.bfloat16, **option) for option in options]
        errors = [jnp.linalg.norm(a - exact) / jnp.linalg.norm(exact) for a in found]
        apart = low - plain
        return Compared(
            jnp.mean(plain), jnp.mean(low), jnp.mean(apart),
            jnp.std(apart, ddof=1) / np.sqrt(config.draws),
            jnp.mean(test_loss("int8", "bfloat16")), *errors,
        )  # fmt: skip

    def drawn(name):
        def evaluate(key, state):
            keys = jax.random.split(key, 3)
            labels = jnp.arange(config.samples) % CLASSES
            start = vp.prior().sample(keys[0], (config.samples, 8, 8, 1))
            params = state[name].average
            model = score.denoiser(vp, networks[name].apply, params, predicts=score.v)
            plan = sampler.uniform(vp, config.sampler_steps)
            out = sampler.sample(keys[1], sampler.ancestral(vp), model, plan, start, labels)
            levels = data.quantise(out.x, LEVELS)
            images, real = data.midpoints(levels, LEVELS), data.midpoints(test.x, LEVELS)
            near, far = (
                diagnostics.sliced_wasserstein(keys[2], other, real)
                for other in (images, data.midpoints(train.x, LEVELS))
            )
            recognised = jnp.mean(classifier.predict(images) == labels)
            first = levels[: 10 * CLASSES].reshape(-1, CLASSES, 8, 8)
            return Drawn(recognised, near / far, first)

        return evaluate

    return Experiment(
        init=init,
        step=step,
        batch=batch,
        evaluate={name: drawn(name) for name in networks} | {"compared": compared},
        draw=draw,
        steps=config.steps,
        batch_size=config.batch,
    )


def draw(arrays: dict[str, Any]) -> dict[str, Any]:
    """Samples of both networks beside real digits, and what rounding costs."""
    from matplotlib.figure import Figure

    real = data.digits().test
    rows = np.stack([real.x[real.label == c][:10, :, :, 0] for c in range(CLASSES)], axis=1)
    panels = {"real": rows} | {name: arrays[name].images for name in ATTEND if name in arrays}
    samples = Figure(figsize=(2.4 * len(panels), 2.8), layout="constrained")
    axes = np.atleast_1d(samples.subplots(1, len(panels)))
    for axis, (name, images) in zip(axes, panels.items(), strict=True):
        grid = np.pad(images, ((0, 0), (0, 0), (1, 1), (1, 1)))
        axis.imshow(np.concatenate(np.concatenate(grid, axis=1), axis=1), cmap="gray_r")
        axis.set_title(name)
        axis.axis("off")
    if "compared" not in arrays:
        return {"samples": samples}
    found = arrays["compared"]._asdict()
    names = [name for name in found if name.startswith("error_of")]
    errors = Figure(figsize=(5, 2.4), layout="constrained")
    axis = errors.subplots()
    axis.barh([n.removeprefix("error_of_") for n in names], [float(found[n]) for n in names])
    axis.set_xlabel("relative error of v in float32, trained in bfloat16")
    return {"samples": samples, "errors": errors}
