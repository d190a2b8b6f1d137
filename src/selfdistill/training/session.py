"""A session: policy, environment, tasks, and what learning needs, opened once from the settings of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from selfdistill.config import RunConfig
from selfdistill.data.load import question_rows
from selfdistill.data.mixing import MixedTasks
from selfdistill.data.reading import Drawn, first_tasks
from selfdistill.data.tasks import (
    all_usable,
    bad_rows,
    check_conversations,
    fitting_tasks,
    note_left_out,
    note_shared,
    too_long,
)
from selfdistill.envs.base import ConversationEnvironment, Environment, has_reward, tasks_of
from selfdistill.errors import ConfigError, ModelError, RunError
from selfdistill.files import read_text
from selfdistill.losses import LossSpec
from selfdistill.methods import Method
from selfdistill.models.activations import recompute_activations
from selfdistill.models.checkpoint import load_newest, save_checkpoint
from selfdistill.models.load import load_policy, load_tokenizer
from selfdistill.models.policy import ALONE, Policy, Ranks
from selfdistill.models.resumable import Resumable
from selfdistill.models.sampler import Sampler
from selfdistill.models.teacher import Frozen, Live, Other, Teacher, TeacherRule
from selfdistill.plugins import seed_global
from selfdistill.prompts.context import Instruction, teacher_messages
from selfdistill.prompts.render import Renderer
from selfdistill.prompts.stages import examples
from selfdistill.runs import EvalSplit, RunDir
from selfdistill.runs.environment import describe_environment
from selfdistill.runs.events import Callback, Note, Phase
from selfdistill.scale.launch import check_ranks
from selfdistill.scale.ranks import divided
from selfdistill.training.fitting import check_sampling, check_turns
from selfdistill.training.optimiser import new_optimizer
from selfdistill.training.planner import check_memory, needs_of, planned
from selfdistill.training.policy_replies import PolicyReplies, initial_weights
from selfdistill.types import Completion, Context, Message, Task, TokenIds

EXAMPLE_TURN = ([Message("user", "A question.")], Completion("", "An answer."), [Message("user", "A reply.")])
KeptAnswer: TypeAlias = tuple[TokenIds, TokenIds, float]
"""Prompt and answer, and the mean log-probability of the answer's tokens."""
MEASURED = 64  # tasks whose prompts say how long prompts are, for the plan of the memory
NO_ISOLATION = "none: this environment runs no programs"


@dataclass
class Totals:
    """What a run has used so far. `no_signal_steps` counts the last steps without anything to learn from; `ended`:
    too many of them ended the run. `memory` is what token weights and clipping keep between steps. `lowered_to`: tokens
    of a micro-batch since the device ran out of memory; 0: it has not. `drawn` and `solved` are what `next_tasks`
    reads: places used of the passes of each set, and steps by task. `kept` are right
    answers of the last evaluation, which guards read again."""

    step: int = 0
    completions_sampled: int = 0
    tokens: int = 0
    wall_s: float = 0.0
    no_signal_steps: int = 0
    ended: bool = False
    memory: dict[str, float] = field(default_factory=dict)
    lowered_to: int = 0
    drawn: dict[str, int] = field(default_factory=dict)
    solved: dict[str, int] = field(default_factory=dict)
    kept: list[KeptAnswer] = field(default_factory=list)


_TOTALS = TypeAdapter(Totals)


def saved_totals(extra: Mapping[str, Any] | None) -> Totals:
    """The totals of a checkpoint; zeros where there is none. Raises `RunError`."""
    try:
        return _TOTALS.validate_python(extra or {})
    except ValidationError as error:
        what = "the totals of this checkpoint are not what a run writes"
        raise RunError(what, got=error.errors()[0], do="use an earlier one") from error


@dataclass
class Learner:
    """What changes the weights of a session.

    `reference_policy` holds the weights at the start, kept where the reference divergence or replay read them (None:
    neither does). A method without a teacher has one that keeps no weights. `loss_specs` are the method's.
    """

    method: Method
    loss_specs: tuple[LossSpec, ...]
    teacher: Teacher
    reference_policy: Teacher | None
    optimizer: torch.optim.Optimizer
    replay: Sequence[Task]

    def with_method(self, method: Method, config: RunConfig) -> Learner:
        """The same weights, trained by another method."""
        return replace(self, method=method, loss_specs=_loss_specs(method, config))


