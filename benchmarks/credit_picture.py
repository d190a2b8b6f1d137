"""The poster's picture of credit on a real model: which context puts the blame on `+ 1`?

    python -m benchmarks.credit_picture --model DIR --out runs/credit-picture

The question asks for the numbers from 1 to n, the answer is `list(range(1, n + 1))`, and the user wants them without n.
For each context that the teacher may read, with the published prompt and one that asks for a correction: log q − log p
of the tokens of ` + 1` together (u), how many tokens of the answer have a lower one, and what of u is own (less the
mean under control contexts of the same form about other things); what the context adds to the odds of the corrected
answer, in nats, less the mean under the controls, and the largest of those; and whether the teacher's own greedy answer
is right. results.json has the likeliest tokens at every place. What is there is not measured again. With a model of
0.5 B an hour of one core, with `--controls 0` (no controls, no odds) ten minutes. `--tiny`: a small random model.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks import arms
from benchmarks.against_trl.work import SIZES, write_model
from selfdistill.analysis.control_contexts import control_contexts
from selfdistill.analysis.credit_source import EXAMPLE
from selfdistill.analysis.token_credit import CreditQuery, credit
from selfdistill.envs.scoring import extract_code
from selfdistill.models.load import load_policy
from selfdistill.models.policy import Policy
from selfdistill.models.sampler import SamplingOptions, sample
from selfdistill.prompts.context import Templates
from selfdistill.prompts.render import Renderer
from selfdistill.types import Context, DropReason, Message

COMPLAINT = "Don't include n."
FAILING = "numbers(3) returned [1, 2, 3], expected [1, 2]."
CONTEXTS: Mapping[str, Mapping[str, str]] = {
    "the complaint": {"feedback": COMPLAINT},
    "the complaint as the user's reply": {"reply": COMPLAINT},
    "and the attempt": {"attempt": EXAMPLE.answer, "feedback": COMPLAINT},
    "the failing call": {"feedback": FAILING},
    "the failing call and the attempt": {"attempt": EXAMPLE.answer, "feedback": FAILING},
    "complaint and failing call": {"feedback": f"{COMPLAINT} {FAILING}"},
    "the mistake in words": {"feedback": "The range ends at n + 1, so n is included. It should end at n."},
    "the complaint as an instruction": {"instruction": "The numbers that a function returns never include n itself."},
    "a correct solution": {"solution": EXAMPLE.correct},
}
QUESTION = (Message("user", EXAMPLE.question),)
PROMPTS: Mapping[str, Templates] = {
    "published": Templates(),
    "correction": Templates(
        message="{question}\n\n{context}\n\nAnswer the question again. Change the earlier answer as the feedback says."
    ),
}


def blamed(texts: Sequence[str], log_ratios: Sequence[float]) -> tuple[float, int]:
    """The sum over ` + 1`, and how many tokens of the answer have a lower log-ratio than the lowest of it."""
    start = "".join(texts).find(" + 1")
    ends = [len("".join(texts[: place + 1])) for place in range(len(texts))]
    inside = [place for place, end in enumerate(ends) if 0 <= start < end <= start + len(" + 1")]
    lowest = min((log_ratios[place] for place in inside), default=0.0)
    return sum(log_ratios[place] for place in inside), sum(value < lowest for value in log_ratios)


def right(text: str) -> bool:
    """Whether a program counts from 1 to n − 1; it is compared as text with the ways in which that is written."""
    code = "".join((extract_code(text) or "").split())
    return any(way in code for way in ("range(1,n))", "range(1,n)]", "range(1,n):"))


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads the answer under every context, with every prompt."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="", help="directory or hub name; left out with --tiny")
    parser.add_argument("--out", type=Path, default=Path("runs/credit-picture"))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--controls", type=int, default=8, help="control contexts, at most 19; 0: none, no odds")
    parser.add_argument("--answer-tokens", type=int, default=96, help="of the teacher's own answers; 0: none")
    parser.add_argument("--contexts", nargs="+", choices=tuple(CONTEXTS), default=list(CONTEXTS))
    parser.add_argument("--prompts", nargs="+", choices=tuple(PROMPTS), default=list(PROMPTS))
    parser.add_argument("--tiny", action="store_true", help="a small random model, to see that it runs")
    chosen = parser.parse_args(arguments)
    if chosen.tiny:
        chosen.model = str(write_model(chosen.out / "model", SIZES["tiny"]))
        chosen.controls, chosen.answer_tokens = 2, 4
    elif not chosen.model:
        parser.error("--model is needed (or --tiny)")
    file = chosen.out / "results.json"
    found: dict[str, dict[str, Any]] = arms.read_json(file) if file.exists() else {}
    policy = load_policy(chosen.model, device=chosen.device, dtype=chosen.dtype, trained=False)
    for prompt in chosen.prompts:
        for name in chosen.contexts:
            if f"{prompt}: {name}" not in found:
                found[f"{prompt}: {name}"] = read(policy, prompt, name, chosen.controls)
                arms.save(chosen.out, "results", found, table(found))
    for prompt in chosen.prompts if chosen.answer_tokens else ():
        for name, text in zip(chosen.contexts, answers(policy, prompt, chosen), strict=True):
            found[f"{prompt}: {name}"]["answer"] = text
        arms.save(chosen.out, "results", found, table(found))


def written(policy: Policy, prompt: str, name: str) -> tuple[Renderer, Context]:
    """The renderer with a wording of the prompt, and a context."""
    renderer = Renderer(policy.tokenizer, policy.context_length, 4096, templates=PROMPTS[prompt])
    return renderer, Context("+".join(CONTEXTS[name]), **CONTEXTS[name])


def read(policy: Policy, prompt: str, name: str, count: int) -> dict[str, Any]:
    """The credit of every token of the answer under one context, with so many control contexts."""
    renderer, context = written(policy, prompt, name)
    given, correct = renderer.answer(EXAMPLE.answer), renderer.answer(EXAMPLE.correct)
    others = control_contexts(context, plain_words=True)[:count] if count else []
    controls = [replace(one, attempt=context.attempt) for one in others]
    found = credit(policy, renderer, CreditQuery(QUESTION, given, context, correct), controls, top=3)
    seen = found.error_visibility
    tokens = [
        {"text": t.text, "u": t.log_ratio, "own": t.own, "likeliest": [asdict(o) for o in t.alternatives]}
        for t in found.tokens
    ]
    return {"tokens": tokens, "odds": [seen.value, *seen.control] if seen else []}


def answers(policy: Policy, prompt: str, chosen: argparse.Namespace) -> list[str]:
    """The teacher's own greedy answers, one for each context."""
    prompts, most = [], chosen.answer_tokens
    for name in chosen.contexts:
        renderer, context = written(policy, prompt, name)
        made = renderer.teacher_prompt(QUESTION, context, most)
        assert not isinstance(made, DropReason), f"{name} does not fit the model"
        prompts.append(made[0])
    options = SamplingOptions(max_new_tokens=most, temperature=0.0)
    return [done.text for done in sample(policy, prompts, options, seed=0, uids=chosen.contexts, version=0)]


def table(found: Mapping[str, Mapping[str, Any]]) -> str:
    """One row for each prompt and context."""
    rows = []
    for name, one in found.items():
        texts = [token["text"] for token in one["tokens"]]
        total, lower = blamed(texts, [token["u"] for token in one["tokens"]])
        tested = ["", "", ""]
        if one["odds"]:
            value, *controls = one["odds"]
            tested = [f"{blamed(texts, [token['own'] for token in one['tokens']])[0]:+.2f}"]
            tested += [f"{each - fmean(controls):+.2f}" for each in (value, max(controls))]
        own = ("yes" if right(one["answer"]) else "no") if "answer" in one else ""
        rows.append([name, f"{total:+.2f}", str(lower), *tested, own])
    head = ["prompt: what the teacher reads", "u of ` + 1`", "tokens below it", "own", "corrected answer"]
    return arms.table([*head, "largest control", "teacher's own answer right"], rows)


if __name__ == "__main__":
    main()
