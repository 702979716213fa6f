"""Runs an example with a clock that stands still and counted ids, and writes the events of its apps as JSON lines:
``python -m tests.recorded EXAMPLE FILE``.
"""

from __future__ import annotations

import contextlib
import itertools
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from tests.support import StillClock
from weavegraph import App, EndOfStream, Event, EventStream, GraphBuilder, RuntimeConfig


def record(example: Path) -> list[bytes]:
    """Every event of every app that the example compiles, app by app."""
    streams: list[EventStream] = []
    compiled = GraphBuilder.compile

    def still(builder: GraphBuilder[Any, Any], config: RuntimeConfig | None = None) -> App[Any]:
        count = itertools.count(1)
        chosen = config or builder._config
        chosen = msgspec.structs.replace(chosen, clock=StillClock(), ids=lambda kind: f"{kind}-{next(count)}")
        app = compiled(builder, chosen)
        streams.append(app.event_bus.subscribe(capacity=100_000))
        return app

    GraphBuilder.compile = still  # type: ignore[method-assign]
    runpy.run_path(str(example), run_name="__main__")
    return [event.to_json() for stream in streams for event in _read(stream)]


def _read(stream: EventStream) -> Iterator[Event]:
    with stream, contextlib.suppress(EndOfStream):
        while (event := stream.try_recv()) is not None:
            yield event


if __name__ == "__main__":
    Path(sys.argv[2]).write_bytes(b"".join(line + b"\n" for line in record(Path(sys.argv[1]))))
