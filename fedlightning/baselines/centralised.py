"""The centralised baseline: the same task on the same data, pooled, under `lightning.Trainer`.

A "round" is m K̄ steps, with m participants and the mean K̄ of a client's local steps, so that after each both have
computed the same number of gradients. What is logged has the names and the rounds of a federated run: the curves lie over
each other. Plain SGD with the method's `lr`, `lr_decay`, `weight_decay` and `clip_norm`; nothing else of it counts.
"""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_info

from fedlightning.data.module import Examples, FederatedDataModule
from fedlightning.evaluation.footprint import examples_at_once
from fedlightning.evaluation.pooled import PREFIXES
from fedlightning.execution.numerics import Numerics, check_precision
from fedlightning.layout import Layout
from fedlightning.method import FedMethod
from fedlightning.participation.participation import clients_in
from fedlightning.randomness import torch_stream
from fedlightning.task import FederatedTask, computed
from fedlightning.trainer import FederatedTrainer


def fit_centralised(
    like: FederatedTrainer,
    method: FedMethod,
    task: FederatedTask,
    data: FederatedDataModule,
    loggers: Sequence[Logger],
    folder: Path,
    silence: float = 15.0,
) -> None:
    """Train as many steps as all clients of a federated run together, on batches of the pooled data.

    Args:
        like: the federated run's trainer, for its rounds, participants, evaluations, seed and precision.
        method: gives the optimiser's numbers.
        task: is trained in place.
        data: whose pooled examples; the size of its batches is that of a step's.
        loggers: where metrics go.
        folder: of the run; `checkpoints/last.ckpt` in it is Lightning's checkpoint of the trained task.
        silence: seconds after which a line says how far it is.

    Raises:
        ConfigurationError: the model is not of float32 where the precision asks for that.
    """
    precision = like.strategy.precision
    check_precision(precision, Layout.of(task).dtype)
    data.prepare_data()
    data.setup("fit")
    data.evaluated_at_once = min(data.evaluated_at_once, _evaluated_at_once(task, data))
    a_round = steps_of_a_round(like, method, data)
    rounds, gpus = like.max_rounds, range(torch.cuda.device_count())
    epochs = rounds * a_round / len(data.train_dataloader())
    rank_zero_info(f"centralised: {rounds * a_round} steps, {a_round} a round, {epochs:.4g} epochs")
    curve = _Rounds(like, method, data, a_round, loggers, silence)
    trainer = _trainer(curve, like, method.clip_norm, folder)
    with _quiet(), torch.random.fork_rng(gpus), Numerics(precision, on_gpu=len(gpus) > 0):
        torch.manual_seed(torch_stream(like.seed, "centralised").initial_seed())
        trainer.fit(task, data.train_dataloader())
    curve.close()
    trainer.save_checkpoint(folder / "checkpoints" / "last.ckpt")


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what does not concern a run's user."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*does not have many workers.*")
        warnings.filterwarnings("ignore", ".*have no `val_dataloader`.*")  # `_Rounds` evaluates
        warnings.filterwarnings("ignore", ".*isinstance.treespec, LeafSpec.*")  # under newer releases of torch
        yield


@torch.no_grad()
def _evaluated_at_once(task: FederatedTask, data: FederatedDataModule) -> int:
    """The examples of a batch of the test set, as many as a federated run evaluates at once."""

    def evaluate(count: int) -> object:
        inputs, targets = data.batch(data.test, torch.arange(min(count, len(data.test.targets))))
        outputs = task(inputs)
        task.update_metrics(task.metrics.clone(), outputs, targets)
        return outputs, task.scores(outputs, targets)

    task.eval()
    size = examples_at_once(evaluate)
    task.train()
    return size


def _trainer(curve: _Rounds, like: FederatedTrainer, clip_norm: float | None, folder: Path) -> Trainer:
    return Trainer(
        max_steps=like.max_rounds * curve.a_round,
        max_epochs=-1,
        devices=1,
        precision="bf16-mixed" if like.strategy.precision == "bf16-mixed" else "32-true",
        logger=False,
        callbacks=[curve],
        gradient_clip_val=clip_norm,
        limit_val_batches=0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )


