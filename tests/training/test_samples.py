from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import pytest

from core_parts import QUESTION, group, rollout
from selfdistill.errors import ConfigError
from selfdistill.methods import GRPO, RLCSD, SDPO, AntiSD, PiDistill
from selfdistill.methods.base import Credit, CreditOrDrop
from selfdistill.prompts.context import SolutionOrFeedback, teacher_messages
from selfdistill.prompts.render import CUT, Renderer
from selfdistill.training.samples import CreditedRollout, credit_rollouts, replay_sample
from selfdistill.types import Context, DropReason, Message, RolloutGroup
from tiny_models import tiny_tokenizer


@pytest.fixture(scope="module")
def renderer() -> Renderer:
    return Renderer(tiny_tokenizer(), context_length=400, max_teacher_tokens=300)


def test_sampled_is_trained_plus_dropped_in_order(renderer: Renderer) -> None:
    groups = [group([0.0, 1.0, None, 0.0], "wrong"), group([0.0, 0.0])]
    prepared = credit_rollouts(SDPO(), groups, renderer)
    assert [entry.rollout for entry in prepared] == [r for group_members in groups for r in group_members.rollouts]
    assert [entry.drop for entry in prepared] == [
        None, DropReason.ONLY_SUCCESS, DropReason.ENV_RAISED, None, DropReason.NO_CONTEXT, DropReason.NO_CONTEXT,
    ]  # fmt: skip
    assert all((not entry.samples) == (entry.drop is not None) for entry in prepared)


def test_a_sample_holds_the_sampled_ids_and_both_prompts(renderer: Renderer) -> None:
    first = credit_rollouts(SDPO(), [group([0.0, 1.0])], renderer)[0]
    done = first.rollout.completion
    read = renderer.prompt(teacher_messages(QUESTION.messages, Context("solution", solution="answer 1")))
    [sample] = first.samples
    assert sample.student_prompt_ids == first.rollout.prompt_ids
    assert sample.teacher_prompts == (read,)
    assert sample.completion_ids == done.token_ids
    assert sample.sampled_logprobs == done.logprobs
    assert (sample.distil, sample.advantage, sample.reference) == (1.0, 0.0, 0.0)
    assert (sample.context_kind, first.cut) == ("solution", False)


def test_a_method_without_a_teacher_asks_for_no_teacher_prompt(renderer: Renderer) -> None:
    [sample] = credit_rollouts(GRPO(reference_kl=0.1), [group([0.0, 1.0])], renderer)[1].samples
    assert sample.teacher_prompts == ()
    assert (sample.distil, sample.advantage, sample.reference) == (0.0, 0.5, 0.1)
    assert sample.context_kind == "none"


def test_an_answer_without_tokens_is_dropped(renderer: Renderer) -> None:
    no_signal_steps = rollout(0, 0.0, "wrong", token_ids=())
    assert credit_rollouts(SDPO(), [RolloutGroup(QUESTION, (no_signal_steps,))], renderer) == [
        CreditedRollout(no_signal_steps, drop=DropReason.EMPTY_COMPLETION)
    ]


def test_a_field_that_was_cut_is_said_and_a_frame_that_does_not_fit_is_dropped(renderer: Renderer) -> None:
    group_members = RolloutGroup(QUESTION, (rollout(0), rollout(1, 1.0, text="sorted(xs)[1:] " * 200)))
    cut = credit_rollouts(SDPO(), [group_members], renderer)[0]
    assert cut.cut
    assert len(cut.samples[0].teacher_prompts[0]) <= 300
    narrow = credit_rollouts(SDPO(), [group_members], replace(renderer, max_teacher_tokens=20))[0]
    assert (narrow.drop, narrow.samples) == (DropReason.CONTEXT_TOO_LONG, ())


def test_a_verdict_stays_where_the_teachers_prompt_does_not_fit(renderer: Renderer) -> None:
    """A failure as long as the context minus its question: nobody can be told anything, and it is punished all the
    same: its advantage is −2/3 over a deviation of √(1/3). A distilled one has nothing else to be."""
    size = 400 - len(renderer.prompt(QUESTION.messages))
    wordy = replace(rollout(0, token_ids=(7,) * size), prompt_ids=renderer.prompt(QUESTION.messages))
    group_members = RolloutGroup(QUESTION, (wordy, rollout(1, 1.0), rollout(2, 1.0, token_ids=(7,))))
    entry, fits, _ = credit_rollouts(AntiSD(), [group_members], renderer)
    [sample] = entry.samples
    assert sample.advantage == pytest.approx(-(2 / 3) / (1 / 3) ** 0.5)
    assert (sample.teacher_prompts, sample.distil, sample.context_kind) == ((), 0.0, "none")
    assert (entry.drop, entry.context, entry.lost, fits.lost) == (None, None, 1, 0)
    dropped = credit_rollouts(SDPO(), [group_members], renderer)[0]
    assert (dropped.drop, dropped.lost) == (DropReason.CONTEXT_TOO_LONG, 0)


