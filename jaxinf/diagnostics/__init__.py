"""Measures of whether samples are right.

:func:`sliced_wasserstein` compares two samples as laws; :func:`kernel_classifier` tells whether
generated examples are recognised as the class that was asked for. :func:`ess`, :func:`rhat` and
:func:`mcse` say what draws of Markov chains are worth, inside compiled programs too.
"""

from jaxinf.diagnostics.chains import ess, ess_bulk, ess_tail, mcse, rhat
from jaxinf.diagnostics.classifier import KernelClassifier, kernel_classifier
from jaxinf.diagnostics.sliced_wasserstein import sliced_wasserstein

__all__ = [
    "KernelClassifier",
    "ess",
    "ess_bulk",
    "ess_tail",
    "kernel_classifier",
    "mcse",
    "rhat",
    "sliced_wasserstein",
]
