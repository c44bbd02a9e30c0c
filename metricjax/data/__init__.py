"""Face photographs: sets in memory, sources of any size, pairs to verify, alignment, and batches to train on."""

from metricjax.data.augmentation import augmented as augmented
from metricjax.data.augmentation import centred as centred
from metricjax.data.augmentation import resized as resized
from metricjax.data.augmentation import scaled as scaled
from metricjax.data.augmentation import standardised as standardised
from metricjax.ground.extras import extra
from metricjax.ground.names import printable as printable

with extra("faces"):
    from metricjax.data.alignment import aligned as aligned
    from metricjax.data.alignment import read_landmarks as read_landmarks
    from metricjax.data.alignment import similarity_transform as similarity_transform
    from metricjax.data.batches import batches as batches
    from metricjax.data.decoder import UNREADABLE as UNREADABLE
    from metricjax.data.decoder import decoded as decoded
    from metricjax.data.decoder import upright as upright
    from metricjax.data.faces import Faces as Faces
    from metricjax.data.faces import folder as folder
    from metricjax.data.faces import lfw as lfw
    from metricjax.data.faces import orl as orl
    from metricjax.data.listing import Listing as Listing
    from metricjax.data.listing import photographs_in as photographs_in
    from metricjax.data.listing import photographs_of_people as photographs_of_people
    from metricjax.data.pairs import Pairs as Pairs
    from metricjax.data.pairs import read_pairs as read_pairs
    from metricjax.data.photographs import Source as Source
    from metricjax.data.record_io import RecordSource as RecordSource
    from metricjax.data.sources import ArraySource as ArraySource
    from metricjax.data.sources import FolderSource as FolderSource
    from metricjax.data.sources import TfdsSource as TfdsSource
    from metricjax.data.subsets import mirrored as mirrored
    from metricjax.data.subsets import of_people as of_people
    from metricjax.data.verification_set import PairImages as PairImages
    from metricjax.data.verification_set import verification_set as verification_set
