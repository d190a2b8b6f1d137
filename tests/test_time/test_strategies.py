"""What the next attempts read, and under which question they are learned from."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from core_parts import rollout
from selfdistill.config import RunConfig
from selfdistill.errors import ConfigError
from selfdistill.methods import SDPO
from selfdistill.prompts.context import Templates
from selfdistill.prompts.render import CUT, Renderer
from selfdistill.test_time.config import SolveConfig, solve_config
from selfdistill.test_time.solve import solve
from selfdistill.test_time.strategies import STRATEGIES, get_strategy
from selfdistill.test_time.strategies.bare import SelfDistill
from selfdistill.test_time.strategies.base import Attempt, Prompt, SolveState, Strategy, learner_of, prompts_of
from selfdistill.test_time.strategies.hybrid import Hybrid, unlikelihood_weight
from selfdistill.test_time.strategies.multi_turn import MultiTurn
from selfdistill.test_time.strategies.read_first import ReadFirst, feedback_differs
from selfdistill.test_time.strategies.window import most
from selfdistill.training.samples import credit_rollouts
from selfdistill.types import DropReason, Message, RolloutGroup, Task
from tiny_models import tiny_tokenizer

TASK = Task("t", (Message("user", "What is seven plus five?"),))
QUESTION = TASK.messages[0].content
LENGTH, ANSWER = 256, 16


@pytest.fixture(scope="module")
def renderer() -> Renderer:
    return Renderer(tiny_tokenizer(), LENGTH, 10_000)


def failures(*feedback: str, batch: int = 1) -> list[Attempt]:
    """One attempt for each feedback, `batch` a round."""
    return [Attempt(*divmod(n, batch), text=f"answer {n}", feedback=said) for n, said in enumerate(feedback)]


def texts(strategy: Strategy, renderer: Renderer, attempts: list[Attempt], count: int = 1, seed: int = 0) -> list[str]:
    state = SolveState(TASK, renderer, ANSWER, seed, attempts)
    return [prompt.messages[-1].content for prompt in strategy.prompts(state, count)]


def test_attempts_of_plain_strategies_read_the_question_alone(renderer: Renderer) -> None:
    for name in ("best-of-k", "self-distill", "grpo"):
        assert texts(get_strategy(name, {}), renderer, failures("Wrong."), 3) == [QUESTION] * 3


def test_the_first_round_is_bare_for_all(renderer: Renderer) -> None:
    for strategy in (MultiTurn(), MultiTurn(attempts=True), Hybrid()):
        assert texts(strategy, renderer, [], 2) == [QUESTION] * 2
    assert texts(ReadFirst(), renderer, [], 2) == [QUESTION]


def test_feedback_is_read_in_order_without_repetition_and_without_what_passed(renderer: Renderer) -> None:
    attempts = [
        *failures("one", "two", "one"),
        Attempt(3, 0, "right", "three", passed_public=True),
        Attempt(4, 0, "?", "  "),
    ]
    (text,) = texts(MultiTurn(), renderer, attempts)
    assert text.startswith(f"{QUESTION}\n\n")
    assert "\n\ntwo\none\n\n" in text
    assert "three" not in text
    assert text.endswith("Correctly solve the original question.")


@pytest.mark.parametrize("strategy", [MultiTurn(), MultiTurn(attempts=True), MultiTurn(keep="random")])
def test_a_window_holds_as_much_as_fits_and_counts_the_rest(renderer: Renderer, strategy: MultiTurn) -> None:
    attempts = failures(*(f"number {n} is wrong" for n in range(20)))
    state = SolveState(TASK, renderer, ANSWER, 0, attempts)
    (prompt,) = strategy.prompts(state, 1)
    whole = "\n".join(message.content for message in prompt.messages)
    kept = [n for n in range(20) if f"number {n} is" in whole]
    size = len(renderer.prompt(prompt.messages))
    one_more = size / (len(kept) or 1)
    assert LENGTH - ANSWER - one_more <= size <= LENGTH - ANSWER
    assert prompt.left_out == 20 - len(kept) > 0
    assert not prompt.cut
    assert (kept == list(range(20 - len(kept), 20))) == (strategy.keep == "newest"), "the oldest go first"
    assert whole.index(f"number {kept[0]} is") < whole.index(f"number {kept[-1]} is")


def test_feedback_is_read_in_the_wording_of_the_run(renderer: Renderer) -> None:
    worded = replace(renderer, templates=Templates("{question} {context}", feedback="Then: {feedback}"))
    assert texts(MultiTurn(), worded, failures("Wrong.")) == [f"{QUESTION} Then: Wrong."]
    [cut] = texts(MultiTurn(), worded, failures("wrong " * 300))
    assert cut.startswith(f"{QUESTION} Then: wrong wrong")


def test_a_window_may_be_smaller_than_the_model(renderer: Renderer) -> None:
    attempts = failures(*(f"number {n} is wrong" for n in range(20)))
    (prompt,) = MultiTurn(window=120).prompts(SolveState(TASK, renderer, ANSWER, 0, attempts), 1)
    assert len(renderer.prompt(prompt.messages)) <= 120


def test_what_chance_keeps_follows_from_seed_and_attempt(renderer: Renderer) -> None:
    attempts = failures(*(f"number {n} is wrong" for n in range(20)))
    first = texts(MultiTurn(keep="random"), renderer, attempts, 3)
    assert texts(MultiTurn(keep="random"), renderer, attempts, 3) == first
    assert len(set(first)) == 3
    assert texts(MultiTurn(keep="random"), renderer, attempts, 3, seed=1) != first


def test_attempts_and_feedback_are_one_conversation(renderer: Renderer) -> None:
    state = SolveState(
        TASK, renderer, ANSWER, 0, [Attempt(0, 0, "<think>hm</think>ten", "Too small."), Attempt(1, 0, "11")]
    )
    (prompt,) = MultiTurn(attempts=True).prompts(state, 1)
    assert [message.role for message in prompt.messages] == ["user", "assistant", "user", "assistant", "user"]
    assert [message.content for message in prompt.messages[1:]] == ["ten", "Too small.", "11", "That was not right."]


def test_an_attempt_that_was_not_scored_is_not_called_wrong(renderer: Renderer) -> None:
    attempts = [Attempt(0, 0, "ten", scored=False)]
    assert texts(MultiTurn(attempts=True), renderer, attempts) == [QUESTION]


def test_one_feedback_too_long_is_cut_and_the_frame_stays(renderer: Renderer) -> None:
    state = SolveState(TASK, renderer, ANSWER, 0, failures("short", "wrong " * 300))
    (prompt,) = MultiTurn().prompts(state, 1)
    assert prompt.cut
    assert prompt.left_out == 1
    assert CUT in prompt.messages[-1].content
    assert prompt.messages[-1].content.endswith("Correctly solve the original question.")
    assert len(renderer.prompt(prompt.messages)) <= LENGTH - ANSWER


def test_where_no_feedback_fits_the_question_is_asked_as_it_stands(renderer: Renderer) -> None:
    size = len(renderer.prompt(TASK.messages))
    state = SolveState(TASK, renderer, ANSWER, 0, failures("wrong " * 9))
    for strategy in (MultiTurn(window=size), MultiTurn(window=size, attempts=True)):
        (prompt,) = strategy.prompts(state, 1)
        assert (prompt.messages, prompt.left_out) == (TASK.messages, 1)


def test_an_answer_as_long_as_the_context_leaves_half_of_it_for_the_prompt(renderer: Renderer) -> None:
    for answer in (LENGTH // 2, LENGTH, 10 * LENGTH):
        state = SolveState(TASK, renderer, answer, 0, failures("Not eleven."))
        assert state.room(10_000) == LENGTH // 2
        for strategy in (MultiTurn(), Hybrid()):
            (prompt,) = strategy.prompts(state, 1)
            assert "Not eleven." in prompt.messages[-1].content
    assert SolveState(TASK, renderer, ANSWER, 0).room(10_000) == LENGTH - ANSWER


def test_hybrid_attempts_read_the_feedback_at_their_place(renderer: Renderer) -> None:
    attempts = failures("old a", "old b", "old c", "new a", "new b", "", batch=3)
    found = texts(Hybrid(batch=3, rounds=1), renderer, attempts, 3)
    assert "new a" in found[0]
    assert "new b" in found[1]
    assert "new c" not in found[2]
    assert "new a" in found[2], "its own said nothing: another one's"
    assert not any("old" in text for text in found)
    both = texts(Hybrid(batch=3, rounds=2), renderer, attempts, 3)
    assert "old c" in both[2]
    assert "old a\nnew a" in both[0]


def test_hybrid_attempts_may_read_the_whole_round_and_some_stay_bare(renderer: Renderer) -> None:
    attempts = failures("a", "b", "b", "c", batch=4)
    found = texts(Hybrid(batch=4, reads="round", share=0.5), renderer, attempts, 4)
    assert ["\na\nb\nc\n" in text for text in found] == [True, True, False, False]
    assert found[2:] == [QUESTION] * 2


def test_read_first_is_multi_turn_until_failures_repeat_or_go_on(renderer: Renderer) -> None:
    attempts = failures(*(f"number {n} is wrong" for n in range(20)))
    reading = ReadFirst(repeats=2, patience=9)
    for made in (1, 5, 8):
        state = SolveState(TASK, renderer, ANSWER, 0, attempts[:made])
        assert reading.prompts(state, 4) == MultiTurn().prompts(state, 1)
        assert not reading.learns_from(state)
    same = [replace(attempt, text="ten") for attempt in attempts[:3]]
    for past in (attempts[:9], same):  # nine failures; two that repeat the first
        state = SolveState(TASK, renderer, ANSWER, 0, past)
        assert reading.learns_from(state)
        assert [reading.prompts(state, 1)[0]] == MultiTurn().prompts(state, 1)
    state = SolveState(TASK, renderer, ANSWER, 0, attempts)
    found = reading.prompts(state, 4)
    assert found == reading.prompts(state, 4)
    assert len({prompt.messages for prompt in found}) == 4, "all but the first read a random choice of the feedback"
    passed = [replace(attempt, passed_public=True) for attempt in same]
    assert not reading.learns_from(SolveState(TASK, renderer, ANSWER, 0, passed)), "only failures count"
    assert reading.most_rounds(26) == 26


def test_read_first_does_not_learn_where_feedback_is_the_same(renderer: Renderer) -> None:
    blind = [replace(past, text=f"answer {n}") for n, past in enumerate(failures(*["Wrong answer."] * 5))]
    reading = ReadFirst(patience=2)
    state = SolveState(TASK, renderer, ANSWER, 0, blind)
    assert not reading.learns_from(state)
    assert reading.prompts(state, 8) == MultiTurn().prompts(state, 1)
    half = [replace(past, feedback=f"case {n}") if n > 2 else past for n, past in enumerate(blind)]
    assert feedback_differs(half), "three different ones on five failures"
    assert reading.learns_from(SolveState(TASK, renderer, ANSWER, 0, half))
    again = [*blind[:1], *[replace(past, text="answer 0", feedback="other") for past in blind[1:]]]
    assert feedback_differs(again), "the same failure again is no other one"
    assert feedback_differs([])


def test_a_hybrid_is_learned_under_the_bare_question(renderer: Renderer) -> None:
    """An attempt that had read feedback: the student reads the question, the teacher the attempt's own feedback."""
    informed = renderer.prompt((Message("user", f"{QUESTION} Not eleven."),))
    group = RolloutGroup(TASK, (rollout(0, 0.0, "Not ten.", task=TASK, prompt_ids=informed),))
    method = Hybrid().learner(SDPO(alpha=1.0))
    assert ReadFirst().learner(SDPO(alpha=1.0)) == method
    (entry,) = credit_rollouts(method, [group], renderer)
    sample, pushed = entry.samples
    assert sample.student_prompt_ids == renderer.prompt(TASK.messages) != informed
    assert pushed.student_prompt_ids == informed, "it is where it was sampled that a failure would come again"
    assert not pushed.teacher_prompts
    told = renderer.tokenizer.decode(list(sample.teacher_prompts[0]))
    assert "Not ten." in told
    assert "Not eleven." not in told
    assert sample.sampled_logprobs == (), "not sampled from the prompt it is learned under"
    assert method.loss_specs(1.0) == SDPO(alpha=1.0).loss_specs(1.0)
    assert SelfDistill().learner(SDPO()) == SDPO()


