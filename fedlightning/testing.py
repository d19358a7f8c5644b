"""`check_method`: proof that a method keeps the contract, for anyone's method; and the problem it is tried on."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from fedlightning.checked import COUNT, checked
from fedlightning.data.module import Examples, FederatedDataModule
from fedlightning.data.partition import Partition
from fedlightning.errors import FedLightningError, MethodError
from fedlightning.method import ClientContext, FedMethod, visible
from fedlightning.state import State
from fedlightning.strategy import SlotStrategy
from fedlightning.task import FederatedTask, Regression
from fedlightning.trainer import FederatedTrainer
from fedlightning.vector import Layout


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
        super().__init__(batch_size=None, steps=steps, evaluate_on=("train",))
        self._clients = list(zip(curvatures, optima, num_examples, strict=True))

    def load(self) -> tuple[Examples, Partition, Examples, Partition]:
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
        return examples, clients, examples, clients

    @staticmethod
    @checked()
    def task(start: Sequence[float]) -> FederatedTask:
        """Linear regression whose parameters are x, at a start."""
        model = nn.Linear(len(start), 1, bias=False, dtype=torch.float64)
        with torch.no_grad():
            model.weight.copy_(torch.tensor([list(start)], dtype=torch.float64))
        return Regression(model)


@checked()
def check_method(method: FedMethod, *, cohort: bool = True) -> None:
    """Prove that a method keeps the contract drawn in `fedlightning.method`.

    Its hooks change no argument and draw no global random numbers; it gives the same numbers looped and, with `cohort`,
    vmapped and traced; the same bits for one slot and three, run in one go and resumed from a checkpoint.

    Args:
        method: an instance of any `FedMethod`.
        cohort: also run it under vmap, where a branch on a tensor is found, and as a traced graph of several steps, where
            one on `client.round` or `client.num_steps` is; False for a method that needs `cohort_size=1`.

    Raises:
        MethodError: it does not; the message names the hook and the remedy.
    """
    _check_purity(method)
    looped = _run(method, slots=1, cohort_size=1)
    if not torch.equal(looped, _run(method, slots=3, cohort_size=1)):
        raise MethodError(
            f"`{type(method).__name__}` must give the same bits for any number of slots, but does not: something in it is "
            "shared between clients; keep it in the client's or the server's State."
        )
    if not torch.equal(looped, _run(method, slots=1, cohort_size=1, resume=True)):
        raise MethodError(
            f"`{type(method).__name__}` must give the same bits after a resume, but does not: it remembers something outside "
            "of the State that `configure_server` and `configure_client` return; keep it there."
        )
    if not cohort:
        return
    lifts: tuple[tuple[bool | Literal["trace"], str], ...] = ((False, "vmapped"), ("trace", "traced"))
    for compile, how in lifts:
        lifted = _run(method, slots=1, cohort_size=4, compile=compile)
        if not torch.allclose(looped, lifted, rtol=1e-9, atol=1e-12):
            raise MethodError(
                f"`{type(method).__name__}` must give the same numbers looped and {how}, but they differ by "
                f"{float((looped - lifted).abs().max()):.1e}; use tensor operations on one client's tensors alone."
            )


def _problem() -> Quadratics:
    generator = torch.Generator().manual_seed(0)
    roots = [torch.randn(3, 3, generator=generator, dtype=torch.float64) for _ in range(4)]
    curvatures = [root @ root.T / 3 + 0.5 * torch.eye(3) for root in roots]
    optima = [torch.randn(3, generator=generator, dtype=torch.float64) for _ in range(4)]
    return Quadratics(curvatures, optima, [5, 8, 12, 20], steps=3)


def _run(
    method: FedMethod, slots: int, cohort_size: int, resume: bool = False, compile: bool | Literal["trace"] = False
) -> Tensor:
    """The global model after four rounds."""

    def trainer(rounds: int) -> FederatedTrainer:
        strategy = SlotStrategy([f"cpu/{i}" for i in range(slots)], cohort_size=cohort_size, compile=compile)
        return FederatedTrainer(rounds, strategy=strategy, callbacks=[], logger=False, evaluate_every=1)

    start = [1.0, -1.0, 0.5]
    if not resume:
        return trainer(4).fit(method, Quadratics.task(start), _problem()).server.x
    with tempfile.TemporaryDirectory() as folder:
        first = trainer(2)
        first.fit(method, Quadratics.task(start), _problem())
        first.save_checkpoint(Path(folder) / "half.ckpt")
        return trainer(4).fit(method, Quadratics.task(start), _problem(), ckpt_path=Path(folder) / "half.ckpt").server.x


def _check_purity(method: FedMethod) -> None:
    """Call each hook of a client once, on the loop's plain tensors, and look at what it did to them."""
    x = torch.tensor([1.0, -1.0, 0.5], dtype=torch.float64)
    layout = Layout.of(Quadratics.task([0.0] * 3))
    server = visible(method, method.configure_server(x)).replace(gradient=-x)
    number = torch.tensor(2.0, dtype=torch.float64)
    client = ClientContext(
        server.x, server, method.configure_client(x), number / 20, number, number, number, torch.tensor(7), True, layout,
        gradient=x / 2,
    )  # fmt: skip

    def grad(w: Tensor) -> Tensor:
        return 0.5 * w + 1

    def call(hook: str, local: State, *arguments: object) -> object:
        with _untouched(
            f"{type(method).__name__}.{hook}", {"local": local, "client.server": server, "client.state": client.state}
        ):
            return getattr(method, hook)(*arguments)

    try:
        local = call("on_client_start", State(), client)
        if not isinstance(local, State) or "w" not in local:
            raise MethodError(
                f"`{type(method).__name__}.on_client_start` must return a State with `w`, but gave {local!r}."
            )
        call("direction", local, local, grad, client)
        after = call("on_local_step", local, local, grad, client)
        if not isinstance(after, State) or tuple(after) != tuple(local):
            raise MethodError(
                f"`{type(method).__name__}.on_local_step` must return a State with {', '.join(local)}, but gave {after!r}."
            )
        call("on_client_end", after, after, client)
    except FedLightningError:
        raise
    except AttributeError as error:
        raise MethodError(
            f"`{type(method).__name__}` must keep nothing on itself and read only what it was sent: {error}"
        ) from error


@contextmanager
def _untouched(hook: str, states: dict[str, State]) -> Iterator[None]:
    """Check that a hook leaves its arguments and the global random generators alone."""
    before = {(owner, name): t.clone() for owner, state in states.items() for name, t in state.items()}
    generators = _generators()
    yield
    for (owner, name), value in before.items():
        if not torch.equal(states[owner][name], value):
            raise MethodError(
                f"`{hook}` changed `{owner}.{name}` in place, which other clients share; compute a new tensor and return "
                f"`state.replace({name}=…)`."
            )
    for read, saved in generators:
        if read() != saved:
            raise MethodError(
                f"`{hook}` drew global random numbers, which depend on what ran before; use `keyed_uniform(client.key, shape)` "
                "of fedlightning.streams, which is the client's own."
            )


def _generators() -> list[tuple[Callable[[], object], object]]:
    readers: list[Callable[[], object]] = [
        lambda: torch.get_rng_state().tolist(),
        lambda: repr(np.random.get_state()),
        random.getstate,
    ]
    return [(read, read()) for read in readers]
