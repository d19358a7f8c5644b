"""The contract of a federated method.

A method never computes a gradient; it asks for one: the engine hands each local step a function `grad(w)`, and the method
answers with tensors. Parameters are one flat vector w [P]. So a method reads like its paper, and the same lines run one
client at a time, as a cohort of clients under `torch.func.vmap`, and traced.

One round:

    Callback.on_round_start                                              trainer's thread
    for each cohort, on whichever slot is free:                          slot's thread; pure; may be vmapped and traced
        FedMethod.on_client_start(client)
        K times:  FedMethod.on_local_step -> direction -> grad(w) as often as needed
        FedMethod.on_client_end
    Callback.on_cohort_end          in packing order, never completion order
    FedMethod.on_aggregate          trainer's thread
    [every evaluate_every rounds]   Callback.on_evaluation_end
    Callback.on_round_end

Pure means: no tensor's value in Python control flow (use `torch.where`), nothing in place on an argument, nothing on
`self`, no random numbers but those of `client.key`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, dataclass_transform

import torch
from torch import Tensor

from fedlightning.errors import ConfigurationError, require_within
from fedlightning.state import State
from fedlightning.vector import Layout

Grad = Callable[[Tensor], Tensor]
Batch = tuple[Tensor, ...]


def hyper(default: Any, within: str | None = None) -> Any:
    """A hyperparameter with the interval it must lie in: `mu: float = hyper(0.01, "[0, inf)")`."""
    return dataclasses.field(default=default, metadata={"within": within})


@dataclass(frozen=True)
class Round:
    """What is known of a round.

    Attributes:
        index: t, counted from 0.
        num_clients: N, the clients registered.
        num_participants: m, the clients that take part in this round.
        lr: the clients' learning rate in this round.
    """

    index: int
    num_clients: int
    num_participants: int
    lr: float


@dataclass(frozen=True, slots=True)
class ClientContext:
    """What a hook may know of one client in one round. Numbers are tensors [] of w's dtype, so that they may be traced.

    Attributes:
        x: the global model as the client received it [P].
        server: what the server sent: the entries of its state that the method's `downlink` names.
        state: what the client remembers from the last time it took part.
        lr: the client's learning rate η in this round.
        num_steps: K, the local steps this client takes in this round.
        num_examples: n, the client's examples.
        round: t, counted from 0.
        key: this client's randomness in this step (int64 []), for `keyed_uniform(client.key, shape)`.
        first_step: whether this is the first local step; a plain bool, so that one traced graph serves the others.
        layout: where each layer lies in w.
    """

    x: Tensor
    server: State
    state: State
    lr: Tensor
    num_steps: Tensor
    num_examples: Tensor
    round: Tensor
    key: Tensor
    first_step: bool
    layout: Layout


class FlatModel(Protocol):
    """The task's model as a function of the flat vector; what `FedMethod.objective` is given."""

    def __call__(self, w: Tensor, inputs: Tensor) -> Tensor:
        """The model's outputs [B, …] at the parameters w [P]."""

    def loss(self, w: Tensor, batch: Batch) -> Tensor:
        """The task's per-example losses [B] at the parameters w [P]."""


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(hyper,))
@dataclass(frozen=True, kw_only=True)
class FedMethod:
    """A federated method: its fields are its hyperparameters, its hooks are its mathematics. Defaults: FedAvg.

    A subclass is written as a plain class with annotated fields and becomes a frozen dataclass by itself:

        class FedProx(FedMethod):
            mu: float = 0.01

            def direction(self, local, grad, client):
                return grad(local.w) + self.mu * (local.w - client.x)

    Args:
        lr: learning rate η of the clients.
        lr_decay: factor on `lr` after each round, η_t = lr · lr_decay^t.
        server_lr: learning rate η_g of the server.
        weighting: weight of a client in the mean of the uploads: its number of examples, or the same for all.
        weight_decay: L2 coefficient u of the local step, added after clipping, w − η (clip(d) + u w).
        clip_norm: largest L2 norm of the local direction d over the whole vector, or none.

    Raises:
        ConfigurationError: a hyperparameter is outside its interval.
    """

    lr: float = hyper(0.1, "(0, inf)")
    lr_decay: float = hyper(1.0, "(0, inf)")
    server_lr: float = hyper(1.0, "(0, inf)")
    weighting: Literal["examples", "uniform"] = "examples"
    weight_decay: float = hyper(0.0, "[0, inf)")
    clip_norm: float | None = hyper(None, "(0, inf)")

    downlink: ClassVar[tuple[str, ...]] = ("x",)
    """Entries of the server's state that travel to the clients; no hook of a client sees the others."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        dataclass(frozen=True, kw_only=True)(cls)

    def __post_init__(self) -> None:
        name = type(self).__name__
        for field in dataclasses.fields(self):
            if field.metadata.get("within"):
                require_within(getattr(self, field.name), field.metadata["within"], f"`{field.name}` of {name}")
        if self.weighting not in ("examples", "uniform"):
            raise ConfigurationError(
                f"`weighting` of {name} must be 'examples' or 'uniform', but is {self.weighting!r}."
            )

    # -- the server, before the first round ---------------------------------------------------------------------------
    def configure_server(self, x: Tensor) -> State:
        """What the server remembers; its entry `x` is the global model [P]."""
        return State(x=x)

    def configure_client(self, x: Tensor) -> State:
        """What a client remembers when it first meets the server, whose model was then x [P]. Default: nothing."""
        return State()

    # -- every round ------------------------------------------------------------------------------------------------
    def client_lr(self, round: int) -> float:
        """η_t, the clients' learning rate in a round."""
        return self.lr * self.lr_decay**round

    def local_steps(self, round: int) -> int | None:
        """K for every client in this round; None leaves it to the data module's epochs or steps."""
        return None

    # -- a client, in a round ---------------------------------------------------------------------------------------
    def on_client_start(self, client: ClientContext) -> State:
        """The local state at the first step; its entry `w` is the local model [P]."""
        return State(w=client.x)

    def objective(self, model: FlatModel, w: Tensor, batch: Batch, client: ClientContext) -> Tensor:
        """Per-example losses [B] whose mean `grad` differentiates. May call `model(v, inputs)` for any vector v."""
        return model.loss(w, batch)

    def direction(self, local: State, grad: Grad, client: ClientContext) -> Tensor:
        """The descent direction d [P] of one local step, w ← w − η d. Most methods override this alone."""
        return grad(local.w)

    def on_local_step(self, local: State, grad: Grad, client: ClientContext) -> State:
        """One local step, from a local state to the next."""
        d = self.direction(local, grad, client)
        if self.clip_norm is not None:
            d = d * (self.clip_norm / (d.norm() + 1e-6)).clamp(max=1.0)
        if self.weight_decay:
            d = d + self.weight_decay * local.w
        return local.replace(w=local.w - client.lr * d)

    def on_client_end(self, local: State, client: ClientContext) -> tuple[State, State]:
        """What the client uploads and what it remembers. Upload anything whose weighted mean the server needs."""
        return State(delta=local.w - client.x), client.state

    # -- the server, at the end of a round --------------------------------------------------------------------------
    def on_aggregate(self, server: State, mean: State, round: Round) -> State:
        """The server's next state, from its last and from the weighted mean of the uploads."""
        return server.replace(x=server.x + self.server_lr * mean.delta)


def field_names(method: FedMethod | type[FedMethod]) -> list[str]:
    """The names of the method's hyperparameters."""
    return [field.name for field in dataclasses.fields(method)]


def hyperparameters(method: FedMethod) -> dict[str, Any]:
    """The method's hyperparameters by name, as they are logged and written to checkpoints."""
    return {name: getattr(method, name) for name in field_names(method)}


def weights(method: FedMethod, num_examples: Tensor) -> Tensor:
    """The clients' weights [C] in the mean of the uploads, not yet normalised."""
    return num_examples if method.weighting == "examples" else torch.ones_like(num_examples)
