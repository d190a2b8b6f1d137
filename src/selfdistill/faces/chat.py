"""A conversation in a terminal. The next message is the reply that the answer before it is learned from."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from typing import Any

from rich.text import Text

from selfdistill.errors import EndpointError, nearest
from selfdistill.faces.client import IN_PROGRESS, Answer, Client, MessageBody
from selfdistill.faces.terminal import Terminal, plain
from selfdistill.runs.credit import HALVED
from selfdistill.view.credit import extremes, tint, visible

NO_RECEIPT = "the answer has no receipt: it was stopped, or this server does not record answers"


class Chat:
    """A conversation with a server. `settings` are those of sampling, `system` a text before the first message.

    A line that begins with a slash is a command: each method `do_NAME`, whose docstring is its help.
    """

    kind = "chat"

    def __init__(
        self, client: Client, terminal: Terminal, *, system: str = "", settings: Mapping[str, Any] | None = None
    ) -> None:
        self.client, self.terminal, self.settings = client, terminal, settings or {}
        self.system = [{"role": "system", "content": system}] if system else []
        self.failed = 0  # turns and commands
        self._decided: set[Any] | None = None  # ids of updates that were shown; None: the server does not learn
        self._begin()

    def _begin(self) -> None:
        self.session, self.messages = f"{self.kind}-{secrets.token_hex(6)}", list[MessageBody](self.system)
        self.receipt = self.replied = ""  # of the last answer, and of the last one with something that came back

    def run(self) -> None:
        """Reads messages and commands until the end."""
        with suppress(EndpointError):
            self._decided = {each["id"] for each in self.client.updates() if each["state"] not in IN_PROGRESS}
        stopped = False
        while True:
            try:
                self._news()
                text = self.terminal.turn("> ").strip()
            except EOFError:
                return
            except KeyboardInterrupt:
                if stopped or not self.terminal.interactive:
                    return
                stopped = True
                self.terminal.note("\nCtrl-C once more, or Ctrl-D, ends; /help lists the commands")
                continue
            try:
                stopped = False
                if text.startswith("/"):
                    if not self._command(*text[1:].split(maxsplit=1)):
                        return
                elif text:
                    self._say(text)
            except EndpointError as error:
                self.failed += 1
                self.terminal.error(error)
            except KeyboardInterrupt:
                if not self.terminal.interactive:
                    return
                stopped = True
                self.terminal.note("\nstopped")

    def _command(self, name: str = "", words: str = "") -> bool:
        """Whether the conversation continues after a command."""
        if name in ("quit", "exit"):
            return False
        commands = self._commands()
        if name not in commands:
            self.failed += 1
            self.terminal.note(f"there is no command /{name}: {nearest(name, [*commands, 'quit'])}")
        else:
            commands[name](words.strip())
        return True

    def _commands(self) -> dict[str, Callable[[str], object]]:
        return {name.removeprefix("do_"): getattr(self, name) for name in dir(self) if name.startswith("do_")}

    def _say(self, text: str) -> None:
        """Sends a message and writes the answer. Ctrl-C stops it; what came of it stays in the conversation."""
        answer, question = Answer(), {"role": "user", "content": text}
        try:
            self._write(answer, [*self.messages, question])
        finally:
            if answer.text:
                self.replied = self.receipt or self.replied
                self.messages += [question, answer.message]
                self.receipt = answer.receipt

    def _write(self, answer: Answer, messages: Sequence[MessageBody]) -> None:
        """Writes an answer while it comes."""
        try:
            with closing(self.client.stream(answer, messages, session=self.session, **self.settings)) as pieces:
                for piece in pieces:
                    self.terminal.write(piece)
        finally:
            self.terminal.write("\n" if answer.text else "")
        if answer.finish == "length":
            self.terminal.note("(cut off at the limit of tokens)")

    def _news(self) -> None:
        """Shows updates that were decided since the last message."""
        if self._decided is None:
            return
        try:
            updates = self.client.updates()
        except EndpointError as error:
            self.terminal.error(error)
            return
        for update in updates:
            if update["id"] not in self._decided and update["state"] not in IN_PROGRESS:
                self.show_update(update)

    def show_update(self, update: Mapping[str, Any]) -> None:
        """What was decided about an update, and why."""
        if self._decided is not None:
            self._decided.add(update["id"])
        for line in about_update(update):
            self.terminal.note(line)

    def do_help(self, _: str) -> None:
        """List the commands."""
        rows = [(f"/{name}", str(command.__doc__)) for name, command in self._commands().items()]
        self.terminal.table(("command", "what it does"), [*rows, ("/quit", "End; so does Ctrl-D.")])
        self.terminal.show('A backslash at its end continues a line; lines of """ begin and end a longer message.')

    def do_learn(self, _: str) -> bool:
        """Learn now from what came back, and show what was decided."""
        update = self.client.learn()
        self.terminal.note("learning …; Ctrl-C stops the waiting, not the update")
        decided = self.client.wait(update)
        self.show_update(decided)
        return bool(decided["state"] == "accepted")

    def do_approve(self, words: str) -> None:
        """Serve an update that waits for a person: /approve, /approve 3."""
        self._decide(words, approve=True)

    def do_reject(self, words: str) -> None:
        """Reject an update that waits for a person: /reject, /reject 3."""
        self._decide(words, approve=False)

    def _decide(self, words: str, *, approve: bool) -> None:
        waiting = [int(words)] if words.isdecimal() else []
        waiting = waiting or [each["id"] for each in self.client.updates() if each["state"] == "review"]
        if not waiting:
            self.terminal.note("no update waits for a person")
            return
        self.client.decide(waiting[-1], approve=approve)
        self.show_update(self.client.wait(waiting[-1]))

    def do_undo(self, words: str) -> None:
        """Drop the newest versions: /undo, /undo 2."""
        if words and not (words.isdecimal() and int(words)):
            self.terminal.note("how many versions? /undo, or /undo 2")
            return
        self.client.undo(int(words or 1))
        self.do_versions("")

    def do_versions(self, _: str) -> None:
        """List the versions; one of them answers."""
        rows = []
        for each in self.client.versions():
            state = f"{each['state']}{', pinned' if each.get('pinned') else ''}"
            rows.append((each["id"], state, str(each.get("created", ""))[:16], each.get("path") or each.get("model")))
        self.terminal.table(("version", "state", "created (UTC)", "weights"), rows)

    def do_status(self, _: str) -> None:
        """Show the server in numbers."""
        self.terminal.table(("status", ""), list(self.client.status().items()))

    def do_pause(self, words: str) -> None:
        """Stop learning; /pause off resumes it."""
        if words not in ("", "on", "off"):
            self.terminal.note("/pause stops learning, /pause off resumes it")
            return
        self.client.pause(words != "off")
        self.terminal.note("learning is resumed" if words == "off" else "learning is paused; /pause off resumes it")

    def do_good(self, words: str) -> None:
        """Rate the last answer 1, with words or without."""
        self._feedback(rating=1.0, text=words)

    def do_bad(self, words: str) -> None:
        """Rate the last answer 0, with words or without: what should be different?"""
        self._feedback(rating=0.0, text=words)

    def do_feedback(self, words: str) -> None:
        """Give feedback in words on the last answer, outside of the conversation."""
        if words:
            self._feedback(text=words)
        else:
            self.terminal.note("what about the answer? /feedback WORDS")

    def _feedback(self, **content: Any) -> None:
        if not self.receipt:
            self.terminal.note(NO_RECEIPT if len(self.messages) > len(self.system) else "there is no answer yet")
            return
        given = {name: value for name, value in content.items() if value != ""}
        found = self.client.feedback(self.receipt, **given)
        self.replied = self.receipt if given.get("text") else self.replied
        self.terminal.note("recorded" if found.get("new") else "that was recorded before")

    def do_why(self, _: str) -> None:
        """Show which tokens of the last answer that you replied to your words make more or less likely."""
        if not self.replied:
            self.terminal.note("nothing came back for an answer yet: reply to one, or /bad WORDS")
            return
        found = self.client.why(self.replied)
        tokens = [(plain(each["text"]), float(each["log_ratio"])) for each in found["tokens"]]
        self.terminal.show(f"under: {found['context']}", style="dim")
        coloured = self.terminal.console.color_system is not None
        text = Text()
        for word, log_ratio in tokens:
            mark = ("", "") if coloured or abs(log_ratio) < HALVED else ("[-", "-]") if log_ratio < 0 else ("{+", "+}")
            text.append(f"{mark[0]}{visible(word)}{mark[1]}", tint(log_ratio))
        legend = "red: your words make it less likely; green: more likely"
        if not coloured:
            legend = "[-half as likely under your words, or less-]  {+twice as likely, or more+}"
        self.terminal.show(text, *extremes(tokens))
        self.terminal.show(f"{legend}; numbers are nats", style="dim")

    def do_new(self, _: str) -> None:
        """Begin another conversation; what was learned stays."""
        self._begin()


def about_update(update: Mapping[str, Any]) -> list[str]:
    """An update in lines: what was decided, why, and the numbers of it."""
    version = f": version {update['version']} answers now" if update["state"] == "accepted" else ""
    lines = [f"update {update['id']}, {update.get('lessons') or 0} lessons: {update['state']}{version}"]
    lines += [f"  why: {update['reason']}"] if update.get("reason") else []
    numbers = {name: value for name, value in (update.get("numbers") or {}).items() if isinstance(value, int | float)}
    line = ", ".join(f"{name} {value:.4g}" for name, value in numbers.items())
    return [*lines, f"  {line}"] if line else lines
