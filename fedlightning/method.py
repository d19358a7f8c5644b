"""The contract of a federated method.

A method never computes a gradient; it asks for one: each local step is handed a function `grad(w)`, and the method
answers with tensors. Parameters are one flat vector w [P]. So a method reads like its paper, and the same lines run one
client at a time, as a cohort of clients under `torch.func.vmap`, and traced.

One round:

    FedMethod.check, once, before the first round                        trainer's thread
    [all hooks, once, before the first round, on a stand-in for the gradient; what they give is looked at and thrown away]
    Callback.on_round_start
    [FedMethod.gradient_pass: ∇f_i(x) of each client, over all its data; no hook is called]
    for each cohort, on whichever slot is free:                          slot's thread; pure; may be vmapped and traced
        FedMethod.on_client_start(client)
        K times:  FedMethod.on_local_step -> direction -> grad(w) as often as needed
        FedMethod.on_client_end
    Callback.on_cohort_end          in packing order, never completion order
    FedMethod.on_aggregate          trainer's thread
    FedMethod.on_return             trainer's thread; for each participant
    [every evaluate_every rounds]   FedMethod.on_evaluation, then Callback.on_evaluation_end
    Callback.on_round_end

Pure means: no tensor's value in Python control flow (use `torch.where`), nothing in place on an argument, nothing on
`self` or in a global, no random numbers but those of `client.key`.

States are of one kind: what `configure_server`, `configure_client` and `on_client_start` give says which entries the server's,
a client's and the local state have, and all of them go on, those of clients in the same shapes and dtypes. (A compiled graph
would read another dtype's bytes as its own.)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import dataclass
from inspect import isfunction
from types import MappingProxyType
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, dataclass_transform

import torch
from torch import Tensor

from fedlightning._capabilities import own_hooks
from fedlightning._checked import check_fields, checked
from fedlightning._declarations import as_python, fault_in, plain
from fedlightning.errors import ConfigurationError, check_interval, shown
from fedlightning.layout import Layout
from fedlightning.state import State

Grad = Callable[[Tensor], Tensor]


class Batch(NamedTuple):
    """The examples of one local step.

    Where clients train side by side, or where steps are graphs, all batches have B places and some may be empty. An empty
    place holds a copy of another example. Its loss is left out of the mean; whatever else looks across the batch leaves it
    out by `mask`.

    Attributes:
        inputs: what the model takes [B, …].
        targets: what the loss compares the outputs with [B, …].
        mask: whether a place is filled [B] (bool).
    """

    inputs: Tensor
    targets: Tensor
    mask: Tensor

    @classmethod
    def full(cls, inputs: Tensor, targets: Tensor) -> Batch:
        """A batch without an empty place."""
        return cls(inputs, targets, torch.ones(len(inputs), dtype=torch.bool, device=inputs.device))


@checked()
def hyper(default: Any, within: str | tuple[str, ...] | None = None) -> Any:
    """A hyperparameter with the interval it must lie in, or the words it may be: `mu: float = hyper(0.01, "[0, inf)")`.

    A subclass that only changes the default, `mu: float = 1.0`, keeps the interval.

    Raises:
        ConfigurationError: `within` is neither an interval nor words.
    """
    if isinstance(within, str):
        check_interval(within)
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
        step: which local step this is, from 0, of w's dtype; 0 in `on_client_start`, and K in `on_client_end`.
        layout: where each layer lies in w.
        gradient: ∇f_i(x) over all the client's data [P], if the method's `gradient_pass` asks for it; else empty [0].
    """

    x: Tensor
    server: State
    state: State
    lr: Tensor
    num_steps: Tensor
    num_examples: Tensor
    round: Tensor
    key: Tensor
    step: Tensor
    layout: Layout
    gradient: Tensor


class FlatModel(Protocol):
    """The task's model as a function of the flat vector; what `FedMethod.objective` is given."""

    def __call__(self, w: Tensor, inputs: Tensor) -> Tensor:
        """The model's outputs [B, …] at the parameters w [P]."""

    def loss(self, w: Tensor, batch: Batch) -> Tensor:
        """The task's per-example losses [B] at the parameters w [P]."""


