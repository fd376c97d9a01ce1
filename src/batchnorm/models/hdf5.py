"""HDF5, read by pyfive behind limits: the only module that knows pyfive.

h5py would be faster, but the C library it wraps crashes, or never returns, on some damaged files. pyfive is Python:
whatever goes wrong in it is an exception, and everything it can do to a process goes through the reads of the file
object below, which are counted. Links that lead out of the file, or back into it by name, are never followed.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from importlib import import_module
from typing import Any, BinaryIO, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from batchnorm.errors import BatchnormError

from .modelfile import quoted, unreadable

__all__ = ["SIGNATURE", "Dataset", "Group", "Hdf5File", "Place"]

SIGNATURE = b"\x89HDF\r\n\x1a\n"

MOST_ARRAY_BYTES = 64 << 20
MOST_FILTERED_CHUNK = 256 << 10  # deflate expands at most 1032 times: 264 MB
MOST_METADATA_READ = 64 << 20
MOST_DEPTH = 64
EXTERNAL_FILES_MESSAGE = 7
HEAP_HEADER = 32
SYMBOL_TABLE_ENTRY = 40
CONTIGUOUS = 1


class BoundedReader(io.RawIOBase):
    """A read-only file of known size whose reads are counted, so that a loop in the file's structure comes to an end.

    Honest files stay far below the limits: pyfive reads a group's header once or twice, in pieces of 8 bytes or more.
    """

    def __init__(self, stream: BinaryIO, size: int) -> None:
        super().__init__()
        self._stream = stream
        self._size = size
        self._position = 0
        self._is_heap = False
        self._longest_name = 0
        self._reads = 20_000 + min(size // 8, 2_000_000)
        self._bytes = (4 << 20) + min(8 * size, 512 << 20)

    def allow(self, count: int) -> None:
        """Raise the limit by what an array of checked size is going to take."""
        self._bytes += count
        self._reads += 1000

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = 0) -> int:
        base = (0, self._position, self._size)[whence]
        self._position = base + offset
        if not 0 <= self._position <= self._size:
            raise ValueError(f"it points to byte {self._position} of a file of {self._size} bytes")
        return self._position

    def read(self, size: int | None = -1) -> bytes:
        left = self._size - self._position
        wanted = left if size is None or size < 0 else min(size, left)
        self._reads -= 1
        self._bytes -= wanted
        if self._reads < 0 or self._bytes < 0 or wanted > MOST_METADATA_READ:
            raise ValueError("its structure needs more reading than a file of this size can hold: a loop")
        self._stream.seek(self._position)
        data = self._stream.read(wanted)
        self._position += len(data)
        self._watch_names(data)
        return data

    def _watch_names(self, data: bytes) -> None:
        # Every entry of a symbol table points into the heap of names read before it, and nothing stops all of them
        # from pointing into one long name: each entry is charged with the longest.
        if self._is_heap:
            self._longest_name = max(map(len, data.split(b"\0")))
        self._is_heap = data.startswith(b"HEAP") and len(data) == HEAP_HEADER
        if len(data) == SYMBOL_TABLE_ENTRY:
            self._bytes -= self._longest_name


class Hdf5File:
    """An open HDF5 file.

    Parameters
    ----------
    stream : binary file
        Positioned anywhere; stays open. The HDF5 data begin at its byte 0.
    size : int
        Its length in bytes.
    path : str
        How messages call it.
    """

    def __init__(self, stream: BinaryIO, size: int, path: str) -> None:
        self.path = path
        self.reader = BoundedReader(stream, size)
        self.size = size
        with self.guard():
            pyfive: Any = import_module("pyfive")  # 80 ms, which only files of this format should cost
            self._file: Any = pyfive.File(self.reader)
        self.root = Group(self, self._file, ())

    @contextmanager
    def guard(self, where: tuple[str, ...] = ()) -> Generator[None]:
        """Turn whatever pyfive raises on a damaged file into one line; its warnings are for its own users."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield
        except BatchnormError:
            raise
        except ModuleNotFoundError:
            raise
        except (Exception, RecursionError, MemoryError) as error:
            place = f" at {quoted('/'.join(where))}" if where else ""
            raise unreadable(
                self.path,
                f"damaged or unsupported HDF5{place} ({quoted(_detail(error))[1:-1]})",
                "Save or download the file again",
            ) from None


class Place(NamedTuple):
    """Where an array begins in a file, and its type there as NumPy spells it."""

    start: int
    dtype: str


