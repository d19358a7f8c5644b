"""What hooks must give back: a method that gives something else is told hook, line and remedy before the first round."""

import json
import random
import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from small_runs import fit, quiet_trainer, small_task, unequal_clients
from torch import Tensor

from fedlightning import (
    ConfigurationError,
    FedAvg,
    FederatedTrainer,
    FedMethod,
    MethodError,
    State,
    hyper,
    keyed_uniform,
)
from fedlightning.methods import FedAdam, Scaffold, method_named, method_names
from fedlightning.testing import Quadratics, check_method

pytestmark = pytest.mark.quick

P = 83
SPLITS = ("test", "train")


def run(method: FedMethod, rounds: int = 2, **options: Any) -> FederatedTrainer:
    """A run on a small model of 83 weights in float64, in which every hook is called."""
    return fit(method, rounds=rounds, **{"runner": "loop", "evaluate_every": 1, "evaluate_on": SPLITS, **options})


def refusal(method: FedMethod) -> str:
    """The one line with which `fit` refuses a method before the first round, as `check_method` does."""
    trainer = quiet_trainer(runner="loop", evaluate_every=1, evaluate_on=SPLITS)
    with pytest.raises(MethodError) as raised:
        trainer.fit(method, small_task(), unequal_clients())
    assert trainer.round == 0
    assert "train/loss" not in trainer.metrics
    with pytest.raises(MethodError):
        check_method(method)
    message = str(raised.value)
    assert "\n" not in message
    return message


def made(name: str = "Mine", base: type[FedMethod] = FedMethod, **body: Any) -> FedMethod:
    """A method of these hooks."""
    return type(name, (base,), body)()


class Carries(FedMethod):
    """Has an entry in each of its States."""

    downlink = ("m",)

    def configure_server(self, x):
        return State(x=x, m=torch.zeros_like(x), hidden=x.new_zeros(()))

    def configure_client(self, x):
        return State(h=torch.zeros_like(x))

    def on_client_start(self, client):
        return State(w=client.x, v=torch.zeros_like(client.x))


