"""Record files as InsightFace writes them."""

import struct

import numpy as np

from tests.helpers.photographs import jpeg

MAGIC = bytes([0x0A, 0x23, 0xD7, 0xCE])


class Writer:
    """Records as dmlc-core's RecordIOWriter::WriteRecord writes them, with MXNet's header, and the index."""

    def __init__(self):
        self.file, self.index = b"", []

    def write(self, key, labels, content, ident=None):
        labels = np.asarray(labels, "<f4")
        flag = labels.size if labels.ndim else 0
        content = (
            struct.pack("<IfQQ", flag, 0 if flag else labels, key if ident is None else ident, 0)
            + (labels.tobytes() if flag else b"")
            + content
        )
        self.index.append((key, len(self.file)))
        begin, first = 0, True
        for i in range(0, len(content) // 4 * 4, 4):
            if content[i : i + 4] == MAGIC:
                self._part(1 if first else 2, content[begin:i])
                begin, first = i + 4, False
        self._part(0 if first else 3, content[begin:])
        self.file += bytes(-len(content[begin:]) % 4)

    def _part(self, flag, content):
        self.file += MAGIC + struct.pack("<I", flag << 29 | len(content)) + content

    def save(self, folder, index=True, size="112,112"):
        (folder / "train.rec").write_bytes(self.file)
        if index:
            (folder / "train.idx").write_text("".join(f"{key}\t{offset}\n" for key, offset in self.index))
        if size:
            (folder / "property").write_text(f"3,{size}")
        return folder


def training_set(people=3, each=4, magic=False):
    """As InsightFace's face2rec2.py orders it: images with (label, aligned), header record, identity records."""
    writer, key, identities = Writer(), 1, []
    for person in range(people):
        identities.append((key, key + each))
        for k in range(each):
            image = jpeg(person + 1, k + 1)
            if magic and k % 2:
                image += bytes(-len(image) % 4) + MAGIC * (1 + k // 2) + b"tail" + MAGIC + b"end"  # after a JPEG's end
            writer.write(key, [person, 1], image)
            key += 1
    writer.write(0, [key, key + people], b"")
    for i, identity in enumerate(identities):
        writer.write(key + i, identity, b"")
    return writer
