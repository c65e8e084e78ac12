"""save and load: every value comes back, files are ordinary, damage is named, nothing is run."""

from __future__ import annotations

import base64
import io
import json
import os
import pickle
import struct
import zipfile
import zlib
from collections import OrderedDict, namedtuple

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

import trident
from trident import dtypes, serialization
from trident.safetensors_file import read_safetensors, write_safetensors
from trident.unpickle import FormatError

rng = np.random.default_rng(0)


def there_and_back(obj, **options):
    f = io.BytesIO()
    trident.save(obj, f)
    f.seek(0)
    return trident.load(f, **options)


def tensor_of(dtype, shape):
    return trident.from_numpy(rng.integers(0, 100, shape).astype(dtype.np))


def assert_equal(a, b):
    """Equal in type, structure and every value."""
    if isinstance(a, trident.Tensor):
        assert isinstance(b, trident.Tensor)
        assert a.dtype is b.dtype
        assert a.requires_grad == b.requires_grad
        assert_equal(a.detach().cpu().numpy(), b.detach().cpu().numpy())
    elif isinstance(a, np.ndarray | np.generic):
        assert type(a) is type(b)
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        assert a.tobytes() == b.tobytes()
    elif isinstance(a, dict):
        assert list(a) == list(b)
        assert [type(k) for k in a] == [type(k) for k in b]
        for k in a:
            assert_equal(a[k], b[k])
    elif isinstance(a, list | tuple):
        assert type(a) is type(b)
        assert len(a) == len(b)
        for x, y in zip(a, b):
            assert_equal(x, y)
    elif isinstance(a, float) and a != a:
        assert b != b
    else:
        assert type(a) is type(b)
        assert a == b


@pytest.mark.parametrize("dtype", dtypes.ALL, ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (1,), (5,), (2, 3, 4)], ids=str)
def test_every_dtype_and_shape(dtype, shape):
    t = tensor_of(dtype, shape)
    assert_equal(there_and_back(t), t)
    assert_equal(there_and_back({"t": t}), {"t": t})


def test_strided_tensors():
    x = tensor_of(trident.float32, (4, 5, 6))
    for view in (x.permute(2, 0, 1), x[::2, 1:, 3], x[1], x[:, :1].expand(4, 5, 6)):
        assert_equal(there_and_back([view]), [view])


def test_nested_plain_values():
    obj = {
        "model": OrderedDict(
            w=tensor_of(trident.float32, (2, 3)), b=tensor_of(trident.bfloat16, (3,))
        ),
        "optimizer": {
            "state": {0: {"step": 3, "exp_avg": tensor_of(trident.float64, (2,))}, 1: {}},
            "param_groups": [{"lr": 1e-3, "betas": (0.9, 0.999), "params": [0, 1], "fused": None}],
        },
        "values": [
            None,
            True,
            False,
            0,
            -(2**70),
            1.0,
            0.1,
            5e-324,
            -0.0,
            "",
            "naïve \u2028\x00",
            [],
            (),
            {},
        ],
        "odd": [float("inf"), float("-inf"), float("nan")],
        "keys": {None: 0, True: 1, 2: 2, 2.5: 3, "2": 4, (1, "a"): 5, float("inf"): 6},
        "numpy": [np.arange(3, dtype=np.uint32), np.float64(0.1), np.int8(-3), np.zeros((2, 0))],
        "facts": [trident.bfloat16, trident.device("cpu"), trident.Size([2, 3])],
        "leaf": tensor_of(trident.float32, (2,)).requires_grad_(),
        "a.b": tensor_of(trident.int64, (1,)),
        "a": {"b": tensor_of(trident.int64, (1,)), "__metadata__": tensor_of(trident.uint8, (1,))},
        "__metadata__": tensor_of(trident.uint8, (2,)),
    }
    expected = {**obj, "model": dict(obj["model"])}
    assert_equal(there_and_back(obj), expected)
    for key in obj:
        assert_equal(there_and_back(obj[key]), expected[key])


