"""How many bytes travel in a round."""

from __future__ import annotations

from torch import Tensor

from fedlightning.method import FedMethod
from fedlightning.server.wire import CohortResult, RoundInputs


class CommunicationBill:
    """Counts the bytes of one round, up and down, of all participants together.

    Up: what each client uploads, its buffers, and its gradient where the method takes the mean of the gradients first. Down:
    the entries of the server's state that the method's `downlink` lists, and the buffers, once for each participant. Entries in
    `preshared` never change, so they are not sent. A method with `on_return` sends the new model back to the participants at the
    end of the round. If all clients take part, that is the model that the next round sends anyway, and it is counted there.

    Args:
        method: the method.
        num_clients: N.
    """

    def __init__(self, method: FedMethod, num_clients: int) -> None:
        self._method, self._num_clients = method, num_clients
        self._up = 0

    def add(self, cohort: CohortResult) -> None:
        """Count what a cohort sends."""
        self._up += cohort.upload.nbytes + _bytes(cohort.buffers)

    def metrics(self, inputs: RoundInputs, num_participants: int) -> dict[str, float]:
        """The round's `communication/up_bytes` and `communication/down_bytes`, once all cohorts are counted."""
        method, up = self._method, self._up
        if method.gradient_pass() == "mean":
            up += sum(map(_bytes, inputs.gradients.values()))
        down = sum(tensor.nbytes for name, tensor in inputs.server.items() if name not in method.preshared)
        down += _bytes(inputs.buffers)
        if "on_return" in method.own_hooks and num_participants < self._num_clients:
            down += inputs.server.x.nbytes
        return {
            "communication/up_bytes": float(up),
            "communication/down_bytes": float(down * num_participants),
        }


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
