"""Samplers: steppers (one increment each), plans (the times they walk) and the driver.

A stepper owns its calls of the denoiser, so one driver serves single- and multi-stage methods;
all are pytrees, so rebuilding them with other numbers compiles nothing.
"""

from jaxinf.sampler.ddim import DDIM, Ancestral, ancestral, ddim
from jaxinf.sampler.driver import Path, Sample, SampleInfo, sample
from jaxinf.sampler.euler_maruyama import EulerMaruyama, euler_maruyama
from jaxinf.sampler.heun import Heun, heun
from jaxinf.sampler.plan import Plan, karras, plan, uniform
from jaxinf.sampler.stepper import Denoise, State, StepInfo, Stepper

__all__ = [
    "DDIM",
    "Ancestral",
    "Denoise",
    "EulerMaruyama",
    "Heun",
    "Path",
    "Plan",
    "Sample",
    "SampleInfo",
    "State",
    "StepInfo",
    "Stepper",
    "ancestral",
    "ddim",
    "euler_maruyama",
    "heun",
    "karras",
    "plan",
    "sample",
    "uniform",
]
