"""Invented articles: they state what is questioned, repeat by their seed, and share no name."""

from __future__ import annotations

import json
import re
from pathlib import Path

from benchmarks import knowledge
from benchmarks.knowledge_articles import articles, lenient, strict
from selfdistill.models.load import load_tokenizer
from selfdistill.prompts.questions import holds


def test_articles_state_every_fact_and_questions_hold_no_answer() -> None:
    found = articles(12, 3)
    assert found == articles(12, 3)
    assert found != articles(12, 4)
    for article in found:
        assert len(article.facts) == 4
        for fact in article.facts:
            assert strict(fact.parts, article.text), fact
            assert strict(fact.parts, fact.sentence), fact
            for question in (*fact.train, fact.direct, fact.indirect):
                assert not any(holds(part, question) for part in fact.parts), question
                assert question.endswith("?")
            assert len({*fact.train, fact.direct, fact.indirect}) == 4


def test_no_name_occurs_in_two_articles() -> None:
    names = [set(re.findall(r"\b[A-Z]\w{4,}", article.text.replace("Today", ""))) for article in articles(30, 0)]
    assert not [names[a] & names[b] for a in range(30) for b in range(a) if names[a] & names[b]]


def test_strict_wants_every_detail_and_lenient_one_telling_word() -> None:
    parts = ("Mara Ellquist", "1687")
    assert strict(parts, "In 1687, by Mara Ellquist.")
    assert not strict(parts, "By Mara Ellquist.")
    assert lenient(parts, "By one Ellquist.")
    assert not lenient(parts, "By Maria in 1688.")


def test_weights_of_plain_text_answer_in_the_template_of_the_model_as_it_came(tmp_path: Path) -> None:
    """A run saves the template that it was trained with; in the plain one every answer would be that of a text."""
    knowledge.main(["--tiny", "--arms", "cpt", "--out", str(tmp_path)])
    settings = json.loads((tmp_path / "seed0" / "cpt.json").read_text())["settings"]
    saved = load_tokenizer(settings["model"])[0].chat_template
    assert saved == knowledge.PLAIN
    assert Path(settings["chat_template"]).read_text() == load_tokenizer(str(tmp_path / "model"))[0].chat_template
