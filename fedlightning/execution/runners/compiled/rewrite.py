"""What is put in the place of an operation in a graph that is compiled, where a library's own code for it suits it badly.

A library has kernels for large layers: they fill the processor's vectors with channels, and cost as much for six channels
as for sixteen. What a rule puts in their place gives the same numbers to rounding.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_SMALL = 131_072
"""Multiplications of a matrix product below which calling a library costs more than its better use of the cache saves."""

_FEW = 16
"""Columns or rows of a product, up to which each is a sum of its own; more of them have no room in the registers."""

_LANES = 16 if torch.backends.cpu.get_cpu_capability() == "AVX512" else 8
"""Numbers of float32 in one of the processor's vectors."""

_WINDOW = 9
"""The most pixels of a pool's window that are looked at one by one."""


def _product(a: Tensor, b: Tensor) -> Tensor:
    """The product [M, N] of a [M, K] and b [K, N]; a small one as sums, which the compiler fuses with the rest.

    One sum is a chain of additions, each of which waits for the one before it. So a few long columns, or rows, are written
    one by one: the compiler sums them at a time, and loads once what they share.
    """
    (m, k), n = a.shape, b.shape[1]
    if m * k * n > _SMALL:
        return NotImplemented  # type: ignore[no-any-return]  # it is then kept as it is
    if n <= _FEW < k:
        return torch.stack([(a * column).sum(1) for column in b.unbind(1)], 1)
    if m <= _FEW < n:
        return torch.stack([(row.unsqueeze(1) * b).sum(0) for row in a.unbind()])
    return (a.unsqueeze(2) * b.unsqueeze(0)).sum(1)


def _product_and_bias(bias: Tensor, a: Tensor, b: Tensor) -> Tensor:
    product = _product(a, b)
    return product if product is NotImplemented else bias + product


