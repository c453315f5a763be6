"""A diffusion transformer of a billion parameters, to plan for pods and to train on them.

Command: ``jaxinf plan experiments/pod_transformer.py --topology v5e:16x16 --mesh fsdp=16``; for two
slices ``--topology "2*v5e:8x16" --mesh slice=2,fsdp=16``; to compare meshes
``--sweep "mesh=fsdp=16;fsdp=8,tensor=2"``.
Hardware: none to plan, libtpu's compiler on any machine (``pip install 'jaxinf[aot]'``).
Expected: 40 s to compile for 256 chips on two CPU cores, 65 s for two slices of 128; 1.4 GiB of a
chip's 16. With parameters divided over all 256 chips the compiler takes five minutes.
"""

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
import optax

from jaxinf import nets, process, score
from jaxinf.run import Experiment
from jaxinf.run.mesh import Rule

RULES = (
    Rule("blocks/(qkv|first)/kernel", (None, "fsdp", "tensor")),
    Rule("blocks/(out|second)/kernel", (None, "tensor", "fsdp")),
    Rule("blocks/modulate/kernel", (None, "fsdp", "tensor")),
)
"""Of stacked blocks: products that widen are divided by their outputs, those that narrow by their
inputs, so that a block needs one sum over ``tensor`` for attention and one for the perceptron."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """What can be set on the command line."""

    width: int = 1536
    """Of a token."""
    depth: int = 24
    """Blocks."""
    side: int = 32
    """Of a latent image of 4 channels, in patches of 2."""
    batch: int = 512
    """Images a step."""
    steps: int = 1
    """Training steps of a run."""


def build(config: Config) -> Experiment:
    vp = process.gaussian(process.cosine(t_max=0.99))
    net = nets.transformer(
        config.width,
        config.depth,
        heads=max(1, config.width // 128),
        classes=1000,
        dtype=jnp.bfloat16,
        remat=True,
        scan=True,
    )
    loss = score.denoising(vp, net.apply, target=score.velocity)
    training = nets.training(loss, optax.adamw(1e-4))
    shape = (config.side, config.side, 4)

    def init(key):
        return training.init(net.init(key, jnp.zeros(shape), jnp.zeros((), jnp.int32)))

    def batch(seed, step, index):
        draws = [np.random.default_rng((seed, step, i)) for i in index]
        x = np.stack([draw.normal(size=shape).astype(np.float32) for draw in draws])
        return x, np.array([draw.integers(1000) for draw in draws], np.int32)

    return Experiment(
        init=init,
        step=training.step,
        batch=batch,
        evaluate={},
        draw=lambda arrays: {},
        steps=config.steps,
        batch_size=config.batch,
        rules=RULES,
    )