class Group:
    """A folder inside an HDF5 file."""

    def __init__(self, file: Hdf5File, group: Any, where: tuple[str, ...]) -> None:
        self._file = file
        self._group = group
        self.where = where
        self._opened: dict[str, Group | Dataset | None] = {}  # opening a group reads its whole list of members

    @property
    def address(self) -> int:
        """Where its header lies: two groups of one address are the same group."""
        return int(self._group._dataobjects.offset)

    def names(self) -> tuple[str, ...]:
        """Names of what it holds, in the order of the file."""
        with self._file.guard(self.where):
            return tuple(str(name) for name in self._group)

    def get(self, name: str) -> Group | Dataset | None:
        """The member of that name, or None. Links are refused, not followed.

        Raises
        ------
        ModelFileError
            The member is a link, or its header is damaged.
        """
        if name not in self._opened:
            self._opened[name] = self._open(name)
        return self._opened[name]

    def _open(self, name: str) -> Group | Dataset | None:
        where = (*self.where, name)
        with self._file.guard(where):
            links: dict[str, Any] = self._group._links
            if name not in links:
                return None
            if name in ("", ".", "..") or "/" in name or len(where) > MOST_DEPTH:
                raise ValueError("no HDF5 writer makes such a name")
            if isinstance(links[name], str):
                raise unreadable(
                    self._file.path,
                    f"{quoted('/'.join(where))} is a link to {quoted(links[name])}; links are not followed",
                    "Save the model again with Keras, which writes none",
                )
            member: Any = self._group.get_lazy_view(name)
            if type(member).__name__ == "Dataset":
                header: Any = self._group.file._get_dataobjects(links[name])
                if header.find_msg_type(EXTERNAL_FILES_MESSAGE):
                    raise ValueError("its data lie in another file, which is not followed")
                return Dataset(self._file, member, where)
            return Group(self._file, member, where)

    def find(self, path: str | tuple[str, ...]) -> Group | Dataset | None:
        """What lies at a path of names joined by ``/``, or None."""
        found: Group | Dataset | None = self
        for name in path.split("/") if isinstance(path, str) else path:
            if not isinstance(found, Group):
                return None
            if name:
                found = found.get(name)
        return found

    def group(self, path: str | tuple[str, ...]) -> Group | None:
        """As ``find``, for groups only."""
        found = self.find(path)
        return found if isinstance(found, Group) else None

    def attribute(self, name: str) -> Any:
        """The value of an attribute, or None: text as str, an array of text as a list of str."""
        with self._file.guard(self.where):
            value: Any = self._group.attrs.get(name)
            return _decoded(value)


class Dataset:
    """An array inside an HDF5 file, not read until it is asked for."""

    def __init__(self, file: Hdf5File, dataset: Any, where: tuple[str, ...]) -> None:
        self._file = file
        self._dataset = dataset
        self.where = where
        with file.guard(where):
            self.shape: tuple[int, ...] = tuple(int(length) for length in dataset.shape)

    def read(self) -> NDArray[Any]:
        """The array, in native byte order, after its claimed size was checked against the file.

        Raises
        ------
        ModelFileError
            It claims more than the file can hold, lies in another file, or is damaged.
        """
        with self._file.guard(self.where):
            claimed = self._checked_bytes()
            self._file.reader.allow(2 * claimed)
            array: NDArray[Any] = np.asarray(self._dataset[()])
            if array.shape != self.shape:
                raise ValueError(f"shape {array.shape} was read for {self.shape}")
            if self._attribute("dtype") == "bfloat16":
                return _bfloat16(array)
            return array.astype(array.dtype.newbyteorder("="), copy=True)

    def place(self) -> Place | None:
        """Where the array lies in the file as it is, and the type it has there; None where it is chunked or packed."""
        with self._file.guard(self.where):
            identity: Any = self._dataset.id
            if identity.layout_class != CONTIGUOUS:
                return None
            start, dtype = int(identity.data_offset), np.dtype(self._dataset.dtype)
            length = math.prod(self.shape) * dtype.itemsize
            return Place(start, dtype.str) if 0 < start <= self._file.size - length else None

    def _attribute(self, name: str) -> Any:
        return _decoded(self._dataset.attrs.get(name))

    def _checked_bytes(self) -> int:
        identity: Any = self._dataset.id
        if identity.layout_class not in (0, 1, 2):
            raise ValueError("its data are put together from other data sets, which is not followed")
        claimed = math.prod(self.shape) * int(self._dataset.dtype.itemsize)
        if identity.layout_class == 2:
            self._check_chunks()
        elif claimed > self._file.size:
            raise ValueError(f"it claims {claimed} bytes in a file of {self._file.size}")
        if claimed > MOST_ARRAY_BYTES:
            raise ValueError(f"it claims {claimed} bytes; more than {MOST_ARRAY_BYTES} is no parameter vector")
        return claimed

    def _check_chunks(self) -> None:
        identity: Any = self._dataset.id
        chunk = math.prod(identity.chunks) * int(self._dataset.dtype.itemsize)
        stored = max((int(info.size) for info in identity.index.values()), default=0)
        if chunk > MOST_ARRAY_BYTES or (identity.filter_pipeline and stored > MOST_FILTERED_CHUNK):
            raise ValueError(f"a chunk claims {chunk} bytes, stored in {stored}")


def _decoded(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode("utf-8")
    if isinstance(value, np.ndarray):
        array = cast("NDArray[Any]", value)
        if array.dtype.kind in "OSU":
            return [item.decode("utf-8") if isinstance(item, bytes) else str(item) for item in array.reshape(-1)]
        return array
    return value


def _bfloat16(array: NDArray[Any]) -> NDArray[Any]:
    ml_dtypes: Any = import_module("ml_dtypes")
    if array.dtype.itemsize != 2:
        raise ValueError(f"it is marked bfloat16 and holds {array.dtype}")
    return np.ascontiguousarray(array).view(ml_dtypes.bfloat16)


def _detail(error: BaseException) -> str:
    """What went wrong, in words; pyfive only asserts that a link is a hard or a soft one."""
    trace, name = error.__traceback__, ""
    while trace is not None:
        trace, name = trace.tb_next, trace.tb_frame.f_code.co_name
    if isinstance(error, AssertionError) and name == "_decode_link_msg":
        return "a link into another file, which is not followed, or a damaged one"
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
