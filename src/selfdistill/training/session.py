"""What a run works with, put together from its settings once: policy, teacher, optimiser, environment, tasks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from selfdistill.config import RunConfig
from selfdistill.data.tasks import askable, check_conversations, question_rows, training_tasks
from selfdistill.envs.base import Environment, tasks_of
from selfdistill.envs.registry import make_environment
from selfdistill.errors import ConfigError
from selfdistill.files import read_text
from selfdistill.methods import Method, get_method
from selfdistill.models.checkpoint import load_newest, save_checkpoint
from selfdistill.models.load import load_policy, load_tokenizer
from selfdistill.models.policy import Policy
from selfdistill.models.teacher import Frozen, Live, Other, Teacher, TeacherRule
from selfdistill.prompts.context import Instruction, teacher_messages
from selfdistill.prompts.render import Renderer
from selfdistill.prompts.stages import examples
from selfdistill.randomness import seed_global
from selfdistill.runs.progress import Reporter
from selfdistill.types import Context, Message, Task

NO_ISOLATION = "none: this environment runs no programs"


@dataclass
class Asking:
    """What it takes to ask a model and to judge its answers."""

    config: RunConfig
    env: Environment
    policy: Policy
    renderer: Renderer
    tasks: list[Task]
    held_out: Mapping[str, list[Task]]

    @property
    def evaluation_env(self) -> Environment:
        """The environment as it measures, by tests that training does not show where it has such."""
        private = getattr(self.env, "for_evaluation", None)
        score: Environment = private() if private is not None else self.env
        return score

    @property
    def isolation(self) -> str:
        """How untrusted programs are shut in, for the records."""
        return str(getattr(self.env, "isolation", NO_ISOLATION))


@dataclass
class Session(Asking):
    """What it takes to learn as well. `reference_policy` are the weights at the start, kept where reference or replay
    read them; a method without a teacher has one that keeps no weights."""

    method: Method
    teacher: Teacher
    reference_policy: Teacher | None
    optimizer: torch.optim.Optimizer
    replay: list[Task]

    def save(self, folder: Path, step: int, totals: Mapping[str, Any], *, final: bool) -> None:
        """All that the next step reads, as a checkpoint; a final one stays when newer ones come."""
        save_checkpoint(
            folder, step, policy=self.policy, optimizer=self.optimizer, teacher=self.teacher, extra=totals, final=final
        )

    def restore(self, folder: Path, reporter: Reporter) -> dict[str, Any] | None:
        """Brings all of it back from the newest whole checkpoint; the totals that were saved, or None without one."""
        return load_newest(folder, reporter.note, policy=self.policy, optimizer=self.optimizer, teacher=self.teacher)


def open_policy(config: RunConfig, reporter: Reporter, *, trained: bool) -> Policy:
    """The model, on its device; one that is not `trained` takes half the memory in bfloat16."""
    reporter.phase("loading the model")
    policy = load_policy(
        config.model,
        device=config.device,
        dtype=config.dtype,
        lora=config.lora,
        chat_template=_chat_template(config.chat_template),
        trained=trained,
        progress=reporter.note,
    )
    reporter.note(policy.description)
    return policy


def _chat_template(file: str) -> str | None:
    if not file:
        return None
    text = read_text(file, what="the chat template", do="check chat_template", kind=ConfigError)
    if not text.strip():
        raise ConfigError("the chat template is empty", got=file, do="check chat_template")
    return text


def open_renderer(config: RunConfig, reporter: Reporter) -> Renderer:
    """Writes the prompts that the model of a run reads, without its weights. Raises `ModelError`, `ConfigError`."""
    template = _chat_template(config.chat_template)
    tokenizer, length = load_tokenizer(config.model, chat_template=template, progress=reporter.note)
    return _renderer(tokenizer, length, config, reporter)


def _renderer(tokenizer: Any, length: int, config: RunConfig, reporter: Reporter) -> Renderer:
    """The renderer of a run, its template checked. Raises `ModelError`."""
    renderer = Renderer(tokenizer, length, config.context.max_teacher_tokens, config.thinking)
    for note in renderer.template.check():
        reporter.note(note)
    return renderer


def open_asking(config: RunConfig, reporter: Reporter, *, trained: bool = False) -> Asking:
    """Loads environment, tasks and model, which asks for gradients only if `trained`. Raises whatever is wrong with
    them."""
    seed_global(config.seed)
    env = make_environment(config.env.name, config.env.options, seed=config.seed)
    reporter.phase("reading the tasks")
    tasks = training_tasks(env, config.data)
    policy = open_policy(config, reporter, trained=trained)
    if config.model.startswith("sapling") and config.env.name != "verbs":
        reporter.note(
            "the sapling understands the coined-verb environment alone; for other tasks name a model with --model"
        )
    renderer = _renderer(policy.tokenizer, policy.context_length, config, reporter)
    longest = config.context.max_prompt_tokens
    tasks = askable(tasks, renderer, longest, reporter)
    limit, rollouts = config.evaluation.tasks, config.evaluation.rollouts
    if config.evaluation.answers < rollouts:
        reporter.note(f"greedy answers repeat: evaluations sample 1 per task, not {rollouts}")
    held_out = {
        split: askable(found[:limit], renderer, longest, reporter)
        for split in ("held_out", "forgetting")
        if (found := tasks_of(env, split))
    }
    return Asking(config, env, policy, renderer, tasks, held_out)


def open_session(config: RunConfig, reporter: Reporter) -> Session:
    """Everything that can be refused is refused here, before anything is written or sampled."""
    seed_global(config.seed)  # a method of the user's may draw as well
    method = get_method(config.method.name, config.method.options)
    rule = _teacher_rule(config, method)
    _check_sampling(config, method)
    parts = open_asking(config, reporter, trained=True)
    teacher = Teacher(rule, parts.policy, other=_other_model(rule, config, parts.policy, reporter))
    replay: list[Task] = []
    if config.replay:
        found = _replay_tasks(config, parts.env)
        replay = askable(found, parts.renderer, config.context.max_prompt_tokens, reporter)
    check_conversations(parts.renderer, parts.tasks, lambda task: _conversations(method, task))
    return Session(
        **vars(parts),
        method=method,
        teacher=teacher,
        reference_policy=_reference_policy(config, method, teacher, parts.policy),
        optimizer=_optimizer(config, parts.policy),
        replay=replay,
    )


@torch.no_grad()
def started_over(session: Session, weights: Mapping[str, Tensor]) -> Session:
    """The session with these weights, and a teacher and an optimiser that have seen nothing yet."""
    config, policy = session.config, session.policy
    for name, value in policy.trainable().items():
        value.copy_(weights[name])
    teacher = Teacher(session.teacher.rule, policy, other=session.teacher.other)
    reference_policy = _reference_policy(config, session.method, teacher, policy)
    return replace(session, teacher=teacher, reference_policy=reference_policy, optimizer=_optimizer(config, policy))


def _reference_policy(config: RunConfig, method: Method, teacher: Teacher, policy: Policy) -> Teacher | None:
    """The weights at the start, where somebody reads them; a frozen teacher is they."""
    if not (config.replay or method.needs_reference):
        return None
    return teacher if isinstance(teacher.rule, Frozen) else Teacher(Frozen(), policy)


def _optimizer(config: RunConfig, policy: Policy) -> torch.optim.Optimizer:
    options = config.optimiser
    return torch.optim.AdamW(
        list(policy.trainable().values()),
        lr=options.lr,
        betas=(options.beta1, options.beta2),
        weight_decay=options.weight_decay,
    )


def _check_sampling(config: RunConfig, method: Method) -> None:
    """Raises `ConfigError` where a method corrects for a distribution that the sampler does not report."""
    if method.needs_sampler_logprobs and not config.sampling.whole:
        raise ConfigError(
            f"the method {config.method.name!r} weighs answers by the ratio of two probabilities",
            got=f"top_p {config.sampling.top_p:g}, temperature {config.sampling.temperature:g}",
            why="those of a truncated or greedy choice are not the model's, and the ratio would be left out",
            do="sample with top_p=1 and a temperature above 0",
        )


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


def _other_model(rule: TeacherRule, config: RunConfig, policy: Policy, reporter: Reporter) -> Policy | None:
    """The model of an `Other` teacher. Raises `ConfigError` when it speaks other tokens."""
    if not isinstance(rule, Other):
        return None
    other = load_policy(rule.model, device=config.device, dtype=config.dtype, trained=False, progress=reporter.note)
    reporter.note(f"teacher: {other.description}")
    if other.tokenizer.get_vocab() != policy.tokenizer.get_vocab():
        raise ConfigError(
            "the teacher's model has another tokenizer than the student's",
            got=f"{other.name} and {policy.name}",
            why="both are compared token by token",
            do="choose a teacher of the same family",
        )
    return other


def _conversations(method: Method, task: Task) -> list[tuple[Message, ...]]:
    """Those that a method may have about a task after its first answers, and what a teacher with an instruction reads.
    A stage of the user's own is asked for none: who wrote it need not expect an answer that nobody gave."""
    found = examples([stage for stage in method.stages if type(stage).__module__.startswith("selfdistill.")], task)
    if any(isinstance(getattr(method, item.name), Instruction) for item in fields(method)):
        found.append(teacher_messages(task.messages, Context("instruction", instruction="Be kind.")))
    return found


def _replay_tasks(config: RunConfig, env: Environment) -> list[Task]:
    """Prompts of the past: the environment's replay tasks, or those of a file."""
    assert config.replay is not None
    if config.replay.prompts != "env":
        return question_rows(Path(config.replay.prompts))
    tasks = tasks_of(env, "replay")
    if not tasks:
        raise ConfigError(
            f"the environment {env.name!r} has no tasks for replay",
            got="replay.prompts = environment",
            do='name a file of prompts: replay.prompts=prompts.jsonl, each line {"prompt": "…"}',
        )
    return tasks
