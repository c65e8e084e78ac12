"""Vision: data sets from files written here, transforms against slow formulas and Pillow, grids."""

from __future__ import annotations

import gzip
import pickle
import struct

import numpy as np
import pytest

import trident
from trident.unpickle import FormatError
from trident.utils.data import DataLoader, item_stream
from trident.vision import datasets, transforms
from trident.vision.transforms import functional as F
from trident.vision.utils import make_grid, save_image

rng = np.random.default_rng(0)


def picture(h=7, w=9, c=3, dtype=np.uint8):
    if np.dtype(dtype).kind == "f":
        return rng.random((h, w, c)).astype(dtype)
    return rng.integers(0, 256, (h, w, c)).astype(dtype)


def kinds(array):
    """The same picture as array, Tensor and (uint8 only) PIL image, and the way back."""
    yield array, lambda x: x
    axes = (2, 0, 1) if array.ndim == 3 else (0, 1)
    back = (1, 2, 0) if array.ndim == 3 else (0, 1)
    yield trident.from_numpy(array.transpose(axes).copy()), lambda x: x.numpy().transpose(back)
    if array.dtype == np.uint8:
        image = pytest.importorskip("PIL.Image")
        yield image.fromarray(array), np.asarray


def assert_on_all_kinds(fn, array, expected, atol=0):
    for image, back in kinds(array):
        before = np.array(back(image))
        got = fn(image)
        assert type(got) is type(image) or "PIL" in type(got).__module__
        assert back(got).dtype == expected.dtype
        np.testing.assert_allclose(
            back(got).astype(float), expected.astype(float), atol=atol, rtol=0
        )
        np.testing.assert_array_equal(back(image), before)


# ---- data sets ----------------------------------------------------------------------------------


def idx(array):
    return (
        bytes([0, 0, 8, array.ndim])
        + struct.pack(f">{array.ndim}I", *array.shape)
        + array.tobytes()
    )


@pytest.mark.parametrize("kind", [datasets.MNIST, datasets.FashionMNIST])
@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("folder", ["", "raw", "KIND/raw"])
def test_mnist(tmp_path, kind, zipped, folder):
    images = rng.integers(0, 256, (5, 28, 28), dtype=np.uint8)
    labels = np.array([3, 1, 4, 1, 5], np.uint8)
    raw = tmp_path / folder.replace("KIND", kind.__name__)
    raw.mkdir(parents=True, exist_ok=True)
    for name, array in [("t10k-images-idx3-ubyte", images), ("t10k-labels-idx1-ubyte", labels)]:
        data = idx(array)
        if zipped:
            (raw / f"{name}.gz").write_bytes(gzip.compress(data))
        else:
            (raw / name).write_bytes(data)
    data = kind(tmp_path, train=False, download=True)
    assert len(data) == 5
    np.testing.assert_array_equal(np.stack([x for x, _ in data]), images)
    assert [y for _, y in data] == labels.tolist()
    assert len(data.classes) == 10
    ready = kind(tmp_path, False, transforms.ToTensor(), lambda y: y + 1)
    x, y = next(iter(DataLoader(ready, 5)))
    np.testing.assert_array_equal(x.numpy(), images[:, None].astype(np.float32) / 255)
    assert y.tolist() == (labels + 1).tolist()
    with pytest.raises(
        FileNotFoundError, match=r"train-images-idx3-ubyte.*downloads nothing.*root="
    ):
        kind(tmp_path, download=True)


def test_damaged_idx_files(tmp_path):
    def write(images, labels):
        (tmp_path / "train-images-idx3-ubyte").write_bytes(images)
        (tmp_path / "train-labels-idx1-ubyte").write_bytes(labels)

    good = idx(np.zeros((2, 3, 3), np.uint8)), idx(np.zeros(2, np.uint8))
    for images, labels, text in [
        (good[0][:-1], good[1], "cut off"),
        (good[0][:9], good[1], "cut off"),
        (good[1], good[1], "must start with 00000803"),
        (good[0], idx(np.zeros(3, np.uint8)), "2 images and 3 labels"),
    ]:
        write(images, labels)
        with pytest.raises(FormatError, match=text):
            datasets.MNIST(tmp_path)
    (tmp_path / "train-images-idx3-ubyte").unlink()
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(good[0])[:-9])
    with pytest.raises(FormatError, match="cut off"):
        datasets.MNIST(tmp_path)


