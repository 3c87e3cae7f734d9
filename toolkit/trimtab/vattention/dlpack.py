"""Tensors over memory that PyTorch did not allocate, and word of when the last of them dies.

By the DLPack protocol: a structure that describes the memory, and a function that the consumer
calls when it needs the memory no more. See https://dmlc.github.io/dlpack/latest/c_api.html.

That function may be called while an exception is on its way through the interpreter, by a thread
that Python has never seen, or after the interpreter's end. Python code behind a ctypes callback
bears the second only. So a NumPy array lends its own: that is written in C and drops a reference
to the array, nothing else, and of the array's death `weakref.finalize` tells with all due care.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack

DEVICES = {"cpu": 1, "cuda": 2}
_INT, _UINT, _FLOAT, _BFLOAT, _BOOL = 0, 1, 2, 4, 6
KINDS = {
    torch.bool: _BOOL,
    torch.uint8: _UINT,
    torch.int8: _INT,
    torch.int16: _INT,
    torch.int32: _INT,
    torch.int64: _INT,
    torch.float16: _FLOAT,
    torch.float32: _FLOAT,
    torch.float64: _FLOAT,
    torch.bfloat16: _BFLOAT,
}


class _ManagedTensor(ctypes.Structure):
    """DLManagedTensor, its nested structures laid flat."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("dtype_code", ctypes.c_uint8),
        ("dtype_bits", ctypes.c_uint8),
        ("dtype_lanes", ctypes.c_uint16),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("byte_offset", ctypes.c_uint64),
        ("manager_ctx", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
    )


_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_pointer.restype = ctypes.c_void_p
_pointer.argtypes = [ctypes.py_object, ctypes.c_char_p]


def tensor_at(
    address: int,
    shape: Sequence[int],
    strides: Sequence[int],
    dtype: torch.dtype,
    device: torch.device,
    dropped: Callable[[], None],
) -> Tensor:
    """Return a tensor over an address, without touching what is there.

    Parameters
    ----------
    address : int
        Of the first element, on the device.
    shape, strides : sequence of int
        Strides in elements.
    dtype : torch.dtype
        Bool, a signed integer, uint8, float16, bfloat16, float32 or float64.
    device : torch.device
        The CPU, or a CUDA device with its index.
    dropped : callable
        Called once: when the last tensor or view over the memory has died, in whichever thread
        that happens, or before this raises. An exception of its own goes to
        `sys.unraisablehook`. Not called for what outlives the interpreter.

    Raises
    ------
    ValueError
        If the dtype or the device is none of these.
    """
    sizes = np.array([*shape, *strides], dtype=np.int64)
    died = weakref.finalize(sizes, dropped)
    died.atexit = False
    try:
        if dtype not in KINDS:
            raise ValueError(f"dtype={dtype}; expected one of {', '.join(map(str, KINDS))}")
        if device.type not in DEVICES or (device.type == "cuda" and device.index is None):
            raise ValueError(f"device={device}; expected cpu or cuda with an index, as in cuda:0")
        capsule = sizes.__dlpack__()
        managed = _ManagedTensor.from_address(_pointer(capsule, b"dltensor"))
        managed.data = address
        managed.device_type = DEVICES[device.type]
        managed.device_id = device.index or 0
        managed.ndim = len(shape)
        managed.dtype_code = KINDS[dtype]
        managed.dtype_bits = 8 * dtype.itemsize
        managed.dtype_lanes = 1
        managed.shape = sizes.ctypes.data
        managed.strides = sizes.ctypes.data + len(shape) * sizes.itemsize
        managed.byte_offset = 0
        return from_dlpack(capsule)
    except BaseException:
        # The exception's frames keep the array alive.
        died()
        raise
