import asyncio

from weavegraph import EventHub, node_message


async def main():
    with EventHub() as hub:
        one, two = hub.subscribe(), hub.subscribe()  # a cursor each, over one ring
        first = asyncio.create_task(one.recv())
        second = asyncio.create_task(two.recv())
        await asyncio.sleep(0)
        hub.publish(node_message("tea", "ready"))
        print("first:", (await first).message)
        print("second:", (await second).message)
        late = hub.subscribe(after=0)  # what is held, then live
        print("late:", (await late.recv()).message)


asyncio.run(main())
