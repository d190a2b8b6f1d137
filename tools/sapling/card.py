"""The sapling's card: its accuracy on held-out words and programs, measured with the environment and the sampler that
training uses."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from selfdistill.envs.base import required
from selfdistill.envs.verbs.env import (
    VerbsEnvironment,
    VerbsOptions,
    known_tasks,
    plain_tasks,
    program_task,
    usable_inputs,
)
from selfdistill.envs.verbs.lexicon import draw_program, held_out_words, user_reply, verb_question
from selfdistill.envs.verbs.programs import VerbProgram
from selfdistill.models.policy import Policy
from selfdistill.models.sampler import SamplingOptions
from selfdistill.prompts.context import teacher_messages
from selfdistill.prompts.render import Renderer
from selfdistill.runs.stats import Estimate
from selfdistill.training.evaluation import accuracy
from selfdistill.training.samples import roll_out
from selfdistill.types import Completion, Context, Message, Rollout, Task
from tools.sapling.posterior import identifiable

SEED = 77  # no run draws its verbs with the names used here
ENUMERATED = 150  # tasks of a line on which all fitting programs are enumerated
GREEDY = SamplingOptions(max_new_tokens=64, temperature=0.0)
SAMPLED = SamplingOptions(max_new_tokens=64)


@dataclass(frozen=True, slots=True)
class Line:
    """One row: the accuracy and, where failing cases are shown, the accuracy of two ideal readers: one that draws from
    all programs that fit the cases, and one that takes the likeliest of them."""

    name: str
    accuracy: Estimate
    drawn: float | None = None
    likeliest: float | None = None


@dataclass(frozen=True, slots=True)
class Item:
    """A task of the card with the program behind it."""

    task: Task
    program: VerbProgram
    word: str


@dataclass
class Bench:
    """Samples answers from a policy and scores them by tests that no feedback has shown."""

    policy: Policy
    renderer: Renderer
    env: VerbsEnvironment
    n: int

    def greedy(self, tasks: Sequence[Task], prompts: Sequence[tuple[Message, ...]] | None = None) -> Estimate:
        """Accuracy of greedy answers to the tasks' questions, or to `prompts` in their place."""
        return self._accuracy(tasks, GREEDY, [self.renderer.prompt(prompt) for prompt in prompts or ()] or None)

    def sampled(self, tasks: Sequence[Task]) -> Estimate:
        """Accuracy of answers at temperature 1."""
        return self._accuracy(tasks, SAMPLED, None)

    def attempts(self, tasks: Sequence[Task], cases: int, round_number: int = 0) -> list[Rollout]:
        """One answer a task at temperature 1, with up to `cases` failing cases in the feedback."""
        env = VerbsEnvironment(replace(self.env.options, cases=cases))
        label = f"card-{cases}-{round_number}"
        groups = roll_out(self.policy, env, self.renderer, tasks, SAMPLED, rollouts=1, seed=SEED, label=label)
        return [rollout for group in groups for rollout in group.rollouts]

    def _accuracy(
        self, tasks: Sequence[Task], options: SamplingOptions, prompts: Sequence[tuple[int, ...]] | None
    ) -> Estimate:
        score = self.env.for_evaluation()
        groups = roll_out(
            self.policy, score, self.renderer, tasks, options, rollouts=1, seed=SEED, label="card", prompts=prompts
        )
        return accuracy(groups).estimate


def measure_card(policy: Policy, progress: Callable[[str], None], *, n: int = 600) -> list[Line]:
    """Measures every row on `n` tasks; `progress` gets one line a row."""
    bench = Bench(
        policy, Renderer(policy.tokenizer, policy.context_length, 10_000), VerbsEnvironment(VerbsOptions()), n
    )
    rows: Mapping[str, Callable[[], Line]] = {
        "plain English": lambda: Line("", bench.greedy(plain_tasks(n, SEED))),
        "known verbs, greedy (all of them)": lambda: Line("", bench.greedy(known_tasks())),
        "known verbs, sampled twice": lambda: Line("", bench.sampled(known_tasks() * 2)),
        **{
            f"{steps}-step verb, bare, {how}": _bare(bench, steps, how)
            for steps in (1, 2)
            for how in ("sampled", "greedy")
        },
        **{
            f"{steps}-step verb, feedback of {cases} failing case{'s' * (cases > 1)}": _feedback(bench, steps, cases)
            for steps in (1, 2, 3)
            for cases in (1, 2, 3)
        },
        "1-step verb, three attempts of one failing case, in one conversation": _conversation(bench, 1),
        "2-step verb, three attempts of one failing case, in one conversation": _conversation(bench, 2),
        "a group member's solution": _with_context(
            bench, lambda item: Context("solution", solution=item.program.answer)
        ),
        "a demonstration": _with_context(
            bench, lambda item: Context("demonstration", demonstration=item.program.answer)
        ),
        "a dictionary entry": _with_context(bench, lambda item: Context("document", document=item.task.document)),
        "a user's correcting reply": _with_context(
            bench, lambda item: Context("reply", reply=user_reply(item.program))
        ),
        "plain English, feedback of a Python error": lambda: _broken(bench),
    }
    lines = []
    for number, (name, row) in enumerate(rows.items(), start=1):
        progress(f"{number}/{len(rows)} {name}")
        lines.append(replace(row(), name=name))
    return lines


