"""`check_method` passes what keeps the contract, and fails, with a message that helps, what does not."""

import dataclasses
import time
from functools import cached_property
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fedlightning import FedAvg, FedMethod, MethodError, Scaffold, State
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
        (Mutates(), r"`Mutates.on_local_step` .*\.py:\d+. changed `local.w` in place, .* `state.replace\(w=…\)`"),
        (
            DrawsFromTorch(),
            r"`DrawsFromTorch.direction` .*\.py:\d+. drew global random numbers, .* `keyed_uniform\(client.key, shape\)`",
        ),
        (DrawsFromNumpy(), r"`DrawsFromNumpy.direction` .* drew global random numbers"),
        (
            Branches(),
            r"`Branches.direction` \(.*\.py:\d+\) lets the program's path depend .* use `torch.where`, or say `runner='loop'`",
        ),
        (
            Remembers(),
            r"`Remembers.direction` .*\.py:\d+. must keep nothing on itself, but assigns to it .cannot assign to field 'last'",
        ),
        (SharedList(), "the class attribute `SharedList.seen` has another value after a run"),
        (NoModel(), r"`NoModel.on_client_start` .*\.py:\d+. must return a State with `w`"),
        (Forgets(), r"`Forgets.on_local_step` .*\.py:\d+. must return a State with w, v, but gave State\(w: "),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, FedMethod) else "",
)
def test_a_broken_contract_fails_with_a_message_that_helps(method: FedMethod, message: str) -> None:
    with pytest.raises(MethodError, match=message):
        check_method(method)


def test_a_method_that_branches_may_be_run_one_client_at_a_time() -> None:
    check_method(Branches(), cohort=False)


# -- what a hook reaches besides its arguments ----------------------------------------------------------------------------
LOG: list[torch.Tensor] = []
LAST: torch.Tensor | None = None
SETTINGS = SimpleNamespace(calls=0)
TABLE = torch.zeros(3, dtype=torch.float64)
GENERATOR = np.random.default_rng(0)


class Counter:
    calls = 0


class AppendsToAGlobal(FedAvg):
    def on_aggregate(self, server, mean, round):  # type: ignore[no-untyped-def]
        LOG.append(mean.delta)
        return super().on_aggregate(server, mean, round)


class RebindsAGlobal(FedAvg):
    """Reads what another hook, of another client, wrote."""

    def on_client_start(self, client):  # type: ignore[no-untyped-def]
        global LAST
        LAST = client.x
        return super().on_client_start(client)

    def direction(self, local, grad, client):  # type: ignore[no-untyped-def]
        return grad(local.w) + 0.1 * (local.w - LAST)


class CountsInANamespace(FedAvg):
    def on_client_end(self, local, client):  # type: ignore[no-untyped-def]
        SETTINGS.calls += 1
        return super().on_client_end(local, client)


class CountsInAClass(FedAvg):
    def on_client_end(self, local, client):  # type: ignore[no-untyped-def]
        Counter.calls += 1
        return super().on_client_end(local, client)


class WritesToATable(FedAvg):
    def on_aggregate(self, server, mean, round):  # type: ignore[no-untyped-def]
        TABLE.add_(mean.delta)
        return super().on_aggregate(server, mean, round)


class HasADefault(FedAvg):
    def direction(self, local, grad, client, seen={}):  # type: ignore[no-untyped-def]  # noqa: B006
        seen["now"] = len(seen)
        return grad(local.w)


class HasAGeneratorOfItsOwn(FedAvg):
    def direction(self, local, grad, client):  # type: ignore[no-untyped-def]
        return grad(local.w) * GENERATOR.random()


class ReachesThroughAHelper(FedAvg):
    def on_aggregate(self, server, mean, round):  # type: ignore[no-untyped-def]
        return super().on_aggregate(server, mean.apply(lambda tensor: LOG.append(tensor) or tensor), round)


class GoesRoundTheFrozenDataclass(FedAvg):
    def on_aggregate(self, server, mean, round):  # type: ignore[no-untyped-def]
        vars(self)["last"] = mean.delta
        return super().on_aggregate(server, mean, round)


class ChangesAHyperparameter(FedAvg):
    weights: list[float] = dataclasses.field(default_factory=lambda: [1.0])

    def on_aggregate(self, server, mean, round):  # type: ignore[no-untyped-def]
        self.weights.append(0.0)
        return super().on_aggregate(server, mean, round)


def _count(value: float) -> float:
    return _log(value)


def _log(value: float) -> float:
    LOG.append(torch.tensor(value))
    return value


class CallsAFunctionThatCounts(FedAvg):
    def client_lr(self, round):  # type: ignore[no-untyped-def]
        return _count(0.1)


def closes_over() -> FedMethod:
    rounds: list[int] = []

    class ClosesOver(FedAvg):
        def on_aggregate(self, server, mean, round):  # type: ignore[no-untyped-def]
            rounds.append(round.index)
            return super().on_aggregate(server, mean, round)

    return ClosesOver()


