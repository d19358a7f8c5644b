"""The program that compiles a graph, in a process of its own: it imports nothing of the library, which takes seconds.

python compile_package.py source target
"""

from __future__ import annotations

import sys

import torch


def main(source: str, target: str) -> None:
    """Compile the graph in `source`, which holds it with its inputs and options, into a package."""
    from torch._functorch.compile_utils import fx_graph_cse
    from torch._inductor import aoti_compile_and_package  # the export needs what this imports

    graph, inputs, options = torch.load(source, weights_only=False)
    with torch.no_grad():
        graph.graph = fx_graph_cse(graph.graph)  # a layer's backward pass arranges once more what its forward pass did
        exported = torch.export.export(graph, inputs, strict=False)
        aoti_compile_and_package(exported, package_path=target, inductor_configs=options)


if __name__ == "__main__":
    main(*sys.argv[1:])
