"""Compression quality ranker: scores an image (paper section 3.1, Figure 1)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from cqr_jax.models.convolution import strided_conv
from cqr_jax.models.layers import check_floating

MIN_SIDE = 32  # pixels; five halvings must leave one

# Kernel size, stride and multiple of the width of each of the ten convolutions. This is
# the ranker of RankSRGAN (Zhang et al. 2019), which fits the paper's description.
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
)

# Names of the feature maps.
FEATURES = tuple(f"conv{i}" for i in range(len(_CONVOLUTIONS)))


class Ranker(nn.Module):
    """Siamese branch of the ranker: a VGG of ten convolutions and two dense layers.

    Batch normalization follows each convolution but the first. A leaky ReLU of slope
    0.2 follows each convolution.

    Attributes:
      width: channels of the first convolution. The paper's value is 64.
      hidden: units of the first dense layer.
      axis_name: name of the `pmap` axis over which BatchNorm averages its statistics.
        None if one program sees the whole batch.
      dtype: dtype of the convolutions, 'float32' or 'bfloat16'. Parameters, BatchNorm
        statistics, dense layers and scores are always float32.
    """

    width: int = 64
    hidden: int = 100
    axis_name: str | None = None
    dtype: str = "float32"

    @nn.compact
    def __call__(
        self, image: jax.Array, train: bool = False
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Scores a batch of images.

        Args:
          image: float32 Y in [0, 1], (batch, height, width, 1), with sides of at least
            32 pixels.
          train: whether to normalize with the statistics of the batch and update the
            stored ones. The collection `batch_stats` must then be mutable.

        Returns:
          A tuple of the scores and the feature maps. The scores are float32, (batch,),
          and higher for better quality. The feature maps are those after each
          activation, by name (`conv0` to `conv9`), with shape
          (batch, height', width', channels) and dtype `dtype`.

        Raises:
          ValueError: if a side is shorter than 32 pixels.
          TypeError: if the image has integers, such as 0 to 255.
        """
        check_floating(image)
        if min(image.shape[1:3]) < MIN_SIDE:
            raise ValueError(
                f"the ranker needs sides of at least {MIN_SIDE}, got {image.shape[1:3]}"
            )
        x, features = image.astype(self.dtype), {}
        for i, (kernel, stride, multiple) in enumerate(_CONVOLUTIONS):
            x = nn.Conv(
                multiple * self.width,
                (kernel, kernel),
                strides=stride,
                padding=1,
                dtype=self.dtype,
                conv_general_dilated=strided_conv if stride == 2 else None,
                name=f"conv{i}",
            )(x)
            if i > 0:
                x = nn.BatchNorm(
                    use_running_average=not train,
                    momentum=0.9,
                    epsilon=1e-5,
                    axis_name=self.axis_name if train else None,
                    dtype=self.dtype,
                    name=f"norm{i}",
                )(x)
            x = nn.leaky_relu(x, 0.2)
            features[FEATURES[i]] = x
        x = jnp.mean(x.astype(jnp.promote_types(x.dtype, jnp.float32)), axis=(1, 2))
        x = nn.leaky_relu(nn.Dense(self.hidden, name="dense0")(x), 0.2)
        return nn.Dense(1, name="dense1")(x)[:, 0], features
