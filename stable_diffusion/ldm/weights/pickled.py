"""The tensors of a pickled PyTorch file, read without running anything that the file asks for.

A pickle is a small program: it names callables and has them called. This reader hands out none of the
real ones. A name needed to describe a tensor becomes a record of ours, a name that is known to stand
beside weights (Lightning callbacks, numpy scalars, settings) becomes an inert stand-in, and every other
name is refused. No module is imported for a file.

Unpickling makes no tensors either, just a table of them (dtype, shape, place in the file). A tensor is
made when it is asked for, as a view of the mapped file, so what is never asked for costs no memory.

Two containers are known: the zip archive that `torch.save` writes since PyTorch 1.6, and the stream of
pickles that it wrote before. The tar archives of 2017 and TorchScript programs are refused.

Why not `torch.load(weights_only=True, mmap=True)` with stand-ins (torch 2.14): it knows no pickle protocol
above 3, and of a stream neither lists the classes beforehand nor maps it, so that opening 1 GB takes 1,025 MB
there and nothing here; what it refuses it tells in a page, or by the number of an instruction. Zip archives
cost the same memory in both.
"""

from __future__ import annotations

import pickle
import struct
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import IO, Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from ldm.util import UserError
from ldm.weights.mapped import MappedFile

STREAM_MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of a file written before PyTorch 1.6
STREAM_VERSION = 1001

_KINDS = "Double Float Half BFloat16 Long Int Short Char Byte Bool ComplexFloat ComplexDouble".split()
_DTYPES = "float64 float32 float16 bfloat16 int64 int32 int16 int8 uint8 bool complex64 complex128".split()
_STORAGE_TYPES = {f"{a}Storage": getattr(torch, b) for a, b in zip(_KINDS, _DTYPES, strict=True)}

# Whatever these names stand for is never looked up: a stand-in takes their place.
_INERT_PACKAGES = ("pytorch_lightning.", "lightning.", "lightning_fabric.", "omegaconf.")
# With Python 2's names, which protocol 2 writes for int and str.
_TYPES = "set frozenset list dict tuple int long float complex str unicode bytes bool bytearray".split()
_INERT_NAMES = {f"{module}.{name}" for module in ("builtins", "__builtin__") for name in _TYPES}
_INERT_NAMES.update(
    """builtins.object __builtin__.object _codecs.encode argparse.Namespace collections.Counter
    collections.defaultdict copyreg._reconstructor copy_reg._reconstructor numpy.dtype numpy.ndarray
    numpy.core.multiarray.scalar numpy.core.multiarray._reconstruct numpy._core.multiarray.scalar
    numpy._core.multiarray._reconstruct pathlib.PosixPath pathlib.WindowsPath torch.Size torch.device
    typing.Any""".split()
)


class StorageType(NamedTuple):
    """What a name such as ``torch.FloatStorage`` says. `dtype` is None for untyped bytes."""

    dtype: torch.dtype | None


class Storage(NamedTuple):
    """A run of `length` numbers in the file, found there under `key`."""

    key: str
    dtype: torch.dtype | None
    length: int


