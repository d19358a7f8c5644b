"""What clients remember between the rounds in which they take part."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from fedlightning.state import State


class ClientMemory:
    """Rows for the clients that took part, and only for those.

    A memory is not changed: `updated` gives the next one, which shares the rows that stayed the same. With a directory
    the rows lie in one sparse memory-mapped file for each entry, which takes disk only for rows that were written; there
    an update replaces the row in place.

    Args:
        rows: what each client remembers.
        directory: where the memory-mapped files go; None keeps the rows in the host's memory.
        num_clients: N, needed with a directory.
    """

    def __init__(
        self, rows: Mapping[int, State] | None = None, directory: Path | None = None, num_clients: int = 0
    ) -> None:
        self._directory, self._num_clients = directory, num_clients
        self._tables: dict[str, Tensor] = {}
        self._rows: dict[int, State] = {}
        for client, state in (rows or {}).items():
            self._rows[client] = self._keep(client, state)

    def get(self, client: int) -> State | None:
        """What a client remembers, or None if it never took part."""
        return self._rows.get(client)

    def updated(self, rows: Mapping[int, State]) -> ClientMemory:
        """The memory after a round in which these clients took part."""
        memory = ClientMemory(None, self._directory, self._num_clients)
        memory._tables = self._tables
        memory._rows = {**self._rows, **{client: memory._keep(client, state) for client, state in rows.items()}}
        return memory

    def rows(self) -> Mapping[int, State]:
        """All rows, for checkpoints."""
        return self._rows

    def _keep(self, client: int, state: State) -> State:
        if self._directory is None:
            return state.apply(lambda tensor: tensor.detach().cpu().clone())
        return State(**{name: self._write(self._directory, client, name, t) for name, t in state.items()})

    def _write(self, directory: Path, client: int, name: str, tensor: Tensor) -> Tensor:
        if name not in self._tables:
            directory.mkdir(parents=True, exist_ok=True)
            size = self._num_clients * tensor.numel()
            path = str(directory / f"{name}.bin")
            table = torch.from_file(path, shared=True, size=size, dtype=tensor.dtype)
            self._tables[name] = table.view(self._num_clients, *tensor.shape)
        row = self._tables[name][client]
        return row.copy_(tensor.detach())
