from __future__ import annotations

import pytest

from selfdistill.errors import ModelError
from selfdistill.prompts.context import teacher_messages
from selfdistill.prompts.render import CUT, Renderer
from selfdistill.types import Context, DropReason, Message
from tiny_models import tiny_tokenizer

QUESTION = (Message("system", "Be brief."), Message("user", "What is seven plus five?"))
CLOSING = "Correctly solve the original question."
FEEDBACK = "The following is feedback from your unsuccessful earlier attempt:"
HEADER = "<|im_start|>assistant\n"
LONG = "sorts the list, then drops the first number. " * 40


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


def renderer(tokenizer, longest: int = 10_000, context_length: int = 10_000) -> Renderer:
    return Renderer(tokenizer, context_length, longest)


def test_a_prompt_ends_in_the_header_of_the_assistants_turn(tokenizer) -> None:
    text = tokenizer.decode(renderer(tokenizer).prompt(QUESTION))
    assert text.endswith("<|im_start|>user\nWhat is seven plus five?<|im_end|>\n" + HEADER)
    assert text.startswith("<|im_start|>system\nBe brief.<|im_end|>\n")


def test_thinking_is_switched_off_where_a_template_offers_it(tokenizer) -> None:
    thinker = tiny_tokenizer()
    thinker.chat_template = thinker.chat_template.replace(
        "assistant\n{% endif %}", "assistant\n{% if enable_thinking is false %}<think></think>{% endif %}{% endif %}"
    )
    assert thinker.decode(renderer(thinker).prompt(QUESTION)).endswith(HEADER + "<think></think>")


@pytest.mark.parametrize(("gemma", "end"), [(True, "<end_of_turn>"), (False, "<|im_end|>")])
def test_given_words_end_as_the_chat_template_ends_a_turn(gemma: bool, end: str) -> None:
    """Gemma's tokenizer names <eos>, which chats never hold."""
    family = tiny_tokenizer(gemma=gemma)
    assert family.decode(renderer(family).answer("The answer is twelve.")) == "The answer is twelve." + end


def test_given_words_end_in_the_end_token_where_the_template_writes_none_and_without_either_are_refused() -> None:
    plain = tiny_tokenizer()
    plain.chat_template = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"
    assert plain.decode(renderer(plain).answer("yes")) == "yes<|im_end|>"
    plain.eos_token = None
    with pytest.raises(ModelError, match="no token that ends a turn"):
        renderer(plain).answer("yes")


def test_without_context_teacher_and_student_read_the_same_ids(tokenizer) -> None:
    both = renderer(tokenizer)
    assert both.teacher_prompt(QUESTION, Context("none"), answer=5) == (both.prompt(QUESTION), Context("none"), False)


def test_the_default_wording_is_the_same_to_the_token(tokenizer) -> None:
    text = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhat is seven plus five?"
    text += f"\n\n{FEEDBACK}\n\nNo.\n\n{CLOSING}"
    wanted = tuple(tokenizer.encode(f"{text}<|im_end|>\n{HEADER}", add_special_tokens=False))
    assert renderer(tokenizer).teacher_prompt(QUESTION, Context("feedback", feedback="No."), answer=5)[0] == wanted


def test_what_fits_is_not_cut(tokenizer) -> None:
    context = Context("solution", solution="The answer is twelve. " * 3)
    wanted = renderer(tokenizer).prompt(teacher_messages(QUESTION, context))
    assert renderer(tokenizer, len(wanted)).teacher_prompt(QUESTION, context, answer=5) == (wanted, context, False)
    ids, _, cut = renderer(tokenizer, len(wanted) - 1).teacher_prompt(QUESTION, context, answer=5)
    assert cut
    assert len(ids) <= len(wanted) - 1


@pytest.mark.parametrize("longest", [100, 150, 151, 152, 153, 260])
def test_an_over_long_demonstration_loses_its_end_and_the_frame_nothing(tokenizer, longest: int) -> None:
    context = Context("solution", solution=LONG)
    ids, _, cut = renderer(tokenizer, longest).teacher_prompt(QUESTION, context, answer=5)
    text = tokenizer.decode(ids)
    before, after = "What is seven plus five?\n\nCorrect solution:\n\n", f"{CUT}\n\n{CLOSING}<|im_end|>\n{HEADER}"
    assert cut
    assert longest - 12 <= len(ids) <= longest  # no more is cut than needed, but for a few tokens
    assert before in text
    assert text.endswith(after)
    kept = text.split(before)[1].removesuffix(after)
    assert kept
    assert LONG.startswith(kept)


def test_the_answer_takes_its_room_from_the_context(tokenizer) -> None:
    narrow = renderer(tokenizer, longest=10_000, context_length=200)
    ids, _, cut = narrow.teacher_prompt(QUESTION, Context("solution", solution=LONG), answer=60)
    assert cut
    assert 128 <= len(ids) <= 140


def test_the_longest_field_is_cut_and_the_others_stay(tokenizer) -> None:
    context = Context("solution+feedback", solution=LONG, feedback="Say yes or no.")
    ids, *_ = renderer(tokenizer, 180).teacher_prompt(QUESTION, context, answer=5)
    assert f"{FEEDBACK}\n\nSay yes or no.\n\n{CLOSING}" in tokenizer.decode(ids)


@pytest.mark.parametrize("longest", [10, 60, 81])
def test_a_frame_that_does_not_fit_is_refused(tokenizer, longest: int) -> None:
    frame = len(renderer(tokenizer).prompt(teacher_messages(QUESTION, Context("solution", solution="x"))))
    assert longest < frame, "the frame alone is longer"
    found = renderer(tokenizer, longest).teacher_prompt(QUESTION, Context("solution", solution=LONG), answer=5)
    assert found is DropReason.CONTEXT_TOO_LONG


def test_a_question_that_does_not_fit_without_any_context_is_refused(tokenizer) -> None:
    assert renderer(tokenizer, 10).teacher_prompt(QUESTION, Context("none"), answer=5) is DropReason.CONTEXT_TOO_LONG


@pytest.mark.parametrize("text", ["🙂" * 80, "é" * 120, "a🙂é漢" * 40, " \n\t" * 80])
@pytest.mark.parametrize("longest", range(150, 162))
def test_a_cut_within_a_letter_of_several_bytes_leaves_no_broken_letter(tokenizer, text: str, longest: int) -> None:
    found = renderer(tokenizer, longest).teacher_prompt(QUESTION, Context("solution", solution=text), answer=5)
    assert not isinstance(found, DropReason)
    ids, _, cut = found
    assert cut == (len(renderer(tokenizer).prompt(teacher_messages(QUESTION, Context("s", solution=text)))) > longest)
    assert len(ids) <= longest
    assert "\N{REPLACEMENT CHARACTER}" not in tokenizer.decode(ids)
