"""The credit of an answer: exact log-ratio, whole texts, and a test of sight that a reader can redo."""

from __future__ import annotations

from math import exp, log

import pytest
import torch

from selfdistill.analysis.control_contexts import COUNT, PROSE, contexts_of_others, control_contexts
from selfdistill.analysis.token_credit import CreditQuery, credit
from selfdistill.envs.verbs.lexicon import verb_question
from selfdistill.errors import DataError
from selfdistill.losses import LossSpec, TeacherStates, TokenWeights, fused_loss
from selfdistill.prompts.context import teacher_messages
from selfdistill.prompts.render import Renderer
from selfdistill.runs.credit import ErrorVisibility
from selfdistill.training.recording import token_texts
from selfdistill.types import Context

QUESTION = (verb_question("gukar", "list"),)
REVERSED = "```python\ndef f(xs):\n    xs = xs[::-1]\n    return xs\n```"
SORTED = "```python\ndef f(xs):\n    xs = sorted(xs)\n    return xs\n```"
TOLD = Context("document", document="To gukar a list means to sort the items.")


def asked(renderer: Renderer, answer: str = REVERSED, correct: str = "", **more) -> CreditQuery:
    found = renderer.answer(correct) if correct else ()
    return CreditQuery(QUESTION, renderer.answer(answer), more.pop("context", TOLD), found, **more)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_evidence_is_that_of_the_kernel(policy, renderer, temperature: float) -> None:
    question = asked(renderer, temperature=temperature)
    found = credit(policy, renderer, question)
    answer = question.answer
    with torch.no_grad():
        student_ND = policy.answer_hidden([(renderer.prompt(QUESTION), answer)])
        teacher_ND = policy.answer_hidden([(renderer.prompt(teacher_messages(QUESTION, TOLD)), answer)])
    head, tokens_N = policy.head(), torch.tensor(answer)
    spec, weights = LossSpec(temperature=temperature), TokenWeights(torch.ones(len(answer)))
    stats = fused_loss(spec, student_ND, head, tokens_N, weights, teacher=[TeacherStates(teacher_ND, head)]).stats
    assert [token.log_ratio for token in found.tokens] == pytest.approx(stats.log_ratio_N.tolist(), abs=1e-4)
    assert [token.student for token in found.tokens] == pytest.approx(stats.logprobs_N.tolist(), abs=1e-4)
    assert [token.entropy for token in found.tokens] == pytest.approx(stats.entropy_N.tolist(), abs=1e-3)
    assert found.total == pytest.approx(float(stats.log_ratio_N.sum()), abs=1e-3)


def test_a_teacher_that_knows_nothing_more_says_the_same(policy, renderer) -> None:
    found = credit(policy, renderer, asked(renderer, context=Context("bare")))
    assert {token.log_ratio for token in found.tokens} == {0.0}
    assert found.blamed == ()


def test_the_blame_falls_on_the_wrong_line_and_the_right_one_is_named_in_its_place(policy, renderer) -> None:
    found = credit(policy, renderer, asked(renderer, correct=SORTED), control_contexts(TOLD, plain_words=False))
    assert "".join(token.text for token in found.tokens) == REVERSED + "<|end|>"
    wrong = found.blamed[0]
    assert wrong.text == "    xs = xs[::-1]\n"
    assert wrong.log_ratio < -5
    assert wrong.alternatives[0].text == "    xs = sorted(xs)\n"
    assert wrong.alternatives[0].teacher > 0.9 > 0.5 > wrong.alternatives[0].student
    assert [a.teacher for a in wrong.alternatives] == sorted((a.teacher for a in wrong.alternatives), reverse=True)
    assert found.error_visibility is not None
    assert found.error_visibility.seen
    assert len(found.error_visibility.control) == COUNT
    assert "The model sees" in found.conclusion
    assert "xs[::-1]" in found.conclusion
    assert "1 in 20" in found.error_visibility.rule


def test_what_says_nothing_of_the_question_shows_no_sight(policy, renderer) -> None:
    other = Context("document", document="To bamok a text means to reverse the text.")
    found = credit(policy, renderer, asked(renderer, correct=SORTED, context=other), [TOLD])
    assert found.error_visibility is not None
    assert not found.error_visibility.seen
    assert "too weak to see the mistake" in found.conclusion


def test_own_evidence_is_what_the_others_do_not_cause(policy, renderer) -> None:
    """With one other context it is the plain difference of the two teachers."""
    other = Context("document", document="To gukar a list means to reverse the items.")
    found = credit(policy, renderer, asked(renderer), [other])
    there = credit(policy, renderer, asked(renderer, context=other))
    difference = [here.teacher - than.teacher for here, than in zip(found.tokens, there.tokens, strict=True)]
    assert [token.own for token in found.tokens] == pytest.approx(difference, abs=1e-4)
    assert found.error_visibility is not None
    assert found.error_visibility.value == pytest.approx(-min(difference), abs=1e-4)
    assert found.error_visibility.control == pytest.approx([max(difference)], abs=1e-4), "seen from the other side"


