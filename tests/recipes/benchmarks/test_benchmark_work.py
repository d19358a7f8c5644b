"""The work that every framework is given: the plain loop and ours do the same."""

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from tiny_workloads import TINY, tiny

from fedlightning import Classification, FedAvg, FederatedTrainer, SlotStrategy
from fedlightning.contrib.fedprox_program import RoundSeeded
from recipes.benchmarks import networks, ours, plain, workloads
from recipes.benchmarks.meter import Meter

ADAPTERS: dict[str, Any] = {"plain": plain, "ours": ours}


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """The adapters take one thread; the number is left as it was."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", TINY)
def test_plain_and_ours_take_the_same_steps(name: str) -> None:
    work, reports, losses = tiny(name), {}, {}
    for adapter, mode in (("plain", ""), ("ours", "auto"), ("ours", "looped")):
        meter = Meter()
        losses[adapter, mode] = ADAPTERS[adapter].train(work, mode, meter)
        reports[adapter, mode] = meter.report(work)
    expected = [work.steps_of(t) for t in range(work.rounds)]
    assert sum(expected) > work.rounds
    for report in reports.values():
        assert report["steps"] == expected[1:]
        assert len(report["wall"]) == len(report["processor"]) == work.rounds - 1
        assert min(report["wall"]) > 0
        assert report["total"] >= report["first"] + sum(report["wall"]) - 1e-5
        assert report["peak_mib"] > 50
    start = networks.mean_loss(networks.network(work), work.data())
    assert all(math.isfinite(loss) and loss < start for loss in losses.values())


@pytest.mark.parametrize("name", ["cnn", "fedprox"])
def test_plain_and_ours_reach_the_same_weights(name: str) -> None:
    """With the same order of the examples; the clients of FedProx's work differ in size, so the weights of the mean matter."""
    work = tiny(name)
    module, data = ours.data_module(work)
    module.setup()

    def order(t: int, client: int, epoch: int, count: int) -> torch.Tensor:
        index = module.schedule(client, t, 0, module.num_steps(client)).index.flatten()
        return index[index >= 0] - int(data.offsets[client])

    loop = plain.Loop(work, order)
    for t in range(work.rounds):
        loop.run_round(t)
    task = Classification(networks.network(work), work.classes)
    strategy = SlotStrategy(1, runner="loop")
    arguments: dict[str, Any] = {"logger": False, "callbacks": [], "evaluate_every": 0, "sampler": RoundSeeded()}
    trainer = FederatedTrainer(work.rounds, work.participants, strategy, **arguments)
    theirs = trainer.fit(FedAvg(lr=work.lr), task, module).server.x
    own = torch.cat([parameter.detach().flatten() for parameter in loop.model.parameters()])
    start = torch.cat([parameter.detach().flatten() for parameter in networks.network(work).parameters()])
    assert (own - start).abs().max() > 1e-3
    assert torch.allclose(own, theirs, rtol=0, atol=1e-5)


def test_the_workloads_are_those_of_the_bounds() -> None:
    works = workloads.WORKLOADS
    weights = {name: sum(value.size for value in work.start().values()) for name, work in works.items()}
    assert (weights["cnn"], weights["fedprox"], weights["regression"]) == (62_006, 610, 7_850)
    cnn, fedprox, regression = works["cnn"], works["fedprox"], works["regression"]
    assert (cnn.clients, cnn.participants, cnn.examples, cnn.batch, cnn.epochs, cnn.lr) == (100, 10, 100, 50, 1, 0.05)
    assert (fedprox.clients, fedprox.participants, fedprox.batch, fedprox.epochs, fedprox.lr) == (30, 10, 10, 20, 0.01)
    assert (regression.clients, regression.participants, regression.examples, regression.batch) == (1000, 50, 50, 10)
    drawn = np.random.RandomState(1).lognormal(4, 2, 30).astype(int) + 50
    assert fedprox.sizes().tolist() == [int(0.9 * count) for count in drawn]
    assert works["fedprox_run"] == replace(fedprox, name="fedprox_run", title=works["fedprox_run"].title, rounds=200)
    assert replace(works["crop"], pixels=False, rounds=20, name="cnn", title=cnn.title) == cnn
    assert [fedprox.participants_of(t) for t in range(3)] == [RoundSeeded().sample(t, 30, 10, 5) for t in range(3)]


def test_data_are_the_same_every_time_and_belong_to_the_clients() -> None:
    work = tiny("fedprox")
    one, two = work.data(), work.data()
    assert all(np.array_equal(first, second) for first, second in zip(one, two, strict=True))
    inputs, targets = one.client(2)
    assert (len(inputs), len(targets)) == (work.sizes()[2],) * 2
    assert np.shares_memory(inputs, one.inputs)
    assert tiny("crop").data().inputs.dtype == np.uint8
    scale = tiny("scale")
    assert len(scale.data().targets) == scale.distinct == 400
    assert scale.data().positions.max() == 399
    for client in (99, 1234):  # the last whose examples lie side by side, and one from a later turn
        owned = scale.data().positions[4 * client : 4 * client + 4]
        assert np.array_equal(scale.data().client(client)[0], scale.data().inputs[owned])


@pytest.mark.parametrize("sizes", [{"clients": 0}, {"lr": 1}, {"rounds": "2"}])
def test_impossible_sizes_are_refused(sizes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=rf"[Ss]ize .*{next(iter(sizes))}|not '{next(iter(sizes))}'"):
        workloads.resized(workloads.WORKLOADS["cnn"], sizes)
    with pytest.raises(ValueError, match="clients=1000"):
        workloads.parse_sizes(["clients"])
