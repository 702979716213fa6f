"""Stress of threads: producers × readers × overflow policies × subscribers that come and go, with a thread switch at
nearly every instruction. At the end the books must add up exactly: A1 to A5 of docs/design/contract.md.

    make stress                                     # 2,000,000 deliveries, some minutes
    make stress ARGS="--deliveries 100000 --seed 7"

Ends with 0 when everything holds, else with 1 and the first discrepancies; after two minutes without an end of a hub
with 1 and the stacks of all threads: somebody was not woken.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import faulthandler
import itertools
import logging
import os
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from weavegraph import (
    GAP_SCOPE,
    BackpressureError,
    EndOfStream,
    EventHub,
    EventHubMetrics,
    EventInvalidError,
    EventStream,
    HubClosedError,
    Lagged,
    SubscriberOverflowError,
    node_message,
)
from weavegraph.events import Event

SWITCH_INTERVAL = 1e-6
PATIENCE = 120.0  # seconds for one hub, which needs one or two
CYCLE = 20_000  # deliveries of one hub; then everything is closed, checked, and begun anew


class Wrong(Exception):
    """A discrepancy, with the numbers."""


def must(condition: bool, *facts: object) -> None:
    if not condition:
        raise Wrong(" · ".join(map(str, facts)))


@dataclass
class Tally:
    """What a reader saw with its own eyes."""

    stream: EventStream
    last: int
    delivered: int = 0
    gaps: int = 0
    notices: int = 0
    missing: int = 0  # neither delivered nor told as lost: filtered, or skipped under on_lag="skip"
    filtered: bool = False
    skips: bool = False
    seen: list[tuple[int, str]] = field(default_factory=list)

    def see(self, event: Event) -> None:
        if event.scope == GAP_SCOPE:
            first, last, count = (event.metadata[key] for key in ("first_seq", "last_seq", "count"))
            must(event.seq == 0 and count == last - first + 1, "a gap notice that does not add up", event)
            self.lose(first, last)
            return
        between = event.seq - self.last - 1
        must(between >= 0, "order", self.last, event.seq)
        must(between == 0 or self.filtered or self.skips, "A3: an untold gap", self.last, event.seq, self.stream)
        must(not self.filtered or wanted(event.message), "a filtered event was delivered", event)
        self.missing += between
        self.delivered += 1
        self.last = event.seq
        self.seen.append((event.seq, event.message))

    def lose(self, first: int, last: int) -> None:
        must(self.filtered or first == self.last + 1, "A3: the gap begins elsewhere", self.last, first, last)
        must(first > self.last, "A3: the gap lies behind", self.last, first)
        self.missing += first - self.last - 1
        self.gaps += last - first + 1
        self.notices += 1
        self.last = last

    def enough(self, most: int) -> bool:
        """A reader that can only lag, capacity 1 against a flood, does not stay for ever."""
        return self.delivered + 20 * self.notices >= most

    def settle(self, at_the_end: bool) -> None:
        """The reader is done: compare with the stream's own books."""
        stats = self.stream.stats()
        if at_the_end and not self.skips:
            must(self.gaps == stats.dropped, "A2: the end came before the last notice", stats, self.gaps)
        must(stats.closed, "not closed", stats)
        must(stats.unaccounted == 0, "A1", stats)
        must(min(stats.delivered, stats.filtered, stats.dropped, stats.abandoned) >= 0, "A1: negative", stats)
        must(stats.delivered == self.delivered, "A1: delivered", stats, self.delivered)
        must(stats.dropped == stats.reported and stats.pending_report == 0, "A2", stats)
        must(self.skips or self.gaps <= stats.dropped, "A2: more told than lost", stats, self.gaps)
        must(stats.buffered == 0, "A1: buffered after the end", stats)


def wanted(message: str) -> bool:
    return message.endswith(("0", "3", "7"))


# ── readers: each returns when its stream ends, or leaves early ─────────────────────────────────────


async def by_iteration(tally: Tally, most: int) -> None:
    while not tally.enough(most):
        try:
            async for event in tally.stream:
                tally.see(event)
                if tally.enough(most):
                    return
            return
        except Lagged as lag:
            tally.lose(lag.first_seq, lag.last_seq)


async def by_batches(tally: Tally, most: int) -> None:
    while not tally.enough(most):
        try:
            for event in await tally.stream.recv_many(random.choice((1, 3, 50, 1024))):
                tally.see(event)
        except Lagged as lag:
            tally.lose(lag.first_seq, lag.last_seq)