# -- what hooks give back -----------------------------------------------------------------------------------------------
ONE = torch.zeros(1, dtype=torch.float64)
RETURNS: list[tuple[str, Callable[..., Any], type[FedMethod], str]] = [
    (
        "configure_server",
        lambda self, x: State(m=x),
        FedMethod,
        r"a State with `x`, but gave State\(m: float64\[83\]\)",
    ),
    ("configure_server", lambda self, x: x, FedMethod, r"a State with `x`, but gave float64\[83\]"),
    ("configure_server", lambda self, x: None, FedMethod, "a State with `x`, but gave None; end it with a `return`"),
    ("configure_server", lambda self, x: {"x": x}, FedMethod, "a State with `x`, but gave a dict of x"),
    (
        "configure_server",
        lambda self, x: State(x=x.float()),
        FedMethod,
        r"`x` as float64\[83\], but gave float32\[83\]",
    ),
    (
        "configure_server",
        lambda self, x: State(x=x[None]),
        FedMethod,
        r"`x` as float64\[83\], but gave float64\[1, 83\]",
    ),
    ("configure_client", lambda self, x: None, FedMethod, "a State, but gave None"),
    ("configure_client", lambda self, x: (State(),), FedMethod, r"a State, but gave \(State\(\)\)"),
    (
        "evaluation_point",
        lambda self, server: server.x[:1],
        FedMethod,
        r"a vector of float64\[83\] like w, but gave float64\[1\]",
    ),
    ("evaluation_point", lambda self, server: server, FedMethod, r"like w, but gave State\(x"),
    ("start", lambda self, client: client.x[:1], FedMethod, r"like w, but gave float64\[1\]"),
    ("start", lambda self, client: None, FedMethod, "like w, but gave None"),
    ("on_client_start", lambda self, client: client.x, FedMethod, r"a State with `w`, but gave float64\[83\]"),
    ("on_client_start", lambda self, client: State(v=client.x), FedMethod, r"a State with `w`, but gave State\(v"),
    (
        "on_client_start",
        lambda self, client: State(w=client.x[None]),
        FedMethod,
        r"`w` as float64\[83\], but gave float64\[1, 83\]",
    ),
    (
        "on_client_start",
        lambda self, client: State(w=client.x.float()),
        FedMethod,
        r"`w` as float64\[83\], but gave float32",
    ),
    ("on_client_start", lambda self, client: None, FedMethod, "a State with `w`, but gave None"),
    ("direction", lambda self, local, grad, client: grad(local.w)[:1], FedMethod, r"like w, but gave float64\[1\]"),
    ("direction", lambda self, local, grad, client: grad(local.w).norm(), FedMethod, r"like w, but gave float64\[\]"),
    (
        "direction",
        lambda self, local, grad, client: grad(local.w)[None],
        FedMethod,
        r"like w, but gave float64\[1, 83\]",
    ),
    (
        "direction",
        lambda self, local, grad, client: grad(local.w).float(),
        FedMethod,
        r"like w, but gave float32\[83\]",
    ),
    ("direction", lambda self, local, grad, client: None, FedMethod, "like w, but gave None"),
    ("direction", lambda self, local, grad, client: (grad(local.w),), FedMethod, r"like w, but gave \(float64\[83\]\)"),
    ("clip_and_decay", lambda self, d, w, client: d.norm(), FedMethod, r"like w, but gave float64\[\]"),
    ("on_local_step", lambda self, local, grad, client: None, FedMethod, "a State with `w`, but gave None"),
    (
        "on_local_step",
        lambda self, local, grad, client: local.w,
        FedMethod,
        r"a State with `w`, but gave float64\[83\]",
    ),
    (
        "on_local_step",
        lambda self, local, grad, client: State(w=local.w),
        Carries,
        r"a State with w, v, but gave State\(w: ",
    ),
    (
        "on_local_step",
        lambda self, local, grad, client: local.replace(k=client.lr),
        FedMethod,
        r"a State with w, but gave .* k: float64\[\]\); `on_client_start` says which entries there are",
    ),
    (
        "on_local_step",
        lambda self, local, grad, client: local.replace(v=local.v.norm()),
        Carries,
        r"`v` as float64\[83\], but gave float64\[\]; `on_client_start` set it so",
    ),
    (
        "on_local_step",
        lambda self, local, grad, client: local.replace(v=local.v.float()),
        Carries,
        r"`v` as float64\[83\], but gave float32\[83\]",
    ),
    (
        "on_client_end",
        lambda self, local, client: State(delta=local.w),
        FedMethod,
        r"two States, .* but gave State\(delta",
    ),
    ("on_client_end", lambda self, local, client: None, FedMethod, "two States, .* but gave None"),
    (
        "on_client_end",
        lambda self, local, client: (local.w, State()),
        FedMethod,
        r"but gave \(float64\[83\], State\(\)\)",
    ),
    ("on_client_end", lambda self, local, client: [State(d=local.w), State()], FedMethod, "two States"),
    (
        "on_client_end",
        lambda self, local, client: (State(), client.state),
        FedMethod,
        r"an upload of one entry at least",
    ),
    (
        "on_client_end",
        lambda self, local, client: (State(d=local.w), State()),
        Carries,
        r"a State with h, but gave State\(\)",
    ),
    (
        "on_client_end",
        lambda self, local, client: (State(delta=local.w), State(c=local.w)),
        FedMethod,
        "a State with nothing, but gave .*c: .*`configure_client` says which entries there are",
    ),
    (
        "on_client_end",
        lambda self, local, client: (State(delta=local.w), State(h=local.w.norm())),
        Carries,
        r"`h` as float64\[83\], but gave float64\[\]; `configure_client` set it so",
    ),
    (
        "on_client_end",
        lambda self, local, client: (State(d=local.w - client.x), client.state),
        FedMethod,
        "must upload `delta`, which FedMethod's `on_aggregate` adds to x, but uploads d; upload it, or override `on_aggregate`",
    ),
    (
        "on_client_end",
        lambda self, local, client: (State(delta=local.w, z=local.w * 1j), client.state),
        FedMethod,
        r"`z` as a dense tensor of real numbers, but gave 'strided complex128\[83\]'; use `torch.view_as_real`",
    ),
    (
        "on_client_end",
        lambda self, local, client: (State(delta=local.w.to_sparse()), client.state),
        FedMethod,
        r"`delta` as a dense tensor of real numbers, but gave 'sparse_coo float64\[83\]'",
    ),
    ("on_aggregate", lambda self, server, mean, round: None, FedMethod, "a State with `x`, but gave None"),
    (
        "on_aggregate",
        lambda self, server, mean, round: server.x,
        FedMethod,
        r"a State with `x`, but gave float64\[83\]",
    ),
    (
        "on_aggregate",
        lambda self, server, mean, round: State(m=server.x),
        FedMethod,
        r"a State with `x`, but gave State\(m",
    ),
    ("on_aggregate", lambda self, server, mean, round: server.replace(x=ONE), FedMethod, r"but gave float64\[1\]"),
    (
        "on_aggregate",
        lambda self, server, mean, round: server.replace(x=server.x.float()),
        FedMethod,
        r"but gave float32\[83\]",
    ),
    (
        "on_aggregate",
        lambda self, server, mean, round: State(x=server.x),
        Carries,
        r"a State with x, m, hidden, but gave State\(x: float64\[83\]\); return `server.replace\(…\)`",
    ),
    (
        "on_aggregate",
        lambda self, server, mean, round: server.replace(m=server.m.float()),
        Carries,
        r"`m` as float64\[83\], but gave float32\[83\]; `configure_server` set it so",
    ),
    ("on_return", lambda self, state, upload, step, round: None, Carries, "a State, but gave None"),
    ("on_return", lambda self, state, upload, step, round: State(), Carries, r"a State with h, but gave State\(\)"),
    ("on_return", lambda self, state, upload, step, round: state.replace(h=step[:1]), Carries, r"`h` as float64\[83\]"),
    (
        "on_return",
        lambda self, state, upload, step, round: state,
        FedMethod,
        "`configure_client` sets nothing for it to remember, so it would never be called; set its entries there",
    ),
    ("client_lr", lambda self, round: float("nan"), FedMethod, r"a number in \[0, inf\), but gave nan; .* of round 0"),
    (
        "client_lr",
        lambda self, round: -0.1 if round else 0.1,
        FedMethod,
        r"but gave -0.1; look at what it makes of round 1",
    ),
    ("client_lr", lambda self, round: float("inf"), FedMethod, "but gave inf"),
    ("client_lr", lambda self, round: torch.tensor(0.1), FedMethod, r"but gave float32\[\]"),
    ("client_lr", lambda self, round: None, FedMethod, "but gave None"),
    ("client_lr", lambda self, round: "0.1", FedMethod, "but gave '0.1'"),
    ("local_steps", lambda self, round: 0, FedMethod, "a whole number from 1 on, or None, but gave 0; .* of round 0"),
    ("local_steps", lambda self, round: -1, FedMethod, "but gave -1"),
    ("local_steps", lambda self, round: 2.0, FedMethod, "but gave 2.0"),
    ("local_steps", lambda self, round: 3 - 3 * round, FedMethod, "but gave 0; look at what it makes of round 1"),
    ("local_steps", lambda self, round: torch.tensor(2), FedMethod, r"but gave int64\[\]"),
    ("local_steps", lambda self, round: True, FedMethod, "but gave True"),
    ("gradient_pass", lambda self: "men", FedMethod, "'none' or 'local' or 'mean', but gave 'men'; return one of them"),
    ("gradient_pass", lambda self: True, FedMethod, "but gave True"),
    ("gradient_pass", lambda self: None, FedMethod, "but gave None"),
]