def test_of_several_uses_only_those_that_do_not_fit_are_left_out(renderer: Renderer) -> None:
    """π-Distill's three, with a demonstration whose frame does not fit: only the bare reader's reward needs none."""
    task = replace(QUESTION, demonstration="twelve")
    said = [replace(rollout(n, float(n), task=task), stage="informed") for n in range(2)]
    entry = credit_rollouts(PiDistill(), [RolloutGroup(task, tuple(said))], replace(renderer, max_teacher_tokens=20))[1]
    assert [(s.uid, s.advantage, s.distil) for s in entry.samples] == [("r1+2", 0.25, 0.0)]
    assert (entry.drop, entry.context, entry.lost) == (None, None, 2)


def test_a_context_that_speaks_against_an_answer_is_cut_like_one_that_speaks_for_it(renderer: Renderer) -> None:
    """The wrong group member is too long: its text is shortened, the frame around it stays, and it is counted."""
    wrong = rollout(2, 0.0, text="sorted(xs)[1:] " * 200)
    entry = credit_rollouts(RLCSD(), [RolloutGroup(QUESTION, (rollout(0, 1.0), rollout(1, 1.0), wrong))], renderer)[0]
    [sample] = entry.samples
    [told], [against] = sample.teacher_prompts, sample.against_prompts
    assert entry.cut
    assert told == renderer.prompt(teacher_messages(QUESTION.messages, Context("solution", solution="answer 1")))
    assert 280 < len(against) <= 300
    first, last = renderer.tokenizer.decode(told).split("answer 1")
    text = renderer.tokenizer.decode(against)
    assert text.startswith(first + "sorted(xs)")
    assert text.endswith(CUT + last), "the closing instruction and the assistant's header"


def test_the_teacher_prompt_leaves_room_for_the_answer(renderer: Renderer) -> None:
    wordy = rollout(0, token_ids=(7,) * 250)
    group_members = RolloutGroup(QUESTION, (wordy, rollout(1, 1.0, text="sorted(xs)[1:] " * 200)))
    [sample] = credit_rollouts(SDPO(context=SolutionOrFeedback()), [group_members], renderer)[0].samples
    assert len(sample.teacher_prompts[0]) + 250 <= 400


def test_a_rehearsed_answer_is_held_to_the_start_and_to_nothing_else() -> None:
    sample = replay_sample(rollout(3), weight=0.5)
    assert (sample.reference, sample.distil, sample.advantage) == (0.5, 0.0, 0.0)
    assert (sample.teacher_prompts, sample.context_kind) == ((), "replay")


def test_log_probabilities_stay_with_the_prompt_the_words_were_sampled_from(renderer: Renderer) -> None:
    """However a use names that prompt; elsewhere they are known only where they are to be corrected for."""
    other, told = (Message("user", "Say yes."),), Context("demonstration", demonstration="twelve")
    asked = teacher_messages(QUESTION.messages, told)
    uses = (
        Credit(advantage=1.0),
        Credit(told, advantage=1.0, question=QUESTION.messages, student_reads_context=True),
        Credit(advantage=1.0, question=other),
        Credit(advantage=1.0, question=other, correct=True),
        Credit(advantage=1.0, text="yes"),
    )

    @dataclass(frozen=True, slots=True)
    class Unsaid(GRPO):
        def credit(self, group: RolloutGroup, index: int) -> CreditOrDrop:
            return uses

    @dataclass(frozen=True, slots=True)
    class Uses(Unsaid):
        needs_sampler_logprobs: ClassVar[bool] = True

    said = rollout(0, prompt_ids=renderer.prompt(asked))
    with pytest.raises(ConfigError, match="`correct` and does not declare it"):
        credit_rollouts(Unsaid(), [RolloutGroup(QUESTION, (said,))], renderer)
    [entry] = credit_rollouts(Uses(), [RolloutGroup(QUESTION, (said,))], renderer)
    known = said.completion.logprobs
    assert [sample.sampled_logprobs for sample in entry.samples] == [known, known, (), known, ()]
    assert [sample.uid for sample in entry.samples] == ["r0", "r0+1", "r0+2", "r0+3", "r0+4"]
    student_reads_context = entry.samples[1]
    assert (student_reads_context.student_prompt_ids, student_reads_context.live) == (said.prompt_ids, True)
    assert student_reads_context.teacher_prompts == (renderer.prompt(QUESTION.messages),)
