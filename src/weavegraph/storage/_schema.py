"""The file format: whose file it is, which versions it has, and how it moves forward.

A store holds several schemas side by side (events, checkpoints), each with a version of its own, in the table
``schemas``. The frame around them (this table, ``store_state``) is versioned by ``user_version``.
"""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Callable
from typing import TypeAlias

import msgspec

from weavegraph.errors import ConfigError, LogCorruptError, LogVersionError

__all__ = ["APPLICATION_ID", "STORE_VERSION", "Migration", "Schema", "apply", "check", "install", "version_of"]

APPLICATION_ID = 0x77765F67  # "wv_g", in the header of the file
STORE_VERSION = 1

Migration: TypeAlias = tuple[str, ...] | Callable[[sqlite3.Connection], None]
"""One step forward: SQL statements, or a function of the connection. Runs in a transaction that is already open."""

_FRAME = (
    "CREATE TABLE schemas(name TEXT PRIMARY KEY, version INTEGER NOT NULL) STRICT, WITHOUT ROWID",
    # commits: one more with every transaction; see _mark.py.
    "CREATE TABLE store_state(id INTEGER PRIMARY KEY CHECK (id = 1), store_id BLOB NOT NULL, commits INTEGER NOT NULL)"
    " STRICT",
)


class Schema(msgspec.Struct, frozen=True):
    """Tables that one part keeps in a store. Version *n* is what the first *n* migrations make; never edit one."""

    name: str
    migrations: tuple[Migration, ...]

    def __post_init__(self) -> None:
        if not self.name.isidentifier() or not self.migrations:
            raise ConfigError(f"Schema({self.name!r}): give a name like 'checkpoints' and at least one migration")


def check(connection: sqlite3.Connection, place: str) -> bool:
    """Whether the file is set up; writes nothing.

    Raises:
        LogCorruptError: another program's database. LogVersionError: of a later release.
    """
    begun = not connection.in_transaction
    if begun:
        connection.execute("BEGIN")  # one snapshot: another process may be making the file just now
    try:
        return _checked(connection, place)
    finally:
        if begun and connection.in_transaction:
            connection.execute("ROLLBACK")


def _checked(connection: sqlite3.Connection, place: str) -> bool:
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if application == APPLICATION_ID and version > STORE_VERSION:
        raise LogVersionError(place, version, STORE_VERSION)
    if application == APPLICATION_ID and version == STORE_VERSION:
        return True
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    if application or version or tables:
        raise LogCorruptError(place, f"not a weavegraph store (application_id {application}, user_version {version})")
    return False


def install(connection: sqlite3.Connection) -> None:
    """Make an empty file ours; in the caller's transaction."""
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version = {STORE_VERSION}")
    for statement in _FRAME:
        connection.execute(statement)
    connection.execute("INSERT INTO store_state VALUES (1, ?, 0)", (secrets.token_bytes(16),))


def apply(connection: sqlite3.Connection, schema: Schema, place: str) -> None:
    """Bring ``schema`` to the version this release knows: all its steps in one transaction, none when it is there.

    Raises:
        LogVersionError: written by a later release; nothing was changed.
    """
    known = len(schema.migrations)
    if version_of(connection, schema, place) == known:
        return
    connection.execute("BEGIN IMMEDIATE")
    try:
        found = version_of(connection, schema, place)  # again: another process may have been faster
        for migration in schema.migrations[found:]:
            if callable(migration):
                migration(connection)
            else:
                for statement in migration:
                    connection.execute(statement)
        connection.execute("INSERT OR REPLACE INTO schemas VALUES (?, ?)", (schema.name, known))
        connection.execute("COMMIT")
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")


def version_of(connection: sqlite3.Connection, schema: Schema, place: str) -> int:
    """The version of ``schema`` in the file; 0 when it is not there.

    Raises:
        LogVersionError: written by a later release.
    """
    row = connection.execute("SELECT version FROM schemas WHERE name = ?", (schema.name,)).fetchone()
    version = 0 if row is None else row[0]
    if type(version) is not int or version < 0:
        raise LogCorruptError(place, f"the version of schema {schema.name!r} is {version!r}")
    if version > len(schema.migrations):
        raise LogVersionError(f"{place}, schema {schema.name!r}", version, len(schema.migrations))
    return version
