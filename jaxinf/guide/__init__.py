"""Conditioning: score models tilted by evidence, experts, rewards and end points.

A guidance is a tilt of a reverse chain: a denoiser again, which proposes, and a weight, which
corrects. ``conditioned`` tilts by a likelihood (``linear``, ``observed``, ``interval``) with a
method that says how the clean example is believed to lie (``mmps``, ``pigdm``, ``tmpd``, ``point``,
``convolved``); ``product`` and its kin compose densities; any sampler runs the result, and
``particles`` weighs it.
"""

from jaxinf.guide.algebra import (
    Given,
    Product,
    anneal,
    contrast,
    geometric_mean,
    given,
    interpolate,
    product,
)
from jaxinf.guide.belief import Belief, ConjugateGradients, Dense, RowSums, Solve
from jaxinf.guide.conditioned import Conditioned, Method, View, conditioned
from jaxinf.guide.convolved import convolved
from jaxinf.guide.doob import GuidedPath, LinearBridge, doob, guided_bridge, h_transform
from jaxinf.guide.evaluation import Clean, Evaluation, evaluate
from jaxinf.guide.h_edit import h_edit, reward_gradient, score_difference
from jaxinf.guide.interval import Interval, interval
from jaxinf.guide.joint import Joint, joint
from jaxinf.guide.likelihood import Likelihood, Tilt
from jaxinf.guide.linear import Linear, linear
from jaxinf.guide.mmps import MomentMatching, mmps
from jaxinf.guide.observed import Observed, observed
from jaxinf.guide.operators import (
    Operator,
    blur,
    downsample,
    fourier,
    gaussian_kernel,
    mask,
    operator,
    projection,
    select,
)
from jaxinf.guide.paired_bridges import Pairs, paired_bridge, paired_denoising
from jaxinf.guide.particles import Particle, ReverseChain, particles
from jaxinf.guide.pigdm import Isotropic, pigdm
from jaxinf.guide.point import Point, point
from jaxinf.guide.reflected import (
    Reflected,
    fold,
    heat_kernel,
    reflected,
    reflected_denoising,
    reflected_euler,
)
from jaxinf.guide.tmpd import tmpd
from jaxinf.guide.views import Seen, views

__all__ = [
    "Belief",
    "Clean",
    "Conditioned",
    "ConjugateGradients",
    "Dense",
    "Evaluation",
    "Given",
    "GuidedPath",
    "Interval",
    "Isotropic",
    "Joint",
    "Likelihood",
    "Linear",
    "LinearBridge",
    "Method",
    "MomentMatching",
    "Observed",
    "Operator",
    "Pairs",
    "Particle",
    "Point",
    "Product",
    "Reflected",
    "ReverseChain",
    "RowSums",
    "Seen",
    "Solve",
    "Tilt",
    "View",
    "anneal",
    "blur",
    "conditioned",
    "contrast",
    "convolved",
    "doob",
    "downsample",
    "evaluate",
    "fold",
    "fourier",
    "gaussian_kernel",
    "geometric_mean",
    "given",
    "guided_bridge",
    "h_edit",
    "h_transform",
    "heat_kernel",
    "interpolate",
    "interval",
    "joint",
    "linear",
    "mask",
    "mmps",
    "observed",
    "operator",
    "paired_bridge",
    "paired_denoising",
    "particles",
    "pigdm",
    "point",
    "product",
    "projection",
    "reflected",
    "reflected_denoising",
    "reflected_euler",
    "reward_gradient",
    "score_difference",
    "select",
    "tmpd",
    "views",
]
