"""The commands. Their imports happen when they run: torch takes seconds, and `--help` should not."""

from __future__ import annotations

import os
import signal
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from selfdistill.cli import arguments as arg
from selfdistill.cli.arguments import as_overrides, flag, optional
from selfdistill.cli.check import check
from selfdistill.cli.compare import compare, compare_finished_runs
from selfdistill.cli.context_gain import print_context_gain
from selfdistill.cli.credit import credit
from selfdistill.cli.faces import chat, code
from selfdistill.cli.guard import Guarded
from selfdistill.cli.journal import app as journal
from selfdistill.cli.learn import learn
from selfdistill.cli.output import print_comparison, print_listing, print_notes, print_settings, print_table
from selfdistill.cli.serve import serve
from selfdistill.cli.solve import solve
from selfdistill.cli.view import view
from selfdistill.runs import Callback, Note, read_run
from selfdistill.runs.environment import package_version
from selfdistill.training.stopping import PARENT
from selfdistill.view.progress import RunDisplay

if TYPE_CHECKING:
    from selfdistill.config import RunConfig

app = typer.Typer(
    name="selfdistill",
    cls=Guarded,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.command()(chat)
app.command()(check)
app.command()(code)
app.command()(compare)
app.command()(credit)
app.command()(learn)
app.command()(serve)
app.command()(solve)
app.command()(view)
app.add_typer(journal, name="journal")


def main() -> None:
    """Runs the command line."""
    try:
        if PARENT in os.environ:  # the heavy imports are done before a signal may interrupt
            from selfdistill.training.side_by_side import attend

            attend()
        app()
    finally:
        # Another Ctrl-C, while torch clears up, ends the process without a traceback.
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def _version(shown: bool) -> None:
    if shown:
        typer.echo(f"selfdistill {package_version('selfdistill') or '(not installed)'}")
        raise typer.Exit


@app.callback()
def selfdistill(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Trains language models by self-distillation: a model with feedback in its context teaches itself."""


@app.command()
def train(
    overrides: arg.Overrides = None,
    config: arg.ConfigFile = None,
    model: arg.Model = None,
    method: arg.MethodName = None,
    env: arg.EnvName = None,
    data: arg.Data = None,
    eval_data: arg.EvalData = None,
    steps: arg.Steps = None,
    seed: arg.Seed = None,
    out: Annotated[str | None, optional("Run directory. (default: runs/<method>-<environment>-seed<seed>)")] = None,
    resume: Annotated[Path | None, optional("Run directory to resume, with its settings.")] = None,
    list_settings: Annotated[bool, flag("--list-settings", "Print all settings and exit.")] = False,
    plan: Annotated[bool, flag("--plan", "Print what the run needs and costs, and exit.")] = False,
    gpu: Annotated[
        str | None, optional("Device that --plan computes for, such as H100. (default: this machine's)")
    ] = None,
    answer_tokens: Annotated[
        int, optional("Mean tokens of an answer, for --plan. (default: as many as an answer may have)")
    ] = 0,
    ray: Annotated[
        str | None, optional("Ray cluster (host:port, or auto) that places learners and environment workers.")
    ] = None,
    track: arg.Track = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print notes and errors only.")] = False,
) -> None:
    """Train a model on the tasks of an environment; records and checkpoints go to a run directory.

    Options and KEY=VALUE pairs override --config, which overrides the defaults.
    """
    from selfdistill.config import from_settings, load_config, read_saved, resolved

    flags: dict[str, object] = {"model": model, "method": method, "env": env, "data": data, "eval_data": eval_data}
    flags |= {"steps": steps, "seed": seed, "out": out}
    flags |= {"out": str(resume)} if resume else {}
    saved = resolved(read_saved(resume, from_settings)) if resume else None
    settings = load_config(config, [*as_overrides(flags), *(overrides or ())], saved)
    if list_settings:
        _print_all_settings(settings)
        return
    if plan:
        from selfdistill.cli.plan import print_plan

        print_plan(settings, gpu, answer_tokens)
        return
    arg.refuse(arg.given({"gpu": gpu, "answer_tokens": answer_tokens or None}), "only --plan reads these options")
    from selfdistill.cli.on_ray import scored_on_ray, train_on_ray
    from selfdistill.training.callbacks import all_of, tracker
    from selfdistill.training.loop import train as run_training

    quiet |= os.environ.get("RANK", "0") != "0"  # of the ranks that torchrun starts, one reports
    trackers = [tracker(name) for name in track or ()]
    shown: AbstractContextManager[Callback] = nullcontext(print_notes) if quiet else RunDisplay(settings.method.name)
    with shown as display, all_of([display, *trackers], lambda text: display(Note(text))) as callback:
        if ray:
            path = train_on_ray(settings, ray, callback, resume=resume is not None)
        else:
            with scored_on_ray(settings, callback) as settings:
                path = run_training(settings, callback, resume=resume is not None)
    if not quiet:
        print_comparison([read_run(path)])


@app.command(name="eval")
def evaluate(
    overrides: arg.Overrides = None,
    config: arg.ConfigFile = None,
    model: arg.Model = None,
    env: arg.EnvName = None,
    data: arg.Data = None,
    eval_data: arg.EvalData = None,
    seed: arg.Seed = None,
    tasks: Annotated[int | None, optional("Most tasks of each split. (default: 200)")] = None,
    rollouts: Annotated[int | None, optional("Answers sampled per task. (default: 1; 4 with --teacher)")] = None,
    temperature: Annotated[
        float | None, optional("Sampling temperature; 0 is greedy. (default: 0; 1 with --teacher)")
    ] = None,
    out: Annotated[str | None, optional("Directory for records of the answers. (default: none are written)")] = None,
    teacher: Annotated[bool, flag("--teacher", "Measure the gain of accuracy with each kind of context.")] = False,
) -> None:
    """Measure a model's accuracy on the tasks of an environment."""
    from selfdistill.config import load_config

    flags: dict[str, object] = {"model": model, "env": env, "data": data, "eval_data": eval_data}
    flags |= {"seed": seed, "out": out, "evaluation.tasks": tasks}
    flags |= {"evaluation.rollouts": rollouts, "evaluation.temperature": temperature}
    given = [*as_overrides(flags), *(overrides or ())]
    if teacher:
        from selfdistill.analysis.context_gain import ANSWERS

        print_context_gain(load_config(config, given, base=ANSWERS))
        return
    settings = load_config(config, given)
    from selfdistill.training.evaluation import measure

    with RunDisplay("eval") as display:
        records = measure(settings, display)
    rows = []
    for record in records:
        found, solved = record.accuracy, f"{record.solved} of {record.tasks}"
        rows.append((record.split, f"{found.value:.4f}", f"{found.low:.4f} – {found.high:.4f}", str(found.n), solved))
    print_table(("tasks", "accuracy", "95 % interval", "answers", "solved"), rows)


@app.command()
def methods(
    name: Annotated[str | None, arg.argument("Method to describe, with its settings.")] = None,
) -> None:
    """List the training methods, or describe one with its settings."""
    from selfdistill.cli.method_table import print_method, print_methods
    from selfdistill.methods import METHODS, get_method

    if name is None:
        print_methods({key: get_method(key, {}) for key in METHODS})
    else:
        print_method(get_method(name, {}))


@app.command()
def envs(
    name: Annotated[str | None, arg.argument("Environment whose settings are listed.")] = None,
) -> None:
    """List the environments, or the settings of one."""
    from selfdistill.envs.registry import ENVIRONMENTS, environment_options

    if name is None:
        print_listing({key: entry.env.__doc__ or "" for key, entry in ENVIRONMENTS.items()})
    else:
        print_settings(environment_options(name, {}), prefix="env.")


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Directory for the runs and the plot.")] = Path("runs"),
    seed: Annotated[int, typer.Option(help="Seed of the coined verbs and of every random choice.")] = 0,
    completions: Annotated[int, typer.Option(help="Completions sampled by each method.")] = 2560,
    allow_weaker: Annotated[
        bool, flag("--allow-weaker", "Run sampled programs even if this machine cannot isolate them fully.")
    ] = False,
) -> None:
    """Train the embedded model on sixteen coined verbs by SDPO and by GRPO, side by side, in minutes."""
    from selfdistill.training.side_by_side import compare as run_side_by_side
    from selfdistill.training.side_by_side import demo_configs

    configs = demo_configs(out, seed=seed, completions=completions, allow_weaker=allow_weaker)
    with RunDisplay() as display:
        paths = run_side_by_side(configs, display)
    compare_finished_runs(paths, paths[0].parent / "demo.png")
    for path in paths:
        typer.echo(f"run:  {path}")


def _print_all_settings(settings: RunConfig) -> None:
    """Settings of the run, its method and its environment."""
    from selfdistill.envs.registry import ENVIRONMENTS, environment_options
    from selfdistill.methods import get_method

    print_settings(settings)
    print_settings(get_method(settings.method.name, settings.method.options), prefix="method.")
    if settings.env.name in ENVIRONMENTS:
        print_settings(environment_options(settings.env.name, settings.env.options), prefix="env.")