@pytest.mark.parametrize(
    ("hook", "body", "base", "message"), RETURNS, ids=[f"{case[0]}{i}" for i, case in enumerate(RETURNS)]
)
def test_a_hook_that_gives_something_else_is_told_before_the_first_round(
    hook: str, body: Callable[..., Any], base: type[FedMethod], message: str
) -> None:
    line = body.__code__.co_firstlineno
    found = refusal(made(base=base, **{hook: body}))
    assert re.search(rf"`Mine.{hook}` \(.*test_hooks.py:{line}\) .*{message}", found)


class Shares(FedMethod):
    """Says that every client has an entry from the beginning, and another that it never sets."""

    preshared = ("first",)
    downlink = ("later",)

    def configure_server(self, x):
        return State(x=x, first=x)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            lambda self, server, mean, round: server.replace(first=server.x + 1),
            "must leave `first` as it is, since `preshared`",
        ),
        (
            lambda self, server, mean, round: server.replace(later=server.x),
            "a State with x, first, but gave .* later: ",
        ),
    ],
)
def test_what_clients_see_of_the_server_stays_what_it_was(body: Callable[..., Any], message: str) -> None:
    assert re.search(
        rf"`Mine.on_aggregate` \(.*test_hooks.py:\d+\) .*{message}", refusal(made(base=Shares, on_aggregate=body))
    )
    run(
        made(
            base=Shares,
            on_aggregate=lambda self, server, mean, round: server.replace(other=server.x, first=server.first + 0),
        )
    )


