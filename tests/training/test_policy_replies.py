"""The policy as a judge: which weights reply, and what a run records of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from selfdistill.config import NamedComponent
from selfdistill.envs.judge import ReplyOptions
from selfdistill.errors import EnvError
from selfdistill.models.teacher import Live, Teacher
from selfdistill.prompts.render import Renderer
from selfdistill.runs import read_run
from selfdistill.training.loop import train
from selfdistill.training.policy_replies import PolicyReplies, initial_weights
from selfdistill.types import Message

PROMPT = [Message("system", "Grade."), Message("user", "An answer.")]
OPTIONS = ReplyOptions(8)


def test_the_initial_weights_reply_whatever_was_trained(tiny_policy) -> None:
    policy = tiny_policy()
    renderer = Renderer(policy.tokenizer, policy.context_length, policy.context_length)
    initial = initial_weights(policy, [None, Teacher(Live(), policy)])
    assert initial_weights(policy, [initial])._shadow is initial._shadow, "kept once"
    before = PolicyReplies(policy, renderer, 0)([PROMPT], ["a"], OPTIONS)
    with torch.no_grad():
        for number, value in enumerate(policy.trainable().values()):
            value.add_(torch.randn(value.shape, generator=torch.Generator().manual_seed(number)))
    trained = [value.clone() for value in policy.trainable().values()]
    with Teacher(Live(), policy).applied(policy, Teacher(Live(), policy).views()[0]):  # as where a teacher is measured
        assert PolicyReplies(policy, renderer, 0, initial)([PROMPT], ["a"], OPTIONS) == before
    assert PolicyReplies(policy, renderer, 0)([PROMPT], ["a"], OPTIONS) != before
    assert all(torch.equal(*pair) for pair in zip(trained, policy.trainable().values(), strict=True))
    (reply, read), too_long = PolicyReplies(policy, renderer, 0)(
        [PROMPT, [Message("user", "long " * policy.context_length)]], ["a", "b"], OPTIONS
    )
    assert (len(reply.token_ids) <= 8, read, too_long) == (True, len(renderer.prompt(PROMPT)), None)


def test_draws_follow_from_the_seed_and_the_name(tiny_policy) -> None:
    policy = tiny_policy()
    renderer = Renderer(policy.tokenizer, policy.context_length, policy.context_length)
    drawn = [
        PolicyReplies(policy, renderer, seed)([PROMPT], [uid], ReplyOptions(16, temperature=1.0))[0][0].token_ids
        for seed, uid in ((0, "a"), (0, "a"), (0, "b"), (1, "a"))
    ]
    assert drawn[0] == drawn[1]
    assert len({*drawn}) == 3


def test_a_run_drops_what_its_judge_cannot_grade_and_says_why(config_of, tmp_path: Path) -> None:
    """The embedded model writes no JSON: the run ends, and its step has the cost."""
    (tmp_path / "rows.jsonl").write_text('{"prompt": "Say yes."}\n')
    config = config_of(model="sapling", steps=1, method={"name": "grpo"}, data=str(tmp_path / "rows.jsonl"))
    options = {"rubric": "Short.", "model": "policy", "request": {"max_tokens": 4}}
    config = replace(config, env=NamedComponent("judge", options))
    with pytest.raises(EnvError, match="failed on more than half of a batch") as error:
        train(config)
    assert "the judge's reply cannot be used" in str(error.value)
    (step,) = read_run(config.out).steps
    answers = list(read_run(config.out).rollouts())
    assert {record.drop for record in answers} == {"bad_outcome"}
    assert step.extra["judge_calls"] == len(answers)
    assert 0 < step.extra["judge_completion_tokens"] <= 4 * len(answers)