def test_np_float_is_not_turned_into_float():
    assert type(there_and_back({"loss": np.float64(0.5)})["loss"]) is np.float64


def test_shared_tensors_stay_shared():
    w = tensor_of(trident.float32, (100, 100))
    f = io.BytesIO()
    trident.save({"model": {"a": w, "b": w, "tied": w.detach()}, "x": 1}, f)
    assert len(f.getvalue()) < 2 * 40_000
    f.seek(0)
    model = trident.load(f)["model"]
    assert model["a"] is model["b"] is model["tied"]
    assert_equal(model["a"], w)
    plain = there_and_back({"a": w, "b": w})  # an ordinary file holds both in full
    assert_equal(plain, {"a": w, "b": w})


def test_other_tools_read_the_file(tmp_path):
    tensors = {
        "x.w": tensor_of(trident.float32, (2, 3)),
        "flag": tensor_of(trident.bool, (3,)),
        "h": tensor_of(trident.float16, (1,)),
        "d": tensor_of(trident.float64, (4,)),
    }
    trident.save(tensors, tmp_path / "m.safetensors")
    got = safetensors.numpy.load_file(tmp_path / "m.safetensors")
    assert_equal({k: got[k] for k in tensors}, {k: t.numpy() for k, t in tensors.items()})
    safetensors.numpy.save_file(got, tmp_path / "back.safetensors", {"note": "hi"})
    back = trident.load(tmp_path / "back.safetensors")
    assert_equal({k: back[k] for k in tensors}, tensors)
    nested = {"model": {"w": tensors["x.w"]}, "opt": [tensors["h"], 3]}
    trident.save(nested, tmp_path / "n.safetensors")
    assert sorted(safetensors.numpy.load_file(tmp_path / "n.safetensors")) == ["model.w", "opt.0"]
    with safetensors.safe_open(tmp_path / "m.safetensors", "np") as f:
        assert f.metadata() == {"format": "pt"}


def test_narrow_dtypes_of_other_tools_are_widened():
    arrays = {
        "e4m3": np.array([0.5, -448.0], ml_dtypes.float8_e4m3fn),
        "e5m2": np.array([57344.0], ml_dtypes.float8_e5m2),
        "u16": np.array([65535], np.uint16),
        "u32": np.array([2**32 - 1], np.uint32),
    }
    f = io.BytesIO()
    write_safetensors(f, arrays)
    f.seek(0)
    got = trident.load(f)
    assert [t.dtype.name for t in got.values()] == ["float16", "float16", "int32", "int64"]
    assert [t.tolist() for t in got.values()] == [[0.5, -448.0], [57344.0], [65535], [2**32 - 1]]
    f = io.BytesIO()
    write_safetensors(f, {"u": np.zeros(1, np.uint64)})
    f.seek(0)
    with pytest.raises(FormatError, match="uint64"):
        trident.load(f)


def test_arrays_are_aligned_and_keep_their_order():
    f = io.BytesIO()
    arrays = {"a": np.ones(3, np.uint8), "b": np.ones(5, np.float64), "c": np.ones(1, np.float16)}
    write_safetensors(f, arrays, {"k": "v"})
    raw = f.getvalue()
    (n,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + n])
    assert n % 8 == 0
    assert header["b"]["data_offsets"][0] % 8 == header["c"]["data_offsets"][0] % 2 == 0
    f.seek(0)
    got, metadata = read_safetensors(f)
    assert list(got) == ["a", "b", "c"]
    assert metadata == {"k": "v"}
    assert_equal(got, arrays)


def test_loaded_tensors_are_writable_and_their_own():
    t = there_and_back({"x": trident.zeros(3), "y": trident.zeros(3)})
    t["x"] += 1
    assert t["y"].tolist() == [0, 0, 0]


