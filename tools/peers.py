"""What tests/peers needs beside Python: Chromium, nginx, and Node.js with a few packages. `make test-peers` runs this.

Debian's packages come by apt-get, as root or through a sudo that asks nothing; the npm packages of
tests/peers/package.json go into the Python environment. What is there is left as it is. What cannot be had is told
with the command to give, and its tests are skipped; with CI set both are failures. Standard library only.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROGRAMS = {"chromium": "chromium", "nginx": "nginx", "node": "nodejs", "npm": "npm"}
"""Each program, and the Debian package that has it."""
WANTED = ROOT / "tests" / "peers" / "package.json"
NODE = Path(sys.prefix) / "npm"
"""Where the npm packages are: ``node_modules`` in it."""
TRIES, PAUSE, LIMIT = 3, 5.0, 900.0  # of a command that asks a registry; seconds
APT = ("apt-get", "-o", "Acquire::Retries=3", "-o", "DPkg::Lock::Timeout=300")


def main() -> int:
    faults = [fault for fault in (debian(), npm()) if fault]
    for fault in faults:
        print(f"tests/peers: {fault}", file=sys.stderr, flush=True)
    return 1 if faults and in_ci() else 0


def in_ci() -> bool:
    return bool(os.environ.get("CI"))


def debian() -> str | None:
    """Install the programs that are missing; what stood in the way."""
    packages = missing()
    if not packages:
        return None
    by_hand = f"apt-get install {' '.join(packages)}"
    if shutil.which("apt-get") is None:
        return f"there is no apt-get here; install in your system's way what Debian calls {', '.join(packages)}"
    way = as_root()
    if way is None:
        return f"only root may install packages; give yourself: {by_hand}"
    print(f"tests/peers: {by_hand}", file=sys.stderr, flush=True)
    once_more([*way, *APT, "update", "-qq"])  # what it could not bring may be known already
    install = ("install", "-y", "-qq", "--no-install-recommends")
    tail = once_more([*way, "env", "DEBIAN_FRONTEND=noninteractive", *APT, *install, *packages])
    left = missing()
    return f"apt-get could not install {', '.join(left)}:\n{tail}" if left else None


def as_root() -> tuple[str, ...] | None:
    """What stands before a command of root's; ``None`` where there is no way."""
    if os.geteuid() == 0:
        return ()
    sudo = ("sudo", "-n")
    asked = subprocess.run([*sudo, "true"], capture_output=True, check=False) if shutil.which("sudo") else None
    return sudo if asked is not None and asked.returncode == 0 else None


def missing() -> list[str]:
    """The Debian packages of the programs that are not on PATH."""
    return [package for program, package in PROGRAMS.items() if shutil.which(program) is None]


def npm() -> str | None:
    """Install the npm packages unless they are there; what stood in the way."""
    text = WANTED.read_text(encoding="utf-8")
    done = NODE / "installed.json"  # a copy that is written last: an install that was cut is done again
    if done.is_file() and done.read_text(encoding="utf-8") == text:
        return None
    program = shutil.which("npm")
    if program is None:
        return "no npm, so none of the packages of tests/peers/package.json"
    print(f"tests/peers: npm install of {WANTED.relative_to(ROOT)}", file=sys.stderr, flush=True)
    shutil.rmtree(NODE, ignore_errors=True)
    NODE.mkdir(parents=True)
    (NODE / "package.json").write_text(text, encoding="utf-8")
    quiet = ("--no-audit", "--no-fund", "--no-package-lock", "--ignore-scripts", "--loglevel=error")
    if tail := once_more([program, "install", *quiet], NODE):
        return f"npm could not install the packages of tests/peers/package.json:\n{tail}"
    done.write_text(text, encoding="utf-8")
    return None


def once_more(command: list[str], folder: Path = ROOT) -> str:
    """Run a command that asks a registry, some times if it fails; the end of what it said, empty if it worked."""
    tail = ""
    for tried in range(1, TRIES + 1):
        try:
            done = subprocess.run(
                command, cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                text=True, errors="replace", timeout=LIMIT, check=False,
            )  # fmt: skip
            if done.returncode == 0:
                return ""
            tail = "\n".join(done.stdout.splitlines()[-15:]) or f"exit code {done.returncode}"
        except subprocess.TimeoutExpired:
            tail = f"it took more than {LIMIT:.0f} s"
        print(f"tests/peers: {' '.join(command[:2])} … failed, try {tried} of {TRIES}", file=sys.stderr, flush=True)
        if tried < TRIES:
            time.sleep(PAUSE)
    return tail


if __name__ == "__main__":
    sys.exit(main())