@pytest.mark.parametrize("given", [None, State(m=ONE), State(x=ONE), State(x=ONE).x], ids=repr)
def test_on_evaluation_is_looked_at_when_it_is_first_called_before_the_first_round(given: Any) -> None:
    class Adapts(FedMethod):
        def on_evaluation(self, server, metrics, round):
            return given

    with pytest.raises(
        MethodError, match=r"`Adapts.on_evaluation` \(.*test_hooks.py:\d+\) must return .*`x`.*, but gave"
    ):
        run(Adapts(), evaluate_every=1)
    with pytest.raises(MethodError, match=r"`Adapts.on_evaluation`"):
        check_method(Adapts())


def test_a_server_hook_that_gives_something_else_later_is_told_in_that_round() -> None:
    class Later(FedMethod):
        def on_aggregate(self, server, mean, round):
            return super().on_aggregate(server, mean, round) if round.index < 2 else None

    trainer = quiet_trainer(4, runner="loop", evaluate_every=1, evaluate_on=SPLITS)
    with pytest.raises(MethodError, match=r"`Later.on_aggregate` .* but gave None"):
        trainer.fit(Later(), small_task(), unequal_clients())
    assert trainer.round == 2


def test_rounds_beyond_those_looked_at_before_are_looked_at_when_they_come() -> None:
    """The numbers of the first thousand rounds are looked at before the first one."""

    class Falls(FedMethod):
        def client_lr(self, round):
            return 0.1 if round < 1002 else -0.1

    trainer = quiet_trainer(1004)
    with pytest.raises(MethodError, match=r"`Falls.client_lr` .* round 1002"):
        trainer.fit(Falls(), Quadratics.task([1.0]), Quadratics([torch.eye(1)], [ONE], [1], steps=1))
    assert trainer.round == 1002


# -- what hooks raise ---------------------------------------------------------------------------------------------------
RAISES: list[tuple[str, Callable[..., Any], str]] = [
    (
        "configure_server",
        lambda self, x: State(x=x, m=x.mean),
        "A State holds tensors, but 'm' is <built-in method mean",
    ),
    ("configure_server", lambda self, x: State(items=x), "A State entry must not be called 'items'"),
    ("configure_client", lambda self, x: 1 / 0, "failed: ZeroDivisionError: division by zero"),
    (
        "evaluation_point",
        lambda self, server: server.mean,
        "This State has no entry 'mean'; it holds x. .`configure_server` sets",
    ),
    (
        "on_client_start",
        lambda self, client: State(w=client.server.m),
        "failed: AttributeError: .* no entry 'm'; it holds x",
    ),
    ("on_client_start", lambda self, client: State(w=client.state["h"]), "failed: KeyError: 'h'"),
    (
        "direction",
        lambda self, local, grad, client: grad(local.w[None]),
        r"at a vector like w, float64\[83\], but asks at float64\[1",
    ),
    ("direction", lambda self, local, grad, client: grad(local), r"but asks at State\(w"),
    ("direction", lambda self, local, grad, client: grad(local.w) + client.state.h, "no entry 'h'; it holds nothing"),
    (
        "direction",
        lambda self, local, grad, client: grad(local.v),
        "no entry 'v'; it holds w. .*`on_client_start` those of `local`",
    ),
    (
        "on_local_step",
        lambda self, local, grad, client: setattr(local, "w", grad(local.w)),
        "A State cannot be changed, but 'w'",
    ),
    (
        "on_local_step",
        lambda self, local, grad, client: local.replace(w=0.5),
        "A State holds tensors, but 'w' is 0.5, a float",
    ),
    ("on_client_end", lambda self, local, client: (State(delta=local.u), client.state), "no entry 'u'; it holds w"),
    (
        "on_aggregate",
        lambda self, server, mean, round: server.replace(x=server.x + mean.d),
        "no entry 'd'; it holds delta",
    ),
    ("on_aggregate", lambda self, server, mean, round: server.replace(x=server.v), "no entry 'v'; it holds x"),
    ("on_aggregate", lambda self, server, mean, round: [][round.index], "failed: IndexError: list index out of range"),
    (
        "on_aggregate",
        lambda self, server, mean, round: setattr(self, "last", mean),
        "must keep nothing on itself, but assigns",
    ),
    ("client_lr", lambda self, round: [0.1][round], "failed: IndexError"),
    ("local_steps", lambda self, round: {}[round], "failed: KeyError: 0"),
    ("gradient_pass", lambda self: self.wish, "failed: AttributeError: 'Mine' object has no attribute 'wish'"),
    ("check", lambda self, round: round.clients, "failed: AttributeError: 'Round' object has no attribute 'clients'"),
]


