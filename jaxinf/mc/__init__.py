"""Further methods for unnormalised targets and nested expectations.

``coin`` moves particles along a Stein direction (``svgd``, ``ksd``, ``lawgd``) without a learning
rate; ``reverse_diffusion`` makes a denoiser of a target, which the samplers run; chains of
``structured_sgld`` break chosen dependencies; ``read`` estimates expectations of functions of
expectations without bias.
"""

from jaxinf.mc.coin import CoinState, Direction, coin, coin_betting
from jaxinf.mc.ksd import KSD, ksd
from jaxinf.mc.lawgd import LAWGD, lawgd
from jaxinf.mc.nested_expectation import Estimates, Nesting, nesting, read
from jaxinf.mc.radial import IMQ, RBF, Radial, imq, rbf
from jaxinf.mc.reverse_diffusion import (
    Importance,
    Langevin,
    ReverseDiffusion,
    importance,
    langevin,
    ornstein_uhlenbeck,
    reverse_diffusion,
)
from jaxinf.mc.structured_sgld import structured_sgld
from jaxinf.mc.subsample import Subsample, subsample
from jaxinf.mc.svgd import SVGD, svgd

__all__ = [
    "IMQ",
    "KSD",
    "LAWGD",
    "RBF",
    "SVGD",
    "CoinState",
    "Direction",
    "Estimates",
    "Importance",
    "Langevin",
    "Nesting",
    "Radial",
    "ReverseDiffusion",
    "Subsample",
    "coin",
    "coin_betting",
    "importance",
    "imq",
    "ksd",
    "langevin",
    "lawgd",
    "nesting",
    "ornstein_uhlenbeck",
    "rbf",
    "read",
    "reverse_diffusion",
    "structured_sgld",
    "subsample",
    "svgd",
]
