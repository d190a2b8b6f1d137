"""What guards compare, measured on the rollouts of a step as they are recorded: it needs no pass of a model.

    length              median tokens of an answer
    repeated            share of answers of which more than half of all runs of four tokens came before
    groups, flat        groups of two or more scored answers; the share of them with equal rewards
    failed              share of groups of which no answer is solved
    accuracy_error      standard error of the step's accuracy, clustered by task
    token, token_id     the largest share of one token id in Σ|u| over the distilled tokens, and the id
    style               share of Σ|u| on words and marks of style
    u_low, u_mid, u_high    quantiles .01, .5 and .99 of u = log q − log p
    leaked, copied      share of answers, and of unsolved answers, with words of the private context

The rewards and the texts are in the records: the signals of an older run can be computed from its files.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import median

from selfdistill.envs.base import SOLVED
from selfdistill.prompts.context import Templates
from selfdistill.runs import RolloutRecord
from selfdistill.runs.stats import share_error
from selfdistill.types import ANSWER

RUN = 4  # tokens
FEWEST_RUNS = 16  # a shorter answer does not count as repetition
FEWEST_TOKENS = 200  # distilled, for shares and quantiles
WORDS = 5  # in a row, which two texts rarely share by chance
# Words and marks of style: of hedging, of order, of markdown. A teacher with a context pushes them without need.
STYLE = frozenset(
    [
        *("wait", "hmm", "maybe", "perhaps", "alternatively", "actually", "okay", "ok", "so", "well", "now", "let"),
        *("first", "next", "then", "finally", "therefore", "thus", "hence", "however", "certainly", "sure", "here"),
        *("below", "note", "remember", "clearly", "indeed", "**", "*", "#", "##", "###", "---", "```", "\\boxed"),
    ]
)
# Phrases about a context that only the teacher reads.
REFERRING = re.compile(
    r"\b(?:(?:as|like|per|from|given|according to|based on|following|in) (?:the|your|this|that) "
    r"(?:feedback|hint|reference|instructions?|provided|correct solution|given solution|example|document|demonstration)"
    r"|(?:the|your) (?:feedback|hint) (?:says|said|shows|states|indicates|mentions|tells)"
    r"|(?:reference|provided|given|correct) (?:solution|answer) (?:above|says|shows|is given)"
    r"|(?:my|your) (?:earlier|previous|unsuccessful)(?: \w+)? attempt)",
    re.IGNORECASE,
)
PRIVATE = ("instruction", "feedback", "reply")  # an answer need not hold their words
SOUGHT = ("demonstration", "document")  # a good answer may; a solution is another answer of the student

Runs = frozenset[tuple[str, ...]]


@dataclass
class PrivateWords:
    """Runs of words from the private contexts of the first steps that no prompt and no answer of their step holds: what
    the student cannot have of itself. `private` counts in every answer, `sought` in unsolved ones."""

    templates: Templates = field(default_factory=Templates)
    private: set[tuple[str, ...]] = field(default_factory=set)
    sought: set[tuple[str, ...]] = field(default_factory=set)

    def add(self, rollouts: Sequence[RolloutRecord]) -> None:
        """Takes in the contexts of a step of the warm-up."""
        own = _all_runs([*{record.prompt for record in rollouts}, *(record.completion for record in rollouts)])
        read = {name for record in rollouts for name in record.context}
        for names, known in ((PRIVATE, self.private), (SOUGHT, self.sought)):
            texts = {record.context[name] for record in rollouts for name in names if name in record.context}
            known |= _all_runs(texts) - own
        wording = [getattr(self.templates, name) for name in (*read, *(("message",) if read else ()))]
        self.private |= _all_runs(re.split(r"\{\w+\}", text)[place] for text in wording for place in (0, -1)) - own

    def shares(self, sampled: Sequence[RolloutRecord]) -> dict[str, float]:
        """The share of answers that refer to a context or hold private words, and of unsolved ones with sought words.
        Words of an answer's own prompt do not count."""
        in_prompt = {record.prompt: runs_of(record.prompt) for record in sampled}
        found = [runs_of(record.completion) - in_prompt[record.prompt] for record in sampled]
        leaked = [
            not runs.isdisjoint(self.private) or bool(REFERRING.search(record.completion))
            for record, runs in zip(sampled, found, strict=True)
        ]
        unsolved = [
            not runs.isdisjoint(self.sought)
            for record, runs in zip(sampled, found, strict=True)
            if record.reward is not None and record.reward < SOLVED
        ]
        return {"leaked": _share(leaked), "copied": _share(unsolved)}


