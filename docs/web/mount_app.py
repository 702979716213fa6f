"""Runs and their streams below ``/weavegraph`` of an app of your own."""

from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route

from weavegraph import END, START, GraphBuilder
from weavegraph.web import request_context, router

builder = GraphBuilder()


@builder.node
async def greet(state, ctx):
    request = request_context()  # who started this run, and with what headers
    ctx.emit("greeting", f"hello {request.headers.get('x-name', 'you')}", tenant=ctx.deps)


builder.add_edge(START, "greet").add_edge("greet", END)
web = router(builder.compile(), deps=lambda request: request.headers.get("x-tenant", "none"))


def home(request):
    return PlainTextResponse("mine")


app = Starlette(routes=[Route("/", home), Mount("/weavegraph", web)], lifespan=web.lifespan)
