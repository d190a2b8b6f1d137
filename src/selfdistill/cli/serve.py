"""`selfdistill serve`: a model as an OpenAI-compatible endpoint, with a journal."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from selfdistill.cli.arguments import argument, optional, text_option
from selfdistill.errors import ConfigError
from selfdistill.prompts.render import Thinking


def serve(
    model: Annotated[
        str, typer.Option(help="Directory or hub name of a model, checkpoint or run; sapling is embedded.")
    ] = "sapling",
    journal: Annotated[Path, typer.Option(help="File that records every exchange, made where there is none.")] = Path(
        "journal.db"
    ),
    host: Annotated[str, typer.Option(help="Address to listen on. Beyond this machine a token is required.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = 8321,
    token: Annotated[
        str | None,
        text_option("Token that clients send as their API key; also in the variable SELFDISTILL_TOKEN."),
    ] = None,
    name: Annotated[str | None, optional("Name of the model on the wire. (default: that of its directory)")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Limit of answers whose request has none.")] = 2048,
    most_answers: Annotated[
        int, typer.Option(min=1, help="Answers in progress, waiting ones included; more get HTTP 429.")
    ] = 64,
    keep_days: Annotated[
        float | None,
        optional("Days after its last exchange when a conversation is deleted from the journal. (default: never)"),
    ] = None,
    rows: Annotated[int, typer.Option(min=1, help="Answers that are sampled together, at most.")] = 32,
    batch_tokens: Annotated[
        int, typer.Option(min=1, help="Tokens of all answers that are sampled together; bounds memory.")
    ] = 65_536,
    thinking: Annotated[
        Thinking, typer.Option(help="Thinking of models that can do without: off, on or template.")
    ] = "off",
    learn: Annotated[
        str | None,
        optional(
            "Learn from what comes back: idle (when nobody asks), pending (once enough came back), now (when a client "
            "says so) or review (as idle, and a person approves). (default: record only)"
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="Device: auto, cpu, cuda or mps.")] = "auto",
    dtype: Annotated[str, typer.Option(help="Precision: auto, float32, bfloat16 or float16.")] = "auto",
    settings: Annotated[
        list[str] | None,
        argument("Settings of learning, such as pending=2 lr=1e-4 lora.rank=8; docs/cli.md lists them.", "KEY=VALUE"),
    ] = None,
) -> None:
    """Serve a model as an OpenAI-compatible endpoint. Every exchange is recorded before its answer is complete.

    Clients take the printed address as their base URL. `selfdistill journal` shows what was recorded.
    """
    import os

    token = token or os.environ.get("SELFDISTILL_TOKEN", "")
    from selfdistill.live.server import Server, check_exposed, is_loopback, run
    from selfdistill.plugins import import_extra

    check_exposed(host, token)
    if keep_days is not None and keep_days <= 0:
        raise ConfigError("--keep-days is above 0", got=keep_days, do="leave it out to keep all")
    for package in ("starlette", "uvicorn"):
        import_extra(package, "serve", "selfdistill serve")
    from selfdistill.live.engine import Engine
    from selfdistill.live.journal import Journal
    from selfdistill.live.learning import read_learning
    from selfdistill.live.retention import Retention
    from selfdistill.live.schedule import Schedule
    from selfdistill.live.service import Service
    from selfdistill.live.update import check_learning_fits
    from selfdistill.live.weights import Weights

    learning = read_learning(learn, settings or ())
    with Journal.serve(journal) as opened:
        weights = Weights(opened, device=device, dtype=dtype, progress=typer.echo)
        version, policy = weights.start(model)
        if learning:
            check_learning_fits(policy.name, learning, device, dtype)
        engine = Engine(policy, rows=rows, batch_tokens=batch_tokens)
        shown = name or Path(model).name or model
        service = Service(
            policy, engine, opened, version, name=shown, most=most_answers, max_tokens=max_tokens, thinking=thinking,
            weights=weights,
        )  # fmt: skip

        schedule = None
        if learning:
            schedule = Schedule(service, learning, device=device, dtype=dtype, thinking=thinking, say=typer.echo)
            service.learning = schedule

        def ready(url: str) -> None:
            typer.echo(f"{policy.description}; it reads {policy.context_length} tokens")
            typer.echo(f"serving {shown} at {url}, version {version.id}")
            typer.echo(f"journal: {journal.resolve()}, readable for you alone; it is not encrypted")
            if schedule:
                typer.echo(f"learning: {learn}; weights beside the journal, in {journal.name}.versions")
                schedule.start()
            if not engine.joins:
                typer.echo("this architecture keeps a state that cannot be batched: answers are sampled one by one")
            if is_loopback(host):
                guard = "with the token" if token else "without a token"
                typer.echo(f"exposed: to every program and user of this machine, {guard}")
            else:
                typer.echo(
                    f"WARNING: exposed to everyone who reaches {host} and has the token; the traffic is not encrypted"
                )
            typer.echo("Ctrl-C ends it")

        keeping = nullcontext() if keep_days is None else Retention(opened, keep_days, typer.echo)
        try:
            with keeping:
                run(Server(service, token=token, schedule=schedule), host, port, ready)
        finally:
            if schedule:
                schedule.close()
        typer.echo("ended; every answer that was complete is recorded")