_ASKED = ("objective", "on_local_step", "on_aggregate", "on_return", "on_evaluation", "evaluation_point")
"""Hooks of which the library asks whether a method has its own."""


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
        ConfigurationError: a hyperparameter is outside its interval, or is nothing that JSON holds.
    """

    lr: float = hyper(0.1, "(0, inf)")
    lr_decay: float = hyper(1.0, "(0, inf)")
    server_lr: float = hyper(1.0, "(0, inf)")
    weighting: Literal["examples", "uniform"] = hyper("examples", ("examples", "uniform"))
    weight_decay: float = hyper(0.0, "[0, inf)")
    clip_norm: float | None = hyper(None, "(0, inf)")

    downlink: ClassVar[tuple[str, ...]] = ("x",)
    """Entries of the server's state that travel to the clients, besides those of the base classes; no hook of a client
    sees the others. A name that `configure_server` does not set is passed over."""

    coupled: ClassVar[bool] = False
    """Whether `objective` looks across a batch in a way that `batch.mask` cannot mend. Such a method trains one client at a
    time, on batches without an empty place. A trial before the first round finds most that do so unsaid."""

    preshared: ClassVar[tuple[str, ...]] = ()
    """Entries of the server's state that never change, which every client has from the beginning: not in the bill."""

    own_hooks: ClassVar[frozenset[str]] = frozenset()
    """The hooks that a class has made its own, among those whose default costs less than a call. It is derived where a class is
    made. A class that only wraps a hook and calls `super()` declares `own_hooks = frozenset()`; its wrapper may be
    passed over."""

    _fault: ClassVar[str] = ""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        inherited = (vars(base).get("_fault") for base in cls.__mro__[1:])
        cls._fault = fault_in(cls, HOOKS, ("downlink", "preshared")) or next(filter(None, inherited), "")
        cls.downlink, cls.preshared = _declared(cls, "downlink"), _declared(cls, "preshared")
        cls.own_hooks = own_hooks(cls, FedMethod, _ASKED)
        dataclass(frozen=True, kw_only=True)(cls)
        _inherit_defaults(cls)

    def __post_init__(self) -> None:
        within = {f.name: f.metadata["within"] for f in dataclasses.fields(self) if f.metadata.get("within")}
        check_fields(self, **within)
        for field in dataclasses.fields(self):
            value = as_python(getattr(self, field.name))
            if field.name not in HOOKS and not plain(value):  # a class is told that such a field is a hook
                raise ConfigurationError(
                    f"`{field.name}` of {type(self).__name__} must be a number, a word, or a list or dictionary of them, which "
                    f"checkpoints and loggers hold as JSON, but is {shown(value)}; name it by a word that a hook looks up, or "
                    "write a function as a hook."
                )
            object.__setattr__(self, field.name, value)

    # -- the server, before the first round ---------------------------------------------------------------------------
    def check(self, round: Round) -> None:
        """Refuse, or warn of, a run that the method is not made for; called once, with the shape of the first round.

        Raises:
            ConfigurationError: the run does not meet a condition of the paper.
        """

    def configure_server(self, x: Tensor) -> State:
        """What the server remembers; its entry `x` is the global model [P]."""
        return State(x=x)

    def configure_client(self, x: Tensor) -> State:
        """What a client remembers when it first meets the server, whose model was then x [P]. Default: nothing."""
        return State()

    def evaluation_point(self, server: State) -> Tensor:
        """The model that is evaluated [P], from the server's state."""
        return server.x

    # -- every round ------------------------------------------------------------------------------------------------
    def client_lr(self, round: int) -> float:
        """η_t, the clients' learning rate in a round.

        Raises:
            ConfigurationError: it is too large for a number.
        """
        try:
            return self.lr * self.lr_decay**round
        except OverflowError as error:
            raise ConfigurationError(
                f"`lr_decay` of {type(self).__name__} must keep lr · lr_decay^t finite, but {self.lr:g} · "
                f"{self.lr_decay:g}^{round} is not; lower it to 1 or less."
            ) from error

    def local_steps(self, round: int) -> int | None:
        """K for every client in this round; None leaves it to the data module's epochs or steps."""
        return None

    def gradient_pass(self) -> Literal["none", "local", "mean"]:
        """Whether a client first computes ∇f_i(x) over all its data, at the x of this round: a pass with w held at x.

        "local" gives `client.gradient`; "mean" sends it up too, and its weighted mean down as `client.server.gradient`.
        """
        return "none"

    # -- a client, in a round ---------------------------------------------------------------------------------------
    def start(self, client: ClientContext) -> Tensor:
        """Where the local steps begin [P]: the global model."""
        return client.x

    def on_client_start(self, client: ClientContext) -> State:
        """The local state at the first step; its entry `w` is the local model [P]."""
        return State(w=self.start(client))

    def objective(self, model: FlatModel, w: Tensor, batch: Batch, client: ClientContext) -> Tensor:
        """Per-example losses [B]; `grad` differentiates their mean over the places that `batch.mask` fills.

        May call `model(v, inputs)` for any vector v. A loss of one example that depends on others of the batch (a contrast,
        an inner gradient) must leave the empty places out: `(losses * batch.mask).sum() / batch.mask.sum()` is a mean.
        """
        return model.loss(w, batch)

    def direction(self, local: State, grad: Grad, client: ClientContext) -> Tensor:
        """The descent direction d [P] of one local step, w ← w − η d. Most methods override this alone."""
        return grad(local.w)

    def on_local_step(self, local: State, grad: Grad, client: ClientContext) -> State:
        """One local step, from a local state to the next."""
        d = self.clip_and_decay(self.direction(local, grad, client), local.w, client)
        return local.replace(w=local.w - client.lr * d)

    def clip_and_decay(self, d: Tensor, w: Tensor, client: ClientContext) -> Tensor:
        """What is subtracted for a direction d at w: clip(d) + u w."""
        d = clip(d, self.clip_norm)
        return d + self.weight_decay * w if self.weight_decay else d

    def on_client_end(self, local: State, client: ClientContext) -> tuple[State, State]:
        """What the client uploads and what it remembers. Upload anything whose weighted mean the server needs."""
        return State(delta=local.w - client.x), client.state

    # -- the server, at the end of a round --------------------------------------------------------------------------
    def on_aggregate(self, server: State, mean: State, round: Round) -> State:
        """The server's next state, from its last and from the weighted mean of the uploads."""
        return server.replace(x=server.x + self.server_lr * mean.delta)

    def on_return(self, state: State, upload: State, step: Tensor, round: Round) -> State:
        """What a participant remembers once it knows the server's step, x_{t+1} − x_t [P]. Default: what it did before.

        For methods whose clients compare their own step with the mean's, of that same round. Where only some clients take
        part, the model that comes back is one more that travels.

        Args:
            state: what `on_client_end` left it with.
            upload: what it sent.
            step: x_{t+1} − x_t.
            round: the round that ends.
        """
        return state

    def on_evaluation(self, server: State, metrics: Mapping[str, float], round: Round) -> State:
        """The server's state with what it learns from an evaluation, e.g. `metrics["train_all/loss"]`. Default: nothing.

        A method that overrides it needs `evaluate_every=1` and "train" in the trainer's `evaluate_on`; then it is
        called once before the first round, with that round, and after each round, with the one that has ended. Entries []
        that travel to the clients are logged as `server/…`.
        """
        return server


