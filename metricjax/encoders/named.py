"""Encoders by name, for command lines."""

from functools import partial
from typing import Any

from flax import nnx
from jax.typing import DTypeLike

from metricjax.encoders import resnet
from metricjax.encoders.face_vit import SIZES, FaceViT
from metricjax.encoders.iresnet import BLOCKS, IResNet
from metricjax.encoders.mobilefacenet import MobileFaceNet
from metricjax.encoders.plain_convnet import PlainConvNet
from metricjax.encoders.resnet import ResNet
from metricjax.encoders.small_convnet import SmallConvNet
from metricjax.encoders.small_resnet import SmallResNet
from metricjax.encoders.vit import ViT

__all__ = ["NAMED", "PRETRAINED", "Encoder", "create"]

Encoder = SmallResNet | SmallConvNet | PlainConvNet | IResNet | MobileFaceNet | FaceViT | ResNet | ViT

_DINOV2: Any = {"patch": 14, "layer_scale": 1e-5}
_CLIP: Any = {"pre_norm": True, "projection": 512, "activation": "quick_gelu", "epsilon": 1e-5}

PRETRAINED: dict[str, Any] = {  # which have features of their own
    **{f"resnet{depth}": partial(ResNet, depth) for depth in resnet.BLOCKS},
    **{f"vit_{size}_patch16": partial(ViT, size) for size in ("small", "base")},
    "vit_base_patch32": partial(ViT, "base", patch=32),
    **{f"vit_{size}_patch14_dinov2": partial(ViT, size, **_DINOV2) for size in ("small", "base")},
    **{f"vit_{size}_patch14_dinov2_reg4": partial(ViT, size, registers=4, **_DINOV2) for size in ("small", "base")},
    **{f"vit_base_patch{patch}_clip": partial(ViT, "base", patch=patch, **_CLIP) for patch in (16, 32)},
}

NAMED: dict[str, Any] = {
    "small_resnet": SmallResNet,
    "small_convnet": SmallConvNet,
    "plain_convnet": PlainConvNet,
    **{f"iresnet{depth}": partial(IResNet, depth) for depth in BLOCKS},
    "mobilefacenet": MobileFaceNet,
    **{f"vit_{size}": partial(FaceViT, size) for size in SIZES},
    **PRETRAINED,
}


def create(
    name: str,
    embedding_size: int | None,
    image_shape: tuple[int, int, int],
    *,
    dtype: DTypeLike | None = None,
    remat: bool = False,
    rngs: nnx.Rngs,
) -> Encoder:
    """The encoder called `name`, one of `NAMED`; the arguments are those of its class.

    An `embedding_size` of None is for those of which weights for any images are published, `ResNet` and `ViT`.

    >>> from flax import nnx
    >>> model = nnx.eval_shape(lambda: create("small_resnet", 16, (8, 8, 1), rngs=nnx.Rngs(0)))
    >>> model.head.kernel.shape
    (128, 16)

    Raises:
      ValueError: no encoder has that name; an encoder without features of its own is given no `embedding_size`;
        `small_convnet`, which has neither, is asked for a `dtype` or `remat`.
    """
    if name not in NAMED:
        raise ValueError(f"name is {name!r}; wanted one of {', '.join(NAMED)}")
    if embedding_size is None and name not in PRETRAINED:
        raise ValueError(f"embedding_size is None; wanted a number for {name}")
    if name != "small_convnet":
        return NAMED[name](embedding_size, image_shape, dtype=dtype, remat=remat, rngs=rngs)
    if dtype is not None or remat:
        raise ValueError(f"dtype is {dtype} and remat {remat}; wanted neither for small_convnet")
    return NAMED[name](embedding_size, image_shape, rngs=rngs)
