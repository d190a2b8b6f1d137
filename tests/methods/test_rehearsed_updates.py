"""Replay beside several updates, on tables of three tokens: which update each prompt is in, and what it weighs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from formulas import moved, row
from torch import Tensor
from toy import MANY, Caught, Toy, ToyPolicy

from selfdistill.config import from_settings
from selfdistill.methods import get_method
from selfdistill.models.teacher import Frozen, Live, Teacher
from selfdistill.training.samples import credit_rollouts
from selfdistill.training.session import Learner, Totals
from selfdistill.training.update import update_all
from selfdistill.types import DropReason, RolloutGroup, TrainingSample

P, START = [0.5, 0.3, 0.2], [0.3, 0.3, 0.4]
HELD = moved(P, (row(START) / row(P)).log())  # ∂KL(p‖p_start)/∂logits


class EveryStep(Caught):
    """Keeps the gradients of every update."""

    def __init__(self, policy: ToyPolicy) -> None:
        super().__init__(policy)
        self.updates: list[dict[str, Tensor]] = []

    def step(self, closure: None = None) -> None:
        super().step()
        self.updates.append(dict(self.gradients))


def updates(sizes: Sequence[int], prompts: int, *, dropped: Sequence[int] = (), **settings: object) -> list[dict]:
    """Gradients by table of all updates of a step, one for each group of this size; whole groups may be dropped. The
    prompts that are replayed have tables of their own."""
    names = ["bare", *(f"old{number}" for number in range(prompts))]
    policy = ToyPolicy({name: [START] for name in names})
    reference_policy = Teacher(Frozen(), policy)
    policy.become({name: [P] for name in names})
    toy = Toy({name: [P] for name in names})
    groups = [
        toy.group(*(toy.said("ab"[place % 2], float(place % 2)) for place in range(size)), name=f"g{number}-")
        for number, size in enumerate(sizes)
    ]
    for number in dropped:
        lost = [replace(r, outcome=None, drop=DropReason.ENV_RAISED) for r in groups[number].rollouts]
        groups[number] = RolloutGroup(groups[number].task, tuple(lost))
    replayed = [
        TrainingSample(f"old{number}", (number + 1,), (), (0,), (-0.69,), reference=0.5) for number in range(prompts)
    ]
    optimizer = EveryStep(policy)
    config = from_settings({"tasks_per_update": 1, "micro_batch_tokens": MANY, "optimiser": {"max_grad_norm": 0}})
    method = get_method("grpo", settings)
    learner = Learner(method, method.loss_specs(1.0), Teacher(Live(), policy), reference_policy, optimizer, [])
    session = SimpleNamespace(config=config, policy=policy, learner=learner)
    prepared = credit_rollouts(method, groups, toy.renderer)
    update_all(session, groups, prepared, replayed, Totals())
    return optimizer.updates


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