def _pairs(x: Tensor) -> Tensor:
    """Images [B, C, H, W] with two rows of pixels as one of twice the channels [B, 2C, H/2, W], which lie innermost."""
    batch, channels, height, width = x.shape
    if width % 2:
        rows = x.view(batch, channels, height // 2, 2, width).permute(0, 2, 4, 3, 1)
    else:  # a pool that comes before finds its own windows in it then
        rows = x.view(batch, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 5, 3, 1)
    return rows.contiguous().view(batch, height // 2, width, 2 * channels).permute(0, 3, 1, 2)


def _from_pairs(x: Tensor) -> Tensor:
    """The way back, from [B, 2C, H/2, W] to [B, C, H, W]."""
    batch, channels, height, width = x.shape
    rows = x.permute(0, 2, 3, 1).view(batch, height, width, 2, channels // 2)
    return rows.permute(0, 4, 1, 3, 2).reshape(batch, channels // 2, 2 * height, width)


def _weight_of_pairs(weight: Tensor) -> Tensor:
    """Filters [2O, 2C, (k + 1)/2, n] of pairs, for [O, C, k, n]: those of the second row look one row further down."""
    out, channels, k, n = weight.shape
    both = torch.stack([F.pad(weight, (0, 0, 0, 1)), F.pad(weight, (0, 0, 1, 0))])
    rows = both.view(2 * out, channels, (k + 1) // 2, 2, n).permute(0, 2, 4, 3, 1)
    return rows.reshape(2 * out, (k + 1) // 2, n, 2 * channels).permute(0, 3, 1, 2)


def _weight_from_pairs(gradient: Tensor, shape: torch.Size) -> Tensor:
    """The gradient [O, C, k, n] of filters, from that of their pairs."""
    out, channels, k, n = shape
    rows = gradient.reshape(2, out, 2, channels, (k + 1) // 2, n).permute(0, 1, 3, 4, 2, 5)
    first, second = rows.reshape(2, out, channels, k + 1, n).unbind()
    return first[:, :, :-1] + second[:, :, 1:]


def _makes_pairs(x: Tensor, weight: Tensor, padding: Sequence[int], rest: Sequence[Any]) -> bool:
    """Whether a convolution's rows can be taken two by two: an odd number of them in a filter, an even one in the images."""
    stride, dilation, transposed, _, groups = rest
    plain: bool = x.dim() == 4 and not transposed and groups == 1 and all(each == 1 for each in (*stride, *dilation))
    return plain and weight.shape[2] % 2 == 1 and (x.shape[2] + 2 * padding[0]) % 2 == 0


def _padded(x: Tensor, rows: int) -> Tensor:
    return F.pad(x, (0, 0, rows, rows)) if rows else x


def _few_channels(lanes: int) -> range:
    """Channels that leave more than half of a vector empty, and of which two rows fill most of it."""
    return range(lanes // 4 + 1, lanes // 2 + 1)


def _convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any, dilation: Any, *rest: Any, lanes: int
) -> Tensor:
    """One that gives few channels, for two rows of pixels at a time."""
    if len(weight) not in _few_channels(lanes) or not _makes_pairs(x, weight, padding, (stride, dilation, *rest)):
        return NotImplemented  # type: ignore[no-any-return]
    images, both = _pairs(_padded(x, padding[0])), None if bias is None else torch.cat([bias, bias])
    how = (stride, (0, padding[1]), dilation, *rest)
    return _from_pairs(torch.ops.aten.convolution(images, _weight_of_pairs(weight), both, *how))


def _convolution_backward(
    gradient: Tensor,
    x: Tensor,
    weight: Tensor,
    sizes: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    *others: Any,
    lanes: int,
) -> tuple[Tensor | None, ...]:
    """For two rows of pixels at a time where there are few channels; a bias's gradient is a sum like any other."""
    *rest, (to_x, to_weight, to_bias) = others
    channels, wanted = weight.shape[: 1 + to_x], (to_x, to_weight, False)
    counts = _few_channels(lanes)
    few = any(n in counts for n in channels) and not any(2 * n in counts for n in channels)
    backward = torch.ops.aten.convolution_backward
    if few and _makes_pairs(x, weight, padding, (stride, dilation, *rest)):
        rows, columns = padding
        given, images, how = _pairs(gradient), _pairs(_padded(x, rows)), (stride, (0, columns), dilation, *rest)
        dx, dw, _ = backward(given, images, _weight_of_pairs(weight), sizes, *how, wanted)
        return (
            _from_pairs(dx)[:, :, rows : rows + x.shape[2]] if to_x else None,
            _weight_from_pairs(dw, weight.shape) if to_weight else None,
            given.sum((0, 2, 3)).view(2, -1).sum(0) if to_bias else None,
        )
    if not to_bias:
        return NotImplemented  # type: ignore[no-any-return]
    dx, dw, _ = backward(gradient, x, weight, sizes, stride, padding, dilation, *rest, wanted)
    return dx, dw, gradient.sum((0, *range(2, gradient.dim())))


def _tiles(
    x: Tensor, window: Sequence[int], stride: Sequence[int], padding: Any, dilation: Any, lanes: int
) -> tuple[int, ...]:
    """A pool's window (k, n) if they lie side by side, cover the images and a vector holds all channels; nothing if not."""
    sides = tuple(window) * (2 // len(window))
    beside = not stride or tuple(stride) * (2 // len(stride)) == sides
    plain = beside and not any(padding) and all(each == 1 for each in dilation) and math.prod(sides) <= _WINDOW
    fitting = x.dim() == 4 and x.shape[1] <= lanes and not any(n % k for n, k in zip(x.shape[2:], sides, strict=True))
    return sides if plain and fitting else ()


def _windows(x: Tensor, k: int, n: int) -> Tensor:
    """[B, C, H, W] as [B, C, H/k, k, W/n, n]."""
    rows: Tensor = x.unflatten(3, (-1, n)).unflatten(2, (-1, k))
    return rows


def _stored(x: Tensor) -> Tensor:
    """The same, which the compiler puts in memory, and does not compute anew where it is looked at."""
    x = x.contiguous()
    return x.as_strided(x.shape, x.stride())


def _places(x: Tensor) -> Tensor:
    """The places [1, 1, H, W] of an image's pixels, as numbers that fill a vector like the pixels."""
    height, width = x.shape[2:]
    return torch.arange(height * width, dtype=torch.float32, device=x.device).view(1, 1, height, width)


def _max_pool(
    x: Tensor,
    window: Any,
    stride: Any = (),
    padding: Any = (0,),
    dilation: Any = (1,),
    ceil: bool = False,
    *,
    lanes: int,
) -> tuple[Tensor, Tensor]:
    """The largest pixels of windows and where they are, the first of them where several are; pixel by pixel."""
    if not (sides := _tiles(x, window, stride, padding, dilation, lanes)):
        return NotImplemented  # type: ignore[no-any-return]
    k, n = sides
    pixels, places = _windows(x, k, n), _windows(_places(x), k, n)
    *others, (r, s) = itertools.product(range(k), range(n))
    largest, place = pixels[:, :, :, r, :, s], places[:, :, :, r, :, s]
    for i, j in others:
        largest = torch.maximum(largest, pixels[:, :, :, i, :, j])
    for i, j in reversed(others):
        place = place + (pixels[:, :, :, i, :, j] == largest) * (places[:, :, :, i, :, j] - place)
    return largest, _stored(place.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def _max_pool_backward(
    gradient: Tensor,
    x: Tensor,
    window: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    ceil: bool,
    place: Tensor,
    *,
    lanes: int,
) -> Tensor:
    """Each window's gradient where its largest pixel is, by a product, which fills the processor's vectors.

    So where a gradient is infinite, the window's other pixels get NaN and not 0; the client has failed either way.
    """
    if not (sides := _tiles(x, window, stride, padding, dilation, lanes)):
        return NotImplemented  # type: ignore[no-any-return]
    places = _windows(_places(x), *sides)
    there, given = (tensor.unsqueeze(3).unsqueeze(5) for tensor in (place, gradient))
    return ((there == places).to(gradient.dtype) * given).reshape(x.shape)


def rules(lanes: int) -> dict[Any, Callable[..., Any]]:
    """What stands in the place of each operation.

    Args:
        lanes: numbers of float32 in one of the processor's vectors.
    """
    aten = torch.ops.aten
    return {
        aten.mm.default: _product,
        aten.addmm.default: _product_and_bias,
        aten.convolution.default: partial(_convolution, lanes=lanes),
        aten.convolution_backward.default: partial(_convolution_backward, lanes=lanes),
        aten.max_pool2d_with_indices.default: partial(_max_pool, lanes=lanes),
        aten.max_pool2d_with_indices_backward.default: partial(_max_pool_backward, lanes=lanes),
    }


RULES = rules(_LANES)
"""Those for this processor."""