@pytest.mark.parametrize(
    ("error_visibility", "seen"),
    [
        (ErrorVisibility(True, 0.2, (0.1, -3.0)), True),
        (ErrorVisibility(True, 0.2, (0.1, 0.3)), False),
        (ErrorVisibility(True, -0.1, (-0.2, -0.3)), False),
        (ErrorVisibility(False, 0.7, (0.1, 0.2)), True),
        (ErrorVisibility(False, 0.69, (0.1, 0.2)), False),
    ],
)
def test_sight_needs_a_gain_and_more_than_under_every_other_context(
    error_visibility: ErrorVisibility, seen: bool
) -> None:
    assert error_visibility.seen is seen
    assert "1 in 3" in error_visibility.rule


def test_probabilities_of_alternatives_belong_to_their_side(policy, renderer) -> None:
    found = credit(policy, renderer, asked(renderer), top=50)
    for token in found.tokens:
        assert 0 < sum(a.student for a in token.alternatives) <= 1.0001
        said = [a for a in token.alternatives if a.text == token.text]
        if said:
            assert log(said[0].teacher) - log(said[0].student) == pytest.approx(token.log_ratio, abs=1e-3)
            assert said[0].student == pytest.approx(exp(token.student), rel=1e-3)


def test_a_context_that_does_not_fit_is_cut_and_an_empty_answer_refused(policy, renderer) -> None:
    long = Context("document", document="sort the items, " * 400)
    assert credit(policy, renderer, asked(renderer, context=long)).cut
    assert not credit(policy, renderer, asked(renderer)).cut
    with pytest.raises(DataError, match="the answer is empty"):
        credit(policy, renderer, CreditQuery(QUESTION, (), TOLD))
    small = Renderer(policy.tokenizer, 16, 16)
    with pytest.raises(DataError, match="do not fit the model"):
        credit(policy, small, asked(small))


def test_letters_of_several_tokens_stand_whole_at_their_last(policy) -> None:
    text = "aä😀 b\n"
    ids = tuple(policy.tokenizer.encode(text, add_special_tokens=False))
    found = token_texts(policy.tokenizer, ids)
    assert "".join(found) == text
    assert "" in found
    assert "😀" in found


def test_unrelated_contexts_keep_the_form_and_change_what_is_said() -> None:
    both = Context("x", feedback="Wrong answer.\nInput: [1]\nOutput: 1\nExpected: 2", solution="```python\nx\n```")
    made = control_contexts(both, plain_words=True)
    assert len({context.feedback for context in made}) == len({context.solution for context in made}) == COUNT
    assert all(context.feedback.startswith("Wrong answer.\nInput: ") for context in made)
    assert all(context.solution.startswith("```python\ndef f(") and not context.reply for context in made)
    assert [c.reply for c in control_contexts(Context("x", reply="No."), plain_words=True)] == list(PROSE)
    spoken = control_contexts(Context("x", reply="No."), plain_words=False)
    assert all(context.reply.startswith("No, ") for context in spoken)


def test_contexts_of_other_tasks_have_the_same_sections() -> None:
    one, two = Context("feedback", feedback="a"), Context("feedback", feedback="b")
    known = [("t", one), ("u", two), ("u", two), ("v", Context("solution", solution="c")), ("w", one)]
    given = Context("shuffled-feedback", feedback="this task's own")
    assert [c.feedback for c in contexts_of_others(one, [*known, ("x", given)], "t")] == ["b"], (
        "not w: it says the same"
    )
    assert contexts_of_others(Context("reply", reply="x"), known, "t") == []


def test_each_other_task_is_one_unrelated_context() -> None:
    """Forty reports of two tasks are two comparisons, and forty tasks as many as the test takes."""
    own = Context("feedback", feedback="own")
    reports = [Context("feedback", feedback=f"report {number}") for number in range(40)]
    two = [("uv"[number % 2], report) for number, report in enumerate(reports)]
    assert sorted(int(c.feedback.split()[1]) % 2 for c in contexts_of_others(own, two, "t")) == [0, 1]
    many = contexts_of_others(own, [(f"u{number}", report) for number, report in enumerate(reports)], "t")
    assert len({context.feedback for context in many}) == COUNT


def test_prose_is_not_about_the_question() -> None:
    assert not [text for text in PROSE if "number" in text or "python" in text]
