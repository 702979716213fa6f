"""One word per job: sets up `.venv` when it has to, then runs the job in it. Standard library only.

The set-up installs `requirements.lock` (hashes checked) and this checkout, editable; jobs that compare with other
libraries have `.venv-peers` and `requirements-peers.lock`. A stamp in the environment holds a
hash of pyproject.toml, requirements.lock and the Python version, so it happens again only when one of them changed.
An interrupted set-up leaves no valid stamp, and the next run starts it afresh. Of two at once, one waits for the other.

WEAVEGRAPH_VENV names another place for the environment (that of the peers gets `-peers` appended). `uv` is used when
it is on PATH, else the environment's pip.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
UNFINISHED = "unfinished"
PATIENCE = 10.0  # seconds a child may use to end by itself after Ctrl-C, before it is terminated

CAMPAIGNS = ("crash_", "web_campaign", "broker_campaign")

JOBS = {
    "setup": "make the environment, nothing else",
    "test": "run the tests (arguments go to pytest)",
    "demo": "run the demo (arguments go to it)",
    "lint": "ruff",
    "types": "mypy over src; mypy and basedpyright over tests/typing",
    "clauses": "clauses of the contract without a test",
    "bench": "run the benchmarks",
    "bench-peers": "run them beside other libraries, in an environment of their own",
    "test-peers": "install other libraries, Chromium, nginx and npm packages, and run the tests that need them",
    "docs": "build the documentation; warnings are errors",
    "faults": "plant faults in the source; the tests must notice each",
    "stress": "repeat the tests of threads and races for long",
    "campaign": "a long campaign, ARGS='web_campaign clients --count 10000'; the ledgers in docs/ name them all",
    "schema": "write the schemas of an event",
    "coverage": "the files listed in pyproject.toml are covered in full",
    "changelog": "print what the fragments in changes/ say",
    "lock": "resolve requirements.lock anew (needs uv)",
    "all": "lint, types, clauses, test, coverage; stops at the first failure",
}


class Environment(NamedTuple):
    """Where packages are installed, and which."""

    suffix: str = ""

    @property
    def venv(self) -> Path:
        return Path(f"{os.environ.get('WEAVEGRAPH_VENV') or ROOT / '.venv'}{self.suffix}").absolute()

    @property
    def python(self) -> Path:
        return self.venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python")

    @property
    def stamp(self) -> Path:
        return self.venv / ".weavegraph-setup"

    @property
    def lock(self) -> Path:
        return ROOT / f"requirements{self.suffix}.lock"


OWN, PEERS = Environment(), Environment("-peers")


class Refusal(Exception):
    """Ends the command with this sentence and exit code 2."""


def main(argv: list[str]) -> int:
    if sys.version_info < (3, 11):  # noqa: UP036 - reached where pyproject.toml has no say
        raise Refusal(
            f"weavegraph needs Python 3.11 or newer; {sys.executable} is {sys.version.split()[0]}. "
            "Name another with: make PYTHON=python3.12 …"
        )
    if not argv or argv[0] in ("-h", "--help", "help"):
        print("usage: python tools/bootstrap.py JOB [ARGUMENTS]   or   make JOB ARGS='…'\n")
        print("\n".join(f"  {job:<10} {what}" for job, what in JOBS.items()))
        return 0
    job, *args = argv
    if job not in JOBS:
        raise Refusal(f"unknown job {job!r}; known are: {', '.join(JOBS)}")
    if job == "lock":
        return lock(args)
    environment = PEERS if job.endswith("-peers") else OWN
    set_up(environment)
    if job == "all":
        for part in ("lint", "types", "clauses", "test", "coverage"):
            print(f"── {part}", flush=True)
            if code := run_job(environment, part, []):
                return code
        return 0
    return run_job(environment, job, args)


def run_job(environment: Environment, job: str, args: list[str]) -> int:
    for command in commands(job, args):
        if code := call([str(environment.python), *command]):
            return code
    return 0


def commands(job: str, args: list[str]) -> list[list[str]]:
    """What a job runs with the environment's Python, one after the other until one fails."""
    if job == "setup":
        return []
    if job == "test":
        return [["-m", "pytest", "-n", "2", "-q", "--ignore=tests/peers", *args]]
    if job == "demo":
        return [["-m", "weavegraph.demo", *args]]
    if job == "lint":
        there = [name for name in ("src", "tests", "tools", "benchmarks", "examples") if (ROOT / name).exists()]
        return [["-m", "ruff", "check", *there, *args]]
    if job == "types":
        usage = "tests/typing"
        checks = [["-m", "mypy", "src", *args]]
        if any((ROOT / usage).glob("*.py")):
            checks += [["-m", "mypy", usage, *args], ["-m", "basedpyright", usage]]
        return checks
    if job == "bench":
        return [["-m", "benchmarks", *args]]
    if job == "bench-peers":
        return [["-m", "benchmarks", "--peers", *args]]
    if job == "test-peers":
        return [["tools/peers.py"], ["-m", "pytest", "-q", "-rs", "tests/peers", *args]]
    if job == "docs":
        return [["-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", "docs", "out/docs", *args]]
    if job == "campaign":
        known = sorted(path.stem for path in (ROOT / "tools").glob("*.py") if path.stem.startswith(CAMPAIGNS))
        if not args or args[0] not in known:
            raise Refusal(f"name a campaign and what it should do: {', '.join(known)}; for example: crash_runs kill")
        return [[f"tools/{args[0]}.py", *args[1:]]]
    if job == "schema":
        return [["-m", "weavegraph.events.schema", *args]]
    if job == "coverage":
        files = full_coverage()
        tests = ["pytest", "tests/bus", "tests/events", "tests/contract", "-q", "-p", "no:xdist", *args]
        return [
            ["-m", "coverage", "run", "--branch", "-m", *tests],
            ["-m", "coverage", "report", f"--include={','.join(files)}", "--fail-under=100"],
        ]
    if not (ROOT / "tools" / f"{job}.py").exists():
        raise Refusal(f"tools/{job}.py is not written yet")
    return [[f"tools/{job}.py", *args]]


