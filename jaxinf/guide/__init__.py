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
from jaxinf.guide.evaluation import Clean, Evaluation, evaluate
from jaxinf.guide.gibbs import GibbsRun, gibbs
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
from jaxinf.guide.particles import Particle, ReverseChain, particles
from jaxinf.guide.pigdm import Isotropic, pigdm
from jaxinf.guide.point import Point, point
from jaxinf.guide.tmpd import tmpd
from jaxinf.guide.views import Seen, views

__all__ = [
    "Belief",
    "Clean",
    "Conditioned",
    "ConjugateGradients",
    "Dense",
    "Evaluation",
    "GibbsRun",
    "Given",
    "Interval",
    "Isotropic",
    "Joint",
    "Likelihood",
    "Linear",
    "Method",
    "MomentMatching",
    "Observed",
    "Operator",
    "Particle",
    "Point",
    "Product",
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
    "downsample",
    "evaluate",
    "fourier",
    "gaussian_kernel",
    "geometric_mean",
    "gibbs",
    "given",
    "interpolate",
    "interval",
    "joint",
    "linear",
    "mask",
    "mmps",
    "observed",
    "operator",
    "particles",
    "pigdm",
    "point",
    "product",
    "projection",
    "select",
    "tmpd",
    "views",
]
