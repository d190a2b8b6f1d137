"""The reference term: a reference to a distribution that has read nothing more than the student.

Legend: N positions, V vocabulary; p student, p_ref reference.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from selfdistill.losses.divergences import DivergenceValue, ReverseKL
from selfdistill.losses.refusal import refusal


@dataclass(frozen=True, slots=True)
class ReferenceKL:
    """coefficient · KL(p‖p_ref) over the full vocabulary, exact rather than estimated from the sampled token.

    0 leaves the term out. Raises `ValueError` for a negative coefficient. Source: Ouyang et al., arXiv 2203.02155.
    """

    coefficient: float = 0.0

    def __post_init__(self) -> None:
        if not self.coefficient >= 0:
            raise refusal(
                "the reference coefficient must not be negative",
                got=self.coefficient,
                why="a negative one rewards any distance from the reference, without bound",
                do="use 0 for no reference, or values around 0.001 to 0.1",
            )

    def compare(self, log_p_NV: Tensor, log_ref_NV: Tensor) -> DivergenceValue:
        """KL(p‖p_ref) per position and its flow, without the coefficient."""
        return ReverseKL().compare(log_p_NV, log_ref_NV)
