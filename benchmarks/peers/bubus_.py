"""bubus: typed events and handlers. It refuses to have more than 50 events pending, so the producer waits every 32."""

from bubus import BaseEvent, EventBus

NAME = "bubus"
PACKAGE = "bubus"
MOST = 1000  # deliveries in one round: it is slow enough for these to tell


class Small(BaseEvent):
    text: str = "a small event"


async def fan_out(readers, events, burst, watch):
    bus, got = EventBus(name="Bench"), [0] * readers

    def handler(index):
        async def handle(event):
            got[index] += 1

        handle.__name__ = handle.__qualname__ = f"handle_{index}"
        return handle

    for index in range(readers):
        bus.on(Small, handler(index))
    watch.start()
    for number in range(1, events + 1):
        event = bus.dispatch(Small())
        if number % min(burst, 32) == 0:
            await event
    await bus.wait_until_idle()
    watch.stop()
    await bus.stop(clear=True)
    return got
