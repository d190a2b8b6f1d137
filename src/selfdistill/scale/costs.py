"""What one step of a run costs: tokens, operations, bytes moved, and modelled seconds. Nothing is loaded or run.

    costs = step_costs(config, model_shape(config.model, config.lora))
    print_table(("per step", "amount", "of which"), [*costs.rows(), *seconds(costs, GPUS["H100"]).rows()])

Tokens are an upper bound where no mean length is given: every answer is as long as it may be, every prompt as long as
the settings allow, and every answer has a teacher. Operations are counted as in the kernel and in a decoder layer
(products of matrices, two operations for each weight and token; attention over the tokens before). Seconds follow from
the figures that vendors state, times the shares of them in `ACHIEVED`; nothing is assumed to overlap.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from selfdistill.config import RunConfig
from selfdistill.errors import ConfigError, nearest
from selfdistill.methods import Method
from selfdistill.models.planning import ModelShape
from selfdistill.models.teacher import Live, TrustRegion

GIB = 2**30
NARROW, WIDE = 2, 4  # bytes of a number in bfloat16 and in float32


@dataclass(frozen=True, slots=True)
class Gpu:
    """A device as its vendor states it: dense bfloat16 operations a second, bytes of memory, bytes a second of that
    memory, to another device of its node in one direction, and to another node for each device."""

    name: str
    flops: float
    memory: float
    bandwidth: float
    link: float
    network: float


GPUS: Mapping[str, Gpu] = {
    gpu.name: gpu
    for gpu in (
        Gpu("H100", 989e12, 80e9, 3.35e12, 450e9, 50e9),
        Gpu("H200", 989e12, 141e9, 4.8e12, 450e9, 50e9),
        Gpu("GH200", 989e12, 96e9, 4.0e12, 450e9, 25e9),
        Gpu("B200", 2250e12, 180e9, 7.7e12, 900e9, 50e9),
        Gpu("A100", 312e12, 80e9, 2.04e12, 300e9, 25e9),
        Gpu("4090", 165e12, 24e9, 1.01e12, 16e9, 3e9),
    )
}
PER_NODE = 8  # devices of a node
# Shares of the vendor's figures. Of operations: measured once (EXPERIMENTS.md: an update of an 8 B model under LoRA on
# one H100). The others are assumed, not measured.
ACHIEVED: Mapping[str, float] = {"operations": 0.16, "memory": 0.6, "transfer": 0.7}
STORAGE = 2e9  # bytes a second of the directory that samplers read weights from; assumed
SAMPLER_MEMORY = 0.9  # of its device, for weights, keys and values


def gpu_named(name: str) -> Gpu:
    """A device of the table by its name, or by a longer one such as torch gives. Raises `ConfigError`."""
    found = max((key for key in GPUS if key.lower() in name.lower()), key=len, default="")
    if not found:
        raise ConfigError("the speed of this device is not known", got=name, do=nearest(name, GPUS))
    return GPUS[found]


@dataclass(frozen=True, slots=True)
class Layout:
    """Devices of a run: `learners` share the update; `samplers` only sample (0: learners sample their own share)."""

    learners: int = 1
    samplers: int = 0

    @property
    def devices(self) -> int:
        """All of them."""
        return self.learners + self.samplers


@dataclass(frozen=True, slots=True)
class Lengths:
    """Mean tokens of a prompt, of an answer and of a teacher's prompt, and the longest answer."""

    prompt: int
    answer: int
    context: int
    longest: int


