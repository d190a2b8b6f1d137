"""A small coding agent in a terminal that is corrected, learns from it, and tries again.

Every change and every command is shown, and done once you approve it. A denial with words, a change of yours to what is
approved, and tests that fail go to the server as feedback on the turn that made the call; the server learns from it.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from rich.text import Text

from selfdistill.envs.tools import Tool
from selfdistill.errors import ConfigError, EndpointError, nearest
from selfdistill.faces.chat import NO_RECEIPT, Chat
from selfdistill.faces.client import NO_ROUTE, NOT_LEARNING, Answer, Client
from selfdistill.faces.terminal import Terminal, plain
from selfdistill.faces.workspace import Workspace
from selfdistill.files import BadJson, decode_json
from selfdistill.protocol.chat import written
from selfdistill.types import Task

SYSTEM = (
    "You are a coding agent in the directory {name}. Use the tools to look at files, to change them and to run "
    "commands. Paths are relative to the directory. Read a file before you change it. Make the smallest change that "
    "does what the user wants. When it is done, say in one or two sentences what you did, without a call."
)
MOST_LINES, MOST_PATHS, MOST_FOUND = 200, 200, 50  # of a result
SHOWN = 400  # characters of a result that the person sees
PROMPT = "[y]es, [n]o and why, [e]dit, [a]lways: "
# The argument of each call with an effect that a person edits.
EDITABLE: Mapping[str, str] = {"edit": "new", "write": "content", "run_command": "command"}


class Denied(Exception):
    """A person refuses a call; what it holds is the result of the call."""


@dataclass(frozen=True, slots=True)
class Correction:
    """What a person has against the call in the place `place` of a turn. `approved` are the arguments as the person
    changed them; None: the call was denied."""

    place: int
    key: str
    text: str
    approved: Mapping[str, str] | None = None


@dataclass(slots=True)
class Approvals:
    """What needs no question any more: all changes, and single commands. A command runs unasked only while every change
    was approved by itself, for it may run what was written."""

    changes: bool = False
    commands: set[str] = field(default_factory=set)
    unseen: bool = False


class Coder(Chat):
    """An agent in a workspace. `turns` bounds the answers to one instruction, `limit_s` a command; `test` is a command
    that is run after changes. Without `learns` feedback is recorded alone."""

    kind = "code"

    def __init__(
        self,
        client: Client,
        terminal: Terminal,
        workspace: Workspace,
        *,
        test: str = "",
        turns: int = 20,
        limit_s: float = 120.0,
        confined: bool = True,
        learns: bool = True,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.workspace, self.test, self.turns, self.limit_s = workspace, test, turns, limit_s
        self.confined, self.learns, self.approvals = confined, learns, Approvals()
        functions: Sequence[Callable[..., str]] = (
            self.list_files, self.read, self.search, self.edit, self.write, self.run_command,
        )  # fmt: skip
        self.tools = {tool.name: tool for tool in map(Tool, functions)}
        # Of the turn whose calls run: place and receipt, corrections, whether anything was done.
        self._place, self._corrections, self._did = 0, list[Correction](), False
        self._retried: tuple[str, str] = ("", "")  # the call that was denied in the turn before, and why
        self._to_test = ""  # the receipt of the turn that made the last change since the tests ran
        tools = [tool.schema for tool in self.tools.values()]
        system = SYSTEM.format(name=workspace.root.name)
        super().__init__(client, terminal, system=system, settings={**(settings or {}), "tools": tools})

    def _say(self, text: str) -> None:
        """Works on an instruction until the model ends its work, or its turns are over."""
        self.messages.append({"role": "user", "content": text})
        for _ in range(self.turns):
            answer = Answer()
            self._write(answer, self.messages)
            self.receipt = answer.receipt
            if answer.calls:
                self._perform(answer)
                continue
            self.messages.append(answer.message)
            if not (failure := self._failure()):
                return
            self.messages.append({"role": "user", "content": failure})
        self.terminal.note(f"stopped after {self.turns} turns: say how to go on, or /new")

    def _perform(self, answer: Answer) -> None:
        """Runs the calls of a turn up to one that is denied, and learns from what a person had against them. A turn
        that was denied before anything was done is tried again with the new weights."""
        results, self._corrections, self._did = list[str](), [], False
        try:
            for self._place, call in enumerate(answer.calls):
                denied = any(each.approved is None for each in self._corrections)
                results.append("Not run." if denied else self._result(call["function"]))
        except KeyboardInterrupt:
            self._keep(answer, results)
            raise
        found, retried, self._retried = self._corrections, self._retried, ("", "")
        for each in found:
            if each.approved is not None:
                answer.calls[each.place]["function"]["arguments"] = json.dumps(each.approved, ensure_ascii=False)
        texts = [each.text for each in found if each.text and (each.key, each.text) != retried]
        changed = any(each.approved is not None for each in found)
        calls = [(call["function"]["name"], call["function"]["arguments"]) for call in answer.calls]
        learned = bool(texts) and self._correct(
            answer.receipt, "\n\n".join(texts), written(answer.text, calls) if changed else ""
        )
        if learned and not self._did and found[-1].approved is None:
            self._retried = (found[-1].key, found[-1].text)
            self.terminal.note("the turn is tried again")
        else:
            self._keep(answer, results)

    def _keep(self, answer: Answer, results: Sequence[str]) -> None:
        """Adds a turn and its results to the conversation."""
        self.messages.append(answer.message)
        for place, call in enumerate(answer.calls):
            text = results[place] if place < len(results) else "Stopped by the user."
            self.messages.append({"role": "tool", "tool_call_id": call["id"], "content": text})

    def _result(self, function: Mapping[str, str]) -> str:
        """The result of a call."""
        name, given = function["name"], function["arguments"]
        if name not in EDITABLE:
            self.terminal.show(f"● {name} {given}", style="bold")
        text = f"Error: there is no tool {name!r}; {nearest(name, self.tools)}"
        try:
            arguments = decode_json(given or "{}")
            if name in self.tools:
                known = isinstance(arguments, dict)
                text = self.tools[name].run(arguments, Task("code", ())) if known else "Error: give an object"
        except BadJson as error:
            text = f"Error: the arguments are no JSON: {error.what}"
        more = f" … ({len(text)} characters)" if len(text) > SHOWN else ""
        self.terminal.show(f"{text[:SHOWN]}{more}", style="dim")
        return text

    def list_files(self, folder: str = ".") -> str:
        """List the files below a folder."""
        return _listed(self.workspace.files(folder), MOST_PATHS) or "There are no files."

    def read(self, path: str, first_line: int = 1) -> str:
        """Read a file from a line on."""
        lines = self.workspace.read(path).split("\n")
        part = lines[max(0, first_line - 1) :][:MOST_LINES]
        rest = len(lines) - max(0, first_line - 1) - len(part)
        return "\n".join(part) + (f"\n… ({rest} more lines)" if rest > 0 else "")

    def search(self, text: str, folder: str = ".") -> str:
        """Search the files below a folder for a text, in upper and lower case as given."""
        return _listed(self.workspace.search(text, folder), MOST_FOUND) or "Nothing was found."

    def edit(self, path: str, old: str, new: str) -> str:
        """Replace a text in a file. `old` must occur exactly once, with its white space."""
        before = self.workspace.before(path)
        found = before.count(old) if before is not None and old else 0
        if before is None or found != 1:
            what = "there is no such file" if before is None else f"the old text occurs {found} times, not once"
            raise ValueError(f"{path}: {what}. Read the file, and give old as it stands there")
        return self._change("edit", {"path": path, "old": old, "new": new}, before)

    def write(self, path: str, content: str) -> str:
        """Write a whole file: a new one, or in place of one."""
        return self._change("write", {"path": path, "content": content}, self.workspace.before(path))

    def run_command(self, command: str) -> str:
        """Run a shell command in the directory."""
        known = command in self.approvals.commands and not self.approvals.unseen

        def show(text: str) -> None:
            self.terminal.show(*(f"│ {line}" for line in text.split("\n")), style="bold")

        given, always = self._approved("run_command", {"command": command}, show, ask=not known)
        if always:
            self.approvals.commands.add(given["command"])
            self.approvals.unseen = False
        self._did = True
        output, ended = self._output(given["command"])
        return f"{output.rstrip()}\n({ended or 'it ends without an error'})".lstrip()

    def _output(self, command: str) -> tuple[str, str]:
        """The output of a command, and how it failed, if it did."""
        output, status = self.workspace.run(command, limit_s=self.limit_s, confined=self.confined)
        if status is None:
            return output, f"it was stopped: it took {self.limit_s:g} s, or printed without end"
        return output, f"it fails with exit code {status}" if status else ""

    def _change(self, name: str, arguments: dict[str, str], before: str | None) -> str:
        """Writes a file once its change is approved."""
        path = arguments["path"]

        def after(given: Mapping[str, str]) -> str:
            return given["content"] if before is None or name == "write" else before.replace(given["old"], given["new"])

        def show(text: str) -> None:
            new = after({**arguments, EDITABLE[name]: text})
            self.terminal.show(*coloured(difference(before or "", new, path, made=before is None)))

        if after(arguments) == before:
            return f"{path} holds that already."
        ask = not self.approvals.changes
        given, always = self._approved(name, arguments, show, ask=ask)
        self.approvals.changes, self.approvals.unseen = always or not ask, self.approvals.unseen or not ask
        self.workspace.write(path, after(given), before=before)
        self._to_test, self._did = self.receipt, True
        return f"{path} is {'written' if before is None else 'changed'}."

    def _approved(
        self, name: str, arguments: dict[str, str], show: Callable[[str], None], *, ask: bool
    ) -> tuple[dict[str, str], bool]:
        """The arguments as a person approves them, and whether such calls are always approved. Raises `Denied`."""
        key, argument = f"{name} {json.dumps(arguments)}", EDITABLE[name]
        text = arguments[argument]
        while True:
            self.terminal.show(f"● {name} {arguments.get('path', '')}".rstrip(), style="bold")
            show(text)
            if key == self._retried[0]:
                self.terminal.note("this was denied just now")
                self._deny(*self._retried)
            try:
                word, _, words = self.terminal.decide(PROMPT).partition(" ") if ask else ("y", "", "")
                decision = word.lower()
                if decision in ("n", "no"):
                    self._deny(key, words.strip() or self.terminal.decide("why? (empty: nothing is learned from it) "))
                if decision in ("e", "edit"):
                    text = self.terminal.edited(text)
            except EOFError:
                raise KeyboardInterrupt from None
            except ConfigError as error:
                self.terminal.error(error)
            if decision in ("y", "yes", "a", "always"):
                given = {**arguments, argument: text}
                if text != arguments[argument]:
                    what = "\n".join(
                        ["I changed this call before it ran:", *difference(arguments[argument], text, argument)]
                    )
                    self._corrections.append(Correction(self._place, key, what, given))
                return given, decision in ("a", "always")
            if decision not in ("e", "edit"):
                self.terminal.note("y does it; n does not, and learns from your words; e opens your editor; a: always")

    def _deny(self, key: str, words: str) -> None:
        self._corrections.append(Correction(self._place, key, words))
        raise Denied(f"the user does not want this{f': {words}' if words else ''}")

    def _failure(self) -> str:
        """What the tests say against the changes; empty where they pass, or nothing is to be tested."""
        receipt, self._to_test = self._to_test, ""
        if not self.test or not receipt:
            return ""
        self.terminal.note(f"tests: {self.test}")
        if self.approvals.unseen:
            question = "they run changes that you did not approve one by one: [y]es, [n]o: "
            try:
                decision = self.terminal.decide(question).lower()
            except EOFError:
                raise KeyboardInterrupt from None
            if decision not in ("y", "yes"):
                return ""
        output, ended = self._output(self.test)
        self.terminal.show(output[-SHOWN:], style="dim")
        self.terminal.note(ended or "the tests pass")
        if not ended:
            return ""
        failure = f"After this change I ran `{self.test}`, and {ended}:\n{output}"
        self._correct(receipt, failure)
        return failure

    def _correct(self, receipt: str, text: str, solution: str = "") -> bool:
        """Sends feedback on a turn and has the server learn from it: whether new weights answer now."""
        if not receipt:
            self.terminal.note(NO_RECEIPT)
            return False
        try:
            self.client.feedback(receipt, text=text, **({"solution": solution} if solution else {}))
            self.replied = receipt
            return self.learns and self.do_learn("")
        except EndpointError as error:
            self.terminal.error(error)
            self.learns = self.learns and error.status not in NO_ROUTE and error.code != NOT_LEARNING
        except KeyboardInterrupt:
            self.terminal.note("it is not waited for")
        return False


def difference(before: str, after: str, path: str, *, made: bool = False) -> Iterator[str]:
    """The lines of a unified diff."""
    old, new = ([*re.findall(r"[^\n]*\n|[^\n]+", text)] for text in (before, after))
    for line in difflib.unified_diff(old, new, "(new)" if made else path, path):
        yield line[:-1] if line.endswith("\n") else f"{line}  (no line end)"


def coloured(lines: Iterable[str]) -> Iterator[Text]:
    """The lines of a diff in colours."""
    styles = {"+": "green", "-": "red", "@": "cyan"}
    return (Text(plain(line), styles.get(line[:1], "")) for line in lines)


def _listed(lines: Iterable[str], most: int) -> str:
    found = list(islice(lines, most + 1))
    return "\n".join(found[:most]) + ("\n… (more: name a folder)" if len(found) > most else "")
