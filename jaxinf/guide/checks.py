"""Checks of what is handed to bridges."""

from typing import Any

from jaxinf.core import is_concrete


def check_bridge(steps: int, eps: Any, least: int = 2) -> None:
    """Raise for too few steps, and an eps that is not positive, where it is concrete."""
    if steps < least:
        raise ValueError(
            f"a bridge needs at least {least - 1} times between its ends, got {steps - 1}; without "
            "any its Markovian projection is the coupling itself."
        )
    if is_concrete(eps) and not float(eps) > 0:
        raise ValueError(f"eps must be positive, got {eps}.")