async def by_timeouts(tally: Tally, most: int) -> None:
    """Timed and cancelled receives in turn: neither may lose anything (R1)."""
    while not tally.enough(most):
        try:
            if random.random() < 0.5:
                event = await tally.stream.next_timeout(0.0005)
            else:
                event = None
                with contextlib.suppress(asyncio.TimeoutError):
                    event = await asyncio.wait_for(tally.stream.recv(), 0.0005)
            if event is not None:
                tally.see(event)
        except Lagged as lag:
            tally.lose(lag.first_seq, lag.last_seq)


def by_blocking(tally: Tally, most: int) -> None:
    blocking = tally.stream.blocking()
    while not tally.enough(most):
        try:
            for event in blocking:
                tally.see(event)
                if tally.enough(most):
                    return
            return
        except Lagged as lag:
            tally.lose(lag.first_seq, lag.last_seq)


def by_polling(tally: Tally, most: int) -> None:
    while not tally.enough(most):
        try:
            event = tally.stream.try_recv() or tally.stream.blocking().next_timeout(0.001)
            if event is not None:
                tally.see(event)
        except Lagged as lag:
            tally.lose(lag.first_seq, lag.last_seq)


ASYNC_READERS: tuple[Any, ...] = (by_iteration, by_batches, by_timeouts)
THREAD_READERS: tuple[Any, ...] = (by_blocking, by_polling)


# ── one hub, from its first event to its last book ──────────────────────────────────────────────────


