"""What is on disk: blobs named by their sha256, and one SQLite database for everything else.

A blob is written under a temporary name, synced to disk and renamed; only then does a transaction refer to it. A
transaction is on disk before the request is answered (WAL, synchronous FULL). So after a crash every commit is either
whole or missing, and at worst there are blobs that nothing refers to. Blobs are never deleted. This module knows no
HTTP and no permissions, and never uses a path from a repo as a path on this machine.
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
create table if not exists event (
    id integer primary key autoincrement, repo integer not null references repo on delete cascade,
    num integer not null, type text not null, author text not null, created integer not null, data text not null);
create index if not exists event_of_discussion on event (repo, num);
create table if not exists former_name (
    kind text not null, name text not null collate nocase, repo integer not null references repo on delete cascade,
    primary key (kind, name)) without rowid;
create table if not exists object (
    repo integer not null references repo on delete cascade, sha256 text not null, size integer not null,
    primary key (repo, sha256)) without rowid;
create table if not exists guest (
    repo integer not null references repo on delete cascade, user text not null, status text not null,
    asked integer not null, primary key (repo, user)) without rowid;
create table if not exists collection (
    slug text primary key, owner text not null, body text not null) without rowid;
"""
# Discussions of a hub that had no comments yet: the description becomes the first comment.
MIGRATION = """
insert into event (repo, num, type, author, created, data)
select repo, num, 'comment', author, created, json_object('raw', description) from discussion
where not exists (select 1 from event where event.repo = discussion.repo and event.num = discussion.num)
"""


class Store:
    """One root folder. Raises ServeError where it cannot be written or another process uses it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.blobs = root / "blobs"
        self.incoming = root / "incoming"
        self._lock = self._acquire_lock(root)
        self._create_tables(root)
        # Unfinished uploads of an earlier process are of no use: clients start such a file again.
        shutil.rmtree(self.incoming, ignore_errors=True)
        self.incoming.mkdir()
        self.blobs.mkdir(exist_ok=True)
        with self.write() as db:
            db.execute("insert or ignore into setting values ('secret', ?)", (secrets.token_hex(32),))
            self.secret = bytes.fromhex(db.execute("select value from setting where key='secret'").fetchone()[0])

    @staticmethod
    def _acquire_lock(root: Path) -> int:
        """The open lock file. The lock ends with the process."""
        try:
            root.mkdir(parents=True, exist_ok=True, mode=0o700)
            lock = os.open(root / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise ServeError(
                str(root), f"cannot be written: {error.strerror}", "give a folder that you may write"
            ) from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(lock)
            raise ServeError(str(root), "is held by another hub", "stop that hub, or give another --root") from error
        return lock

    @staticmethod
    def _create_tables(root: Path) -> None:
        db = sqlite3.connect(root / "hub.sqlite")
        db.execute("pragma journal_mode = wal")
        db.executescript(SCHEMA)
        db.execute(MIGRATION)
        db.commit()
        db.close()

    def close(self) -> None:
        """Release the root folder for other processes."""
        os.close(self._lock)

    @contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """A transaction that reads; it sees one state of the database."""
        with self._transaction("begin") as db:
            yield db

    @contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        """A transaction that writes; one at a time. It is on disk when the block ends, and undone by an exception."""
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

    def blob_path(self, sha256: str) -> Path:
        """The file of a blob. The caller has checked that `sha256` is a hash."""
        return self.blobs / sha256

    def temporary_path(self) -> Path:
        """A new name for a temporary file on the file system of the blobs."""
        return self.incoming / secrets.token_hex(16)

    def add_file(self, path: Path, sha256: str) -> None:
        """Make a temporary file, whose hash the caller has checked, a blob. It is on disk on return."""
        with path.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(path, self.blob_path(sha256))
        folder = os.open(self.blobs, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def add_bytes(self, data: bytes) -> str:
        """Store data as a blob; return its sha256."""
        sha256 = hashlib.sha256(data).hexdigest()
        if not self.blob_path(sha256).exists():
            path = self.temporary_path()
            try:
                path.write_bytes(data)
                self.add_file(path, sha256)
            finally:
                path.unlink(missing_ok=True)
        return sha256
