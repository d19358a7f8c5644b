"""What stands in an operation's place in a compiled graph gives the operation's numbers."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import GraphModule

from fedlightning.execution.runners._trace import trace
from fedlightning.execution.runners.compiled.rewrite import rules

RULES = rules(lanes=16)  # as on a processor with AVX-512, so that the same is tested everywhere


def drawn(*shapes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def with_gradients(function: Callable[..., Tensor], inputs: int) -> Callable[..., list[Tensor]]:
    """The results of a function, and the gradients of a sum of their squares with respect to its inputs."""

    def both(*tensors: Tensor) -> list[Tensor]:
        with torch.enable_grad():
            leaves = [tensor.detach().requires_grad_() for tensor in tensors]
            result = function(*leaves)
            gradients = torch.autograd.grad(result.square().sum(), leaves[-inputs:])
        return [result.detach(), *gradients]

    return both


def replaced(function: Callable[..., Tensor], tensors: list[Tensor], inputs: int | None = None) -> GraphModule:
    """The graph with rules; what it gives is what the function gives."""
    both = with_gradients(function, len(tensors) if inputs is None else inputs)
    graph = trace(both, tensors, rules=RULES)
    for found, usual in zip(graph(*tensors), both(*tensors), strict=True):
        torch.testing.assert_close(found, usual, rtol=0, atol=1e-12)
    return graph


@pytest.mark.parametrize("shape", [(10, 784, 10), (10, 10, 784), (3, 4, 5), (40, 30, 20), (1, 17, 16), (16, 1, 17)])
def test_a_small_product_is_a_product(shape: tuple[int, int, int]) -> None:
    m, k, n = shape
    a, b = drawn((m, k), (k, n))
    found = RULES[torch.ops.aten.mm.default](a, b)
    assert found.is_contiguous()
    torch.testing.assert_close(found, a @ b, rtol=0, atol=1e-12)


def channels(graph: GraphModule, operation: str) -> list[int]:
    """Of the filters of a graph's convolutions: how many they give."""
    at = {"convolution": 1, "convolution_backward": 2}[operation]
    target = getattr(torch.ops.aten, operation).default
    return [node.args[at].meta["val"].shape[0] for node in graph.graph.find_nodes(op="call_function", target=target)]


@pytest.mark.parametrize("size", [(6, 8), (8, 7)])
@pytest.mark.parametrize("padding", [0, 1, (2, 1)])
@pytest.mark.parametrize("kernel", [(1, 1), (3, 2), (5, 5)])
@pytest.mark.parametrize(("inner", "outer"), [(1, 6), (6, 16), (8, 5)])
def test_rows_of_few_channels_are_taken_two_by_two(
    inner: int, outer: int, kernel: tuple[int, int], padding: int | tuple[int, int], size: tuple[int, int]
) -> None:
    tensors = drawn((2, inner, *size), (outer, inner, *kernel), (outer,))
    graph = replaced(lambda x, w, b: F.conv2d(x, w, b, padding=padding), tensors)
    assert channels(graph, "convolution") == [2 * outer if outer < 9 else outer]
    assert channels(graph, "convolution_backward") == [2 * outer]


@pytest.mark.parametrize(("inner", "outer", "inputs", "given"), [(6, 16, 2, 16), (3, 6, 2, 12), (3, 6, 3, 6)])
def test_channels_of_images_count_where_they_have_a_gradient(inner: int, outer: int, inputs: int, given: int) -> None:
    graph = replaced(F.conv2d, drawn((2, inner, 8, 8), (outer, inner, 3, 3), (outer,)), inputs)
    assert channels(graph, "convolution_backward") == [given]