def full_coverage() -> list[str]:
    import tomllib

    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    files: list[str] = settings["tool"]["weavegraph"]["full_coverage"]
    absent = [name for name in files if not (ROOT / name).is_file()]
    if absent:
        raise Refusal(f"[tool.weavegraph] full_coverage in pyproject.toml names no file: {', '.join(absent)}")
    return files


def set_up(environment: Environment) -> None:
    wanted = fingerprint(environment)
    if stamp(environment) != wanted or not environment.python.exists():
        with alone(environment):
            if stamp(environment) != wanted or not environment.python.exists():  # else the one we waited for did it
                prepare(environment, stamp(environment), wanted)


def stamp(environment: Environment) -> str:
    return environment.stamp.read_text(encoding="utf-8") if environment.stamp.is_file() else ""


@contextlib.contextmanager
def alone(environment: Environment) -> Iterator[None]:
    """Waits for another set-up of the same environment. A lock of the system's, which a killed holder cannot leave."""
    place = environment.venv
    place.parent.mkdir(parents=True, exist_ok=True)
    with (place.parent / f"{place.name}.lock").open("a+b") as file:
        if not taken(file):
            print(f"another set-up of {place} is running; waiting for it", file=sys.stderr, flush=True)
            while not taken(file):
                time.sleep(0.2)
        yield


def taken(file: IO[bytes]) -> bool:
    """Whether the file is locked for us now; closing it gives the lock back."""
    try:
        if os.name == "nt":
            import msvcrt

            file.seek(0)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # what POSIX and what Windows say of a lock held elsewhere
        return False
    return True


def prepare(environment: Environment, found: str, wanted: str) -> None:
    how_long = "some minutes" if environment is PEERS else "about a minute"
    print(f"setting up {environment.venv.name}; the first run takes {how_long}", file=sys.stderr, flush=True)
    uv = shutil.which("uv")
    if found == UNFINISHED or venv_version(environment) != wanted.partition(" ")[0] or not (uv or has_pip(environment)):
        make_venv(environment, with_pip=uv is None)  # else only what is installed may differ
    environment.stamp.write_text(UNFINISHED, encoding="utf-8")
    if uv:
        install = [uv, "pip", "install", "-q", "--python", str(environment.python)]
    else:
        install = [str(environment.python), "-m", "pip", "install", "-q", "-q"]
    locked = [*install, "--require-hashes", "-r", str(environment.lock)]
    if call(locked):
        print("that failed; trying once more, in case it was the network", file=sys.stderr, flush=True)
        must(locked, f"installing {environment.lock.name}")
    must([*install, "--no-deps", "--no-build-isolation", "-e", str(ROOT)], "installing this checkout")
    environment.stamp.write_text(wanted, encoding="utf-8")


