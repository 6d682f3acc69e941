"""Device memory that keeps its address while it is given back and taken again.

A CUDA graph remembers addresses, so a cache that sleeps while the trainer uses its memory must come
back at the same place. CUDA's virtual memory calls do that: a range of addresses is reserved once,
and physical memory is mapped into it and taken out again. They are reached through the driver's own
library; nothing has to be compiled or installed.
"""

import ctypes
from typing import Any

import torch
from torch import Tensor

from tandem.errors import ResourceError

_PINNED, _ON_DEVICE, _READ_WRITE, _MINIMUM = 1, 1, 3, 0
"""CU_MEM_ALLOCATION_TYPE_PINNED, CU_MEM_LOCATION_TYPE_DEVICE, ..._PROT_READWRITE, granularity."""

_OUT_OF_MEMORY = 2


class _Location(ctypes.Structure):
    _fields_ = (("type", ctypes.c_int), ("id", ctypes.c_int))


class _Flags(ctypes.Structure):
    _fields_ = (
        ("compression", ctypes.c_ubyte),
        ("rdma", ctypes.c_ubyte),
        ("usage", ctypes.c_ushort),
        ("reserved", ctypes.c_ubyte * 4),
    )


class _Properties(ctypes.Structure):
    """CUmemAllocationProp."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("handle_types", ctypes.c_int),
        ("location", _Location),
        ("windows", ctypes.c_void_p),
        ("flags", _Flags),
    )


class _Access(ctypes.Structure):
    """CUmemAccessDesc."""

    _fields_ = (("location", _Location), ("flags", ctypes.c_int))


class VirtualMemory:
    """Bytes at one address, zeroed whenever they are taken; they are not there at first."""

    def __init__(self, num_bytes: int, device: torch.device) -> None:
        torch.cuda.init()
        self._cuda = ctypes.CDLL("libcuda.so.1")
        self._device = device.index if device.index is not None else torch.cuda.current_device()
        self._properties = _Properties(
            type=_PINNED, location=_Location(type=_ON_DEVICE, id=self._device)
        )
        unit = ctypes.c_size_t()
        self._call("cuMemGetAllocationGranularity", ctypes.byref(unit), self._wanted(), _MINIMUM)
        self.num_bytes = -(-num_bytes // unit.value) * unit.value
        address = ctypes.c_uint64()
        size = ctypes.c_size_t(self.num_bytes)
        none = (ctypes.c_size_t(0), ctypes.c_uint64(0), ctypes.c_uint64(0))
        self._call("cuMemAddressReserve", ctypes.byref(address), size, *none)
        self._address = address.value
        self._handle: int | None = None

    @property
    def is_there(self) -> bool:
        return self._handle is not None

    def take(self) -> None:
        """Puts memory behind the addresses; raises ResourceError when the device has not enough."""
        if self.is_there:
            return
        handle, size = ctypes.c_uint64(), ctypes.c_size_t(self.num_bytes)
        zero = ctypes.c_uint64(0)
        self._call("cuMemCreate", ctypes.byref(handle), size, self._wanted(), zero)
        self._handle = handle.value
        address = ctypes.c_uint64(self._address)
        self._call("cuMemMap", address, size, ctypes.c_size_t(0), handle, zero)
        access = _Access(location=self._properties.location, flags=_READ_WRITE)
        self._call("cuMemSetAccess", address, size, ctypes.byref(access), ctypes.c_size_t(1))
        self.tensor(torch.uint8, (self.num_bytes,)).zero_()

    def give_back(self) -> None:
        """Takes the memory away; what was in it is lost. Waits for work that uses it."""
        if self._handle is None:
            return
        torch.cuda.synchronize(self._device)
        address, size = ctypes.c_uint64(self._address), ctypes.c_size_t(self.num_bytes)
        self._call("cuMemUnmap", address, size)
        self._call("cuMemRelease", ctypes.c_uint64(self._handle))
        self._handle = None

    def tensor(self, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
        """A view of the first bytes. It stays valid through `give_back` and `take`, but must not
        be touched between the two, nor after this object is gone."""
        count = self.num_bytes
        seen = torch.as_tensor(_Bytes(self._address, count), device=f"cuda:{self._device}")
        num_items = 1
        for size in shape:
            num_items *= size
        return seen[: num_items * dtype.itemsize].view(dtype).view(shape)

    def close(self) -> None:
        """Gives back memory and addresses."""
        self.give_back()
        if self._address:
            address, size = ctypes.c_uint64(self._address), ctypes.c_size_t(self.num_bytes)
            self._call("cuMemAddressFree", address, size)
            self._address = 0

    def _wanted(self) -> Any:
        return ctypes.byref(self._properties)

    def _call(self, name: str, *arguments: Any) -> None:
        status = getattr(self._cuda, name)(*arguments)
        if status == _OUT_OF_MEMORY:
            free, total = torch.cuda.mem_get_info(self._device)
            raise ResourceError(
                f"the engine's cache of {self.num_bytes / 2**30:.1f} GiB does not fit: "
                f"{free / 2**30:.1f} of {total / 2**30:.1f} GiB are free; lower "
                "--engine-cache-tokens, --engine-max-running or --sglang-mem-fraction-static"
            )
        if status:
            raise ResourceError(f"{name} failed with CUDA error {status}")


class _Bytes:
    """Raw device memory, as torch takes it over from other libraries."""

    def __init__(self, address: int, count: int) -> None:
        self.__cuda_array_interface__ = {
            "shape": (count,),
            "typestr": "|u1",
            "data": (address, False),
            "version": 3,
        }