@pytest.mark.parametrize(("hook", "body", "message"), RAISES, ids=[f"{case[0]}{i}" for i, case in enumerate(RAISES)])
def test_what_a_hook_raises_is_told_with_its_line_before_the_first_round(
    hook: str, body: Callable[..., Any], message: str
) -> None:
    line = body.__code__.co_firstlineno
    trainer = quiet_trainer(runner="loop", evaluate_every=1, evaluate_on=SPLITS)
    with pytest.raises(MethodError, match=rf"`Mine.{hook}` \(.*test_hooks.py:{line}\).* {message}"):
        trainer.fit(made(**{hook: body}), small_task(), unequal_clients())
    assert trainer.round == 0


def test_on_return_is_told_which_entry_is_missing() -> None:
    class Looks(Scaffold):
        def on_return(self, state, upload, step, round):
            return state.replace(c=state.c + upload.dc)

    with pytest.raises(MethodError, match=r"`Looks.on_return` \(.*test_hooks.py:\d+\) failed: .* no entry 'dc'"):
        run(Looks())


def test_a_model_that_fails_is_not_the_methods_fault() -> None:
    class Model(torch.nn.Linear):
        def forward(self, inputs):
            raise KeyError("mine")

    trainer = quiet_trainer(1, runner="loop")
    from fedlightning import Classification

    with pytest.raises(KeyError, match="mine"):
        trainer.fit(FedAvg(), Classification(Model(6, 3).double(), 3), unequal_clients())


# -- what hooks leave alone ---------------------------------------------------------------------------------------------
def _in_place(hook: str) -> dict[str, Any]:
    """A hook that writes to each of the tensors it is given, and gives what its base does."""
    writes = {
        "configure_client": lambda self, x: (x.add_(1), State(h=x.clone()))[1],
        "evaluation_point": lambda self, server: server.x.mul_(1.5),
        "on_client_start": lambda self, client: (client.x.add_(1), State(w=client.x, v=client.x.clone()))[1],
        "direction": lambda self, local, grad, client: grad(local.w) + client.state.h.add_(1),
        "on_local_step": lambda self, local, grad, client: local.replace(w=local.w.sub_(client.lr * grad(local.w))),
        "on_client_end": lambda self, local, client: (State(delta=local.w.sub_(client.x)), client.state),
        "on_aggregate": lambda self, server, mean, round: (server.x.add_(mean.delta), server)[1],
        "on_return": lambda self, state, upload, step, round: (step.mul_(2), state)[1],
    }
    return {hook: writes[hook]}


IN_PLACE = {
    "configure_client": "x", "evaluation_point": "x", "on_client_start": "client.server.x", "direction": "client.state.h",
    "on_local_step": "local.w", "on_client_end": "local.w", "on_aggregate": "x", "on_return": "step",
}  # fmt: skip


@pytest.mark.parametrize(("hook", "name"), IN_PLACE.items())
def test_a_hook_that_writes_in_place_is_told_before_the_first_round(hook: str, name: str) -> None:
    found = refusal(made(base=Carries, **_in_place(hook)))
    assert re.search(
        rf"`Mine.{hook}` \(.*test_hooks.py:\d+\) changed `(server\.)?{name}` in place, .*replace\(\w+=…\)`", found
    )


def test_on_evaluation_that_writes_in_place_is_told() -> None:
    class Adapts(FedMethod):
        def on_evaluation(self, server, metrics, round):
            server.x.mul_(0.5)
            return server

    with pytest.raises(MethodError, match=r"`Adapts.on_evaluation` \(.*\) changed `x` in place, which is the server's"):
        run(Adapts(), evaluate_every=1)


@pytest.mark.parametrize("hook", ["on_aggregate", "on_return", "on_evaluation"])
def test_a_server_hook_that_writes_in_place_in_a_later_round_is_told_then(hook: str) -> None:
    class Later(Scaffold):
        def on_aggregate(self, server, mean, round):
            after = super().on_aggregate(server, mean, round)
            if hook == "on_aggregate" and round.index == 1:
                server.c.mul_(2)
            return after

        def on_return(self, state, upload, step, round):
            if hook == "on_return" and round.index == 1:
                step.mul_(2)
            return state

        def on_evaluation(self, server, metrics, round):
            if hook == "on_evaluation" and round.index == 1:
                server.x.mul_(2)
            return server

    trainer = quiet_trainer(4, runner="loop", evaluate_every=1, evaluate_on=SPLITS)
    with pytest.raises(MethodError, match=rf"`Later.{hook}` \(.*\) changed `\w+` in place, which is the server's"):
        trainer.fit(Later(lr=0.05), small_task(), unequal_clients())
    assert trainer.round == 1