def fingerprint(environment: Environment) -> str:
    """The Python version, a space, and a hash of what decides which packages are installed."""
    content = hashlib.sha256()
    for path in (ROOT / "pyproject.toml", environment.lock):
        content.update(path.read_bytes() + b"\0")
    content.update(os.fsencode(ROOT))  # the editable install points here
    return f"{sys.version_info[0]}.{sys.version_info[1]}.{sys.version_info[2]} {content.hexdigest()}"


def venv_version(environment: Environment) -> str | None:
    """The Python version of the environment, also of one that another tool made; None where there is none."""
    configuration = environment.venv / "pyvenv.cfg"
    if not (configuration.is_file() and environment.python.exists()):
        return None
    entries = (line.partition("=") for line in configuration.read_text(encoding="utf-8").splitlines())
    found = {key.strip(): value.strip() for key, _, value in entries}
    return found.get("version") or found.get("version_info")


def has_pip(environment: Environment) -> bool:
    command = [str(environment.python), "-c", "import pip"]
    return subprocess.run(command, stderr=subprocess.DEVNULL, check=False).returncode == 0


def make_venv(environment: Environment, with_pip: bool) -> None:
    place = environment.venv
    if with_pip and importlib.util.find_spec("ensurepip") is None:
        raise Refusal(
            f"{sys.executable} comes without ensurepip, so it cannot make an environment with pip. "
            "On Debian and Ubuntu: apt install python3-venv. Or install uv, which needs no pip."
        )
    if place.exists() and any(place.iterdir()):
        if not environment.stamp.is_file():
            raise Refusal(
                f"{place} was not made by this command and cannot be used as it is. "
                "Delete it, or set WEAVEGRAPH_VENV to another directory."
            )
        shutil.rmtree(place)
    place.mkdir(parents=True, exist_ok=True)
    environment.stamp.write_text(UNFINISHED, encoding="utf-8")  # first, so that an interrupted set-up is known as ours
    try:  # in this process, so that Ctrl-C ends without a child's traceback
        venv.create(place, symlinks=os.name != "nt", with_pip=with_pip)
    except (OSError, subprocess.CalledProcessError) as error:
        raise Refusal(f"making the environment in {place} failed: {error}") from error


def must(command: list[str], what: str) -> None:
    if code := call(command):
        raise Refusal(f"{what} failed (exit code {code}); the reason stands above. The next run starts it again.")


def lock(args: list[str]) -> int:
    uv = shutil.which("uv")
    if uv is None:
        raise Refusal("resolving the locks needs uv on PATH: pip install uv")
    flags = "-q --universal --python-version 3.11 --no-emit-index-url --no-header --no-annotate --generate-hashes"
    for environment, groups in ((OWN, ("dev",)), (PEERS, ("dev", "peers"))):
        chosen = [word for group in groups for word in ("--group", group)]
        code = call([uv, "pip", "compile", *flags.split(), *chosen, "--all-extras", *args,
                     "pyproject.toml", "-o", environment.lock.name])  # fmt: skip
        if code:
            return code
        if "://" in environment.lock.read_text(encoding="utf-8"):
            raise Refusal(f"{environment.lock.name} records an address; it must name packages and hashes only")
    return 0


def call(command: list[str]) -> int:
    """Runs the command in the checkout and gives its exit code.

    Ctrl-C reaches the child from the terminal; we wait for it to end by itself, then end with 130.
    SIGTERM is passed on.
    """
    environment = {**os.environ, "UV_PYTHON_DOWNLOADS": "never", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    child = subprocess.Popen(command, cwd=ROOT, env=environment)
    before = signal.signal(signal.SIGTERM, lambda *_: child.terminate())
    try:
        code = child.wait()
    except KeyboardInterrupt:
        end_child(child)
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
    return code if code >= 0 else 128 - code


def end_child(child: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + PATIENCE
    while child.poll() is None:
        try:
            child.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            child.terminate()
            deadline = time.monotonic() + PATIENCE
        except KeyboardInterrupt:
            child.terminate()


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except Refusal as refusal:
        print(f"error: {refusal}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