def cifar_parts(n_parts, n=2):
    return [
        (rng.integers(0, 256, (n, 3072), dtype=np.uint8), rng.integers(0, 10, n).tolist())
        for _ in range(n_parts)
    ]


def assert_cifar(data, parts):
    pixels = np.concatenate([p for p, _ in parts])
    assert [y for _, y in data] == [y for _, ys in parts for y in ys]
    for i, (x, _) in enumerate(data):
        assert x.shape == (32, 32, 3)
        for c in range(3):
            np.testing.assert_array_equal(
                x[:, :, c], pixels[i, c * 1024 : (c + 1) * 1024].reshape(32, 32)
            )


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_cifar_python(tmp_path, protocol):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    parts = cifar_parts(5)
    for i, (pixels, labels) in enumerate(parts, 1):
        (folder / f"data_batch_{i}").write_bytes(
            pickle.dumps({"data": pixels, "labels": labels}, protocol)
        )
    assert_cifar(datasets.CIFAR10(tmp_path), parts)
    assert datasets.CIFAR10(tmp_path).class_to_idx["frog"] == 6
    with pytest.raises(
        FileNotFoundError, match=r"test_batch or test_batch.bin .*cifar-10-python.tar.gz"
    ):
        datasets.CIFAR10(tmp_path, train=False)


def test_cifar_of_python_2(tmp_path):
    """The real files: written by Python 2, where bytes and str are one."""
    pixels = rng.integers(0, 256, (1, 3072), dtype=np.uint8)

    def text(b):
        return b"U" + bytes([len(b)]) + b if len(b) < 256 else b"T" + struct.pack("<i", len(b)) + b

    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00t" + text(b"b") + b"tR"
        b"(K\x01(K\x01M\x00\x0ctcnumpy\ndtype\n(" + text(b"u1") + b"K\x00K\x01tR"
        b"(K\x03" + text(b"|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
        + text(pixels.tobytes()) + b"tb"
    )  # fmt: skip
    raw = b"\x80\x02}(" + text(b"data") + array + text(b"fine_labels") + b"](K\x07eu."
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    (folder / "test").write_bytes(raw)
    names = [f"name{i}" for i in range(100)]
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": names}, 2))
    data = datasets.CIFAR100(tmp_path, train=False)
    assert_cifar(data, [(pixels, [7])])
    assert data.classes == names


def test_cifar_binary(tmp_path):
    for kind, folder, name, lead in [
        (datasets.CIFAR10, "cifar-10-batches-bin", "test_batch.bin", 1),
        (datasets.CIFAR100, "cifar-100-binary", "test.bin", 2),
    ]:
        (tmp_path / folder).mkdir()
        ((pixels, labels),) = cifar_parts(1, 3)
        heads = np.zeros((3, lead), np.uint8)
        heads[:, -1] = labels
        path = tmp_path / folder / name
        path.write_bytes(np.concatenate([heads, pixels], 1).tobytes())
        assert_cifar(kind(tmp_path, train=False), [(pixels, labels)])
        path.write_bytes(path.read_bytes()[:-1])
        with pytest.raises(FormatError, match="multiple of"):
            kind(tmp_path, train=False)


class Attack:
    def __reduce__(self):
        return print, ("run",)


def test_cifar_pickles_run_no_code(tmp_path, capsys):
    for value, text in [
        (Attack(), r"global '(__builtin__|builtins)\.print'"),
        ({"data": Attack()}, r"global '(__builtin__|builtins)\.print'"),
        ({"data": np.array([{}], object), "labels": [1]}, "dtype 'O8'"),
        ({"data": np.zeros((1, 3), np.uint8), "labels": [1]}, "shape"),
        ({"labels": [1]}, "no CIFAR batch"),
        ([1], "no CIFAR batch"),
    ]:
        (tmp_path / "test_batch").write_bytes(pickle.dumps(value, 2))
        with pytest.raises(FormatError, match=text):
            datasets.CIFAR10(tmp_path, train=False)
    (tmp_path / "test_batch").write_bytes(b"\x80\x02}(")
    with pytest.raises(FormatError, match="damaged"):
        datasets.CIFAR10(tmp_path, train=False)
    assert capsys.readouterr().out == ""


