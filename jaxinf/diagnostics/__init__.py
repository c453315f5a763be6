"""Measures of whether samples are right.

:func:`sliced_wasserstein` compares two samples as laws; :func:`kernel_classifier` tells whether
generated examples are recognised as the class that was asked for.
"""

from jaxinf.diagnostics.classifier import KernelClassifier, kernel_classifier
from jaxinf.diagnostics.sliced_wasserstein import sliced_wasserstein

__all__ = ["KernelClassifier", "kernel_classifier", "sliced_wasserstein"]
