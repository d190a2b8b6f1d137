"""How this layer says no. It sees torch and nothing of ours, so its refusals are plain `ValueError`s."""

from __future__ import annotations


def refusal(what: str, *, got: object, why: str, do: str) -> ValueError:
    """An error to raise: what is wrong, the value, why it matters, what to do."""
    return ValueError(f"{what}\n  got  {got}\n  why  {why}\n  do   {do}")
