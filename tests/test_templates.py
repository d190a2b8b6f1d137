"""Chat templates that refuse, forget or think, and control tokens in what others wrote."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

import tiny_models
from selfdistill.errors import ConfigError, ModelError
from selfdistill.templates import ChatTemplate, Thinking
from selfdistill.types import Message
from tiny_models import CHATML, tiny_tokenizer

SYSTEM, USER, MORE = Message("system", "Be brief."), Message("user", "What is it?"), Message("user", "Tell me.")
SAID = Message("assistant", "Twelve.")


def template(text: str, thinking: Thinking = "off") -> ChatTemplate:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = text
    return ChatTemplate(tokenizer, thinking)


def written(text: str, messages: Sequence[Message]) -> str:
    found = template(text)
    return str(found.tokenizer.decode(found.prompt(messages)))


def turn(role: str, content: str) -> str:
    return f"<|im_start|>{role}\n{content}<|im_end|>\n"


HEADER = "<|im_start|>assistant\n"


@pytest.mark.parametrize(
    ("text", "messages", "expected"),
    [
        (CHATML, [SYSTEM, USER], turn("system", "Be brief.") + turn("user", "What is it?") + HEADER),
        (tiny_models.STRICT, [SYSTEM, USER], turn("user", "Be brief.\n\nWhat is it?") + HEADER),
        (tiny_models.STRICT, [USER, MORE], turn("user", "What is it?\n\nTell me.") + HEADER),
        (tiny_models.STRICT, [SYSTEM, USER, MORE], turn("user", "Be brief.\n\nWhat is it?\n\nTell me.") + HEADER),
        (
            tiny_models.STRICT,
            [SYSTEM, USER, SAID, MORE],
            turn("user", "Be brief.\n\nWhat is it?") + turn("assistant", "Twelve.") + turn("user", "Tell me.") + HEADER,
        ),
        (
            tiny_models.STRICT,
            [USER, SAID, SYSTEM, MORE],
            turn("user", "What is it?") + turn("assistant", "Twelve.") + turn("user", "Be brief.\n\nTell me.") + HEADER,
        ),
        (tiny_models.SYSTEM_FIRST, [SYSTEM, USER, MORE], "Be brief.\n<|im_start|>What is it?\n\nTell me."),
        (tiny_models.FORGETS_SYSTEM, [SYSTEM, USER], turn("user", "Be brief.\n\nWhat is it?") + HEADER),
        (tiny_models.ONE_TURN, [SYSTEM, USER], turn("user", "Be brief.\n\nWhat is it?") + HEADER),
        (tiny_models.NO_HEADER, [USER], turn("user", "What is it?") + HEADER),
    ],
)
def test_what_a_template_refuses_or_forgets_is_folded_where_it_can_be(text, messages, expected) -> None:
    assert written(text, messages) == expected


@pytest.mark.parametrize(
    ("text", "messages", "why"),
    [
        (tiny_models.STRICT, [SAID, USER], "turns must alternate"),
        (tiny_models.STRICT, [SYSTEM], "no system turn here"),
        (tiny_models.FORGETS_SYSTEM, [SYSTEM], "no user turn follows"),
        (tiny_models.ONE_TURN, [USER, SAID, MORE], "one turn only"),
    ],
)
def test_what_cannot_be_folded_is_refused_with_the_templates_own_words(text, messages, why) -> None:
    with pytest.raises(ModelError, match=rf"refuses this conversation[\s\S]*the template of [\s\S]*{why}"):
        template(text).prompt(messages)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (tiny_models.BROKEN, r"cannot be used[\s\S]*TemplateSyntaxError[\s\S]*line 1"),
        (tiny_models.NEEDS_MORE, r"cannot be used[\s\S]*UndefinedError"),
        ("{{ 1 / 0 }}", r"cannot be used[\s\S]*ZeroDivisionError"),
        (tiny_models.FORGETS_QUESTION, "does not write the question"),
        ("{# nothing #}", "does not write the question"),
    ],
)
def test_a_template_that_can_write_no_question_is_refused(text: str, said: str) -> None:
    with pytest.raises(ModelError, match=said):
        template(text).check()


def test_what_a_user_should_know_of_a_template_is_told() -> None:
    assert template(CHATML).check() == []
    assert template(tiny_models.SYSTEM_FIRST).check() == [], "its user turn ends where the answer begins"
    assert "no prompt for answers" in template(tiny_models.NO_HEADER).check()[0]
    assert "begins every answer with <think>" in template(tiny_models.ALWAYS_THINKS).check()[0]
    assert template(tiny_models.ALWAYS_THINKS, "template").check() == []
    assert template(tiny_models.ALWAYS_THINKS, "on").check() == []
    assert template(tiny_models.CAN_THINK).check() == []


@pytest.mark.parametrize("name", ["enable_thinking", "thinking"])
def test_thinking_is_switched_where_a_template_offers_it(name: str) -> None:
    text = tiny_models.CAN_THINK.replace("enable_thinking", name)

    def ending(thinking: Thinking) -> str:
        found = template(text, thinking)
        assert found.check() == []
        return str(found.tokenizer.decode(found.prompt([USER]))).partition(HEADER)[2]

    assert ending("off") == "<think>\n\n</think>\n\n"
    assert ending("on") == ending("template") == ""


def test_thinking_that_a_template_cannot_switch_on_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"no switch for thinking[\s\S]*thinking = \"on\""):
        template(CHATML, "on").check()