DRAWS: dict[str, Callable[[Tensor], Tensor]] = {
    "torch.randn_like": torch.randn_like,
    "torch.rand": lambda x: torch.rand(len(x), dtype=x.dtype),
    "dropout": torch.nn.functional.dropout,
    "bernoulli": lambda x: torch.bernoulli(x.abs().clamp(max=1)),
    "numpy": lambda x: x * np.random.rand(),
    "random": lambda x: x * random.random(),
}
DRAWING: dict[str, Callable[[Callable[[Tensor], Tensor]], Callable[..., Any]]] = {
    "configure_server": lambda draw: lambda self, x: State(x=x + 0 * draw(x)),
    "configure_client": lambda draw: lambda self, x: State(h=draw(x)),
    "evaluation_point": lambda draw: lambda self, server: server.x + draw(server.x),
    "start": lambda draw: lambda self, client: client.x + draw(client.x),
    "on_client_start": lambda draw: lambda self, client: State(w=client.x + draw(client.x)),
    "direction": lambda draw: lambda self, local, grad, client: grad(local.w) + draw(local.w),
    "on_local_step": lambda draw: lambda self, local, grad, client: State(w=local.w - client.lr * draw(grad(local.w))),
    "clip_and_decay": lambda draw: lambda self, d, w, client: d + draw(d),
    "on_client_end": lambda draw: lambda self, local, client: (State(delta=draw(local.w)), client.state),
    "on_aggregate": lambda draw: lambda self, server, mean, round: server.replace(x=server.x + draw(mean.delta)),
    "objective": lambda draw: lambda self, model, w, batch, client: model.loss(w + draw(w.detach()), batch),
}


@pytest.mark.parametrize("hook", DRAWING)
@pytest.mark.parametrize("draw", ["torch.randn_like", "numpy", "random"])
def test_a_hook_that_draws_global_random_numbers_is_told_before_the_first_round(hook: str, draw: str) -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    found = refusal(made(**{hook: DRAWING[hook](DRAWS[draw])}))
    assert re.search(rf"`Mine.{hook}` \(.*\) drew global random numbers, .*`keyed_uniform\(client.key, shape\)`", found)
    after = torch.get_rng_state(), np.random.get_state()[1], random.getstate()
    assert (before[1] == after[1]).all()
    assert before[2] == after[2]


@pytest.mark.parametrize("draw", ["torch.rand", "dropout", "bernoulli"])
def test_other_ways_to_draw_are_found_too(draw: str) -> None:
    assert "`Mine.direction`" in refusal(made(direction=DRAWING["direction"](DRAWS[draw])))


def test_draws_are_found_though_the_generator_is_put_back_and_those_of_ones_own_pass() -> None:
    def forked(self, local, grad, client):
        with torch.random.fork_rng():
            return grad(local.w) + torch.randn_like(local.w)

    def own(self, server, mean, round):
        noise = torch.randn(P, dtype=torch.float64, generator=torch.Generator().manual_seed(round.index))
        return server.replace(x=server.x + 0.01 * noise)

    assert "`Mine.direction`" in refusal(made(direction=forked))
    run(made(on_aggregate=own))


def test_on_return_and_on_evaluation_that_draw_are_told() -> None:
    class Returns(Scaffold):
        def on_return(self, state, upload, step, round):
            return state.apply(lambda tensor: tensor + torch.randn_like(tensor))

    class Adapts(FedMethod):
        def on_evaluation(self, server, metrics, round):
            return server.replace(x=server.x + torch.randn_like(server.x))

    assert "`Returns.on_return`" in refusal(Returns())
    with pytest.raises(MethodError, match=r"`Adapts.on_evaluation` \(.*\) drew global random numbers"):
        run(Adapts(), evaluate_every=1)


def test_a_model_that_draws_is_not_the_objectives_fault() -> None:
    class Noisy(torch.nn.Linear):
        def forward(self, inputs):
            return super().forward(inputs + torch.randn_like(inputs))

    class Plain(FedMethod):
        def objective(self, model, w, batch, client):
            return model.loss(w, batch)

    from fedlightning import Classification

    trainer = quiet_trainer(1, runner="loop")
    with pytest.warns(UserWarning, match="must draw no random numbers of its own"):
        trainer.fit(Plain(), Classification(Noisy(6, 3).double(), 3), unequal_clients())


def test_the_clients_own_random_numbers_pass() -> None:
    class Noise(FedMethod):
        def direction(self, local, grad, client):
            return grad(local.w) + keyed_uniform(client.key, local.w.shape)

    run(Noise())


