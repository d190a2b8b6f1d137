"""What a run needs of the memory of its device, from the config.json of its model and its own settings.

    print(plan_memory(load_config(None, ["model=Qwen/Qwen3-8B", "lora.rank=16"])))

Parameters are counted on a model without storage. Activations and caches are an upper bound, for full micro-batches and
answers as long as they may be, with observations between the turns of a conversation as long as a turn. They follow
from the form of a decoder layer (attention, and a gated feed-forward part).
What the process holds beside (the interpreter, libraries) is not counted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import combinations

import torch

from selfdistill.config import RunConfig
from selfdistill.envs.base import ConversationEnvironment, Environment
from selfdistill.errors import OutOfMemoryError
from selfdistill.models.load import LoraOptions
from selfdistill.models.narrow import multiplies_bfloat16
from selfdistill.models.planning import ModelShape, device_memory, model_shape
from selfdistill.models.precision import pick_device, pick_dtype
from selfdistill.models.sampler import DRAWN_LOGITS
from selfdistill.models.teacher import Frozen, Live, Other, TrustRegion

GIB, CPU = 2**30, torch.device("cpu")
LOADING = "loading"
PHASES = (LOADING, "sampling", "reading contexts", "updating", "moving the weights")
SHARDED = ("weights", "rounded weights", "shadow", "shadow, converted", "gradients", "gradients ", "optimiser")
ROOM = 0.95  # of what is free, at most, is planned for
FEWEST = 256  # tokens of a micro-batch or of a batch of the sampler that a remedy names, at least


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Bytes by part, with the phases of a step in which the part is there (none: in all). `available`: what the device
    has free."""

    device: str
    available: float
    parts: Mapping[str, tuple[float, frozenset[str]]]

    def during(self, phase: str) -> dict[str, float]:
        """Bytes by part in this phase of a step."""
        return {name: size for name, (size, phases) in self.parts.items() if size and (not phases or phase in phases)}

    @property
    def phase(self) -> str:
        """The phase that needs most."""
        return max(PHASES, key=lambda phase: sum(self.during(phase).values()))

    @property
    def peak(self) -> float:
        """Bytes in that phase."""
        return sum(self.during(self.phase).values())

    @property
    def fits(self) -> bool:
        """Whether the device has that much. Pages of a file that is read are given back when memory is short."""
        return max(sum(self.during(phase).values()) for phase in PHASES[1:]) <= ROOM * self.available

    @property
    def line(self) -> str:
        """One line: the peak, its largest parts, and what is free."""
        there = self.during(self.phase)
        largest = sorted(there, key=there.__getitem__, reverse=True)[:4]
        parts = ", ".join(f"{name.strip()} {_shown(there[name])}" for name in largest)
        return f"memory: up to {_shown(self.peak)} of {self.device} ({parts}); {_shown(self.available)} are free"

    def rows(self) -> list[tuple[str, str, str]]:
        """A table: part, size, and when it is there."""
        rows = [
            (name.strip(), _shown(size), ", ".join(p for p in PHASES if p in phases) or "always")
            for name, (size, phases) in self.parts.items()
            if size
        ]
        return [*rows, ("peak", _shown(self.peak), self.phase), ("free", _shown(self.available), "before the run")]

    def __str__(self) -> str:
        return "\n".join(f"{name:24}{size:>10}  {when}" for name, size, when in self.rows())


def _shown(size: float) -> str:
    return f"{size / GIB:.1f} GiB" if size >= GIB / 10 else f"{size / 2**20:.0f} MiB"


@dataclass(frozen=True, slots=True)
class Needs:
    """What a plan reads beside settings and model: the longest prompt, the answers of one step and the most turns of
    one, whether the run learns, how many copies of its weights teacher and reference policy keep, and whether those
    never move. Of `learners` that share weights and answers the plan is one's; with `samples=False` others sample."""

    prompt_tokens: int
    answers: int
    turns: int = 1
    learns: bool = True
    shadows: int = 1
    fixed: bool = True
    device: torch.device = CPU
    available: float = float("inf")
    learners: int = 1
    samples: bool = True


def plan_memory(config: RunConfig, *, prompt_tokens: int | None = None, learns: bool = True) -> MemoryPlan:
    """What a run with these settings needs on its device, with prompts of at most `prompt_tokens` (None: the most that
    the settings allow); with `learns=False`, an evaluation. Raises `ModelError`, `ConfigError`."""
    longest = prompt_tokens or config.context.max_prompt_tokens
    needs = needs_of(config, longest, config.make_env(), learns=learns)
    return memory_plan(config, model_shape(config.model, config.lora), needs)


