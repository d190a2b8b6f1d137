"""How the sapling is grown: every number that matters, in one place.

Small batches, Muon on the matrices and a loss on all tokens matter most; the context's tokens weigh less than the
answer's, but predicting what programs print teaches what they do. Most of what takes search (two steps from a few
cases) is learned while the rate decays.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Recipe:
    """A size and a schedule. Lengths in tokens; a round draws `episodes_per_round` episodes afresh."""

    name: str
    hidden: int
    layers: int
    heads: int
    key_value_heads: int
    intermediate: int
    rounds: int
    context_length: int = 1024
    rope_theta: float = 10_000.0
    episodes_per_round: int = 4_000
    batch_tokens: int = 2_560
    buckets: tuple[int, ...] = (16, 24, 44, 64, 96, 144, 288)
    context_weight: float = 0.3
    muon_lr: float = 1e-2
    muon_weight_decay: float = 0.1
    adam_lr: float = 2e-3
    adam_betas: tuple[float, float] = (0.9, 0.95)
    warmup_steps: int = 100
    decay_share: float = 0.4
    clip: float = 1.0
    seed: int = 20

    def progress(self, round: int, share: float = 0.0) -> float:
        """How much of the schedule is over (0 to 1) when this share of a round (counted from 0) is."""
        return (round + share) / self.rounds


SAPLING = Recipe("sapling", hidden=256, layers=6, heads=8, key_value_heads=4, intermediate=768, rounds=118)
SMALL = Recipe("sapling-small", hidden=128, layers=4, heads=4, key_value_heads=2, intermediate=384, rounds=60)
RECIPES = {recipe.name: recipe for recipe in (SAPLING, SMALL)}
