"""The hooks of the server, as the trainer calls them: what they give back and what they write to is looked at."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext

from torch import Tensor

from fedlightning.errors import MethodError
from fedlightning.hooks.contract import Contract
from fedlightning.hooks.diagnose import naming, where
from fedlightning.hooks.generators import no_draws
from fedlightning.layout import Layout
from fedlightning.method import FedMethod, Round, declared_fault
from fedlightning.state import State

_SCHEDULED = 1000
"""Rounds whose numbers are looked at before the first one; those of the others when they come."""


class ServerHooks:
    """The hooks of a method that run in the trainer's thread. Each raises a `MethodError` where it breaks the contract.

    Args:
        method: whose hooks they are; it is kept as `method`.
        layout: of the model.
        rounds: of the run, of which the learning rates and local steps of the first thousand are asked for at once.

    Raises:
        MethodError: the method's class declares what cannot be, or gives such numbers.
    """

    def __init__(self, method: FedMethod, layout: Layout, rounds: int = 1) -> None:
        if fault := declared_fault(method):
            raise MethodError(fault)
        self.method, self._contract = method, Contract(method, layout)
        self._called = set[str]()
        self._watched = _runs_elsewhere(method)
        with naming(method, "gradient_pass"):
            wish = method.gradient_pass()
        self._contract.gradient_pass(wish)
        self._lrs, self._steps = list[float](), list[int | None]()
        for round in range(min(rounds, _SCHEDULED)):
            self._lrs.append(self.lr(round))
            self._steps.append(self.steps(round))

    def lr(self, round: int) -> float:
        """η_t, the clients' learning rate in a round."""
        if round < len(self._lrs):
            return self._lrs[round]
        with naming(self.method, "client_lr"):
            lr = self.method.client_lr(round)
        return self._contract.lr(lr, round)

    def steps(self, round: int) -> int | None:
        """K for every client in a round, or None."""
        if round < len(self._steps):
            return self._steps[round]
        with naming(self.method, "local_steps"):
            steps = self.method.local_steps(round)
        return self._contract.steps(steps, round)

    def check(self, round: Round) -> None:
        """Ask the method whether it is made for the run."""
        with naming(self.method, "check"):
            self.method.check(round)

    def configure(self, x: Tensor) -> State:
        """What the server remembers at first."""
        with self._calling("configure_server", State(x=x)):
            server = self.method.configure_server(x)
        return self._contract.server("configure_server", server)

    def configure_client(self, x: Tensor) -> State:
        """What a client remembers at first."""
        with self._calling("configure_client", State(x=x)):
            state = self.method.configure_client(x)
        return self._contract.state("configure_client", state)

    def evaluation_point(self, server: State) -> Tensor:
        """The model that is evaluated [P]."""
        if "evaluation_point" not in self.method.own_hooks:
            return server.x
        with self._calling("evaluation_point", server):
            x = self.method.evaluation_point(server)
        return self._contract.vector("evaluation_point", x, "return a model, e.g. `server.x`")

    def aggregate(self, server: State, mean: State, round: Round) -> State:
        """The server's next state."""
        if not self._watched and "on_aggregate" in self._called:
            # Looked at in the audit and in the first round: a look costs 40 µs of each.
            return self.method.on_aggregate(server, mean, round)
        self._check_delta(mean)
        with self._calling("on_aggregate", server):
            after = self.method.on_aggregate(server, mean, round)
        return self._contract.server("on_aggregate", after, server)

    def returned(
        self, rows: dict[int, State], uploads: Mapping[int, State], server: State, step: Tensor, round: Round
    ) -> dict[int, State]:
        """What the participants remember once they know the server's step, by client.

        Args:
            rows: what `on_client_end` left them with.
            uploads: what those whom it is asked of sent.
            server: the state after the step.
            step: x_{t+1} − x_t [P].
            round: the round that ends.
        """
        after = dict(rows)
        with self._calling("on_return", server.replace(step=step)):
            for client, upload in uploads.items():
                there = step.to(next(iter(upload.values())).device)
                after[client] = self.method.on_return(rows[client], upload, there, round)
        for client in uploads:
            self._contract.remembered("on_return", after[client], rows[client])
        return after

    def evaluated(self, server: State, metrics: Mapping[str, float], round: Round) -> State:
        """The server's state with what it learns from an evaluation."""
        with self._calling("on_evaluation", server):
            after = self.method.on_evaluation(server, metrics, round)
        return self._contract.server("on_evaluation", after, server)

    def _check_delta(self, mean: State) -> None:
        """`FedMethod`'s own `on_aggregate` adds up `delta`."""
        if "on_aggregate" not in self.method.own_hooks and "delta" not in mean:
            raise MethodError(
                f"{where(self.method, 'on_client_end')} must upload `delta`, which FedMethod's `on_aggregate` adds to x, but "
                f"uploads {', '.join(mean)}; upload it, or override `on_aggregate`."
            )

    @contextmanager
    def _calling(self, hook: str, state: State) -> Iterator[None]:
        """Reword what a hook raises, and detect a write to what the server remembers."""
        versions = [tensor._version for tensor in state.values()]
        device = next(iter(state.values())).device
        # At first each operation is looked at. In later rounds only whether a generator has moved, which costs some 60 µs, and
        # that only where a class from elsewhere may draw.
        known = hook in self._called
        draws: AbstractContextManager[None] = nullcontext()
        if self._watched or not known:
            draws = no_draws(where(self.method, hook), device, models=known)
        self._called.add(hook)
        with naming(self.method, hook), draws:
            yield
        changed = [name for name, before in zip(state, versions, strict=True) if state[name]._version != before]
        if changed:
            raise MethodError(
                f"{where(self.method, hook)} changed `{changed[0]}` in place, which is the server's; compute a new tensor and "
                f"return `server.replace({changed[0]}=…)`."
            )


_OF_CLIENTS = {
    "start", "direction", "clip_and_decay", "objective", "on_client_start", "on_local_step", "on_client_end",
}  # fmt: skip
"""Hooks that only clients call."""


def _runs_elsewhere(method: FedMethod) -> bool:
    """Whether a class from elsewhere has code that the server may run: anything it defines but clients' hooks and values."""
    own = [cls for cls in type(method).__mro__[:-1] if not cls.__module__.startswith("fedlightning.")]
    return any(
        name not in _OF_CLIENTS and not name.startswith("__") and (callable(value) or hasattr(type(value), "__get__"))
        for cls in own
        for name, value in vars(cls).items()
    )
