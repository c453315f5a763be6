"""Samplers: steppers (one increment each), plans (the times they walk) and the drivers.

A stepper owns its calls of the denoiser, so one driver serves single- and multi-stage methods;
all are pytrees, so rebuilding them with other numbers compiles nothing. ``sample`` walks a plan,
``integrate`` takes steps of each sample's own length.
"""

from jaxinf.sampler.adams_bashforth import adams_bashforth
from jaxinf.sampler.adaptive import (
    EmbeddedPair,
    Integration,
    IntegrationInfo,
    bogacki_shampine,
    dormand_prince,
    integrate,
)
from jaxinf.sampler.bdia import BidirectionalState, bidirectional, invert
from jaxinf.sampler.churn import churn
from jaxinf.sampler.coefficients import angle, log_snr, noise_level
from jaxinf.sampler.ddim import DDIM, Ancestral, ancestral, ddim
from jaxinf.sampler.deis import deis
from jaxinf.sampler.dpm_solver import dpm_solver, dpm_solver_single
from jaxinf.sampler.driver import Path, Sample, SampleInfo, sample
from jaxinf.sampler.dual_clock import DualClock, Tuned, dual_clock, tuned
from jaxinf.sampler.early_stopping import EarlyStopping, calls_used, early_stopping
from jaxinf.sampler.euler_maruyama import EulerMaruyama, euler_maruyama
from jaxinf.sampler.exponential import Exponential, exponential
from jaxinf.sampler.gaussian_start import gaussian_start, moments
from jaxinf.sampler.heun import Heun, heun
from jaxinf.sampler.langevin import predictor_corrector
from jaxinf.sampler.moment_matched import MomentMatched, moment_matched, tweedie
from jaxinf.sampler.optimise_plan import OptimisedPlan, optimise_plan, squared_error
from jaxinf.sampler.patch_parallel import patch_parallel
from jaxinf.sampler.plan import Plan, karras, plan, uniform
from jaxinf.sampler.plans import cosine, polynomial, trailing, uniform_log_snr
from jaxinf.sampler.restart import restart
from jaxinf.sampler.runge_kutta import RungeKutta, midpoint, rk4
from jaxinf.sampler.single_step import SingleStep, single_step
from jaxinf.sampler.stepper import (
    AnyStepper,
    Denoise,
    State,
    StepInfo,
    Stepper,
    Tabulated,
    Wrapper,
)
from jaxinf.sampler.time_shift import time_shift
from jaxinf.sampler.timestep_tuner import tune
from jaxinf.sampler.tuning_objectives import Objective, match_moments, steady_noise
from jaxinf.sampler.unipc import unipc
from jaxinf.sampler.unmask import categorical, unmask

__all__ = [
    "DDIM",
    "Ancestral",
    "AnyStepper",
    "BidirectionalState",
    "Denoise",
    "DualClock",
    "EarlyStopping",
    "EmbeddedPair",
    "EulerMaruyama",
    "Exponential",
    "Heun",
    "Integration",
    "IntegrationInfo",
    "MomentMatched",
    "Objective",
    "OptimisedPlan",
    "Path",
    "Plan",
    "RungeKutta",
    "Sample",
    "SampleInfo",
    "SingleStep",
    "State",
    "StepInfo",
    "Stepper",
    "Tabulated",
    "Tuned",
    "Wrapper",
    "adams_bashforth",
    "ancestral",
    "angle",
    "bidirectional",
    "bogacki_shampine",
    "calls_used",
    "categorical",
    "churn",
    "cosine",
    "ddim",
    "deis",
    "dormand_prince",
    "dpm_solver",
    "dpm_solver_single",
    "dual_clock",
    "early_stopping",
    "euler_maruyama",
    "exponential",
    "gaussian_start",
    "heun",
    "integrate",
    "invert",
    "karras",
    "log_snr",
    "match_moments",
    "midpoint",
    "moment_matched",
    "moments",
    "noise_level",
    "optimise_plan",
    "patch_parallel",
    "plan",
    "polynomial",
    "predictor_corrector",
    "restart",
    "rk4",
    "sample",
    "single_step",
    "squared_error",
    "steady_noise",
    "time_shift",
    "trailing",
    "tune",
    "tuned",
    "tweedie",
    "uniform",
    "uniform_log_snr",
    "unipc",
    "unmask",
]