# -- what a class declares ----------------------------------------------------------------------------------------------
def _nothing(*names: str) -> Callable[..., Any]:
    namespace: dict[str, Any] = {}
    exec(f"def function(self, {', '.join(names)}): return 0", namespace)
    function: Callable[..., Any] = namespace["function"]
    return function


MISSPELT = [
    ("direciton", ("local", "grad", "client"), "direction"),
    ("Direction", ("local", "grad", "client"), "direction"),
    ("direction_", ("local", "grad"), "direction"),
    ("on_agregate", ("server", "mean", "round"), "on_aggregate"),
    ("aggregate", ("server", "mean", "round"), "on_aggregate"),
    ("onClientEnd", ("local", "client"), "on_client_end"),
    ("on_clients_end", ("local", "client"), "on_client_end"),
    ("client_start", ("client",), "on_client_start"),
    ("local_step", ("local", "grad", "client"), "on_local_step"),
    ("on_returns", ("state", "upload", "step", "round"), "on_return"),
    ("on_evaluate", ("server", "metrics", "round"), "on_evaluation"),
    ("configure_clients", ("x",), "configure_client"),
    ("configureserver", ("x",), "configure_server"),
    ("evaluate_point", ("server",), "evaluation_point"),
    ("clients_lr", ("round",), "client_lr"),
    ("objectiv", ("model", "w", "batch", "client"), "objective"),
    ("gradient_passes", (), "gradient_pass"),
    ("strat", ("client",), "start"),
    ("chekc", ("round",), "check"),
]


@pytest.mark.parametrize(("name", "arguments", "hook"), MISSPELT, ids=[case[0] for case in MISSPELT])
def test_a_misspelt_hook_is_told_before_the_first_round(name: str, arguments: tuple[str, ...], hook: str) -> None:
    found = refusal(made(**{name: _nothing(*arguments)}))
    assert re.search(rf"`Mine.{name}` \(.*\) is no hook, and would never be called; call it `\w+` if", found)
    assert f"`{hook}`" in found or hook in ("on_local_step", "on_client_start")


HELPERS = [
    ("shrink", ("v",)),
    ("stats", ("client",)),
    ("proximal", ("local", "client")),
    ("aggregate_norms", ("deltas",)),
    ("_direction", ("local", "grad", "client")),
    ("momentum", ("server", "mean", "round")),
    ("restart", ("client",)),
    ("perturbed", ("local", "grad", "client")),
    ("step_size", ("round",)),
    ("server_step", ("server", "mean")),
    ("correction", ("client",)),
]


@pytest.mark.parametrize(("name", "arguments"), HELPERS, ids=[case[0] for case in HELPERS])
def test_a_helper_of_another_name_is_allowed(name: str, arguments: tuple[str, ...]) -> None:
    run(made(**{name: _nothing(*arguments)}), rounds=1, evaluate_every=0)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            {"direction": _nothing("local", "grad")},
            r"`Mine.direction` \(.*\) must take \(self, local, grad, client\), but takes",
        ),
        ({"on_aggregate": _nothing("server", "mean")}, r"must take \(self, server, mean, round\)"),
        ({"on_client_end": staticmethod(lambda local: 0)}, r"must take \(local, client\), but takes \(local\)"),
        ({"gradient_pass": "mean"}, "`Mine.gradient_pass` is a hook, and must be a function, but is 'mean'"),
        (
            {"local_steps": 5},
            "`Mine.local_steps` is a hook, and must be a function, but is 5; give the hyperparameter another",
        ),
        ({"local_steps": 5, "__annotations__": {"local_steps": int}}, "`Mine.local_steps` is a hook"),
        ({"start": property(lambda self: 0)}, "`Mine.start` is a hook"),
        ({"downlink": "mu"}, r"`downlink` of Mine must be a tuple of names, but is 'mu'; write `downlink = \('mu',\)`"),
        ({"preshared": "frozen"}, "`preshared` of Mine must be a tuple of names"),
        ({"downlink": ("mu", 3)}, "`downlink` of Mine must be a tuple of names"),
        ({"downlink": None}, "`downlink` of Mine must be a tuple of names, but is None"),
    ],
)
def test_what_a_class_declares_wrongly_is_told_before_the_first_round(body: dict[str, Any], message: str) -> None:
    assert re.search(message, refusal(made(**body)))


def test_a_base_that_declares_wrongly_is_told_too() -> None:
    class Base(FedMethod):
        def direciton(self, local, grad, client):
            return grad(local.w)

    class Mine(FedAdam, Base):
        pass

    assert "`Base.direciton`" in refusal(Mine())


