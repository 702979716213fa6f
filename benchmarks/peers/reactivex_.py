"""ReactiveX: a ``Subject`` that calls its observers at once, on the producer's stack: nobody can be slow."""

import asyncio

from reactivex import Subject

NAME = "reactivex (calls)"
PACKAGE = "reactivex"


async def fan_out(readers, events, burst, watch):
    subject, got = Subject(), [0] * readers

    def observer(index):
        def on_next(event):
            got[index] += 1

        return on_next

    for index in range(readers):
        subject.subscribe(on_next=observer(index))
    watch.start()
    for number in range(1, events + 1):
        subject.on_next("a small event")
        if number % burst == 0:
            await asyncio.sleep(0)
    subject.on_completed()
    watch.stop()
    return got
