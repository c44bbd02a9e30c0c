"""People with names in a gallery that is a file."""

from metricjax.ground.extras import extra

with extra("faces"):
    from metricjax.recognition.gallery_file import People

__all__ = ["People"]
