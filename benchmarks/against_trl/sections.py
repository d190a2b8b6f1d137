"""The sections of the comparison: which cases run, in which order, and what is made of them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.against_trl.child import Skipped, available_bytes, memory_refusal, run_case
from benchmarks.against_trl.plan import Plan
from benchmarks.against_trl.ratios import (
    MISSING,
    Measurement,
    Sheet,
    agree,
    common_accuracy,
    goal,
    ratio,
    seconds_to,
)
from benchmarks.against_trl.work import SIZES, Ragged, padded_work, update_flops, work_of, write_model

TOLERANCE = 2e-3  # of losses and norms of gradients; float32 sums in another order differ by 1e-5 or less
UNITS = {"topk": 5.05, "full": 13.0}  # TRL's peak in float32 tensors of [T, V], measured; decides what is not begun
PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "A100": 312e12}  # bfloat16, dense, as the vendor states them
MARKS = (0.25, 0.5, 0.75)  # accuracies whose time is told
LEARNED = MARKS[-1]  # at which a side may stop
LONG = 2048  # tokens from which on a first call to load libraries is not worth its time
OURS, TRL, KERNEL = "this library", "TRL SDPO", "TRL chunked kernel"


@dataclass(frozen=True, slots=True)
class Bench:
    """What the sections share. `trl` is an interpreter, or the reason why there is none."""

    plan: Plan
    folder: Path
    trl: str | Skipped
    say: Callable[[str], None]

    def model(self, size: str) -> str:
        """The directory of the random model of this size, written when first asked for."""
        return str(write_model(self.folder / "models" / size, SIZES[size]).resolve())

    def run(self, side: str, case: Mapping[str, Any]) -> dict[str, Any] | Skipped:
        """One case on one side."""
        self.say(f"{case['kind']} · {side} · {case.get('label', '')}")
        if side == OURS:
            return run_case(sys.executable, "ours", case, self.plan.limit_s)
        return self.trl if isinstance(self.trl, Skipped) else run_case(self.trl, "peer", case, self.plan.limit_s)

    def alternate(self, cases: Mapping[str, Mapping[str, Any] | Skipped]) -> dict[str, Measurement]:
        """Every side in turn, again and again: a busy minute of the machine touches all of them."""
        found = {side: Measurement() for side in cases}
        for _ in range(self.plan.repeats):
            for side, case in cases.items():
                if not found[side].skipped:
                    found[side].add(case if isinstance(case, Skipped) else self.run(side, case))
        return found


def loss_section(bench: Bench) -> Sheet:
    """From hidden states through the head: time and peak of forward and backward."""
    plan = bench.plan
    sheet = Sheet(
        f"Loss section, V = {SIZES[plan.loss_size].vocabulary:,}, D = {SIZES[plan.loss_size].hidden}",
        ("mode", "T", "side", "time", "peak", "ours / theirs: time", "peak", "same loss and gradients"),
    )
    flat: list[tuple[int, float]] = []
    for mode, tokens in plan.losses:
        found = bench.alternate(_loss_cases(bench, mode, tokens))
        own = found[OURS]
        if own.peaks and mode == "topk":
            flat.append((tokens, own.peaks[0]))
        for side, measured in found.items():
            sheet.rows.append([mode, str(tokens), side, *measured.cells, *_compared(own, measured, side)])
        if mode == "topk" and tokens == plan.goal_tokens:
            theirs = found[TRL]
            sheet.notes += [
                goal(f"peak at T = {tokens}", ratio(own.peaks, theirs.peaks), 0.10),
                goal(f"time at T = {tokens}", ratio(own.seconds, theirs.seconds), 0.70),
            ]
    if len(flat) > 1:
        sheet.notes.append("our peak by T: " + ", ".join(f"{tokens}: {peak / 1e6:.0f} MB" for tokens, peak in flat))
    sheet.notes.append(
        f"peak: above the level before, gradient of the head ({_head_megabytes(plan.loss_size):.0f} MB) included; "
        f"same: loss, |dH| and |dW| within {TOLERANCE:g}"
    )
    return sheet


def _loss_cases(bench: Bench, mode: str, tokens: int) -> dict[str, Mapping[str, Any] | Skipped]:
    plan = bench.plan
    case = {
        "kind": "loss", "label": f"{mode}, T = {tokens}", "model": bench.model(plan.loss_size), "tokens": tokens,
        "seed": 1, "mode": mode, "top_k": 100, "alpha": 0.5, "warm": int(tokens < LONG), "repeats": plan.inner,
    }  # fmt: skip
    needed = UNITS[mode] * tokens * SIZES[plan.loss_size].vocabulary * 4
    why = memory_refusal(needed, available_bytes())
    sides: dict[str, Mapping[str, Any] | Skipped] = {OURS: case, TRL: Skipped(why) if why else case}
    if mode == "full":
        sides[KERNEL] = case | {"kind": "chunked"}
    return sides


def _compared(own: Measurement, measured: Measurement, side: str) -> list[str]:
    if side == OURS or not own.seconds or not measured.seconds:
        return [MISSING] * 3
    difference = agree(own.value, measured.value, TOLERANCE)
    return [_text(ratio(own.seconds, measured.seconds)), _text(ratio(own.peaks, measured.peaks)), difference or "yes"]


def _text(found: object) -> str:
    return MISSING if found is None else str(found)


def _head_megabytes(size: str) -> float:
    return SIZES[size].head * 4 / 1e6


def update_section(bench: Bench) -> Sheet:
    """Teacher forward, student forward and backward, optimiser: on ragged rollouts of which some teach nothing."""
    plan, ragged = bench.plan, bench.plan.ragged
    sheet = Sheet(
        f"Whole update: {ragged.count} rollouts, longest {ragged.longest}, mean/longest {ragged.ratio}, "
        f"{ragged.without_signal:.0%} without signal",
        (
            "model",
            "teacher",
            "side",
            "time",
            "peak",
            "ours / theirs: time",
            "peak",
            "same loss and gradient norm",
            "MFU",
        ),
    )
    for size in plan.sizes:
        for teacher in plan.teachers:
            case = update_case(bench, size, ragged) | {"teacher": teacher, "label": f"{size}, {teacher} teacher"}
            found = bench.alternate({OURS: case, TRL: case})
            own, theirs = found[OURS], found[TRL]
            for side, measured in found.items():
                cells = _updates_compared(own, measured, side)
                sheet.rows.append([size, teacher, side, *measured.cells, *cells, _mfu(size, ragged, measured)])
            sheet.notes += [
                goal(f"{size}, {teacher}: time", ratio(own.seconds, theirs.seconds), 0.35),
                goal(f"{size}, {teacher}: peak", ratio(own.peaks, theirs.peaks), 0.50),
            ]
    rows = ragged.rows(SIZES[plan.sizes[0]].vocabulary)
    least, padded = work_of(rows), padded_work(rows)
    sheet.notes.append(
        f"tokens that must be read: student {least['student']}, teacher {least['teacher']}, head {least['answers']}; "
        f"in a rectangle of all rollouts: {padded['student']}, {padded['teacher']}, {padded['answers']}"
    )
    sheet.notes.append(
        f"both: top-100 and tail, α = .5, mean of answers over all rollouts, AdamW, no activation checkpointing; TRL "
        f"reads {plan.micro_rows} rows at a time and we as many tokens; peak: of one update, above the level before it"
    )
    return sheet


def update_case(bench: Bench, size: str, ragged: Ragged) -> dict[str, Any]:
    """One update of a model of this size on these rollouts."""
    plan = bench.plan
    longest = ragged.longest + ragged.prompt + ragged.context
    return {
        "kind": "update", "model": bench.model(size), "ragged": asdict(ragged), "seed": 1, "mode": "topk", "top_k": 100,
        "alpha": 0.5, "teacher": "frozen", "lr": 1e-4, "micro_rows": plan.micro_rows,
        "micro_tokens": plan.micro_rows * longest, "warm": 1, "repeats": plan.inner,
    }  # fmt: skip


def _updates_compared(own: Measurement, measured: Measurement, side: str) -> list[str]:
    if side == OURS or not own.seconds or not measured.seconds:
        return [MISSING] * 3
    pairs = zip(own.value, measured.value, strict=False)
    differences = [found for a, b in pairs if (found := agree(a, b, TOLERANCE))]
    return [
        _text(ratio(own.seconds, measured.seconds)),
        _text(ratio(own.peaks, measured.peaks)),
        differences[0] if differences else f"yes, {min(len(own.value), len(measured.value))} updates",
    ]


def _mfu(size: str, ragged: Ragged, measured: Measurement) -> str:
    """The useful operations over what the accelerator could do in that time; useful is what nobody can leave out."""
    import torch

    if not measured.seconds or not torch.cuda.is_available():
        return MISSING
    name = torch.cuda.get_device_name()
    peak = next((flops for key, flops in PEAK_FLOPS.items() if key in name), None)
    needed = update_flops(SIZES[size], work_of(ragged.rows(SIZES[size].vocabulary)))
    return MISSING if peak is None else f"{needed / min(measured.seconds) / peak:.1%}"


def rollout_section(bench: Bench) -> Sheet:
    """Sampled tokens a second against transformers' `generate`, as `benchmarks/rollouts.py` measures them."""
    from benchmarks.rollouts import measure

    columns = ("answers", "sampler", "tokens/s", "rollouts/s", "ours is faster by")
    sheet = Sheet("Rollouts against `generate`: the sapling, processor seconds", columns)
    bench.say("rollouts · this library and generate")
    found = measure(batch=bench.plan.rollouts, repeats=bench.plan.repeats)
    for answers in ("rollouts", "greedy"):
        for name, one in found[answers].items():
            spread = f"{one['ratio_median']:.2f} ({one['ratio_low']:.2f}–{one['ratio_high']:.2f})"
            rates = [f"{one['tokens_per_s']:,.0f}", f"{one['rollouts_per_s']:,.1f}"]
            sheet.rows.append([answers, name, *rates, spread])
    sheet.notes.append(f"greedy answers that are the same to the token: {found['same']} of {found['of']}")
    return sheet


