"""Hooks that are lifted once: vmap's bits, for any number of clients."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from small_runs import ALL, SMALL, fit, small_task
from torch import Tensor
from torch.utils import _pytree

from fedlightning import ClientContext, FedAvg, FedMethod, MethodError, State
from fedlightning.execution.model import Replica
from fedlightning.execution.runners._over_clients import traced_over_clients
from fedlightning.execution.step import Clients, LocalStep
from fedlightning.hooks.diagnose import calling
from fedlightning.layout import Layout
from fedlightning.method import visible
from fedlightning.methods import method_named

LAYOUT = Layout.of(small_task(dtype=torch.float32))
REPLICA = Replica(small_task(dtype=torch.float32), LAYOUT, torch.device("cpu"))
P = LAYOUT.size


def clients(method: FedMethod, count: int) -> Clients:
    """Clients that have already trained."""
    random = torch.Generator().manual_seed(count)
    known = method.configure_client(torch.zeros(P))
    numbers = {name: torch.rand(count, generator=random) for name in ("lr", "num_steps", "num_examples", "round")}
    return Clients(
        torch.randn(count, P if method.gradient_pass() != "none" else 0, generator=random),
        known.apply(lambda tensor: torch.randn(count, *tensor.shape, generator=random)),
        State(**numbers),
        torch.randint(2**60, (count,), generator=random),
        torch.rand(count, generator=random),
    )


def sent(method: FedMethod) -> State:
    """What the server sends in the first round, where it may hold the same tensor twice."""
    server = visible(method, method.configure_server(torch.linspace(-1, 1, P)))
    return server.replace(gradient=torch.linspace(0, 1, P)) if method.gradient_pass() == "mean" else server


def step_of(method: FedMethod) -> LocalStep:
    return LocalStep(method, REPLICA, LAYOUT)


leaves = _pytree.tree_leaves


@pytest.mark.parametrize("name", ALL)
def test_a_lifted_hook_gives_vmaps_bits_for_any_clients_and_any_server(name: str) -> None:
    method = method_named(name)(lr=0.1, **({"server_lr": 0.01} if name in SMALL else {}))  # type: ignore[arg-type]
    step, first, one = step_of(method), sent(method), clients(method, 1)
    local = step.starts(first, one)
    begin = traced_over_clients(step.starts, first, one)
    finish = traced_over_clients(step.ends, first, local, one)
    later = first.apply(lambda tensor: tensor.flip(-1) ** 3 if tensor.ndim else tensor)
    for count in (1, 2, 3, 6, 8, 33):
        some = clients(method, count)
        started = step.starts(later, some)
        assert list(begin(later, some)) == list(started)
        assert all(map(torch.equal, leaves(begin(later, some)), leaves(started)))
        ended = finish(later, started, some)
        assert _pytree.tree_structure(ended) == _pytree.tree_structure(step.ends(later, started, some))
        assert all(map(torch.equal, leaves(ended), leaves(step.ends(later, started, some))))


def test_a_client_alone_gets_the_bits_that_it_gets_among_others() -> None:
    method = method_named("fedexp")(lr=0.1)
    step, first, all_of_them = step_of(method), sent(method), clients(method, 9)
    finish = traced_over_clients(step.ends, first, step.starts(first, all_of_them), all_of_them)
    local = State(w=torch.randn(9, P))
    together = leaves(finish(first, local, all_of_them))
    for c in range(9):
        alone = _pytree.tree_map(lambda tensor: tensor[c : c + 1], (local, all_of_them))  # noqa: B023 - called at once
        assert all(
            torch.equal(row[0], rows[c]) for row, rows in zip(leaves(finish(first, *alone)), together, strict=True)
        )


def top(d: Tensor, k: int = 3) -> Tensor:
    """The k largest entries, zeros elsewhere, as textbooks have it."""
    kept = d.abs().topk(k).indices
    return torch.zeros(len(d), dtype=d.dtype).scatter(0, kept, d.gather(0, kept))


OPERATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "scatter": top,
    "gather": lambda d: d.gather(0, d.argsort()),
    "index_select": lambda d: d.index_select(0, d.argsort()),
    "index_add": lambda d: torch.zeros(P).index_add(0, d.argsort(), d),
    "index_copy": lambda d: torch.zeros(P).index_copy(0, d.argsort(), d),
    "index_put": lambda d: torch.zeros(P).index_put((d.argsort()[:3],), d[:3]),
    "scatter_add": lambda d: torch.zeros(P).scatter_add(0, d.argsort(), d),
    "scatter_reduce": lambda d: torch.zeros(P).scatter_reduce(0, d.argsort(), d, "amax"),
    "take": lambda d: d.take(d.argsort()),
    "take_along_dim": lambda d: d.take_along_dim(d.argsort(), 0),
    "put": lambda d: torch.zeros(P).put(d.argsort(), d),
    "quantile": lambda d: d * (d.abs() > d.abs().quantile(0.9)),
    "sort": lambda d: d.sort().values,
    "searchsorted": lambda d: torch.searchsorted(d.sort().values, d).to(d.dtype),
    "convolution": lambda d: torch.nn.functional.conv1d(d[None, None], torch.ones(1, 1, 3), padding=1)[0, 0],
    "not a number": lambda d: d / (0 * d),
}


class Compresses(FedAvg):
    """Does something with the update before it is uploaded. operation: what."""

    operation: str = "scatter"

    def on_client_end(self, local: State, client: ClientContext) -> tuple[State, State]:
        upload, state = super().on_client_end(local, client)
        return upload.replace(delta=OPERATIONS[self.operation](upload.delta)), state


@pytest.mark.parametrize("operation", OPERATIONS)
def test_operations_whose_batching_rules_keep_the_number_of_clients_give_vmaps_bits_too(operation: str) -> None:
    method = Compresses(operation=operation)
    step, first, one, random = step_of(method), sent(method), clients(method, 1), torch.Generator().manual_seed(0)
    with warnings.catch_warnings(action="ignore"):  # of operations that have no batching rule
        finish = traced_over_clients(step.ends, first, State(w=torch.randn(1, P, generator=random)), one)
        for count in (1, 2, 3, 4, 5, P, 33):
            local, some = State(w=torch.randn(count, P, generator=random)), clients(method, count)
            found, wanted = leaves(finish(first, local, some)), leaves(step.ends(first, local, some))
            assert [each.shape for each in found] == [each.shape for each in wanted]
            assert all(
                torch.equal(each.nan_to_num(), vmaps.nan_to_num()) for each, vmaps in zip(found, wanted, strict=True)
            )


def test_a_hook_of_plain_arithmetic_is_a_graph() -> None:
    calls: list[str] = []

    class Counted(FedAvg):
        def on_client_end(self, local: State, client: ClientContext) -> tuple[State, State]:
            calls.append("on_client_end")
            return super().on_client_end(local, client)

    step, server, one = step_of(Counted()), sent(Counted()), clients(Counted(), 1)
    finish = traced_over_clients(step.ends, server, State(w=torch.randn(1, P)), one)
    assert calls
    calls.clear()
    upload, _ = finish(server, State(w=torch.ones(2, P)), clients(Counted(), 2))
    assert not calls
    assert torch.equal(upload.delta, 1 - server.x.expand(2, P))


class TopK(FedAvg):
    """Sparse steps and sparse uploads."""

    def direction(self, local: State, grad: Callable[[Tensor], Tensor], client: ClientContext) -> Tensor:
        return top(grad(local.w), 5)

    def on_client_end(self, local: State, client: ClientContext) -> tuple[State, State]:
        upload, state = super().on_client_end(local, client)
        return upload.replace(delta=top(upload.delta)), state


@pytest.mark.parametrize("runner", ["vmap", "traced"])
@pytest.mark.parametrize("cohort_size", [2, 3, 4, "auto"])
def test_the_textbooks_top_k_gives_the_loops_numbers_in_every_runner(cohort_size: Any, runner: Any) -> None:
    loop, lifted = (
        fit(TopK(lr=0.1), **how) for how in ({"runner": "loop"}, {"runner": runner, "cohort_size": cohort_size})
    )
    assert torch.allclose(lifted.state.server.x, loop.state.server.x, rtol=0, atol=1e-12)


def test_a_hook_that_looks_at_a_number_is_named() -> None:
    class Peeking(FedAvg):
        def on_client_end(self, local: State, client: ClientContext) -> tuple[State, State]:
            upload, state = super().on_client_end(local, client)
            return (upload, state) if upload.delta.norm() > 0 else (upload.replace(delta=0 * upload.delta), state)

    peeking = step_of(Peeking())
    server = sent(peeking.method)
    with (
        pytest.raises(MethodError, match=r"`Peeking.on_client_end` .*torch.where"),
        calling(peeking.method, "on_client_end", server),
    ):
        traced_over_clients(peeking.ends, server, State(w=torch.randn(1, P)), clients(peeking.method, 1))
