"""DLPack capsules from the outside: their structs, and a library that makes them by hand."""

from __future__ import annotations

import ctypes
from typing import ClassVar

from trident.runtime import dlpack

api = ctypes.pythonapi
pointer_of = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", api)
)
name_of = ctypes.PYFUNCTYPE(ctypes.c_char_p, ctypes.py_object)(("PyCapsule_GetName", api))
new_capsule = ctypes.PYFUNCTYPE(
    ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p
)(("PyCapsule_New", api))
Callback = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


def struct_of(capsule):
    """(the managed struct, its tensor); they keep the capsule."""
    name = name_of(capsule)
    form = {b"dltensor": dlpack._Managed, b"dltensor_versioned": dlpack._ManagedVersioned}[name]
    managed = form.from_address(pointer_of(capsule, name))
    managed.capsule = capsule
    return managed, managed.tensor


class Producer:
    """A library that makes its capsules by hand, and counts how often they are let go."""

    lent: ClassVar[list] = []  # what must not go while a capsule is out

    def __init__(self, values, versioned=True, **changes):
        self.memory = (ctypes.c_float * len(values))(*values)
        self.versioned = versioned
        self.deleted = 0
        self.changes = changes
        form = dlpack._ManagedVersioned if versioned else dlpack._Managed
        self.managed = form()
        self.shape = (ctypes.c_int64 * 1)(changes.get("count", len(values)))
        self.strides = (ctypes.c_int64 * 1)(changes.get("stride", 1))
        t = self.managed.tensor
        t.data = changes.get("at", ctypes.addressof(self.memory))
        t.device_type, t.device_id = changes.get("device", (1, 0))
        t.ndim = 1
        t.code, t.bits, t.lanes = changes.get("dtype", (2, 32, 1))
        t.shape = self.shape
        t.strides = None if changes.get("stride") is None else self.strides
        t.byte_offset = changes.get("offset", 0)
        if versioned:
            self.managed.major = changes.get("major", 1)
            self.managed.flags = changes.get("flags", 0)
        self.callback = Callback(self.delete)
        if not changes.get("immortal"):
            self.managed.deleter = ctypes.cast(self.callback, ctypes.c_void_p)

    def delete(self, address):
        assert address == ctypes.addressof(self.managed)
        self.deleted += 1
        self.lent.remove(self)

    def __dlpack_device__(self):
        return self.changes.get("device", (1, 0))

    def __dlpack__(self, **options):
        self.asked = options
        self.lent.append(self)
        name = b"dltensor_versioned" if self.versioned else b"dltensor"
        return new_capsule(ctypes.addressof(self.managed), name, None)