def learn_section(bench: Bench) -> Sheet:
    """Seconds from the first sampled batch to an accuracy; both teachers read each verb's entry in a dictionary."""
    plan = bench.plan
    sheet = Sheet(
        f"Coined verbs, told by a column of the data, until {LEARNED} or {plan.learn_s:.0f} s a side",
        ("seed", "side", "batches", "seconds a batch", "best accuracy", *(f"seconds to {mark:.2f}" for mark in MARKS)),
    )
    gains: list[tuple[float, float]] = []
    for seed in plan.seeds:
        curves = {side: _curve(bench, side, seed) for side in (OURS, TRL)}
        for side, curve in curves.items():
            sheet.rows.append([str(seed), side, *_learned(curve)])
        points = [curve for curve in curves.values() if not isinstance(curve, Skipped)]
        both = common_accuracy(points) if len(points) == 2 else 0.0
        if both > 0:
            first, second = (seconds_to(curve, both) for curve in points)
            gains.append(((first or 0.0), (second or 0.0)))
    found = ratio([a for a, _ in gains], [b for _, b in gains])
    sheet.notes.append(f"seconds to the highest accuracy both reach, ours / theirs: {_text(found)}")
    sheet.notes.append(
        "accuracy: mean of three batches of 16 verbs × 8 sampled answers; full vocabulary, α = .5, frozen teacher, "
        "lr 5e-4; seconds of the wall"
    )
    return sheet


