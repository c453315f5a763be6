"""Laws that samplers keep, measured on anyone's sampler by calls alone.

:func:`certify` takes a sampler and what is claimed of it, and returns a report of orders, exact
laws, noise, dependence on batch and grid, and calls. :func:`stepper` adapts a stepper of this
library; any other sampler takes an adapter of five lines, in which :func:`levels` gives the noise
levels of times.
"""

from jaxinf.testing.certificate import certify
from jaxinf.testing.claims import Claims, Curve, Row
from jaxinf.testing.exact import Denoiser, levels
from jaxinf.testing.report import Report
from jaxinf.testing.steppers import Steppers, stepper

__all__ = [
    "Claims",
    "Curve",
    "Denoiser",
    "Report",
    "Row",
    "Steppers",
    "certify",
    "levels",
    "stepper",
]
