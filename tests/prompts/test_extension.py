"""The ids of a longer conversation are those of a shorter one, and what the template adds; or a new prompt is begun."""

from __future__ import annotations

import pytest

from selfdistill.prompts.render import ChatTemplate
from selfdistill.types import Completion, Message, StopReason
from tiny_models import ALTERNATE, CHATML, FORGETS_SYSTEM, STRICT, SYSTEM_FIRST, tiny_tokenizer

CONTENT = "{{ m['content'] }}"
END = "<|im_end|>"
# As the families write turns; the tokens are those of the tiny tokenizer.
QWEN_25 = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nBe helpful.<|im_end|>\n{% endif %}"
    "{% for m in messages %}{% if m['role'] == 'tool' %}{% if loop.previtem['role'] != 'tool' %}<|im_start|>user"
    "{% endif %}\n<tool_response>\n{{ m['content'] }}\n</tool_response>"
    "{% if loop.last or loop.nextitem['role'] != 'tool' %}<|im_end|>\n{% endif %}{% else %}"
    "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QWEN_3 = (  # thinking is removed from turns before the last of the user
    "{% set ns = namespace(last=0) %}{% for m in messages %}{% if m['role'] == 'user' %}{% set ns.last = loop.index0 %}"
    "{% endif %}{% endfor %}{% for m in messages %}<|im_start|>{{ 'user' if m['role'] == 'tool' else m['role'] }}\n"
    "{% if m['role'] == 'assistant' and loop.index0 < ns.last %}{{ m['content'].split('</think>')[-1].lstrip('\n') }}"
    "{% else %}{{ m['content'] }}{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant"
    "\n{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
OLMO_3 = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}"
    "{% if not loop.last or m['role'] != 'assistant' %}<|im_end|>\n{% else %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA_3 = (
    "{{ '<pad>' }}{% for m in messages %}<|im_start|>{{ 'ipython' if m['role'] == 'tool' else m['role'] }}\n\n"
    "{{ m['content'] | trim }}<|im_end|>{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n\n{% endif %}"
)
MISTRAL = (
    "{{ '<pad>' }}{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
    "{% elif m['role'] == 'assistant' %} {{ m['content'] | trim }}{{ eos_token }}{% else %}"
    "{{ raise_exception('unknown role') }}{% endif %}{% endfor %}"
)
EXTENDING = {
    "chatml": CHATML, "qwen 2.5": QWEN_25, "olmo 3": OLMO_3, "llama 3": LLAMA_3, "gemma": STRICT, "mistral": MISTRAL,
    "system first": SYSTEM_FIRST, "no system": FORGETS_SYSTEM,
}  # fmt: skip
QUESTION = (Message("system", "Be kind."), Message("user", "What is seven plus five?"))
RESULTS = {
    "user": (Message("user", "No. Say it again."),),
    "tool": (Message("tool", "12"), Message("tool", "twelve")),
    "control tokens": (Message("user", f"Your answer lacks {END} and <|im_start|>"),),
}


def template(text: str, **options) -> ChatTemplate:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = text
    return ChatTemplate(tokenizer, **options)


def sampled(written: ChatTemplate, text: str, stop: StopReason = StopReason.END) -> Completion:
    end = written.end() if stop is StopReason.END else None
    return Completion("", text, (*written.encode(text), *(() if end is None else (end,))), stop=stop)


@pytest.mark.parametrize("result", RESULTS)
@pytest.mark.parametrize("name", EXTENDING)
def test_the_next_prompt_is_the_ids_so_far_and_what_the_template_adds(name: str, result: str) -> None:
    written, messages, observation = template(EXTENDING[name]), QUESTION, RESULTS[result]
    ids = written.prompt(messages)
    for text in ("twelve", "It is 12."):
        given = sampled(written, " " + text if name == "mistral" else text)  # it samples the space itself
        added = written.extension(messages, given, observation)
        assert added is not None
        ids += given.token_ids + added
        messages = (*messages, Message("assistant", text), *observation)
        assert ids == written.prompt(messages)


def test_what_was_sampled_stays_verbatim_where_a_template_trims_it() -> None:
    written = template(LLAMA_3)
    found = [written.extension(QUESTION, sampled(written, text), RESULTS["user"]) for text in ("  twelve \n", "twelve")]
    assert found[0] == found[1]


def test_a_turn_that_the_limit_cut_off_is_ended_by_the_template() -> None:
    written = template(CHATML)
    cut, whole = (sampled(written, "twel", stop) for stop in (StopReason.LENGTH, StopReason.END))
    added = written.extension(QUESTION, whole, RESULTS["user"])
    assert added is not None
    assert written.extension(QUESTION, cut, RESULTS["user"]) == (written.end(), *added)


def test_thinking_that_leaves_the_history_begins_a_new_prompt_and_stays_within_calls_of_tools() -> None:
    on, off = template(QWEN_3, thinking="on"), template(QWEN_3, thinking="off")
    thought, plain = sampled(on, "<think>\nlet me see\n</think>\n\ntwelve"), sampled(on, "twelve")
    assert on.extension(QUESTION, thought, RESULTS["user"]) is None
    assert on.extension(QUESTION, thought, RESULTS["tool"]) is not None
    assert on.extension(QUESTION, plain, RESULTS["user"]) is not None
    assert off.extension(QUESTION, plain, RESULTS["user"]) is None, "the empty thinking of the header is removed"
    assert template(CHATML, thinking="on").extension(QUESTION, thought, RESULTS["user"]) is not None


def test_a_template_that_alternates_takes_results_of_tools_as_turns_of_the_user() -> None:
    alternating = "{% for m in messages %}" + ALTERNATE + CHATML.partition("%}")[2]
    written = template(alternating)
    answer, joined = sampled(written, "twelve"), [Message("user", "12\n\ntwelve")]
    assert written.extension(QUESTION, answer, RESULTS["tool"]) == written.extension(QUESTION, answer, joined)