@dataclass
class Session:
    """Everything a run works with: it samples from `policy`, or by `sampler` where it has one, scores with `env`, and
    learns if it has a `learner`."""

    config: RunConfig
    env: Environment
    policy: Policy
    renderer: Renderer
    tasks: Sequence[Task]
    held_out: Mapping[str, Sequence[Task]]
    learner: Learner | None = None
    all_usable: bool = False  # else tasks are checked when they are drawn
    sampler: Sampler | None = None

    @property
    def measured_tasks(self) -> list[Task]:
        """The first training tasks, of those whose answers get a reward: accuracy is measured on them."""
        first = first_tasks(self.tasks, self.config.evaluation.tasks)
        return [task for task in first if has_reward(self.env, task)]

    @property
    def evaluation_env(self) -> Environment:
        """The environment for evaluations, which may have private tests that training does not show."""
        private = getattr(self.env, "for_evaluation", None)
        env: Environment = private() if private is not None else self.env
        return env

    def bad_rows(self, tasks: Sequence[Task]) -> dict[str, str]:
        """By id why a task cannot be used: no answer to it can be scored or, of a long set, its prompt is too long."""
        long = isinstance(self.tasks, Drawn)
        longest = self.config.context.max_prompt_tokens
        return {**(too_long(tasks, self.renderer, longest) if long else {}), **bad_rows(self.env, tasks)}

    @property
    def isolation(self) -> str:
        """How untrusted programs are isolated, for the records."""
        return str(getattr(self.env, "isolation", NO_ISOLATION))

    def new_run(self, path: Path, settings: Mapping[str, Any]) -> RunDir:
        """A new run directory with these settings and a description of this machine. Raises `RunError`."""
        about = describe_environment(device=str(self.policy.device), isolation=self.isolation)
        # Three checkpoints may lie side by side for a moment: weights, two moments of the optimiser and a shadow each.
        trained = sum(value.numel() for value in self.policy.trainable().values()) if self.learner else 0
        return RunDir.create(path, {"settings": settings, **about}, expected_bytes=3 * 16 * trained)

    def save(self, folder: Path, step: int, totals: Mapping[str, Any], *, final: bool, well: int = 0) -> None:
        """Writes a checkpoint of all that the next step reads; a final one, and the newest up to step `well`, are kept
        when newer ones come."""
        assert self.learner is not None
        save_checkpoint(folder, step, self._resumable(self.learner), extra=totals, final=final, well=well)

    def restore(self, folder: Path, callback: Callback) -> dict[str, Any] | None:
        """Loads the newest complete checkpoint and returns the totals saved with it; None without a checkpoint."""
        assert self.learner is not None
        return load_newest(folder, lambda text: callback(Note(text)), self._resumable(self.learner))

    def _resumable(self, learner: Learner) -> Resumable:
        return Resumable(self.policy, learner.optimizer, learner.teacher)


def open_policy(config: RunConfig, callback: Callback, *, trained: bool) -> Policy:
    """The model, on its device; one that is not `trained` takes half the memory in bfloat16."""
    callback(Phase("loading the model"))
    policy = load_policy(
        config.model,
        device=config.device,
        dtype=config.dtype,
        lora=config.lora,
        chat_template=_chat_template(config.chat_template),
        trained=trained,
        progress=lambda text: callback(Note(text)),
    )
    callback(Note(policy.description))
    if trained and config.activation_checkpointing:
        recompute_activations(policy)
    return policy


def _chat_template(file: str) -> str | None:
    if not file:
        return None
    text = read_text(file, what="the chat template", do="check chat_template", kind=ConfigError)
    if not text.strip():
        raise ConfigError("the chat template is empty", got=file, do="check chat_template")
    return text


def open_renderer(config: RunConfig, callback: Callback) -> Renderer:
    """Writes the prompts that the model of a run reads, without its weights. Raises `ModelError`, `ConfigError`."""
    template = _chat_template(config.chat_template)
    tokenizer, length = load_tokenizer(config.model, chat_template=template, progress=lambda text: callback(Note(text)))
    return _renderer(tokenizer, length, config, callback)


def _renderer(
    tokenizer: Any, length: int, config: RunConfig, callback: Callback, tools: Sequence[Mapping[str, Any]] = ()
) -> Renderer:
    """The renderer of a run, its template checked. Raises `ModelError`."""
    longest, templates = config.context.max_teacher_tokens, config.context.templates
    renderer = Renderer(tokenizer, length, longest, thinking=config.thinking, templates=templates, tools=tools)
    for note in renderer.check():
        callback(Note(note))
    return renderer