def test_image_folder(tmp_path):
    image = pytest.importorskip("PIL.Image")
    pictures = {}
    for name in ("dog/b.png", "cat/a.PNG", "cat/deep/c.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        pictures[name] = picture()
        image.fromarray(pictures[name]).save(tmp_path / name)
    (tmp_path / "cat/notes.txt").write_text("no image")
    data = datasets.ImageFolder(tmp_path)
    assert data.classes == ["cat", "dog"]
    assert data.class_to_idx == {"cat": 0, "dog": 1}
    assert data.targets == [0, 0, 1]
    for (x, _), name in zip(data, ("cat/a.PNG", "cat/deep/c.png", "dog/b.png")):
        np.testing.assert_array_equal(np.asarray(x), pictures[name])
    x, y = next(
        iter(DataLoader(datasets.ImageFolder(tmp_path, transforms.ToTensor()), 3, num_workers=2))
    )
    assert tuple(x.shape) == (3, 3, 7, 9)
    assert y.tolist() == [0, 0, 1]
    with pytest.raises(RuntimeError, match="ToTensor"):
        next(iter(DataLoader(data)))
    only = datasets.ImageFolder(
        tmp_path, loader=str, is_valid_file=lambda p: p.endswith(("txt", "b.png"))
    )
    assert [y for _, y in only] == [0, 1]
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="empty"):
        datasets.ImageFolder(tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        datasets.ImageFolder(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="one folder for each class"):
        datasets.ImageFolder(tmp_path / "empty")


def test_fake_data():
    a, b = datasets.FakeData(5, (1, 4, 6), 3), datasets.FakeData(5, (1, 4, 6), 3)
    for i in (4, 0, 2):
        assert a[i][0].shape == (4, 6, 1)
        assert a[i][1] == b[i][1]
        np.testing.assert_array_equal(a[i][0], b[i][0])
    assert (a[0][0] != a[1][0]).any()
    assert len(list(a)) == 5
    assert {y for _, y in datasets.FakeData(50, (1, 1, 1), 3)} == {0, 1, 2}
    with pytest.raises(IndexError, match=r"\[-5, 4\]"):
        a[5]


def test_digits():
    sklearn = pytest.importorskip("sklearn.datasets")
    train, test = datasets.Digits(), datasets.Digits(train=False)
    assert len(train) + len(test) == 1797
    assert train.data.dtype == np.uint8
    assert train.data.max() == 255
    source = sklearn.load_digits()
    rows = {
        (*x.ravel().tolist(), y) for x, y in zip(np.rint(source.images * 255 / 16), source.target)
    }
    for data in (train, test):
        assert all((*x.ravel().tolist(), y) in rows for x, y in data)
    share = np.bincount(test.targets) / np.bincount(source.target)
    np.testing.assert_allclose(share, 0.2, atol=0.005)
    seen = {x.tobytes() for x, _ in train}
    assert sum(x.tobytes() in seen for x, _ in test) == 0
    np.testing.assert_array_equal(test.data, datasets.Digits(train=False).data)
    assert (datasets.Digits(train=False, seed=1).targets != test.targets) or (
        datasets.Digits(train=False, seed=1).data != test.data
    ).any()


# ---- transforms ---------------------------------------------------------------------------------


def test_to_tensor():
    a = picture()
    expected = a.transpose(2, 0, 1).astype(np.float32) / 255
    for image, _ in kinds(a):
        if not isinstance(image, trident.Tensor):
            np.testing.assert_array_equal(transforms.ToTensor()(image).numpy(), expected)
    gray = transforms.ToTensor()(a[:, :, 0])
    np.testing.assert_array_equal(gray.numpy(), expected[:1])
    floats = transforms.ToTensor()(expected.transpose(1, 2, 0))
    np.testing.assert_array_equal(floats.numpy(), expected)
    np.testing.assert_array_equal(transforms.PILToTensor()(a).numpy(), a.transpose(2, 0, 1))
    t = trident.zeros(3, 2, 2)
    assert transforms.ToTensor()(t) is t
    with pytest.raises(TypeError, match="numpy array, a PIL image or a Tensor; got list"):
        transforms.ToTensor()([1])


def test_to_pil_image():
    pytest.importorskip("PIL.Image")
    a = picture()
    tensor = transforms.ToTensor()(a)
    for image in (a, tensor, a[:, :, :1], tensor[:1]):
        back = np.asarray(transforms.ToPILImage()(image))
        np.testing.assert_array_equal(back, a if back.ndim == 3 else a[:, :, 0])
    assert transforms.ToPILImage("L")(a).mode == "L"


def test_palette_and_bit_images_are_decoded():
    image = pytest.importorskip("PIL.Image")
    a = np.array([[0, 255], [255, 0]], np.uint8)
    for picture_ in (
        image.fromarray(a).convert("1"),
        image.fromarray(np.stack([a] * 3, -1)).quantize(2),
    ):
        t = transforms.ToTensor()(picture_)
        np.testing.assert_array_equal(t.numpy()[0], a / 255)


def test_normalize():
    x = picture(dtype=np.float32)
    mean, std = (0.1, 0.2, 0.3), (0.5, 1.0, 2.0)
    expected = (x - np.float32(mean)) / np.float32(std)
    assert_on_all_kinds(transforms.Normalize(mean, std), x, expected, 1e-7)
    batch = trident.from_numpy(rng.random((2, 3, 4, 5)))
    got = F.normalize(batch, mean, std).numpy()
    np.testing.assert_allclose(
        got,
        (batch.numpy() - np.reshape(mean, (3, 1, 1))) / np.reshape(std, (3, 1, 1)),
        rtol=1e-6,
        atol=1e-6,
    )
    t = trident.ones(1, 2, 2)
    assert transforms.Normalize(0.5, 0.5, inplace=True)(t) is t
    assert t.tolist() == [[[1, 1], [1, 1]]]
    for args, text in [((mean[:2], std), "2 and 3"), ((mean, (1, 0, 1)), "std must not be 0")]:
        with pytest.raises(ValueError, match=text):
            F.normalize(x, *args)
    with pytest.raises(TypeError, match="ToTensor"):
        F.normalize(picture(), mean, std)


def test_dtypes():
    a = picture()
    floats = transforms.ConvertImageDtype(trident.float32)(a)
    np.testing.assert_allclose(floats, a / np.float32(255), rtol=1e-6)
    np.testing.assert_array_equal(F.convert_image_dtype(floats, trident.uint8), a)
    t = transforms.ToDtype(trident.float64)(trident.from_numpy(a))
    np.testing.assert_array_equal(t.numpy(), a.astype(np.float64))
    scaled = transforms.ToDtype(trident.float32, scale=True)(a)
    np.testing.assert_array_equal(scaled, floats)


def test_crops_flips_and_pads():
    a = picture()
    padded = np.zeros((11, 13, 3), np.uint8)
    padded[2:9, 2:11] = a
    for fn, expected in [
        (lambda x: F.crop(x, 1, 2, 3, 4), a[1:4, 2:6]),
        (lambda x: F.crop(x, -2, -2, 11, 13), padded),
        (lambda x: F.crop(x, 20, 20, 2, 2), np.zeros((2, 2, 3), np.uint8)),
        (transforms.CenterCrop(5), a[1:6, 2:7]),
        (transforms.CenterCrop((11, 13)), padded),
        (transforms.Pad(2), padded),
        (
            transforms.Pad([1, 0, 2, 3], fill=7),
            np.pad(a, [(0, 3), (1, 2), (0, 0)], constant_values=7),
        ),
        (
            transforms.Pad((1, 2), padding_mode="reflect"),
            np.pad(a, [(2, 2), (1, 1), (0, 0)], "reflect"),
        ),
        (transforms.RandomHorizontalFlip(1), a[:, ::-1]),
        (transforms.RandomVerticalFlip(1), a[::-1]),
        (transforms.RandomHorizontalFlip(0), a),
    ]:
        assert_on_all_kinds(fn, a, expected)
    assert F.pad(a, 1, fill=(1, 2, 3))[0, 0].tolist() == [1, 2, 3]
    gray = a[:, :, 0]
    np.testing.assert_array_equal(F.pad(gray, 1)[1:-1, 1:-1], gray)
    with pytest.raises(ValueError, match="padding_mode"):
        F.pad(a, 1, padding_mode="wrap")
    with pytest.raises(ValueError, match="1, 2 or 4"):
        F.pad(a, (1, 2, 3))


def test_random_crop():
    a = np.arange(30, dtype=np.uint8).reshape(5, 6, 1)
    crop = transforms.RandomCrop(3)
    seen = set()
    for i in range(200):
        with item_stream(0, 0, i):
            part = crop(a)
        top, left = divmod(int(part[0, 0, 0]), 6)
        np.testing.assert_array_equal(part, a[top : top + 3, left : left + 3])
        seen.add((top, left))
    assert len(seen) == 12
    assert transforms.RandomCrop(5, padding=2)(a).shape == (5, 5, 1)
    assert transforms.RandomCrop((8, 4), pad_if_needed=True)(a).shape == (8, 4, 1)
    with pytest.raises(ValueError, match=r"at least \(9, 9\); got \(5, 6\).*pad_if_needed"):
        transforms.RandomCrop(9)(a)


@pytest.mark.parametrize("mode", ["nearest", "bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(3, 4), (14, 20), (7, 4), (5, 9), (1, 1)])
def test_resize_agrees_with_pillow(mode, size):
    image = pytest.importorskip("PIL.Image")
    a = picture()
    how = getattr(image.Resampling, mode.upper())
    floats = a.astype(np.float32)
    planes = [image.fromarray(floats[:, :, c]).resize(size[::-1], how) for c in range(3)]
    expected = np.stack([np.asarray(p) for p in planes], -1)
    np.testing.assert_allclose(F.resize(floats, size, mode), expected, atol=1e-3)
    rounded = np.clip(np.rint(expected), 0, 255).astype(np.uint8)
    for picture_, back in [
        (a, np.asarray),
        (trident.from_numpy(a.transpose(2, 0, 1).copy()), None),
    ]:
        got = F.resize(picture_, size, mode)
        got = got if back else got.numpy().transpose(1, 2, 0)
        np.testing.assert_allclose(got.astype(int), rounded.astype(int), atol=1)
    pil = F.resize(image.fromarray(a), size, mode)
    np.testing.assert_array_equal(
        np.asarray(pil), np.asarray(image.fromarray(a).resize(size[::-1], how))
    )


def test_resize_sizes():
    a = picture(6, 12)
    for size, more, expected in [
        (3, {}, (3, 6)),
        ([3], {}, (3, 6)),
        (4, {"max_size": 6}, (3, 6)),
        ((2, 5), {}, (2, 5)),
    ]:
        assert transforms.Resize(size, **more)(a).shape[:2] == expected
        assert transforms.Resize(size, **more)(a.transpose(1, 0, 2)).shape[:2] in (
            expected[::-1],
            expected,
        )
    assert transforms.Resize(6)(a) is a
    np.testing.assert_array_equal(F.resize(a[:, :, 0], (3, 3)), F.resize(a, (3, 3))[:, :, 0])
    for bad in (
        lambda: F.resize(a, 4, "area"),
        lambda: F.resize(a, (0, 1)),
        lambda: F.resize(a, 6, max_size=5),
    ):
        with pytest.raises(ValueError, match="resize"):
            bad()


def test_resize_without_antialias_is_plain_bilinear():
    a = rng.random((8, 6))
    got = F.resize(a, (4, 3), antialias=False)
    expected = (a[::2] + a[1::2])[:, ::2] / 4 + (a[::2] + a[1::2])[:, 1::2] / 4
    np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_rotate():
    a = picture(6, 6)
    for angle, expected in [
        (90, np.rot90(a)),
        (180, a[::-1, ::-1]),
        (-90, np.rot90(a, -1)),
        (360, a),
    ]:
        for mode in ("nearest", "bilinear"):
            assert_on_all_kinds(lambda x, d=angle, m=mode: F.rotate(x, d, m), a, expected)
    wide = picture(4, 6)
    np.testing.assert_array_equal(F.rotate(wide, 90, expand=True), np.rot90(wide))
    assert F.rotate(wide, 45, expand=True).shape == (8, 8, 3)
    corner = F.rotate(wide, 45, expand=True, fill=(9, 8, 7))
    assert corner[0, 0].tolist() == [9, 8, 7]
    np.testing.assert_array_equal(F.rotate(wide, 180, center=(0, 0)), np.zeros_like(wide))


@pytest.mark.parametrize("angle", [10, 33.3, 121, -75])
def test_rotate_agrees_with_pillow(angle):
    image = pytest.importorskip("PIL.Image")
    a = picture(11, 13)
    for mode, atol in (("nearest", 0), ("bilinear", 2)):
        expected = np.asarray(
            image.fromarray(a).rotate(angle, getattr(image.Resampling, mode.upper()))
        )
        got = F.rotate(a, angle, mode)
        inner = (slice(3, -3),) * 2  # Pillow treats the border in its own way
        np.testing.assert_allclose(got[inner].astype(int), expected[inner].astype(int), atol=atol)


def test_colours():
    a = picture()
    x = a.astype(float)
    gray = x @ [0.299, 0.587, 0.114]
    assert_on_all_kinds(
        lambda i: F.adjust_brightness(i, 1.5),
        a,
        np.clip(np.rint(x * 1.5), 0, 255).astype(np.uint8),
        1,
    )
    contrast = np.clip(x * 0.5 + gray.mean() * 0.5, 0, 255)
    assert_on_all_kinds(
        lambda i: F.adjust_contrast(i, 0.5), a, np.rint(contrast).astype(np.uint8), 1
    )
    saturation = np.clip(x * 2 - gray[..., None], 0, 255)
    assert_on_all_kinds(
        lambda i: F.adjust_saturation(i, 2), a, np.rint(saturation).astype(np.uint8), 1
    )
    for fn in (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation):
        np.testing.assert_array_equal(fn(a, 1), a)
        with pytest.raises(ValueError, match="factor"):
            fn(a, -1)
    np.testing.assert_array_equal(transforms.Grayscale()(a)[..., 0], np.rint(gray))
    np.testing.assert_array_equal(
        transforms.RandomGrayscale(1)(a), np.repeat(np.rint(gray)[..., None], 3, -1)
    )
    batch = trident.from_numpy(rng.random((2, 3, 4, 5)))
    one_by_one = np.stack([F.adjust_contrast(b, 0.3).numpy() for b in batch])
    np.testing.assert_allclose(F.adjust_contrast(batch, 0.3).numpy(), one_by_one, rtol=1e-12)


def test_hue_against_colorsys():
    import colorsys

    a = picture(dtype=np.float64)
    a[0, 0] = 0.4  # gray has no hue
    for factor in (-0.5, -0.2, 0.1, 0.4):
        got = F.adjust_hue(a, factor)
        for y in range(a.shape[0]):
            for x in range(a.shape[1]):
                h, s, v = colorsys.rgb_to_hsv(*a[y, x])
                np.testing.assert_allclose(
                    got[y, x], colorsys.hsv_to_rgb((h + factor) % 1, s, v), atol=1e-6
                )
    with pytest.raises(ValueError, match="factor"):
        F.adjust_hue(a, 0.6)


def test_color_jitter():
    a = picture()
    jitter = transforms.ColorJitter(0.4, (0.5, 0.6), 0.2, 0.1)
    assert jitter.brightness == (0.6, 1.4)
    assert jitter.hue == (-0.1, 0.1)
    with item_stream(0, 0, 0):
        one = jitter(a)
    with item_stream(0, 0, 0):
        np.testing.assert_array_equal(jitter(a), one)
    with item_stream(0, 0, 1):
        assert (jitter(a) != one).any()
    np.testing.assert_array_equal(transforms.ColorJitter()(a), a)
    for bad in ({"brightness": -1}, {"hue": 0.7}, {"contrast": (2, 1)}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            transforms.ColorJitter(**bad)


def test_gaussian_blur():
    a = rng.random((9, 10))
    got = F.gaussian_blur(a, (3, 5), (0.8, 1.2))
    wx = np.exp(-0.5 * (np.arange(-1, 2) / 0.8) ** 2)
    wy = np.exp(-0.5 * (np.arange(-2, 3) / 1.2) ** 2)
    kernel = np.outer(wy / wy.sum(), wx / wx.sum())
    padded = np.pad(a, ((2, 2), (1, 1)), "reflect")
    expected = [
        [(padded[y : y + 5, x : x + 3] * kernel).sum() for x in range(10)] for y in range(9)
    ]
    np.testing.assert_allclose(got, expected, rtol=1e-12)
    assert transforms.GaussianBlur(3)(picture()).dtype == np.uint8
    with pytest.raises(ValueError, match="odd"):
        F.gaussian_blur(a, 4)


def test_random_resized_crop():
    t = transforms.RandomResizedCrop((4, 5), scale=(0.2, 0.8))
    for i in range(50):
        with item_stream(0, 0, i):
            top, left, h, w = t.part(40, 60)
        assert 0 <= top <= 40 - h
        assert 0 <= left <= 60 - w
        assert 0.15 < h * w / 2400 < 0.85
        assert 0.7 < w / h < 1.4
    assert t(picture()).shape == (4, 5, 3)
    _, _, h, w = transforms.RandomResizedCrop(4).part(3, 300)
    assert (h, w) == (3, 4)
    a = picture()
    np.testing.assert_array_equal(F.resized_crop(a, 1, 2, 4, 5, 3), F.resize(a[1:5, 2:7], (3, 3)))


def test_random_rotation():
    a = picture()
    same = transforms.RandomRotation((90, 90))(a[:7, :7])
    np.testing.assert_array_equal(same, np.rot90(a[:7, :7]))
    with pytest.raises(ValueError, match="degrees"):
        transforms.RandomRotation(-1)


def test_random_erasing():
    x = trident.ones(3, 20, 20)
    areas = []
    for i in range(40):
        with item_stream(0, 0, i):
            out = transforms.RandomErasing(p=1)(x).numpy()
        gone = (out == 0).all(0)
        ys, xs = np.nonzero(gone)
        assert gone[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1].all(), "one rectangle"
        areas.append(gone.mean())
    assert min(areas) > 0.01
    assert max(areas) < 0.37
    assert (x.numpy() == 1).all()
    noise = transforms.RandomErasing(p=1, value="random")(x).numpy()
    changed = (noise != 1).any(0)
    assert len(np.unique(noise[:, changed])) > changed.sum()
    coloured = F.erase(trident.zeros(3, 4, 4), 1, 1, 2, 2, [1.0, 2.0, 3.0]).numpy()
    assert coloured[:, 1, 1].tolist() == [1, 2, 3]
    patch = trident.from_numpy(rng.random((3, 2, 3)).astype(np.float32))
    put = F.erase(trident.zeros(3, 4, 4), 1, 0, 2, 3, patch, inplace=True)
    np.testing.assert_array_equal(put.numpy()[:, 1:3, :3], patch.numpy())
    assert transforms.RandomErasing(p=0)(x) is x


def test_combinations():
    a = picture()
    plus = transforms.Lambda(lambda x: x + 1)
    np.testing.assert_array_equal(transforms.Compose([plus, plus])(a), a + 2)
    np.testing.assert_array_equal(transforms.RandomApply([plus, plus], p=1)(a), a + 2)
    assert transforms.RandomApply([plus], p=0)(a) is a
    np.testing.assert_array_equal(transforms.RandomChoice([plus, None], p=[1, 0])(a), a + 1)
    assert repr(transforms.RandomCrop(3, padding=1)).startswith("RandomCrop(size=(3, 3), padding=1")
    assert "Normalize(mean=0.5" in repr(transforms.Compose([transforms.Normalize(0.5, 0.5)]))
    with pytest.raises(TypeError, match="callable"):
        transforms.Lambda(3)
    with pytest.raises(ValueError, match="p must lie"):
        transforms.RandomHorizontalFlip(2)


@pytest.mark.parametrize("num_workers", [0, 1, 2, 4])
def test_augmentation_is_equal_for_any_number_of_workers(num_workers):
    augment = transforms.Compose(
        [
            transforms.RandomCrop(12, padding=2),
            transforms.RandomHorizontalFlip(),
            transforms.ColorJitter(0.4, 0.4, 0.4, 0.1),
            transforms.RandomRotation(15, "bilinear"),
            transforms.RandomResizedCrop(8),
            transforms.ToTensor(),
            transforms.Normalize((0.5,) * 3, (0.25,) * 3),
            transforms.RandomErasing(value="random"),
        ]
    )
    data = datasets.FakeData(22, (3, 12, 12), transform=augment)
    plain = DataLoader(data, 4, shuffle=True, seed=9)
    ahead = DataLoader(data, 4, shuffle=True, seed=9, num_workers=num_workers)
    epochs = []
    for _ in range(2):
        batches = list(zip(plain, ahead, strict=True))
        for (x, y), (u, v) in batches:
            np.testing.assert_array_equal(x.numpy(), u.numpy())
            assert y.tolist() == v.tolist()
        epochs.append(np.concatenate([x.numpy() for (x, _), _ in batches]))
    assert (epochs[0] != epochs[1]).any()


# ---- grids --------------------------------------------------------------------------------------


def test_make_grid():
    x = rng.random((5, 3, 4, 6)).astype(np.float32)
    grid = make_grid(trident.from_numpy(x), nrow=3, padding=2, pad_value=0.5).numpy()
    assert grid.shape == (3, 2 * 6 + 2, 3 * 8 + 2)
    expected = np.full_like(grid, 0.5)
    for i in range(5):
        top, left = 2 + 6 * (i // 3), 2 + 8 * (i % 3)
        expected[:, top : top + 4, left : left + 6] = x[i]
    np.testing.assert_array_equal(grid, expected)
    np.testing.assert_array_equal(
        make_grid([trident.from_numpy(i) for i in x], nrow=3, pad_value=0.5).numpy(), expected
    )
    np.testing.assert_array_equal(make_grid(x[0]).numpy(), x[0])
    np.testing.assert_array_equal(make_grid(x[0, 0]).numpy(), np.stack([x[0, 0]] * 3))
    gray = make_grid(x[:2, :1], padding=0).numpy()
    np.testing.assert_array_equal(gray, np.stack([np.concatenate([x[0, 0], x[1, 0]], 1)] * 3))
    with pytest.raises(ValueError, match="1 or 3 channels"):
        make_grid(x.transpose(0, 2, 1, 3))


def test_make_grid_normalize():
    x = rng.normal(size=(2, 3, 4, 4)).astype(np.float32)
    low, high = x.min(), x.max()
    whole = make_grid(x, padding=0, normalize=True).numpy()
    np.testing.assert_allclose(whole[:, :, :4], (x[0] - low) / (high - low), rtol=1e-6, atol=1e-7)
    each = make_grid(x, padding=0, normalize=True, scale_each=True).numpy()
    np.testing.assert_allclose(
        each[:, :, 4:], (x[1] - x[1].min()) / (x[1].max() - x[1].min()), rtol=1e-6, atol=1e-7
    )
    ranged = make_grid(x, padding=0, normalize=True, value_range=(-1, 1)).numpy()
    np.testing.assert_allclose(
        ranged[:, :, :4], (np.clip(x[0], -1, 1) + 1) / 2, rtol=1e-6, atol=1e-7
    )


def test_save_image(tmp_path):
    image = pytest.importorskip("PIL.Image")
    x = rng.random((2, 3, 4, 4)).astype(np.float32)
    save_image(trident.from_numpy(x), tmp_path / "grid.png", nrow=2, padding=1)
    got = np.asarray(image.open(tmp_path / "grid.png"))
    np.testing.assert_array_equal(got[1:5, 1:5], np.rint(x[0].transpose(1, 2, 0) * 255))
    save_image(np.full((3, 2, 2), 7, np.uint8), tmp_path / "plain.png")
    assert (np.asarray(image.open(tmp_path / "plain.png")) == 7).all()