def _curve(bench: Bench, side: str, seed: int) -> list[list[float]] | Skipped:
    settings = {
        "model": "sapling", "env": "verbs", "seed": seed, "steps": 1000, "tasks_per_step": 16, "rollouts_per_task": 8,
        "checkpoint_every": 0, "optimiser": {"lr": 5e-4, "warmup_steps": 0}, "sampling": {"max_new_tokens": 48},
        "evaluation": {"every": 0, "tasks": 1}, "method": {"name": "sdpo", "context": {"kind": "document"}},
    }  # fmt: skip
    sapling = Path(__file__).parents[2] / "src" / "selfdistill" / "sapling" / "weights" / "sapling"
    case = {
        "kind": "learn", "label": f"seed {seed}", "model": str(sapling), "mode": "full", "top_k": 0, "alpha": 0.5,
        "teacher": "frozen", "lr": 5e-4, "seed": seed, "limit_s": bench.plan.learn_s, "goal": LEARNED,
        "settings": settings,
    }  # fmt: skip
    found = bench.run(side, case)
    return found if isinstance(found, Skipped) else found["points"]


def _learned(curve: list[list[float]] | Skipped) -> list[str]:
    if isinstance(curve, Skipped) or not curve:
        return [curve.why if isinstance(curve, Skipped) else "no batch was done", *[MISSING] * (2 + len(MARKS))]
    best, times = max(value for _, value in curve), [seconds_to(curve, mark) for mark in MARKS]
    seconds = ["never" if at is None else f"{at:.0f}" for at in times]
    return [str(len(curve)), f"{curve[-1][0] / len(curve):.2f}", f"{best:.2f}", *seconds]


def own_section(bench: Bench) -> Sheet:
    """Our own cost: how it grows with lengths, vocabulary, batch and model, and what is not computing."""
    sheet = Sheet(
        "Our own cost of a step: sampling, teacher, update",
        ("model", "V", "rollouts", "longest", "time", "peak", "layers", "head and loss", "optimiser", "overhead"),
    )
    for size, ragged in bench.plan.own:
        case = update_case(bench, size, ragged) | {"label": f"{size}, {ragged.count} × {ragged.longest}"}
        measured = Measurement()
        measured.add(bench.run(OURS, case | {"sample": ragged.longest // 4}))
        shares = _shares(measured)
        row = [size, f"{SIZES[size].vocabulary:,}", str(ragged.count), str(ragged.longest), *measured.cells]
        sheet.rows.append([*row, *(f"{share:.1%}" for share in shares)] if shares else [*row, *[MISSING] * 4])
        if shares and (size == "100m" or bench.plan.full):
            sheet.notes.append(goal(f"{size}: overhead", ratio([shares[-1]], [1.0]), 0.10))
    sheet.notes.append(
        "overhead: seconds of a step outside layers, head, loss kernel and optimiser; no environment scores here"
    )
    return sheet


def _shares(measured: Measurement) -> list[float]:
    """Of layers, head and loss, optimiser, and of the rest."""
    if not measured.seconds:
        return []
    total, parts = measured.seconds[0], measured.parts
    layers = sum(value for name, value in parts.items() if name.startswith("layers"))
    known = [layers, parts.get("head and loss", 0.0), parts.get("optimiser", 0.0)]
    return [value / total for value in (*known, total - sum(known))]


SECTIONS: Mapping[str, Callable[[Bench], Sheet]] = {
    "loss": loss_section,
    "update": update_section,
    "rollouts": rollout_section,
    "learn": learn_section,
    "own": own_section,
}
