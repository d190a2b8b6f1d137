"""Replay beside several updates, on tables of three tokens: which update each prompt is in, and what it weighs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from formulas import moved, row

from selfdistill.methods import get_method
from selfdistill.testing import three_token_policy
from selfdistill.types import DropReason, Message, RolloutGroup, TrainingSample

P, START = [0.5, 0.3, 0.2], [0.3, 0.3, 0.4]
HELD = moved(P, (row(START) / row(P)).log())  # ∂KL(p‖p_start)/∂logits


def updates(sizes: Sequence[int], prompts: int, *, dropped: Sequence[int] = (), **settings: object) -> list[dict]:
    """Gradients by table of all updates of a step, one for each group of this size; whole groups may be dropped. The
    prompts that are replayed have tables of their own."""
    names = ["question", *(f"old{number}" for number in range(prompts))]
    toy = three_token_policy({name: [P] for name in names}, start={name: [START] for name in names})
    groups = [
        toy.group(*(toy.answer("ab"[place % 2], float(place % 2)) for place in range(size)), name=f"g{number}-")
        for number, size in enumerate(sizes)
    ]
    for number in dropped:
        lost = [replace(r, outcome=None, drop=DropReason.ENV_RAISED) for r in groups[number].rollouts]
        groups[number] = RolloutGroup(groups[number].task, tuple(lost))
    replayed = [
        TrainingSample(name, toy.renderer.prompt([Message("user", name)]), (), (0,), (-0.69,), reference=0.5)
        for name in names[1:]
    ]
    stay = [{"question": [P]}] * len(groups)
    return toy.update(get_method("grpo", settings), *groups, later=stay, replayed=replayed).all_gradients


@pytest.mark.parametrize("reduction", ["sequence-mean", "token-mean"])
@pytest.mark.parametrize(
    ("sizes", "dropped"),
    [([4], ()), ([2, 2], ()), ([2, 6], ()), ([2, 2, 2, 2, 2], ()), ([2, 4, 2, 2], (0, 2))],
)
def test_every_prompt_is_used_once_and_weighs_what_it_would_in_a_single_update(sizes, dropped, reduction) -> None:
    """Two prompts, each with a weight of ½ beside one trained answer in N/K: the mean size of K updates with N."""
    made = updates(sizes, 2, dropped=dropped, reduction=reduction)
    left = [size for number, size in enumerate(sizes) if number not in dropped]
    assert len(made) == len(left)
    for name in ("old0", "old1"):
        found = [update[name][0] for update in made if update[name].any()]
        assert len(found) == 1, "in one update, once"
        torch.testing.assert_close(found[0], 0.5 * len(left) / sum(left) * HELD, atol=1e-6, rtol=0)


def test_prompts_are_spread_evenly_over_the_updates() -> None:
    made = updates([2, 2, 2], 8)
    counts = [sum(bool(update[f"old{number}"].any()) for number in range(8)) for update in made]
    assert sorted(counts) == [2, 3, 3]
    few = updates([2] * 4, 2)
    assert [sum(bool(update[name].any()) for name in ("old0", "old1")) for update in few] == [0, 1, 0, 1]


def test_a_sum_divides_nothing() -> None:
    made = updates([2, 6], 1, reduction="sum")
    torch.testing.assert_close(sum(update["old0"][0] for update in made), 0.5 * HELD, atol=1e-6, rtol=0)
