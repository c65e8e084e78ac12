"""Image data sets: the standard ones read from their standard files, folders of images, made-up
data.

Nothing is downloaded: a missing file raises FileNotFoundError that says where to get it and where
to put it. Samples are ``(image, label)`` with numpy uint8 images (H, W) or (H, W, 3), which every
transform takes; ``ImageFolder`` gives PIL images, since it needs Pillow to decode files at all.
"""

from __future__ import annotations

import gzip
import io
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import IndexBoundsError, wrong
from ..unpickle import NUMPY, FormatError, RestrictedUnpickler
from ..utils.data import Dataset
from .images import pillow

Root = str | os.PathLike[str]


class VisionDataset(Dataset):
    """``(image, label)`` samples from arrays ``data`` (N, H, W[, C]) and a list ``targets``."""

    data: np.ndarray
    targets: list[int]
    classes: list[str]

    def __init__(self, transform: Callable | None, target_transform: Callable | None) -> None:
        self.transform, self.target_transform = transform, target_transform

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        return self._sample(self.data[index], self.targets[index])

    def _sample(self, image: Any, target: Any) -> tuple[Any, Any]:
        if self.transform is not None:
            image = self.transform(image)
        if self.target_transform is not None:
            target = self.target_transform(target)
        return image, target

    @property
    def class_to_idx(self) -> dict[str, int]:
        return {name: i for i, name in enumerate(self.classes)}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} samples)"


def _find(
    dataset: str, root: Root, folders: tuple[str, ...], names: tuple[str, ...], where: str
) -> Path:
    """The first file ``root/folder/name`` that is there; the error names all that would do."""
    for folder in folders:
        for name in names:
            path = Path(root, folder, name)
            if path.is_file():
                return path
    places = " or ".join(str(Path(root, f)) for f in folders)
    raise FileNotFoundError(
        f"{dataset}: {' or '.join(names)} is not in {places}. trident downloads nothing: get "
        f"{where}, "
        "and put it there (root= names the folder)"
    )


class MNIST(VisionDataset):
    """Handwritten digits: 60,000 (``train``) or 10,000 images (28, 28), 10 classes.

    Reads the idx files (``train-images-idx3-ubyte``, gzipped or not) in ``root``,
    ``root/MNIST/raw`` or ``root/raw``. ``download`` is accepted; trident downloads nothing.
    """

    where = (
        "the four *-ubyte.gz files of MNIST, for example from ossci-datasets.s3.amazonaws.com/mnist"
    )
    classes = [
        "0 - zero", "1 - one", "2 - two", "3 - three", "4 - four", "5 - five", "6 - six",
        "7 - seven", "8 - eight", "9 - nine",
    ]  # fmt: skip

    def __init__(
        self,
        root: Root,
        train: bool = True,
        transform: Callable | None = None,
        target_transform: Callable | None = None,
        download: bool = False,
    ) -> None:
        super().__init__(transform, target_transform)
        self.train = train
        prefix = "train" if train else "t10k"
        self.data = self._read(root, f"{prefix}-images-idx3-ubyte", 3)
        labels = self._read(root, f"{prefix}-labels-idx1-ubyte", 1)
        if len(self.data) != len(labels):
            raise FormatError(
                f"{type(self).__name__}: {len(self.data)} images and {len(labels)} labels do "
                "not match"
            )
        self.targets = labels.tolist()

    def _read(self, root: Root, name: str, ndim: int) -> np.ndarray:
        kind = type(self).__name__
        path = _find(kind, root, (f"{kind}/raw", "raw", ""), (name, name + ".gz"), self.where)
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            return read_idx(file, path, ndim)


class FashionMNIST(MNIST):
    """Zalando's articles of clothing, in the shape and files of MNIST."""

    where = "the four *-ubyte.gz files from github.com/zalandoresearch/fashion-mnist"
    classes = [
        "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag",
        "Ankle boot",
    ]  # fmt: skip


def read_idx(file: Any, path: Any, ndim: int) -> np.ndarray:
    """A uint8 array with ``ndim`` axes from an idx file: magic 0x0000_08_NDIM, sizes, bytes."""
    try:
        raw = file.read()
    except (EOFError, OSError) as error:
        raise FormatError(f"{path}: the file is damaged or cut off ({error})") from error
    if raw[:4] != bytes([0, 0, 8, ndim]):
        raise FormatError(
            f"{path}: an idx file of bytes with {ndim} axes must start with 000008{ndim:02x}; got "
            f"{raw[:4].hex()}"
        )
    shape = struct.unpack_from(f">{ndim}I", raw, 4) if len(raw) >= 4 + 4 * ndim else (0,)
    values = np.frombuffer(raw, np.uint8, offset=min(4 + 4 * ndim, len(raw)))
    if len(shape) != ndim or values.size != int(np.prod(shape, dtype=np.int64)):
        raise FormatError(
            f"{path}: the file is cut off: sizes {shape}, but {values.size} bytes follow"
        )
    return values.reshape(shape).copy()


