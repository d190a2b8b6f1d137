"""How much is measured: a reduced plan for two cores, and a full one for an accelerator."""

from __future__ import annotations

from dataclasses import dataclass, field

from benchmarks.against_trl.work import Ragged


@dataclass(frozen=True, slots=True)
class Plan:
    """`repeats` alternations of the sides, `inner` timed calls in each process. On a CPU the models are narrow and have
    two layers, but the vocabulary is whole: the loss section and the whole update are then those of a large model in
    what they keep, and nearly all head in what they compute."""

    full: bool = False
    repeats: int = 2
    inner: int = 1
    limit_s: float = 900.0
    loss_size: str = "tiny"
    losses: tuple[tuple[str, int], ...] = (("topk", 512), ("topk", 2048), ("full", 512))
    goal_tokens: int = 2048
    sizes: tuple[str, ...] = ("small",)
    teachers: tuple[str, ...] = ("frozen",)
    ragged: Ragged = field(default_factory=Ragged)
    micro_rows: int = 2
    seeds: tuple[int, ...] = (0, 1, 2)
    learn_s: float = 150.0
    rollouts: int = 64
    own: tuple[tuple[str, Ragged], ...] = ()


SHORT = Ragged(count=8, longest=64, prompt=16, context=32)

REDUCED = Plan(
    own=(
        ("small", SHORT),
        ("small", Ragged(count=8, longest=256, prompt=16, context=32)),
        ("small", Ragged(count=32, longest=64, prompt=16, context=32)),
        ("small-32k", SHORT),
        ("20m", SHORT),
        ("100m", SHORT),
    ),
)

FULL = Plan(
    full=True,
    repeats=5,
    inner=3,
    limit_s=1800.0,
    loss_size="0.6b",
    losses=tuple((mode, tokens) for mode in ("topk", "full") for tokens in (512, 2048, 8192)),
    sizes=("0.6b", "1.7b", "4b", "8b"),
    teachers=("frozen", "live"),
    ragged=Ragged(count=20, longest=8192, prompt=512, context=2048),
    learn_s=300.0,
    rollouts=128,
    own=tuple(
        (size, Ragged(count=count, longest=longest, prompt=256, context=1024))
        for size, count, longest in (
            ("0.6b", 20, 1024),
            ("0.6b", 20, 4096),
            ("0.6b", 80, 1024),
            ("1.7b", 20, 1024),
            ("4b", 20, 1024),
        )
    ),
)
