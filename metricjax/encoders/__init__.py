"""Flax NNX encoders that map images to the unit hypersphere."""

from metricjax.ground.extras import extra

with extra("flax"):
    from metricjax.encoders.face_vit import FaceViT
    from metricjax.encoders.iresnet import IResNet
    from metricjax.encoders.mobilefacenet import MobileFaceNet
    from metricjax.encoders.named import NAMED, create
    from metricjax.encoders.plain_convnet import PlainConvNet
    from metricjax.encoders.pretrained import load_weights
    from metricjax.encoders.resnet import ResNet
    from metricjax.encoders.small_convnet import SmallConvNet, conv_by_products
    from metricjax.encoders.small_resnet import SmallResNet
    from metricjax.encoders.vit import ViT

__all__ = [
    "NAMED",
    "FaceViT",
    "IResNet",
    "MobileFaceNet",
    "PlainConvNet",
    "ResNet",
    "SmallConvNet",
    "SmallResNet",
    "ViT",
    "conv_by_products",
    "create",
    "load_weights",
]


def __dir__() -> list[str]:
    return __all__
