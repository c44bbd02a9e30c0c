"""Flax NNX encoders that map images to the unit hypersphere."""

from metricjax.ground.extras import extra

with extra("flax"):
    from metricjax.encoders.from_torch import load_iresnet as load_iresnet
    from metricjax.encoders.iresnet import IResNet as IResNet
    from metricjax.encoders.mobilefacenet import MobileFaceNet as MobileFaceNet
    from metricjax.encoders.named import NAMED as NAMED
    from metricjax.encoders.named import create as create
    from metricjax.encoders.small_convnet import SmallConvNet as SmallConvNet
    from metricjax.encoders.small_convnet import conv_by_products as conv_by_products
    from metricjax.encoders.small_resnet import SmallResNet as SmallResNet
    from metricjax.encoders.vit import ViT as ViT
