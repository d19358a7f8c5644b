"""The server's part of a round: what it sends, how it aggregates, and what it keeps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from operator import mul
from typing import Any

import torch
from torch import Tensor

from fedlightning.hooks.server import ServerHooks
from fedlightning.layout import Layout
from fedlightning.method import Round, visible, weights
from fedlightning.server.aggregation import OrderedMean
from fedlightning.server.bill import CommunicationBill
from fedlightning.server.client_memory import ClientMemory
from fedlightning.server.round_state import RoundState
from fedlightning.server.wire import CohortResult, RoundInputs
from fedlightning.state import State


class Server:
    """Turns the state before a round into the state after it. It keeps nothing of its own between rounds.

    Args:
        hooks: the method's hooks.
        layout: of the model.
        num_clients: N.
        device: where the server's state lies.
        identity: of the run; each state carries it.
    """

    def __init__(
        self, hooks: ServerHooks, layout: Layout, num_clients: int, device: torch.device, identity: Mapping[str, Any]
    ) -> None:
        self._hooks, self._method, self._layout = hooks, hooks.method, layout
        self.num_clients, self._device, self._identity = num_clients, device, identity

    # -- before the first round ---------------------------------------------------------------------------------------
    def begin(self, x: Tensor, buffers: Tensor, memory: ClientMemory) -> RoundState:
        """The state before the first round.

        Args:
            x: the start model [P].
            buffers: its buffers, flat [Q].
            memory: an empty client memory.
        """
        return self._state(0, self._hooks.configure(x.to(self._device)), memory, buffers.to(self._device))

    def take_up(self, state: RoundState) -> RoundState:
        """A state that the run goes on from, on this server's device."""
        server = state.server.apply(lambda tensor: tensor.to(self._device))
        return self._state(state.round, server, state.memory, state.buffers.to(self._device))

    def rehearsed(self, state: RoundState, round: Round, clients: Sequence[int]) -> tuple[RoundInputs, RoundInputs]:
        """The inputs of a round's two passes before it has begun, with zeros in place of the clients' gradients."""
        inputs, zeros = self.inputs(state, round), torch.zeros_like(state.server.x)
        if not self.wants_gradients:
            return inputs, inputs
        after = replace(inputs, gradients=dict.fromkeys(clients, zeros))
        if self._method.gradient_pass() == "mean":
            after = replace(after, server=after.server.replace(gradient=zeros))
        return inputs, after

    # -- a round, step by step ----------------------------------------------------------------------------------------
    @property
    def wants_gradients(self) -> bool:
        """Whether each client computes ∇f_i(x) over all its data before its local steps."""
        return self._method.gradient_pass() != "none"

    def inputs(self, state: RoundState, round: Round) -> RoundInputs:
        """What the clients of a round are given: the entries that `downlink` lists, their own rows, and the buffers."""
        return RoundInputs(round, visible(self._method, state.server), state.memory, state.buffers)

    def with_gradients(self, inputs: RoundInputs, results: Iterable[CohortResult]) -> RoundInputs:
        """The inputs with the gradients of the pass before the local steps, and with their mean where the method wants it."""
        gradients, mean = dict[int, Tensor](), OrderedMean(self._device)
        for cohort in results:
            gradients.update(zip(cohort.clients, cohort.upload.gradient, strict=True))
            mean.add(cohort.upload, weights(self._method, cohort.num_examples.to(torch.float64)))
        inputs = replace(inputs, gradients=gradients)
        if self._method.gradient_pass() == "local":
            return inputs
        return replace(inputs, server=inputs.server.replace(gradient=mean.result().gradient))

    def step(
        self, state: RoundState, inputs: RoundInputs, results: Iterable[CohortResult]
    ) -> tuple[RoundState, dict[str, float]]:
        """Aggregate what the clients send, and let the method take its step.

        Args:
            state: before the round.
            inputs: what the clients were given.
            results: what they send, cohort after cohort, in packing order. Each is added up as it comes, so one cohort is in
                memory at a time.

        Returns:
            The state after the round, and the round's training loss and bytes.
        """
        method, round = self._method, inputs.round
        mean, buffers = (OrderedMean(self._device, self._layout.dtype) for _ in range(2))
        bill = CommunicationBill(method, self.num_clients)
        loss = examples = 0.0
        rows, uploads = dict[int, State](), dict[int, State]()
        for cohort in results:
            weight = weights(method, cohort.num_examples.to(torch.float64))
            mean.add(cohort.upload, weight)
            buffers.add(State(all=cohort.buffers), weight)
            bill.add(cohort)
            loss += sum(map(mul, cohort.loss.tolist(), cohort.num_examples.tolist()))
            examples += int(cohort.num_examples.sum())
            if len(cohort.state):
                rows.update(_by_client(cohort.clients, cohort.state))
                uploads.update(_by_client(cohort.clients, cohort.upload) if "on_return" in method.own_hooks else {})
        server = self._hooks.aggregate(state.server, mean.result(), round)
        if uploads:
            rows = self._hooks.returned(rows, uploads, server, server.x - state.server.x, round)
        after = self._state(state.round + 1, server, state.memory.updated(rows), buffers.result().all)
        return after, {"train/loss": loss / examples, **bill.metrics(inputs, round.num_participants)}

    def learn(self, state: RoundState, metrics: Mapping[str, float], round: Round) -> RoundState:
        """The state after the method has seen an evaluation."""
        if "on_evaluation" not in self._method.own_hooks:
            return state
        server = self._hooks.evaluated(state.server, metrics, round)
        return self._state(state.round, server, state.memory, state.buffers)

    def numbers(self, state: RoundState) -> dict[str, float]:
        """The numbers among what clients receive, such as a μ that adapts, as `server/<name>`."""
        sent = visible(self._method, state.server)
        return {f"server/{name}": float(tensor) for name, tensor in sent.items() if tensor.ndim == 0}

    def _state(self, round: int, server: State, memory: ClientMemory, buffers: Tensor) -> RoundState:
        point = self._hooks.evaluation_point(server)
        return RoundState(round, server, memory, buffers, None if point is server.x else point.detach(), self._identity)


def _by_client(clients: Sequence[int], states: State) -> dict[int, State]:
    """Entries [C, …] as a state of each client."""
    return {c: states.apply(lambda tensor: tensor[i]) for i, c in enumerate(clients)}  # noqa: B023 - applied at once