HOOKS: dict[str, Callable[..., Any]] = {
    name: value for name, value in vars(FedMethod).items() if isfunction(value) and not name.startswith("_")
}
"""The hooks by name, as `FedMethod` has them."""


def clip(d: Tensor, norm: float | None) -> Tensor:
    """The vector d, scaled down to an L2 norm if it is longer; None leaves it."""
    return d if norm is None else d * (norm / (d.norm() + 1e-6)).clamp(max=1.0)


def declared_fault(method: FedMethod) -> str:
    """What is wrong with what the method's class, or a base of it, declares, in words; "" if nothing is."""
    return method._fault


def _declared(cls: type[FedMethod], attribute: str) -> tuple[str, ...]:
    """The names in a tuple that each class of the MRO declares for itself, the bases' first."""
    declared = (vars(base).get(attribute) for base in reversed(cls.__mro__))
    return tuple(dict.fromkeys(name for names in declared if isinstance(names, list | tuple) for name in names))


def _inherit_defaults(cls: type[FedMethod]) -> None:
    """Give each field the default of the first class in the MRO that declares it, and the first interval declared.

    A dataclass takes a field from the first base that has it at all: a mix-in, which inherits every field of `FedMethod`,
    would put those defaults in the place of its neighbour's own.
    """
    fields, defaults = cls.__dataclass_fields__, cls.__init__.__kwdefaults__ or {}
    for name in fields:
        bases = [base for base in cls.__mro__ if name in vars(base)]
        own = [known[name] for base in bases if name in (known := getattr(base, "__dataclass_fields__", {}))]
        if own:
            within = next((f.metadata["within"] for f in own if f.metadata.get("within")), None)
            fields[name] = copy(own[0])
            fields[name].metadata = MappingProxyType({**own[0].metadata, "within": within})
            defaults[name] = own[0].default


def field_names(method: FedMethod | type[FedMethod]) -> list[str]:
    """The names of the method's hyperparameters."""
    return [field.name for field in dataclasses.fields(method)]


def hyperparameters(method: FedMethod) -> dict[str, Any]:
    """The method's hyperparameters by name, as they are logged and written to checkpoints."""
    return {name: getattr(method, name) for name in field_names(method)}


def visible(method: FedMethod, server: State) -> State:
    """What a client sees of the server's state: the entries that `downlink` and `preshared` name."""
    return server.select(*(name for name in (*method.downlink, *method.preshared) if name in server))


def weights(method: FedMethod, num_examples: Tensor) -> Tensor:
    """The clients' weights [C] in the mean of the uploads, not yet normalised."""
    return num_examples if method.weighting == "examples" else torch.ones_like(num_examples)
