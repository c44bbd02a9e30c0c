"""Face photographs as arrays: the ORL set, Labeled Faces in the Wild, and any folder of people."""

from metricjax.data.augmentation import augmented as augmented
from metricjax.data.augmentation import scaled as scaled
from metricjax.extras import extra

with extra("faces"):
    from metricjax.data.faces import Faces as Faces
    from metricjax.data.faces import folder as folder
    from metricjax.data.faces import lfw as lfw
    from metricjax.data.faces import orl as orl
    from metricjax.data.pairs import Pairs as Pairs
    from metricjax.data.pairs import read_pairs as read_pairs
