"""What the server does in one step, and how a run lies there. Text and values only: no connection, no library.

A run is two keys with one hash tag, so that they share a slot of a cluster: ``PREFIX:{RUN}``, a stream whose entry ids
are the positions (``7-0``) and whose one field is the event's JSON, and ``PREFIX:{RUN}:run``, a hash with what a
``RunRecord`` knows. Only ``APPEND`` and ``TRIM`` write them, each all or nothing. The index of runs and sessions has
the tag ``{PREFIX}``. Plain Lua and commands of Redis 6.2, so that every later Redis and Valkey will do.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from weavegraph.errors import LogCorruptError, LogVersionError
from weavegraph.log._rules import RunRecord

__all__ = ["APPEND", "FORMAT", "INDEX", "PAGE", "TRIM", "Keys", "Script", "position_of", "record_of"]

FORMAT = 1
"""The version that is written into every run's record."""


class Script:
    """Lua text and the name the server knows it by. ``keys``: how many of the arguments are keys."""

    def __init__(self, text: str, keys: int) -> None:
        self.text, self.keys = text.strip(), keys
        self.sha = hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()

    def command(self, *arguments: Any) -> tuple[Any, ...]:
        return (self, *arguments)


APPEND = Script(
    """
local first, since, count = tonumber(ARGV[1]), tonumber(ARGV[2]), #ARGV - 9
local known = redis.call('HMGET', KEYS[2], 'v', 'attempt', 'epoch', 'first', 'last', 'events', 'bytes')
local last, held, events, bytes = 0, 0, 0, 0
if known[1] then
  if known[1] ~= ARGV[3] then return {'version', known[1]} end
  last, events, bytes = tonumber(known[5]), tonumber(known[6]), tonumber(known[7])
  held = math.max(math.min(last - first + 1, count), 0)
  local from, to = math.max(first, tonumber(known[4])), first + held - 1
  if from <= to then
    local there = redis.call('XRANGE', KEYS[1], string.format('%.0f-0', from), string.format('%.0f-0', to))
    for _, entry in ipairs(there) do
      local at = tonumber(string.match(entry[1], '^%d+'))
      if entry[2][2] ~= ARGV[9 + at - first + 1] then return {'fenced', known[2]} end
    end
    if #there < to - from + 1 then return {'late', string.format('%.0f', last)} end
  end
  if held == count then return {'ok', string.format('%.0f', last), '0'} end
  local mine, theirs = tonumber(ARGV[4]), tonumber(known[2])
  if mine < theirs or (mine == theirs and ARGV[5] ~= known[3]) then return {'fenced', known[2]} end
end
if held == 0 and last < since then
  return {'hole', string.format('%.0f', first + held), string.format('%.0f', last)}
end
for n = held + 1, count do
  local body = ARGV[9 + n]
  redis.call('XADD', KEYS[1], string.format('%.0f-0', first + n - 1), 'e', body)
  bytes = bytes + string.len(body)
end
local reached = string.format('%.0f', first + count - 1)
redis.call('HSET', KEYS[2], 'v', ARGV[3], 'attempt', ARGV[4], 'epoch', ARGV[5], 'outcome', ARGV[6], 'last', reached,
  'events', string.format('%.0f', events + count - held), 'bytes', string.format('%.0f', bytes), 'updated', ARGV[9])
if not known[1] then
  redis.call('HSET', KEYS[2], 'session', ARGV[7], 'started', ARGV[8], 'first', string.format('%.0f', first))
  return {'ok', reached, '1'}
end
return {'ok', reached, '0'}
""",
    2,
)
"""Keys: stream, record. Arguments: first position, the position that the writer knows to be there before it, format,
attempt, epoch, outcome, session, started, updated, then the JSON of each event. Every check comes before the first
write, and of the writes only the first can be refused (no memory, no disk), so a batch is kept whole or not at all."""

INDEX = Script(
    """
local place = redis.call('ZSCORE', KEYS[1], ARGV[1])
if not place then
  place = redis.call('INCR', KEYS[2])
  redis.call('ZADD', KEYS[1], place, ARGV[1])
end
redis.call('ZADD', KEYS[3], place, ARGV[1])
return place
""",
    3,
)
"""Keys: runs, counter, the session's runs. Argument: the run. Its place in the order of beginnings, given once."""

