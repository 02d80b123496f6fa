"""The ranker, the deblocker and their training steps in PyTorch, for comparison only.

Computes the same functions as `cqr_jax.models`, `cqr_jax.losses` and
`cqr_jax.training.steps`, in idiomatic PyTorch. Arrays are float32 of shape (batch,
channels, height, width), in either memory format. Modules have the names of their Flax
counterparts. A number at the end of a Flax name is an index into a list, so that
`from_flax` can load any weights.

BatchNorm equals Flax's in evaluation, in the forward pass of training and in all
gradients. The running variance differs: PyTorch updates it with the unbiased variance
of the batch, and Flax with the biased one. A momentum of 0.1 in PyTorch corresponds to
0.9 in Flax.
"""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

_CONVOLUTIONS = (
    (3, 1, 1),
    (4, 2, 1),
    (3, 1, 2),
    (4, 2, 2),
    (3, 1, 4),
    (4, 2, 4),
    (3, 1, 8),
    (4, 2, 8),
    (3, 1, 8),
    (4, 2, 8),
)  # kernel size, stride and multiple of the width, as in RankSRGAN


class Ranker(nn.Module):
    """Maps images to scores (batch,) and the feature maps `conv0` to `conv9`."""

    def __init__(self, width: int = 64, hidden: int = 100):
        super().__init__()
        widths = [1, *(multiple * width for _, _, multiple in _CONVOLUTIONS)]
        self.conv = nn.ModuleList(
            nn.Conv2d(widths[i], widths[i + 1], kernel, stride, padding=1)
            for i, (kernel, stride, _) in enumerate(_CONVOLUTIONS)
        )
        self.norm = nn.ModuleList(
            nn.BatchNorm2d(size) if i else nn.Identity()
            for i, size in enumerate(widths[1:])
        )
        self.dense = nn.ModuleList(
            (nn.Linear(widths[-1], hidden), nn.Linear(hidden, 1))
        )

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        features = {}
        for i, (conv, norm) in enumerate(zip(self.conv, self.norm, strict=True)):
            x = functional.leaky_relu(norm(conv(x)), 0.2, inplace=True)
            features[f"conv{i}"] = x
        x = functional.leaky_relu(self.dense[0](x.mean((2, 3))), 0.2)
        return self.dense[1](x)[:, 0], features


class Deblocker(nn.Module):
    """Maps compressed images of any height and width to restored images."""

    def __init__(
        self,
        width: int = 64,
        local_blocks: int = 8,
        residual_blocks: int = 2,
        dilations: Sequence[int] = (1, 2, 4),
        scale: int = 1,
        key_pool: int = 1,
    ):
        super().__init__()

        def block(non_local):
            return _DilatedBlock(width, residual_blocks, dilations, non_local, key_pool)

        self.scale = scale
        self.head = _conv3x3(scale**2, width)
        self.non_local_in = block(True)
        self.local = nn.Sequential(*(block(False) for _ in range(local_blocks)))
        self.body = _conv3x3(width, width)
        self.non_local_out = block(True)
        self.tail = _conv3x3(width, scale**2)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        h, w = image.shape[2:]
        multiple = 2 * self.scale
        padding = (0, -w % multiple, 0, -h % multiple)
        x = functional.pad(image - 0.5, padding, mode="replicate")
        x = self.head(functional.pixel_unshuffle(x, self.scale))
        x = self.body(self.local(self.non_local_in(x)))
        x = self.tail(self.non_local_out(x))
        return image + functional.pixel_shuffle(x, self.scale)[:, :, :h, :w]


def _conv3x3(inputs: int, outputs: int, stride: int = 1, dilation: int = 1):
    return nn.Conv2d(inputs, outputs, 3, stride, dilation, dilation)


