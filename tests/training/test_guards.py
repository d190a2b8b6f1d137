"""Guards as functions of records, what they read of rollouts, and the pre-flight; at the end two whole runs."""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace

import pytest

from selfdistill.config import resolved
from selfdistill.errors import CollapseError, ConfigError, TrainingError
from selfdistill.models.checkpoint import latest_checkpoint
from selfdistill.runs import (
    Estimate,
    EvalRecord,
    Event,
    Guard,
    GuardRecord,
    RolloutRecord,
    StepEnd,
    StepRecord,
    read_run,
)
from selfdistill.runs.guards import GuardOptions
from selfdistill.runs.records import EvalSplit
from selfdistill.runs.stats import share, share_error
from selfdistill.training.guards import (
    check_probe,
    decide,
    evaluation_due,
    needed_tasks,
    probe_split,
    reading_due,
)
from selfdistill.training.loop import train
from selfdistill.training.preflight import preflight, recorded_preflight
from selfdistill.training.signals import PrivateWords, measure_signals, repeats
from selfdistill.types import Completion, Message, Outcome, Rollout, RolloutGroup, Task

CALM = {
    "answers": 64.0,
    "length": 10.0,
    "accuracy_error": 0.05,
    "u_low": -1.0,
    "u_high": 1.0,
    "token": 0.1,
    "style": 0.1,
}


def step_of(number: int, **changes: float) -> StepRecord:
    """A step of a run that goes well; `changes` are fields, numbers of `extra`, or signals."""
    known = {"reward": 0.5, "accuracy": 0.5, "loss": 1.0, "grad_norm": 1.0, "lr": 1e-3, "truncated": 0.0}
    own = {name: changes.pop(name) for name in tuple(changes) if name in known}
    extra = {"entropy": 1.0, "updates": 1.0, "skipped": 0.0, "divergence": 0.1}
    extra |= {name: changes.pop(name) for name in tuple(changes) if name in (*extra, "refresh_shock")}
    return StepRecord(number, 64 * number, 640 * number, 1.0, **(known | own), extra=extra, signals=CALM | changes)


def run_of(*parts: tuple[int, dict[str, float]]) -> list[StepRecord]:
    """So many steps of each kind, one after the other."""
    kinds = [changes for count, changes in parts for _ in range(count)]
    return [step_of(number, **changes) for number, changes in enumerate(kinds, start=1)]


def eval_of(step: int, solved: int, split: EvalSplit = "train", count: int = 100) -> EvalRecord:
    return EvalRecord(step, 0, 0.0, split, share(solved, count), count, solved)


def signals_of(found: GuardRecord) -> list[str]:
    return [one.signal for one in found.findings]


@pytest.mark.parametrize(
    ("changes", "signal"),
    [
        ({"length": 4.0}, "length"),
        ({"length": 21.0}, "length"),
        ({"entropy": 2.5}, "entropy"),
        ({"entropy": 0.05}, "entropy"),
        ({"truncated": 0.6}, "truncated"),
        ({"repeated": 0.3}, "repeated"),
        ({"u_low": -6.0}, "log_ratio"),
        ({"token": 0.6}, "token"),
        ({"style": 0.6}, "style"),
        ({"leaked": 0.3}, "leaked"),
        ({"copied": 0.8}, "copied"),
        ({"accuracy": 0.1}, "accuracy"),
        ({"skipped": 1.0}, "skipped"),
        ({"refresh_shock": 0.06}, "refresh_shock"),
    ],
)
def test_each_signal_alone_warns_or_holds_and_never_stops(changes, signal) -> None:
    steps = run_of((8, {}), (3, changes))
    found = decide(steps, [], GuardOptions())
    assert (found.action, signals_of(found)) == ("warn", [signal])
    if signal not in ("refresh_shock", "accuracy"):
        assert decide(steps[:-1], [], GuardOptions()).action == "ok", "three steps in a row"
    alone = signal in ("token", "style", "copied", "skipped")
    assert decide(steps, [], GuardOptions(), moves=True).action == ("warn" if alone else "hold")
    assert decide(steps, [], GuardOptions(action="warn"), moves=True).action == "warn"
    assert decide(steps, [], GuardOptions(action="off")).action == "ok"


