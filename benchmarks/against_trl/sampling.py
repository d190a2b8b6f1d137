"""Workers of this library and of transformers: sampling, memory of an evaluation, a short run of training."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.against_trl.meter import give, level_before, measure, peak_bytes
from selfdistill.config import from_settings
from selfdistill.models.load import load_policy
from selfdistill.models.policy import Policy
from selfdistill.models.precision import pick_dtype
from selfdistill.models.sampler import SamplingOptions, sample
from selfdistill.runs import Event, StepEnd
from selfdistill.training.loop import train

Case = dict[str, Any]


def ours(policy: Policy, case: Case) -> int:
    """Sampled tokens of the package's sampler."""
    options = SamplingOptions(case["new_tokens"], case.get("temperature", 1.0))
    uids = [str(place) for place in range(len(case["prompts"]))]
    prompts = [tuple(prompt) for prompt in case["prompts"]]
    return sum(len(done.token_ids) for done in sample(policy, prompts, options, seed=0, uids=uids, version=0))


def generate(model: Any, case: Case) -> int:
    """Sampled tokens of `generate`, up to the end of each answer."""
    prompts, ends = case["prompts"], set(case["ends"])
    longest = max(map(len, prompts))
    ids_BL = torch.tensor([[case["pad"]] * (longest - len(prompt)) + prompt for prompt in prompts], device=model.device)
    mask_BL = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    torch.manual_seed(0)
    written = model.generate(
        ids_BL, attention_mask=mask_BL.to(model.device), max_new_tokens=case["new_tokens"], eos_token_id=sorted(ends),
        pad_token_id=case["pad"], do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
    )  # fmt: skip
    return sum(_length(row, ends) for row in written[:, longest:].tolist())


def _length(row: Sequence[int], ends: set[int]) -> int:
    return next((place for place, token in enumerate(row, start=1) if token in ends), len(row))


def rollout_case(case: Case) -> dict[str, Any]:
    """Seconds, and tokens as the value."""
    work: Callable[[], int]
    if case["sampler"] == "ours":
        policy = load_policy(case["model"], dtype=case["dtype"], trained=False)
        work = lambda: ours(policy, case)  # noqa: E731
    else:
        from transformers import AutoModelForCausalLM

        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        dtype = pick_dtype(case["dtype"], device)
        model = AutoModelForCausalLM.from_pretrained(case["model"], dtype=dtype).to(device).eval()
        work = lambda: generate(model, case)  # noqa: E731
    found = measure(work, warm=0, repeats=case["repeats"])
    return found | {"value": {"tokens": found["value"]}}


def evaluation_case(case: Case) -> dict[str, Any]:
    """The peak of loading a model as an evaluation or as training does, and of a few greedy answers."""
    before = level_before()

    def work() -> dict[str, float]:
        policy = load_policy(case["model"], dtype=case["dtype"], trained=case["trained"])
        return {"tokens": ours(policy, case | {"temperature": 0.0})}

    found = measure(work, warm=0, repeats=1)
    return found | {"peak": peak_bytes() - before}


def train_case(case: Case) -> dict[str, Any]:
    """Steps of SDPO as a user runs them."""
    seconds, rewards = list[float](), list[float]()

    def watch(event: Event) -> None:
        if isinstance(event, StepEnd):
            seconds.append(sum(event.record.seconds.values()))
            rewards.append(event.record.reward)

    before = level_before()
    with tempfile.TemporaryDirectory() as folder:
        settings = case["settings"] | {"out": str(Path(folder) / "run"), "model": case["model"]}
        train(from_settings(settings), watch)
    return {
        "seconds": sum(seconds) / len(seconds), "all_seconds": seconds, "peak": peak_bytes() - before,
        "value": {"reward": rewards[-1]},
    }  # fmt: skip


CASES = {"rollouts": rollout_case, "evaluation": evaluation_case, "train": train_case}


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    give(CASES[given["kind"]](given))
