"""The commands and their words. What each does is in a file of its own, imported when it is used."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import typer

from weavegraph.cli._screen import Screen, plain, say
from weavegraph.errors import (
    CompileError,
    ConfigError,
    EmitterError,
    InsecureBindError,
    InvalidPositionError,
    SessionError,
    StateError,
    WeavegraphError,
)

__all__ = ["command"]

_USAGE = (CompileError, ConfigError, EmitterError, InsecureBindError, InvalidPositionError, SessionError, StateError)
"""Errors of who wrote the command; anything else went wrong while it was carried out."""
_Fault: Any = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Run graph workflows, and watch them: live, after a crash, again later.",
)

AppName = Annotated[str, typer.Argument(metavar="MODULE:APP", help="shop.flows:app, or flows.py:app")]
LogUrl = Annotated[str, typer.Argument(metavar="URL", help="of the log, as in sqlite:runs.db or redis://host/0")]
RunName = Annotated[str | None, typer.Argument(metavar="RUN", help="id, or its beginning; default: the newest")]
AsJson = Annotated[bool, typer.Option("--json", help="one line of JSON each")]
After = Annotated[int, typer.Option("--after", metavar="N", min=0, help="only what comes after position N")]
Kinds = Annotated[list[str], typer.Option("--kind", metavar="KIND", help="node, diagnostic or llm; again for more")]
Scopes = Annotated[
    list[str], typer.Option("--scope", metavar="SCOPE", help="a scope, or a beginning and *; again for more")
]
NodePath = Annotated[
    str | None, typer.Option("--path", metavar="NODE", help="a node, or what is inside it: outer/inner")
]
Drawing = Literal["mermaid", "dot", "ascii"]
LogOption = Annotated[str | None, typer.Option("--log", metavar="URL", help="keep the events, as in sqlite:runs.db")]
CheckpointOption = Annotated[
    str | None, typer.Option("--checkpointer", metavar="URL", help="keep each step, as in sqlite:runs.db")
]


@app.callback()
def _about() -> None:
    pass


@app.command()
def run(
    module_app: AppName,
    given: Annotated[
        str | None, typer.Argument(metavar="INPUT", help="the input as JSON, @FILE, or - for standard input")
    ] = None,
    session: Annotated[str | None, typer.Option("--session", metavar="ID", help="go on with what it holds")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="go on with the session's open run; INPUT answers its question")
    ] = False,
    log: LogOption = None,
    checkpointer: CheckpointOption = None,
    events: Annotated[
        Literal["text", "jsonl"], typer.Option("--events", help="jsonl: one line of JSON each, as --json")
    ] = "text",
    json: AsJson = False,
) -> int:
    """Run an app: its events as they come, then its final state.

    Exit codes: 0 completed, 1 failed, 3 paused with a question, 130 Ctrl-C, 143 SIGTERM.
    """
    from weavegraph.cli import _load, _run

    value = _load.input_of(given)
    loaded = _load.load_app(module_app, log=log, checkpointer=checkpointer)
    return _run.run(loaded, value, session=session, resume=resume, as_json=json or events == "jsonl")


@app.command()
def tail(
    url: LogUrl,
    run: RunName = None,
    after: After = 0,
    kind: Kinds = [],  # noqa: B006
    scope: Scopes = [],  # noqa: B006
    path: NodePath = None,
    json: AsJson = False,
) -> int:
    """Watch a run from any process, through crashes and resumes; ends when the run is over."""
    from weavegraph.cli import _load, _tail

    wanted = _load.filter_of(kind, scope, path)
    return _until_told(lambda: _tail.tail(url, run, after=after, wanted=wanted, as_json=json))


@app.command()
def runs(
    url: LogUrl,
    limit: Annotated[int, typer.Option("--limit", metavar="N", min=1, max=100_000, help="at most so many")] = 20,
    json: AsJson = False,
) -> int:
    """List the runs in a log, newest first."""
    from weavegraph.cli import _runs

    return _until_told(lambda: _runs.runs(url, limit=limit, as_json=json))


@app.command()
def replay(
    url: LogUrl,
    run: RunName = None,
    speed: Annotated[
        str, typer.Option("--speed", metavar="SPEED", help="2x: twice as fast; max: without resting")
    ] = "1x",
    after: After = 0,
    kind: Kinds = [],  # noqa: B006
    scope: Scopes = [],  # noqa: B006
    path: NodePath = None,
    json: AsJson = False,
) -> int:
    """Show a run again, at the pace at which it happened."""
    from weavegraph.cli import _load, _tail

    wanted, pace = _load.filter_of(kind, scope, path), _tail.speed_of(speed)
    return _until_told(lambda: _tail.replay(url, run, speed=pace, after=after, wanted=wanted, as_json=json))


@app.command()
def diff(
    a: Annotated[str, typer.Argument(metavar="A", help="URL#RUN, or a file of JSON Lines")],
    b: Annotated[str, typer.Argument(metavar="B", help="the other one")],
    profile: Annotated[
        Literal["strict", "default", "order"],
        typer.Option("--profile", help="strict: everything counts; order: not how parallel nodes took turns"),
    ] = "default",
) -> int:
    """Compare two runs, events and final states. Exit code 1 when they differ."""
    from weavegraph.cli import _diff

    return _until_told(lambda: _diff.diff(a, b, profile=profile))


@app.command()
def graph(
    module_app: AppName,
    format: Annotated[Drawing, typer.Option("--format", help="ascii is read as it is")] = "mermaid",
) -> int:
    """Draw an app's graph: as a Mermaid flowchart, in the DOT language, or as lines of ASCII."""
    from weavegraph.cli import _load

    loaded = _load.load_app(module_app)
    drawing = {"mermaid": loaded.to_mermaid, "dot": loaded.to_dot, "ascii": loaded.to_ascii}[format]()
    screen = Screen.out()
    for line in drawing.rstrip("\n").split("\n"):
        screen.line(plain(line))
    return 0


