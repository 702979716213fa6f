from weavegraph import EventFilter, EventHub, node_message

with EventHub() as hub:
    reader = hub.subscribe(capacity=100, filter=EventFilter(scopes=("even",)))
    for number in range(250):
        hub.publish(node_message("even" if number % 2 == 0 else "odd", str(number)))
    for _ in range(30):
        reader.try_recv()
    books = reader.stats()
    print("head − s0 =", books.head - books.s0)
    print(f"= {books.delivered} delivered + {books.filtered} filtered + {books.dropped} dropped", end=" ")
    print(f"+ {books.buffered} buffered + {books.abandoned} abandoned")
    print("still fits before something is lost:", books.distance_to_loss)