class CIFAR10(VisionDataset):
    """60,000 colour images (32, 32, 3) of 10 classes: 50,000 to train, 10,000 to test.

    Reads the Python version (``root/cifar-10-batches-py``, without running code from its pickles)
    or the binary version (``root/cifar-10-batches-bin``). ``download`` is accepted; trident
    downloads nothing.
    """

    where = "cifar-10-python.tar.gz from www.cs.toronto.edu/~kriz/cifar.html, unpack it"
    folders = ("cifar-10-batches-py", "cifar-10-batches-bin")
    train_files = tuple(f"data_batch_{i}" for i in range(1, 6))
    test_files = ("test_batch",)
    label_key = "labels"
    label_bytes = 1  # before each image of the binary version; the last one is the label
    classes = [
        "airplane",
        "automobile",
        "bird",
        "cat",
        "deer",
        "dog",
        "frog",
        "horse",
        "ship",
        "truck",
    ]

    def __init__(
        self,
        root: Root,
        train: bool = True,
        transform: Callable | None = None,
        target_transform: Callable | None = None,
        download: bool = False,
    ) -> None:
        super().__init__(transform, target_transform)
        self.train = train
        kind = type(self).__name__
        images, labels = [], []
        for name in self.train_files if train else self.test_files:
            path = _find(kind, root, (*self.folders, ""), (name, name + ".bin"), self.where)
            part, values = self._read_binary(path) if path.suffix == ".bin" else self._read(path)
            images.append(part)
            labels.extend(values)
        planes = np.concatenate(images).reshape(-1, 3, 32, 32)
        self.data = np.ascontiguousarray(planes.transpose(0, 2, 3, 1))
        self.targets = labels
        self.classes = self._class_names(path.parent)

    def _read(self, path: Path) -> tuple[np.ndarray, list[int]]:
        entry = read_pickle(path)
        try:
            data, labels = np.asarray(entry["data"]), [int(i) for i in entry[self.label_key]]
        except (KeyError, TypeError, ValueError) as error:
            raise FormatError(
                f"{path}: no CIFAR batch ({type(error).__name__}: {error})"
            ) from error
        if data.dtype != np.uint8 or data.shape != (len(labels), 3072):
            raise FormatError(
                f"{path}: data must be uint8 of shape ({len(labels)}, 3072); got {data.dtype} of "
                f"shape {data.shape}"
            )
        return data, labels

    def _read_binary(self, path: Path) -> tuple[np.ndarray, list[int]]:
        raw = np.fromfile(path, np.uint8)
        record = self.label_bytes + 3072
        if raw.size == 0 or raw.size % record:
            raise FormatError(
                f"{path}: the size must be a multiple of {record} bytes, one image; got {raw.size}"
            )
        records = raw.reshape(-1, record)
        return records[:, self.label_bytes :], records[:, self.label_bytes - 1].tolist()

    def _class_names(self, folder: Path) -> list[str]:
        return self.classes


class CIFAR100(CIFAR10):
    """CIFAR10's images with 100 fine classes; files of ``cifar-100-python`` or
    ``cifar-100-binary``.
    """

    where = "cifar-100-python.tar.gz from www.cs.toronto.edu/~kriz/cifar.html, unpack it"
    folders = ("cifar-100-python", "cifar-100-binary")
    train_files = ("train",)
    test_files = ("test",)
    label_key = "fine_labels"
    label_bytes = 2
    classes = [str(i) for i in range(100)]

    def _class_names(self, folder: Path) -> list[str]:
        """The names in the files beside the data, numbers where they are absent."""
        if (folder / "meta").is_file():
            return list(read_pickle(folder / "meta")["fine_label_names"])
        if (folder / "fine_label_names.txt").is_file():
            return (folder / "fine_label_names.txt").read_text().split()
        return self.classes


def read_pickle(path: Path) -> Any:
    """What a pickle of dicts, lists, strings, numbers and arrays holds; nothing is run."""
    raw = Path(path).read_bytes()
    try:
        return RestrictedUnpickler(io.BytesIO(raw), NUMPY, str(path), encoding="latin1").load()
    except FormatError:
        raise
    except Exception as error:
        raise FormatError(
            f"{path}: the file is damaged ({type(error).__name__}: {error})"
        ) from error