class TensorEntry(NamedTuple):
    """Where a tensor stands in its storage; `offset` and `stride` count elements."""

    storage: Storage
    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class Inert:
    """Stands in for any object that weights do not need; takes what a pickle does to it and does nothing."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Inert:
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __call__(self, *args: Any, **kwargs: Any) -> Inert:
        return self

    def ignore(*args: Any) -> None:  # no `self`: a pickle may also call it on the class
        pass

    __setitem__ = append = extend = add = ignore


def _entry(storage: Storage, offset: int, shape: Any, stride: Any, *rest: Any) -> TensorEntry:
    dtype: Any = _checked(storage, Storage).dtype
    return TensorEntry(storage, dtype, offset, tuple(shape), tuple(stride))


def _entry_of_dtype(storage: Storage, offset: int, shape: Any, stride: Any, *rest: Any) -> TensorEntry:
    _requires_grad, _hooks, dtype, *_metadata = rest
    return _entry(storage, offset, shape, stride)._replace(dtype=dtype)


def _parameter(data: TensorEntry, *rest: Any) -> TensorEntry:
    return _checked(data, TensorEntry)


def _checked(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise pickle.UnpicklingError(f"expected a {kind.__name__}, got a {type(value).__name__}")
    return value


_REBUILDERS = {
    "_rebuild_tensor": _entry,
    "_rebuild_tensor_v2": _entry,
    "_rebuild_tensor_v3": _entry_of_dtype,
    "_rebuild_parameter": _parameter,
    "_rebuild_parameter_with_state": _parameter,
}


class _Tuple(tuple):
    """As a key it is itself alone: the hash of a tuple within tuples, 300,000 deep, would end the process."""

    __hash__ = object.__hash__


class RestrictedUnpickler(pickle._Unpickler):
    """Unpickles plain data, `TensorEntry` and `Inert` objects, and nothing else.

    It is Python's own unpickler in Python: in the one in C, ``PUT 500000000`` takes 8 GB for an array.

    Args:
        file: where the pickle starts.
        path: the file's name for error messages.
    """

    stack: list[Any]

    def __init__(self, file: IO[bytes], path: Path) -> None:
        super().__init__(file, encoding="latin1")  # decodes any byte string of a Python 2 file
        self.path = path
        self.storages: dict[str, Storage] = {}

    def _load_tuple(self, code: bytes) -> None:
        load: Any = pickle._Unpickler.dispatch[code[0]]
        load(self)
        self.stack[-1] = _Tuple(self.stack[-1])

    dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)
    for code in (pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3):
        dispatch[code[0]] = lambda self, code=code: self._load_tuple(code)
    dispatch[pickle.BUILD[0]] = lambda self: self.stack.pop()  # no object needs its state, none is altered
    del dispatch[pickle.BYTEARRAY8[0]]  # it makes an array as long as it says

    def find_class(self, module: str, name: str) -> Any:
        """Return our object for a global name of the file, compared as a whole: no walk along its dots.

        Raises:
            UserError: the name is not one that weights need.
        """
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch._utils" and name in _REBUILDERS:
            return _REBUILDERS[name]
        if module == "torch" and name in _STORAGE_TYPES:
            return StorageType(_STORAGE_TYPES[name])
        if module == "torch.storage" and name == "UntypedStorage":
            return StorageType(None)
        if module == "torch" and isinstance(vars(torch).get(name), torch.dtype):
            return vars(torch)[name]
        asked = f"{module}.{name}"
        if asked in _INERT_NAMES or asked.startswith(_INERT_PACKAGES):
            return type("Inert", (Inert,), {})  # a new class each: Lightning uses classes as keys
        raise UserError(
            f"refused to load {self.path}: it asks for {_printable(asked)}, which weights never need"
        )

    def persistent_load(self, pid: Any) -> Storage:
        """Return the record of the storage that a ``("storage", type, key, location, count)`` tuple names."""
        kind, storage_type, key, _location, count, *view = _checked(pid, tuple)
        if kind != "storage" or any(part is not None for part in view):
            raise pickle.UnpicklingError("expected a storage, got something else")
        storage = Storage(_checked(key, str), _checked(storage_type, StorageType).dtype, _checked(count, int))
        return self.storages.setdefault(storage.key, storage)


class PickledWeights:
    """The weights of a file written by `torch.save`: a state dict, bare or under Lightning's ``state_dict``.

    Attributes:
        path: the file.
        shapes: name → shape of every tensor in the state dict.

    Args:
        path: a zip archive or a stream of pickles.

    Raises:
        UserError: the file is damaged, asks for a name that weights never need, or holds no weights.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = MappedFile(path)
        self._bytes = self._file.bytes
        with path.open("rb") as file:
            try:
                read = self._read_zip if self._bytes[:2] == b"PK" else self._read_stream
                content, self._starts = read(file)
                self._entries = _state_dict_of(content, path)
            except UserError:
                raise
            except Exception as error:  # a damaged pickle fails in any way there is; all mean the same
                reason = _one_line(error)
                raise UserError(f"cannot read {path}: damaged, or no PyTorch file ({reason})") from error
        self.shapes = {name: entry.shape for name, entry in self._entries.items()}

    def read(self, name: str) -> Tensor:
        """Return one tensor, a view of the mapped file; tensors that share numbers there share them here."""
        entry = self._entries[name]
        try:
            numbers = self._numbers(entry.storage, entry.dtype)
            return numbers.as_strided(entry.shape, entry.stride, entry.offset)
        except (KeyError, OverflowError, RuntimeError, TypeError, ValueError) as error:
            reason = _one_line(error)
            raise UserError(f"cannot read {self.path}: tensor {name} is damaged ({reason})") from error

    def _numbers(self, storage: Storage, dtype: torch.dtype) -> Tensor:
        """Return all numbers of a storage, a tensor of one axis."""
        size = storage.length * (storage.dtype or torch.uint8).itemsize
        return self._file.numbers(dtype, self._starts[storage.key], size // dtype.itemsize)

    def release(self) -> None:
        """See `MappedFile.release`."""
        self._file.release()

    def _read_zip(self, file: IO[bytes]) -> tuple[Any, dict[str, int]]:
        """Return the unpickled content, and for each storage where its bytes start."""
        try:
            archive = zipfile.ZipFile(file)
        except zipfile.BadZipFile as error:
            raise UserError(
                f"cannot read {self.path}: truncated, the end of its zip archive is missing; fetch it again"
            ) from error
        names = set(archive.namelist())
        roots = [name.removesuffix("data.pkl") for name in names if name.endswith("/data.pkl")]
        if len(roots) != 1 or roots[0].count("/") != 1:
            raise UserError(f"cannot read {self.path}: a zip archive, but not one that torch.save wrote")
        root = roots[0]
        if f"{root}constants.pkl" in names:
            raise UserError(f"refused to load {self.path}: it is a TorchScript program, not weights")
        for record in archive.infolist():
            if record.compress_type != zipfile.ZIP_STORED:
                raise UserError(f"cannot read {self.path}: it is compressed, which torch.save never does")
        order = archive.read(f"{root}byteorder") if f"{root}byteorder" in names else b"little"
        self._require_byte_order("little" if order == b"little" else "big")
        with archive.open(f"{root}data.pkl") as stream:
            unpickler = RestrictedUnpickler(stream, self.path)
            content = unpickler.load()
        records = {key: archive.getinfo(f"{root}data/{key}") for key in unpickler.storages}
        return content, {key: self._start_of(record, file) for key, record in records.items()}

    def _start_of(self, record: zipfile.ZipInfo, file: IO[bytes]) -> int:
        """Return where a record's bytes start: behind 30 bytes of header, its name and an extra field."""
        file.seek(record.header_offset + 26)  # not through the map, which would hold the pages around it
        name_length, extra_length = struct.unpack("<HH", file.read(4))
        return record.header_offset + 30 + name_length + extra_length

    def _read_stream(self, file: IO[bytes]) -> tuple[Any, dict[str, int]]:
        """As `_read_zip`, for pickles in a row: magic number, version, system, content, storage keys."""
        magic, version, system = (RestrictedUnpickler(file, self.path).load() for _ in range(3))
        if (magic, version) != (STREAM_MAGIC, STREAM_VERSION):
            raise ValueError(f"expected magic number {STREAM_MAGIC:#x}, version {STREAM_VERSION}")
        self._require_byte_order("little" if system["little_endian"] else "big")
        unpickler = RestrictedUnpickler(file, self.path)
        content = unpickler.load()
        keys = RestrictedUnpickler(file, self.path).load()
        position = file.tell()
        starts = {}
        for key in keys:  # each storage: its length, then its numbers
            storage = unpickler.storages[str(key)]
            (count,) = struct.unpack_from("<q", self._bytes, position)
            if count != storage.length:
                raise ValueError(f"storage {key}: expected {storage.length} numbers, got {count}")
            starts[storage.key] = position + 8
            position += 8 + count * (storage.dtype or torch.uint8).itemsize
        if position > len(self._bytes):
            raise ValueError(f"truncated: expected {position} bytes, got {len(self._bytes)}; fetch it again")
        return content, starts

    def _require_byte_order(self, order: str) -> None:
        if order != sys.byteorder:
            raise UserError(f"cannot read {self.path}: expected {sys.byteorder}-endian numbers, got {order}")


def _state_dict_of(content: Any, path: Path) -> dict[str, TensorEntry]:
    """Return the named tensors of an unpickled file: of its ``state_dict`` if it has one, else of itself."""
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict):
        kind = "one tensor" if isinstance(content, TensorEntry) else f"a {type(content).__name__}"
        raise UserError(f"cannot read {path}: expected named weights, got {kind}")
    entries = {key: e for key, e in content.items() if isinstance(key, str) and isinstance(e, TensorEntry)}
    if not entries:
        keys = [_printable(key) if isinstance(key, str) else "a key that is no name" for key in content]
        got = ", ".join(keys[:5]) or "an empty dict"
        raise UserError(f"cannot read {path}: expected named weights, got {got}")
    for name, entry in entries.items():
        numbers = (entry.offset, *entry.shape, *entry.stride)
        whole = all(type(n) is int and n >= 0 for n in numbers) and isinstance(entry.dtype, torch.dtype)
        if not whole or len(entry.shape) != len(entry.stride):
            raise ValueError(f"tensor {_printable(name)}")
    return entries


def _printable(text: str) -> str:
    """Return text of a file with line ends, terminal codes and letters beyond ASCII escaped."""
    return ascii(text)[1:-1]


def _one_line(error: Exception) -> str:
    return _printable(f"{type(error).__name__}: {str(error).partition(chr(10))[0]}")
