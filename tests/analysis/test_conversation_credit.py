"""The credit of conversations: of a run, as it was learned from, and of messages given by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from selfdistill.analysis.conversation_credit import hindsight, read_messages, turns_of
from selfdistill.analysis.credit_source import credit_of_conversation, credit_of_rollout
from selfdistill.config import NamedComponent
from selfdistill.errors import DataError
from selfdistill.models.load import load_policy
from selfdistill.prompts.context import teacher_messages
from selfdistill.prompts.render import Renderer
from selfdistill.runs import RolloutRecord, read_run
from selfdistill.runs.events import no_callback
from selfdistill.training.loop import train
from selfdistill.types import Context, Message
from step_parts import whole_logits
from tiny_models import tiny_policy_dir

# As Qwen3 with thinking off: the header of a turn has an empty thinking that the history lacks.
REWRITES = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n\n</think>\n\n{% endif %}"
)
TALK = """
from selfdistill import Message, Observation, Outcome, Task

class Talk:
    name = "talk"

    def tasks(self, split):
        return [Task("q", (Message("user", "Say a number."),))] if split == "train" else []

    def start(self, task):
        return []

    def step(self, state, completion):
        state.append(completion.text)
        if len(state) < 3:
            return Observation((Message("user", f"That was turn {len(state)}."),))
        return Outcome(0.0, "No number was found.")

talk = Talk()
"""
CONVERSATION = (
    Message("user", "Say a number."),
    Message("assistant", "seven"),
    Message("user", "Say another."),
    Message("assistant", "eight"),
    Message("tool", "8"),
)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A template that extends a conversation, and one that writes its history anew."""
    shelf = tmp_path_factory.mktemp("models")
    return {
        "extends": tiny_policy_dir(shelf / "extends"),
        "rewrites": tiny_policy_dir(shelf / "rewrites", template=REWRITES),
    }


@pytest.mark.parametrize(("template", "kind"), [("extends", "observation"), ("rewrites", "solution_or_feedback")])
def test_a_conversation_of_a_run_is_read_as_it_was_learned_from(
    config_of, models, tmp_path: Path, template: str, kind: str
) -> None:
    """The checkpoint has moved by next to nothing: its log-ratios are those of training, in every turn and segment."""
    model = models[template]
    (tmp_path / "talk.py").write_text(TALK)
    method, sampling = {"name": "sdpo", "context": {"kind": kind}}, {"max_new_tokens": 5}
    config = config_of(
        model=str(model), steps=1, checkpoint_every=1, tasks_per_step=1, rollouts_per_task=2, method=method,
        sampling=sampling, thinking="template", optimiser={"lr": 1e-12, "warmup_steps": 0},
    )  # fmt: skip
    config = replace(config, env=NamedComponent(f"{tmp_path}/talk.py:talk"))
    path = train(config)
    record = next(r for r in read_run(path).rollouts() if r.log_ratio)
    rewritten = [turn.fresh for turn in record.turns]
    found = credit_of_rollout(path, record.uid, no_callback)
    assert [token.recorded for token in found.tokens] == list(record.log_ratio)
    assert [token.log_ratio for token in found.tokens] == pytest.approx(list(record.log_ratio), abs=1e-3)
    assert max(map(abs, record.log_ratio)) > 0.05
    assert [turn.fresh for turn in found.turns] == [False, *rewritten[1:]]
    assert [turn.read[-1].content for turn in found.turns] == ["Say a number.", "That was turn 1.", "That was turn 2."]
    assert [place for turn in found.parts for place in turn[1]] == list(range(len(record.token_ids)))
    texts = ["That was turn 1.", "That was turn 2.", "No number was found."]
    if kind == "observation":
        assert [turn.context for turn in found.turns] == [Context("observation", feedback=text) for text in texts]
        assert [turn.context for turn in record.turns] == [{"feedback": text} for text in texts]
    else:
        assert (found.context, [turn.context for turn in found.turns]) == (
            Context("feedback", feedback=texts[2]),
            [None] * 3,
        )
        assert [bool(turn.teacher_read) for turn in record.turns] == rewritten
        again = credit_of_rollout(path, record.uid, no_callback, context=found.context)  # prompts written anew
        assert [token.log_ratio for token in again.tokens] == pytest.approx(list(record.log_ratio), abs=1e-3)
    with pytest.raises(DataError, match="a corrected answer is that of a single answer"):
        credit_of_rollout(path, record.uid, no_callback, correct="x")


def test_messages_given_by_hand_are_read_with_what_followed_each_turn(models) -> None:
    model = models["rewrites"]
    found = credit_of_conversation(CONVERSATION, no_callback, model=str(model))
    assert [turn.context for turn in found.turns] == [
        Context("reply", reply="Say another."), Context("observation", feedback="8")
    ]  # fmt: skip
    policy = load_policy(str(model), device="cpu")
    renderer = Renderer(policy.tokenizer, policy.context_length, policy.context_length)
    start, end = found.turns[1].place, len(found.tokens)
    assert "".join(token.text for token in found.tokens[:start]).startswith("seven")
    answer = renderer.answer("eight")
    for number, reads in enumerate((CONVERSATION[:3], teacher_messages(CONVERSATION[:3], found.turns[1].context))):
        logprobs_TV = whole_logits(policy.base, renderer.prompt(reads), answer).log_softmax(-1)
        wanted = logprobs_TV.gather(1, torch.tensor(answer)[:, None]).squeeze(1).tolist()
        own = [(token.student, token.teacher)[number] for token in found.tokens[start:end]]
        assert own == pytest.approx(wanted, abs=1e-3)
    quiet = credit_of_conversation((*CONVERSATION[:4], Message("tool", " ")), no_callback, model=str(model))
    assert [token.log_ratio for token in quiet.tokens[start:]] == pytest.approx([0.0] * (end - start))
    assert [token.own for token in quiet.tokens[start:]] == [None] * (end - start)


def test_a_method_that_was_a_value_is_not_needed(tmp_path: Path, config_of) -> None:
    path = train(config_of("hashed", steps=1, checkpoint_every=1))
    saved = json.loads((path / "config.json").read_text())
    saved["settings"]["method"] = {"name": "python:Mine", "x": 1}
    (path / "config.json").write_text(json.dumps(saved))
    record: RolloutRecord = next(r for r in read_run(path).rollouts() if r.log_ratio)
    assert len(credit_of_rollout(path, record.uid, no_callback).tokens) == len(record.token_ids)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "holds no conversation"),
        ("[]", "holds no conversation"),
        ('{"messages": 3}', "holds no conversation"),
        ('[{"role": "user", "content": 3}]', r"messages\[0\] is no message"),
        ('[{"role": "bot", "content": "a"}]', r"messages\[0\] is no message"),
        ('[{"role": "user", "content": "a"}]', "no turn of the assistant"),
        ('[{"role": "assistant", "content": "a"}]', "begins with the assistant"),
        (json.dumps([{"role": r, "content": "a"} for r in ("user", "assistant", "assistant")]), "follow one another"),
        (json.dumps([{"role": r, "content": "a"} for r in ("user", "assistant")]), "no message follows"),
    ],
)
def test_what_is_no_conversation_is_refused(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "talk.json"
    file.write_text(text)
    with pytest.raises(DataError, match=message):
        credit_of_conversation(read_messages(file), no_callback)


def test_hindsight_is_the_users_reply_else_the_tools_result() -> None:
    question, turns = turns_of([Message("system", "s"), *CONVERSATION])
    assert [message.role for message in question] == ["system", "user"]
    assert hindsight(turns)[1].kind == "observation"
