"""Networks as pairs of pure functions, and the training step that fits them.

:class:`Network` holds ``init(key, x, cond=None) -> params`` and ``apply(params, x, t, cond) ->
array`` for one example; Flax stays inside. There is a perceptron for vectors, a small U-Net and a
transformer for images, and adapters for one's own linen or nnx module. :func:`training` makes a
pure step with a moving average of the parameters out of any loss and any optimiser of optax.
"""

from jaxinf.nets.adapters import from_nnx
from jaxinf.nets.convolution import convolution
from jaxinf.nets.mlp import mlp
from jaxinf.nets.network import Network, from_linen
from jaxinf.nets.training import Training, TrainState, training
from jaxinf.nets.transformer import transformer
from jaxinf.nets.unet import unet

__all__ = [
    "Network",
    "TrainState",
    "Training",
    "convolution",
    "from_linen",
    "from_nnx",
    "mlp",
    "training",
    "transformer",
    "unet",
]