logs = typer.Typer(rich_markup_mode=None, help="Copy runs from one log to another.")
app.add_typer(logs, name="log")


@logs.callback()
def _about_logs() -> None:
    pass


@logs.command()
def copy(
    source: Annotated[str, typer.Argument(metavar="FROM", help="URL of the log to copy from")],
    target: Annotated[str, typer.Argument(metavar="TO", help="URL of the log to copy to; an sqlite: file may be new")],
    run: Annotated[list[str], typer.Argument(metavar="RUN", help="ids, or their beginnings; default: all runs")] = [],  # noqa: B006
) -> int:
    """Copy runs to another log: nothing is lost, nothing comes twice, and doing it again copies what is new.

    Exit codes: 0 all copied, 1 a run was refused or a log is away, 130 Ctrl-C; what was copied stays.
    """
    from weavegraph.cli import _copy

    return _until_told(lambda: _copy.copy(source, target, run))


@app.command()
def dead_letters(
    url: Annotated[str, typer.Argument(metavar="URL", help="of the log that was shipped from, as in sqlite:runs.db")],
    letter: Annotated[
        list[int], typer.Argument(metavar="ID", help="show these whole, or do with them what an option says")
    ] = [],  # noqa: B006
    resend: Annotated[
        str | None, typer.Option("--resend", metavar="SINK", help="give them to a sink, as in redis://host/0")
    ] = None,
    drop: Annotated[bool, typer.Option("--drop", help="forget them")] = False,
    every: Annotated[bool, typer.Option("--all", help="with --resend or --drop: all of them")] = False,
    outbox: Annotated[str | None, typer.Option("--outbox", metavar="NAME", help="only those of this outbox")] = None,
    json: AsJson = False,
) -> int:
    """List what could not be delivered; send it again, or drop it.

    These are events that an outbox gave up, beside the log that it ships from. What a sink takes is dropped here.
    Exit codes: 0 done, 1 some letters are left, 2 wrong words.
    """
    from weavegraph.cli import _letters

    return _until_told(
        lambda: _letters.letters(url, letter, every=every, resend=resend, drop=drop, outbox=outbox, as_json=json)
    )


@app.command()
def serve(
    module_app: AppName,
    log: LogOption = None,
    checkpointer: CheckpointOption = None,
    host: Annotated[str, typer.Option("--host", metavar="HOST")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", metavar="PORT", min=0, max=65535)] = 8000,
    token: Annotated[
        str | None, typer.Option("--token", metavar="TOKEN", envvar="WEAVEGRAPH_TOKEN", help="what callers must show")
    ] = None,
) -> int:
    """Serve an app to browsers and other programs."""
    from weavegraph.cli import _load, _serve

    return _serve.serve(
        _load.load_app(module_app, log=log, checkpointer=checkpointer), host=host, port=port, token=token
    )


@app.command(context_settings={"ignore_unknown_options": True, "allow_extra_args": True}, add_help_option=False)
def demo(context: typer.Context) -> int:
    """A digest of a text file, watched from seven places at once.  [FILE] [OPTIONS]; demo --help shows them."""
    from weavegraph.demo import main

    return main(list(context.args))


# ── around them ─────────────────────────────────────────────────────────────────────────────────────


def command(arguments: Sequence[str] | None = None) -> int:
    """Carry out one command; its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        code = typer.main.get_command(app).main(words or ["--help"], prog_name="weavegraph", standalone_mode=False)
        sys.stdout.flush()
        return int(code or 0)
    except (BrokenPipeError, ConnectionResetError):
        return _pipe_closed()
    except KeyboardInterrupt:
        return 130
    except SystemExit as exc:
        if isinstance(exc.__context__, OSError):  # typer's own answer to a broken pipe
            return _pipe_closed()
        return exc.code if isinstance(exc.code, int) else 1  # of argparse, in the demo
    except _Fault as exc:
        context = getattr(exc, "ctx", None)
        where = context.command_path if context is not None else "weavegraph"
        say(f"{where}: {exc.format_message().rstrip('.')}; see {where} --help")
        return 2
    except WeavegraphError as exc:
        say(f"weavegraph: {exc}")
        return 2 if isinstance(exc, _USAGE) else 1


def _until_told(work: Any) -> int:
    from weavegraph.cli._signals import until_told

    return until_told(work)


def _pipe_closed() -> int:
    """Nobody reads any more: end like others do, without a word, also from the interpreter's own flush at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 141