def open_session(
    config: RunConfig, callback: Callback, *, learns: bool = False, answers: int = 0, ranks: Ranks = ALONE
) -> Session:
    """Loads environment, tasks and model; with `learns` also the method, its teacher and an optimiser.

    `answers` are those of one step; 0: as many as the settings say. `ranks` divide the weights.
    Everything that can be refused is refused here, before anything is written or sampled, and what does not fit into
    memory before it is loaded. Raises whatever is wrong.
    """
    seed_global(config.seed)  # a method or an environment of the user's may draw as well
    method = rule = None
    if learns:
        method = config.make_method()
        rule = _teacher_rule(config, method)
        check_sampling(config, method)
        seed_global(config.seed)
    env = config.make_env()
    check_ranks(config, env, ranks)
    if method is not None:
        check_turns(config, method, env)
    callback(Phase("reading the tasks"))
    tasks = config.tasks_of(env)
    note_left_out(tasks, callback)
    usable = all_usable(env, tasks, bool(config.data) and config.values.tasks is None)
    needs = needs_of(config, 1, env, learns=learns, answers=answers)
    with suppress(ModelError):  # the loader says more about a model that cannot be loaded
        check_memory(config, needs)
    policy = divided(open_policy(config, callback, trained=learns), ranks)
    if config.model.startswith("sapling") and config.env.name != "verbs":
        callback(
            Note("the sapling understands the coined-verb environment alone; for other tasks name a model with --model")
        )
    tools = getattr(env, "tools", ())
    renderer = _renderer(policy.tokenizer, policy.context_length, config, callback, tools)
    if isinstance(env, ConversationEnvironment) and renderer.extension(*EXAMPLE_TURN) is None:
        callback(Note("the chat template writes earlier turns anew: each turn is a prompt of its own (a segment)"))
    longest = config.context.max_prompt_tokens
    fitting = partial(fitting_tasks, renderer=renderer, longest=longest, callback=callback)
    tasks = tasks.each(fitting) if isinstance(tasks, MixedTasks) else fitting(tasks)
    if learns:
        read = max(len(renderer.prompt(task.messages)) for task in tasks[:MEASURED])
        with suppress(ModelError):
            callback(Note(planned(config, replace(needs, prompt_tokens=read))))
    rollouts = config.evaluation.rollouts
    if config.evaluation.answers < rollouts:
        callback(Note(f"greedy answers repeat: evaluations sample 1 per task, not {rollouts}"))
    splits: tuple[EvalSplit, ...] = ("held_out", "forgetting")
    found = {split: _measured(config, env, split, callback) for split in splits}
    held_out: dict[str, Sequence[Task]] = {split: fitting(own) for split, own in found.items() if own}
    note_shared(tasks, held_out.get("held_out", ()), callback)
    session = Session(config, env, policy, renderer, tasks, held_out, all_usable=usable)
    if not session.measured_tasks:
        others = " and ".join(held_out) or "nothing"
        callback(Note(f"answers to the training tasks get no reward: accuracy is measured on {others}"))
    if method is not None and rule is not None:
        session.learner = _open_learner(session, method, rule, callback)
    judge: Any = env
    if weights := getattr(env, "policy_weights", ""):
        learner, initial = session.learner, None
        if learner is not None and weights == "initial":
            initial = initial_weights(policy, [learner.teacher, learner.reference_policy])
        judge.use_policy(PolicyReplies(policy, renderer, config.seed, initial))
    return session


def _measured(config: RunConfig, env: Environment, split: EvalSplit, callback: Callback) -> list[Task]:
    """The tasks of a split, up to the limit, whose answers get a reward; a note counts the others."""
    found = config.tasks_of(env, split)[: config.evaluation.tasks]
    measured = [task for task in found if has_reward(env, task)]
    if len(measured) < len(found):
        callback(Note(f"{len(found) - len(measured)} of {len(found)} tasks of {split} are not measured: no reward"))
    return measured