def lengths_of(config: RunConfig, window: int, *, prompt: int = 0, answer: int = 0) -> Lengths:
    """The most that the settings and the model's context allow; `prompt` and `answer` are means that a user knows. A
    teacher's prompt is taken to be a prompt with one more answer."""
    most = min(config.sampling.max_new_tokens, window // 2)
    answer = min(answer or most, most)
    prompt = min(prompt or config.context.max_prompt_tokens, window - most)
    return Lengths(prompt, answer, min(config.context.max_teacher_tokens, prompt + answer, window - most), most)


@dataclass(frozen=True, slots=True)
class StepCosts:
    """One step (a generation batch and its updates), of all devices together.

    Tokens: `sampled`; read by the sampler (`prefilled`), by teacher and reference (`teacher`), before several updates
    (`behaviour`) and with gradients (`student`). `flops` by phase. `moved`: bytes by what they are, that one learner
    receives or one sampler loads. `gathers`: how often the learners gather all weights.
    """

    shape: ModelShape
    layout: Layout
    lengths: Lengths
    answers: int
    updates: int
    tokens: Mapping[str, float]
    flops: Mapping[str, float]
    moved: Mapping[str, float]
    gathers: int

    def rows(self) -> list[tuple[str, str, str]]:
        """A table: what, how much, of which."""
        parts = {name: f"{value:,.0f}" for name, value in self.tokens.items() if value}
        work = {name: f"{value:.3g}" for name, value in self.flops.items() if value}
        rows = [
            (
                "answers",
                f"{self.answers:,}",
                f"{self.lengths.answer:,} tokens each, prompts of {self.lengths.prompt:,}",
            ),
            ("updates", f"{self.updates:,}", f"{self.answers // max(1, self.updates):,} answers each"),
            ("tokens", f"{sum(self.tokens.values()):,.0f}", _listed(parts)),
            ("operations", f"{sum(self.flops.values()):.3g}", _listed(work)),
        ]
        return [*rows, *((f"moved: {name}", _bytes(size), "a device") for name, size in self.moved.items() if size)]


def step_costs(
    config: RunConfig, shape: ModelShape, layout: Layout = Layout(), *, prompt: int = 0, answer: int = 0
) -> StepCosts:
    """The costs of a step with these settings. Raises `ConfigError`."""
    method, lengths = config.make_method(), lengths_of(config, shape.context, prompt=prompt, answer=answer)
    p, a, c = lengths.prompt, lengths.answer, lengths.context
    n, tasks = config.tasks_per_step * config.rollouts_per_task, config.tasks_per_step
    samples = not getattr(method, "logged", False)
    updates = -(-tasks // (config.tasks_per_update or tasks))
    prompts = n if config.activation_checkpointing else tasks  # a group's prompt is read once
    views = _views(config, method)
    reference = bool(config.replay) or method.needs_reference
    replayed = config.replay.per_step if config.replay else 0
    behaviour = updates > 1
    body_read = tasks * p + n * a
    tokens = {
        "sampled": float((n * samples + replayed) * a),
        "prefilled": float((tasks * samples + replayed) * p),
        "teacher": float(views * n * (c + a) + reference * (replayed or n) * (p + a)),
        "behaviour": float(behaviour * (body_read + replayed * (p + a))),
        "student": float(prompts * p + n * a + replayed * (p + a)),
    }
    flops = _flops(shape, config, tokens, lengths, n + replayed, views=views, behaviour=behaviour)
    passes, backward = _passes(config, layout, tokens, updates)
    full, others = config.lora is None, (layout.learners - 1) / layout.learners
    moved = {
        "weights gathered": others * NARROW * shape.parameters * (passes + 2 * backward),
        "gradients": others * WIDE * shape.trained * backward,
        "weights to the sampler": float(NARROW * (shape.parameters if full else shape.trained))
        * bool(layout.samplers and samples),
    }
    return StepCosts(shape, layout, lengths, n, updates, tokens, flops, moved, round(passes + 2 * backward))


def _views(config: RunConfig, method: Method) -> int:
    """Forward passes over every context: none without a teacher, two where it mixes two sets of weights."""
    if method.teacher is None and config.teacher is None:
        return 0
    return 2 if isinstance(config.teacher or method.teacher or Live(), TrustRegion) else 1


def _flops(
    shape: ModelShape,
    config: RunConfig,
    tokens: Mapping[str, float],
    lengths: Lengths,
    answers: int,
    *,
    views: int,
    behaviour: bool,
) -> dict[str, float]:
    """Operations by phase. A backward pass costs two forward ones, one where weights are frozen; activation
    checkpointing one more of the layers."""
    body = 2.0 * layers_of(shape)
    head = 2.0 * shape.head
    spread = 4.0 * shape.layers * shape.query  # of attention: a token with one before it
    behind = {"answer": lengths.prompt + lengths.answer / 2, "context": lengths.context + lengths.answer / 2}
    backward = 2 if config.lora is None else 1
    times = 1 + backward + config.activation_checkpointing
    positions = float(answers * lengths.answer)
    sampled, student = tokens["sampled"], tokens["student"]
    attention = {
        "answers": spread * behind["answer"] * positions,
        "prompts": spread * lengths.prompt / 2 * (student - positions),
        "contexts": spread * (behind["context"] * positions + lengths.context**2 / 2 * answers) * bool(views),
    }
    return {
        "sampling": sampled * (body + head + spread * behind["answer"])
        + tokens["prefilled"] * (body + spread * lengths.prompt / 2),
        "teacher": tokens["teacher"] * body + views * attention["contexts"],
        "behaviour": tokens["behaviour"] * body + behaviour * (head * positions + attention["answers"]),
        "student": student * body * times
        + (attention["answers"] + attention["prompts"]) * (3 + config.activation_checkpointing),
        "head and loss": head * positions * (1 + bool(views) + backward),
    }


def layers_of(shape: ModelShape) -> float:
    """Parameters that multiply every token: all but the embedding and the head."""
    embeddings = shape.head * (1 if shape.tied else 2)
    return float(shape.parameters - embeddings)


def _passes(config: RunConfig, layout: Layout, tokens: Mapping[str, float], updates: int) -> tuple[float, float]:
    """Forward passes without gradients and micro-batches with them, of one learner in a step."""

    def batches(name: str, times: int = 1) -> int:
        each = tokens[name] / layout.learners / times
        return times * math.ceil(each / config.micro_batch_tokens) if each else 0

    samples = bool(tokens["sampled"]) and not layout.samplers  # the weights are gathered once to sample
    return float(batches("teacher") + batches("behaviour") + samples), float(batches("student", updates))


@dataclass(frozen=True, slots=True)
class StepSeconds:
    """Modelled seconds of a step by phase, one after the other, on one kind of device."""

    gpu: Gpu
    parts: Mapping[str, float]
    tokens_per_second: float

    @property
    def total(self) -> float:
        """All phases."""
        return sum(self.parts.values())

    def rows(self) -> list[tuple[str, str, str]]:
        """A table: phase, seconds, share."""
        rows = [
            (f"seconds: {name}", f"{value:,.1f}", f"{value / self.total:.0%}")
            for name, value in self.parts.items()
            if value
        ]
        what = f"modelled for {self.gpu.name}; {ACHIEVED['operations']:.0%} of its peak"
        return [*rows, ("seconds a step", f"{self.total:,.1f}", what)]


def seconds(costs: StepCosts, gpu: Gpu) -> StepSeconds:
    """How long the phases take on devices of this kind, by the model above."""
    layout, shape, lengths = costs.layout, costs.shape, costs.lengths
    operations, transfer = gpu.flops * ACHIEVED["operations"], ACHIEVED["transfer"]
    wire = transfer * (gpu.link if layout.learners <= PER_NODE else gpu.network)
    learned = sum(value for name, value in costs.flops.items() if name != "sampling")
    sampled, rate = 0.0, 0.0
    if costs.tokens["sampled"]:
        samplers = layout.samplers or layout.learners
        rows = max(1.0, costs.tokens["sampled"] / lengths.answer / samplers)
        sampled = sampling_seconds(shape, lengths, rows, gpu)
        rate = costs.tokens["sampled"] / sampled
    weights = costs.moved["weights to the sampler"]
    parts = {
        "sampling": sampled,
        "weights to the sampler": 2 * weights / STORAGE,  # written, then read
        "learning": learned / layout.learners / operations,
        "weights gathered": costs.moved["weights gathered"] / wire,
        "gradients": costs.moved["gradients"] / wire,
    }
    return StepSeconds(gpu, parts, rate)


def sampling_seconds(shape: ModelShape, lengths: Lengths, rows: float, gpu: Gpu) -> float:
    """So many answers on one device: as many at a time as its memory holds, and at least the longest one alone."""
    weights = float(NARROW * shape.parameters)
    kept = float(NARROW * 2 * shape.layers * shape.key_value)  # of a token
    room = max(SAMPLER_MEMORY * gpu.memory - weights, kept * (lengths.prompt + lengths.longest))
    at_once = max(1.0, min(rows, room / (kept * (lengths.prompt + lengths.answer))))

    def token(batch: float) -> float:
        read = weights + batch * kept * (lengths.prompt + lengths.answer / 2)
        return max(read / (gpu.bandwidth * ACHIEVED["memory"]), 2 * shape.parameters * batch / (gpu.flops * 0.5))

    return max(rows / at_once * lengths.answer * token(at_once), lengths.longest * token(1.0))


def _listed(parts: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in parts.items())


def _bytes(size: float) -> str:
    return f"{size / GIB:,.1f} GiB" if size >= GIB / 10 else f"{size / 2**20:,.0f} MiB"
