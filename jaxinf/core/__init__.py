"""What every room stands on: records, types, exact laws, noise, traces and the drivers' parts."""

from jaxinf.core.arithmetic import divide, root
from jaxinf.core.band import Band
from jaxinf.core.brownian import Brownian, BrownianPath, brownian
from jaxinf.core.checks import check_batch, check_key
from jaxinf.core.covariance import Covariance, Dense, Diagonal, Full, add, dense, full, white
from jaxinf.core.finite import Finite, finite
from jaxinf.core.laws import Gaussian, Mixture, gaussian, log_prob, mixture
from jaxinf.core.noise import Independent, Noise, normal
from jaxinf.core.record import record, static
from jaxinf.core.scan import carry, concretely, first, is_concrete, prepend, rest, runge_kutta
from jaxinf.core.spread import AXES, BATCH, batch_vmap, gather, spread, stay
from jaxinf.core.trace import Exact, Hutchinson, Trace, exact, hutchinson, value_and_trace
from jaxinf.core.triangular import triangular
from jaxinf.core.types import Key, Leaf, PyTree, Scalar

__all__ = [
    "AXES",
    "BATCH",
    "Band",
    "Brownian",
    "BrownianPath",
    "Covariance",
    "Dense",
    "Diagonal",
    "Exact",
    "Finite",
    "Full",
    "Gaussian",
    "Hutchinson",
    "Independent",
    "Key",
    "Leaf",
    "Mixture",
    "Noise",
    "PyTree",
    "Scalar",
    "Trace",
    "add",
    "batch_vmap",
    "brownian",
    "carry",
    "check_batch",
    "check_key",
    "concretely",
    "dense",
    "divide",
    "exact",
    "finite",
    "first",
    "full",
    "gather",
    "gaussian",
    "hutchinson",
    "is_concrete",
    "log_prob",
    "mixture",
    "normal",
    "prepend",
    "record",
    "rest",
    "root",
    "runge_kutta",
    "spread",
    "static",
    "stay",
    "triangular",
    "value_and_trace",
    "white",
]
