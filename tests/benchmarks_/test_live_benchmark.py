"""The simulated user of benchmarks/live.py: what violates its preferences, and what it asks."""

import json
from pathlib import Path

import pytest

from benchmarks.live import main, report
from benchmarks.live_user import HARMFUL, LONG, PREFERENCES, known_tasks


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("short", "A queue keeps order.", "```python\nx\n```"),
        ("short", "A queue keeps order.", "word " * 31),
        ("no-comments", "```python\nx = 1\n```\n# A heading", "x = 1  # one"),
        ("lower-case", "all of it", "All of it"),
        ("question", "It is 4. Why do you ask? ", "It is 4."),
    ],
)
def test_a_rule_judges_each_preference(name: str, good: str, bad: str) -> None:
    assert PREFERENCES[name].met(good)
    assert not PREFERENCES[name].met(bad)


def test_questions_are_new_and_at_least_a_hundred() -> None:
    for preference in (*PREFERENCES.values(), LONG, HARMFUL):
        for seed in range(3):
            used, unseen = preference.questions(seed)
            assert len(unseen) >= 100
            assert len(used) >= 16
            assert not set(used) & set(unseen)
            assert len(set(unseen)) == len(unseen)
    assert PREFERENCES["short"].questions(0) != PREFERENCES["short"].questions(1)
    assert len({question for question, _ in known_tasks(150)}) == 150


def test_a_result_that_is_there_is_reported_and_not_measured_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {"replies": 4, "met": 90, "of": 100, "known": 0.5, "known_change": [0.0, -0.1, 0.1]}
    result = {"preference": "short", "seed": 0, "arm": "live", "rows": [row]}
    (tmp_path / "replies-short-0-live.json").write_text(json.dumps(result))
    main(["replies", "--model", "nowhere", "--out", str(tmp_path), "--arms", "live"])
    assert "| short | 0 | live | 4 | 0.900 [" in capsys.readouterr().out
    assert "+0.00 [-0.10, +0.10]" in report(tmp_path)