def test_map_location():
    obj = {"x": trident.ones(2), "n": 1}
    seen = []
    for place in (
        "cpu",
        trident.device("cpu"),
        {"cuda:0": "cpu"},
        lambda t, where: t,
        lambda t, where: seen.append(where),
    ):
        assert_equal(there_and_back(obj, map_location=place), obj)
    assert seen == ["cpu"]


def test_a_failed_write_leaves_the_old_file_whole(tmp_path, monkeypatch):
    path = tmp_path / "model.st"
    trident.save({"x": trident.ones(3)}, path)
    before = path.read_bytes()

    def fails(*args):
        raise OSError("No space left on device")

    def fails_midway(file, arrays, metadata):
        file.write(b"half of it")
        fails()

    with monkeypatch.context() as m:
        m.setattr(serialization, "write_safetensors", fails_midway)
        with pytest.raises(OSError, match="No space"):
            trident.save({"x": trident.zeros(3)}, path)
    with monkeypatch.context() as m:
        m.setattr(os, "fsync", fails)
        with pytest.raises(OSError, match="No space"):
            trident.save({"x": trident.zeros(3)}, path)
    assert path.read_bytes() == before
    with pytest.raises(TypeError):
        trident.save({"x": object()}, path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["model.st"]


def test_a_save_goes_through_a_link_and_keeps_the_mode(tmp_path):
    path, link = tmp_path / "a.st", tmp_path / "link.st"
    trident.save([1], path)
    os.chmod(path, 0o640)
    link.symlink_to(path)
    trident.save([2], str(link))
    assert link.is_symlink()
    assert trident.load(path) == [2]
    assert path.stat().st_mode & 0o777 == 0o640


def test_what_cannot_be_stored_is_named_with_its_place():
    class Model:
        def state_dict(self):
            return {}

    Pair = namedtuple("Pair", "a b")
    loop = []
    loop.append(loop)
    for obj, text in [
        ({"a": [1, {"b": {1, 2}}]}, r"save: obj\['a'\]\[1\]\['b'\] .* got set"),
        ({"m": Model()}, r"obj\['m'\].*state_dict"),
        ([Pair(1, 2)], r"obj\[0\].*_asdict"),
        ({"f": len}, r"obj\['f'\]"),
        ({b"k": 1}, r"a dict key of obj is of a type .* got bytes"),
        ({"l": loop}, r"contains itself"),
        ({"c": np.zeros(2, np.complex64)}, r"obj\['c'\] has dtype complex64"),
        ([1j], r"complex"),
    ]:
        with pytest.raises(TypeError, match=text):
            trident.save(obj, io.BytesIO())


def damaged(raw):
    return trident.load(io.BytesIO(raw))


def test_every_truncation_is_an_error():
    f = io.BytesIO()
    trident.save({"x": trident.arange(4), "y": [1.5]}, f)
    raw = f.getvalue()
    for n in range(len(raw)):
        with pytest.raises(FormatError, match="load: "):
            damaged(raw[:n])


def with_header(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def test_damaged_headers():
    def entry(dtype="F32", shape=(1,), offsets=(0, 4)):
        return {"dtype": dtype, "shape": shape, "data_offsets": offsets}

    for header, text in [
        (b"not json", "header .* is damaged"),
        (b"\xff\xfe", "header .* is damaged"),
        (b"[]", "damaged"),
        ({"x": entry("F3")}, "'x' has the unknown dtype 'F3'"),
        ({"x": entry(shape=(2,))}, r"'x' of shape \(2,\) and dtype F32 must have 8 bytes; got 4"),
        ({"x": entry(shape=(-1,))}, "'x' is damaged"),
        ({"x": entry(shape=(1.0,))}, "'x' is damaged"),
        ({"x": entry(offsets=(0, 4, 8))}, "'x' is damaged"),
        ({"x": {}}, "'x' is damaged"),
        ({"x": entry(), "y": entry()}, "'y' overlaps"),
        ({"x": entry(offsets=(4, 8))}, "leaves a gap"),
        ({"x": entry(offsets=(4, 12), shape=(2,))}, "cut off: tensor 'x' ends at byte 12"),
        (b'{"x": {"dtype":"U8","shape":[0],"data_offsets":[0,0]}, "x": 1}', "twice"),
    ]:
        with pytest.raises(FormatError, match=text):
            damaged(with_header(header, bytes(8)))


def test_damaged_structures():
    for structure in (
        '{"tensor":"no"}',
        '{"__class__":1}',
        '{"make":1}',
        "{",
        '{"dict":[[1]]}',
        '{"dtype":"f9"}',
        '{"dict":[[[],1]]}',
        "{}",
    ):
        with pytest.raises(FormatError, match=r"damaged|unknown tag"):
            damaged(with_header({"__metadata__": {"trident.structure": structure}}))


def test_other_formats_are_recognised():
    npy, npz = io.BytesIO(), io.BytesIO()
    np.save(npy, np.zeros(2))
    np.savez(npz, a=np.zeros(2))
    for raw, text in [
        (npy.getvalue(), "numpy.load"),
        (npz.getvalue(), "numpy.load"),
        (pickle.dumps({"a": 1}), "bare pickle"),
        (b"", "empty"),
        (b"\x7fELF" + bytes(100), "no safetensors file"),
        (b"PK\x03\x04 and no more", "zip file is damaged"),
    ]:
        with pytest.raises(FormatError, match=text):
            damaged(raw)
    with pytest.raises(FileNotFoundError):
        trident.load("/no/such/file")


# A file written by torch 2.13: torch.save of the values that test_torch_checkpoint expects.
TORCH_FILE = (
    "c-pO4dvqLS6`#!}n`D|MZCcY%wW6SGZAtf$?4yq)tnCIF4C&O$QmotA-Pz2P*~gvvCXeb$uqJ5~u|TaTilQhe2=Y+G"
    "N2&P0M~fCLT0uqN93RIc$G`M1<M-HXW@Z!8W}S03yV;rF<Gc5M_q%6@1b02hH8pWn*D9`^lk~Krj>uaw5|X-#H)!!#"
    "E4R;fP1Kcu^ClWFAXmu98o1Kwf~Lu7q!#i9e~q4zbvd(BO(P!aHj3c(COr7rQCS^U5Y(qp0ZVixO{8iDpVZ})scM-d"
    "lJiDEPmTn5Xz+RyjTm9zC#7K-JPg9ewSt89urGONOt|nfK4?m~@q4;xLbKpO!0#3~p-ym5!3x1GxTc_GMj<X%B4`z%"
    "ErFNLrBum)RSMQoJPPCS!)m2js6)_B@sqGda81HmhJ6Eq4iVOwCFo2v<A;+u8A&8Sa1p(~K0%@fZ!E!^sPPe5H*hTA"
    "&4SA?j1<Kbib&0=hh!Z#l;ABad<K$`3>TN+tzLmE!P~sloq^;cTw-$<fJ?DE7lOBAcN;e{SMNY@nFuUY@>nq`jSRy^"
    "8!QO#RA^8(Rf4ja1?6%^(S=}(2)+bAPmweL{5F<u2r!mlg{7OZ^e~nXg0Kh?Q*f0a>Q(I4dtfWGzRhBNJAxe|^eT3{"
    "A?RZ{=r8Bs3X+2ugS-pDP7!t~c5h*bGsr+0awUPhn?bHZAc%0aX(n3mqeV%Va>-%6U=|H{&wdyz!8P7Q9loRKFf`Ej"
    "659hbF)5s119lJe{o@q5P7n0G_U~uTbxd!X0+E)Rj5+oU^zItJ<z?T^TPZ)Q?_@?!OXKiffunhma>lSOWnk}2g6y}P"
    "G)9X6-Zw*UXA8P4r4_h#kftCl6_Ke+DNTmNOrjNklTou-yqoe!rQcpRL+xcvL(agy!9)jnL{8%+X>ulMb8!6(-F0-;"
    "2E2bi?8h}GxMWi@DF?j)A6R5J(z`N}bsmzofJfi}3%FDcc!~r(%>tf5Ad8SaLjM__21Nvwmb4;iSvbgu%A5I0{8eQy"
    "-$1#epfT=TnLAIo3yiyn07TH){>}PBVA$wlv^n@g6-q=?>-T}lI7iByql9yeagHN6B*F(7XQ80MhwPmAs|sI<@%iDy"
    "jPFLa8SpNc5M1Q#CdT;@1cycVC=I@mmNZF+NgM0ch5T@Zb&9bDV47``BbH4vgWzK#e4J)W&K1!(+-xJ-Suk-;RH#0|"
    "sDf|{rs5EMk{IO3ZavC&>#dCTHUzheaEvZ`M3qP3Q#RH;N<p7*vd0-|H+&kCwjj7;H(sopkbVY#sGow*GSWK{d`^VV"
    "vq(yY40n~Q=D1Queu3C=6UY~ZdSd5phWrwOFN<&w-Bl(|>sOXIAA&r5b>41Q`HbNA=Fxaj&Qy%w%Z&HHeJovHBl0-&"
    "UnhU=XVMRpmu#weTsb^^1HpqLJjAw#CaHP&=6-nCE4T*w>sfOcJVFa~3?9L&ubYBL)5$bG0@DUB=g9{i9;3Qa3cf`v"
    "K$DP~_rtfR;BgVYQ-UW*2n?A@WQb$<ZrMaC%L<r>@3B*Ww2AM}B?bS(!w*>VJuwMSig1z&<%{scbl%Jr$Gfl-UGB=6"
    "8txUkE{*f7`gnMXJ-|~v9)3iD*$Di2=EyYsM1-Gu1vg#Rc6fSlaPX>Ge9=Foihh<-9!t!R3ibW)a|N&F7b5&}3Qmb|"
    "nkEhl!ZVBcz$r}Q!2szdnFxMWc9YMryYOp)n}jo1g;+?zvxNRR5q>ibXGM74OX_VBeycFsYB&6j*ghx1@3C#A+VBgh"
    "8O+sE_DeVk4qha*e-Po12>z6!o-^_Yyi|@a{;Z~PZ2nxCC0?F{S44Q#>>3gpoBkue@aR8r5Xft2(dlU&x3V%lb>YsQ"
    "lTfle3B+T~^Fx%MP(J?Ji-%ohgNswH=fd-p<x)>dnmU}%;WHr~3pz%#^SVOa#6aID{H?AWoy85T=K3lIQsYQ2kl`*K"
    "+qN9txl2<K(q!Uca>pwdkzL|>T@S5XuWc&b;)}<&)?nbjv$H2~*!wu{Bz|4o&v6Iv>u5i5^r~>+{!XmfxrC$5c1Qkr"
    "%zNIBu<nx_HxVRyyY6jG5rL*9^tRje0`XX6*%83neMI}<!Mh(Iou+;X?S8v<Fdo}pOZxYnK6PrxLNDU!U+0>=%ZPvX"
    "g~Y$met7FbFQPvhz4Pg1==WS${%eYV=>HXe;^ES3+izb+{e^3(KWn_7xF@k|8Tyf0>whi>M|XS9E<-<BlYTFEl4ys{"
    "o;|j7{@W}anDrW8js16`FLfi)uY2%%v>bhZjruN*sGqpxsl?LfPaAiILmjui9W|BzzQ!^)aZ!B!F9m!4xdmNpbGX1w"
    "FuYtBueaJY4jtUs+PJFvb>XPFao!s6$=QevH*-9<g0APGzr({z_pdf?lS2nLu*=SOJ+re!iQ{HxFD!qRS*XVR1$m->"
    "=C0wrOY3jo0`mhDU8*7LDxRPYN#xh6q?(Dxx-QU;FC6mq1byK^C>)7K0?}wN;`fE3kzh3B_eFccp@=`!9SHOgm+;(y"
    "N4(gFm%4NjvlXA#sd817bLa1HPPBD^TxUb}Hgk*3p-vL(5V+n(a;uf3YVvgQSO>Y)HlB8#s~#YoaO>37YJ(r=Imhhh"
    "#9AjPJJ!3xf%QAF))Ux{y~BwOII-4A#g1Lu;=l%-SnHHw$KL0}cAvjz?@9-@$BDI`_IB(sCpP57T2E>_wzJiN4Lh;c"
    "Q`Qk@CpO~5T2D!bZkq!ebz-e2T$_EpPOQJGu&f7^9lUmx6I@kU)^o)UzO4#eDXoQ%9@~;vJHb`8Wjz7x;E5`5RdHFH"
    "x*h!2DsWYGSv#^FEVgsbQ@{zfHp&e)@Us^1!YzDA@OU=QHGKEw6=a9w{kjJBKDK6V0PxUR;7sTIj|D?QgNI={==1E^"
    "{{igjJaz"
)


def torch_file():
    return zlib.decompress(base64.b85decode(TORCH_FILE))


def test_torch_checkpoint():
    x = damaged(torch_file())
    weight = [[-0.5, 0.5, 1.5], [2.5, 3.5, 4.5]]
    np.testing.assert_allclose(x["model"]["weight"].numpy(), weight, rtol=1e-6)
    np.testing.assert_allclose(x["model"]["bias"].numpy(), [-1.5, 0], atol=1e-7)
    state = x["optimizer"]["state"]
    assert state[1]["step"].item() == 1.0
    np.testing.assert_allclose(state[0]["exp_avg"].numpy(), np.full((2, 3), 0.1), rtol=1e-6)
    assert x["optimizer"]["param_groups"][0]["betas"] == (0.9, 0.999)
    assert x["optimizer"]["param_groups"][0]["params"] == [0, 1]
    assert_equal(x["param"], trident.ones(2).requires_grad_())
    assert_equal(x["half"], trident.tensor([1.5, -2.0], dtype=trident.float16))
    assert x["bf16"].dtype is trident.bfloat16
    np.testing.assert_allclose(x["bf16"].numpy().astype(np.float64), [1.0, 3e38], rtol=2**-8)
    assert_equal(x["bool"], trident.tensor([[True], [False]]))
    assert_equal(x["scalar"], trident.tensor(7))
    assert_equal(x["empty"], trident.zeros(0, 3, dtype=trident.float64))
    base = np.arange(12, dtype=np.int16).reshape(3, 4)
    np.testing.assert_array_equal(x["base"].numpy(), base)
    np.testing.assert_array_equal(x["view"].numpy(), base.T[1:])
    x["base"][0, 1] = 99
    assert x["view"][0, 0].item() == 99, "tensors of one storage share memory"
    assert_equal(x["u16"], trident.tensor([65535], dtype=trident.int32))
    assert_equal(x["plain"], [1, 2.5, None, True, "x", (1, 2), b"ab", {3: 4}])
    assert x["dtype"] is trident.bfloat16
    assert_equal(x["size"], trident.Size([2, 3]))
    assert_equal(x["np"], np.float64(2.5))
    assert_equal(x["arr"], np.arange(3, dtype=np.int32))
    assert x["dev"] == trident.device("cpu")


def torch_zip(data, **storages):
    f = io.BytesIO()
    with zipfile.ZipFile(f, "w") as z:
        z.writestr("archive/data.pkl", data)
        for key, raw in storages.items():
            z.writestr(f"archive/data/{key.strip('_')}", raw)
    return f.getvalue()


def torch_tensor(size, stride, offset=0, numel=4, raw=bytes(16), kind=b"FloatStorage"):
    """A checkpoint of one tensor, put together by hand from pickle opcodes."""

    def number(n):
        return b"J" + struct.pack("<i", n)

    def numbers(ns):
        return b"(" + b"".join(map(number, ns)) + b"t"

    def text(s):
        return b"X" + struct.pack("<I", len(s)) + s

    storage = (
        b"("
        + text(b"storage")
        + b"ctorch\n"
        + kind
        + b"\n"
        + text(b"0")
        + text(b"cpu")
        + number(numel)
        + b"tQ"
    )
    call = (
        b"ctorch._utils\n_rebuild_tensor_v2\n("
        + storage
        + number(offset)
        + numbers(size)
        + numbers(stride)
    )
    return torch_zip(b"\x80\x02" + call + b"\x89NtR.", _0=raw)


def test_torch_tensors_stay_within_their_storage():
    values = np.arange(4, dtype=np.float32).tobytes()
    assert damaged(torch_tensor((2, 2), (1, 2), raw=values)).tolist() == [[0, 2], [1, 3]]
    assert damaged(torch_tensor((3,), (0,), 3, raw=values)).tolist() == [3, 3, 3]
    assert damaged(torch_tensor((0, 5), (5, 1), 4, raw=values)).shape == (0, 5)
    for bad in ({"size": (5,), "stride": (1,)}, {"size": (2,), "stride": (1,), "offset": 3},
                {"size": (2,), "stride": (-1,), "offset": 1}, {"size": (2, 2), "stride": (1,)},
                {"size": (1,), "stride": (1,), "offset": -1}):  # fmt: skip
        with pytest.raises(FormatError, match="beyond its storage"):
            damaged(torch_tensor(**bad))
    with pytest.raises(FormatError, match="must have 9 elements of 4 bytes; got 16 bytes"):
        damaged(torch_tensor((1,), (1,), numel=9))
    with pytest.raises(FormatError, match=r"'torch\.ComplexFloatStorage'"):
        damaged(torch_tensor((1,), (1,), kind=b"ComplexFloatStorage"))


class Attack:
    def __reduce__(self):
        return os.system, ("echo run > /tmp/trident_attack",)


def test_code_in_a_file_is_not_run():
    for raw in (
        torch_zip(pickle.dumps(Attack())),
        torch_zip(b"cos\nsystem\n(X\x04\x00\x00\x00truetR."),
        torch_zip(b"cbuiltins\neval\n(X\x03\x00\x00\x001+1tR."),
        torch_zip(b"\x80\x04\x8c\x08builtins\x8c\x0cset.__init__\x93."),
    ):
        with pytest.raises(
            FormatError, match=r"global '(posix\.system|nt\.system|os\.system|builtins\.)"
        ):
            damaged(raw)
    assert not os.path.exists("/tmp/trident_attack")
    object_array = pickle.dumps(np.array([{}], dtype=object))
    with pytest.raises(FormatError, match="dtype 'O8'"):
        damaged(torch_zip(object_array))


def test_damaged_torch_files():
    raw = torch_file()
    with pytest.raises(FormatError, match="zip file is damaged"):
        damaged(raw[: len(raw) // 2])
    with pytest.raises(FormatError, match="checkpoint is damaged"):
        damaged(torch_zip(b"\x80\x02]q\x00("))
    with zipfile.ZipFile(io.BytesIO(raw)) as z:
        kept = {n: z.read(n) for n in z.namelist() if not n.endswith("data/0")}
    f = io.BytesIO()
    with zipfile.ZipFile(f, "w") as z:
        for name, value in kept.items():
            z.writestr(name, value)
    with pytest.raises(FormatError, match="lacks the values of storage '0'"):
        damaged(f.getvalue())
