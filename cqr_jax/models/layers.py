"""Layers of the deblocker: residual block, multi-dilation convolution, non-local
attention, and the mask branch that joins them (RNAN, Zhang et al. 2019).

All layers take and return feature maps of shape (batch, height, width, channels). They
compute in the dtype of their input; parameters are float32.

The last convolution of every residual branch is initialised to zero, so that a network
starts as the identity. With the usual initialisation the activations grow from block to
block, and training starts several times slower.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from cqr_jax.models.attention import attend

# Kernel initialisers. `cqr_jax.models.init` recognises them.
NORMAL = nn.initializers.lecun_normal()
ZEROS = nn.initializers.constant(0.0)


def check_floating(image: jax.Array) -> None:
    """Raises a TypeError if an image has integers, such as 0 to 255."""
    if not jnp.issubdtype(image.dtype, jnp.floating):
        raise TypeError(f"images must be floats in [0, 1], not {image.dtype}")


def conv3x3(
    x: jax.Array,
    features: int,
    name: str,
    stride: int = 1,
    dilation: int = 1,
    zero: bool = False,
) -> jax.Array:
    """Applies a 3x3 convolution padded by its dilation.

    The kernel is initialised to zero if `zero` is true.
    """
    return nn.Conv(
        features,
        (3, 3),
        strides=stride,
        kernel_dilation=dilation,
        padding=dilation,
        dtype=x.dtype,
        kernel_init=ZEROS if zero else NORMAL,
        name=name,
    )(x)


def dense(x: jax.Array, features: int, name: str, zero: bool = False) -> jax.Array:
    """Applies a 1x1 convolution, whose kernel is initialised to zero if `zero`."""
    kernel_init = ZEROS if zero else NORMAL
    return nn.Dense(features, dtype=x.dtype, kernel_init=kernel_init, name=name)(x)


def space_to_depth(x: jax.Array, block: int) -> jax.Array:
    """Rearranges (B, H, W, C) to (B, H / block, W / block, block^2 C)."""
    b, h, w, c = x.shape
    x = x.reshape(b, h // block, block, w // block, block, c)
    x = x.transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(b, h // block, w // block, block * block * c)


def depth_to_space(x: jax.Array, block: int) -> jax.Array:
    """Inverts `space_to_depth`: (B, H, W, block^2 C) to (B, block H, block W, C)."""
    b, h, w, c = x.shape
    x = x.reshape(b, h, w, block, block, c // block**2)
    x = x.transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(b, h * block, w * block, c // block**2)


class Rectifier(nn.Module):
    """Applies a ReLU, or a leaky one if `negative_slope` is not 0.

    A unit whose ReLU is never positive gets no gradient and stops learning. A leaky
    ReLU passes on a gradient everywhere.
    """

    negative_slope: float = 0.0

    def __call__(self, x: jax.Array) -> jax.Array:
        slope = self.negative_slope
        return nn.leaky_relu(x, slope) if slope else nn.relu(x)


class ResidualBlock(nn.Module):
    """Computes x + conv(ReLU(conv(x))) with 3x3 kernels (paper section 3.2).

    The width stays the same. With an embedding, the input of the ReLU is scaled and
    shifted per channel by a linear function of the embedding (Perez et al. 2018, FiLM).
    This modulation is initialised to the identity. For `negative_slope` see
    `Rectifier`.
    """

    negative_slope: float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array, embedding: jax.Array | None = None) -> jax.Array:
        width = x.shape[-1]
        y = conv3x3(x, width, "inner")
        if embedding is not None:
            change = dense(embedding, 2 * width, "modulation", zero=True)
            scale, shift = jnp.split(change[:, None, None], 2, axis=-1)
            y = y * (1 + scale) + shift
        y = Rectifier(self.negative_slope)(y)
        return x + conv3x3(y, width, "out", zero=True)


class MultiDilation(nn.Module):
    """Residual stage of parallel 3x3 convolutions, one per dilation, concatenated.

    The output channels are divided among the convolutions. The stage therefore has the
    parameters and the cost of one 3x3 convolution, whatever the dilations (paper
    section 3.2: "dilated convolutions bring no extra parameters").
    """

    dilations: Sequence[int] = (1, 2, 4)
    negative_slope: float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width, count = x.shape[-1], len(self.dilations)
        y = Rectifier(self.negative_slope)(x)
        scales = [
            conv3x3(
                y,
                (width + count - 1 - i) // count,
                f"dilated{i}",
                dilation=dilation,
                zero=True,
            )
            for i, dilation in enumerate(self.dilations)
        ]
        return x + jnp.concatenate(scales, axis=-1)


class NonLocalAttention(nn.Module):
    """Adds embedded-Gaussian non-local attention (Wang et al. 2018, as in RNAN) to x.

    theta, phi and g are 1x1 convolutions to half the width; a 1x1 convolution after
    the attention restores the width. If `key_pool` > 1, keys and values are averaged
    over squares of that side (Wang et al. 2018, section 3.3).
    """

    key_pool: int = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        b, h, w, width = x.shape
        inner = width // 2
        source = x
        if self.key_pool > 1:
            window = (min(self.key_pool, h), min(self.key_pool, w))
            source = nn.avg_pool(x, window, strides=window)
        theta = dense(x, inner, "theta").reshape(b, h * w, inner)
        phi = dense(source, inner, "phi").reshape(b, -1, inner)
        g = dense(source, inner, "g").reshape(b, -1, inner)
        y = attend(theta, phi, g).reshape(b, h, w, inner)
        return x + dense(y, width, "out", zero=True)


class Upsample(nn.Module):
    """Doubles height and width by a 3x3 convolution and a depth-to-space.

    The convolution multiplies the width by 4. The layer computes the same function as
    RNAN's 6x6 stride-2 transposed convolution.
    """

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return depth_to_space(conv3x3(x, 4 * x.shape[-1], "conv"), 2)


class MaskBranch(nn.Module):
    """Computes an attention mask in (0, 1) with the input's shape (RNAN's mask branch).

    The branch applies non-local attention if `non_local` and a residual block. It then
    downsamples by 2, applies `blocks` residual blocks and upsamples by 2. A skip
    connection adds the features from before the downsampling. A residual block, a 1x1
    convolution and a sigmoid follow. Height and width must be even.

    With `shifts`, another 1x1 convolution computes a term to add beside the mask, so
    that the branch can also add features (the "spatial feature transform"
    of SFT-GAN). Neither the paper nor RNAN has it.

    Returns:
      The mask and the term to add. The term is None without `shifts`.
    """

    blocks: int
    non_local: bool
    key_pool: int
    shifts: bool = False
    negative_slope: float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array | None]:
        slope = self.negative_slope
        if self.non_local:
            x = NonLocalAttention(self.key_pool, name="non_local")(x)
        x = ResidualBlock(slope, name="before")(x)
        y = conv3x3(x, x.shape[-1], "down", stride=2)
        for i in range(self.blocks):
            y = ResidualBlock(slope, name=f"inner{i}")(y)
        x = x + Upsample(name="up")(y)
        x = ResidualBlock(slope, name="after")(x)
        width = x.shape[-1]
        shift = dense(x, width, "shift", zero=True) if self.shifts else None
        return nn.sigmoid(dense(x, width, "mask")), shift


class DilatedBlock(nn.Module):
    """Dilated local or non-local block (paper Figure 2).

    Applies RNAN's attention module (trunk times mask inside a residual connection, then
    residual blocks), followed by the multi-dilation stage.

    Attributes:
      blocks: residual blocks in each of trunk, mask and tail.
      dilations: dilations of the multi-dilation stage.
      non_local: whether the mask branch begins with attention.
      key_pool: side of the squares over which attention averages its keys.
      mask: whether the block has a trunk and a mask.
      shifts: whether the mask branch also computes a term to add.
      negative_slope: slope of the ReLUs below zero.
    """

    blocks: int
    dilations: Sequence[int]
    non_local: bool
    key_pool: int
    mask: bool = True
    shifts: bool = False
    negative_slope: float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array, embedding: jax.Array | None = None) -> jax.Array:
        """Maps (batch, height, width, channels) to the same shape.

        Args:
          x: feature maps of even height and width.
          embedding: (batch, features) that modulates the first residual block, or None.
        """
        slope = self.negative_slope
        x = ResidualBlock(slope, name="head")(x, embedding)
        if self.mask:
            trunk = x
            for i in range(self.blocks):
                trunk = ResidualBlock(slope, name=f"trunk{i}")(trunk)
            mask, shift = MaskBranch(
                self.blocks,
                self.non_local,
                self.key_pool,
                self.shifts,
                slope,
                name="mask",
            )(x)
            x = x + trunk * mask
            if shift is not None:
                x = x + shift
        for i in range(self.blocks):
            x = ResidualBlock(slope, name=f"tail{i}")(x)
        return MultiDilation(self.dilations, slope, name="multi_dilation")(x)
