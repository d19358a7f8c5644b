"""Who takes part in a round, how much of the work they do, and on which batches."""

from fedlightning.participation.batching_policy import BatchingPolicy
from fedlightning.participation.participation import Participation, RoundPlan
from fedlightning.participation.samplers import ClientSampler, FixedSchedule, SizeWeighted, UniformSampling
from fedlightning.participation.stragglers import Stragglers, Work

__all__ = [
    "BatchingPolicy",
    "ClientSampler",
    "FixedSchedule",
    "Participation",
    "RoundPlan",
    "SizeWeighted",
    "Stragglers",
    "UniformSampling",
    "Work",
]
