"""Updates of a tiny model with a user in it: what is learned, what is refused, offline and beside a server."""

import math
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from selfdistill.errors import JournalError
from selfdistill.live.admission import Answers, before_training
from selfdistill.live.conversations import locate
from selfdistill.live.exchange import Feedback
from selfdistill.live.gain import Round, measured, with_gain
from selfdistill.live.journal import Journal
from selfdistill.live.learner import CORRECTING, LiveLearner
from selfdistill.live.learning import LiveLearning
from selfdistill.live.lessons import RIGHT, LiveLesson, waiting
from selfdistill.live.measuring import AGREED, OPENINGS, Frame, Scores, Situation, judges, teacher_reads, worded
from selfdistill.live.probe import ProbePrompt, probe_set, solved
from selfdistill.live.update import finish, perform
from selfdistill.live.updates import Updates
from selfdistill.models.load import load_policy
from selfdistill.models.policy import Policy
from selfdistill.prompts.render import Renderer
from selfdistill.types import Completion, Context, Message, TokenIds, WholePrompt
from tests.live_parts import answered, request, user
from tests.toy_user import COMPLAINT, QUESTIONS, toy_user_dir

OPTIONS = LiveLearning(
    lessons=2, completions=4, rounds=4, lr=5e-3, max_new_tokens=6, max_prompt_tokens=128, replay=2,
    harm=1.0, kl_cap=3.0,
)  # fmt: skip
ASKED = tuple(WholePrompt((Message("user", text),)) for text in QUESTIONS)
LESSONS = tuple(
    LiveLesson(f"{n}.x", n, f"session {n}", ASKED[n], "no", Context("reply", reply=COMPLAINT), COMPLAINT)
    for n in (0, 1)
)


def opened(*frames: Frame, options: LiveLearning = OPTIONS) -> tuple[LiveLearner, Policy]:
    policy = load_policy(str(toy_user_dir()), device="cpu", lora=OPTIONS.lora)
    renderer = Renderer(policy.tokenizer, policy.context_length, policy.context_length)
    probe = [ProbePrompt((Message("user", text),)) for text in ("list", "sorted", "first")]
    return LiveLearner(policy, renderer, probe, options, frames=frames or ("section", "instruction")), policy


def agreeing(learner: LiveLearner) -> float:
    """The share of fresh answers to all questions that say yes."""
    prompts = [learner.measuring.prompt(question) for question in ASKED]
    found = learner.measuring.sampled(prompts, "measured", count=4)
    return sum(done.text == "yes" for own in found for done in own) / (4 * len(ASKED))


def journal_of(path: Path, count: int = 2) -> Journal:
    """A journal of the toy model: answers "no", each with words of a user."""
    journal = Journal.serve(path)
    journal.versions.publish(str(toy_user_dir()), str(toy_user_dir()))
    for number, question in enumerate(QUESTIONS):
        asked = request(user(question))
        exchange = answered(journal, locate(journal, asked, {"x-session-id": f"s{number}"}), asked, "no")
        if number < count:
            journal.add_feedback(Feedback(exchange.receipt, text=COMPLAINT))
    return journal


def test_an_update_teaches_answers_that_nobody_complains_about_and_keeps_the_served_weights() -> None:
    learner, _ = opened()
    before = agreeing(learner)
    found = learner.update(LESSONS, ASKED)
    assert found.admission.admitted, found.admission.reason
    assert (found.trained, len(found.lessons)) == (True, 2)
    assert found.numbers["frame"] == "instruction"  # the other one changes nothing
    assert before < 0.3
    assert agreeing(learner) > before + 0.5
    with learner.measuring.served():
        assert agreeing(learner) == before


