"""Pictures of shapes and what they show in words: a data set of two towers that needs no file."""

import itertools

import numpy as np

SHAPES = {
    "square": np.ones((4, 4)),
    "ring": np.pad(np.zeros((2, 2)), 1, constant_values=1),
    "cross": np.clip(np.eye(4) + np.eye(4)[::-1], 0, 1),
    "bar": np.repeat([[0], [1], [1], [0]], 4, axis=1).astype(float),
}
COLOURS, ROWS, COLUMNS = ("red", "green", "blue"), ("top", "bottom"), ("left", "right")
CAPTIONS = [*itertools.product(COLOURS, SHAPES, ROWS, COLUMNS)]
WORDS = ["", "the", "at", *COLOURS, *SHAPES, *ROWS, *COLUMNS]
SIZE = 12


def tokens(caption):
    """Of two lengths, filled up by 0."""
    colour, shape, row, column = caption
    words = [colour, shape, "at", "the", row, column] if row == "top" else [column, row, colour, shape]
    return np.pad(np.array([WORDS.index(word) for word in words], np.int32), (0, 6 - len(words)))


def picture(rng, caption):
    """The shape somewhere in its quarter, on noise."""
    colour, shape, row, column = caption
    image = 0.15 * rng.normal(size=(SIZE, SIZE, 3))
    top, left = rng.integers(0, 3, 2) + 6 * np.array([ROWS.index(row), COLUMNS.index(column)])
    image[top : top + 4, left : left + 4, COLOURS.index(colour)] += SHAPES[shape]
    return image.astype(np.float32)


def captioned(rng, each):
    """(pictures, tokens, number of the caption), `each` pictures of every caption."""
    numbers = np.repeat(np.arange(len(CAPTIONS), dtype=np.int32), each)
    pictures = np.stack([picture(rng, CAPTIONS[number]) for number in numbers])
    return pictures, np.stack([tokens(CAPTIONS[number]) for number in numbers]), numbers