def steps_of_a_round(like: FederatedTrainer, method: FedMethod, data: FederatedDataModule) -> int:
    """The m K̄ local steps of all participants of a round together."""
    wished, number = method.local_steps(0), data.clients.num_clients
    mean = statistics.fmean(data.num_steps(client, wished) for client in range(number))
    return max(1, round(clients_in(like.wished_clients, number) * mean))


def _scores(task: FederatedTask, batches: Iterable[Examples]) -> dict[str, float]:
    """The means of the scores over all examples, and the metrics, by name."""
    metrics, sums, count = task.metrics.clone(), dict[str, torch.Tensor](), 0
    for batch in batches:
        inputs, targets = batch.to(task.device)
        outputs = task(inputs)
        for name, values in task.scores(outputs, targets).items():
            sums[name] = sums.get(name, torch.zeros((), dtype=torch.float64)) + values.cpu().sum(dtype=torch.float64)
        task.update_metrics(metrics, outputs, targets)
        count += len(targets)
    return {**{name: float(total) / count for name, total in sums.items()}, **computed(metrics)}


class _Rounds(Callback):
    """Sets the learning rate of each round, evaluates where a federated run does, and logs a row for each round."""

    def __init__(
        self,
        like: FederatedTrainer,
        method: FedMethod,
        data: FederatedDataModule,
        a_round: int,
        loggers: Sequence[Logger],
        silence: float,
    ) -> None:
        self.silence = silence
        self.method, self.data, self.a_round, self.loggers = method, data, a_round, loggers
        self.rounds, self.evaluate_every = like.max_rounds, like.evaluate_every or like.max_rounds
        self.evaluate_on = [name for name in like.evaluate_on if data.split_named(name) is not None]
        self.losses: list[torch.Tensor] = []
        self._spoken = perf_counter()
        self._row: tuple[int, dict[str, float]] = (0, {})

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Evaluate the start model."""
        self._evaluate(trainer, module)

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int) -> None:
        """η_t and u."""
        for group in trainer.optimizers[0].param_groups:
            group["lr"] = self.method.client_lr(trainer.global_step // self.a_round)
            group["weight_decay"] = self.method.weight_decay

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the mean loss of a round at its end, and evaluate."""
        self.losses.append(outputs["loss"].detach())
        if perf_counter() - self._spoken >= self.silence:
            self._say(f"step {trainer.global_step:,} of {trainer.max_steps:,}")
        if trainer.global_step % self.a_round == 0:
            self._log(trainer, {"train/loss": float(torch.stack(self.losses).mean())})
            self.losses.clear()
            round = trainer.global_step // self.a_round
            if round % self.evaluate_every == 0 or round == self.rounds:
                self._evaluate(trainer, module)

    def _evaluate(self, trainer: Trainer, module: LightningModule) -> None:
        """Log the scores of each split."""
        assert isinstance(module, FederatedTask)
        module.eval()
        with torch.no_grad(), trainer.precision_plugin.val_step_context():
            found = {
                f"{PREFIXES[split]}/{name}": value
                for split in self.evaluate_on
                for name, value in _scores(module, self.data.evaluation_dataloader(split)).items()
            }
        module.train()
        self._log(trainer, found)
        shown = "  ".join(f"{name} {value:.4f}" for name, value in found.items())
        self._say(f"round {trainer.global_step // self.a_round}/{self.rounds}  {shown}")

    def close(self) -> None:
        """Write the last row and close the files."""
        self._flush()
        for logger in self.loggers:
            logger.finalize("success")

    def _say(self, line: str) -> None:
        rank_zero_info(line)
        self._spoken = perf_counter()

    def _log(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        """Add to the round's row; write the row before, if it is another's."""
        round = trainer.global_step // self.a_round
        if self._row[0] != round:
            self._flush()
            self._row = (round, {})
        self._row[1].update(metrics)

    def _flush(self) -> None:
        round, metrics = self._row
        for logger in self.loggers:
            logger.log_metrics(metrics, step=round)
            logger.save()