def test_a_candidate_that_goes_too_far_goes_back_half_of_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once: where that is too far as well, nothing is served."""
    half, refused = opened(), opened()
    measured = list[dict[str, torch.Tensor]]()

    def probed(learner: LiveLearner, *found: list[float]) -> None:
        changes = iter(found)

        def kept(_: Sequence[Completion]) -> tuple[list[float], list[float], tuple[int, int]]:
            measured.append({name: value.data.clone() for name, value in learner.policy.trainable().items()})
            return [], next(changes), (0, 0)

        monkeypatch.setattr(learner, "_probed", kept)

    lost, same = [-1.0] * 5 + [0.0] * 5, [0.0] * 10
    probed(half[0], lost, same)
    probed(refused[0], lost, lost)
    found = half[0].update(LESSONS, ASKED)
    assert found.admission.admitted, found.admission.reason
    assert [row["name"] for row in found.numbers["too_far"] if row["finding"] == "fail"] == ["tasks"]
    with half[0].measuring.served():
        served = {name: value.data.clone() for name, value in half[1].trainable().items()}
    for name, value in half[1].trainable().items():
        assert torch.equal(value, measured[0][name].lerp(served[name], 0.5))
    assert agreeing(half[0]) > agreeing(opened()[0])
    found = refused[0].update(LESSONS, ASKED)
    assert [each.name for each in found.admission.obstacles] == ["tasks"]
    assert "too_far" in found.numbers


def test_rounds_take_turns_over_the_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    learner, _ = opened(options=replace(OPTIONS, round_questions=2, completions=2))
    rounds, sampled = list[set[TokenIds]](), learner.measuring.sampled

    def watched(prompts: Sequence[TokenIds], label: str, **options: int) -> list[list[Completion]]:
        if "-round-" in label:
            rounds.append({*prompts} - {*learner.held})
        return sampled(prompts, label, **options)

    monkeypatch.setattr(learner.measuring, "sampled", watched)
    assert learner.update(LESSONS, ASKED).trained
    assert [len(each) for each in rounds] == [2, 2, 2]
    assert len(set[TokenIds]().union(*rounds)) > 4  # two lessons may have a question in common


def test_a_candidate_is_compared_with_fresh_answers_and_lessons_without_a_gain_are_watched(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The student's answers of before training chose the lessons: against them, a candidate that answers like the
    student would seem to follow these."""
    learner, _ = opened("instruction")
    situations = learner.situations(LESSONS, ASKED)
    served, candidate = learner._both(situations, "instruction")
    assert served.answers != candidate.answers
    for one, two in zip(served.scores["turns"], candidate.scores["turns"], strict=True):
        assert len(one) == len(two) == max(OPTIONS.completions, -(-16 // len(situations)))
    disregard = learner.measuring.disregard

    def none_of_the_second(
        situations: Sequence[Situation], answers: Sequence[Sequence[Completion]], frame: Frame
    ) -> list[Scores]:
        """No answer takes the second lesson into account."""
        pairs = zip(situations, disregard(situations, answers, frame), strict=True)
        return [(0.0,) * len(row) if each.lesson == LESSONS[1] else row for each, row in pairs]

    monkeypatch.setattr(learner.measuring, "disregard", none_of_the_second)
    found = learner.update(LESSONS, ASKED)
    assert found.numbers["without_gain"] == ["1.x"]
    (sessions,) = (each for each in found.admission.criteria if each.name == "sessions")
    assert sessions.reason.startswith("of 2 conversations")
    held = opened(options=replace(OPTIONS, learned_tokens=1))[0]
    held.probe = [(replace(held.probe[0][0], answer="no"), held.measuring.prompt(ASKED[1]))]
    assert [len(done.token_ids) > 1 for done in held._solutions()] == [True]  # the whole answer is looked at


def test_a_wording_that_does_not_help_the_teacher_is_refused_before_training() -> None:
    learner, policy = opened("section")
    weights = {name: value.clone() for name, value in policy.trainable().items()}
    found = learner.update(LESSONS, ASKED)
    assert not found.admission.admitted
    assert not found.trained
    assert all(torch.equal(value, weights[name]) for name, value in policy.trainable().items())


def test_replies_of_other_conversations_are_read_together_one_of_each() -> None:
    def lesson(session: str, reply: str) -> LiveLesson:
        return replace(LESSONS[0], key=reply, session=session, context=Context("reply", reply=reply))

    learner, policy = opened("together", "instruction", "turns")
    given = [lesson("a", "Yes."), lesson("b", "Yes!"), lesson("b", "Say yes."), lesson("c", "Yes.")]
    found = learner.situations(given, ())
    assert [each.replies for each in found] == ["Say yes.\nYes.", "Yes.\nYes!", "Yes.\nSay yes.", "Say yes.\nYes."]
    system, question = teacher_reads(found[1], "together").messages
    assert (system.content, question) == ("Yes.\nYes!", ASKED[0].messages[0])
    assert judges("together", given[0]) == ("turns",)
    assert learner._frames(given) == (("together", "instruction"), ("turns",))
    assert learner._frames(given[:1]) == (("instruction",), ("turns",))
    newer = [given[0], replace(given[2], seq=9), given[1]]  # as lessons are chosen, the newest first
    assert [each.replies for each in learner.situations(newer, ())] == [
        "Yes.\nSay yes.",
        "Yes.\nSay yes.",
        "Yes.\nYes!",
    ]
    alone = opened("together", "instruction", "turns", options=replace(OPTIONS, together=False))[0]
    assert alone._frames(given) == (("instruction",), ("turns",))
    for words in (f"Say {'yes ' * 100}", "a " * policy.context_length):  # one that drowns the others, and no room
        assert learner.situations([given[0], lesson("b", words)], ())[0].replies == "Yes."


def test_a_reply_that_does_not_fit_is_left_out_and_said(tmp_path: Path) -> None:
    learner, policy = opened()
    huge = "yes " * policy.context_length
    assert learner.reads(LESSONS[0])
    assert not learner.reads(replace(LESSONS[0], context=Context("reply", reply=huge), words=huge))
    assert not learner.reads(replace(LESSONS[0], context=Context("solution", demonstration=huge)))
    long = "yes " * (OPTIONS.max_prompt_tokens // 4)  # each part fits, but not all turns beside an answer
    turns = replace(LESSONS[0], context=Context("reply", reply=long), words=long, answer=long * 8)
    assert learner.fits(WholePrompt((Message("user", long),)))
    assert not learner.reads(turns)
    assert len(learner.situations([turns], ASKED)) == 1  # no related question either
    with journal_of(tmp_path / "journal.db", count=0) as journal:
        journal.add_feedback(Feedback(next(iter(journal.exchanges())).receipt, text=huge))
        found = perform(journal, Updates(journal.database).queue("now").id, OPTIONS, device="cpu")
        assert (found.state, found.lessons) == ("rejected", ())
        assert "1 times a reply that is too long (max_prompt_tokens)" in found.reason
        assert found.numbers["left_out"]["a reply that is too long"] == 1


def test_a_lesson_that_is_read_fits_behind_the_words_of_a_content_user_too() -> None:
    """They are compared; where one of both prompts fell back to the bare question, they would not be alike."""
    learner, _ = opened()
    measuring = learner.measuring

    def length(answer: str, words: str) -> int:
        situation = Situation(replace(LESSONS[0], answer=answer), ASKED[0], True)
        return len(measuring.prompt(worded(situation, "turns", words)))

    answers = ["no " * count for count in range(1, measuring.room)]
    fits_alone = [each for each in answers if length(each, COMPLAINT) < measuring.room]
    fits_both = [each for each in fits_alone if length(each, RIGHT) < measuring.room]
    assert len(fits_both) < len(fits_alone)
    assert [each for each in answers if learner.reads(replace(LESSONS[0], answer=each))] == fits_both


def test_an_answer_that_takes_the_lesson_into_account_is_likelier_behind_it() -> None:
    learner, policy = opened()
    situation = Situation(LESSONS[0], ASKED[1], False)
    answers = [Completion(text, text, tuple(learner.renderer.answer(text))) for text in ("yes", "no")]
    ((yes, no),) = learner.measuring.disregard([situation], [answers], "turns")

    def logprob(messages: tuple[Message, ...], answer: Completion) -> float:
        prompt = learner.renderer.prompt(messages)
        with torch.no_grad():
            logits = policy.model(torch.tensor([[*prompt, *answer.token_ids]])).logits[0].double().log_softmax(-1)
        return float(sum(logits[len(prompt) + n - 1, token] for n, token in enumerate(answer.token_ids)))

    for found, answer in zip((yes, no), answers, strict=True):
        content, complaint = (
            logprob(
                (*ASKED[0].messages, Message("assistant", "no"), Message("user", words), AGREED, *ASKED[1].messages),
                answer,
            )
            for words in (RIGHT, COMPLAINT)
        )
        assert found == pytest.approx(content - complaint, abs=1e-3)
    assert (yes or 0) < 0 < (no or 0)
    ((none,),) = learner.measuring.disregard([situation], [[Completion("b", "", ())]], "turns")
    assert none is None
    assert judges("instruction", LESSONS[0]) == ("turns",)  # the wording that is distilled does not judge itself


def test_replies_that_go_on_are_passed_over_and_feedback_is_not() -> None:
    learner, policy = opened()
    spoken = [replace(LESSONS[0], next_turn=True)]
    (score,) = learner.measuring.corrections(spoken)
    words, found = learner.renderer.encode(COMPLAINT), []
    for opening in (text for pair in OPENINGS for text in pair):
        before = learner.renderer.encode(f"A user asked: {QUESTIONS[0]}\n\nThe assistant answered: no\n\n{opening}")
        ids = torch.tensor([[*before, *words]])
        with torch.no_grad():
            logits = policy.model(ids).logits[0].double().log_softmax(-1)
        found.append(float(sum(logits[len(before) + n - 1, token] for n, token in enumerate(words))))
    assert score == pytest.approx((found[0] - found[1] + found[2] - found[3]) / 2, abs=1e-3)
    kept, passed_over = learner._correcting([*spoken, LESSONS[1]])
    assert LESSONS[1] in kept
    assert set(passed_over) == ({spoken[0].key} if score <= CORRECTING else set())


def test_lessons_are_chosen_by_one_half_of_the_answers_and_tested_on_the_other() -> None:
    """Choosing what helped and testing it on the same answers would admit a third of all candidates without a gain."""
    situations = [
        Situation(replace(LESSONS[0], key=str(lesson)), ASKED[0], True) for lesson in range(4) for _ in range(4)
    ]

    def admitted(gain: float, seed: int) -> bool:
        rng = random.Random(seed)

        def scores(mean: float) -> Round:
            return Round([[]] * 16, {"turns": [tuple(rng.gauss(mean, 1.5) for _ in range(2)) for _ in situations]})

        *_, found = with_gain(situations, scores(0.0), {"instruction": scores(-gain)})
        return before_training(found, Answers((9,) * 9), Answers((9,) * 9)).admitted

    assert sum(admitted(0.0, seed) for seed in range(200)) <= 10
    assert sum(admitted(2.0, seed) for seed in range(50)) >= 40
    student = Round([[]] * 16, {"turns": [(0.0, 0.0)] * 16})
    teacher = Round([[]] * 16, {"turns": [(-1.0, -1.0)] * 8 + [(1.0, 1.0)] * 8})
    frame, kept, _ = with_gain(situations, student, {"instruction": teacher})
    assert (frame, kept) == ("instruction", list(range(8)))
    cut = Round([[]] * 16, {"turns": [(-1.0, None)] * 4 + [(None, None)] * 4 + [(1.0, 1.0)] * 8})
    assert measured(situations, student, cut, "instruction") == {"0", "2", "3"}


def test_movement_is_the_kl_of_the_candidates_own_answers() -> None:
    learner, policy = opened()
    prompts = [learner.measuring.prompt(question) for question in ASKED]
    answers = learner.measuring.sampled(prompts, "served")
    assert learner.measuring.kl(prompts, answers) == pytest.approx([0.0] * len(prompts), abs=1e-6)
    for value in policy.trainable().values():
        value.data.add_(0.02)
    answers = learner.measuring.sampled(prompts, "moved")
    moved = learner.measuring.kl(prompts, answers)
    assert all(math.isfinite(value) and value > 0 for value in moved)


def test_offline_an_update_becomes_the_served_version_once_and_can_be_undone(tmp_path: Path) -> None:
    with journal_of(tmp_path / "journal.db") as journal:
        updates = Updates(journal.database)
        record = perform(journal, updates.queue("now").id, OPTIONS, device="cpu")
        assert (record.state, Path(record.path).name) == ("training", "update-000001")
        assert waiting(journal, updates.history())  # not before it is served
        done = finish(journal, record, lambda path, parent: journal.versions.publish("toy", path, parent=parent))
        assert (done.state, done.version, len(done.lessons)) == ("accepted", 2, 2)
        assert (Path(done.path) / "adapter_model.safetensors").is_file()
        assert not waiting(journal, updates.history())
        again = perform(journal, updates.queue("now").id, OPTIONS, device="cpu")
        assert (again.state, again.reason) == ("rejected", "nothing came back that no update has learned")
        journal.versions.undo()
        assert [each.state for each in updates.all] == ["undone", "rejected"]
        assert not waiting(journal, updates.history())


def test_nothing_is_learned_while_a_version_is_pinned(tmp_path: Path) -> None:
    with journal_of(tmp_path / "journal.db") as journal:
        journal.versions.pin(1)
        record = perform(journal, Updates(journal.database).queue("now").id, OPTIONS, device="cpu")
        assert (record.state, record.lessons) == ("rejected", ())
        assert "version 1 is pinned" in record.reason
        with pytest.raises(JournalError, match="cannot become training"):
            perform(journal, record.id, OPTIONS, device="cpu")


def test_the_probe_set_is_read_from_a_file_or_short_facts(tmp_path: Path) -> None:
    assert len(probe_set()) >= 80
    assert all(prompt.answer for prompt in probe_set())
    (tmp_path / "probe.jsonl").write_text('{"prompt": "Say hi."}\n{"prompt": "2 + 2?", "answer": 4}\n')
    assert [prompt.answer for prompt in probe_set(str(tmp_path / "probe.jsonl"))] == ["", "4"]
    assert solved("Paris", "It is paris.")
    assert not solved("12", "It is 120.")
    assert not solved("12", "<think>12</think>It is 13.")


def test_the_defaults_are_those_that_were_measured() -> None:
    """EXPERIMENTS.md, 2026-11-27: an update of the 0.5 B model after four replies, in which every criterion was met."""
    found = LiveLearning()
    assert (found.questions, found.completions, found.rounds, found.lr) == (16, 2, 6, 5e-4)
    assert (found.round_questions, found.learned_tokens, found.replay, found.replay_weight) == (8, 64, 8, 1.0)
    assert (found.kl_cap, found.harm, found.movement) == (1.0, 0.1, 0.002)
