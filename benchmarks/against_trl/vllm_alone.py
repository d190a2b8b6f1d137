"""Worker of vLLM without this library: sampled tokens and seconds, in an environment that has vLLM."""

from __future__ import annotations

import json
import sys
from typing import Any

from vllm import LLM, SamplingParams

from benchmarks.against_trl.meter import give, measure

Case = dict[str, Any]


def rollout_case(case: Case) -> dict[str, Any]:
    """Seconds, and tokens as the value."""
    engine = LLM(
        case["model"], dtype=case["dtype"], generation_config="vllm", max_model_len=case["longest"], seed=0,
        enforce_eager=case["eager"],
    )  # fmt: skip
    options = SamplingParams(temperature=1.0, max_tokens=case["new_tokens"], stop_token_ids=case["ends"], logprobs=0)
    prompts = [{"prompt_token_ids": list(prompt)} for prompt in case["prompts"]]

    def work() -> int:
        return sum(len(done.outputs[0].token_ids) for done in engine.generate(prompts, options, use_tqdm=False))

    found = measure(work, warm=0, repeats=case["repeats"])
    return found | {"value": {"tokens": found["value"]}}


if __name__ == "__main__":
    give(rollout_case(json.load(sys.stdin)))