def test_signals_of_two_families_stop_and_those_of_one_do_not() -> None:
    two = run_of((8, {}), (3, {"accuracy": 0.1, "entropy": 3.0}))
    found = decide(two, [], GuardOptions())
    assert (found.action, found.since, signals_of(found)) == ("stop", 8, ["entropy", "accuracy"])
    assert decide(two, [], GuardOptions(action="hold"), moves=True).action == "hold"
    one = run_of((8, {}), (3, {"truncated": 0.9, "repeated": 0.9, "length": 50.0}))
    assert decide(one, [], GuardOptions()).action == "warn"


def test_a_change_that_solves_more_is_learning() -> None:
    better = run_of((8, {"accuracy": 0.1}), (3, {"accuracy": 0.9, "length": 3.0, "entropy": 0.01}))
    assert decide(better, [], GuardOptions()).action == "ok"
    fallen = [*better, *(replace(step, step=step.step + 11) for step in run_of((3, {"length": 3.0, "accuracy": 0.1})))]
    assert decide(fallen, [], GuardOptions()).action == "stop"


def test_the_loss_is_no_signal_and_hard_tasks_are_not_stopped() -> None:
    assert decide(run_of((8, {}), (9, {"loss": 1e9})), [], GuardOptions()).action == "ok"
    hard = {"accuracy": 0.0, "failed": 1.0}
    assert decide(run_of((20, hard)), [], GuardOptions()).action == "ok"
    assert decide(run_of((20, hard | {"truncated": 1.0})), [], GuardOptions()).action == "stop"
    assert decide(run_of((4, hard | {"truncated": 1.0})), [], GuardOptions()).action == "warn"


def test_a_probe_stops_beyond_its_interval_and_brings_back_the_last_step_that_was_well() -> None:
    steps, options = run_of((20, {})), GuardOptions()
    evals = [eval_of(0, 50), eval_of(5, 80), eval_of(10, 78), eval_of(15, 70), eval_of(20, 40)]
    assert decide(steps[:15], evals[:4], options).action == "ok"
    found = decide(steps, evals, options)
    assert (found.action, found.since, signals_of(found)) == ("stop", 15, ["train"])
    assert found.findings[0].threshold == pytest.approx(evals[1].accuracy.low)


def test_right_answers_are_read_after_an_evaluation_and_then_as_often_as_they_move() -> None:
    options = GuardOptions()

    def read(*lost: float | None, evals: int = 0) -> bool:
        """Whether after the step that follows; one number for each step."""
        steps = [step_of(n, **({} if one is None else {"lost": one})) for n, one in enumerate(lost, start=1)]
        return reading_due(steps, [eval_of(evals, 100, "held_out")], options, len(steps) + 1)

    assert read(), "after the first step"
    assert [read(0.001, *[None] * n) for n in range(4)] == [False, False, False, True], "slow: every fourth"
    assert [read(0.01, *[None] * n) for n in range(2)] == [False, True], "another .025 in two steps and a half"
    assert read(0.02)
    assert read(float("nan"))
    assert read(0.001, evals=1), "the first after an evaluation"
    assert not reading_due([], [], options, 1), "nothing was evaluated"


def test_lost_answers_have_accuracy_measured_at_once_and_rarely_in_vain() -> None:
    options, before = GuardOptions(), eval_of(0, 100, "held_out")
    calm, lost = [step_of(1, kept=0.9, lost=0.01)], [step_of(1, kept=0.5, lost=0.3)]
    assert not evaluation_due(calm, [before], options)
    assert evaluation_due(lost, [before], options)
    found = decide(lost, [before], options)
    assert (found.action, signals_of(found)) == ("warn", ["kept"]), "a bound alone does not stop"
    assert (found.findings[0].value, found.findings[0].threshold) == (0.5, 0.75)
    measured = eval_of(1, 98, "held_out")
    assert decide(lost, [before, measured], options).action == "ok", "it was measured, and well"
    in_vain = replace(measured, extra={"early": 1.0})
    later = [step_of(n, kept=0.5, lost=0.3) for n in (1, 2, 3)]
    assert not evaluation_due(later[:2], [before, in_vain], options)
    assert evaluation_due(later, [before, in_vain], options), "the next one waits two steps"
    fallen = replace(in_vain, accuracy=share(80, 100))
    assert evaluation_due(later[:2], [before, fallen], options), "one that saw a fall was not in vain"
    low = [before, eval_of(1, 60, "held_out")]
    assert not evaluation_due([step_of(2, kept=1.0, lost=0.0)], low, options), "nothing was lost since"
    stop = decide([*calm, step_of(2, kept=0.5, lost=0.3)], [before, eval_of(2, 60, "held_out")], options)
    assert (stop.action, stop.since) == ("stop", 1), "the last step whose answers were still likely"


