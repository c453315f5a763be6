"""Conditional laws that compose: pushed forward, inverted, and guided by what is observed.

A kernel draws y given x. The exact ones, finite and linear-Gaussian, push laws forward (``push``),
invert them by Bayes' rule (``invert``) and carry messages back (``pullback``); any other is guided
by the messages of an exact surrogate (:func:`guide`), and what the surrogate got wrong is a weight.
Filters, smoothers, bridges and guided processes are compositions of these.
"""

from jaxinf.markov.compose import (
    Both,
    Composite,
    Copy,
    Nothing,
    Observed,
    Tensor,
    compose,
    condition,
    copy,
    tensor,
)
from jaxinf.markov.deterministic import Deterministic, deterministic
from jaxinf.markov.filter import Filtered, filter, sample_path, smooth
from jaxinf.markov.finite import FiniteKernel, FiniteMessage, finite
from jaxinf.markov.gaussian_step import GaussianStep, gaussian_step, linearise, regress
from jaxinf.markov.kernel import (
    Exact,
    Guide,
    Law,
    MarkovKernel,
    Message,
    Point,
    Pullback,
    Tiltable,
    guide,
)
from jaxinf.markov.linear_gaussian import LinearGaussian, Quadratic, linear_gaussian
from jaxinf.markov.state_space import (
    Backward,
    OverTime,
    StateSpace,
    backward_filter,
    forward_guide,
    linearise_along,
    over_time,
    state_space,
)

__all__ = [
    "Backward",
    "Both",
    "Composite",
    "Copy",
    "Deterministic",
    "Exact",
    "Filtered",
    "FiniteKernel",
    "FiniteMessage",
    "GaussianStep",
    "Guide",
    "Law",
    "LinearGaussian",
    "MarkovKernel",
    "Message",
    "Nothing",
    "Observed",
    "OverTime",
    "Point",
    "Pullback",
    "Quadratic",
    "StateSpace",
    "Tensor",
    "Tiltable",
    "backward_filter",
    "compose",
    "condition",
    "copy",
    "deterministic",
    "filter",
    "finite",
    "forward_guide",
    "gaussian_step",
    "guide",
    "linear_gaussian",
    "linearise",
    "linearise_along",
    "over_time",
    "regress",
    "sample_path",
    "smooth",
    "state_space",
    "tensor",
]
