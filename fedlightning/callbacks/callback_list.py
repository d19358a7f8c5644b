"""The callbacks of a fit: in which order they are called, and what becomes of a round in which one of them fails."""

from __future__ import annotations

import json
import pickle
from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from fedlightning.callbacks.base import Callback
from fedlightning.errors import ConfigurationError, nearest

if TYPE_CHECKING:
    from fedlightning.trainer import FederatedTrainer

_STAGES = ("observe", "decide", "save")


def in_order(callbacks: Collection[Callback]) -> list[Callback]:
    """Those that observe, then those that decide by what these log, then those that save.

    Raises:
        ConfigurationError: one has a hook that there is not, which would never be called.
    """
    for callback in callbacks:
        own = {name for cls in type(callback).__mro__ if issubclass(cls, Callback) for name in vars(cls)}
        if unknown := sorted(name for name in own if name.startswith("on_") and not hasattr(Callback, name)):
            hooks = [name for name in vars(Callback) if name.startswith("on_")]
            raise ConfigurationError(
                f"`{unknown[0]}` of {type(callback).__name__} is no hook of a callback, and would never be called. "
                f"{nearest(unknown[0], hooks)}"
            )
        if callback.stage not in _STAGES:
            raise ConfigurationError(
                f"`stage` of {type(callback).__name__} must be one of {', '.join(map(repr, _STAGES))}, but is "
                f"{callback.stage!r}; see `Callback`."
            )
    return sorted(callbacks, key=lambda callback: _STAGES.index(callback.stage))


class CallbackList:
    """The callbacks of a fit, and what they remembered when the last finished round ended.

    A round is finished when every callback has seen it. One that only observes may fail: the others see the round all the same,
    it is saved, and then the error is raised. Where one fails that has something to remember, or one that decides misses
    what it monitors, or the run is interrupted, the round is not finished, and all go back to what they remembered before.
    """

    def __init__(self, trainer: FederatedTrainer) -> None:
        self._trainer = trainer
        self._remembered = pickle.dumps({})

    def call(self, hook: str, *arguments: Any) -> None:
        """Call a hook of each."""
        for callback in self._trainer.callbacks:
            getattr(callback, hook)(self._trainer, *arguments)

    def call_all(self, hook: str, *arguments: Any) -> list[Exception]:
        """Call a hook of each, whichever fails; what they raised."""
        return self._guarded(self._trainer.callbacks, hook, *arguments)

    def end_round(self, metrics: Mapping[str, float], own: Collection[str]) -> list[Exception]:
        """Let each see the round, before anything is saved.

        Args:
            metrics: what is logged for the round, to which callbacks add.
            own: metrics that no callback logs.

        Raises:
            Exception: the round is not finished.
        """
        failures = self._see("observe", "on_round_end", metrics)
        deciding = [callback for callback in self._trainer.callbacks if callback.stage != "observe"]
        if failures and any(getattr(each, "watched", None) not in {None, *metrics, *own} for each in deciding):
            raise failures[0]
        failures += self._see("decide", "on_round_end", metrics)
        self._see("save", "decide", metrics)
        return failures

    def see_evaluation(self, metrics: Mapping[str, float]) -> list[Exception]:
        """Let each see an evaluation."""
        return [error for stage in _STAGES for error in self._see(stage, "on_evaluation_end", metrics)]

    def save(self, metrics: Mapping[str, float]) -> list[Exception]:
        """Let those that save do so, all best rounds before any last one, since a run goes on from the last."""
        savers = list(self._of("save"))
        return self._guarded(savers, "save") + self._guarded(savers, "on_round_end", metrics)

    # -- what they remember -------------------------------------------------------------------------------------------
    def remember(self) -> None:
        """Keep what they remember now.

        Raises:
            ConfigurationError: it is not what JSON holds.
        """
        self._remembered = pickle.dumps({key: callback.state_dict() for key, callback in self._by_key()})

    def check(self) -> None:
        """Check that what they remember can be written to a checkpoint.

        Raises:
            ConfigurationError: it cannot.
        """
        for key, callback in self._by_key():
            try:
                json.dumps(callback.state_dict())
            except (TypeError, ValueError) as error:
                raise ConfigurationError(
                    f"`state_dict` of {key} must return plain numbers, strings, lists and dictionaries, which checkpoints hold, "
                    f"but holds something else ({error}); convert it, e.g. by `tolist()`."
                ) from error

    @property
    def remembered(self) -> dict[str, Any]:
        """What they remembered when the last finished round ended, by key."""
        remembered: dict[str, Any] = pickle.loads(self._remembered)
        return remembered

    def take_up(self, remembered: Mapping[str, Any]) -> None:
        """Give each back what it remembered.

        Raises:
            ConfigurationError: it does not take it.
        """
        for key, callback in self._by_key():
            if key not in remembered:
                continue
            try:
                callback.load_state_dict(remembered[key])
            except Exception as error:
                raise ConfigurationError(
                    f"`load_state_dict` of {key} must take up what `state_dict` returned, but cannot "
                    f"({type(error).__name__}: {error}); use the callback as it was, or leave it out."
                ) from error

    def _by_key(self) -> Iterator[tuple[str, Callback]]:
        """Each with its key; those of equal keys are numbered."""
        times: dict[str, int] = {}
        for callback in self._trainer.callbacks:
            key = callback.state_key
            times[key] = times.get(key, 0) + 1
            yield (key if times[key] == 1 else f"{key} #{times[key]}"), callback

    # -- calls --------------------------------------------------------------------------------------------------------
    def _of(self, stage: str) -> Iterator[Callback]:
        return (callback for callback in self._trainer.callbacks if callback.stage == stage)

    def _see(self, stage: str, hook: str, *arguments: Any) -> list[Exception]:
        """Call a hook of a stage; what those raised that have nothing to remember."""
        failures = []
        for callback in self._of(stage):
            try:
                getattr(callback, hook)(self._trainer, *arguments)
            except Exception as error:
                if stage != "observe" or "state_dict" in callback.own_hooks:
                    raise
                failures.append(error)
        return failures

    def _guarded(self, callbacks: Collection[Callback], hook: str, *arguments: Any) -> list[Exception]:
        failures = []
        for callback in callbacks:
            try:
                getattr(callback, hook)(self._trainer, *arguments)
            except Exception as error:  # noqa: BLE001 - raised when the others were called
                failures.append(error)
        return failures
