"""A method's hooks, each called once before the first round, on vectors of the model's own shape and without the model."""

from __future__ import annotations

import inspect
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from copy import copy
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fedlightning.errors import MethodError
from fedlightning.hooks.contract import Contract, shown
from fedlightning.hooks.diagnose import innermost, naming, where
from fedlightning.hooks.generators import no_draws
from fedlightning.hooks.server import ServerHooks
from fedlightning.layout import Layout
from fedlightning.method import HOOKS, ClientContext, FedMethod, Round, visible
from fedlightning.state import State

_INNER = {
    "start": FedMethod.on_client_start,
    "direction": FedMethod.on_local_step,
    "clip_and_decay": FedMethod.on_local_step,
}
"""Hooks that other hooks call, and the one of `FedMethod`'s own that takes what they give for a vector like w."""


class Audit:
    """Calls the hooks in the order of a round, and looks at what they give, what they write to and what they draw.

    The gradient is a stand-in, so it costs a few vectors and no pass through the model; `objective` is not called.

    Args:
        method: whose hooks they are.
        x: the start model [P]; left as it is.
        layout: of the model.
        round: the first one.
        num_steps: K of a client.
        num_examples: n of a client.
        thorough: compare what hooks were given with copies of it, which finds every way to write to a tensor.
    """

    def __init__(
        self,
        method: FedMethod,
        x: Tensor,
        layout: Layout,
        round: Round,
        num_steps: int,
        num_examples: int,
        thorough: bool = False,
    ) -> None:
        self._contract, self._thorough = Contract(method, layout), thorough
        self._method = self._observed(method)
        self._x, self._layout, self._round = x, layout, round
        numbers = {"lr": round.lr, "num_steps": num_steps, "num_examples": num_examples, "round": round.index}
        self._numbers = {name: x.new_tensor(number) for name, number in numbers.items()}

    def run(self, metrics: Mapping[str, float] | None = None) -> None:
        """Call them.

        Args:
            metrics: those of an evaluation; without them `on_evaluation` is not called.

        Raises:
            MethodError: one fails, gives something else than it must, writes to what it was given, or draws global random
                numbers.
        """
        try:
            with torch.no_grad():
                self._round_of_hooks(metrics)
        except MethodError as error:
            if not isinstance(error.__cause__, AssertionError):
                raise  # an assertion is about numbers, and these are a stand-in's

    def _round_of_hooks(self, metrics: Mapping[str, float] | None) -> None:
        hooks, round = ServerHooks(self._method, self._layout), self._round
        server = self._watch("configure_server", hooks.configure, self._x)
        new = self._watch("configure_client", hooks.configure_client, server.x)
        self._watch("evaluation_point", hooks.evaluation_point, server)
        upload, state = self._client(server, new)
        # The mean of one upload: `OrderedMean` gives integers and bools as numbers of the model's dtype.
        mean = upload.apply(lambda entry: entry.clone() if entry.is_floating_point() else entry.to(self._layout.dtype))
        after = self._watch("on_aggregate", hooks.aggregate, server, mean, round)
        self._return(state, upload, after.x - server.x)
        if metrics is not None:
            self._watch("on_evaluation", hooks.evaluated, after, metrics, round)

    def _client(self, server: State, new: State) -> tuple[State, State]:
        """What a client uploads, and what it remembers."""
        method, contract, sent = self._method, self._contract, visible(self._method, server)
        wanted = method.gradient_pass()
        gradient = self._x[:0] if wanted == "none" else 0.5 * self._x + 1
        sent = sent.replace(gradient=gradient) if wanted == "mean" else sent
        first, later, last = (
            ClientContext(
                sent.x, sent, new, **self._numbers, key=torch.tensor(7, device=self._x.device), step=step,
                layout=self._layout, gradient=gradient,
            )
            for step in (self._x.new_zeros(()), self._x.new_ones(()), self._numbers["num_steps"])
        )  # fmt: skip
        local = began = contract.local("on_client_start", self._watch("on_client_start", method.on_client_start, first))
        for client in (first, later):
            stepped = self._watch("on_local_step", method.on_local_step, local, self._grad, client)
            local = contract.local("on_local_step", stepped, began)
        return contract.ended(self._watch("on_client_end", method.on_client_end, local, last), new)

    def _return(self, state: State, upload: State, step: Tensor) -> None:
        if "on_return" not in self._method.own_hooks:
            return
        if not len(state):
            raise MethodError(
                f"{where(self._method, 'on_return')} gives what a client remembers, but `configure_client` sets nothing for it "
                "to remember, so it would never be called; set its entries there, or leave `on_return` out."
            )
        after = self._watch("on_return", self._method.on_return, state, upload, step, self._round)
        self._contract.remembered("on_return", after, state)

    def _grad(self, w: Tensor) -> Tensor:
        """A gradient at w, as a linear function of it."""
        if not self._contract.is_vector(w):
            frames = [(frame.f_code, line) for frame, line in traceback.walk_stack(sys._getframe())][::-1]
            own = innermost(frames, self._method)
            place = where(self._method, "on_local_step") if own is None else own[1]
            raise MethodError(
                f"{place} must ask for the gradient at a vector like w, {shown(self._x)}, but asks at {shown(w)}; give `grad` "
                "w itself, or a point of its shape and dtype."
            )
        return 0.5 * w + 1

    # -- looking at a hook ------------------------------------------------------------------------------------------
    def _observed(self, method: FedMethod) -> FedMethod:
        """The same method, of which hooks that other hooks call are looked at, too."""
        observed = copy(method)
        for hook in _INNER:
            object.__setattr__(observed, hook, partial(self._inner, hook, getattr(observed, hook)))
        return observed

    def _inner(self, hook: str, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        result = self._watch(hook, function, *arguments, **options)
        if sys._getframe(1).f_code is _INNER[hook].__code__:  # another caller may ask for something else
            self._contract.vector(hook, result, "give each entry of w its own")
        return result

    def _watch(self, hook: str, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """Call a hook, and check that it leaves its arguments and the global random generators alone."""
        names = [name for name in inspect.signature(HOOKS[hook]).parameters if name != "self"]
        given = dict(
            _tensors([*zip(names, arguments, strict=False), *options.items()])
        )  # a hook may take more than ours
        before = {name: (tensor._version, tensor.clone() if self._thorough else None) for name, tensor in given.items()}
        with naming(self._method, hook), no_draws(where(self._method, hook), self._x.device):
            result = function(*arguments, **options)
        for name, (version, copied) in before.items():
            if given[name]._version != version or (copied is not None and not _same(copied, given[name])):
                raise MethodError(
                    f"{where(self._method, hook)} changed `{name}` in place, which others share; compute a new tensor and return "
                    f"`state.replace({name.rpartition('.')[2]}=…)`."
                )
        return result


def _tensors(arguments: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, Tensor]]:
    """The tensors that a hook is given, by name."""
    for name, value in arguments:
        if isinstance(value, State):
            yield from ((f"{name}.{entry}", tensor) for entry, tensor in value.items())
        elif isinstance(value, ClientContext):
            numbers = ("lr", "num_steps", "num_examples", "round", "key", "step")
            inner = {"server": value.server, "state": value.state, "gradient": value.gradient}
            inner |= {number: getattr(value, number) for number in numbers}
            yield from _tensors([(f"{name}.{entry}", each) for entry, each in inner.items()])
        elif isinstance(value, Tensor):
            yield name, value


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether they are equal, NaNs where they are."""
    return bool(((one == other) | ((one != one) & (other != other))).all())
