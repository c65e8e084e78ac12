"""DLPack with numpy, torch and capsules made by hand: one memory, no copy, let go exactly once."""

from __future__ import annotations

import ctypes
import gc
import subprocess
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest
from capsules import Callback, Producer, api, name_of, new_capsule, struct_of

import trident
from trident import dtypes
from trident.errors import AutogradError, DeviceError, DTypeError

ROOT = Path(__file__).resolve().parent.parent
FORMS = {"old": {}, "versioned": {"max_version": (1, 0)}}
CODES = {
    "bool": (6, 8), "uint8": (1, 8), "int8": (0, 8), "int16": (0, 16), "int32": (0, 32),
    "int64": (0, 64), "float16": (2, 16), "bfloat16": (4, 16), "float32": (2, 32),
    "float64": (2, 64),
}  # fmt: skip
LAYOUTS = {
    "contiguous": lambda a: a,
    "transposed": lambda a: a.T,
    "backwards": lambda a: a[::-1, ::2],
    "one_axis_of_one": lambda a: a[1:2],
    "scalar": lambda a: a[1, 2],
    "empty": lambda a: a[:, :0],
}


def view(x, layout):
    if layout == "transposed":
        return x.T
    if layout == "backwards":
        return trident.from_numpy(x.numpy()[::-1, ::2])
    return LAYOUTS[layout](x)


def some(name, rng):
    a = rng.integers(0, 2, (3, 4)).astype(getattr(dtypes, "bool_" if name == "bool" else name).np)
    return a, trident.from_numpy(a)