@pytest.mark.parametrize(
    ("function", "shapes"),
    [
        (F.conv2d, [(2, 3, 7, 8), (6, 3, 3, 3), (6,)]),
        (F.conv2d, [(2, 3, 8, 8), (6, 3, 2, 2), (6,)]),
        (F.conv2d, [(2, 3, 8, 8), (16, 3, 3, 3), (16,)]),
        (F.conv2d, [(3, 8, 8), (16, 3, 3, 3), (16,)]),
        (partial(F.conv2d, stride=2), [(2, 3, 8, 8), (6, 3, 3, 3), (6,)]),
        (partial(F.conv2d, dilation=2), [(2, 3, 8, 8), (6, 3, 3, 3), (6,)]),
        (partial(F.conv2d, groups=3), [(2, 3, 8, 8), (6, 1, 3, 3), (6,)]),
        (F.conv_transpose2d, [(2, 6, 8, 8), (6, 6, 3, 3), (6,)]),
        (F.conv1d, [(2, 3, 8), (6, 3, 3), (6,)]),
        (F.conv3d, [(2, 3, 4, 4, 4), (6, 3, 3, 3, 3), (6,)]),
    ],
)
def test_other_convolutions_only_have_the_gradient_of_their_bias_replaced(
    function: Callable[..., Tensor], shapes: list[tuple[int, ...]]
) -> None:
    tensors = drawn(*shapes)
    graph = replaced(function, tensors)
    assert channels(graph, "convolution") == channels(graph, "convolution_backward") == [len(tensors[1])]
    (backward,) = graph.graph.find_nodes(op="call_function", target=torch.ops.aten.convolution_backward.default)
    assert list(backward.args[-1]) == [True, True, False]


@pytest.mark.parametrize("outer", [6, 16])
def test_convolutions_need_no_bias(outer: int) -> None:
    replaced(F.conv2d, drawn((2, 3, 8, 8), (outer, 3, 3, 3)))


def has_pool(graph: GraphModule) -> bool:
    return "max_pool2d" in graph.code


@pytest.mark.parametrize(("window", "size"), [(2, (4, 6)), (3, (6, 9)), ((1, 2), (5, 4)), (1, (2, 2)), ([2], (4, 4))])
def test_pools_are_taken_pixel_by_pixel(window: int | tuple[int, int], size: tuple[int, int]) -> None:
    graph = replaced(lambda x: F.max_pool2d(x, window), drawn((2, 6, *size)))
    assert not has_pool(graph)


def test_the_first_of_equal_pixels_is_the_largest() -> None:
    """As in a picture's background, where all are the same."""
    same = torch.tensor([0.0, 1.0, 1.0, 2.0], dtype=torch.float64).repeat(2, 3, 6, 2)
    assert not has_pool(replaced(lambda x: F.max_pool2d(x, 2), [same.contiguous()]))
    assert not has_pool(replaced(lambda x: F.max_pool2d(x, 3, 3), [torch.ones(1, 1, 6, 6, dtype=torch.float64)]))


def test_a_pool_says_where_its_pixels_are() -> None:
    (x,) = drawn((2, 3, 6, 4))
    usual = F.max_pool2d(x, 2, return_indices=True)
    found = trace(lambda x: list(F.max_pool2d(x, 2, return_indices=True)), [x], rules=RULES)(x)
    assert all(bool((a == b).all()) for a, b in zip(found, usual, strict=True))


@pytest.mark.parametrize(
    "pool",
    [
        partial(F.max_pool2d, kernel_size=2, stride=1),
        partial(F.max_pool2d, kernel_size=2, padding=1),
        partial(F.max_pool2d, kernel_size=2, dilation=2),
        partial(F.max_pool2d, kernel_size=4),
        partial(F.max_pool2d, kernel_size=3),
        partial(F.max_pool2d, kernel_size=3, ceil_mode=True),
    ],
)
def test_other_pools_are_kept(pool: Callable[..., Tensor]) -> None:
    assert has_pool(replaced(pool, drawn((2, 6, 8, 8))))
    assert has_pool(replaced(partial(F.max_pool2d, kernel_size=2), drawn((2, 17, 8, 8))))
