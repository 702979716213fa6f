import asyncio

from weavegraph import BackpressureError, EventHub, node_message


async def main():
    with EventHub(block_timeout=0.05) as hub:
        careful = hub.subscribe(capacity=2, overflow="block")
        emitter = hub.emitter()
        print([emitter.emit(node_message("a", str(n))) is not None for n in (1, 2, 3)])  # emit never waits
        try:
            await emitter.emit_async(node_message("a", "4"))  # waits for room, for block_timeout seconds
        except BackpressureError as error:
            print(error.code)
        print((await careful.recv()).message, (await careful.recv()).message, careful.try_recv())
        counted = hub.metrics()
        print(f"{counted.attempts} attempts = {counted.accepted} accepted + {counted.refused_full} refused_full")


asyncio.run(main())
