"""What a run works with, put together from its settings once: policy, teacher, optimiser, world, tasks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from selfdistill.config import RunConfig
from selfdistill.errors import ConfigError
from selfdistill.loops.tasks import askable, question_rows, split_tasks, training_tasks
from selfdistill.methods import Method, get_method
from selfdistill.models.hf import load_policy
from selfdistill.models.policy import Policy
from selfdistill.models.teacher import Frozen, Teacher
from selfdistill.render import Renderer
from selfdistill.runs.progress import Reporter
from selfdistill.types import Task
from selfdistill.worlds.base import World
from selfdistill.worlds.registry import make_world

NO_ISOLATION = "none: this world runs no programs"


@dataclass
class Session:
    """The parts of one run. `anchor` are the weights at the start, for reference and rehearsal."""

    config: RunConfig
    method: Method
    world: World
    policy: Policy
    renderer: Renderer
    teacher: Teacher
    anchor: Teacher
    optimizer: torch.optim.Optimizer
    tasks: list[Task]
    held_out: Mapping[str, list[Task]]
    rehearsal: list[Task]

    @property
    def judge_for_evaluation(self) -> World:
        """The world as it measures, by tests that training does not show where it has such."""
        private = getattr(self.world, "for_evaluation", None)
        judge: World = private() if private is not None else self.world
        return judge

    @property
    def isolation(self) -> str:
        """How untrusted programs are shut in, for the records."""
        return str(getattr(self.world, "isolation", NO_ISOLATION))


def open_policy(config: RunConfig, reporter: Reporter) -> Policy:
    """The model, on its device."""
    reporter.phase("loading the model")
    template = Path(config.chat_template).read_text(encoding="utf-8") if config.chat_template else None
    policy = load_policy(
        config.model,
        device=config.device,
        dtype=config.dtype,
        lora=config.lora,
        chat_template=template,
        progress=reporter.note,
    )
    reporter.note(policy.description)
    return policy


def open_session(config: RunConfig, reporter: Reporter) -> Session:
    """Everything that can be refused is refused here, before anything is written or sampled."""
    method = get_method(config.method.name, config.method.options)
    world = make_world(config.world.name, config.world.options, seed=config.seed)
    tasks = training_tasks(world, config.data)
    policy = open_policy(config, reporter)
    renderer = Renderer(policy.tokenizer, policy.context_length, config.context.max_teacher_tokens)
    tasks = askable(tasks, renderer, config.context.max_prompt_tokens, reporter)
    limit = config.evaluation.tasks
    held_out = {split: found[:limit] for split in ("holdout", "retained") if (found := split_tasks(world, split))}
    torch.manual_seed(config.seed)
    anchor = Teacher(Frozen(), policy)
    rule = config.teacher or method.teacher or Frozen()
    teacher = anchor if isinstance(rule, Frozen) else Teacher(rule, policy)
    options = config.optimiser
    optimizer = torch.optim.AdamW(
        list(policy.trainable().values()),
        lr=options.lr,
        betas=(options.beta1, options.beta2),
        weight_decay=options.weight_decay,
    )
    rehearsal = _rehearsal_tasks(config, world)
    return Session(config, method, world, policy, renderer, teacher, anchor, optimizer, tasks, held_out, rehearsal)


def _rehearsal_tasks(config: RunConfig, world: World) -> list[Task]:
    """Prompts of the past: the world's retained tasks, or those of a file."""
    if config.rehearsal is None:
        return []
    if config.rehearsal.prompts != "retained":
        return question_rows(Path(config.rehearsal.prompts))
    tasks = split_tasks(world, "retained")
    if not tasks:
        raise ConfigError(
            f"the world {world.name!r} has no tasks that were known before",
            got="rehearsal.prompts = retained",
            do='name a file of prompts: rehearsal.prompts=prompts.jsonl, each line {"prompt": "…"}',
        )
    return tasks
