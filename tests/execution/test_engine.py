"""The loop and the cohort: they agree, they narrow, and they say what went wrong where."""

import pytest
import torch
from small_runs import SIZES, fit, small_task, unequal_clients
from torch import Tensor, nn

from fedlightning import (
    Batching,
    Classification,
    ClientContext,
    ClientError,
    ConfigurationError,
    FedAvg,
    FederatedTrainer,
    FedMethod,
    FedProx,
    MethodError,
    Partition,
    Scaffold,
    State,
    TensorData,
    keyed_uniform,
)


@pytest.mark.quick
@pytest.mark.parametrize("cohort_size", [2, 3, 5, 7])
@pytest.mark.parametrize("method", [FedAvg(), FedProx(mu=1.0), Scaffold()], ids=lambda m: type(m).__name__)
def test_cohorts_of_unequal_clients_give_the_loops_numbers(method: FedMethod, cohort_size: int) -> None:
    """Clients of 1 to 40 examples: batches are padded and masked, and the cohort narrows as clients finish."""
    task = small_task(nn.Dropout(0.3))
    loop, cohort = (
        fit(method, task, rounds=3, cohort_size=1).state,
        fit(method, task, rounds=3, cohort_size=cohort_size).state,
    )
    torch.testing.assert_close(cohort.server.x, loop.server.x, rtol=0, atol=1e-12)
    for client, row in loop.memory.rows().items():
        for name in row:
            torch.testing.assert_close(cohort.memory.rows()[client][name], row[name], rtol=0, atol=1e-12)


@pytest.mark.parametrize("batching", [{"size": None}, {"epochs": None, "steps": 5}, {"size": 100}])
def test_full_batches_and_fixed_steps_agree_too(batching: dict[str, object]) -> None:
    loop = fit(FedProx(), small_task(), unequal_clients(**batching), 3, cohort_size=1).state
    cohort = fit(FedProx(), small_task(), unequal_clients(**batching), 3, cohort_size=4).state
    torch.testing.assert_close(cohort.server.x, loop.server.x, rtol=0, atol=1e-12)


@pytest.mark.quick
def test_the_loop_is_plain_sgd() -> None:
    """One client's round, against torch.optim.SGD on the same batches."""
    task, clients = small_task(), unequal_clients()
    clients.setup()
    trainer = FederatedTrainer(1, callbacks=[], logger=False, evaluate_every=0)
    only = TensorData(clients.train, Partition.of([clients.clients.client(1)]), batching=Batching(4, epochs=2))
    after = task.with_parameters(trainer.fit(FedAvg(lr=0.2), task, only).server.x)
    reference = task.with_parameters(nn.utils.parameters_to_vector(task.parameters()).detach())
    optimizer = torch.optim.SGD(reference.parameters(), lr=0.2)
    for index in only.schedule(0, 0, 0, only.num_steps(0)).index:
        batch = only.batch(only.train, index[index >= 0])
        optimizer.zero_grad()
        reference.loss(batch).mean().backward()
        optimizer.step()
    for one, other in zip(after.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-14)


class Entropy(FedAvg):
    """Changes the objective itself: distillation from the global model, which needs the model at a second vector."""

    def objective(self, model, w, batch, client):  # type: ignore[no-untyped-def]
        teacher = model(client.x, batch[0]).softmax(-1)
        return model.loss(w, batch) - (teacher * model(w, batch[0]).log_softmax(-1)).sum(-1)


def test_a_method_may_change_the_objective() -> None:
    task = small_task(nn.Dropout(0.2))
    loop, cohort = (
        fit(Entropy(), task, rounds=3, cohort_size=1).state,
        fit(Entropy(), task, rounds=3, cohort_size=3).state,
    )
    torch.testing.assert_close(cohort.server.x, loop.server.x, rtol=0, atol=1e-12)
    assert (loop.server.x - fit(FedAvg(), task, rounds=3, cohort_size=1).state.server.x).norm() > 1e-3


class Noise(FedAvg):
    """Draws the client's own random numbers."""

    def direction(self, local, grad, client):  # type: ignore[no-untyped-def]
        return grad(local.w) + keyed_uniform(client.key, local.w.shape)


def test_the_clients_own_random_numbers_are_the_same_in_every_runner() -> None:
    torch.testing.assert_close(
        fit(Noise(), small_task(), rounds=3, cohort_size=4).state.server.x,
        fit(Noise(), small_task(), rounds=3, cohort_size=1).state.server.x,
        rtol=0,
        atol=1e-12,
    )


class Uploads(FedAvg):
    """Uploads a scalar beside the model, remembers two things, and sees what the contract promises."""

    def configure_client(self, x: Tensor) -> State:
        return State(last=x, count=torch.zeros(()))

    def on_client_end(self, local: State, client: ClientContext) -> tuple[State, State]:
        upload = State(delta=local.w - client.x, n=client.num_examples, k=client.num_steps, t=client.round)
        return upload, State(last=local.w, count=client.state.count + 1)

    def on_aggregate(self, server, mean, round):  # type: ignore[no-untyped-def]
        sizes = torch.tensor(SIZES, dtype=torch.float64)
        torch.testing.assert_close(mean.n, (sizes * sizes).sum() / sizes.sum(), rtol=0, atol=1e-12)
        steps = 2 * (sizes / 4).ceil()
        torch.testing.assert_close(mean.k, (sizes * steps).sum() / sizes.sum(), rtol=0, atol=1e-12)
        assert float(mean.t) == round.index
        return super().on_aggregate(server, mean, round)