@pytest.mark.parametrize(("chance", "advantage"), [(0.5, -0.1), (0.2, -0.025), (0.8, -0.4), (0.9, -0.5), (1.0, -0.5)])
def test_a_failure_is_pushed_away_by_its_odds_of_coming_again(chance: float, advantage: float) -> None:
    """-0.1 · P / (1 - P), which weighs five at most."""
    failed = rollout(0, 0.0, "Not ten.", task=TASK)
    logprobs = (math.log(chance), *(0.0 for _ in failed.completion.logprobs[1:]))
    failed = replace(failed, completion=replace(failed.completion, logprobs=logprobs))
    assert unlikelihood_weight(failed, 0.1) == pytest.approx(advantage)
    told, pushed = Hybrid().learner(SDPO()).credit(RolloutGroup(TASK, (failed,)), 0)
    assert (told.advantage, told.distil) == (0.0, 1.0)
    assert (pushed.advantage, pushed.distil) == (pytest.approx(advantage), 0.0)


def test_a_failure_of_which_nothing_was_said_is_pushed_away_as_well_and_what_is_right_is_not() -> None:
    method = Hybrid().learner(SDPO())
    right, untold, told = (
        rollout(0, 1.0, "", task=TASK),
        rollout(0, 0.0, "", task=TASK),
        rollout(0, 0.0, "x", task=TASK),
    )
    assert method.credit(RolloutGroup(TASK, (right,)), 0) is DropReason.ONLY_SUCCESS
    (pushed,) = method.credit(RolloutGroup(TASK, (untold,)), 0)
    assert pushed.advantage < 0 == pushed.distil
    weak = Hybrid(unlikelihood=0.0).learner(SDPO())
    assert weak.credit(RolloutGroup(TASK, (untold,)), 0) is DropReason.NO_CONTEXT
    assert len(weak.credit(RolloutGroup(TASK, (told,)), 0)) == 1


