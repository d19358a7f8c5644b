"""What clients remember between the rounds in which they take part."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from threading import RLock
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor

from fedlightning.errors import ConfigurationError
from fedlightning.server._columns import CHUNK, Column, Place
from fedlightning.state import State

HOST_BYTES = 8 * 2**30
"""Rows up to so many bytes lie in the host's memory where no folder was asked for; those beyond in a mapped file."""


class ClientMemory:
    """Rows for the clients that took part, and only for those, in the order in which they came.

    A memory is not changed: `updated` gives the next one. Both look at one table, in which a row is replaced in place; a
    memory that is still held keeps, by itself, what the rows were that were replaced after it. So a round costs what its
    participants' rows cost, however many clients there are and took part before.

    Rows in files lie in one sparse memory-mapped file for each entry, which takes disk only for rows that were written. The
    files are scratch: a run goes on from its checkpoint, not from them.

    Args:
        rows: what each client remembers.
        directory: where the memory-mapped files go; None keeps all rows in the host's memory.
        num_clients: N, needed with a directory.
        host_bytes: rows up to so many bytes lie in the host's memory nonetheless, and the file of those beyond has no
            name, so that it goes with the run.
        chunk: bytes of an entry's rows that are allocated together.

    Raises:
        ConfigurationError: there is a directory, but no number of clients.
    """

    def __init__(
        self,
        rows: Mapping[int, State] | None = None,
        directory: Path | None = None,
        num_clients: int = 0,
        host_bytes: int = 0,
        chunk: int = CHUNK,
    ) -> None:
        if directory is not None and num_clients < 1:
            raise ConfigurationError(
                f"`num_clients` of ClientMemory must be at least 1 with a directory, but is {num_clients}."
            )
        self._look_at(_Store(Place(directory, num_clients, host_bytes, chunk)))
        for client, state in (rows or {}).items():
            self._store.write(client, state)

    def get(self, client: int) -> State | None:
        """What a client remembers, or None if it never took part."""
        with self._store.lock:
            return self._before[client] if client in self._before else self._store.read(client)

    def updated(self, rows: Mapping[int, State]) -> ClientMemory:
        """The memory after a round in which these clients took part."""
        if not rows:
            return self
        with self._store.lock:
            store = self._store if self._version == self._store.version else self._copied()
            store.preserve(rows)
            for client, state in rows.items():
                store.write(client, state)
            return ClientMemory.__new__(ClientMemory)._look_at(store)

    def rows(self) -> Mapping[int, State]:
        """All rows; each is read when it is asked for."""
        return _Rows(self)

    def dump(self) -> tuple[Tensor, dict[str, Any]]:
        """Plain tensors for a checkpoint, which share the rows: ids [M] (−1 for none), and each entry's rows [M, …] in parts."""
        with self._store.lock:
            return (self._copied() if self._before else self._store).dump()

    def describe(self, nbytes: int) -> str:
        """Where rows of so many bytes in all lie, in words."""
        place = self._store.place
        if place.directory is None or nbytes <= place.host_bytes:
            return "the host's memory"
        if not place.host_bytes:
            return f"files in {place.directory}"
        return f"the host's memory up to {place.host_bytes / 2**30:.4g} GiB, beyond in a file in {place.directory}"

    def clients(self) -> list[int]:
        """Those that took part."""
        with self._store.lock:
            return [client for client in self._store.slots if self._before.get(client, _EMPTY) is not None]

    def kinds(self) -> list[State]:
        """A row of each kind that there is: of the same entries, dtypes and shapes."""
        with self._store.lock:
            clients = self._store.examples() | self._before.keys()
            rows = [row for client in sorted(clients) if (row := self.get(client)) is not None]
            return list({repr(row): row for row in rows}.values())

    def __reduce__(self) -> tuple[Any, ...]:
        return ClientMemory, (dict(self.rows()),)

    def _look_at(self, store: _Store) -> ClientMemory:
        self._store, self._version = store, store.version
        self._before: dict[int, State | None] = {}
        store.memories.add(self)
        return self

    def _copied(self) -> _Store:
        """A table of its own, for what comes after a memory that was already updated once."""
        store = _Store(self._store.place.anew())
        for client, state in self.rows().items():
            store.write(client, state)
        return store


