"""The table: what is known of every answer token of a generation batch before its first update. No gradients.

Legend: N tokens of all answers, one answer after the other; R answers; π student, q̃ target.

From it the second half of the signal decides what each token weighs: `distil_sign` (toward the teacher or away),
`token_mask` (which tokens, how much), `schedule` and `gate` (when), `shaping` (how log-ratio meets the verdict).
`weigh_tokens` runs them.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from selfdistill.losses.refusal import refusal


@dataclass(frozen=True, slots=True)
class TokenTable:
    """One row per answer token. Numbers of half precision are kept as float32: their means would be coarse.

    answer_N: which answer, 0 … R − 1. position_N: 0 is an answer's first token. logprobs_N: log π(y), entropy_N: H(π),
    both of the student, in nats. log_ratio_N: log q̃(y) − log π(y), or what else the signal takes for log-ratio;
    teacher_entropy_N: H(q̃); both NaN where no teacher read. counted_N: bool, False for tokens that the student did not
    choose (a tool's output). advantage_R and distil_R: what the method credited each answer with; a negative `distil_R`
    turns that answer's direction around.

    Raises `ValueError` when shapes disagree, when an answer is out of range or order, or when `counted_N` is not
    boolean.
    """

    answer_N: Tensor
    position_N: Tensor
    logprobs_N: Tensor
    entropy_N: Tensor
    log_ratio_N: Tensor
    teacher_entropy_N: Tensor
    counted_N: Tensor
    advantage_R: Tensor
    distil_R: Tensor

    def __post_init__(self) -> None:
        for column in fields(self):
            values = getattr(self, column.name)
            if values.is_floating_point() and values.dtype.itemsize < 4:
                object.__setattr__(self, column.name, values.float())
        _check(self)

    @property
    def advantage_N(self) -> Tensor:
        """The verdict on each token's answer."""
        return self.advantage_R[self.answer_N]

    @property
    def distil_N(self) -> Tensor:
        """The distillation credit of each token's answer."""
        return self.distil_R[self.answer_N]

    @property
    def distilled_N(self) -> Tensor:
        """bool: tokens that count and whose answer is distilled; medians and means are taken over these."""
        return self.counted_N & (self.distil_N != 0)

    def only(self, kept_N: Tensor) -> TokenTable:
        """The same table with fewer tokens that count."""
        return replace(self, counted_N=self.counted_N & kept_N)

    def answer_means(self, values_N: Tensor, over_N: Tensor) -> Tensor:
        """Mean over the tokens `over_N` of each answer, given back per token; 0 where an answer has none of them."""
        return self._answer_sums(values_N, over_N) / self._answer_sums(torch.ones_like(values_N), over_N).clamp(min=1)

    def _answer_sums(self, values_N: Tensor, over_N: Tensor) -> Tensor:
        sizes = torch.bincount(self.answer_N, minlength=len(self.advantage_R)).tolist()
        # Row by row: index_add_ adds in any order on an accelerator, and the last bits would differ from run to run.
        sums = [row_T.sum() for row_T in torch.split(torch.where(over_N, values_N, 0), sizes)]
        return torch.stack(sums)[self.answer_N] if sums else values_N


def _check(table: TokenTable) -> None:
    shapes = {column.name: tuple(getattr(table, column.name).shape) for column in fields(table)}
    tokens, answers = shapes["answer_N"], shapes["advantage_R"]
    wrong = {name: shape for name, shape in shapes.items() if shape != (answers if name.endswith("R") else tokens)}
    if wrong or len(tokens) != 1 or len(answers) != 1:
        raise refusal(
            "a table has one number per token, or one per answer",
            got=shapes,
            why="a shift by one token trains on nonsense without an error",
            do=f"give columns of {tokens} tokens and {answers} answers",
        )
    if table.counted_N.dtype != torch.bool:
        raise refusal(
            "counted_N must be boolean",
            got=table.counted_N.dtype,
            why="as a number it would pick tokens 0 and 1 instead of masking",
            do="compare: counted_N = weights_N > 0",
        )
    if bool((table.answer_N.diff() < 0).any()):
        raise refusal(
            "the tokens of an answer must stand together, in the order of the answers",
            got=table.answer_N.tolist()[:20],
            why="what is summed over an answer is summed over neighbours",
            do="concatenate the answers one after the other",
        )
    if tokens[0] and (int(table.answer_N.min()) < 0 or int(table.answer_N.max()) >= answers[0]):
        raise refusal(
            "answer_N names an answer that was not credited",
            got=f"{int(table.answer_N.min())} to {int(table.answer_N.max())}",
            why="its tokens have no verdict",
            do=f"number the answers 0 to {answers[0] - 1}, in the order of advantage_R",
        )
