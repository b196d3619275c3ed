"""The newest points of a surface: a file beside the store to which each chunk is appended.

Rewriting the store takes milliseconds, appending a chunk some ten microseconds. What the operating
system has been handed outlives the process, however that ends, so that a kill costs no more than
the chunk that is being computed, or each worker's chunk. A power cut can cost more: nothing waits
for the disk.

The file begins with one line of JSON that says whose it is. Then comes a record for each chunk: the
number of points k and its checksum, the checksum of the rest, k indices, k rows of values. The last
record may be torn, which is what a kill leaves. Anything else that does not fit is damage.
"""

from __future__ import annotations

import json
import struct
from io import FileIO
from pathlib import Path
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from landscape_lib.fingerprint import Fingerprint, differences

FORMAT = "landscape_lib surface journal 1"

Record = tuple[NDArray[np.int64], NDArray[np.float64]]

# Number of points, its checksum, checksum of the indices and values. With one checksum of all, a
# flipped bit in the number of points could pass for a record that is torn.
_HEAD = struct.Struct("<III")


class Journal:
    """Records of finished points, each written in one go; the first creates the file."""

    def __init__(
        self, path: Path, fingerprint: Fingerprint, points: int, variables: tuple[str, ...]
    ) -> None:
        self.path = path
        self._variables = variables
        self._fingerprint = fingerprint
        owner = {
            "format": FORMAT,
            "fingerprint": fingerprint,
            "points": points,
            "variables": variables,
        }
        self._owner = json.dumps(owner, sort_keys=True).encode() + b"\n"
        self._file: FileIO | None = None
        self._end = 0  # of the last whole record: what is torn is written over

    def read(self) -> list[Record]:
        """Return whole records, oldest first; a ``ValueError`` says damage or another owner."""
        if not self.path.exists():
            return []
        content = self.path.read_bytes()
        if self._owner.startswith(content):
            return []  # killed before the first record
        if not content.startswith(self._owner):
            raise ValueError(self._difference(content))
        records, start = [], len(self._owner)
        while len(content) - start >= _HEAD.size:
            count, count_check, check = _HEAD.unpack_from(content, start)
            if crc32(content[start : start + 4]) != count_check:
                raise ValueError(f"is damaged at byte {start}")
            end = start + _HEAD.size + count * 8 * (1 + len(self._variables))
            if end > len(content):
                break
            body = content[start + _HEAD.size : end]
            if crc32(body) != check:
                raise ValueError(f"is damaged between bytes {start} and {end}")
            values = np.frombuffer(body, "<f8", offset=8 * count)
            records.append((np.frombuffer(body, "<i8", count), values.reshape(count, -1)))
            start = end
        self._end = start
        return records

    def append(self, indices: NDArray[np.int64], values: NDArray[np.float64]) -> None:
        """Hand a record, indices (k,) and values (k, variables), to the operating system."""
        body = indices.astype("<i8").tobytes() + values.astype("<f8").tobytes()
        count = len(indices).to_bytes(4, "little")
        record = _HEAD.pack(len(indices), crc32(count), crc32(body)) + body
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # Without a buffer of our own: nothing is left in it, whatever goes wrong.
            self._file = FileIO(self.path, "r+" if self._end else "w")
            self._file.truncate(self._end)
            self._file.seek(self._end)
            record = record if self._end else self._owner + record
        left = memoryview(record)
        while left:
            left = left[self._file.write(left) :]
        self._end += len(record)

    def close(self) -> None:
        """Close the file; the next record opens it again."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def remove(self) -> None:
        """Remove the file, which holds nothing any more that is not in the store."""
        self.close()
        self.path.unlink(missing_ok=True)
        self._end = 0

    def _difference(self, content: bytes) -> str:
        try:
            owner = json.loads(content.partition(b"\n")[0])
            if owner["format"] != FORMAT:
                raise ValueError("another format")
            changed = differences(owner["fingerprint"], self._fingerprint)
        except (ValueError, TypeError, KeyError) as error:
            return f"cannot be read as the journal of a surface store ({error})"
        return f"belongs to another computation: {', '.join(changed) or 'variables'} differ(s)"
