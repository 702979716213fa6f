"""``weavegraph serve``: the app behind it is tested with the web package; here is what the command adds."""

from __future__ import annotations

import signal
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tests.cli.support import FLOWS, finished, read_until, started
from tests.support import clause


@clause("8.sigterm")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_serves_until_a_signal(tmp_path: Path, number: signal.Signals) -> None:
    words = ("serve", f"{FLOWS}:app", "--port", "0", "--log", "sqlite:r.db")
    with started(
        *words, cwd=tmp_path, env={"WEAVEGRAPH_TOKEN": "secret-of-the-test", "PYTHONUNBUFFERED": "1"}
    ) as process:
        said = read_until(process, "/\n")
        port = int(said.rsplit(":", 1)[1].rstrip("/\n"))
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/runs", timeout=10)
        assert refused.value.code == 401
        refused.value.close()
        process.send_signal(number)
        done = finished(process)
    assert done.code in (0, 128 + number, -number)
    assert "Traceback" not in done.err and "secret-of-the-test" not in done.out + done.err
