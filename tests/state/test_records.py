"""Failures as values, and as ladders for people."""

from __future__ import annotations

from datetime import UTC, datetime

import msgspec

from weavegraph.state import ErrorRecord, Failure, failure_of, ladder, mark_failure

WHEN = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def caught() -> Exception:
    try:
        try:
            raise ConnectionError("the\nserver \x1b[31mis gone")
        except ConnectionError as inner:
            raise ValueError("no answer") from inner
    except ValueError as error:
        return error


def test_a_ladder_tells_what_where_and_why_and_nothing_that_a_terminal_obeys() -> None:
    error = caught()
    mark_failure(error, Failure(node="ask", step=3, attempt=1, try_no=2, run_id="r", path=("sub",)))
    mark_failure(error, Failure(node="outer", step=1, attempt=1, try_no=1, run_id="r"))
    record = ErrorRecord.of(error, WHEN)
    assert ladder([record]) == (
        "✗ ValueError: no answer\n"
        "  at sub/ask · step 3 · attempt 1 · try 2 · 03:04:05\n"
        "  └─ because ConnectionError: the ⏎ server \\x1b[31mis gone"
    )
    assert ladder([record], color=True).startswith("\x1b[1;31m✗ ValueError: no answer\x1b[0m\n\x1b[2m")
    assert error.__notes__ == ["in node 'sub/ask', step 3, attempt 1, try 2 of run 'r'"]
    assert failure_of(error) == Failure(node="ask", step=3, attempt=1, try_no=2, run_id="r", path=("sub",))
    assert failure_of(ValueError()) is None


def test_kind_tags_and_place_are_plain_text_too() -> None:
    tags = ("\x1b[0m", "b")
    record = ErrorRecord(when=WHEN, scope="node", kind="E\x1b[31m", message="m", node="n\x1b", step=1, tags=tags)
    assert list(record.lines()) == [
        "✗ E\\x1b[31m: m", "  at n\\x1b · step 1 · attempt None · 03:04:05", "  tags: \\x1b[0m, b",
    ]  # fmt: skip


def test_a_mark_is_of_the_attempt_that_raised_last_and_survives_what_refuses_it() -> None:
    class Refuses(Exception):
        def __setattr__(self, name: str, value: object) -> None:
            raise AttributeError(name)

        def __getattr__(self, name: str) -> object:
            raise RuntimeError(name)

    error = Refuses()
    assert failure_of(error) is None
    for attempt in (1, 2):
        place = Failure(node="n", step=3, attempt=attempt, try_no=1, run_id="r")
        mark_failure(error, place)
        assert failure_of(error) == place
        assert error.__notes__ == [f"in node 'n', step 3, attempt {attempt} of run 'r'"]


def test_rich_prints_the_same_ladder() -> None:
    from io import StringIO

    from rich.console import Console

    out = StringIO()
    Console(file=out, width=200).print(ErrorRecord.of(caught(), WHEN, "scheduler"))
    assert out.getvalue() == (
        "✗ ValueError: no answer\n  in the scheduler · 03:04:05\n"
        "  └─ because ConnectionError: the ⏎ server \\x1b[31mis gone\n"
    )


def test_a_record_is_data_and_survives_the_round_trip() -> None:
    record = ErrorRecord.of(caught(), WHEN)
    assert msgspec.json.decode(msgspec.json.encode(record), type=ErrorRecord) == record


def test_an_exception_whose_text_cannot_be_had_and_a_circle_of_causes_are_recorded() -> None:
    class Broken(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    one, two = Broken(), ValueError("two")
    one.__cause__, two.__cause__ = two, one
    record = ErrorRecord.of(one, WHEN)
    assert (record.message, record.causes) == ("(its text cannot be had)", ("ValueError: two",))
