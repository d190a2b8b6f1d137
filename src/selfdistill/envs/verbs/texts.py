"""How coined verbs are spoken of: the question, the dictionary, the user who is not content."""

from __future__ import annotations

from selfdistill.envs.verbs.operations import VARIABLE, Kind
from selfdistill.envs.verbs.programs import Program
from selfdistill.types import Message

NOUN: dict[Kind, str] = {"list": "list", "string": "text", "number": "number"}


def verb_question(word: str, kind: Kind) -> Message:
    """Asks for a program by a coined verb: "Write f(xs) to dopim the list." """
    return Message("user", f"Write f({VARIABLE[kind]}) to {word} the {NOUN[kind]}.")


def plain_question(program: Program) -> Message:
    """Asks for a program in plain English: "Write f(xs) to sort the items, then drop the first item." """
    return Message("user", f"Write f({VARIABLE[program.kind]}) to {program.english}.")


def dictionary_entry(word: str, program: Program) -> str:
    """A document that says what a verb means."""
    return f"To {word} a {NOUN[program.kind]} means to {program.english}."


def user_reply(program: Program) -> str:
    """What a user who had expected `program` answers to something else: "No, smallest first, please." """
    return f"No, {program.casual}, please."