@dataclass
class Cycle:
    seed: int
    producers: int
    readers: int
    wanted: int
    problems: list[str] = field(default_factory=list)
    progress: int = 0

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.hub = EventHub(self.random.choice((1, 7, 64, 1000)), block_timeout=0.002, max_bytes=2**20)
        self.did: Counter[str] = Counter()  # what producers saw with their own eyes
        self.done = threading.Event()  # enough was delivered
        self.lock = threading.Lock()
        self.closed: Counter[str] = Counter()  # sums over every stream there was
        self.streams = 0
        self.accepted: dict[int, str] = {}  # what producers were told: position and message
        self.seen: dict[int, str] = {}  # what any reader saw
        self.readings: list[tuple[int, int, int, int]] = []  # of filtered streams that lost nothing

    def run(self) -> None:
        threads = [threading.Thread(target=self.guarded, args=(self.produce, n)) for n in range(self.producers)]
        threads += [threading.Thread(target=self.guarded, args=(self.read_in_thread, n)) for n in range(self.readers)]
        threads.append(threading.Thread(target=self.guarded, args=(self.read_in_loop, self.readers)))
        threads.append(threading.Thread(target=self.guarded, args=(self.watch, 0)))
        for thread in threads:
            thread.start()
        self.done.wait()
        self.hub.close()
        for thread in threads:
            thread.join()
        if not self.problems:
            self.guarded(self.settle, 0)

    def guarded(self, work: Callable[[int], None], number: int) -> None:
        try:
            work(number)
        except Wrong as wrong:
            self.problems.append(f"{work.__name__}: {wrong}")
        except BaseException as error:
            self.problems.append(f"{work.__name__}: {type(error).__name__}: {error}")
        finally:
            if self.problems:
                self.done.set()

    def produce(self, number: int) -> None:
        """Emits until the hub is closed, and somewhat beyond, now and then something invalid."""
        rng = random.Random(self.seed * 1000 + number)
        emitter, did, last = self.hub.emitter(), Counter[str](), 0
        accepted: dict[int, str] = {}
        after_close = 3
        loop = asyncio.new_event_loop()
        try:
            for count in itertools.count():
                event = node_message("stress" if rng.random() > 0.02 else "weavegraph.forged", f"{number}-{count}")
                if rng.random() < 0.05:
                    event = node_message("stress", f"{number}-{count}", text="x" * rng.randrange(5000))
                if rng.random() < 0.01:
                    time.sleep(0.0005)  # let readers come closer
                did["attempts"] += 1
                try:
                    way = rng.random()
                    if way < 0.5:
                        seq = self.hub.publish(event)
                    elif way < 0.98:
                        stamped = emitter.emit(event)
                        if stamped is None:
                            did["refused_full"] += 1
                            continue
                        seq = stamped.seq
                    else:
                        seq = self.publish_with_patience(loop, event, rng, did)
                        if not seq:
                            continue
                    must(seq > last, "O2: positions of one producer", last, seq)
                    last = seq
                    accepted[seq] = event.message
                    did["accepted"] += 1
                except BackpressureError:
                    did["refused_full"] += 1
                except EventInvalidError:
                    did["refused_invalid"] += 1
                except HubClosedError:
                    did["refused_closed"] += 1
                    after_close -= 1
                    if not after_close:
                        return
        finally:
            loop.close()
            with self.lock:
                self.did.update(did)
                must(not self.accepted.keys() & accepted.keys(), "O1: a position was given twice")
                self.accepted.update(accepted)

    def publish_with_patience(
        self, loop: asyncio.AbstractEventLoop, event: Event, rng: random.Random, did: Counter[str]
    ) -> int:
        """``publish_async``, cancelled while it waits now and then; 0 when that happened."""

        async def publish() -> int:
            task = asyncio.ensure_future(self.hub.publish_async(event))
            if rng.random() < 0.3:
                await asyncio.sleep(0)
                await asyncio.sleep(0)
                task.cancel()
            try:
                return await task
            except asyncio.CancelledError:
                did["cancelled"] += 1
                return 0

        return loop.run_until_complete(publish())

    # ── who reads ──

    def subscribe(self, rng: random.Random) -> tuple[Tally, int]:
        overflow = rng.choices(("drop_oldest", "block", "disconnect"), (6, 1, 2))[0]
        on_lag = rng.choice(("notice", "raise", "skip"))
        filtered = rng.random() < 0.3
        options: dict[str, Any] = {"overflow": overflow, "on_lag": on_lag}
        options["capacity"] = rng.choice((None, 1, 5, 300, 3000))
        if filtered:
            options["filter"] = lambda event: wanted(event.message)
        if rng.random() < 0.3:
            options["after"] = rng.randrange(self.hub.head + 1)
        stream = self.hub.subscribe(**options)
        tally = Tally(stream, stream.stats().s0, filtered=filtered, skips=on_lag == "skip")
        return tally, rng.choice((0, 1, 10, 200, 2000, 10**9 if overflow != "block" else 500))

    def leave(self, tally: Tally) -> None:
        """Close, compare, and add to the sums."""
        at_the_end = tally.stream.closed and tally.stream._cut_at is None
        tally.stream.close()
        tally.settle(at_the_end)
        stats = tally.stream.stats()
        with self.lock:
            self.streams += 1
            for seq, message in tally.seen:
                must(self.seen.setdefault(seq, message) == message, "O1: two readers saw different events at", seq)
            if tally.filtered and not stats.dropped:
                self.readings.append((stats.s0, stats.position, stats.delivered, stats.filtered))
            for name in ("delivered", "filtered", "dropped", "abandoned"):
                self.closed[name] += getattr(stats, name)
            self.progress += tally.delivered
            if self.progress >= self.wanted:
                self.done.set()

    def turns(self, number: int) -> Iterator[tuple[random.Random, Tally, int]]:
        """Subscriptions, one after the other, until the hub is closed."""
        rng = random.Random(self.seed * 7777 + number)
        while not self.done.is_set() or rng.random() < 0.5:
            tally, most = self.subscribe(rng)
            if most == 10**9:
                most = self.wanted // (2 * self.readers) + 1
            yield rng, tally, most

    def read_in_thread(self, number: int) -> None:
        for rng, tally, most in self.turns(number):
            with contextlib.suppress(EndOfStream, SubscriberOverflowError):
                rng.choice(THREAD_READERS)(tally, most)
            self.leave(tally)

    def read_in_loop(self, number: int) -> None:
        async def one(slot: int) -> None:
            for rng, tally, most in self.turns(number + slot):
                with contextlib.suppress(EndOfStream, SubscriberOverflowError):
                    await rng.choice(ASYNC_READERS)(tally, most)
                self.leave(tally)
                await asyncio.sleep(0)

        async def all_of_them() -> None:
            await asyncio.gather(*(one(slot) for slot in range(self.readers)))

        asyncio.run(all_of_them())

    def watch(self, _: int) -> None:
        """The books add up at every instant, not only at the end; totals never go back."""
        before = self.hub.metrics()
        while not self.done.is_set():
            now = self.hub.metrics()
            for stats in now.subscribers:
                must(stats.unaccounted == 0, "A1 while running", stats)
                must(stats.dropped == stats.reported + stats.pending_report, "A2 while running", stats)
            total = now.accepted + now.refused_closed + now.refused_full + now.refused_invalid
            must(now.attempts == total + now.cancelled + now.waiting, "A5 while running", now.attempts)
            must(now.accepted == now.head, "A5: accepted is not the head", now.accepted, now.head)
            for name in ("delivered", "filtered", "settled", "accepted", "refused_full", "cancelled"):
                was, is_now = of(before, name), of(now, name)
                must(is_now >= was, "A7: a total went back", name, was, is_now)
            before = now
            self.done.wait(0.002)

    def settle(self, _: int) -> None:
        """Everyone has left: A4 and A5 to the last event."""
        metrics = self.hub.metrics()
        must(not metrics.subscribers, "R6: subscribers left", metrics.subscribers)
        for name, count in self.closed.items():
            must(getattr(metrics, name) == count, f"A4: {name}", getattr(metrics, name), count)
        must(metrics.buffered == 0 and metrics.waiting == 0, "A4, A5: something still waits", metrics)
        for name, count in self.did.items():
            must(getattr(metrics, name) == count, f"A5: {name}", getattr(metrics, name), count)
        must(metrics.head == self.did["accepted"], "A5: head", metrics.head, self.did["accepted"])
        must(sorted(self.accepted) == list(range(1, metrics.head + 1)), "O1: positions are not 1, 2, 3 …")
        must(self.seen.items() <= self.accepted.items(), "O1: a reader saw what no producer was told")
        matching = [0, *itertools.accumulate(wanted(self.accepted[seq]) for seq in range(1, metrics.head + 1))]
        for s0, position, delivered, filtered in self.readings:
            fitting = matching[position] - matching[s0]
            must(delivered == fitting, "L5: delivered", s0, position, delivered, fitting)
            must(filtered == position - s0 - fitting, "L5: filtered", s0, position, filtered)