def _open_learner(session: Session, method: Method, rule: TeacherRule, callback: Callback) -> Learner:
    config, policy, renderer = session.config, session.policy, session.renderer
    teacher = _teacher(rule, config, policy, _other_model(rule, config, policy, callback))
    replay: Sequence[Task] = ()
    if config.replay:
        found = _replay_tasks(config, session.env)
        replay = fitting_tasks(found, renderer, config.context.max_prompt_tokens, callback)
    check_conversations(renderer, session.tasks, lambda task: _conversations(method, task))
    return _new_learner(config, policy, method, teacher, replay)


@torch.no_grad()
def restarted(session: Session, weights: Mapping[str, Tensor]) -> Session:
    """The session with these weights, and a new teacher and a new optimiser."""
    policy, learner = session.policy, session.learner
    assert learner is not None
    for name, value in policy.trainable().items():
        value.copy_(weights[name])
    teacher = _teacher(learner.teacher.rule, session.config, policy, learner.teacher.other)
    return replace(session, learner=_new_learner(session.config, policy, learner.method, teacher, learner.replay))


def _new_learner(
    config: RunConfig, policy: Policy, method: Method, teacher: Teacher, replay: Sequence[Task]
) -> Learner:
    """A learner at the start of training, whose reference policy has the weights as they are."""
    reference_policy = None
    if config.replay or method.needs_reference:
        reference_policy = teacher if isinstance(teacher.rule, Frozen) else _teacher(Frozen(), config, policy, None)
    optimizer = new_optimizer(config, list(policy.trainable().values()))
    return Learner(method, _loss_specs(method, config), teacher, reference_policy, optimizer, replay)


def _teacher(rule: TeacherRule, config: RunConfig, policy: Policy, other: Policy | None) -> Teacher:
    return Teacher(rule, policy, other=other, on_host=config.offload in ("teacher", "both"))


def _loss_specs(method: Method, config: RunConfig) -> tuple[LossSpec, ...]:
    return method.loss_specs(config.sampling.temperature or 1.0)


def _teacher_rule(config: RunConfig, method: Method) -> TeacherRule:
    """The run's, else the method's own. Raises `ConfigError` for a rule that nobody would follow."""
    if config.teacher is not None and method.teacher is None:
        raise ConfigError(
            f"the method {config.method.name!r} has no teacher",
            got=f"teacher = {config.teacher}",
            why="nothing would read a context, and the setting would do nothing",
            do="leave the setting out, or choose a method that distils",
        )
    rule = config.teacher or method.teacher or Live()
    if isinstance(rule, Other) and not rule.model:
        raise ConfigError("the teacher's model is not named", got="teacher.model is empty", do="teacher.model=DIR")
    return rule


def _other_model(rule: TeacherRule, config: RunConfig, policy: Policy, callback: Callback) -> Policy | None:
    """The model of an `Other` teacher. Raises `ConfigError` when its tokenizer is another one."""
    if not isinstance(rule, Other):
        return None
    other = load_policy(
        rule.model, device=config.device, dtype=config.dtype, trained=False, progress=lambda text: callback(Note(text))
    )
    callback(Note(f"teacher: {other.description}"))
    if other.tokenizer.get_vocab() != policy.tokenizer.get_vocab():
        raise ConfigError(
            "the teacher's model has another tokenizer than the student's",
            got=f"{other.name} and {policy.name}",
            why="both are compared token by token",
            do="choose a teacher of the same family",
        )
    return divided(other, policy.ranks)


def _conversations(method: Method, task: Task) -> list[tuple[Message, ...]]:
    """The later conversations of a method about a task, and the teacher's prompt with an instruction. A stage of the
    user's own is left out: it need not expect a made-up answer."""
    found = examples([stage for stage in method.stages if type(stage).__module__.startswith("selfdistill.")], task)
    if any(isinstance(getattr(method, item.name), Instruction) for item in fields(method)):
        found.append(teacher_messages(task.messages, Context("instruction", instruction="Be kind.")))
    return found


def _replay_tasks(config: RunConfig, env: Environment) -> Sequence[Task]:
    """Prompts of the past: the environment's replay tasks, or those of a file."""
    assert config.replay is not None
    if config.replay.prompts != "env":
        return question_rows(config.replay.prompts)
    tasks = tasks_of(env, "replay")
    if not tasks:
        raise ConfigError(
            f"the environment {env.name!r} has no tasks for replay",
            got="replay.prompts = env",
            do='name a file of prompts: replay.prompts=prompts.jsonl, each line {"prompt": "…"}',
        )
    return tasks
