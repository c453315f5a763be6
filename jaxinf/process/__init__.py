"""Forward processes: how data become noise, and all that follows from alpha and sigma.

``gaussian(schedule, covariance)`` makes a process; the schedules are values (``cosine()``,
``edm()``, ...), and so are the predictions that a network may make of it (``x0``, ``eps``, ``v``,
``score``, ``velocity``, ``preconditioned(data_scale)``), which ``convert`` turns into each other.
"""

from jaxinf.process.gaussian import Gaussian, Prior, gaussian
from jaxinf.process.inverse import time_of
from jaxinf.process.masked import Masked, masked
from jaxinf.process.pinned import Pinned, pinned
from jaxinf.process.prediction import (
    Prediction,
    convert,
    eps,
    preconditioned,
    score,
    v,
    velocity,
    x0,
)
from jaxinf.process.schedules import (
    Schedule,
    betas,
    cosine,
    custom,
    edm,
    linear_beta,
    linear_interpolation,
    variance_exploding,
    variance_preserving,
)
from jaxinf.process.terminal_snr import zero_terminal_snr

__all__ = [
    "Gaussian",
    "Masked",
    "Pinned",
    "Prediction",
    "Prior",
    "Schedule",
    "betas",
    "convert",
    "cosine",
    "custom",
    "edm",
    "eps",
    "gaussian",
    "linear_beta",
    "linear_interpolation",
    "masked",
    "pinned",
    "preconditioned",
    "score",
    "time_of",
    "v",
    "variance_exploding",
    "variance_preserving",
    "velocity",
    "x0",
    "zero_terminal_snr",
]
