"""What low-bit attention is asked for, apart from its arrays."""

from dataclasses import dataclass

from jaxinf_kernels.attention.problem import Problem
from jaxinf_kernels.lowbit_attention.precision import Precision
from jaxinf_kernels.operation import How


@dataclass(frozen=True)
class LowBit:
    """The static part: attention's own, and the formats of its products."""

    asked: Problem
    precision: Precision

    @property
    def how(self) -> How:
        """How the caller wants it done."""
        return self.asked.how
