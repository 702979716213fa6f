"""Start a run, watch it from another process; what breaks in between costs nothing: ``python httpx_client.py URL``."""

import asyncio
import json
import sys

import httpx


async def watch(http, run_id, last="0"):
    """Every event of a run, once, over as many connections as it takes."""
    while True:
        try:
            headers = {"accept": "application/x-ndjson"}
            address = f"/runs/{run_id}/events?after={last}"
            async with http.stream("GET", address, headers=headers, timeout=60) as answer:
                if answer.status_code == 204:  # the run is over, and everything was read
                    return
                answer.raise_for_status()
                async for line in answer.aiter_lines():
                    if line:  # an empty one is a heartbeat
                        frame = json.loads(line)
                        last = frame.get("id", last)
                        yield frame["event"], frame["data"]
        except (httpx.TransportError, httpx.HTTPStatusError) as error:
            refused = getattr(error, "response", None)
            if refused is not None and refused.status_code < 500:
                raise
            await asyncio.sleep(1)


async def main(url):
    async with httpx.AsyncClient(base_url=url) as http:
        run = (await http.post("/runs", json={"input": {}})).raise_for_status().json()
        async for name, event in watch(http, run["run_id"]):
            print(event.get("run_seq", "-"), name, event.get("message", ""))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