def read_dump(clients: Tensor, content: Any) -> dict[int, State]:
    """The rows that `ClientMemory.dump` gave.

    Raises:
        ValueError: two are of one client, or there are not as many rows as clients.
    """
    rows = {int(client): State(**row) for client, row in content["others"].items()}
    entries = (chain.from_iterable(parts) for parts in content["entries"].values())
    for client, *row in zip(clients.tolist(), *entries, strict=True):
        if client in rows and client != -1:
            raise ValueError(f"client {client} has two rows")
        rows[client] = State(**dict(zip(content["entries"], row, strict=True)))
    rows.pop(-1, None)
    return rows


_EMPTY = State()


class _Rows(Mapping[int, State]):
    def __init__(self, memory: ClientMemory) -> None:
        self._memory = memory

    def __getitem__(self, client: int) -> State:
        row = self._memory.get(client)
        if row is None:
            raise KeyError(client)
        return row

    def __iter__(self) -> Iterator[int]:
        return iter(self._memory.clients())

    def __len__(self) -> int:
        return len(self._memory.clients())


class _Store:
    """The table that memories look at; rows of another kind than the first one lie beside it.

    Attributes:
        slots: the row of each client, by its number or, beside the table, itself.
        version: how often the rows were updated; a memory of an earlier version keeps its own of those replaced since.
        memories: those that are still held.
    """

    def __init__(self, place: Place) -> None:
        self.place, self.lock, self.version = place, RLock(), 0
        self.slots: dict[int, int | State] = {}
        self.memories: WeakSet[ClientMemory] = WeakSet()
        self._columns: dict[str, Column] = {}
        self._kind: tuple[Any, ...] | None = None
        self._ids: list[int] = []  # whose each row is; −1 for nobody's
        self._free: list[int] = []
        self._others: set[int] = set()  # whose rows lie beside the table

    def read(self, client: int) -> State | None:
        """A copy of a row."""
        slot = self.slots.get(client)
        if isinstance(slot, int):
            return State(**{name: column.row(slot).clone() for name, column in self._columns.items()})
        return slot

    def preserve(self, clients: Mapping[int, Any]) -> None:
        """Begin the next version; every memory that is held keeps these clients' rows, or that there were none."""
        rows = {client: self.read(client) for client in clients}
        for memory in list(self.memories):
            for client, row in rows.items():
                memory._before.setdefault(client, row)
        self.version += 1

    def write(self, client: int, state: State) -> None:
        """Replace a row, or add one."""
        kind = tuple((name, tensor.dtype, tensor.shape) for name, tensor in state.items())
        if self._kind is None and kind:
            self._kind = kind
            self._columns = {name: Column(name, tensor, self.place) for name, tensor in state.items()}
        slot = self.slots.get(client)
        if kind != self._kind:
            self.slots[client] = state.apply(lambda tensor: tensor.detach().cpu().clone())
            self._others.add(client)
            if isinstance(slot, int):
                self._ids[slot] = -1
                self._free.append(slot)
            return
        if not isinstance(slot, int):
            slot = self._free.pop() if self._free else self._grown()
        for name, tensor in state.items():
            self._columns[name].row(slot).copy_(tensor.detach())
        self.slots[client], self._ids[slot] = slot, client
        self._others.discard(client)

    def examples(self) -> set[int]:
        """Clients that have a row of each kind."""
        return {*self._others, *[client for client in self._ids if client != -1][:1]}

    def dump(self) -> tuple[Tensor, dict[str, Any]]:
        """As `ClientMemory.dump` has it."""
        others = {client: dict(self.slots[client]) for client in self._others}  # type: ignore[arg-type]
        entries = {name: column.parts(len(self._ids)) for name, column in self._columns.items()}
        return torch.tensor(self._ids, dtype=torch.int64), {"entries": entries, "others": others}

    def _grown(self) -> int:
        for column in self._columns.values():
            column.extend(len(self._ids))
        self._ids.append(-1)
        return len(self._ids) - 1
