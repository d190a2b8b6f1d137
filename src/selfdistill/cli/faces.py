"""`selfdistill chat` and `selfdistill code`: a conversation, and a coding agent, that the model learns from."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from selfdistill.cli.arguments import argument, optional, text_option

if TYPE_CHECKING:
    from selfdistill.faces.client import Client
    from selfdistill.faces.terminal import Terminal

Url = Annotated[str | None, optional("Address of a server. (default: http://127.0.0.1:8321/v1, that of `serve`)")]
Model = Annotated[str | None, optional("Model to serve for this time, in place of --url; ends with the command.")]
Token = Annotated[
    str | None, text_option("Token of the server, if it has one; also in the variable SELFDISTILL_TOKEN.")
]
MaxTokens = Annotated[
    int | None, typer.Option(min=1, help="Limit of an answer. (default: the server's)", show_default=False)
]
ServeOptions = Annotated[
    list[str] | None, argument("With --model: options of `selfdistill serve`, after two dashes.", "[-- SERVE OPTIONS]")
]


def chat(
    serve_options: ServeOptions = None,
    url: Url = None,
    model: Model = None,
    token: Token = None,
    system: Annotated[str | None, text_option("System message of the conversation.")] = None,
    temperature: Annotated[
        float | None,
        typer.Option(min=0, max=2, help="Sampling temperature. (default: the server's)", show_default=False),
    ] = None,
    max_tokens: MaxTokens = None,
) -> None:
    """Talk to a served model that learns from your replies. /help lists the commands.

    Your next message is the reply that the answer before it is learned from. Without a terminal, each line is a
    message.
    """
    from selfdistill.faces.chat import Chat
    from selfdistill.faces.terminal import Terminal

    terminal = Terminal()
    with _client(terminal, url, model, token, serve_options, "idle") as client:
        conversation = Chat(client, terminal, system=system or "", settings=_given(temperature, max_tokens))
        conversation.run()
    _end(terminal, conversation.failed)


def code(
    directory: Annotated[Path, argument("Directory in which the agent works.", "DIR")],
    serve_options: ServeOptions = None,
    url: Url = None,
    model: Model = None,
    token: Token = None,
    test: Annotated[str, typer.Option(help='Command that is run after changes, such as "pytest -q".')] = "",
    turns: Annotated[int, typer.Option(min=1, help="Most turns of the model for one instruction.")] = 20,
    time_limit: Annotated[float, typer.Option(min=0.1, help="Seconds that a command may take.")] = 120.0,
    learn: Annotated[bool, typer.Option(help="Learn from each correction at once, then go on.")] = True,
    confine: Annotated[
        bool, typer.Option(help="Keep commands from changing files outside of DIR, where the kernel has Landlock.")
    ] = True,
    temperature: Annotated[float, typer.Option(min=0, max=2, help="Sampling temperature.")] = 0.2,
    max_tokens: MaxTokens = None,
) -> None:
    """Work on the files of a directory with a coding agent that learns from your corrections.

    Every change and every command is shown first: y does it, n with words does not, e opens your editor on it. A
    denial with words, an edited call and failing tests are learned from, then the agent continues.
    """
    from selfdistill.envs.sandbox.lockdown import landlock_abi
    from selfdistill.faces.code import Coder
    from selfdistill.faces.terminal import Terminal
    from selfdistill.faces.workspace import Workspace

    terminal, workspace = Terminal(), Workspace(directory)
    terminal.note(f"{workspace.root}: the tools read and change files in it alone; what they read goes to the server")
    rights = "a command that you approve runs with your rights: it reads what you can read, and uses the network"
    if confine and landlock_abi():
        terminal.note(f"{rights}; it can change files in this directory and a temporary one alone")
    else:
        terminal.note(f"{rights}, and it can change every file that you can")
    with _client(terminal, url, model, token, serve_options, "now" if learn else "") as client:
        agent = Coder(
            client, terminal, workspace, test=test, turns=turns, limit_s=time_limit, confined=confine, learns=learn,
            settings=_given(temperature, max_tokens),
        )  # fmt: skip
        agent.run()
    _end(terminal, agent.failed)


@contextmanager
def _client(
    terminal: Terminal,
    url: str | None,
    model: str | None,
    token: str | None,
    options: list[str] | None,
    learn: str,
) -> Iterator[Client]:
    """A client of the server at an address, or of one of its own, which learns by the trigger `learn`."""
    from selfdistill.errors import ConfigError
    from selfdistill.faces.client import DEFAULT_URL, Client
    from selfdistill.faces.own_server import own_server

    token = token or os.environ.get("SELFDISTILL_TOKEN", "")
    if url and model:
        raise ConfigError("the model of a server at an address is its own", got=f"--url {url} --model {model}")
    if options and not model:
        do = "give --model, or start the server with them"
        raise ConfigError("options of the server need one to start", got=" ".join(options), do=do)
    if model:
        options = options or []
        if learn and not any(word.split("=")[0] == "--learn" for word in options):
            options = ["--learn", learn, *options]
        with own_server(model, options, terminal.note, token=token) as address:
            yield Client(address, token)
        return
    client = Client(url or DEFAULT_URL, token)
    terminal.note(f"{client.url}: {client.model()}; /help lists the commands")
    yield client


def _given(temperature: float | None, max_tokens: int | None) -> dict[str, Any]:
    settings = {"temperature": temperature, "max_tokens": max_tokens}
    return {name: value for name, value in settings.items() if value is not None}


def _end(terminal: Terminal, failed: int) -> None:
    """A script learns by the exit code that something failed; a person saw it."""
    if failed and not terminal.interactive:
        raise typer.Exit(1)
