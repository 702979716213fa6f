from weavegraph import END, START, GraphBuilder, Retry, failure_of

builder = GraphBuilder()


@builder.node(retry=Retry(tries=2, base=0.01))
def fetch(state, ctx):
    raise ConnectionError(f"try {ctx.try_no}")


builder.add_edge(START, "fetch").add_edge("fetch", END)

with builder.compile() as app:
    try:
        app.invoke_sync({}, run_id="r1")
    except ConnectionError as error:  # the node's own exception, not a wrapper
        print(error, "|", failure_of(error))
