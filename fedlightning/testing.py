"""`check_method`: proof that a method keeps the contract, for anyone's method; and the problem it is tried on."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fedlightning._checked import COUNT, checked
from fedlightning.data.batching import Batching
from fedlightning.data.module import Examples, FederatedDataModule, Splits
from fedlightning.data.partition import Partition
from fedlightning.errors import ConfigurationError, MethodError, shown
from fedlightning.execution.strategy import SlotStrategy
from fedlightning.hooks.audit import Audit
from fedlightning.hooks.generators import no_draws
from fedlightning.hooks.server import ServerHooks
from fedlightning.hooks.surroundings import Surroundings
from fedlightning.layout import Layout
from fedlightning.method import FedMethod, Round
from fedlightning.server.round_state import RoundState
from fedlightning.task import FederatedTask, Regression
from fedlightning.trainer import FederatedTrainer


class Quadratics(FederatedDataModule):
    """Clients f_i(x) = ½ (x − b_i)ᵀ A_i (x − b_i), as linear regression in float64 with full batches.

    Client i holds n_i examples whose mean squared error is f_i: closed forms and independent numbers apply to the whole
    library, from the batches to the aggregate.

    Args:
        curvatures: A_i [d, d] for each client, symmetric positive definite.
        optima: b_i [d] for each client.
        num_examples: n_i of each client, at least d.
        steps: K, local steps in a round.
    """

    @checked(steps=COUNT)
    def __init__(
        self, curvatures: Sequence[Tensor], optima: Sequence[Tensor], num_examples: Sequence[int], steps: int = 5
    ) -> None:
        super().__init__(batching=Batching(None, steps=steps))
        _check_quadratics(curvatures, optima, num_examples)
        self._clients = list(zip(curvatures, optima, num_examples, strict=True))

    def load(self) -> Splits:
        """The rows C_i with C_iᵀ C_i = n_i A_i / 2, and y_i = C_i b_i."""
        inputs, targets = [], []
        for curvature, optimum, n in self._clients:
            rows = torch.zeros(n, len(optimum), dtype=torch.float64)
            rows[: len(optimum)] = (n / 2) ** 0.5 * torch.linalg.cholesky(curvature.to(torch.float64)).T
            inputs.append(rows)
            targets.append(rows @ optimum.to(torch.float64)[:, None])
        examples = Examples(torch.cat(inputs), torch.cat(targets))
        owned = torch.split(torch.arange(len(examples.targets)), [n for _, _, n in self._clients])
        clients = Partition.of(owned)
        return Splits(examples, clients, examples, clients)

    @staticmethod
    @checked()
    def task(start: Sequence[float]) -> FederatedTask:
        """Linear regression whose parameters are x, at a start."""
        if not start:
            raise ConfigurationError("`start` of Quadratics.task must hold a number, but is empty.")
        model = nn.Linear(len(start), 1, bias=False, dtype=torch.float64)
        with torch.no_grad():
            model.weight.copy_(torch.tensor([list(start)], dtype=torch.float64))
        return Regression(model)


def _check_quadratics(curvatures: Sequence[Tensor], optima: Sequence[Tensor], num_examples: Sequence[int]) -> None:
    """Check that there is a problem for each client, and that it has a minimum.

    Raises:
        ConfigurationError: the three differ in number, or one of them is no such problem.
    """
    if not len(curvatures) == len(optima) == len(num_examples) > 0:
        raise ConfigurationError(
            "`curvatures`, `optima` and `num_examples` of Quadratics must hold one for each client, but hold "
            f"{len(curvatures)}, {len(optima)} and {len(num_examples)}."
        )
    for client, (curvature, optimum, n) in enumerate(zip(curvatures, optima, num_examples, strict=True)):
        d = len(optimum) if optimum.dim() == 1 else 0
        if d < 1 or curvature.shape != (d, d) or not d <= n <= 10**6:
            raise ConfigurationError(
                f"Client {client} of Quadratics must have a curvature [d, d], an optimum [d] and `num_examples` of at least d, "
                f"but has {shown(curvature)}, {shown(optimum)} and {n}."
            )
        if curvature.is_complex() or int(torch.linalg.cholesky_ex(curvature.to(torch.float64)).info):
            raise ConfigurationError(
                f"The curvature of client {client} of Quadratics must be symmetric positive definite, but is "
                f"{curvature.tolist()}."
            )


@checked()
def check_method(method: FedMethod, *, cohort: bool = True) -> None:
    """Prove that a method keeps the contract drawn in `fedlightning.method`.

    Its hooks, the server's among them, give what they must, change no argument and nothing else that they can reach, and draw
    no global random numbers. It gives the same numbers looped and, with `cohort`, vmapped and traced; the same bits when it is
    run again, for one slot and three, and in one go and resumed from a checkpoint.

    Args:
        method: an instance of any `FedMethod`.
        cohort: also run it under vmap, where a branch on a tensor is found, and as a traced graph of several steps, where
            one on `client.round` or `client.num_steps` is; False for a method that needs `runner="loop"`.

    Raises:
        MethodError: it does not; the message names the hook and the remedy.
    """
    around, task = Surroundings(method), Quadratics.task(_START)
    _audit(method, Layout.of(task))
    with no_draws(f"`{type(method).__name__}`, in one of its hooks,", torch.device("cpu"), models=True):
        looped = _run(method, task)
    if changed := around.changed():
        raise MethodError(
            f"`{type(method).__name__}` must remember nothing outside of the States that its hooks return, but {changed} has "
            "another value after a run; keep it in the client's or the server's State, and look at a run by a `Callback`."
        )
    for options, when, why in _SAME_BITS:
        if not all(map(torch.equal, looped, _run(method, task, **options))):
            raise MethodError(f"`{type(method).__name__}` must give the same bits {when}, but does not: {why}.")
    if cohort:
        _check_close(method, looped, _run(method, task, runner="vmap"), "vmapped")
        _check_close(method, looped, _run(method, task, runner="traced"), "traced")


_SAME_BITS: tuple[tuple[dict[str, Any], str, str], ...] = (
    (
        {},
        "when it is run again",
        "a hook draws numbers that no seed reaches, or remembers something outside of the State; use "
        "`keyed_uniform(client.key, shape)`, and keep what is remembered in the State",
    ),
    (
        {"slots": 3},
        "for any number of slots",
        "something in it is shared between clients; keep it in the client's or the server's State",
    ),
    (
        {"resume": True},
        "after a resume",
        "it remembers something outside of the State that `configure_server` and `configure_client` return; keep it there",
    ),
)


def _check_close(method: FedMethod, looped: list[Tensor], lifted: list[Tensor], how: str) -> None:
    for one, other in zip(looped, lifted, strict=True):
        if not torch.allclose(one, other, rtol=1e-9, atol=1e-12):
            raise MethodError(
                f"`{type(method).__name__}` must give the same numbers looped and {how}, but they differ by "
                f"{float((one - other).abs().max()):.1e}; use tensor operations on one client's tensors alone."
            )


def _problem() -> Quadratics:
    generator = torch.Generator().manual_seed(0)
    roots = [torch.randn(3, 3, generator=generator, dtype=torch.float64) for _ in range(4)]
    curvatures = [root @ root.T / 3 + 0.5 * torch.eye(3) for root in roots]
    optima = [torch.randn(3, generator=generator, dtype=torch.float64) for _ in range(4)]
    return Quadratics(curvatures, optima, [5, 8, 12, 20], steps=3)


def _run(
    method: FedMethod,
    task: FederatedTask,
    slots: int = 1,
    resume: bool = False,
    runner: Literal["loop", "vmap", "traced"] = "loop",
) -> list[Tensor]:
    """All that the server and the clients remember after four rounds."""

    def trainer(rounds: int) -> FederatedTrainer:
        size: Literal["auto"] | int = "auto" if runner == "loop" else 4
        strategy = SlotStrategy([f"cpu/{i}" for i in range(slots)], runner=runner, cohort_size=size)
        return FederatedTrainer(rounds, strategy=strategy, callbacks=[], logger=False, evaluate_on=("train",))

    if not resume:
        return _remembered(trainer(4).fit(method, task, _problem()))
    with tempfile.TemporaryDirectory() as folder:
        first = trainer(2)
        first.fit(method, task, _problem())
        first.save_checkpoint(Path(folder) / "half.ckpt")
        return _remembered(trainer(4).fit(method, task, _problem(), ckpt_path=Path(folder) / "half.ckpt"))


_START = [1.0, -1.0, 0.5]


def _remembered(state: RoundState) -> list[Tensor]:
    rows = state.memory.rows()
    return [
        *map(torch.nan_to_num, (*state.server.values(), *(tensor for c in sorted(rows) for tensor in rows[c].values())))
    ]


def _audit(method: FedMethod, layout: Layout) -> None:
    """Call each hook once, on the loop's plain tensors, and look at what it gives and did to them."""
    hooks = ServerHooks(method, layout)
    x, round = torch.tensor(_START, dtype=torch.float64), Round(0, 4, 4, hooks.lr(0))
    metrics = {f"train_all{name}": 0.5 for name in ("/loss", *(f"_clients/loss_{each}" for each in _OVER_CLIENTS))}
    Audit(method, x, layout, round, hooks.steps(0) or 3, 5, thorough=True).run(metrics)


_OVER_CLIENTS = ("mean", "std", "worst_decile")