class DrawsUnseeded(FedAvg):
    def direction(self, local, grad, client):  # type: ignore[no-untyped-def]
        return grad(local.w) + torch.from_numpy(np.random.default_rng().normal(size=3))


class LooksAtTheClock(FedAvg):
    def on_aggregate(self, server, mean, round):  # type: ignore[no-untyped-def]
        return server.replace(x=server.x + mean.delta * (1 + time.perf_counter()))


class DrawsInTheThirdRound(FedAvg):
    def on_aggregate(self, server, mean, round):  # type: ignore[no-untyped-def]
        noise = torch.randn(3, dtype=torch.float64) if round.index == 2 else 0
        return server.replace(x=server.x + mean.delta + noise)


class WritesToTheData(FedAvg):
    """In a way that no version counts."""

    def on_aggregate(self, server, mean, round):  # type: ignore[no-untyped-def]
        server.x.numpy()[:] += mean.delta.numpy()
        return server


class WritesToTheMean(FedAvg):
    def on_aggregate(self, server, mean, round):  # type: ignore[no-untyped-def]
        return server.replace(x=server.x + mean.delta.mul_(self.server_lr))


class WritesToWhatAClientSent(Scaffold):
    def on_return(self, state, upload, step, round):  # type: ignore[no-untyped-def]
        return state.replace(c=upload.delta.sub_(step))


class WritesWhenEvaluated(FedAvg):
    def on_evaluation(self, server, metrics, round):  # type: ignore[no-untyped-def]
        server.x.numpy()[:] *= metrics["train_all/loss"]
        return server


class CarriesAnotherDtype(FedAvg):
    """Half a number in a model of whole ones: compiled, its bytes would be read as the model's."""

    def on_client_start(self, client):  # type: ignore[no-untyped-def]
        return State(w=client.x, norm=torch.zeros(()))

    def on_local_step(self, local, grad, client):  # type: ignore[no-untyped-def]
        g = grad(local.w)
        return local.replace(w=local.w - client.lr * g, norm=local.norm + g.norm())


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (
            AppendsToAGlobal(),
            "the global `LOG` has another value after a run; keep it in the client's or the server's State",
        ),
        (RebindsAGlobal(), "the global `LAST` has another value"),
        (CountsInANamespace(), "the global `SETTINGS` has another value"),
        (CountsInAClass(), "the global `Counter` has another value"),
        (WritesToATable(), "the global `TABLE` has another value"),
        (HasADefault(), "the default of `seen` of `HasADefault.direction` has another value"),
        (HasAGeneratorOfItsOwn(), "the global `GENERATOR` has another value"),
        (ReachesThroughAHelper(), "the global `LOG` has another value"),
        (GoesRoundTheFrozenDataclass(), "`self.last` has another value"),
        (ChangesAHyperparameter(), "`self.weights` has another value"),
        (CallsAFunctionThatCounts(), "the global `LOG` has another value"),
        (closes_over(), "`rounds`, which `ClosesOver.on_aggregate` closes over, has another value"),
        (DrawsUnseeded(), "must give the same bits when it is run again, .* no seed reaches"),
        (LooksAtTheClock(), "must give the same bits when it is run again"),
        (DrawsInTheThirdRound(), "`DrawsInTheThirdRound.on_aggregate` \\(.*\\) drew global random numbers"),
        (WritesToTheData(), r"`WritesToTheData.on_aggregate` \(.*\) changed `server.x` in place"),
        (WritesToTheMean(), r"`WritesToTheMean.on_aggregate` \(.*\) changed `mean.delta` in place"),
        (WritesToWhatAClientSent(), r"`WritesToWhatAClientSent.on_return` \(.*\) changed `upload.delta` in place"),
        (WritesWhenEvaluated(), r"`WritesWhenEvaluated.on_evaluation` \(.*\) changed `server.x` in place"),
        (
            CarriesAnotherDtype(),
            r"must return `norm` as float32\[\], but gave float64\[\]; `on_client_start` set it so",
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, FedMethod) else "",
)
def test_what_is_remembered_drawn_or_written_elsewhere_fails(method: FedMethod, message: str) -> None:
    with pytest.raises(MethodError, match=message):
        check_method(method, cohort=False)


class ReadsConstants(FedAvg):
    """What does not change may lie anywhere."""

    factors = (1.0, 0.5)

    @cached_property
    def half(self):  # type: ignore[no-untyped-def]
        return 0.5

    def direction(self, local, grad, client, scale=(1.0, 2.0)):  # type: ignore[no-untyped-def]
        return 2 * self.half * self.factors[0] * scale[0] * grad(local.w) + 0 * CONSTANT


CONSTANT = torch.ones(3, dtype=torch.float64)


def test_constants_may_lie_anywhere() -> None:
    check_method(ReadsConstants())
