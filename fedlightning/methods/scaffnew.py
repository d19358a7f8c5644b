"""Scaffnew."""

from typing import Literal

from torch import Tensor, zeros_like

from fedlightning.method import ClientContext, Grad, Round, hyper
from fedlightning.methods.conditions import expect_full_participation
from fedlightning.methods.fedavg import FedAvg
from fedlightning.randomness import stream
from fedlightning.state import State


class Scaffnew(FedAvg):
    """ProxSkip for federated learning: Mishchenko et al., ICML 2022, arXiv:2202.09357.

        w ← w − η [g_i(w) − h_i]   K times from w = x, until a coin that all share shows heads, with probability p
        x ← mean(w_i),        h_i ← h_i + (p / η) (x − w_i)

    With full batches it reaches the exact minimiser. Travels: 1 model down, 1 up. Remembered: 1 model at each client. All
    share p, also where some take fewer steps than others, and the mean is that of the same round, or the h_i would not sum
    to 0.

    Args:
        p: probability of a communication; 1 / √κ in theory with the condition number κ, 1 / K in practice. It gives the
            local steps of a round, not the data module.
        coin: "fixed" communicates after every K = 1 / p steps, rounded, and is SCAFFOLD's option II; "geometric" tosses.
        coin_seed: of the tosses.
        allow_partial: run with some of the clients, which the paper does not cover: only the participants' h_i move then, and
            x travels twice to them, at the beginning of the round and at its end.
    """

    weighting: Literal["examples", "uniform"] = "uniform"
    server_lr: float = hyper(1.0, "[1, 1]")
    p: float = hyper(0.2, "(0, 1]")
    coin: Literal["fixed", "geometric"] = hyper("fixed", ("fixed", "geometric"))
    coin_seed: int = 0
    allow_partial: bool = False

    def check(self, round: Round) -> None:
        super().check(round)
        expect_full_participation(self, round, self.allow_partial)

    def local_steps(self, round: int) -> int:
        tossed = stream(self.coin_seed, "coin", round).geometric(self.p)
        return int(tossed) if self.coin == "geometric" else int(1 / self.p + 0.5)

    def configure_client(self, x: Tensor) -> State:
        return super().configure_client(x).replace(h=zeros_like(x))

    def direction(self, local: State, grad: Grad, client: ClientContext) -> Tensor:
        return super().direction(local, grad, client) - client.state.h

    def on_return(self, state: State, upload: State, step: Tensor, round: Round) -> State:
        state = super().on_return(state, upload, step, round)
        p = self.p if self.coin == "geometric" else 1 / self.local_steps(round.index)
        return state.replace(h=state.h + p / round.lr * (step - upload.delta))