PAGE = Script(
    """
local record = redis.call('HGETALL', KEYS[2])
if #record == 0 then return {} end
local at, count, room = tonumber(ARGV[1]) + 1, tonumber(ARGV[2]), tonumber(ARGV[3])
local found = {}
while count > 0 and room > 0 do
  local want = math.min(count, 25)
  local part = redis.call('XRANGE', KEYS[1], string.format('%.0f-0', at), '+', 'COUNT', want)
  for _, entry in ipairs(part) do
    found[#found + 1] = entry[1]
    found[#found + 1] = entry[2][2]
    room = room - string.len(entry[2][2] or '')
    at = tonumber(string.match(entry[1], '^%d+')) + 1
    if room <= 0 then break end
  end
  count = count - #part
  if #part < want then break end
end
return {record, found}
""",
    2,
)
"""Keys: stream, record. Arguments: a position, events and bytes at most (one event at least). Record and entries of
one instant; few entries a step, so that large ones do not fill the server's memory."""

TRIM = Script(
    """
local known = redis.call('HMGET', KEYS[2], 'v', 'first', 'last', 'events', 'bytes', 'outcome', 'session')
if not known[1] then return {'none'} end
if known[1] ~= ARGV[1] then return {'version', known[1]} end
local first, last, all = tonumber(known[2]), tonumber(known[3]), ARGV[2] == ''
local upto = all and last or tonumber(ARGV[2])
if upto > last then return {'beyond', known[3]} end
local gone, bytes, at, more, want = 0, 0, first, '0', 1000
while at <= upto do
  local part = redis.call('XRANGE', KEYS[1], string.format('%.0f-0', at), string.format('%.0f-0', upto), 'COUNT', want)
  for _, entry in ipairs(part) do
    bytes = bytes + string.len(entry[2][2] or '')
    at = tonumber(string.match(entry[1], '^%d+')) + 1
  end
  gone = gone + #part
  if #part < want then break end
  if gone >= 10000 then
    upto, more = at - 1, '1'
    break
  end
end
if upto >= first then
  redis.call('XTRIM', KEYS[1], 'MINID', string.format('%.0f-0', upto + 1))
  redis.call('HSET', KEYS[2], 'first', string.format('%.0f', upto + 1),
    'events', string.format('%.0f', tonumber(known[4]) - gone),
    'bytes', string.format('%.0f', tonumber(known[5]) - bytes))
end
if all and more == '0' and (known[6] == 'completed' or known[6] == 'failed' or known[6] == 'cancelled') then
  redis.call('DEL', KEYS[1], KEYS[2])
  return {'ok', gone, more, '1', known[7]}
end
return {'ok', gone, more, '0'}
""",
    2,
)
"""Keys: stream, record. Arguments: format, the last position to forget, or nothing for all. Answers how many went,
whether there is more (ten thousand a step, so that nobody else waits long), and whether the run itself went."""


class Keys:
    """The keys under one prefix."""

    def __init__(self, prefix: str) -> None:
        self._run = f"{prefix}:{{"
        self.runs, self.count = f"{{{prefix}}}:runs", f"{{{prefix}}}:count"
        self._session = f"{{{prefix}}}:session:"

    def events(self, run_id: str) -> str:
        return f"{self._run}{run_id}}}"

    def record(self, run_id: str) -> str:
        return f"{self._run}{run_id}}}:run"

    def session(self, session_id: str) -> str:
        return self._session + session_id


def record_of(run_id: str, fields: Sequence[bytes], place: str) -> RunRecord | None:
    """What ``HGETALL`` of a record said.

    Raises:
        LogVersionError: of a later release. LogCorruptError: anything else that is no record.
    """
    if not fields:
        return None
    found = dict(zip(fields[::2], fields[1::2], strict=True))
    try:
        if (version := int(found[b"v"])) != FORMAT:
            raise LogVersionError(f"run {run_id!r} in {place}", version, FORMAT)
        return RunRecord(
            run_id=run_id,
            session_id=found[b"session"].decode(),
            attempt=int(found[b"attempt"]),
            epoch=found[b"epoch"].decode(),
            first=int(found[b"first"]),
            last=int(found[b"last"]),
            outcome=found[b"outcome"].decode() or None,
            events=int(found[b"events"]),
            size=int(found[b"bytes"]),
            started_at=datetime.fromisoformat(found[b"started"].decode()),
            updated_at=datetime.fromisoformat(found[b"updated"].decode()),
        )
    except (KeyError, ValueError) as exc:
        raise LogCorruptError(place, f"the record of run {run_id!r} is damaged: {exc}") from exc


def position_of(entry_id: bytes, place: str) -> int:
    """The position in an entry's id.

    Raises:
        LogCorruptError: an entry that no log of ours wrote.
    """
    position, _, rest = entry_id.partition(b"-")
    if rest != b"0" or not position.isdigit():
        raise LogCorruptError(place, f"holds an entry {entry_id!r}, which is no position of a run")
    return int(position)
