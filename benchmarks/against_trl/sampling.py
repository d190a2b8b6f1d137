"""Workers of this library and of transformers: sampling, memory of an evaluation, a short run of training."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from benchmarks.against_trl.meter import give, level_before, measure, peak_bytes
from selfdistill.config import from_settings
from selfdistill.models.load import load_policy
from selfdistill.models.policy import Policy
from selfdistill.models.precision import pick_dtype
from selfdistill.models.sampler import SamplingOptions, sample
from selfdistill.runs import Event, StepEnd, StepRecord
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
        model = AutoModelForCausalLM.from_pretrained(case["model"], dtype=dtype).to(device).eval()  # type: ignore[arg-type]
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
    """Steps of SDPO as a user runs them; the parts are means by phase, which the records have."""
    records = list[StepRecord]()

    def watch(event: Event) -> None:
        if isinstance(event, StepEnd):
            records.append(event.record)

    before = level_before()
    with tempfile.TemporaryDirectory() as folder:
        settings = case["settings"] | {"out": str(Path(folder) / "run"), "model": case["model"]}
        train(from_settings(settings), watch)
    ends = [record.wall_s for record in records]
    seconds = [ends[0], *(end - start for start, end in pairwise(ends))][1:] or ends  # the first one warms up
    timed = records[1:] or records
    means = {name: fmean(record.seconds[name] for record in timed) for name in timed[0].seconds}
    synced = [record.extra["sync_s"] for record in timed if "sync_s" in record.extra]
    tokens = (records[-1].tokens - (records[0].tokens if records[1:] else 0)) / len(timed)
    value = {"reward": records[-1].reward, "sampled": tokens / means["rollout"], "sync_s": fmean(synced or [0.0])}
    return {
        "seconds": fmean(seconds), "all_seconds": seconds, "peak": peak_bytes() - before, "value": value,
        "phases": means,
    }  # fmt: skip


CASES = {"rollouts": rollout_case, "evaluation": evaluation_case, "train": train_case}


if __name__ == "__main__":
    given = json.load(sys.stdin)
    give(CASES[given["kind"]](given))
