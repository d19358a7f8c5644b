"""Vision transformers (Dosovitskiy et al., ICLR 2021) that normalise after each block, as FederatedX builds them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedlightning._checked import COUNT, checked
from fedlightning.errors import ConfigurationError
from fedlightning.models.recurrent import _is_transformed
from fedlightning.models.size import require_size


@checked(classes=COUNT, channels=COUNT)
def vit_base(classes: int, channels: int = 3, positions: bool = True) -> ViT:
    """Width 768, 12 heads, 12 blocks: 85,874,020 parameters for 3 channels and 100 classes; arguments as `ViT`'s."""
    return ViT(classes, channels, dim=768, heads=12, blocks=12, positions=positions)


@checked(classes=COUNT, channels=COUNT)
def vit_small(classes: int, channels: int = 3, positions: bool = True) -> ViT:
    """Width 256, 8 heads, 6 blocks: 11,315,556 parameters for 3 channels and 100 classes; arguments as `ViT`'s."""
    return ViT(classes, channels, dim=256, heads=8, blocks=6, positions=positions)


class ViT(nn.Module):
    """Patches of the enlarged image and a class token through transformer blocks; a linear layer on the class token.

    A block is x ← LN(x + attention(x)), x ← LN(x + MLP(x)), the post-norm of Vaswani et al., NeurIPS 2017. torchvision's
    `VisionTransformer` normalises before, always has positions, and its `nn.MultiheadAttention` is slow under `vmap`.

    Departures: FederatedX has no position embeddings, so that its model does not see where a patch is; that is
    `positions=False`. Weights start from a normal distribution of deviation 0.02, cut off at twice that, and biases at zero.

    Args:
        classes: number of outputs.
        channels: channels of an image, which may have any size.
        dim: width of a token; a multiple of `heads`.
        heads: attention heads.
        blocks: how many there are.
        hidden: width of the MLP.
        patch: pixels along each side of a patch; a divisor of `size`.
        size: pixels along each side to which images are enlarged (bilinearly).
        positions: whether the tokens have trained position embeddings.

    Raises:
        ConfigurationError: a number is not positive, or does not divide the other.
    """

    @checked(
        classes=COUNT,
        channels=COUNT,
        dim=COUNT,
        heads=COUNT,
        blocks=COUNT,
        hidden=COUNT,
        patch=COUNT,
        size=COUNT,
    )
    def __init__(
        self,
        classes: int,
        channels: int = 3,
        *,
        dim: int = 768,
        heads: int = 12,
        blocks: int = 12,
        hidden: int = 3072,
        patch: int = 16,
        size: int = 224,
        positions: bool = True,
    ) -> None:
        super().__init__()
        for name, value, divisor in (("dim", dim, heads), ("size", size, patch)):
            if value % divisor:
                other = "heads" if name == "dim" else "patch"
                raise ConfigurationError(f"`{name}` of ViT must be a multiple of `{other}`, {divisor}, but is {value}.")
        parameters = (channels * patch**2 + (size // patch) ** 2 + classes) * dim + blocks * dim * (
            4 * dim + 2 * hidden
        )
        sizes = {"dim": dim, "blocks": blocks, "hidden": hidden, "patch": patch, "size": size}
        require_size("ViT", parameters, classes=classes, channels=channels, **sizes)
        self.size, self.patch = size, patch
        self.embedding = nn.Linear(channels * patch**2, dim)
        self.class_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.positions = nn.Parameter(torch.zeros(1, (size // patch) ** 2 + 1, dim)) if positions else None
        self.blocks = nn.Sequential(*(_Block(dim, heads, hidden) for _ in range(blocks)))
        self.head = nn.Linear(dim, classes)
        for parameter_name, parameter in self.named_parameters():
            if parameter.dim() > 1:
                nn.init.trunc_normal_(parameter, std=0.02, a=-0.04, b=0.04)
            elif parameter_name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits [B, classes] of images [B, channels, height, width]."""
        tokens = self.embedding(self._patches(inputs))
        tokens = torch.cat([self.class_token.expand(len(tokens), -1, -1), tokens], dim=1)
        if self.positions is not None:
            tokens = tokens + self.positions
        logits: Tensor = self.head(self.blocks(tokens)[:, 0])
        return logits

    def _patches(self, images: Tensor) -> Tensor:
        """The patches [B, n², channels · patch²], row by row, of images of any size."""
        if images.shape[-2:] != (self.size, self.size):
            images = F.interpolate(images, (self.size, self.size), mode="bilinear", align_corners=False)
        batch, channels = images.shape[:2]
        count = self.size // self.patch
        cut = images.reshape(batch, channels, count, self.patch, count, self.patch)
        return cut.permute(0, 2, 4, 1, 3, 5).reshape(batch, count**2, channels * self.patch**2)


class _Block(nn.Module):
    def __init__(self, dim: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.attention = Attention(dim, heads)
        self.first_norm = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))
        self.second_norm = nn.LayerNorm(dim)

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = self.first_norm(tokens + self.attention(tokens))
        result: Tensor = self.second_norm(tokens + self.mlp(tokens))
        return result


class Attention(nn.Module):
    """Self-attention with several heads.

    Eagerly it runs in torch's fused kernel. Under `torch.func` and while a graph is traced, where that has no rule on a
    CPU, it is two matrix products and a softmax, which may also be differentiated twice.

    Args:
        dim: width of a token; a multiple of `heads`.
        heads: how many there are.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.projections = nn.Linear(dim, 3 * dim)
        self.output = nn.Linear(dim, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens [B, T, dim] from tokens [B, T, dim]."""
        batch, length, dim = tokens.shape
        split = self.projections(tokens).reshape(batch, length, 3, self.heads, dim // self.heads)
        query, key, value = split.permute(2, 0, 3, 1, 4).unbind(0)
        if _is_transformed():
            weights = (query @ key.transpose(-2, -1) * (dim // self.heads) ** -0.5).softmax(-1)
            mixed = weights @ value
        else:
            mixed = F.scaled_dot_product_attention(query, key, value)
        result: Tensor = self.output(mixed.transpose(1, 2).reshape(batch, length, dim))
        return result