def needs_of(
    config: RunConfig, prompt_tokens: int, env: Environment, *, learns: bool = True, answers: int = 0
) -> Needs:
    """The needs of a run in this environment, on its device as it is now. Raises `ConfigError`."""
    method, device = config.make_method(), pick_device(config.device)
    rule = config.teacher or method.teacher or Live()
    keeps = not isinstance(rule, Live | Other)
    reference = (config.replay is not None or method.needs_reference) and not isinstance(rule, Frozen)
    most = config.sampling.turns if isinstance(env, ConversationEnvironment) else 1
    return Needs(
        prompt_tokens,
        answers or config.tasks_per_step * config.rollouts_per_task,
        min(most, getattr(env, "turns", most)),
        learns,
        keeps + reference,
        isinstance(rule, Frozen | TrustRegion),
        device,
        device_memory(device),
        config.scale.learners,
        config.scale.sampler is None or config.scale.sampler.colocate is not None,
    )


def memory_plan(config: RunConfig, shape: ModelShape, needs: Needs) -> MemoryPlan:
    """The plan of a run, from its settings and the form of its model: of several learners that of each. They hold equal
    shards, and gather one layer at a time and the next."""
    many = needs.learners
    device, dtype = needs.device, pick_dtype(config.dtype, needs.device)
    full, on_cpu = needs.learns and config.lora is None, device.type == "cpu"
    narrow = dtype == torch.bfloat16 and (full or multiplies_bfloat16(device))
    wide = 2 if narrow else 4
    trained = shape.trained if needs.learns else 0
    head = 4.0 * shape.head
    turn, whole = config.sampling.max_new_tokens, config.sampling.conversation_tokens
    read_and_sampled = min((2 * needs.turns - 1) * turn, max(whole, turn))
    length = min(needs.prompt_tokens + read_and_sampled, shape.context)
    answers = -(-needs.answers // many)
    step = answers * length
    sampled = min(max(config.sampling.batch_tokens, length), step)
    read = min(max(config.micro_batch_tokens, length), step)
    own = min(answers, -(-(config.tasks_per_update or needs.answers) * config.rollouts_per_task // many))
    prompts = own if config.activation_checkpointing else -(-own // config.rollouts_per_task)  # a group's is read once
    answer = min(read_and_sampled, length - 1)
    all_read = prompts * (length - answer) + own * answer
    updated = min(max(config.micro_batch_tokens, length), all_read)
    weights = 4.0 * shape.parameters if full else float(dtype.itemsize * shape.parameters + 4 * trained)
    file = float(shape.parameters * shape.published.itemsize)
    live = 4.0 * (3 * shape.intermediate + 6 * shape.hidden)  # of a token, in the layer that is computed
    residual = 4 if full or not narrow else 2  # bytes of a number between layers
    rows = max(64, (2**22 if on_cpu else 2**26) // shape.vocabulary)
    logits = 4.0 * shape.vocabulary * min(rows, updated) * (3 if on_cpu else 8)
    at_once = -(-sampled // length)
    drawn = 0 if on_cpu else 6 * min(at_once, DRAWN_LOGITS // shape.vocabulary)
    widened = head if dtype == torch.bfloat16 and on_cpu and not full else 0.0
    rounded = 2.0 * (trained - shape.head * full) * narrow
    moments = trained * (2.1 if config.optimiser.states == "8bit" else 8.0)
    moved = not on_cpu and config.offload in ("optimiser", "both")
    compact = needs.fixed and narrow and full and shape.published == torch.bfloat16
    shadow = needs.shadows * trained * (2.0 if compact else 4.0)
    away = not on_cpu and config.offload in ("teacher", "both")
    several = all_read > updated
    states = answers * min(needs.turns * turn, length) * shape.hidden * residual
    states *= max(1, needs.shadows)
    kept = _kept(shape, full=full, narrow=narrow, rank=config.lora.rank if config.lora else 0)
    if prompts < own:
        kept += _kept_behind(shape, length, wide)
    layers = shape.layers * kept
    if config.activation_checkpointing:
        layers = shape.layers * float(shape.hidden * residual) + kept
    sampling, forward, updating, optimiser = (frozenset({phase}) for phase in PHASES[1:])
    parts: dict[str, tuple[float, frozenset[str]]] = {
        "weights": (weights, frozenset()),
        "weights on file": (file, frozenset({LOADING})),
        "rounded weights": (rounded, sampling | forward | updating),
        "keys and values": (2.5 * sampled * shape.layers * shape.key_value * wide, sampling),
        "reading prompts": (live * min(answers * needs.prompt_tokens, sampled), sampling),
        "logits of the sampler": (4.0 * shape.vocabulary * (at_once + drawn) + widened, sampling),
    }
    if needs.learns:
        parts |= {
            "shadow": (0.0 if away else shadow, frozenset(PHASES[1:])),
            "shadow, converted": (4.0 * trained if compact or (away and needs.shadows) else 0.0, forward),
            "reading contexts": (live * read + states, forward),
            "teacher's states": (states, forward | updating),
            "activations": (updated * (layers + live + 24.0 * shape.hidden), updating),
            "head": (logits + (2 * head + (compact and head) if full else widened), updating),
            "gradients": (4.0 * trained * several, updating),
            "gradients ": (4.0 * trained, optimiser),
            "optimiser": (0.0 if moved else moments, frozenset(PHASES[1:])),
            "optimiser's sums": (8.0 * min(shape.largest, trained), optimiser),
        }
    if many > 1:
        parts = {name: (size / (many if name in SHARDED else 1), phases) for name, (size, phases) in parts.items()}
        parts["layers gathered"] = 2.0 * wide * shape.parameters / shape.layers, frozenset(PHASES[1:-1])
    if not needs.samples:
        parts = {name: part for name, part in parts.items() if part[1] != sampling}
    return MemoryPlan(str(device), needs.available, parts)


def _kept(shape: ModelShape, *, full: bool, narrow: bool, rank: int) -> float:
    """Bytes that a decoder layer keeps of a token for its backward pass."""
    d, i, q, kv = shape.hidden, shape.intermediate, shape.query, shape.key_value
    norms = (q + kv) * shape.qk_norm
    if not narrow:
        return 4.1 * (6 * d + 2 * norms if full else 4 * d + norms + 7 * rank) + 4.1 * (2 * q + 2 * kv + 4 * i)
    return 1.025 * (8 * i + 4 * q + 4 * kv + (26 * d + 6 * norms if full else 13 * d + 4 * norms + 14 * rank))


def _kept_behind(shape: ModelShape, length: int, wide: int) -> float:
    """What it keeps more of a token that is read behind a prompt of several answers: keys and values repeated for all
    heads, and a row of the mask."""
    return float(wide * (2 * (shape.query - shape.key_value) + length))


def check_memory(config: RunConfig, needs: Needs) -> None:
    """Raises `OutOfMemoryError`, which names settings that would help, where not even the weights and what belongs to
    them fit, whatever the data."""
    needs, shortest = replace(needs, prompt_tokens=1, answers=1), _shortest(config)
    plan = memory_plan(shortest, model_shape(config.model, config.lora), needs)
    if not plan.fits:
        what = "this run does not fit into the memory of its device"
        raise OutOfMemoryError(what, got=plan.line, do=remedy(shortest, needs))


def planned(config: RunConfig, needs: Needs) -> str:
    """The plan of a run in a sentence, with the settings that would help where the device may have too little."""
    plan = memory_plan(config, model_shape(config.model, config.lora), needs)
    return plan.line if plan.fits else f"{plan.line}: it may run out of memory; to be sure, {remedy(config, needs)}"


def _shortest(config: RunConfig) -> RunConfig:
    return replace(config, sampling=replace(config.sampling, max_new_tokens=1))


def remedy(config: RunConfig, needs: Needs) -> str:
    """The fewest changes of settings that would make a run fit, those that change no result first."""

    def fits(changed: RunConfig) -> bool:
        shape = model_shape(changed.model, changed.lora)
        return memory_plan(changed, shape, needs).fits

    def smaller(key: str, change: Callable[[RunConfig, int], RunConfig], tokens: int) -> None:
        while tokens > FEWEST and not fits(change(config, tokens)):
            tokens //= 2
        changes[f"{key}={tokens}"] = lambda c: change(c, tokens)

    changes: dict[str, Callable[[RunConfig], RunConfig]] = {}
    if needs.answers > 1:
        micro, batch = config.micro_batch_tokens, config.sampling.batch_tokens
        smaller("micro_batch_tokens", lambda c, n: replace(c, micro_batch_tokens=n), micro)
        smaller("sampling.batch_tokens", lambda c, n: replace(c, sampling=replace(c.sampling, batch_tokens=n)), batch)
    if needs.learns:
        changes["activation_checkpointing=true"] = lambda c: replace(c, activation_checkpointing=True)
        if needs.device.type != "cpu":
            changes["offload=both"] = lambda c: replace(c, offload="both")
        changes["lora.rank=16"] = lambda c: replace(c, lora=c.lora or LoraOptions())
        changes["optimiser.states=8bit"] = lambda c: replace(c, optimiser=replace(c.optimiser, states="8bit"))
    changes["dtype=bfloat16"] = lambda c: replace(c, dtype="bfloat16")
    for count in (1, 2, 3):
        for names in combinations(changes, count):
            changed = config
            for name in names:
                changed = changes[name](changed)
            if fits(changed):
                return f"set {' '.join(names)}"
    return "take a smaller model, or a device with more memory"
