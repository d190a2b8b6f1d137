"""What a model has read of conversations, kept between their turns.

Legend: H heads, L tokens, D size of a head.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from selfdistill.types import TokenIds


@dataclass(frozen=True, slots=True)
class ReadState:
    """What a model holds of these ids: keys and values [H, L, D] of every layer."""

    ids: TokenIds
    layers: list[tuple[Tensor, Tensor]]


@dataclass(slots=True)
class KeptStates:
    """The states of conversations between their turns, of at most `room` tokens together. Others are read again."""

    room: int
    states: dict[str, ReadState] = field(default_factory=dict)

    def put(self, name: str, state: ReadState) -> None:
        """Keeps a state where there is room."""
        if len(state.ids) <= self.room:
            self.states[name], self.room = state, self.room - len(state.ids)

    def take(self, name: str, prompt: TokenIds) -> ReadState | None:
        """Removes the state of a conversation; None where there is none, or where the prompt does not extend it."""
        state = self.states.pop(name, None)
        if state is None:
            return None
        self.room += len(state.ids)
        return state if len(state.ids) < len(prompt) and prompt[: len(state.ids)] == state.ids else None
