"""Flax NNX encoders that map images to the unit hypersphere."""

from metricjax.extras import extra

with extra("flax"):
    from metricjax.encoders.small_convnet import SmallConvNet as SmallConvNet
    from metricjax.encoders.small_convnet import conv_by_products as conv_by_products
    from metricjax.encoders.small_resnet import SmallResNet as SmallResNet
