"""Directions, by hand."""

from __future__ import annotations

from signal_tables import table

from selfdistill.losses.distil_sign import AdvantageSign, Attract, OppositeAdvantageSign, Repel


def test_constant_directions() -> None:
    rows = table([2], advantage=[-1.0])
    assert Attract().signs(rows).tolist() == [1, 1]
    assert Repel().signs(rows).tolist() == [-1, -1]


def test_verdicts_give_their_sign_and_a_flat_group_none() -> None:
    rows = table([1, 2, 1], advantage=[0.75, -0.25, 0.0])
    assert AdvantageSign().signs(rows).tolist() == [1, -1, -1, 0]
    assert OppositeAdvantageSign().signs(rows).tolist() == [-1, 1, 1, 0]
