"""FedNAR."""

from __future__ import annotations

from torch import Tensor

from fedlightning.method import ClientContext, clip, hyper
from fedlightning.methods.fedavg import FedAvg


class FedNAR(FedAvg):
    """Normalised annealing regularisation: Li et al., NeurIPS 2023, arXiv:2310.03163.

        v = g_i(w) + u_t w,  u_t = u a^t
        w ← w − η_t min{1, A / ‖v‖} v   K times from w = x,        x ← x + η_g Σ p_i (w_i − x)

    Elsewhere the decay is outside of the clipping, w − η (clip(g_i) + u w). A step is no longer than η A. 1e-6 is added to
    the norm. u = 0 is the base with clipping, A = None the base with decay. On top of another method:
    `class A(FedNAR, Scaffold)`. Travels and remembered: as the base; for FedAvg 1 model down, 1 up, and nothing. The
    official code anneals by the learning rate alone, `lr_decay=0.998`.

    Args:
        weight_decay: u; the official code has 0.05 for FedAvg, FedProx and SCAFFOLD, 0.01 for server optimisers on
            CIFAR-10, and 0.0001 on Shakespeare.
        clip_norm: A, 10 in the official code; None for no clipping.
        wd_anneal: a, the factor on u after each round.
    """

    weight_decay: float = 0.05
    clip_norm: float | None = hyper(10.0, "(0, inf]")
    wd_anneal: float = hyper(1.0, "(0, 1]")

    def clip_and_decay(self, d: Tensor, w: Tensor, client: ClientContext) -> Tensor:
        """clip(d + u_t w)."""
        return clip(d + self.weight_decay * self.wd_anneal**client.round * w, self.clip_norm)
