"""What a model would learn from the replies of a log: for how many of them its log-ratio moves.

Legend: N answer positions; p reads the history, q (the same weights) reads the user's next turn too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from selfdistill.analysis.control_contexts import contexts_of_others
from selfdistill.analysis.token_credit import answer_logprobs
from selfdistill.models.policy import Policy
from selfdistill.prompts.render import Renderer
from selfdistill.runs import Estimate
from selfdistill.runs.events import Callback, Phase, no_callback
from selfdistill.runs.stats import clustered_share
from selfdistill.types import Context, DropReason, Task

CONTROLS = 4  # unrelated replies for each answer
SLICE = 8  # answers between two signs of progress


@dataclass(frozen=True, slots=True)
class ReplySignal:
    """The mean |log q − log p| over a logged answer: under the reply (`own`), and the largest of those under unrelated
    replies, each for every one of the `tasks`. `left_out` answers did not fit the model, or had no other replies."""

    own: tuple[float, ...]
    unrelated: tuple[float, ...]
    controls: int
    left_out: int = 0
    tasks: tuple[Task, ...] = ()

    @property
    def share(self) -> float:
        """Of the answers that their reply moves more than every unrelated one; 0 without answers."""
        return self.moved.value if self.own else 0.0

    @property
    def moved(self) -> Estimate:
        """The share, with its 95 % interval over conversations. There must be answers."""
        by_question = dict[str, list[bool]]()
        for task, own, other in zip(self.tasks, self.own, self.unrelated, strict=True):
            by_question.setdefault(_question(task), []).append(own > other)
        return clustered_share([(sum(each), len(each)) for each in by_question.values()])

    @property
    def ranked(self) -> list[tuple[float, Task]]:
        """How much further its own reply moves each answer than the unrelated ones, in nats; the largest first."""
        margins = [own - other for own, other in zip(self.own, self.unrelated, strict=True)]
        return sorted(zip(margins, self.tasks, strict=True), key=lambda pair: -pair[0])

    @property
    def by_chance(self) -> float:
        """The share where the content of a reply plays no part."""
        return 1 / (self.controls + 1)


def reply_signal(
    policy: Policy,
    renderer: Renderer,
    tasks: Sequence[Task],
    *,
    controls: int = CONTROLS,
    callback: Callback = no_callback,
) -> ReplySignal:
    """Reads each logged answer under its reply and under `controls` replies (up to 19) from other conversations, those
    that begin with another question. Raises `ModelError`."""
    known = [(_question(task), Context("reply", reply=task.user_reply)) for task in tasks if task.user_reply.strip()]
    own, unrelated, read = list[float](), list[float](), list[Task]()
    for number, task in enumerate(tasks):
        if number % SLICE == 0:
            callback(Phase("measuring what replies move", number, len(tasks)))
        context = Context("reply", reply=task.user_reply)
        others = contexts_of_others(context, known, _question(task))[:controls]
        moves = _moves(policy, renderer, task, [context, *others]) if len(others) == controls else []
        if moves:
            own.append(moves[0])
            unrelated.append(max(moves[1:]))
            read.append(task)
    return ReplySignal(tuple(own), tuple(unrelated), controls, len(tasks) - len(own), tuple(read))


def _question(task: Task) -> str:
    return next((message.content for message in task.messages if message.role == "user"), "")


def _moves(policy: Policy, renderer: Renderer, task: Task, contexts: Sequence[Context]) -> list[float]:
    """The mean |log q − log p| of the logged answer under each context; empty where a prompt does not fit."""
    answer, question = renderer.answer(task.logged_answer), renderer.prompt(task.messages)
    found = [renderer.teacher_prompt(task.messages, context, len(answer)) for context in contexts]
    prompts = [made[0] for made in found if not isinstance(made, DropReason)]
    if len(prompts) < len(contexts) or len(question) + len(answer) > policy.context_length:
        return []
    (log_p_N,) = answer_logprobs(policy, question, [answer], 1.0)
    return [float((answer_logprobs(policy, ids, [answer], 1.0)[0] - log_p_N).abs().mean()) for ids in prompts]
