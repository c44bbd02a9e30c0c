"""Encoders by name, for command lines."""

from functools import partial
from typing import Any

from flax import nnx
from jax.typing import DTypeLike

from metricjax.encoders.iresnet import BLOCKS, IResNet
from metricjax.encoders.mobilefacenet import MobileFaceNet
from metricjax.encoders.small_convnet import SmallConvNet
from metricjax.encoders.small_resnet import SmallResNet
from metricjax.encoders.vit import SIZES, ViT

__all__ = ["NAMED", "Encoder", "create"]

Encoder = SmallResNet | SmallConvNet | IResNet | MobileFaceNet | ViT

NAMED: dict[str, Any] = {
    "small_resnet": SmallResNet,
    "small_convnet": SmallConvNet,
    **{f"iresnet{depth}": partial(IResNet, depth) for depth in BLOCKS},
    "mobilefacenet": MobileFaceNet,
    **{f"vit_{size}": partial(ViT, size) for size in SIZES},
}


def create(
    name: str,
    embedding_size: int,
    image_shape: tuple[int, int, int],
    *,
    dtype: DTypeLike | None = None,
    remat: bool = False,
    rngs: nnx.Rngs,
) -> Encoder:
    """The encoder called `name`, one of `NAMED`; the arguments are those of its class.

    >>> from flax import nnx
    >>> model = nnx.eval_shape(lambda: create("small_resnet", 16, (8, 8, 1), rngs=nnx.Rngs(0)))
    >>> model.head.kernel.shape
    (128, 16)

    Raises:
      ValueError: no encoder has that name; `small_convnet`, which has neither, is asked for a `dtype` or `remat`.
    """
    if name not in NAMED:
        raise ValueError(f"name is {name!r}; wanted one of {', '.join(NAMED)}")
    if name != "small_convnet":
        return NAMED[name](embedding_size, image_shape, dtype=dtype, remat=remat, rngs=rngs)
    if dtype is not None or remat:
        raise ValueError(f"dtype is {dtype} and remat {remat}; wanted neither for small_convnet")
    return SmallConvNet(embedding_size, image_shape, rngs=rngs)
