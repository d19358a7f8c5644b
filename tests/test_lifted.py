"""Hooks that are lifted once: vmap's bits, for any number of clients."""

import pytest
import torch
from torch.func import vmap
from torch.utils import _pytree
from unequal_clients import ALL, SMALL, task

from fedlightning import ClientContext, FedAvg, FedMethod, MethodError, State
from fedlightning.engine.hooks import Hooks
from fedlightning.engine.job import Clients
from fedlightning.engine.lifted import LiftedHook
from fedlightning.method import visible
from fedlightning.methods import method_named
from fedlightning.vector import Layout

LAYOUT = Layout.of(task(dtype=torch.float32))
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
    )


def hooks(method: FedMethod) -> Hooks:
    """In the first round, where a server may hold the same tensor twice."""
    server = visible(method, method.configure_server(torch.linspace(-1, 1, P)))
    if method.gradient_pass() == "mean":
        server = server.replace(gradient=torch.linspace(0, 1, P))
    return Hooks(method, server, LAYOUT)


leaves = _pytree.tree_leaves


@pytest.mark.parametrize("name", ALL)
def test_a_lifted_hook_gives_vmaps_bits_for_any_clients_and_any_server(name: str) -> None:
    method = method_named(name)(lr=0.1, **({"server_lr": 0.01} if name in SMALL else {}))  # type: ignore[arg-type]
    first, one = hooks(method), clients(method, 1)
    local = vmap(first.start)(one)
    begin, finish = LiftedHook(first, "start", one), LiftedHook(first, "end", local, one)
    later = Hooks(method, first.server.apply(lambda tensor: tensor.flip(-1) ** 3 if tensor.ndim else tensor), LAYOUT)
    for count in (1, 2, 3, 6, 8, 33):
        some = clients(method, count)
        started = vmap(later.start)(some)
        assert list(begin(later.server, some)) == list(started)
        assert all(map(torch.equal, leaves(begin(later.server, some)), leaves(started)))
        ended = finish(later.server, started, some)
        assert _pytree.tree_structure(ended) == _pytree.tree_structure(vmap(later.end)(started, some))
        assert all(map(torch.equal, leaves(ended), leaves(vmap(later.end)(started, some))))


def test_a_client_alone_gets_the_bits_that_it_gets_among_others() -> None:
    method = method_named("fedexp")(lr=0.1)
    first, all_of_them = hooks(method), clients(method, 9)
    finish = LiftedHook(first, "end", vmap(first.start)(all_of_them), all_of_them)
    local = State(w=torch.randn(9, P))
    together = leaves(finish(first.server, local, all_of_them))
    for c in range(9):
        alone = _pytree.tree_map(lambda tensor: tensor[c : c + 1], (local, all_of_them))  # noqa: B023 - called at once
        assert all(
            torch.equal(row[0], rows[c])
            for row, rows in zip(leaves(finish(first.server, *alone)), together, strict=True)
        )


def test_a_hook_that_looks_at_a_number_is_named() -> None:
    class Peeking(FedAvg):
        def on_client_end(self, local: State, client: ClientContext) -> tuple[State, State]:
            upload, state = super().on_client_end(local, client)
            return (upload, state) if upload.delta.norm() > 0 else (upload.replace(delta=0 * upload.delta), state)

    peeking = hooks(Peeking())
    with pytest.raises(MethodError, match=r"`Peeking.on_client_end` .*torch.where"), peeking.calling("on_client_end"):
        LiftedHook(peeking, "end", State(w=torch.randn(1, P)), clients(peeking.method, 1))
