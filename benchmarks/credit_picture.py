"""The poster's picture of credit on a real model: which context puts the blame on `+ 1`?

    python -m benchmarks.credit_picture --model DIR --out runs/credit-picture

The question asks for the numbers from 1 to n, the answer is `list(range(1, n + 1))`, and the user wants them without n.
For each context that the teacher may read: log q − log p of the tokens of ` + 1` together; how many tokens have a lower
one; what the context adds to the odds of the corrected answer, in nats, less the mean under control
contexts of the same form about other things, and the largest of those; and whether the teacher's own greedy answer is
right. With a model of 0.5 B 25 minutes of one core, with `--controls 0` (no odds) 5. `--tiny`: a small random model.
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
PROMPTS: Mapping[str, Templates] = {
    "published": Templates(),
    "correction": Templates(
        message="{question}\n\n{context}\n\nAnswer the question again. Change the earlier answer as the feedback says."
    ),
}


def blamed(texts: Sequence[str], log_ratios: Sequence[float]) -> tuple[float, int]:
    """The sum over ` + 1`, and how many tokens of the answer have a lower log-ratio than the lowest of it."""
    start = "".join(texts).index(" + 1")
    ends = [len("".join(texts[: place + 1])) for place in range(len(texts))]
    inside = [place for place, end in enumerate(ends) if start < end <= start + len(" + 1")]
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
    parser.add_argument("--prompts", nargs="+", choices=tuple(PROMPTS), default=list(PROMPTS))
    parser.add_argument("--tiny", action="store_true", help="a small random model, to see that it runs")
    chosen = parser.parse_args(arguments)
    if chosen.tiny:
        chosen.model, chosen.controls = str(write_model(chosen.out / "model", SIZES["tiny"])), 2
    elif not chosen.model:
        parser.error("--model is needed (or --tiny)")
    policy = load_policy(chosen.model, device=chosen.device, dtype=chosen.dtype, trained=False)
    question = (Message("user", EXAMPLE.question),)
    rows: list[list[str]] = []
    written: list[Any] = []
    for prompt in chosen.prompts:
        templates = PROMPTS[prompt]
        renderer = Renderer(policy.tokenizer, policy.context_length, 4096, templates=templates)
        made = {name: Context("+".join(texts), **texts) for name, texts in CONTEXTS.items()}
        read = [renderer.teacher_prompt(question, context, 96) for context in made.values()]
        options = SamplingOptions(max_new_tokens=4 if chosen.tiny else 96, temperature=0.0)
        ids = [found[0] for found in read if not isinstance(found, DropReason)]
        answers = sample(policy, ids, options, seed=0, uids=list(made), version=0)
        for (name, context), answer in zip(made.items(), answers, strict=True):
            arms.say(f"{prompt}: {name}")
            query = CreditQuery(question, renderer.answer(EXAMPLE.answer), context, renderer.answer(EXAMPLE.correct))
            controls = [replace(one, attempt=context.attempt) for one in control_contexts(context, plain_words=True)]
            found = credit(policy, renderer, query, controls[: chosen.controls], top=3)
            total, lower = blamed([token.text for token in found.tokens], [token.log_ratio for token in found.tokens])
            odds = ["", ""]
            if seen := found.error_visibility:
                centre = fmean(seen.control)
                odds = [f"{value - centre:+.2f}" for value in (seen.value, max(seen.control))]
            rows.append([prompt, name, f"{total:+.2f}", str(lower), *odds, "yes" if right(answer.text) else "no"])
            tokens = [
                [one.text, one.student, one.teacher, [asdict(o) for o in one.alternatives]] for one in found.tokens
            ]
            written.append({"prompt": prompt, "context": name, "tokens": tokens, "answer": answer.text})
    head = ["prompt", "the teacher reads", "u of ` + 1`", "tokens below it", "corrected answer", "largest control"]
    arms.save(chosen.out, "results", written, arms.table([*head, "teacher's own answer right"], rows))


if __name__ == "__main__":
    main()
