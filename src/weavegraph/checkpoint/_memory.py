"""Sessions in a dict: for tests, notebooks, and runs that need history but not to outlive the process."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from weavegraph.errors import CheckpointConflictError, ConfigError
from weavegraph.protocols import CheckpointPage
from weavegraph.state import Checkpoint, Finished, with_finished

__all__ = ["MemoryCheckpointer"]


class MemoryCheckpointer:
    """Keeps every checkpoint of every session, or the newest ``keep`` of each. From any thread and loop."""

    def __init__(self, *, keep: int | None = None) -> None:
        if keep is not None and (type(keep) is not int or keep < 1):
            raise ConfigError(f"MemoryCheckpointer(keep={keep!r}): give a whole number from 1, or None")
        self._keep = keep
        self._lock = threading.Lock()
        self._sessions: dict[str, list[Checkpoint]] = {}
        self._finished: dict[str, dict[int, Finished]] = {}  # of the step after a session's latest checkpoint

    async def save(self, checkpoint: Checkpoint, /) -> None:
        with self._lock:
            held = self._sessions.setdefault(checkpoint.session_id, [])
            last = held[-1].number if held else 0
            if checkpoint.number != last + 1:
                raise CheckpointConflictError(checkpoint.session_id, checkpoint.number - 1, last)
            held.append(checkpoint)
            self._finished.pop(checkpoint.session_id, None)
            if self._keep is not None:
                del held[: -self._keep]

    async def add_finished(self, session_id: str, number: int, finished: Finished, /) -> None:
        with self._lock:
            held = self._sessions.get(session_id)
            if held and held[-1].number == number:
                self._finished.setdefault(session_id, {})[finished.index] = finished

    async def latest(self, session_id: str, /) -> Checkpoint | None:
        with self._lock:
            held = self._sessions.get(session_id)
            return with_finished(held[-1], self._finished.get(session_id, {})) if held else None

    async def get(self, session_id: str, number: int, /) -> Checkpoint | None:
        with self._lock:
            held = self._sessions.get(session_id, [])
            found = next((each for each in held if each.number == number), None)
            if found is None or found is not held[-1]:
                return found
            return with_finished(found, self._finished.get(session_id, {}))

    async def history(
        self,
        session_id: str,
        /,
        *,
        limit: int = 100,
        before: int | None = None,
        min_step: int | None = None,
        max_step: int | None = None,
        ran_node: str | None = None,
        skipped_node: str | None = None,
        run_id: str | None = None,
    ) -> CheckpointPage:
        if type(limit) is not int or not 1 <= limit <= 1000:
            raise ConfigError(f"history(limit={limit!r}): give a whole number from 1 to 1,000")
        with self._lock:
            held = tuple(self._sessions.get(session_id, ()))
        found = [
            each
            for each in reversed(held)
            if (before is None or each.number < before)
            and (min_step is None or each.step >= min_step)
            and (max_step is None or each.step <= max_step)
            and (ran_node is None or ran_node in each.ran_nodes)
            and (skipped_node is None or skipped_node in each.skipped_nodes)
            and (run_id is None or each.run_id == run_id)
        ]
        page = tuple(found[:limit])
        return CheckpointPage(page, page[-1].number if len(found) > limit else None)

    async def sessions(self, *, limit: int = 100, after: str = "") -> Sequence[str]:
        with self._lock:
            return sorted(name for name, held in self._sessions.items() if held and name > after)[:limit]

    async def delete(self, session_id: str, /) -> int:
        with self._lock:
            self._finished.pop(session_id, None)
            return len(self._sessions.pop(session_id, ()))

    async def trim(self, session_id: str, /, *, keep: int) -> int:
        if type(keep) is not int or keep < 1:
            raise ConfigError(f"trim(keep={keep!r}): give a whole number from 1")
        with self._lock:
            held = self._sessions.get(session_id, [])
            gone = max(len(held) - keep, 0)
            del held[:gone]
            return gone

    async def aclose(self) -> None:
        """Nothing to close."""