def test_hooks_may_be_wrapped_static_or_take_anything() -> None:
    class Mine(FedMethod):
        @staticmethod
        def on_client_end(local, client):
            return State(delta=local.w - client.x), client.state

        def on_aggregate(self, *given):
            return super().on_aggregate(*given)

        def direction(self, local, grad, client, scale=1.0):
            return scale * grad(local.w)

    assert torch.equal(run(Mine()).state.server.x, run(FedMethod()).state.server.x)


def test_a_hook_that_others_call_may_take_and_give_more_where_ones_own_hook_calls_it() -> None:
    class Mine(FedMethod):
        def direction(self, local, grad, client, scale=1.0, *, both=False):
            d = scale * grad(local.w)
            return (d, d.norm()) if both else d

        def on_local_step(self, local, grad, client):
            d, _ = self.direction(local, grad=grad, client=client, scale=2.0, both=True)
            return local.replace(
                w=local.w - 0.5 * client.lr * self.direction(local, grad, client, 1.0) - 0.25 * client.lr * d
            )

    assert torch.allclose(run(Mine()).state.server.x, run(FedMethod()).state.server.x, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", method_names())
def test_every_method_of_the_library_keeps_it(name: str) -> None:
    method = method_named(name)
    run(method(**({"allow_partial": True} if name == "scaffnew" else {})), rounds=1)


# -- hyperparameters ----------------------------------------------------------------------------------------------------
class Holds(FedMethod):
    """Has a field for anything."""

    value: Any = None
    bounded: float = hyper(1.0, "[0, inf)")


@pytest.mark.parametrize(
    "value",
    [
        lambda round: 0.1, torch.tensor(1.0), torch.zeros(3), np.zeros(3), {1, 2}, b"x", 1j, {1: 2},
        [torch.zeros(1)], {"a": {"b": print}}, torch.float32, SimpleNamespace(a=1), FedAvg, FedAvg(),
    ],
)  # fmt: skip
def test_a_hyperparameter_that_json_does_not_hold_is_refused_where_it_is_given(value: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"`value` of Holds must be a number, a word, or .* name it by a word"):
        Holds(value=value)


@pytest.mark.parametrize(
    "value", [1, 0.5, True, "word", None, float("inf"), [1, "a"], (1, (2, 3)), {"a": [1, {"b": None}]}]
)
def test_what_json_holds_is_taken_as_it_is(value: Any) -> None:
    kept = Holds(value=value).value
    assert kept is value
    assert json.loads(json.dumps(kept)) == json.loads(json.dumps(value))


def test_numbers_of_numpy_become_pythons() -> None:
    method = Holds(value=np.int64(3), bounded=np.float32(0.5), lr=np.float64(0.25))
    assert (method.value, method.bounded, method.lr) == (3, 0.5, 0.25)
    assert [type(value) for value in (method.value, method.bounded, method.lr)] == [int, float, float]
    with pytest.raises(ConfigurationError, match=r"`bounded` of Holds must be in \[0, inf\), but is .*-1.0"):
        Holds(bounded=np.float32(-1))


def test_a_server_hook_that_draws_in_a_later_round_is_told_then() -> None:
    class Later(FedMethod):
        """Draws once the run has begun."""

        def on_aggregate(self, server, mean, round):
            noise = torch.randn_like(server.x) if round.index == 2 else 0
            return server.replace(x=server.x + mean.delta + noise)

    trainer = quiet_trainer(4, runner="loop", evaluate_every=1, evaluate_on=SPLITS)
    before = torch.get_rng_state()
    with pytest.raises(MethodError, match=r"`Later.on_aggregate` \(.*\) drew global random numbers"):
        trainer.fit(Later(lr=0.05), small_task(), unequal_clients())
    assert trainer.round == 2
    assert torch.equal(before, torch.get_rng_state())


def test_what_begins_like_a_hook_but_is_none_is_told_unless_it_is_called() -> None:
    assert "`Mine.on_server_update` " in refusal(made(on_server_update=lambda self, server: server))
    assert "`downlnk` of Mine is never looked at; call it `downlink`" in refusal(made(downlnk=("m",)))
    assert "`couplde` of Mine is never looked at; call it `coupled`" in refusal(made(couplde=True))

    class Mine(FedMethod):
        """Has a hook of its own, which it calls."""

        def on_gradient(self, g):
            return 2 * g

        def direction(self, local, grad, client):
            return self.on_gradient(grad(local.w))

    assert run(Mine(), rounds=1).round == 1
