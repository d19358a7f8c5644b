"""FedJAX (Ro et al., 2021): local training compiled by XLA, one client after another."""

import os

os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")

from collections.abc import Callable
from typing import Any

import fedjax
import haiku
import jax
import jax.numpy as jnp
from fedjax.algorithms import fed_avg

from recipes.benchmarks.meter import Meter, measure
from recipes.benchmarks.workloads import Data, Workload


def network(work: Workload) -> Any:
    """The workload's model as a pair of pure functions; images are [B, H, W, C]."""

    def lenet(images: Any) -> Any:
        layers = [
            haiku.Conv2D(6, 5, padding="VALID"), jax.nn.relu, haiku.MaxPool(2, 2, "VALID"),
            haiku.Conv2D(16, 5, padding="VALID"), jax.nn.relu, haiku.MaxPool(2, 2, "VALID"), haiku.Flatten(),
            haiku.Linear(120), jax.nn.relu, haiku.Linear(84), jax.nn.relu, haiku.Linear(work.classes),
        ]  # fmt: skip
        return haiku.Sequential(layers)(images)

    def logistic(inputs: Any) -> Any:
        return haiku.Linear(work.classes)(inputs)

    return haiku.without_apply_rng(haiku.transform(lenet if work.model == "lenet" else logistic))


def examples(work: Workload, data: Data, client: int) -> dict[str, Any]:
    """A client's examples, with the channels last."""
    inputs, targets = data.client(client)
    return {"x": inputs.transpose(0, 2, 3, 1).copy() if len(work.shape) == 3 else inputs, "y": targets}


def loss_of(model: Any) -> Callable[..., Any]:
    """The mean cross-entropy of a batch."""

    def loss(parameters: Any, batch: Any, rng: Any) -> Any:
        logarithms = jax.nn.log_softmax(model.apply(parameters, batch["x"]))
        return -jnp.mean(jnp.take_along_axis(logarithms, batch["y"][:, None], 1))

    return loss


def train(work: Workload, mode: str, meter: Meter) -> float:
    """Federated averaging; there is one mode. The first round contains the compiling."""
    data, model = work.data(), network(work)
    clients = {c: examples(work, data, c) for c in range(work.clients)}
    federated, loss = fedjax.InMemoryFederatedData(clients), loss_of(model)
    batches = fedjax.ShuffleRepeatBatchHParams(batch_size=work.batch, num_epochs=work.epochs, drop_remainder=False)
    descent, server = fedjax.optimizers.sgd(work.lr), fedjax.optimizers.sgd(1.0)
    algorithm = fed_avg.federated_averaging(jax.jit(jax.grad(loss)), descent, server, batches)
    state = algorithm.init(model.init(jax.random.PRNGKey(0), clients[0]["x"][:2]))
    meter.start()
    for t in range(work.rounds):
        chosen = [(c, federated.get_client(c), jax.random.PRNGKey(c)) for c in work.participants_of(t)]
        state, _ = algorithm.apply(state, chosen)
        jax.block_until_ready(state.params)
        meter.mark()
    found = [float(loss(state.params, client, None)) * len(client["y"]) for client in clients.values()]
    return sum(found) / len(data.targets)


if __name__ == "__main__":
    measure(train)
