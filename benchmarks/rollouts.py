"""How fast rollouts are drawn: the package's sampler and transformers' `generate`, in turn, in one process, one thread.

    OMP_NUM_THREADS=1 python benchmarks/rollouts.py --batch 128 --repeats 5
    OMP_NUM_THREADS=1 python benchmarks/rollouts.py --model DIR --dtype bfloat16 --batch 32 --repeats 2

Groups of eight answers to coined verbs at temperature 1, as a training step draws them; then one greedy answer to each
of as many plain-English tasks as the batch has rows, as an evaluation does, where both must say the same. Times are
processor seconds, which on one thread of an idle machine are those of the clock.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from selfdistill.envs.verbs.env import fresh_verbs, plain_tasks
from selfdistill.models.load import load_policy
from selfdistill.models.policy import Policy, padded
from selfdistill.models.precision import DTYPES
from selfdistill.models.sampler import SamplingOptions, sample
from selfdistill.prompts.render import Renderer
from selfdistill.types import TokenIds

GROUP = 8
MAX_NEW_TOKENS = 48
Answers = list[TokenIds]


def ours(policy: Policy, prompts: list[TokenIds], temperature: float, seed: int) -> Answers:
    """The package's sampler."""
    options = SamplingOptions(MAX_NEW_TOKENS, temperature)
    uids = [str(number) for number in range(len(prompts))]
    return [done.token_ids for done in sample(policy, prompts, options, seed=seed, uids=uids, version=0)]


def generate(policy: Policy, prompts: list[TokenIds], temperature: float, seed: int, **options: Any) -> Answers:
    """`generate` of transformers on the same rows, left-padded; its cache is a `DynamicCache` if not told otherwise."""
    ids_BL, mask_BL = padded(policy, prompts, "left")
    if temperature:
        options |= {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
    else:
        options["do_sample"] = False
    ends = sorted(policy.end_ids)
    torch.manual_seed(seed)
    written = policy.base.generate(  # type: ignore[operator]
        ids_BL,
        attention_mask=mask_BL,
        max_new_tokens=MAX_NEW_TOKENS,
        eos_token_id=ends,
        pad_token_id=policy.tokenizer.pad_token_id,
        **options,
    )
    return [_until_end(row, policy.end_ids) for row in written[:, ids_BL.shape[1] :].tolist()]


def _until_end(row: list[int], ends: frozenset[int]) -> TokenIds:
    """An answer up to its end token; what follows fills the batch."""
    length = next((place for place, token in enumerate(row, start=1) if token in ends), len(row))
    return tuple(row[:length])


def static(policy: Policy, prompts: list[TokenIds], temperature: float, seed: int) -> Answers:
    """`generate` with a cache of fixed size."""
    return generate(policy, prompts, temperature, seed, cache_implementation="static")


SAMPLERS: dict[str, Callable[[Policy, list[TokenIds], float, int], Answers]] = {
    "selfdistill": ours,
    "generate": generate,
    "generate, static cache": static,
}


def timed(policy: Policy, prompts: list[TokenIds], temperature: float, repeats: int) -> dict[str, dict[str, Any]]:
    """By sampler: processor seconds and tokens of every repeat, and the answers of the last one.

    Samplers take turns, each repeat under its own seed; an untimed first round warms them up.
    """
    found: dict[str, dict[str, Any]] = {name: {"seconds": [], "tokens": []} for name in SAMPLERS}
    for repeat in range(-1, repeats):
        for name, sampler in SAMPLERS.items():
            start = time.process_time()
            answers = sampler(policy, prompts, temperature, repeat + 1)
            if repeat >= 0:
                found[name]["seconds"].append(time.process_time() - start)
                found[name]["tokens"].append(sum(map(len, answers)))
            found[name]["answers"] = answers
    return found


def compared(runs: dict[str, dict[str, Any]], rows: int) -> dict[str, Any]:
    """Rates of every sampler, and how many times faster ours is: over all repeats together, and the median, least and
    greatest of single ones."""
    mine = runs["selfdistill"]["seconds"]
    result: dict[str, Any] = {}
    for name, run in runs.items():
        ratios = [other / own for other, own in zip(run["seconds"], mine, strict=True)]
        total = sum(run["seconds"])
        result[name] = {
            "rollouts_per_s": rows * len(ratios) / total,
            "tokens_per_s": sum(run["tokens"]) / total,
            "ratio": total / sum(mine),
            "ratio_median": statistics.median(ratios),
            "ratio_low": min(ratios),
            "ratio_high": max(ratios),
        }
    return result


def measure(model: str = "sapling", batch: int = 128, repeats: int = 5, dtype: str = "float32") -> dict[str, Any]:
    """`rollouts` and `greedy` compare the samplers (see `compared`); `same` counts the greedy answers on which ours and
    `generate` agree to the token, `of` all of them."""
    torch.set_num_threads(1)
    policy = load_policy(model, device="cpu", dtype=dtype, trained=False)
    renderer = Renderer(policy.tokenizer, policy.context_length, 2000)
    verbs = [renderer.prompt(task.messages) for task in fresh_verbs(batch // GROUP, (1, 2), seed=0)]
    rollouts = timed(policy, [prompt for prompt in verbs for _ in range(GROUP)], 1.0, repeats)
    plain = [renderer.prompt(task.messages) for task in plain_tasks(batch, seed=0)]
    greedy = timed(policy, plain, 0.0, repeats)
    pairs = zip(greedy["selfdistill"]["answers"], greedy["generate"]["answers"], strict=True)
    return {
        "model": policy.description,
        "rollouts": compared(rollouts, batch // GROUP * GROUP),
        "greedy": compared(greedy, batch),
        "same": sum(one == other for one, other in pairs),
        "of": batch,
    }


def table(title: str, result: dict[str, Any]) -> Table:
    """One row per sampler."""
    shown = Table(title=title)
    for name in ("sampler", "rollouts/s", "tokens/s", "ours is faster by", "median [least, greatest] of repeats"):
        shown.add_column(name, justify="left" if name == "sampler" else "right")
    for name, one in result.items():
        spread = f"{one['ratio_median']:.2f} [{one['ratio_low']:.2f}, {one['ratio_high']:.2f}]"
        rates = (f"{one['rollouts_per_s']:.0f}", f"{one['tokens_per_s']:.0f}")
        shown.add_row(name, *rates, f"{one['ratio']:.2f}", spread)
    return shown


def main() -> None:
    """Measures and prints; fails where greedy answers differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="sapling", help="sapling, a directory or a name on the hub")
    parser.add_argument("--dtype", default="float32", choices=DTYPES, help="precision of weights and computation")
    parser.add_argument("--batch", type=int, default=128, help="rows; in groups of eight")
    parser.add_argument("--repeats", type=int, default=5, help="timed rounds of every sampler")
    chosen = parser.parse_args()
    if chosen.batch < GROUP or chosen.repeats < 1:
        parser.error(f"--batch must be at least {GROUP}, --repeats at least 1")
    result = measure(chosen.model, chosen.batch, chosen.repeats, chosen.dtype)
    console = Console()
    console.print(result["model"])
    console.print(table("Groups of eight answers at temperature 1", result["rollouts"]))
    console.print(table("One greedy answer each", result["greedy"]))
    console.print(f"Greedy answers that are the same, token by token: {result['same']} of {result['of']}")
    if result["same"] < result["of"] and chosen.dtype == "float32":  # in bfloat16 rounding decides between near ties
        raise SystemExit(1)


if __name__ == "__main__":
    main()