def test_what_is_handed_back_is_older_than_a_slow_fall() -> None:
    """.62 of 16 tasks is not surely below all of them, and answers kept behind it are those of a fallen run."""
    steps = [step_of(step, kept=1.0, lost=0.0) for step in range(1, 61)]
    evals = [eval_of(0, 16, "held_out", 16), eval_of(20, 16, "held_out", 16)]
    evals += [eval_of(40, 10, "held_out", 16), eval_of(59, 9, "held_out", 16)]
    stop = decide(steps, evals, GuardOptions())
    assert (stop.action, stop.since) == ("stop", 39), "the last step that was read behind the good evaluation"


def test_tasks_that_grow_harder_have_no_outcome_signal() -> None:
    harder = run_of((8, {}), (3, {"accuracy": 0.1}))
    assert signals_of(decide(harder, [], GuardOptions())) == ["accuracy"]
    assert decide(harder, [], GuardOptions(outcome="off")).action == "ok"
    skipped = [replace(step, extra={**step.extra, "solved_passed_over": 0.0}) for step in harder]
    assert decide(skipped, [], GuardOptions()).action == "ok", "skip_solved"


def test_forgetting_warns_while_the_own_tasks_improve_and_stops_beyond_what_is_allowed() -> None:
    steps = run_of((10, {}))
    evals = [eval_of(0, 10), eval_of(0, 95, "forgetting"), eval_of(10, 60), eval_of(10, 30, "forgetting")]
    assert decide(steps, evals, GuardOptions()).action == "warn"
    assert decide(steps, evals, GuardOptions(probe="forgetting")).action == "stop"
    assert decide(steps, evals, GuardOptions(probe="forgetting", max_forgetting=0.9)).action == "warn"
    for left, action in ((60, "warn"), (40, "stop")):
        held_out = [eval_of(0, 10), eval_of(0, 95, "held_out"), eval_of(10, 60), eval_of(10, left, "held_out")]
        assert decide(steps, held_out, GuardOptions()).action == action
    no_gain = [eval_of(0, 10), eval_of(0, 95, "held_out"), eval_of(10, 10), eval_of(10, 60, "held_out")]
    assert decide(steps, no_gain, GuardOptions()).action == "stop", "nothing is gained for it"
    assert decide(steps, no_gain, GuardOptions(action="warn")).action == "warn"
    assert decide(steps, no_gain, GuardOptions(probe="train")).action == "ok"
    evals = [eval_of(0, 10), eval_of(0, 95, "held_out"), eval_of(10, 60), eval_of(10, 60, "held_out")]
    worse = run_of((8, {}), (3, {"accuracy": 0.1}))
    assert decide(worse, evals, GuardOptions()).action == "stop", "the rollouts have fallen since"


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"shortest": 2.0, "longest": 1.5}, "guards.shortest = 2, guards.longest = 1.5"),
        ({"shortest": 1.2}, "guards.shortest = 1.2"),
        ({"least_entropy": 3.0}, "guards.least_entropy = 3"),
        ({"action": "panic"}, "guards.action"),
        ({"actoin": "warn"}, "action"),
        ({"patience": 0}, "guards.patience"),
    ],
)
def test_limits_that_contradict_each_other_are_refused(config_of, settings, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        config_of(guards=settings)


def test_a_probe_that_cannot_decide_is_refused_with_the_number_that_it_needs(config_of) -> None:
    assert needed_tasks() == 12
    options = GuardOptions(probe="held_out")
    check_probe(options, {"held_out": 12}, every=5)
    for tasks, every, text in (({"held_out": 11}, 5, "12 tasks"), ({}, 5, "no tasks"), ({"held_out": 12}, 0, "every")):
        with pytest.raises(ConfigError, match=text):
            check_probe(options, tasks, every)
    with pytest.raises(ConfigError, match="at least 12 tasks are needed"):
        train(config_of("Splits", guards={"probe": "held_out"}))


def rollout_of(number: int, text: str, reward: float = 0.0, **changes) -> RolloutRecord:
    ids = tuple(range(len(text.split())))
    known = {"prompt": "Add two numbers.", "stop": "end", "token_ids": ids, "logprobs": (-1.0,) * len(ids)}
    return RolloutRecord(1, f"1-0-{number}", "q", completion=text, reward=reward, **(known | changes))


def test_signals_of_a_step() -> None:
    u = (0.0,) * 150 + (-3.0,) * 50
    pushed = {"log_ratio": u, "token_ids": (7,) * 160 + (8,) * 40, "logprobs": (-1.0,) * 200}
    texts = ("so",) * 160 + ("x",) * 40
    found = measure_signals(
        [rollout_of(0, "a b c", 1.0), rollout_of(1, "a b", **pushed, token_texts=texts)], PrivateWords()
    )
    assert found["length"] == (3 + 200) / 2
    assert (found["groups"], found["flat"], found["failed"]) == (1, 0, 0)
    assert found["repeated"] == 0.5, "forty times one token"
    assert (found["token"], found["token_id"], found["style"]) == (0.8, 8, 0.2)
    assert (found["u_low"], found["u_mid"], found["u_high"]) == (-3.0, 0.0, 0.0)
    assert found["accuracy_error"] == share_error([(1, 2)])
    assert repeats([1, 2] * 20)
    assert not repeats(range(40))
    assert not repeats([1] * 12), "too short to tell"


def test_a_leak_is_words_of_the_context_that_the_student_cannot_have() -> None:
    words, context = (
        PrivateWords(),
        {"feedback": "Hidden test seven of the suite fails here. You wrote one two three four five."},
    )
    first = [rollout_of(0, "I wrote: one two three four five", context=context), rollout_of(1, "nothing")]
    words.add(first)
    shares = words.shares(first)
    assert shares == {"leaked": 0.0, "copied": 0.0}, "words of an answer are quoted in its feedback"
    later = [rollout_of(0, "Since hidden test seven of the suite fails"), rollout_of(1, "As the feedback says, no.")]
    assert words.shares([*later, *first])["leaked"] == 0.5
    own = [replace(later[0], prompt="Why: hidden test seven of the suite?")]
    assert words.shares(own)["leaked"] == 1.0, "'test seven of the suite fails' is not in its prompt"
    assert words.shares([replace(own[0], completion="hidden test seven of the suite")])["leaked"] == 0.0
    sought = {"demonstration": "the only way to do it well is this"}
    words.add([rollout_of(0, "no", context=sought)])
    told = rollout_of(0, "the only way to do it badly")
    assert words.shares([told, replace(told, reward=1.0)]) == {"leaked": 0.0, "copied": 1.0}


def answers_of(solved: int, count: int) -> list[RolloutGroup]:
    tasks = [Task(f"q{number}", (Message("user", "?"),)) for number in range(count)]
    outcomes = [Outcome(float(number < solved)) for number in range(count)]
    return [
        RolloutGroup(task, (Rollout(task, (1,), Completion("u", "a"), outcome),))
        for task, outcome in zip(tasks, outcomes, strict=True)
    ]


@pytest.mark.parametrize(
    ("bare", "read", "count", "decision", "text"),
    [
        (2, 12, 16, "go", "significantly"),
        (9, 8, 16, "refuse", "no better"),
        (1, 1, 16, "refuse", "no better"),
        (31, 29, 55, "refuse", "no better"),
        (0, 1, 16, "refuse", "no better"),
        (3, 6, 16, "undecided", "evaluation.tasks"),
        (3, 0, 5, "undecided", "needs 6 tasks"),
        (16, 16, 16, "undecided", "and there are 0"),
        (0, 0, 16, "undecided", "no answer is solved"),
    ],
)
def test_pre_flight_refuses_what_does_not_help_and_says_where_it_cannot_decide(
    bare, read, count, decision, text
) -> None:
    found = preflight(answers_of(bare, count), answers_of(read, count))
    assert found is not None
    assert (found.decision, found.tasks) == (decision, count)
    assert text in found.reason
    assert found.gain.value == pytest.approx((read - bare) / count)


def test_no_common_task_is_no_pre_flight() -> None:
    assert preflight(answers_of(1, 3), []) is None


def test_a_stopped_run_has_its_last_good_checkpoint_back_and_resumes_from_there(config_of, recorder) -> None:
    changes = {
        "steps": 6,
        "checkpoint_every": 1,
        "guards": {"truncated": 1.0},
        "evaluation": {"every": 1, "tasks": 4},
    }
    config = config_of("Falls", method="grpo", **changes)
    with pytest.raises(CollapseError, match=r"accuracy on train fell from 1\.00 at step 0"):
        train(config, recorder)
    run = read_run(config.out)
    stop = run.guards[-1]
    assert stop.action == "stop"
    assert stop.restored == stop.since < stop.step == run.steps[-1].step
    latest = latest_checkpoint(run.path / "checkpoints")
    assert latest is not None
    assert latest.name == f"step-{stop.restored:06d}"
    assert (run.path / "checkpoints" / f"stopped-{stop.step:06d}").is_dir(), "nothing is lost"
    assert [event.record for event in recorder.events if isinstance(event, Guard)][-1] == stop
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    found = next(line for line in lines if line["event"] == "guard")["findings"][-1]
    assert (found["signal"], found["value"]) == ("train", 0.0)
    assert found["threshold"] > 0.5
    path = train(replace(config, guards=replace(config.guards, action="warn")), resume=True)
    assert [record.step for record in read_run(path).steps] == [1, 2, 3, 4, 5, 6]


def test_the_forgetting_set_decides_where_nothing_else_is_measured() -> None:
    steps, evals = run_of((10, {})), [eval_of(0, 95, "forgetting"), eval_of(10, 60, "forgetting")]
    found = decide(steps, evals, GuardOptions())
    assert (found.action, signals_of(found)) == ("stop", ["forgetting"])
    assert decide(steps, [eval_of(0, 0, "held_out"), *evals], GuardOptions()).action == "warn"
    assert probe_split(evals, GuardOptions()) == "forgetting"
    assert probe_split([*evals, eval_of(0, 0)], GuardOptions()) == "train"


def test_a_rate_that_destroys_the_model_ends_a_run_on_logs_that_samples_nothing(config_of) -> None:
    settings = {
        "method": {"name": "user_replies", "logged": True},
        "guards": {"action": "stop"},
        "evaluation": {"every": 0, "tasks": 16},
        "optimiser": {"lr": 0.05, "warmup_steps": 0},
        "steps": 40,
    }
    config = config_of("Log", **settings)
    with pytest.raises(CollapseError, match="forgetting"):
        train(config)
    run = read_run(config.out)
    assert {record.split for record in run.evals} == {"forgetting"}, "a log has no right answers"
    assert (run.evals[0].accuracy.value, run.steps[0].completions_sampled) == (1.0, 0)
    assert run.guards[-1].step == len(run.steps) <= 4, "it is seen between evaluations"
    gentle = replace(config, out=f"{config.out}-gentle", steps=4, optimiser=replace(config.optimiser, lr=1e-6))
    assert read_run(train(gentle)).summary is not None


def test_a_context_that_does_not_help_is_refused_before_the_first_step(config_of, monkeypatch) -> None:
    found = preflight(answers_of(9, 16), answers_of(8, 16))
    monkeypatch.setattr("selfdistill.training.loop.preflight", lambda bare, teacher: found)
    config = config_of(guards={"action": "stop"}, steps=1)
    with pytest.raises(TrainingError, match=r"0.50 with the context, 0.56 without, on 16 tasks"):
        train(config)
    assert read_run(config.out).preflight == found
    assert read_run(config.out).steps == ()
    with pytest.raises(TrainingError, match=r"guards.preflight=off"):
        train(config, resume=True)
    train(replace(config, guards=replace(config.guards, preflight="off")), resume=True)
    assert len(read_run(config.out).steps) == 1


@pytest.mark.parametrize("changes", [{}, {"lora": {"rank": 2}, "method": "grpo"}])
def test_right_answers_are_read_again_and_a_doubt_is_measured_the_same_after_a_resume(config_of, tmp_path, changes):
    settings = {
        "guards": {"action": "stop", "preflight": "off"},
        "evaluation": {"every": 4, "tasks": 4, "rollouts": 2, "temperature": 1.0},
        "optimiser": {"lr": 0.05, "warmup_steps": 0},
        "steps": 4,
        "checkpoint_every": 2,
        **changes,
    }
    whole = read_run(train(config_of("Remembered", **settings, out=str(tmp_path / "whole"))))

    def fail(event: Event) -> None:
        if isinstance(event, StepEnd) and event.record.step == 3:
            raise ZeroDivisionError

    config = config_of("Remembered", **settings, out=str(tmp_path / "halved"))
    with pytest.raises(ZeroDivisionError):
        train(config, fail)
    halved = read_run(train(config, resume=True))
    assert [step.signals for step in halved.steps] == [step.signals for step in whole.steps]
    first = whole.steps[0]
    assert first.signals["lost"] > 0.1, "of answers that this rate destroys"
    assert first.signals["kept"] < 0.8
    assert first.seconds["reread"] > 0
    early = [record.step for record in whole.evals if "early" in record.extra and record.split == "train"]
    assert early == [record.step for record in halved.evals if "early" in record.extra and record.split == "train"]
    assert early[0] == 1
    assert whole.summary is not None, "all was right when it was measured: nothing is stopped"
    assert "kept" not in whole.steps[-1].signals, "it is evaluated after this step"


def test_no_answer_is_read_again_where_guards_are_off_or_too_few_are_right(config_of) -> None:
    config = config_of("Remembered", guards={"action": "stop", "preflight": "off"}, evaluation={"every": 0, "tasks": 4})
    run = read_run(train(config))
    assert not any("kept" in step.signals for step in run.steps), "four right answers"


GAIN = {"value": 0.3, "n": 16, "low": 0.1, "high": 0.5}
NONE = {"value": -0.03, "n": 55, "low": -0.1, "high": 0.04}


def evaluation_of(path, config, *gains: dict) -> str:
    """A directory as `eval --teacher --out` writes it."""
    path.mkdir()
    (path / "config.json").write_text(json.dumps({"settings": resolved(config)}))
    rows = [
        {"kind": "feedback", "tasks": 16, "bare": 0.2, "with_context": 0.5, "gain": GAIN, "p": 0.01} | g for g in gains
    ]
    (path / "context_gain.json").write_text(json.dumps({"bare": GAIN, "gains": rows}))
    return str(path)


def named(config, path: str):
    return replace(config, guards=replace(config.guards, action="stop", preflight=path))


def test_pre_flight_takes_the_gain_of_an_evaluation_of_the_same_settings(config_of, tmp_path) -> None:
    config = config_of(method="sdpo", evaluation={"every": 0, "tasks": 2})
    # On the 0.5 B model: the default feedback section on the preference "one short sentence, no code".
    worse = {"tasks": 55, "bare": 0.56, "with_context": 0.53, "gain": NONE, "p": 0.75}
    go, refused = (evaluation_of(tmp_path / name, config, one) for name, one in (("go", {}), ("no", worse)))
    found = recorded_preflight(named(config, go))
    assert found is not None
    assert (found.decision, found.tasks, found.p) == ("go", 16, 0.01)
    assert recorded_preflight(config) is None
    both = evaluation_of(tmp_path / "both", config, worse, {"kind": "solution"}, {"kind": "reply", "p": 0.001})
    assert recorded_preflight(named(config, both)).p == 0.01, "SDPO reads no replies"
    with pytest.raises(TrainingError, match=r"0\.53 with the context, 0\.56 without, on 55 tasks"):
        train(named(config, refused))


@pytest.mark.parametrize(
    ("changes", "gains", "text"),
    [
        ({"seed": 5}, [{}], "seed is 5 here"),
        ({"context": {"templates": {"message": "{question} {context}"}}}, [{}], "context.templates.message is"),
        ({"method": "grpo"}, [{}], "method.name is 'grpo'"),
        ({}, [{"kind": "reply"}], "it decided on reply"),
        ({}, [{"p": None}], "too few tasks"),
    ],
)
def test_an_evaluation_of_something_else_is_refused(config_of, tmp_path, changes, gains, text: str) -> None:
    path = evaluation_of(tmp_path / "gain", config_of(method="sdpo"), *gains)
    with pytest.raises(ConfigError, match=text):
        recorded_preflight(named(config_of(**{"method": "sdpo", **changes}), path))


def test_an_evaluation_that_is_older_than_the_data_is_refused(config_of, tmp_path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "2 + 2?", "answer": "4"}\n')
    config = replace(config_of(method="sdpo"), data=str(rows))
    path = evaluation_of(tmp_path / "gain", config, {})
    os.utime(rows, (time.time() + 60,) * 2)
    with pytest.raises(ConfigError, match=r"rows\.jsonl was written since"):
        recorded_preflight(named(config, path))
    for typo in ("onn", str(tmp_path / "nothing")):
        with pytest.raises(ConfigError, match="on, off, or the directory"):
            recorded_preflight(named(config, typo))


def test_an_estimate_of_other_interval_is_not_read() -> None:
    evals = [eval_of(0, 100), EvalRecord(5, 0, 0.0, "train", Estimate(0.2, 5, 0.0, 0.97), 5, 1)]
    assert decide(run_of((6, {})), evals, GuardOptions()).action == "ok"
