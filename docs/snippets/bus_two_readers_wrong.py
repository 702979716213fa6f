import asyncio

from weavegraph import EventHub, node_message
from weavegraph.errors import StreamBusyError


async def main():
    hub = EventHub()
    events = hub.subscribe()
    first = asyncio.create_task(events.recv())
    await asyncio.sleep(0)
    try:
        await events.recv()  # one stream, two readers: they would share the work
    except StreamBusyError as error:
        print(error)
    hub.publish(node_message("tea", "ready"))
    print("first:", (await first).message)
    events.close()
    hub.close()


asyncio.run(main())