# ---- out -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", CODES)
def test_the_struct_describes_the_memory(name, layout, form, rng):
    a, x = some(name, rng)
    x, expected = view(x, layout), LAYOUTS[layout](a)
    capsule = x.__dlpack__(**FORMS[form])
    managed, t = struct_of(capsule)
    assert name_of(capsule) == {"old": b"dltensor", "versioned": b"dltensor_versioned"}[form]
    assert (t.code, t.bits, t.lanes) == (*CODES[name], 1)
    assert (t.device_type, t.device_id) == (1, 0) == x.__dlpack_device__()
    assert [t.shape[i] for i in range(t.ndim)] == list(expected.shape)
    if expected.size:
        assert t.data + t.byte_offset == x.data_ptr()
        if t.ndim:
            wanted = [s // expected.itemsize for s in expected.strides]
            assert [t.strides[i] for i in range(t.ndim)] == wanted
    else:
        assert t.data is None
    if form == "versioned":
        assert managed.major == 1 and managed.flags == 0


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", CODES)
def test_a_capsule_comes_back_as_the_same_memory(name, layout, form, rng):
    a, x = some(name, rng)
    x = view(x, layout)
    y = trident.from_dlpack(x.__dlpack__(**FORMS[form]))
    assert y.dtype is x.dtype and y.shape == x.shape
    np.testing.assert_array_equal(y.numpy(), x.numpy())
    if x.numel():
        assert y.data_ptr() == x.data_ptr() and y.stride() == x.stride()
        y.fill_(0)
        assert not LAYOUTS[layout](a).astype(np.float32).any()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", [n for n in CODES if n != "bfloat16"])
def test_numpy_both_ways(name, layout, rng):
    a, x = some(name, rng)
    x, a = view(x, layout), np.asarray(LAYOUTS[layout](a))
    there = np.from_dlpack(x)
    assert there.dtype == a.dtype and (there.strides == a.strides or not a.size)
    np.testing.assert_array_equal(there, a)
    back = trident.from_dlpack(a)
    np.testing.assert_array_equal(back.numpy(), a)
    if a.size and layout != "scalar":  # a[1, 2] of numpy is a copy
        assert np.shares_memory(there, x.numpy()) and np.shares_memory(back.numpy(), a)


@pytest.mark.parametrize("layout", ["contiguous", "transposed", "scalar", "empty"])
@pytest.mark.parametrize("name", CODES)
def test_torch_both_ways(name, layout, rng):
    torch = pytest.importorskip("torch")
    _, x = some(name, rng)
    x = view(x, layout)
    t = torch.from_dlpack(x)
    assert t.dtype is getattr(torch, name) and tuple(t.shape) == tuple(x.shape)
    assert t.stride() == x.stride() or not x.numel()
    assert t.tolist() == x.tolist()
    if x.numel():
        assert t.data_ptr() == x.data_ptr()
        t.fill_(1)
        assert x.float().min().item() == 1
    s = torch.zeros(3, 4, dtype=getattr(torch, name))
    s = s.T if layout == "transposed" else LAYOUTS[layout](s)
    y = trident.from_dlpack(s)
    assert y.dtype is x.dtype and y.tolist() == s.tolist()
    if s.numel():
        assert y.data_ptr() == s.data_ptr() and y.stride() == s.stride()
        y.fill_(1)
        assert s.float().min().item() == 1
    for capsule in (s.__dlpack__(), s.__dlpack__(max_version=(1, 0))):
        assert trident.from_dlpack(capsule).tolist() == s.tolist()


def test_the_old_form_is_given_unless_the_new_one_is_asked_for():
    x = trident.ones(2)
    for version in (None, (0, 8)):
        assert name_of(x.__dlpack__(max_version=version)) == b"dltensor"
    for version in ((1, 0), (1, 1), (2, 0)):
        assert name_of(x.__dlpack__(max_version=version)) == b"dltensor_versioned"
    assert name_of(x.__dlpack__(stream=None, copy=False, dl_device=(1, 0))) == b"dltensor"


def test_read_only_memory():
    a = np.arange(3.0)
    a.flags.writeable = False
    x = trident.from_numpy(a)
    with pytest.raises(BufferError, match=r"__dlpack__: .* read-only.*max_version=\(1, 0\)"):
        x.__dlpack__()
    capsule = x.__dlpack__(max_version=(1, 0))
    assert struct_of(capsule)[0].flags == 1
    y = trident.from_dlpack(capsule)
    assert y.data_ptr() == x.data_ptr()
    with pytest.raises(AutogradError, match=r"add_: the tensor's memory is read-only; clone\(\)"):
        y.add_(1)
    assert (y.clone().add_(1) - x).tolist() == [1, 1, 1]
    expanded = trident.ones(1, 2).expand(3, 2)
    assert struct_of(expanded.__dlpack__(max_version=(1, 0)))[0].flags == 1
    with pytest.raises(AutogradError, match="read-only"):
        trident.from_dlpack(a).zero_()  # numpy's own flag
    assert not np.from_dlpack(x).flags.writeable


def test_copy():
    x = trident.ones(3)
    for copy in (None, False):
        assert struct_of(x.__dlpack__(max_version=(1, 0), copy=copy))[1].data == x.data_ptr()
    capsule = x.__dlpack__(max_version=(1, 0), copy=True)
    managed, t = struct_of(capsule)
    assert t.data != x.data_ptr() and managed.flags == 2
    y = trident.from_dlpack(capsule)
    y.zero_()
    assert x.tolist() == [1, 1, 1]
    assert trident.from_dlpack(x, copy=True).data_ptr() != x.data_ptr()
    assert trident.from_dlpack(x, copy=False).data_ptr() == x.data_ptr()


def test_what_cannot_be_exported(device):
    x = trident.ones(2, requires_grad=True)
    for way in (x.__dlpack__, lambda: trident.from_dlpack(x), lambda: np.from_dlpack(x)):
        with pytest.raises(BufferError, match=r"__dlpack__: the tensor requires grad.*x.detach"):
            way()
    assert np.from_dlpack(x.detach()).tolist() == [1, 1]
    with pytest.raises(BufferError, match=r"dl_device must be \(1, 0\).*; got \(2, 0\)"):
        trident.ones(2).__dlpack__(dl_device=(2, 0))
    with pytest.raises(ValueError, match="stream must be None for memory of the CPU; got 5"):
        trident.ones(2).__dlpack__(stream=5)
    halves = np.zeros(4, [("a", np.int8), ("b", np.float32)])["b"]
    with pytest.raises(BufferError, match=r"strides must be whole elements; got \(5,\) bytes"):
        trident.from_numpy(halves).__dlpack__()
    if device == "cuda":
        y = trident.ones(2, device=device)
        for way in (y.__dlpack__, y.__dlpack_device__, lambda: np.from_dlpack(y)):
            with pytest.raises(BufferError, match=r"in Triton's interpreter.*Export x.cpu\(\)"):
                way()
        assert not hasattr(y, "__cuda_array_interface__")
        assert np.from_dlpack(y.cpu()).tolist() == [1, 1]


# ---- life and death ------------------------------------------------------------------------------


def exported(**form):
    """A capsule on fresh memory, and a weak reference to that memory."""
    a = np.ones(4, np.float32)
    return trident.from_numpy(a).__dlpack__(**form), weakref.ref(a)


@pytest.mark.parametrize("form", FORMS)
def test_a_capsule_keeps_the_memory_and_lets_it_go(form):
    capsule, memory = exported(**FORMS[form])
    gc.collect()
    assert memory() is not None
    del capsule  # never consumed
    assert memory() is None
    capsule, memory = exported(**FORMS[form])
    y = trident.from_dlpack(capsule)
    del capsule
    assert y.tolist() == [1, 1, 1, 1]
    z = y[1:]
    del y
    assert memory() is not None and z.tolist() == [1, 1, 1]
    del z
    gc.collect()
    assert memory() is None


@pytest.mark.parametrize("name", ["bfloat16", "float32"])
def test_a_capsule_that_dies_while_an_error_is_on_its_way(name):
    """C code drops it with the exception set, which a destructor in Python would lose."""

    class Items:
        def __init__(self):
            self.n = 0

        def __iter__(self):
            return self

        def __next__(self):
            self.n += 1
            if self.n == 3:
                raise KeyError("mine")
            return trident.ones(2, dtype=getattr(trident, name)).__dlpack__(max_version=(1, 0))

    with pytest.raises(KeyError, match="mine"):
        tuple(Items())


def test_the_deleter_may_be_called_without_the_gil():
    capsule, memory = exported()
    managed, _ = struct_of(capsule)
    ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.c_char_p)(("PyCapsule_SetName", api))(
        capsule, b"used_dltensor"
    )
    address, deleter = ctypes.addressof(managed), managed.deleter
    del capsule, managed
    assert memory() is not None
    Callback(deleter)(address)  # CFUNCTYPE lets the GIL go
    assert memory() is None


