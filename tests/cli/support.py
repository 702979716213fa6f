"""The real command, as a process; and on a terminal."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
FLOWS = "tests.cli.flows"
COMMAND = [sys.executable, "-m", "weavegraph"]
PATIENCE = 25.0


class Done(NamedTuple):
    code: int
    out: str
    err: str


def environment(**more: str) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "FORCE_COLOR", "COLUMNS")}
    path = os.pathsep.join((str(ROOT / "src"), str(ROOT)))
    return {**kept, "PYTHONPATH": path, "TZ": "UTC", "PYTHONWARNINGS": "error::ResourceWarning", **more}


def cli(*words: str, cwd: Path, stdin: bytes = b"", **env: str) -> Done:
    """Run a command to its end."""
    done = subprocess.run(
        [*COMMAND, *words], cwd=cwd, input=stdin, capture_output=True, env=environment(**env), timeout=PATIENCE
    )
    return Done(done.returncode, done.stdout.decode(), done.stderr.decode())


@contextlib.contextmanager
def started(*words: str, cwd: Path, env: dict[str, str] | None = None, **options: Any) -> Iterator[Any]:
    """A command that is running; killed if it still is at the end of the block."""
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    process = subprocess.Popen([*COMMAND, *words], cwd=cwd, env=environment(**(env or {})), **options)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(PATIENCE)
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()


def read_until(process: Any, wanted: str) -> str:
    """What a running command wrote, up to where ``wanted`` stands in it."""
    found, deadline = b"", time.monotonic() + PATIENCE
    while wanted.encode() not in found:
        assert select.select([process.stdout], [], [], max(deadline - time.monotonic(), 0))[0], found.decode()
        piece = os.read(process.stdout.fileno(), 65536)
        assert piece, found.decode() + process.stderr.read().decode()
        found += piece
    return found.decode()


def finished(process: Any) -> Done:
    """The rest of a running command."""
    out, err = process.communicate(timeout=PATIENCE)
    return Done(process.returncode, out.decode(), err.decode())


class Terminal:
    """A command on a terminal of its own."""

    def __init__(self, *words: str, cwd: Path, columns: int = 80, **env: str) -> None:
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        environ = environment(TERM="xterm-256color", **env) if "TERM" not in env else environment(**env)
        self._fd = ours
        self.process = subprocess.Popen(
            [*COMMAND, *words], cwd=cwd, stdin=theirs, stdout=theirs, stderr=theirs, env=environ, start_new_session=True
        )
        os.close(theirs)
        self.seen = ""

    def read_until(self, wanted: str) -> str:
        deadline = time.monotonic() + PATIENCE
        while wanted not in self.seen:
            assert self._read(deadline), self.seen
        return self.seen

    def to_the_end(self) -> Done:
        deadline = time.monotonic() + PATIENCE
        while self._read(deadline):
            pass
        code = self.process.wait(PATIENCE)
        os.close(self._fd)
        return Done(code, self.seen.replace("\r\n", "\n"), "")

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def _read(self, deadline: float) -> bool:
        assert select.select([self._fd], [], [], max(deadline - time.monotonic(), 0))[0], self.seen
        try:
            piece = os.read(self._fd, 65536)
        except OSError:  # the other end is closed
            return False
        self.seen += piece.decode()
        return bool(piece)


def normal(text: str) -> str:
    """Output without what differs from run to run: ids, times, durations."""
    text = re.sub(r"\b[0-9a-f]{32}\b", "<id>", text)
    text = re.sub(r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d(\.\d+)?(Z|\+00:00)?|\b\d\d-\d\d \d\d:\d\d:\d\d", "<time>", text)
    text = re.sub(r"\b\d\d:\d\d:\d\d\b", "<time>", text)
    text = re.sub(r"\b(\d+(\.\d)? ms|\d+\.\d s)\b", "<duration>", text)
    return text.replace(str(ROOT), "<root>")


def golden(name: str, text: str) -> None:
    """Compare with the file of that name; ``GOLDEN=write`` writes it."""
    path = Path(__file__).parent / "golden" / name
    text = normal(text)
    if os.environ.get("GOLDEN") == "write":
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")