class ImageFolder(VisionDataset):
    """Images in one folder a class, ``root/cat/1.png``: PIL images in RGB and the number of the
    class.

    ``classes`` are the sorted names of the folders, ``samples`` the (path, label) pairs. ``loader``
    reads a path; ``is_valid_file`` decides instead of ``extensions``.
    """

    extensions = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp", ".gif")

    def __init__(
        self,
        root: Root,
        transform: Callable | None = None,
        target_transform: Callable | None = None,
        loader: Callable[[str], Any] | None = None,
        is_valid_file: Callable[[str], bool] | None = None,
    ) -> None:
        super().__init__(transform, target_transform)
        if not os.path.isdir(root):
            raise FileNotFoundError(f"ImageFolder: the folder {os.fspath(root)} is not there")
        self.classes = sorted(e.name for e in os.scandir(root) if e.is_dir())
        if not self.classes:
            raise FileNotFoundError(
                f"ImageFolder: {os.fspath(root)} holds no folders; it needs one folder for each "
                "class"
            )
        self.loader = loader or read_image
        keep = is_valid_file or (lambda path: path.lower().endswith(self.extensions))
        self.samples: list[tuple[str, int]] = []
        for label, name in enumerate(self.classes):
            for folder, below, files in os.walk(os.path.join(root, name), followlinks=True):
                below.sort()
                paths = (os.path.join(folder, f) for f in sorted(files))
                self.samples += [(path, label) for path in paths if keep(path)]
        present = {label for _, label in self.samples}
        empty = [name for label, name in enumerate(self.classes) if label not in present]
        if empty:
            raise FileNotFoundError(
                f"ImageFolder: no images in {os.fspath(root)} for {', '.join(empty)}"
            )
        self.imgs = self.samples
        self.targets = [label for _, label in self.samples]

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        path, target = self.samples[index]
        return self._sample(self.loader(path), target)


def read_image(path: Root) -> Any:
    """The image in a file as a PIL image in RGB."""
    image_module = pillow("Image", "reading image files")
    with open(path, "rb") as file:
        return image_module.open(file).convert("RGB")


class FakeData(VisionDataset):
    """``size`` images of noise with random labels, the same for an index in every run.

    ``image_size`` is (C, H, W); samples are uint8 arrays (H, W, C).

    >>> from trident.vision.datasets import FakeData
    >>> image, label = FakeData(10, (3, 4, 5))[0]
    >>> image.shape
    (4, 5, 3)
    """

    def __init__(
        self,
        size: int = 1000,
        image_size: tuple[int, int, int] = (3, 224, 224),
        num_classes: int = 10,
        transform: Callable | None = None,
        target_transform: Callable | None = None,
        random_offset: int = 0,
    ) -> None:
        super().__init__(transform, target_transform)
        self.size, self.image_size, self.num_classes = size, tuple(image_size), num_classes
        self.random_offset = random_offset
        self.classes = [str(i) for i in range(num_classes)]

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        if not -self.size <= index < self.size:
            raise wrong(
                "FakeData",
                f"index must lie in [{-self.size}, {self.size - 1}]",
                got=index,
                error=IndexBoundsError,
            )
        rng = np.random.Generator(np.random.Philox(self.random_offset + index % self.size))
        c, h, w = self.image_size
        image = rng.integers(0, 256, (h, w, c), dtype=np.uint8)
        return self._sample(image, int(rng.integers(self.num_classes)))


class Digits(VisionDataset):
    """scikit-learn's 1,797 handwritten digits (8, 8), scaled to 0..255; no file is needed.

    A fifth of each class, chosen by ``seed``, is the test part; the rest the training part. Needs
    scikit-learn, which ships the data.
    """

    classes = [str(i) for i in range(10)]

    def __init__(
        self,
        train: bool = True,
        transform: Callable | None = None,
        target_transform: Callable | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(transform, target_transform)
        try:
            from sklearn.datasets import load_digits
        except ImportError as error:
            raise ImportError(
                "Digits needs scikit-learn, which ships the images: pip install scikit-learn"
            ) from error
        source = load_digits()
        labels = source.target.astype(np.int64)
        rng = np.random.RandomState(seed)  # its numbers never change between numpy versions
        chosen = []
        for label in range(10):
            members = rng.permutation(np.flatnonzero(labels == label))
            n_test = round(len(members) / 5)
            chosen.append(members[n_test:] if train else members[:n_test])
        indices = np.sort(np.concatenate(chosen))
        self.train = train
        self.data = np.rint(source.images[indices] * (255 / 16)).astype(np.uint8)
        self.targets = labels[indices].tolist()
