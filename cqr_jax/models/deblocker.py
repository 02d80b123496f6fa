"""Deblocker: restores a compressed image (paper section 3.2, Figure 2)."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from cqr_jax.data.compression import FEATURES
from cqr_jax.models.layers import (
    DilatedBlock,
    Rectifier,
    check_floating,
    conv3x3,
    dense,
    depth_to_space,
    space_to_depth,
)


class Deblocker(nn.Module):
    """Deblocking network that predicts a correction and adds it to the input image.

    The layers are, in order: head, non-local block, local blocks, 3x3 convolution,
    non-local block, tail. The tail is initialised to zero, so that training begins at
    the identity. The network subtracts 0.5 from its input.

    With `deeper_widths` the body is a pyramid. Its non-local and local blocks and its
    3x3 convolution work at the lowest level, head and tail at the highest. Each level
    but the lowest has local blocks before downsampling and after upsampling, joined by
    a skip connection that adds.

    Attributes:
      width: channels of the feature maps.
      local_blocks: dilated local blocks between the two non-local ones.
      residual_blocks: residual blocks in each of a block's trunk, mask and tail.
      dilations: dilations of the multi-dilation stage. (1, 1, 1) is Table 1's
        "w/o DC".
      scale: the body works at 1/scale of the resolution, after a space-to-depth. The
        paper's value is 1.
      key_pool: side of the squares over which attention averages its keys. The paper's
        value is 1.
      channels: channels of the image: 1 for Y (as in the paper), 3 for Y, Cb and Cr.
      deeper_widths: channels of the levels below the first. Each level has half the
        resolution of the one above. The paper has none.
      outer_blocks: local blocks of each level but the lowest, on each of its two sides.
      outer_masks: whether these blocks have mask branches.
      masks: whether the other blocks have mask branches.
      mask_shifts: whether mask branches also compute a term to add, see `MaskBranch`.
        The paper has none.
      negative_slope: slope of the ReLUs below zero. The paper's value is 0. With
        a positive slope, every unit keeps learning.
      feature_scale: factor of the network's input. The correction is divided by it.
        The paper's value is 1. With `feature_scale=1`, features are so small that a
        hundred updates of a bias can give all inputs of a ReLU the same sign.
      conditioning: how the network takes the compression: 'none' (as in the paper),
        'planes' (constant planes concatenated to the image) or 'modulation' (scale and
        shift in each block).
      embedding: features of the two dense layers that feed the modulation.
      dtype: dtype of the computation, 'float32' or 'bfloat16'. Parameters are float32.
      remat: whether to recompute each block's activations in the backward pass. On a
        CPU, XLA undoes this.
    """

    width: int = 64
    local_blocks: int = 8
    residual_blocks: int = 2
    dilations: Sequence[int] = (1, 2, 4)
    scale: int = 1
    key_pool: int = 1
    channels: int = 1
    deeper_widths: Sequence[int] = ()
    outer_blocks: int = 1
    outer_masks: bool = False
    masks: bool = True
    mask_shifts: bool = False
    negative_slope: float = 0.0
    feature_scale: float = 1.0
    conditioning: str = "none"
    embedding: int = 64
    dtype: str = "float32"
    remat: bool = False

    @nn.compact
    def __call__(
        self, image: jax.Array, compression: jax.Array | None = None
    ) -> jax.Array:
        """Restores a batch of images.

        Args:
          image: float32 in [0, 1], (batch, height, width, channels), of any height and
            width.
          compression: float32, (batch, FEATURES), from `cqr_jax.data.compression`.
            None if unknown, or if `conditioning` is 'none'.

        Returns:
          float32 with the shape of `image`, near [0, 1] but not clipped.

        Raises:
          TypeError: if the image has integers, such as 0 to 255.
        """
        check_floating(image)
        _, h, w, channels = image.shape
        multiple = 2 * self.scale * 2 ** len(self.deeper_widths)
        padding = ((0, 0), (0, -h % multiple), (0, -w % multiple), (0, 0))
        x = self.feature_scale * (image - 0.5)
        x = jnp.pad(x, padding, mode="edge").astype(self.dtype)
        x = space_to_depth(x, self.scale)
        embedding = None
        if self.conditioning != "none":
            if compression is None:
                compression = jnp.zeros((len(image), FEATURES))
            condition = compression.astype(self.dtype)
            if self.conditioning == "planes":
                planes = jnp.broadcast_to(
                    condition[:, None, None], (*x.shape[:3], condition.shape[-1])
                )
                x = jnp.concatenate([x, planes], axis=-1)
            else:
                embedding = condition
                for layer in ("embedding0", "embedding1"):
                    embedding = dense(embedding, self.embedding, layer)
                    embedding = Rectifier(self.negative_slope, name=f"{layer}_relu")(
                        embedding
                    )
        x = conv3x3(x, self.width, "head")
        x = self._level(x, embedding, 0)
        x = conv3x3(x, self.scale**2 * channels, "tail", zero=True)
        x = depth_to_space(x, self.scale)[:, :h, :w].astype(image.dtype)
        return image + x / self.feature_scale

    def _block(
        self,
        x: jax.Array,
        embedding: jax.Array | None,
        name: str,
        non_local: bool = False,
        outer: bool = False,
    ) -> jax.Array:
        kind = nn.remat(DilatedBlock) if self.remat else DilatedBlock
        return kind(
            self.residual_blocks,
            self.dilations,
            non_local,
            self.key_pool,
            self.outer_masks if outer else self.masks,
            self.mask_shifts,
            self.negative_slope,
            name=name,
        )(x, embedding)

    def _level(self, x: jax.Array, embedding: jax.Array | None, level: int):
        """Applies the part of the body from level `level` down."""
        if level == len(self.deeper_widths):
            x = self._block(x, embedding, "non_local_in", True)
            for i in range(self.local_blocks):
                x = self._block(x, embedding, f"local{i}")
            x = conv3x3(x, x.shape[-1], "body")
            return self._block(x, embedding, "non_local_out", True)
        for i in range(self.outer_blocks):
            x = self._block(x, embedding, f"level{level}_in{i}", outer=True)
        width = x.shape[-1]
        y = dense(space_to_depth(x, 2), self.deeper_widths[level], f"down{level}")
        y = self._level(y, embedding, level + 1)
        y = dense(y, 4 * width, f"up{level}", zero=True)
        x = x + depth_to_space(y, 2)
        for i in range(self.outer_blocks):
            x = self._block(x, embedding, f"level{level}_out{i}", outer=True)
        return x