def test_python_may_end_while_memory_is_lent_both_ways():
    pytest.importorskip("torch")
    code = (
        "import torch, trident, numpy as np\n"
        "lent = torch.from_dlpack(trident.ones(3)); torch.kept = lent\n"
        "borrowed = trident.from_dlpack(torch.ones(3)); trident.kept = borrowed\n"
        "capsule = trident.ones(2).__dlpack__(); np.kept = [np.from_dlpack(trident.ones(2))]\n"
        "def loop(x):\n    loop.x = x, loop\n"
        "loop(trident.from_dlpack(torch.ones(2)))\n"
        "print('end')\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=ROOT, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "end\n", "")


@pytest.mark.parametrize("versioned", [True, False])
def test_the_deleter_is_called_once(versioned):
    p = Producer([1, 2, 3], versioned)
    x = trident.from_dlpack(p)
    assert p.asked == {"max_version": (1, 1)}
    y = x * 2
    views = [x[1:], x.detach(), x.T]
    del x
    gc.collect()
    assert p.deleted == 0 and views[0].tolist() == [2, 3]
    p.memory[2] = 9
    assert views[0].tolist() == [2, 9] and y.tolist() == [2, 4, 6]
    del views
    gc.collect()
    assert p.deleted == 1
    capsule = p.__dlpack__()
    x = trident.from_dlpack(capsule)
    assert name_of(capsule) == (b"used_dltensor_versioned" if versioned else b"used_dltensor")
    with pytest.raises(BufferError, match="from_dlpack: the capsule was consumed already"):
        trident.from_dlpack(capsule)
    del x, capsule
    gc.collect()
    assert p.deleted == 2


def test_memory_without_a_deleter():
    p = Producer([1, 2], immortal=True)
    assert trident.from_dlpack(p).tolist() == [1, 2]


def test_offset_and_strides():
    assert trident.from_dlpack(Producer([1, 2, 3, 4], offset=4, count=2)).tolist() == [2, 3]
    assert trident.from_dlpack(Producer([1, 2, 3, 4], stride=2, count=2)).tolist() == [1, 3]
    back = trident.from_dlpack(Producer([1, 2, 3], offset=8, stride=-1))
    assert back.tolist() == [3, 2, 1]
    p = Producer([1, 2], count=0)
    x = trident.from_dlpack(p)
    assert x.shape == (0,) and x.dtype is trident.float32
    del x
    gc.collect()
    assert p.deleted == 1


def test_read_only_memory_of_another_library():
    x = trident.from_dlpack(Producer([1, 2], flags=1))
    with pytest.raises(AutogradError, match="read-only"):
        x.zero_()
    with pytest.raises(AutogradError, match="read-only"):
        x[0] = 1.0


@pytest.mark.parametrize(
    "changes, error, text",
    [
        ({"dtype": (5, 64, 1)}, DTypeError, "type code 5 of 64 bits in 1 lanes"),
        ({"dtype": (2, 32, 4)}, DTypeError, "in 4 lanes"),
        ({"dtype": (1, 16, 1)}, DTypeError, "expected one of bool, uint8"),
        ({"major": 2}, BufferError, r"DLPack of version 1 is understood; got version 2\.0"),
        ({"device": (8, 0)}, DeviceError, "DLPack's device type 8, number 0"),
    ],
)
def test_what_cannot_be_imported_stays_with_its_capsule(changes, error, text):
    p = Producer([1, 2], **changes)
    capsule = p.__dlpack__()
    with pytest.raises(error, match=f"from_dlpack: .*{text}"):
        trident.from_dlpack(capsule)
    gc.collect()
    if "device" not in changes:  # what the memory lies on is seen when it is taken
        assert name_of(capsule) == b"dltensor_versioned" and p.deleted == 0
    else:
        assert p.deleted == 1
        with pytest.raises(error, match=text):
            trident.from_dlpack(p)


def test_what_is_no_capsule():
    with pytest.raises(TypeError, match="an object with __dlpack__, or a DLPack capsule; got list"):
        trident.from_dlpack([1.0])
    other = new_capsule(1, b"something", None)
    with pytest.raises(BufferError, match="must hold a DLPack tensor; got 'something'"):
        trident.from_dlpack(other)


def test_libraries_from_before_the_new_form():
    class Old(Producer):
        def __dlpack__(self, stream=None):
            return super().__dlpack__()

    assert trident.from_dlpack(Old([1, 2], versioned=False)).tolist() == [1, 2]

    class Broken(Producer):
        def __dlpack__(self, **_):
            raise TypeError("mine")

    with pytest.raises(TypeError, match="mine"):
        trident.from_dlpack(Broken([1]))


def test_memory_of_a_gpu_where_there_is_none(device):
    if device == "cpu" and trident.runtime.is_available():
        pytest.skip("there is one here")
    p = Producer([1, 2], device=(2, 0))
    hint = "Triton's interpreter" if device == "cuda" else "cuda"
    for way in (trident.from_dlpack, lambda p: trident.from_dlpack(p.__dlpack__())):
        with pytest.raises(DeviceError, match=hint):
            way(p)


# ---- inside of trident ---------------------------------------------------------------------------


def test_a_tensor_from_a_tensor_counts_its_writes():
    x = trident.ones(3)
    w = trident.ones(3, requires_grad=True)
    y = w * x
    trident.from_dlpack(x).add_(1)
    with pytest.raises(AutogradError, match="overwritten by add_"):
        y.sum().backward()


def test_where_it_shall_be(device):
    a = np.ones(3, np.float32)
    assert trident.from_dlpack(a, device="cpu").data_ptr() == a.ctypes.data
    x = trident.from_dlpack(a, device=device)
    assert x.device.type == device and x.tolist() == [1, 1, 1]
    if device == "cuda":
        with pytest.raises(BufferError, match="copy=False forbids a copy to cuda"):
            trident.from_dlpack(a, device=device, copy=False)


def test_as_tensor_takes_other_libraries_arrays_without_a_copy():
    p = Producer([1, 2, 3])
    x = trident.as_tensor(p)
    p.memory[0] = 5
    assert x.tolist() == [5, 2, 3]
    assert trident.as_tensor(p, dtype=trident.float64).dtype is trident.float64
    assert trident.as_tensor(np.float32(3)).tolist() == 3


def test_trident_does_not_load_torch_for_it():
    code = (
        "import sys, trident, numpy as np\n"
        "trident.from_dlpack(np.ones(2)); np.from_dlpack(trident.ones(2))\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
