"""Tensors over memory that PyTorch did not allocate, with a callback when the last of them dies.

This uses the DLPack protocol: a structure that describes the memory, and a deleter that the
consumer calls when it is done with it. See https://dmlc.github.io/dlpack/latest/c_api.html.

The deleter may be called while an exception propagates, from a thread unknown to Python, or after
the interpreter has ended. A Python function called through ctypes copes only with the second case.
So the deleter is NumPy's own, borrowed from an array: it is written in C and only drops a reference
to the array, whose death `weakref.finalize` reports safely.
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
    """DLManagedTensor, with its nested structures flattened."""

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
    """Return a tensor over an address, without touching the memory there.

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
        Called once: when the last tensor or view over the memory dies, in whichever thread, or
        before this function raises. Its own exceptions go to `sys.unraisablehook`. Not called for
        tensors that outlive the interpreter.

    Raises
    ------
    ValueError
        If the dtype or the device is not supported.
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