def runs_of(text: str) -> Runs:
    """Every run of five words of a text."""
    words = re.findall(r"\w+", text.lower())
    return frozenset(zip(*(words[place:] for place in range(WORDS)), strict=False))


def _all_runs(texts: Iterable[str]) -> set[tuple[str, ...]]:
    return {run for text in texts for run in runs_of(text)}


def measure_signals(rollouts: Sequence[RolloutRecord], words: PrivateWords) -> dict[str, float]:
    """The signals of a step; those that nothing in it shows are left out."""
    sampled = [record for record in rollouts if record.logprobs]
    if not sampled:
        return {}
    signals = {
        "answers": float(len(sampled)),
        "length": float(median(len(record.token_ids) for record in sampled)),
        "repeated": _share([repeats(record.token_ids) for record in sampled]),
    }
    return {**signals, **words.shares(sampled), **_groups(rollouts), **_push(rollouts)}


def repeats(ids: Sequence[int]) -> bool:
    """Whether more than half of an answer's runs of tokens came before in it."""
    count = len(ids) - RUN + 1
    return count >= FEWEST_RUNS and 2 * len(set(zip(*(ids[place:] for place in range(RUN)), strict=False))) < count


def _groups(rollouts: Sequence[RolloutRecord]) -> dict[str, float]:
    rewards: defaultdict[str, list[float]] = defaultdict(list)
    for record in rollouts:
        if record.stage == ANSWER and record.reward is not None:
            rewards[record.uid.rpartition("-")[0]].append(record.reward)
    solved = [(sum(reward >= SOLVED for reward in own), len(own)) for own in rewards.values()]
    several = [own for own in rewards.values() if len(own) > 1]
    if not solved:
        return {}
    return {
        "groups": float(len(solved)),
        "flat": _share([max(own) - min(own) <= 1e-6 for own in several]),
        "failed": _share([count == 0 for count, _ in solved]),
        "accuracy_error": share_error(solved),
    }


def _push(rollouts: Sequence[RolloutRecord]) -> dict[str, float]:
    """Where the teacher pushes, by |u| of the sampled tokens."""
    by_id, style, values = Counter[int](), 0.0, list[float]()
    for record in rollouts:
        if record.log_ratio and len(record.log_ratio) == len(record.token_ids):  # else of words that it did not sample
            for token, u in zip(record.token_ids, record.log_ratio, strict=True):
                by_id[token] += abs(u)  # type: ignore[assignment]
            texts = record.token_texts or ("",) * len(record.log_ratio)
            style += sum(
                abs(u) for text, u in zip(texts, record.log_ratio, strict=True) if text.strip().lower() in STYLE
            )
            values += record.log_ratio
    total = sum(by_id.values())
    if len(values) < FEWEST_TOKENS or total <= 0:
        return {}
    values.sort()
    (top, most), last = by_id.most_common(1)[0], len(values) - 1
    quantiles = {name: values[round(at * last)] for name, at in (("u_low", 0.01), ("u_mid", 0.5), ("u_high", 0.99))}
    return {"token": most / total, "token_id": float(top), "style": style / total, **quantiles}


def _share(values: Sequence[bool]) -> float:
    return sum(values) / len(values) if values else 0.0