@pytest.mark.parametrize("cohort_size", [1, 3])
def test_scalars_travel_and_clients_remember(cohort_size: int) -> None:
    state = fit(Uploads(), small_task(), rounds=3, cohort_size=cohort_size).state
    assert [float(state.memory.rows()[c].count) for c in range(len(SIZES))] == [3.0] * len(SIZES)


def test_running_statistics_travel_and_are_averaged() -> None:
    torch.manual_seed(0)
    task = Classification(nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)).double(), 3)
    whole = unequal_clients()
    whole.setup()
    sizes = [3, 40, 7]
    clients = TensorData(
        whole.train, Partition.of(torch.arange(sum(sizes)).split(sizes)), batching=Batching(None, epochs=1)
    )
    state = fit(FedAvg(lr=1e-9), task, clients, 1, cohort_size=1).state
    hidden = task.model[0](whole.train.inputs[: sum(sizes)]).detach()
    torch.testing.assert_close(state.buffers[:4], 0.1 * hidden.mean(0), rtol=0, atol=1e-12)
    assert state.buffers[8] == 1  # num_batches_tracked


def test_running_statistics_are_refused_by_a_cohort() -> None:
    task = Classification(nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)).double(), 3)
    clients = unequal_clients(size=None, epochs=1)
    clients.setup()
    clients = TensorData(clients.train, Partition.of(torch.arange(96).split(32)), batching=Batching(4))
    with pytest.raises(
        ConfigurationError,
        match=r"cohort_size` must be 1 for a model with 'model\.1' .BatchNorm1d., .*; use group norm",
    ):
        fit(FedAvg(), task, clients, cohort_size=2)


@pytest.mark.quick
@pytest.mark.parametrize("cohort_size", [1, 3])
def test_a_loss_that_is_not_finite_names_the_client_and_the_round(cohort_size: int) -> None:
    clients = unequal_clients()
    clients.setup()
    clients.train.inputs[clients.clients.client(3)[0]] = float("nan")
    with pytest.raises(ClientError, match=r"the loss of client 3 at local step \d+ is nan, in round 0 on slot cpu/0"):
        fit(FedAvg(), small_task(), clients, cohort_size=cohort_size)


@pytest.mark.parametrize("cohort_size", [1, 3])
def test_an_error_in_a_client_keeps_its_type_and_gets_a_note(cohort_size: int) -> None:
    class Fails(nn.Module):
        def forward(self, inputs: Tensor) -> Tensor:
            raise RuntimeError("of the user's own")

    with pytest.raises(RuntimeError, match="of the user's own") as caught:
        fit(FedAvg(), small_task(Fails()), cohort_size=cohort_size)
    place = "In round 0, client" if cohort_size == 1 else "Before the first round, on the first batch of client"
    assert place in caught.value.__notes__[0]


class Branches(FedAvg):
    def direction(self, local, grad, client):  # type: ignore[no-untyped-def]
        g = grad(local.w)
        return g / g.norm() if g.norm() > 1 else g


class Writes(FedAvg):
    def direction(self, local, grad, client):  # type: ignore[no-untyped-def]
        client.server.x.mul_(0.9)
        return grad(local.w)


class WritesLater(FedAvg):
    """In the second round, of which no trial before the first one knows."""

    def on_aggregate(self, server, mean, round):  # type: ignore[no-untyped-def]
        vars(self)["later"] = True
        return super().on_aggregate(server, mean, round)

    def on_local_step(self, local, grad, client):  # type: ignore[no-untyped-def]
        if vars(self).get("later"):
            client.server.x.mul_(0.9)
        return super().on_local_step(local, grad, client)


class Draws(FedAvg):
    def direction(self, local, grad, client):  # type: ignore[no-untyped-def]
        return grad(local.w) + torch.randn_like(local.w)


class Peeks(FedAvg):
    downlink = ("x",)

    def configure_server(self, x: Tensor) -> State:
        return State(x=x, secret=x)

    def direction(self, local, grad, client):  # type: ignore[no-untyped-def]
        return grad(local.w) + client.server.secret


@pytest.mark.parametrize(
    ("method", "cohort_size", "message"),
    [
        (
            Branches(),
            3,
            r"`Branches.direction` \(.*test_engine.py:\d+\) lets the program's path depend .* `torch.where`",
        ),
        (Writes(), 1, r"`Writes.direction` \(.*\) changed `local.w` in place, which others share; .* `state.replace"),
        (WritesLater(), 1, r"`WritesLater.on_local_step` \(.*\) writes in place to the server's tensors"),
        (WritesLater(), 3, r"`WritesLater.on_local_step` \(.*\) writes in place to the server's tensors"),
        (Draws(), 3, r"`Draws.direction` \(.*\) drew global random numbers, .*; use `keyed_uniform"),
        (Peeks(), 1, r"`Peeks.direction` \(.*\) failed: AttributeError: This State has no entry 'secret'; it holds x"),
    ],
)
def test_a_broken_contract_names_the_hook_the_line_and_the_remedy(
    method: FedMethod, cohort_size: int, message: str
) -> None:
    with pytest.raises(MethodError, match=message):
        fit(method, small_task(), cohort_size=cohort_size)
