"""Where a training begins: weights of another one, or published ones."""

import pathlib

from metricjax import encoders
from metricjax.trained import load
from metricjax.trained.design import Design, split
from metricjax.trained.encoder import NetworkEncoder

__all__ = ["weights_of"]


def weights_of(path: pathlib.Path, design: Design, seed: int = 0):
    """The weights at `path` for an encoder of this design, as `Trainer.start_from` takes them.

    A run or an .npz file of `Encoder.save` holds an encoder of the same network; any other file published weights, see
    `metricjax.encoders.load_weights`: all of the network is filled but a last layer that such files do not have.

    Raises:
      ValueError: names are missing, left over or of other shapes; an encoder is of another network, or no weights are
        published of it.
    """
    if not path.is_dir() and path.suffix != ".npz":
        network = design.network(seed)
        try:
            encoders.load_weights(network, path)
        except TypeError as error:
            raise ValueError(f"of {design.name} no weights are published: {error}") from None
        _, params, rest = split(network)
        return {"params": params, "rest": rest}
    encoder = load(path)
    assert isinstance(encoder, NetworkEncoder)
    for name in ("name", "embedding_size", "image_size", "channels"):
        came, wanted = getattr(encoder.design, name), getattr(design, name)
        if came != wanted:
            raise ValueError(f"{path} holds an encoder with {name} {came}; wanted {wanted}, as this training has it")
    return encoder.weights
