"""The deblocker: compressed image to restored image (paper section 3.2, Figure 2)."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from cqr_jax.data.compression import FEATURES
from cqr_jax.models.layers import (
    DilatedBlock,
    conv3x3,
    dense,
    depth_to_space,
    space_to_depth,
)


class Deblocker(nn.Module):
    """Head, non-local block, local blocks, 3x3, non-local block, tail; plus the input.

    The tail starts at zero, so that training begins from the identity. The network
    sees the image less 0.5.

    With `deeper_widths` the body is a pyramid: the layout above works at the lowest
    resolution, and each level above it has local blocks before going down and after
    coming up, joined by addition.

    Attributes:
      width: channels of the feature maps.
      local_blocks: dilated local blocks between the two non-local ones.
      residual_blocks: residual blocks in each of a block's trunk, mask and tail.
      dilations: of the multi-dilation stage; (1, 1, 1) is Table 1's "w/o DC".
      scale: the body works at 1/scale of the resolution, behind a space-to-depth;
        1 is the paper's.
      key_pool: side of the squares over which attention averages its keys; 1 is the
        paper's.
      channels: of the image: 1 for Y (the paper's), 3 for Y, Cb and Cr.
      deeper_widths: channels of the levels below the first, each at half the
        resolution of the one before; none in the paper.
      outer_blocks: local blocks of each level but the lowest, on either side.
      outer_masks: whether these blocks have mask branches.
      masks: whether the other blocks have them.
      conditioning: how the network is told the compression: 'none' (the paper's),
        'planes' (constant planes beside the image) or 'modulation' (scale and shift in
        each block).
      embedding: features of the two layers that the modulation is a function of.
      dtype: of the computation, 'float32' or 'bfloat16'; parameters are float32.
      remat: recompute each block's activations in the backward pass (on a CPU, XLA
        undoes it).
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
    conditioning: str = "none"
    embedding: int = 64
    dtype: str = "float32"
    remat: bool = False

    @nn.compact
    def __call__(
        self, image: jax.Array, compression: jax.Array | None = None
    ) -> jax.Array:
        """Restores a batch.

        Args:
          image: float32 in [0, 1], (batch, height, width, channels), any height and
            width.
          compression: float32, (batch, FEATURES), as `cqr_jax.data.compression` makes
            it; None for unknown, or where `conditioning` is 'none'.

        Returns:
          float32 of the image's shape, near [0, 1] but not clipped.
        """
        _, h, w, channels = image.shape
        multiple = 2 * self.scale * 2 ** len(self.deeper_widths)
        padding = ((0, 0), (0, -h % multiple), (0, -w % multiple), (0, 0))
        x = jnp.pad(image - 0.5, padding, mode="edge").astype(self.dtype)
        x = space_to_depth(x, self.scale)
        embedding = None
        if self.conditioning != "none":
            if compression is None:
                compression = jnp.zeros((len(image), FEATURES))
            told = compression.astype(self.dtype)
            if self.conditioning == "planes":
                planes = jnp.broadcast_to(
                    told[:, None, None], (*x.shape[:3], told.shape[-1])
                )
                x = jnp.concatenate([x, planes], axis=-1)
            else:
                embedding = nn.relu(dense(told, self.embedding, "embedding0"))
                embedding = nn.relu(dense(embedding, self.embedding, "embedding1"))
        x = conv3x3(x, self.width, "head")
        x = self._level(x, embedding, 0)
        x = conv3x3(x, self.scale**2 * channels, "tail", zero=True)
        return image + depth_to_space(x, self.scale)[:, :h, :w].astype(image.dtype)

    def _block(self, x, embedding, name, non_local=False, outer=False):
        kind = nn.remat(DilatedBlock) if self.remat else DilatedBlock
        return kind(
            self.residual_blocks,
            self.dilations,
            non_local,
            self.key_pool,
            self.outer_masks if outer else self.masks,
            name=name,
        )(x, embedding)

    def _level(self, x: jax.Array, embedding: jax.Array | None, level: int):
        """The body from the level `level` down."""
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
        x = x + depth_to_space(dense(y, 4 * width, f"up{level}"), 2)
        for i in range(self.outer_blocks):
            x = self._block(x, embedding, f"level{level}_out{i}", outer=True)
        return x