def test_most_finds_the_last_that_fits() -> None:
    assert [most(9, lambda n, limit=limit: n <= limit) for limit in (0, 1, 5, 9, 20)] == [0, 1, 5, 9, 9]


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("self-distil", {}, "did you mean 'self-distill'"),
        ("hybrid", {"bacth": 2}, "did you mean 'batch'"),
        ("hybrid", {"share": 0.0}, "strategy.share"),
        ("hybrid", {"rounds": 0}, "strategy.rounds"),
        ("hybrid", {"unlikelihood": -0.1}, "strategy.unlikelihood"),
        ("multi-turn", {"batch": 0}, "strategy.batch"),
        ("multi-turn", {"keep": "oldest"}, "one of newest, random"),
        ("best-of-k", {"batch": 0}, "strategy.batch"),
        ("best-of-k", {"unqiue": True}, "did you mean 'unique'"),
        ("read-first", {"patience": 0}, "strategy.patience"),
    ],
)
def test_settings_that_cannot_be_are_refused(name: str, options: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        get_strategy(name, options)


OWN = """\
from dataclasses import dataclass
from selfdistill import Message, Prompt, Strategy

@dataclass(frozen=True, slots=True)
class Mine(Strategy):
    def prompts(self, state, count):
        return {prompts}

    def learner(self, method):
        return {learner}
"""


@pytest.fixture
def own(tmp_path: Path) -> Callable[..., Strategy]:
    """A strategy of a user's file, which gives what these expressions give."""

    def build(prompts: str = "[Prompt(state.task.messages)] * count", learner: str = "method") -> Strategy:
        file = tmp_path / "mine.py"
        file.write_text(OWN.format(prompts=prompts, learner=learner))
        return get_strategy(f"{file}:Mine", {})

    return build


def test_prompts_of_a_users_own_strategy_are_taken_as_they_are(own, renderer: Renderer) -> None:
    state = SolveState(TASK, renderer, ANSWER, 0)
    assert prompts_of(own(), state, 3) == [Prompt(TASK.messages)] * 3
    assert prompts_of(own("[Prompt(state.task.messages)]"), state, 3) == [Prompt(TASK.messages)], "a smaller round"
    assert learner_of(own(), SDPO()) == SDPO()


@pytest.mark.parametrize(
    ("prompts", "said"),
    [
        ("[]", r"a list of 1 to 3 prompts\s+got  0"),
        ("[Prompt(state.task.messages)] * 4", r"a list of 1 to 3 prompts\s+got  4"),
        ("None", r"a list of 1 to 3 prompts\s+got  None"),
        ("[state.task.messages] * 3", "a Prompt with a tuple of Messages"),
        ("[Prompt(list(state.task.messages))] * 3", "a Prompt with a tuple of Messages"),
        ("[Prompt(())] * 3", "a Prompt with a tuple of Messages"),
        ("[Prompt((Message('user', 7),))] * 3", "a Prompt with a tuple of Messages"),
        ("[Prompt(state.task.missing)] * 3", r"fails in its `prompts`\s+got  AttributeError: .*missing.* \(line 7\)"),
    ],
)
def test_what_a_users_own_strategy_gives_is_looked_at(own, renderer: Renderer, prompts: str, said: str) -> None:
    with pytest.raises(ConfigError, match=rf"mine\.py[\s\S]*{said}"):
        prompts_of(own(prompts), SolveState(TASK, renderer, ANSWER, 0), 3)


def test_a_users_own_strategy_that_makes_no_attempts_is_no_search(own) -> None:
    idle = own()
    object.__setattr__(idle, "batch", 0)  # as one whose __post_init__ does not look
    with pytest.raises(ConfigError, match=r"strategy\.batch must be a whole number from 1"):
        SolveConfig(RunConfig(), idle)


def test_a_users_own_strategy_that_gives_nothing_ends_the_search(own, model_dir: Path, tmp_path: Path) -> None:
    env = Path(__file__).with_name("solve_envs.py")
    settings = [("model", str(model_dir)), ("env", f"{env}:hints"), ("device", "cpu")]
    config = solve_config(own("[]").name, settings, tasks=["q0"])
    with pytest.raises(ConfigError, match=r"mine\.py:Mine' should give a list of 1 to 16 prompts"):
        solve(config, out=tmp_path / "out")


def test_a_method_that_a_users_own_strategy_learns_with_is_looked_at(own) -> None:
    with pytest.raises(ConfigError, match=r"Mine in .*mine.py fails in its `learner`[\s\S]*\(line 10\)"):
        learner_of(own(learner="1 / 0"), SDPO())
    with pytest.raises(ConfigError, match=r"mine.py:Mine[\s\S]*no method to learn with\s+got  None"):
        learner_of(own(learner="None"), SDPO())


@pytest.mark.parametrize(
    ("strategy", "overrides", "method", "alpha"),
    [
        ("hybrid", [], "sdpo", 0.0),
        ("hybrid", ["method.alpha=0.5"], "sdpo", 0.5),
        ("hybrid", ["method=sdpo"], "sdpo", 0.0),
        ("hybrid", ["method=grpo"], "grpo", None),
        ("hybrid", ["method.name=sdpo_outcome"], "sdpo_outcome", None),
        ("self-distill", [], "sdpo", None),
        ("read-first", [], "sdpo", 0.0),
    ],
)
def test_a_strategy_says_how_its_method_is_set_unless_somebody_else_does(strategy, overrides, method, alpha) -> None:
    found = solve_config(strategy, overrides).run.method
    assert (found.name, found.options.get("alpha")) == (method, alpha)


def test_unique_attempts_need_a_temperature() -> None:
    with pytest.raises(ConfigError, match=r"strategy\.unique needs a temperature above 0"):
        solve_config("multi-turn", ["strategy.unique=true", "sampling.temperature=0"])


def test_commands_and_documents_name_every_strategy() -> None:
    root = Path(__file__).parents[2]
    for file in ("src/selfdistill/cli/solve.py", "docs/solve.md", "docs/cli.md"):
        text = (root / file).read_text(encoding="utf-8")
        assert [name for name in STRATEGIES if name not in text] == [], file