class _ResidualBlock(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.inner, self.out = _conv3x3(width, width), _conv3x3(width, width)

    def forward(self, x):
        return x + self.out(functional.relu(self.inner(x), inplace=True))


def _residual_blocks(count: int, width: int) -> nn.Sequential:
    return nn.Sequential(*(_ResidualBlock(width) for _ in range(count)))


class _MultiDilation(nn.Module):
    def __init__(self, width: int, dilations: Sequence[int]):
        super().__init__()
        count = len(dilations)
        self.dilated = nn.ModuleList(
            _conv3x3(width, (width + count - 1 - i) // count, dilation=dilation)
            for i, dilation in enumerate(dilations)
        )

    def forward(self, x):
        y = functional.relu(x)
        return x + torch.cat([conv(y) for conv in self.dilated], 1)


class _NonLocalAttention(nn.Module):
    def __init__(self, width: int, key_pool: int):
        super().__init__()
        self.key_pool = key_pool
        self.theta, self.phi, self.g = (nn.Conv2d(width, width // 2, 1) for _ in "qkv")
        self.out = nn.Conv2d(width // 2, width, 1)

    def forward(self, x):
        h, w = x.shape[2:]
        source = x
        if self.key_pool > 1:
            source = functional.avg_pool2d(
                x, (min(self.key_pool, h), min(self.key_pool, w))
            )

        def rows(y):  # (batch, 1 head, pixels, channels), the channels contiguous
            return y.flatten(2).transpose(1, 2)[:, None].contiguous()

        y = functional.scaled_dot_product_attention(
            rows(self.theta(x)), rows(self.phi(source)), rows(self.g(source)), scale=1.0
        )
        return x + self.out(y[:, 0].transpose(1, 2).unflatten(2, (h, w)))


class _Upsample(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.conv = _conv3x3(width, 4 * width)

    def forward(self, x):
        return functional.pixel_shuffle(self.conv(x), 2)


class _MaskBranch(nn.Module):
    def __init__(self, width: int, blocks: int, non_local: bool, key_pool: int):
        super().__init__()
        self.non_local = _NonLocalAttention(width, key_pool) if non_local else None
        self.before = _ResidualBlock(width)
        self.down = _conv3x3(width, width, stride=2)
        self.inner = _residual_blocks(blocks, width)
        self.up = _Upsample(width)
        self.after = _ResidualBlock(width)
        self.mask = nn.Conv2d(width, width, 1)

    def forward(self, x):
        if self.non_local:
            x = self.non_local(x)
        x = self.before(x)
        x = x + self.up(self.inner(self.down(x)))
        return torch.sigmoid(self.mask(self.after(x)))


class _DilatedBlock(nn.Module):
    def __init__(
        self,
        width: int,
        blocks: int,
        dilations: Sequence[int],
        non_local: bool,
        key_pool: int,
    ):
        super().__init__()
        self.head = _ResidualBlock(width)
        self.trunk = _residual_blocks(blocks, width)
        self.mask = _MaskBranch(width, blocks, non_local, key_pool)
        self.tail = _residual_blocks(blocks, width)
        self.multi_dilation = _MultiDilation(width, dilations)

    def forward(self, x):
        x = self.head(x)
        return self.multi_dilation(self.tail(x + self.trunk(x) * self.mask(x)))


def from_flax(variables: dict, module: nn.Module) -> dict[str, torch.Tensor]:
    """Returns Flax variables, or a similar tree such as gradients, by PyTorch's names.

    Kernels are transposed from (height, width, in, out) or (in, out) to (out, in, ...).
    The outputs of a convolution before a depth-to-space are reordered, because the
    channel is the slowest axis in `pixel_shuffle` and the fastest in `depth_to_space`.

    Args:
      variables: collections of nested dictionaries of arrays.
      module: the PyTorch counterpart, which defines the shapes of the results.
    """
    shapes = {name: x.shape for name, x in module.state_dict().items()}
    found = {}

    def walk(tree: Any, path: tuple[str, ...]):
        if isinstance(tree, dict):
            for key, value in tree.items():
                walk(value, (*path, key))
            return
        *modules, leaf = path
        x = np.asarray(tree)
        if modules[-2:] == ["up", "conv"]:
            x = x.reshape(*x.shape[:-1], 4, -1).swapaxes(-1, -2).reshape(x.shape)
        if leaf == "kernel":
            x = x.transpose(-1, -2, *range(x.ndim - 2))
        name = ".".join(re.sub(r"(\d+)$", r".\1", name) for name in modules)
        name = f"{name}.{_LEAVES.get(leaf, leaf)}"
        found[name] = torch.tensor(x.reshape(shapes[name]))

    for collection in variables.values():
        walk(collection, ())
    return found


_LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "mean": "running_mean",
    "var": "running_var",
}


def load(module: nn.Module, variables: dict) -> nn.Module:
    """Returns `module` with the weights of its Flax counterpart.

    Raises:
      RuntimeError: if some of the module's weights are missing.
    """
    counters = {
        name: x
        for name, x in module.state_dict().items()
        if name.endswith("num_batches_tracked")
    }
    module.load_state_dict(counters | from_flax(variables, module))
    return module


def margin_ranking(score_i, score_j, label_i, label_j, margin: float) -> torch.Tensor:
    """Returns the margin ranking loss (eq. 2), averaged over pairs."""
    better = torch.sign(label_i - label_j)
    return functional.margin_ranking_loss(score_i, score_j, better, margin)


def guided_loss(
    restored, clean, ranker: Ranker | None, alpha: float, beta: float
) -> dict[str, torch.Tensor]:
    """Returns the overall loss (eq. 6) as `loss`, and its terms by name.

    Args:
      restored, clean: (batch, 1, height, width), one clean image for each restored one.
      ranker: the frozen ranker in evaluation mode; None if alpha and beta are 0.
      alpha, beta: weights of the quality loss and of the feature matching loss.
    """
    terms = {"mae": functional.l1_loss(restored, clean)}
    loss = terms["mae"]
    if ranker:
        score, features = ranker(restored)
        with torch.no_grad():
            _, target = ranker(clean)
        terms["quality"] = torch.sigmoid(-score).mean()
        terms["feature"] = sum(
            functional.l1_loss(features[name], target[name]) for name in features
        )
        loss = loss + alpha * terms["quality"] + beta * terms["feature"]
    return {"loss": loss, **terms}


class Trainer:
    """Adam and the moving average of the weights, as in `training.state.update`.

    Attributes:
      average: averaged parameters, in the module's order.
    """

    def __init__(self, module: nn.Module, ema_decay: float, **adam: Any):
        self._parameters = list(module.parameters())
        self._optimizer = torch.optim.Adam(self._parameters, fused=True, **adam)
        self._ema_decay, self._step = ema_decay, 0
        self.average = [x.detach().clone() for x in self._parameters]

    def update(self, loss: torch.Tensor) -> None:
        """Takes one optimizer step on `loss`."""
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()
        self._step += 1
        decay = min(self._ema_decay, (1 + self._step) / (10 + self._step))
        torch._foreach_lerp_(self.average, self._parameters, 1 - decay)
