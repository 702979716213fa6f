from weavegraph import EventBusConfig, RuntimeConfig
from weavegraph.errors import ConfigError

code = RuntimeConfig(step_limit=50, event_bus=EventBusConfig(sinks=("stdout:", "jsonl:events.jsonl")))
table = RuntimeConfig.from_mapping({"step_limit": 50, "event_bus": {"sinks": ["stdout:", "jsonl:events.jsonl"]}})
environment = RuntimeConfig.from_env(
    {"WEAVEGRAPH_STEP_LIMIT": "50", "WEAVEGRAPH_EVENT_BUS_SINKS": "stdout: jsonl:events.jsonl"}
)
print(code == table == environment)

for wrong in ({"step_limit": 0}, {"steps": 50}, {"event_bus": {"sinks": ["stdout"]}}):
    try:
        RuntimeConfig.from_mapping(wrong)
    except ConfigError as error:
        print(str(error).partition(";")[0])
