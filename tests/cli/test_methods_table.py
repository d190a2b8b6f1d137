"""The table of methods says what their values say, and can be read."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import pytest
from typer.testing import CliRunner

from selfdistill.cli import app
from selfdistill.cli.method_table import COLUMNS, DETAILS, describe, method_details
from selfdistill.losses import (
    Additive,
    Contrast,
    FullVocabulary,
    JensenShannon,
    LossSpec,
    ReverseKL,
    Tanh,
    TokenMask,
    TopK,
    Trapezoid,
)
from selfdistill.methods import (
    GRPO,
    METHODS,
    NCA,
    OURS,
    PRESETS,
    PUBLISHED,
    RLCSD,
    RLSD,
    SDPO,
    Safe,
    SDPORichFeedback,
    get_method,
)
from selfdistill.models.teacher import Ema, Frozen, Snapshot

runner = CliRunner()
WIDTH = 80
ROOT = Path(__file__).parent.parent.parent


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (FullVocabulary(), "full vocabulary"),
        (ReverseKL(), "reverse KL"),
        (JensenShannon(0.3), "jensen shannon 0.3"),
        (TopK(20), "top K 20"),
        (TopK(20, of="teacher", tail=False), "top K 20, of teacher, no tail"),
        (Frozen(), "frozen"),
        (Ema(0.05), "ema 0.05"),
        (Snapshot(), "snapshot 10"),
        (Trapezoid(1e-3, 50, 0, 350), "trapezoid 0.001, 50, 0, 350"),
        (Additive(), "additive"),
        (Additive(clipping=Tanh(0.02), keep_sign=True), "additive clipping tanh 0.02, keep sign"),
        (Contrast(2.0, normalise=False), "contrast 2, no normalise"),
        (TokenMask(skip_first=3), "token mask skip first 3"),
    ],
)
def test_a_value_is_described_by_what_was_chosen_in_it(value: object, said: str) -> None:
    assert describe(value) == said


def cells(method: object) -> dict[str, str]:
    own = (*COLUMNS[1:], *DETAILS)
    return dict(zip(own, (method.reads, method.needs_reward, *method_details(method)), strict=True))  # type: ignore


def test_a_row_follows_the_settings() -> None:
    plain = cells(SDPO())
    assert (plain["divergence, support"], plain["teacher"], plain["weights"]) == (
        "jensen shannon 0.5\nfull vocabulary",
        "frozen",
        "–",
    )
    assert cells(replace(SDPO(), alpha=1.0, top_k=7))["divergence, support"] == "reverse KL\ntop K 7"
    assert cells(SDPORichFeedback())["rollouts"] == "8 × answer"
    assert cells(Safe())["weights"] == "bound relative 10"
    assert cells(Safe(bound=0))["weights"] == "–"


def test_without_a_teacher_nothing_is_compared() -> None:
    row = cells(GRPO())
    assert (row["teacher"], row["divergence, support"], row["needs reward"]) == ("–", "–", "yes")
    assert row["arXiv"] == "2402.03300\n2503.14476"


def test_where_evidence_becomes_an_advantage_there_is_no_divergence() -> None:
    assert cells(RLSD())["divergence, support"] == "sampled token"
    assert cells(RLSD())["weights"] == "advantage sign\nmultiplicative 0.2\nlinear 0.5, 0, 50"
    assert cells(RLCSD())["divergence, support"] == "contrast 1, no normalise\nsampled token"


def test_several_signals_are_all_told() -> None:
    assert cells(NCA())["divergence, support"] == "reverse KL\ntop K 256\nforward KL\nfull vocabulary"


def test_a_method_of_ones_own_has_a_row_too() -> None:
    @dataclass(frozen=True, slots=True)
    class Mine(SDPO):
        source: ClassVar[str] = "not published"

        def loss_spec(self, temperature: float) -> LossSpec:
            return LossSpec(support=TopK(3), temperature=temperature)

    assert cells(Mine())["divergence, support"] == "jensen shannon 0.5\ntop K 3"
    assert cells(Mine())["arXiv"] == "–"


def test_the_table_fits_a_terminal_and_cuts_no_word() -> None:
    result = runner.invoke(app, ["methods"], env={"COLUMNS": str(WIDTH)})
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert max(map(len, lines)) <= WIDTH
    assert "…" not in result.stdout
    names = [line.split()[0] for line in lines if line.strip()]
    assert [name for name in names if name in METHODS] == list(METHODS)
    every = [get_method(name, {}) for name in METHODS]
    words = {word for method in every for word in f"{method.reads} {method.needs_reward}".split()}
    assert words <= set(result.stdout.split())


def test_the_number_of_methods_is_the_same_wherever_it_is_said() -> None:
    assert (len(PUBLISHED), len(PRESETS), len(OURS)) == (20, 2, 1)
    assert sorted((*PUBLISHED, *PRESETS, *OURS)) == sorted(METHODS)
    assert all(METHODS[name].source == SDPO.source for name in PRESETS)
    printed = " ".join(runner.invoke(app, ["methods"], env={"COLUMNS": str(WIDTH)}).stdout.split())
    assert "20 published methods, 2 presets of sdpo, 1 of our own (safe)." in printed
    told = " ".join((ROOT / "docs" / "method.md").read_text().split())
    assert (
        "lists 23: 20 published methods, 2 presets (the paper's settings of `sdpo`) and 1 of our own (`safe`)" in told
    )
    assert "Twenty published methods" in " ".join((ROOT / "README.md").read_text().split())


def test_one_method_is_told_with_its_settings_and_what_it_sets() -> None:
    result = runner.invoke(app, ["methods", "sdpg"], env={"COLUMNS": str(WIDTH)})
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("Self-Distilled Policy Gradient: ")
    assert "Source: arXiv 2606.04036." in result.stdout
    assert "optimiser.lr=1e-06" in result.stdout
    assert "reverse KL" in result.stdout
    assert "method.peak" in result.stdout


def test_dashes_of_a_docstring_keep_their_lines() -> None:
    lines = runner.invoke(app, ["methods", "safe"], env={"COLUMNS": "200"}).stdout.splitlines()
    assert sum(line.startswith("- ") for line in lines) == 6
