"""`tools/peers.py` installs what is missing, tries again, and tells what it could not do."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tools import peers

pytestmark = pytest.mark.skipif(os.name == "nt", reason="apt-get and npm are played by shell scripts")
APT = """#!/bin/sh
echo "apt-get $*" >> "$FOLDER/calls"
case "$*" in
*update*) exit 0;;
*install*)
    for word in "$@"; do last=$word; done
    test -e "$FOLDER/failed" || { touch "$FOLDER/failed"; echo "a mirror is down"; exit 100; }
    for name in $INSTALLS; do printf '#!/bin/sh\n' > "$FOLDER/$name"; chmod +x "$FOLDER/$name"; done;;
esac
"""
NPM = """#!/bin/sh
echo "npm $*" >> "$FOLDER/calls"
test -e "$FOLDER/tried" || { touch "$FOLDER/tried"; exit 1; }
mkdir -p node_modules/playwright-core
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A PATH with nothing but what the test puts there; root, and no waiting between two tries."""
    for name in ("touch", "chmod", "env", "mkdir", "sh"):
        (tmp_path / name).symlink_to(f"/bin/{name}" if Path(f"/bin/{name}").exists() else f"/usr/bin/{name}")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("FOLDER", str(tmp_path))
    monkeypatch.setenv("INSTALLS", "chromium nginx node npm")
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setattr(peers, "PAUSE", 0.0)
    monkeypatch.setattr(peers, "NODE", tmp_path / "packages")
    monkeypatch.setattr(peers, "as_root", lambda: ())
    return tmp_path


def script(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(text, encoding="utf-8")
    (folder / name).chmod(0o755)


def calls(folder: Path) -> list[str]:
    return [line.split(" ")[0] + " " + line.rsplit(" ", 1)[-1] for line in (folder / "calls").read_text().splitlines()]


def test_it_updates_then_installs_and_tries_again(here: Path) -> None:
    script(here, "apt-get", APT)
    assert peers.missing() == ["chromium", "nginx", "nodejs", "npm"]
    assert peers.debian() is None
    assert calls(here) == ["apt-get -qq", "apt-get npm", "apt-get npm"]
    assert peers.debian() is None  # everything is there: nobody is asked
    assert len(calls(here)) == 3


def test_what_apt_cannot_install_is_named(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script(here, "apt-get", APT)
    monkeypatch.setenv("INSTALLS", "chromium node npm")
    fault = peers.debian()
    assert fault is not None and "could not install nginx" in fault and "chromium" not in fault


def test_who_is_not_root_is_told_the_command(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "no apt-get here" in str(peers.debian())
    script(here, "apt-get", APT)
    monkeypatch.setattr(peers, "as_root", lambda: None)
    assert "apt-get install chromium nginx nodejs npm" in str(peers.debian())
    assert not (here / "calls").exists()


def test_npm_packages_are_installed_once(here: Path) -> None:
    assert "no npm" in str(peers.npm())
    script(here, "npm", NPM)
    assert peers.npm() is None and peers.npm() is None
    assert [line.split(" ")[0] for line in calls(here)] == ["npm", "npm"]  # the first one failed
    assert (here / "packages" / "node_modules" / "playwright-core").is_dir()


@pytest.mark.parametrize("ci", ["", "true"])
def test_what_is_missing_fails_with_ci_set(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], ci: str
) -> None:
    monkeypatch.setenv("CI", ci)
    assert peers.main() == (1 if ci else 0)
    assert "no apt-get here" in capsys.readouterr().err


@pytest.mark.parametrize("ci", ["", "true"])
def test_a_skip_is_a_failure_with_ci_set(tmp_path: Path, ci: str) -> None:
    plugin = Path(__file__).parent / "peers" / "conftest.py"
    (tmp_path / "conftest.py").write_text(plugin.read_text(encoding="utf-8"), encoding="utf-8")
    missing = "pytest.importorskip('no_such_peer')"
    (tmp_path / "test_in.py").write_text(f"import pytest\ndef test(): {missing}\n", encoding="utf-8")
    (tmp_path / "test_whole.py").write_text(f"import pytest\n{missing}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-rs", str(tmp_path)]
    environment = {**os.environ, "CI": ci, "PYTHONPATH": str(peers.ROOT)}
    asked = {"cwd": tmp_path, "env": environment, "capture_output": True, "text": True, "timeout": 50}
    done = subprocess.run(command, check=False, **asked)
    told = [word in done.stdout for word in ("2 skipped", "CI is set: Skipped: could not import 'no_such_peer'")]
    assert told == ([False, True] if ci else [True, False]), done.stdout
    assert bool(done.returncode) is bool(ci)
