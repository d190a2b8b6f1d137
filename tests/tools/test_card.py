"""The card: every row is measured through the real environment, and says what it rests on."""

import pytest

from selfdistill.envs.verbs.lexicon import known_words, pretraining_words
from selfdistill.envs.verbs.programs import is_held_out
from selfdistill.models.load import load_policy
from selfdistill.runs.stats import share
from tools.sapling.card import Line, card_text, items, measure_card

GROWTH = {
    "recipe": {"name": "sapling", "seed": 20, "hidden": 256}, "parameters": 5_311_872, "tokens": 23_456_789,
    "steps": 12_000, "seconds": 5_400, "hardware": "2 CPU threads (x86_64)", "torch": "2.13.0", "commit": "abc",
}  # fmt: skip


@pytest.fixture(scope="module")
def lines():
    return {
        line.name: line for line in measure_card(load_policy("sapling-small", device="cpu"), lambda line: None, n=8)
    }


def test_items_hold_only_what_was_never_met_in_growing():
    drawn = items(40, 2, "test")
    assert all(is_held_out(item.program) and len(item.program.steps) == 2 for item in drawn)
    assert not {item.word for item in drawn} & {*known_words(), *pretraining_words()}


def test_every_row_is_there_with_its_number_of_tasks(lines):
    assert lines["plain English"].accuracy.n == 8
    assert lines["known verbs, greedy (all of them)"].accuracy.n >= 300
    assert len([name for name in lines if "failing case" in name and "feedback" in name]) == 9


def test_feedback_rows_say_what_can_be_known(lines):
    for name, line in lines.items():
        if "feedback of" in name and "failing" in name:
            assert line.drawn is not None
            assert 0 < line.drawn <= 1


def test_a_solution_tells_more_than_nothing(lines):
    assert lines["a group member's solution"].accuracy.value > lines["1-step verb, bare, sampled"].accuracy.value


def test_the_card_states_growth_and_intervals():
    text = card_text("sapling", [Line("plain English", share(99, 100)), Line("cases", share(1, 2), 0.5, 1.0)], GROWTH)
    assert "90 minutes on 2 CPU threads (x86_64): 23.5 M tokens, 12,000 updates, seed 20" in text
    assert "| plain English | 0.990 | 0.946 – 0.998 | 100 |  |  |" in text
    assert "| cases | 0.500 | 0.095 – 0.905 | 2 | 0.50 | 1.00 |" in text
