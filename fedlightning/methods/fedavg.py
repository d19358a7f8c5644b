"""FedAvg."""

from __future__ import annotations

from fedlightning.method import FedMethod


class FedAvg(FedMethod):
    """Federated averaging: McMahan et al., AISTATS 2017, arXiv:1602.05629.

        w ← w − η g_i(w)   K times from w = x,        x ← x + η_g Σ p_i (w_i − x),  p_i = n_i / Σ n_j

    η_g = 1 is the average of the clients' models. Travels: 1 model down, 1 up. Remembered: nothing.
    """