def of(metrics: EventHubMetrics, name: str) -> int:
    """A total. An event may still change its column (see ``EventHubMetrics``), but never be unread again."""
    if name == "settled":
        return metrics.delivered + metrics.filtered + metrics.dropped + metrics.abandoned
    value: int = getattr(metrics, name)
    return value


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="tools/stress.py", description="Stress of threads; checks A1 to A5.")
    parser.add_argument("--deliveries", type=int, default=2_000_000, metavar="N", help="default 2,000,000")
    parser.add_argument("--producers", type=int, default=4, metavar="N", help="threads that emit; default 4")
    parser.add_argument("--readers", type=int, default=3, metavar="N", help="threads, and tasks, that read; default 3")
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(3), "big"))
    options = parser.parse_args(argv)
    logging.getLogger("weavegraph").setLevel(logging.ERROR)  # losing is what this is about
    who = f"{options.producers} producers, {options.readers} threads and {options.readers} tasks that read"
    print(f"seed {options.seed}: {who}", flush=True)
    sys.setswitchinterval(SWITCH_INTERVAL)
    began, delivered, accepted, streams, dropped = time.monotonic(), 0, 0, 0, 0
    for number in itertools.count():
        if delivered >= options.deliveries:
            break
        wanted_now = min(CYCLE, options.deliveries - delivered)
        cycle = Cycle(options.seed + number, options.producers, options.readers, wanted_now)
        faulthandler.dump_traceback_later(PATIENCE, exit=True)  # a lost wake-up would show as a hang
        cycle.run()
        faulthandler.cancel_dump_traceback_later()
        if cycle.problems:
            print(f"\nWRONG after {delivered:,} deliveries, --seed {options.seed + number}:")
            print("\n".join(cycle.problems[:10]))
            return 1
        metrics = cycle.hub.metrics()
        delivered += metrics.delivered
        accepted, dropped, streams = accepted + metrics.head, dropped + metrics.dropped, streams + cycle.streams
        seconds = time.monotonic() - began
        line = (
            f"{delivered:,} of {options.deliveries:,} delivered · {accepted:,} events · {dropped:,} lost, all told · "
            f"{streams:,} subscriptions · {number + 1} hubs · {seconds:.0f} s"
        )
        print(f"\r{line}" if sys.stdout.isatty() else line, end="" if sys.stdout.isatty() else "\n", flush=True)
    print("\nA1 to A5 hold." if sys.stdout.isatty() else "A1 to A5 hold.")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
