"""The deblocker: compressed image to restored image (paper section 3.2, Figure 2)."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from cqr_jax.models.layers import (
    DilatedBlock,
    conv3x3,
    depth_to_space,
    space_to_depth,
)


class Deblocker(nn.Module):
    """Head, non-local block, local blocks, 3x3, non-local block, tail; plus the input.

    The tail starts at zero, so that training begins from the identity. The network
    sees the image less 0.5.

    Attributes:
      width: channels of the feature maps.
      local_blocks: dilated local blocks between the two non-local ones.
      residual_blocks: residual blocks in each of a block's trunk, mask and tail.
      dilations: of the multi-dilation stage; (1, 1, 1) is Table 1's "w/o DC".
      scale: the body works at 1/scale of the resolution, behind a space-to-depth;
        1 is the paper's.
      key_pool: side of the squares over which attention averages its keys; 1 is the
        paper's.
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
    dtype: str = "float32"
    remat: bool = False

    @nn.compact
    def __call__(self, image: jax.Array) -> jax.Array:
        """Restores a batch.

        Args:
          image: float32 Y in [0, 1], (batch, height, width, 1), any height and width.

        Returns:
          float32 of the same shape, near [0, 1] but not clipped.
        """
        _, h, w, channels = image.shape
        multiple = 2 * self.scale
        padding = ((0, 0), (0, -h % multiple), (0, -w % multiple), (0, 0))
        x = jnp.pad(image - 0.5, padding, mode="edge").astype(self.dtype)
        kind = nn.remat(DilatedBlock) if self.remat else DilatedBlock

        def block(name, non_local):
            return kind(
                self.residual_blocks,
                self.dilations,
                non_local,
                self.key_pool,
                name=name,
            )

        x = conv3x3(space_to_depth(x, self.scale), self.width, "head")
        x = block("non_local_in", True)(x)
        for i in range(self.local_blocks):
            x = block(f"local{i}", False)(x)
        x = conv3x3(x, self.width, "body")
        x = block("non_local_out", True)(x)
        x = conv3x3(x, self.scale**2 * channels, "tail", zero=True)
        return image + depth_to_space(x, self.scale)[:, :h, :w].astype(image.dtype)
