"""Who takes part in a round, and how much of the work they do."""

from fedlightning.participation.samplers import ClientSampler, FixedSchedule, RoundSeeded, SizeWeighted, UniformSampling
from fedlightning.participation.stragglers import Stragglers

__all__ = ["ClientSampler", "FixedSchedule", "RoundSeeded", "SizeWeighted", "Stragglers", "UniformSampling"]
