"""The settings of learning from a journal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from selfdistill.config import parse_override
from selfdistill.errors import ConfigError, Ranged, option
from selfdistill.models.adapter import LoraOptions
from selfdistill.options import Where, build

Trigger = Literal["idle", "pending", "now", "review"]


@dataclass(frozen=True, slots=True)
class LiveLearning(Ranged):
    """How a served model learns. Raises `ConfigError`.

    An update samples answers to the questions of its lessons, and to past questions for each of them, from the weights
    that it trains; what the teacher reads is the lesson. Prompts of the probe set are held to the served weights.
    """

    trigger: Trigger = option(
        "idle",
        "an update begins after idle_s seconds without a request (idle), once `pending` lessons wait (pending), only "
        "when a client says so (now), or as idle, and is served once a person approves (review)",
    )
    pending: int = option(4, "lessons that wait, after which an update begins under that trigger", least=1, most=10_000)
    idle_s: float = option(30.0, "seconds without a request, after which one begins under idle and review", least=0)
    lessons: int = option(8, "lessons of one update, at most", least=1, most=1000)
    older: int = option(4, "lessons of earlier updates that are drawn again beside them, recent ones rather", least=0)
    session_share: float = option(0.5, "most that one conversation has of them, beside others", above=0, most=1)
    questions: int = option(
        16, "questions of one update: replies are applied to past ones too, the nearest by their words", least=0
    )
    round_questions: int = option(8, "of them in one round: rounds take turns", least=1)
    together: bool = option(
        True, "whether the teacher of a lesson may read the replies of an update's other conversations too"
    )
    completions: int = option(2, "answers sampled to each question, in every round", least=2, most=64)
    rounds: int = option(6, "optimiser steps, each on fresh answers", least=1, most=1000)
    lr: float = option(5e-4, "learning rate", above=0, most=1)
    lora: LoraOptions = field(default_factory=LoraOptions)
    replay: int = option(8, "probe prompts a round, after the first, that are held to the served weights", least=0)
    replay_weight: float = option(1.0, "their weight relative to an answer that is learned", least=0)
    max_new_tokens: int = option(256, "tokens of a sampled answer; longer ones are cut", least=1, most=100_000)
    learned_tokens: int = option(64, "tokens of an answer that are learned, the first ones", least=1)
    max_prompt_tokens: int = option(
        2048, "tokens of a conversation that are read, the newest turns; no more may have come back", least=64
    )
    probe: str = option("", "JSONL file of the probe set, {prompt, answer} a line; empty: a set of short facts")
    kl_cap: float = option(1.0, "largest KL from the served weights on the lessons' questions, nats a token", above=0)
    harm: float = option(
        0.1, "largest loss of likelihood of the served answers to probe prompts, nats a token", above=0
    )
    movement: float = option(0.002, "smallest KL that counts as a movement, nats a token", least=0)
    seed: int = option(0, "draws completions, older lessons and past questions", least=0)


def read_learning(trigger: str | None, overrides: Sequence[str] = ()) -> LiveLearning | None:
    """The settings of a server from its trigger and KEY=VALUE; None without a trigger. Raises `ConfigError`."""
    if trigger is None:
        if overrides:
            raise ConfigError("a setting of learning, and no --learn", got=overrides[0], do="give --learn idle")
        return None
    settings: dict[str, Any] = {"trigger": trigger}
    for key, value in map(parse_override, overrides):
        table, _, name = key.rpartition(".")
        if table:
            settings.setdefault(table, {})[name] = value
        else:
            settings[name] = value
    return build(LiveLearning, settings, Where(sources=dict.fromkeys(settings, "command line")))
