"""`check_method` passes what keeps the contract, and fails, with a message that helps, what does not."""

import numpy as np
import pytest
import torch

from fedlightning import FedAvg, FedMethod, MethodError, State
from fedlightning.testing import check_method


class FromTheReadme(FedMethod):
    """FedProx. mu: weight of the proximal term."""

    mu: float = 0.01

    def direction(self, local, grad, client):  # type: ignore[no-untyped-def]
        return grad(local.w) + self.mu * (local.w - client.x)


class Mutates(FedAvg):
    def on_local_step(self, local, grad, client):  # type: ignore[no-untyped-def]
        local.w.sub_(client.lr * grad(local.w))
        return local


class DrawsFromTorch(FedAvg):
    def direction(self, local, grad, client):  # type: ignore[no-untyped-def]
        return grad(local.w) + 0.01 * torch.randn_like(local.w)


class DrawsFromNumpy(FedAvg):
    def direction(self, local, grad, client):  # type: ignore[no-untyped-def]
        return grad(local.w) * float(np.random.rand())


class Branches(FedAvg):
    def direction(self, local, grad, client):  # type: ignore[no-untyped-def]
        g = grad(local.w)
        return g / g.norm() if g.norm() > 1 else g


class Remembers(FedAvg):
    def direction(self, local, grad, client):  # type: ignore[no-untyped-def]
        self.last = grad(local.w)
        return self.last


class SharedList(FedAvg):
    """Remembers outside of the State, where neither the frozen dataclass nor a checkpoint sees it."""

    seen = []  # noqa: RUF012

    def on_aggregate(self, server, mean, round):  # type: ignore[no-untyped-def]
        self.seen.append(mean.delta)
        return server.replace(x=server.x + mean.delta + 0.1 * sum(self.seen[:-1]))


class NoModel(FedAvg):
    def on_client_start(self, client):  # type: ignore[no-untyped-def]
        return State(v=client.x)


class Forgets(FedAvg):
    def on_client_start(self, client):  # type: ignore[no-untyped-def]
        return State(w=client.x, v=client.x)

    def on_local_step(self, local, grad, client):  # type: ignore[no-untyped-def]
        return State(w=local.w - client.lr * grad(local.w))


def test_the_method_of_the_readme_passes() -> None:
    check_method(FromTheReadme(mu=0.1))


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (Mutates(), r"`Mutates.on_local_step` changed `local.w` in place, .* `state.replace\(w=…\)`"),
        (
            DrawsFromTorch(),
            r"`DrawsFromTorch.direction` drew global random numbers, .* `keyed_uniform\(client.key, shape\)`",
        ),
        (DrawsFromNumpy(), r"`DrawsFromNumpy.direction` drew global random numbers"),
        (
            Branches(),
            r"`Branches.direction` \(.*\.py:\d+\) lets the program's path depend .* use `torch.where`, or .*`cohort_size=1`",
        ),
        (Remembers(), r"`Remembers` must keep nothing on itself .* cannot assign to field 'last'"),
        (SharedList(), r"`SharedList` must give the same bits"),
        (NoModel(), r"`NoModel.on_client_start` must return a State with `w`"),
        (Forgets(), r"`Forgets.on_local_step` must return a State with w, v, but gave State\(w: "),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, FedMethod) else "",
)
def test_a_broken_contract_fails_with_a_message_that_helps(method: FedMethod, message: str) -> None:
    with pytest.raises(MethodError, match=message):
        check_method(method)


def test_a_method_that_branches_may_be_run_one_client_at_a_time() -> None:
    check_method(Branches(), cohort=False)
