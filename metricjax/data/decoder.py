"""Encoded photographs to pixels, in one place for every reader here: which formats, how large, and which side is up."""

import io
import pathlib
import re
import warnings

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from metricjax.data.files import opened
from metricjax.ground.names import printable

__all__ = ["FORMATS", "LONGEST", "MOST_PIXELS", "UNREADABLE", "Unreadable", "decoded", "fitted", "upright"]

FORMATS = ("BMP", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # as Pillow calls them; PPM stands for PBM, PGM and PFM, too
MOST_PIXELS = 89_478_485  # decoded, once or several times a third of a GiB; Pillow, too, warns of a bomb above it
LONGEST = 65_535  # pixels of a side


class Unreadable(ValueError):
    """Bytes that are not a photograph: of another format, damaged, cut off, or too large; the message says why."""


UNREADABLE = (OSError, Unreadable)  # what `upright` and `decoded` raise: a file may also be missing, or not readable

_ODD = ("ignore", None, UserWarning, re.compile(r"PIL\."), 0)  # the filter that `_without_warnings` adds
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def upright(photograph: str | pathlib.Path | bytes, mode: str | None = None) -> Image.Image:
    """The photograph in a file, or in the bytes of one, as people see it: turned as its EXIF says, in 8 bits.

    Whatever the file is called, it is read as one of FORMATS and as nothing else, if it has no more than MOST_PIXELS,
    and no side is longer than LONGEST. Of several images in a file the first counts. A photograph that breaks off is
    an error; a damaged EXIF block costs the orientation only, and what Pillow warns of while it reads is not shown.

    - 16-bit grey values v become v / 257 (of 12 bits, v / 16.06).
    - Floats, and integers of 32 bits, are taken to go from 0 to 1 (floats only), to 255 or to 65535: the first of these
      ranges that holds the largest value. Up to a tenth beyond either end is cut off; more is an error, as is NaN.
    - What is transparent is shown on black.

    Args:
      photograph: a file, or bytes.
      mode: "RGB" or "L"; by default "L" for a grey photograph and "RGB" for others.

    Raises one of UNREADABLE where there is no such photograph.
    """
    with io.BytesIO(photograph) if isinstance(photograph, bytes) else opened(photograph) as file:
        _without_warnings()
        try:
            with Image.open(file, formats=FORMATS) as image:
                _check_size(image.size)
                image.load()
                turn = _TURNS.get(_orientation(image))
                shown = _in_8_bits(image)
            shown = shown if turn is None else shown.transpose(turn)
            return shown if mode in (None, shown.mode) else shown.convert(mode)
        except UnidentifiedImageError:
            raise Unreadable(f"it is not one of {', '.join(FORMATS)}") from None
        except Exception as error:  # whatever a decoder makes of damaged bytes, a lack of memory too
            raise Unreadable(printable(str(error)) or type(error).__name__) from error


def decoded(photograph: str | pathlib.Path | bytes, size: tuple[int, int], mode: str | None = "RGB") -> np.ndarray:
    """`upright`, then cropped around the centre to the shape of `size` (height, width) and resized.

    Returns:
      [height, width, channels] uint8; raises one of UNREADABLE.
    """
    return fitted(upright(photograph, mode), size)


def fitted(image: Image.Image, size: tuple[int, int]) -> np.ndarray:
    """Cropped around the centre to the shape of `size` (height, width) and resized."""
    array = np.asarray(ImageOps.fit(image, (size[1], size[0]), Image.Resampling.BICUBIC))
    return array[..., None] if array.ndim == 2 else array


def _without_warnings() -> None:
    """No warning of Pillow about odd EXIF blocks and the like, and no exception where warnings are errors.

    `warnings.catch_warnings` is not for threads, in which photographs are read. This only adds a filter, and only for
    the kind of warning that Pillow's readers give: those of bombs and of deprecations stay.
    """
    if not warnings.filters or warnings.filters[0] != _ODD:
        warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")


def _check_size(size: tuple[int, int]) -> None:
    if not (min(size) > 0 and max(size) <= LONGEST and size[0] * size[1] <= MOST_PIXELS):
        wanted = f"{MOST_PIXELS:,} pixels at most, {LONGEST:,} a side"
        raise Unreadable(f"it is {size[0]} × {size[1]} pixels; wanted {wanted}")


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # the block is damaged, the photograph is not
        return 1


def _in_8_bits(image: Image.Image) -> Image.Image:
    """In mode "L" if it is grey, else "RGB"."""
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_narrowed(image))
    wanted = "L" if image.mode in ("1", "L", "LA", "La") else "RGB"
    if image.has_transparency_data:
        pixels = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        shown = Image.new("RGB", image.size)
        shown.paste(pixels, mask=pixels.getchannel("A"))
        return shown.convert(wanted)
    return image if image.mode == wanted else image.convert(wanted)


def _narrowed(image: Image.Image) -> np.ndarray:
    """Grey values of more than 8 bits as uint8."""
    tags = getattr(image, "tag_v2", {})
    values = np.asarray(image)
    if image.mode.startswith("I;16"):
        full = 4095 if tags.get(ExifTags.Base.BitsPerSample) == (12,) else 65535
    else:
        full = 65535 if image.mode == "I" and image.format == "PPM" else _range(values)
    grey = values.astype(np.float32)
    grey *= 255 / full
    grey = np.rint(np.clip(grey, 0, 255, out=grey), out=grey).astype(np.uint8)
    return 255 - grey if tags.get(ExifTags.Base.PhotometricInterpretation) == 0 else grey  # 0 is white there


def _range(values: np.ndarray) -> int:
    low, high = float(values.min()), float(values.max())
    ranges = (1, 255, 65535) if values.dtype.kind == "f" else (255, 65535)
    full = next((full for full in ranges if high <= 1.1 * full), None)
    if full is not None and low >= -0.1 * full:
        return full
    raise Unreadable(f"its values go from {low:g} to {high:g}; wanted 0 to 1, 255 or 65535")
