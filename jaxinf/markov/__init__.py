"""Conditional laws that compose: pushed forward, inverted, and guided by what is observed.

A kernel draws y given x. The exact ones, finite and linear-Gaussian, push laws forward (``push``),
invert them by Bayes' rule (``invert``) and carry messages back (``pullback``); any other is guided
by the messages of an exact surrogate (:func:`guide`), and what the surrogate got wrong is a weight.
Filters, smoothers, bridges and guided processes are compositions of these.
"""

from jaxinf.markov.assumed import Assumed, extended, unscented
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
from jaxinf.markov.conditional import Conditional, conditional
from jaxinf.markov.deterministic import Deterministic, deterministic
from jaxinf.markov.diffusion import (
    Diffusion,
    diffusion,
    euler,
    linear_diffusion,
    semilinear,
)
from jaxinf.markov.discriminative import Discriminative, discriminative
from jaxinf.markov.factorial import Factorial, factorial, factorial_filter, factorial_smooth
from jaxinf.markov.filter import Filtered, filter, sample_path, smooth
from jaxinf.markov.finite import FiniteKernel, FiniteMessage, finite
from jaxinf.markov.gaussian_step import GaussianStep, gaussian_step, linearise, regress
from jaxinf.markov.graph import Graph, Inward, graph, graph_filter, graph_guide
from jaxinf.markov.jump import (
    JumpPosterior,
    JumpProcess,
    Path,
    generator,
    jump_elbo,
    jump_posterior,
    jump_process,
)
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
    guided_path,
    linearise_along,
    over_time,
    state_space,
)
from jaxinf.markov.tree import Tree, Upward, tree, tree_filter, tree_guide
from jaxinf.markov.viterbi import viterbi

__all__ = [
    "Assumed",
    "Backward",
    "Both",
    "Composite",
    "Conditional",
    "Copy",
    "Deterministic",
    "Diffusion",
    "Discriminative",
    "Exact",
    "Factorial",
    "Filtered",
    "FiniteKernel",
    "FiniteMessage",
    "GaussianStep",
    "Graph",
    "Guide",
    "Inward",
    "JumpPosterior",
    "JumpProcess",
    "Law",
    "LinearGaussian",
    "MarkovKernel",
    "Message",
    "Nothing",
    "Observed",
    "OverTime",
    "Path",
    "Point",
    "Pullback",
    "Quadratic",
    "StateSpace",
    "Tensor",
    "Tiltable",
    "Tree",
    "Upward",
    "backward_filter",
    "compose",
    "condition",
    "conditional",
    "copy",
    "deterministic",
    "diffusion",
    "discriminative",
    "euler",
    "extended",
    "factorial",
    "factorial_filter",
    "factorial_smooth",
    "filter",
    "finite",
    "forward_guide",
    "gaussian_step",
    "generator",
    "graph",
    "graph_filter",
    "graph_guide",
    "guide",
    "guided_path",
    "jump_elbo",
    "jump_posterior",
    "jump_process",
    "linear_diffusion",
    "linear_gaussian",
    "linearise",
    "linearise_along",
    "over_time",
    "regress",
    "sample_path",
    "semilinear",
    "smooth",
    "state_space",
    "tensor",
    "tree",
    "tree_filter",
    "tree_guide",
    "unscented",
    "viterbi",
]
