"""Score models: denoisers, the losses that train them, guidance, calibration and likelihoods.

A denoiser is a pytree called as (x, t, cond) for one example; what is made of denoisers (guided,
calibrated ones) is a denoiser again. The predictions ``x0``, ``eps``, ``v``, ``score``,
``velocity`` and ``preconditioned`` are the process room's, the trace estimators the core's.
"""

from jaxinf.core import exact, hutchinson
from jaxinf.process import convert, eps, preconditioned, score, v, velocity, x0
from jaxinf.score.bound import Bound, variational_bound
from jaxinf.score.calibration import Calibrated, calibrate
from jaxinf.score.denoiser import Denoiser, Network, Oracle, denoiser, noise_level, oracle
from jaxinf.score.denoising import Batch, Denoising, DenoisingInfo, denoising
from jaxinf.score.guidance import Guided, guided
from jaxinf.score.likelihood import LogDensityInfo, bits_per_dimension, log_density
from jaxinf.score.times import Times, log_normal, log_uniform, logit_normal, uniform
from jaxinf.score.weights import Weight, likelihood, min_snr

__all__ = [
    "Batch",
    "Bound",
    "Calibrated",
    "Denoiser",
    "Denoising",
    "DenoisingInfo",
    "Guided",
    "LogDensityInfo",
    "Network",
    "Oracle",
    "Times",
    "Weight",
    "bits_per_dimension",
    "calibrate",
    "convert",
    "denoiser",
    "denoising",
    "eps",
    "exact",
    "guided",
    "hutchinson",
    "likelihood",
    "log_density",
    "log_normal",
    "log_uniform",
    "logit_normal",
    "min_snr",
    "noise_level",
    "oracle",
    "preconditioned",
    "score",
    "uniform",
    "v",
    "variational_bound",
    "velocity",
    "x0",
]
