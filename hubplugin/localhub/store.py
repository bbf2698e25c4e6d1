"""What is on disk: files named by their own hash, and one SQLite database of everything else.

A blob is written under a temporary name, flushed, and renamed; only then may a transaction name it. A
transaction is on disk before it is answered (WAL, synchronous FULL). So a killed process leaves whole
commits and, at worst, blobs that nobody names. Blobs are never deleted. This file knows no HTTP and no
access rules, and never joins a path of a repo to a path of this machine.
"""

import fcntl
import hashlib
import os
import secrets
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hubplugin.errors import ServeError

SCHEMA = """
create table if not exists setting (key text primary key, value text not null) without rowid;
create table if not exists namespace (
    name text primary key collate nocase, owner text not null) without rowid;
create table if not exists repo (
    id integer primary key autoincrement, kind text not null, name text not null collate nocase,
    private integer not null, gated text, created integer not null, unique (kind, name));
create table if not exists revision (
    repo integer not null references repo on delete cascade, oid text not null, parent text,
    tree text not null,
    title text not null, message text not null, author text not null, date integer not null,
    primary key (repo, oid)) without rowid;
create table if not exists ref (
    repo integer not null references repo on delete cascade, name text not null, oid text not null,
    primary key (repo, name)) without rowid;
create table if not exists discussion (
    repo integer not null references repo on delete cascade, num integer not null, title text not null,
    description text not null, author text not null, status text not null, pull integer not null,
    base text not null, created integer not null, merged text, primary key (repo, num)) without rowid;
create table if not exists object (
    repo integer not null references repo on delete cascade, sha256 text not null, size integer not null,
    primary key (repo, sha256)) without rowid;
create table if not exists guest (
    repo integer not null references repo on delete cascade, user text not null, status text not null,
    asked integer not null, primary key (repo, user)) without rowid;
create table if not exists collection (
    slug text primary key, owner text not null, body text not null) without rowid;
"""


class Store:
    """One root folder, held by one process at a time. Raises ServeError where another process holds it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.blobs = root / "blobs"
        self.incoming = root / "incoming"
        self._lock = self._hold(root)
        # What was half uploaded when the last process died is of no use: clients start such a file again.
        shutil.rmtree(self.incoming, ignore_errors=True)
        self.incoming.mkdir()
        self.blobs.mkdir(exist_ok=True)
        with self.write() as db:
            db.execute("insert or ignore into setting values ('secret', ?)", (secrets.token_hex(32),))
            self.secret = bytes.fromhex(db.execute("select value from setting where key='secret'").fetchone()[0])

    def _hold(self, root: Path) -> int:
        try:
            root.mkdir(parents=True, exist_ok=True, mode=0o700)
            lock = os.open(root / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise ServeError(str(root), f"cannot be written: {error.strerror}", "give a folder of your own") from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(lock)
            raise ServeError(str(root), "is held by another hub", "stop that one, or give another --root") from error
        connection = sqlite3.connect(root / "hub.sqlite")
        connection.execute("pragma journal_mode = wal")
        connection.executescript(SCHEMA)
        connection.close()
        return lock

    def close(self) -> None:
        """Let another process have the root."""
        os.close(self._lock)

    @contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """A consistent view of the database."""
        with self._transaction("begin") as db:
            yield db

    @contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        """All or nothing, one writer at a time; on disk when the block ends."""
        with self._transaction("begin immediate") as db:
            yield db

    @contextmanager
    def _transaction(self, begin: str) -> Iterator[sqlite3.Connection]:
        db = sqlite3.connect(self.root / "hub.sqlite", timeout=60, isolation_level=None)
        try:
            db.row_factory = sqlite3.Row
            db.execute("pragma synchronous = full")
            db.execute("pragma foreign_keys = on")
            db.execute(begin)
            try:
                yield db
            except BaseException:
                db.execute("rollback")
                raise
            db.execute("commit")
        finally:
            db.close()

    def blob(self, sha256: str) -> Path:
        """Where a blob lies. The caller took the hash from the database."""
        return self.blobs / sha256

    def part(self) -> Path:
        """A fresh temporary name on the blobs' own file system."""
        return self.incoming / secrets.token_hex(16)

    def adopt(self, part: Path, sha256: str) -> None:
        """Give a finished temporary file, whose hash the caller has checked, its name. Durable on return."""
        with part.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(part, self.blob(sha256))
        folder = os.open(self.blobs, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def put(self, data: bytes) -> str:
        """Store bytes; the hash."""
        sha256 = hashlib.sha256(data).hexdigest()
        if not self.blob(sha256).exists():
            part = self.part()
            try:
                part.write_bytes(data)
                self.adopt(part, sha256)
            finally:
                part.unlink(missing_ok=True)
        return sha256
