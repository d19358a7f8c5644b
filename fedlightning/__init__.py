"""fedlightning: federated optimization, from the paper's algorithm in five lines to a run on every core and GPU.

`FederatedTrainer` orchestrates rounds, a `FedMethod` is the algorithm, a `FederatedTask` is what is learned, a
`FederatedDataModule` is whose data it is learned from, a `SlotStrategy` is where, and `Callback`s look on.
"""

from fedlightning import _interpreter as interpreter
from fedlightning.cli.early import refuse_mistakes

refuse_mistakes()  # on a recipe's command line, before the seconds that importing torch takes

with interpreter.watch_imports():
    from fedlightning.analysis import Dissimilarity
    from fedlightning.callbacks import EarlyStopping, ModelCheckpoint, RoundProgress, Throughput
    from fedlightning.callbacks.base import Callback
    from fedlightning.data import (
        IID,
        Batching,
        Dirichlet,
        Examples,
        FederatedDataModule,
        Natural,
        Partition,
        Partitioner,
        QuantitySkew,
        Shards,
        TensorData,
    )
    from fedlightning.errors import ClientError, ConfigurationError, FedLightningError, MethodError
    from fedlightning.execution.strategy import SlotStrategy
    from fedlightning.method import ClientContext, FedMethod, Round, hyper
    from fedlightning.methods import FedAvg, FedProx, Scaffold
    from fedlightning.participation import Stragglers
    from fedlightning.randomness import keyed_uniform, stream
    from fedlightning.server.round_state import RoundState
    from fedlightning.state import State
    from fedlightning.task import Classification, FederatedTask, NextToken, Reconstruction, Regression
    from fedlightning.trainer import FederatedTrainer

__version__ = "0.1.0"

__all__ = [
    "IID",
    "Batching",
    "Callback",
    "Classification",
    "ClientContext",
    "ClientError",
    "ConfigurationError",
    "Dirichlet",
    "Dissimilarity",
    "EarlyStopping",
    "Examples",
    "FedAvg",
    "FedLightningError",
    "FedMethod",
    "FedProx",
    "FederatedDataModule",
    "FederatedTask",
    "FederatedTrainer",
    "MethodError",
    "ModelCheckpoint",
    "Natural",
    "NextToken",
    "Partition",
    "Partitioner",
    "QuantitySkew",
    "Reconstruction",
    "Regression",
    "Round",
    "RoundProgress",
    "RoundState",
    "Scaffold",
    "Shards",
    "SlotStrategy",
    "State",
    "Stragglers",
    "TensorData",
    "Throughput",
    "hyper",
    "keyed_uniform",
    "stream",
]