def items(count: int, steps: int, key: str) -> list[Item]:
    """Draws held-out words with held-out programs of this many steps (0: as in growing)."""
    rng = random.Random(f"card {key} {steps}")
    made: list[Item] = []
    while len(made) < count:
        program, word = draw_program(rng, held_out=True, steps=steps), rng.choice(held_out_words())
        inputs = usable_inputs(program, rng)
        if inputs is not None:
            question = verb_question(word, program.kind)
            made.append(Item(program_task(f"{key}-{len(made)}", question, program, inputs, word), program, word))
    return made


def _bare(bench: Bench, steps: int, how: str) -> Callable[[], Line]:
    def row() -> Line:
        tasks = [item.task for item in items(bench.n, steps, "bare")]
        return Line("", bench.greedy(tasks) if how == "greedy" else bench.sampled(tasks))

    return row


def _feedback(bench: Bench, steps: int, cases: int) -> Callable[[], Line]:
    """Answers after the feedback on the sapling's own failed attempt, where it shows exactly `cases` failing cases."""

    def row() -> Line:
        drawn = items(bench.n + bench.n // 2, steps, "feedback")
        attempts = bench.attempts([item.task for item in drawn], cases)
        shown = [
            (item, attempt.outcome.feedback)
            for item, attempt in zip(drawn, attempts, strict=True)
            if attempt.outcome and attempt.outcome.feedback.count("Expected: ") == cases
        ][: bench.n]
        prompts = [teacher_messages(item.task.messages, Context("", feedback=text)) for item, text in shown]
        best = [identifiable(item.program, _shown_inputs(item, text)) for item, text in shown[:ENUMERATED]]
        return Line(
            "",
            bench.greedy([item.task for item, _ in shown], prompts),
            sum(drawn_right for drawn_right, _ in best) / len(best),
            sum(likeliest for _, likeliest in best) / len(best),
        )

    return row


def _shown_inputs(item: Item, feedback: str) -> list[object]:
    """The inputs of the task's tests that the feedback shows."""
    lines = feedback.split("\n")
    return [test["input"][0] for test in item.task.spec["public"] if f"Input: {test['input'][0]!r}" in lines]


def _conversation(bench: Bench, steps: int) -> Callable[[], Line]:
    """Answers after three attempts without context, each followed by its feedback."""

    def row() -> Line:
        drawn = items(bench.n, steps, "conversation")
        tasks = [item.task for item in drawn]
        rounds = [bench.attempts(tasks, 1, number) for number in range(3)]
        prompts = []
        for index, task in enumerate(tasks):
            turns: list[Message] = []
            for attempts in rounds:
                outcome, answer = attempts[index].outcome, attempts[index].completion.text
                turns += [Message("assistant", answer), Message("user", outcome.feedback if outcome else "")]
            prompts.append((*task.messages, *turns))
        return Line("", bench.greedy(tasks, prompts))

    return row


def _with_context(bench: Bench, context: Callable[[Item], Context]) -> Callable[[], Line]:
    def row() -> Line:
        drawn = items(bench.n, 0, "told")
        prompts = [teacher_messages(item.task.messages, context(item)) for item in drawn]
        return Line("", bench.greedy([item.task for item in drawn], prompts))

    return row


def _broken(bench: Bench) -> Line:
    """Answers to plain-English questions after the feedback on a reference solution with a misspelt variable."""
    tasks = plain_tasks(bench.n, SEED + 1)
    broken = [re.sub(r"return \w+", "return result", task.demonstration) for task in tasks]
    pairs = [(task, Completion("broken", text)) for task, text in zip(tasks, broken, strict=True)]
    outcomes = list(map(required, bench.env.score_batch(pairs)))
    prompts = [
        teacher_messages(task.messages, Context("", feedback=outcome.feedback))
        for task, outcome in zip(tasks, outcomes, strict=True)
    ]
    assert all("NameError" in outcome.feedback for outcome in outcomes)
    return Line("", bench.greedy(tasks, prompts))


def card_text(name: str, lines: Sequence[Line], growth: Mapping[str, Any]) -> str:
    """The card as Markdown: how the model was grown, and its accuracy."""
    recipe = growth["recipe"]
    head = [
        f"# {name}",
        "",
        f"A Qwen3-architecture model of {growth['parameters']:,} parameters, grown from nothing on episodes of the "
        "coined-verb environment. It loads with plain `transformers`.",
        "",
        f"Grown in {growth['seconds'] / 60:.0f} minutes on {growth['hardware']}: "
        f"{growth['tokens'] / 1e6:.1f} M tokens, {growth['steps']:,} updates, seed {recipe['seed']}, "
        f"torch {growth['torch']}, commit {growth['commit']}.",
        "",
        "Recipe: " + ", ".join(f"{key} {value}" for key, value in recipe.items() if key not in ("name", "seed")) + ".",
        "",
        "Accuracy: all tests passed that no feedback shows. Fresh words, and programs of two and three steps, are held "
        "out from pretraining. Answers are greedy unless the row names sampling; feedback is the sandbox's on the "
        "model's own failed attempts. *Drawn*: how often a draw from all programs that fit the cases shown would be "
        "right (the share that is identifiable). *Likeliest*: how often the likeliest of them is.",
        "",
        "| | accuracy | 95 % interval | n | drawn | likeliest |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    rows = [
        f"| {line.name} | {line.accuracy.value:.3f} | {line.accuracy.low:.3f} – {line.accuracy.high:.3f} "
        f"| {line.accuracy.n} | {_share(line.drawn)} | {_share(line.likeliest)} |"
        for line in lines
    ]
    return "\n".join([*head, *rows]) + "\n"


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
