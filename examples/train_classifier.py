"""Train an image classifier: load and normalise, define a CNN, loss and optimizer, train, test.

    python examples/train_classifier.py                                  handwritten digits
    python examples/train_classifier.py --data cifar10 --root ~/data     CIFAR-10's own files
    python examples/train_classifier.py --data folder --root ~/pictures  a folder for each class

The default data are scikit-learn's 1,797 real handwritten digits, 8 x 8 pixels: a fifth of each
class is kept for the test and never trained on. The program prints a line an epoch and the test
accuracy of each class, and leaves in ``--out``:

    curves.png        loss and accuracy of both parts by epoch
    predictions.png   test images with what the net says, the mistakes first
    checkpoint.safetensors   model, optimizer, schedule, epoch and random state, after every epoch

A run that was stopped goes on where it was with ``--resume checkpoint.safetensors``, and ends
with the same numbers as one that was never stopped: the order and the augmentation of the images
are functions of (seed, epoch), and the rest of the state is in the checkpoint. (Exactly the same:
with the same library versions and number of BLAS threads.)

``--device cuda`` runs the same program on trident's Triton kernels; without a GPU, under
TRITON_INTERPRET=1, they are interpreted, which is for looking, not for training: add ``--quick``.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import numpy as np
from tqdm import tqdm

import trident
import trident.nn as nn
from trident import optim
from trident.utils.data import DataLoader, Subset
from trident.vision import datasets, transforms

SETTINGS = ("data", "root", "epochs", "batch_size", "lr", "seed", "width", "size", "quick")
"""What a resumed run takes from its checkpoint."""


# ---- data ---------------------------------------------------------------------------------------


def load_data(args):
    """(training set with augmentation, test set, class names, channels, side in pixels)."""
    if args.data == "folder":
        return load_folder(args)
    raw = {
        "digits": lambda train: datasets.Digits(train=train, seed=args.seed),
        "mnist": lambda train: datasets.MNIST(args.root, train=train),
        "cifar10": lambda train: datasets.CIFAR10(args.root, train=train),
    }[args.data]
    train, test = raw(True), raw(False)
    side = train.data.shape[1]
    channels = train.data.shape[3] if train.data.ndim == 4 else 1
    # mean and deviation of the training images: the test images are shifted by the same amounts
    axes = (0, 1, 2)
    mean = np.atleast_1d(train.data.mean(axes) / 255).tolist()
    std = np.atleast_1d(train.data.std(axes) / 255).tolist()
    normalise = [transforms.ToTensor(), transforms.Normalize(mean, std)]
    augment = [transforms.RandomCrop(side, padding=max(1, side // 8))]
    if args.data == "cifar10":
        augment.append(transforms.RandomHorizontalFlip())  # a mirrored digit is another sign
    train.transform = transforms.Compose(augment + normalise)
    test.transform = transforms.Compose(normalise)
    return train, test, train.classes, channels, side


def load_folder(args):
    """``root/train`` and ``root/test`` with one folder a class, or ``root`` split 4 to 1."""
    side = args.size
    normalise = [transforms.ToTensor(), transforms.Normalize([0.5] * 3, [0.5] * 3)]
    augmented = transforms.Compose(
        [transforms.RandomResizedCrop(side, scale=(0.5, 1.0)), transforms.RandomHorizontalFlip()]
        + normalise
    )
    plain = transforms.Compose([transforms.Resize(side), transforms.CenterCrop(side)] + normalise)
    root = Path(args.root)
    if (root / "train").is_dir() and (root / "test").is_dir():
        train = datasets.ImageFolder(root / "train", transform=augmented)
        test = datasets.ImageFolder(root / "test", transform=plain)
        if train.classes != test.classes:
            raise SystemExit(f"{root}: train and test must hold the same classes")
        return train, test, train.classes, 3, side
    train = datasets.ImageFolder(root, transform=augmented)
    test = datasets.ImageFolder(root, transform=plain)
    rng = np.random.default_rng(args.seed)
    order = rng.permutation(len(train))
    labels = np.array(train.targets)[order]
    held = np.concatenate([order[labels == c][::5] for c in range(len(train.classes))])
    kept = np.setdiff1d(order, held)
    return Subset(train, kept.tolist()), Subset(test, held.tolist()), train.classes, 3, side


# ---- model --------------------------------------------------------------------------------------


def make_model(channels, side, n_classes, width):
    """Stages of two 3x3 convolutions and a pooling that halves the side, until it is about 4."""
    stages = max(2, round(math.log2(side / 4)))
    layers = []
    for i in range(stages):
        out = width * 2 ** min(i, 2)
        for _ in range(2):
            layers += [
                nn.Conv2d(channels, out, 3, padding=1, bias=False),  # BatchNorm has the bias
                nn.BatchNorm2d(out),
                nn.ReLU(),
            ]
            channels = out
        layers.append(nn.MaxPool2d(2))
        side //= 2
    return nn.Sequential(
        *layers, nn.Flatten(), nn.Dropout(0.3), nn.Linear(channels * side * side, n_classes)
    )


# ---- training and testing -----------------------------------------------------------------------


def train_epoch(model, loader, loss_fn, optimizer, scheduler, device, title):
    """One pass over the training set. Returns the mean loss and the share that was right."""
    model.train()
    total, right, seen = 0.0, 0, 0
    # disable=None: no bar where the output is not a terminal
    with tqdm(loader, desc=title, unit="batch", leave=False, disable=None) as bar:
        for images, labels in bar:
            images, labels = images.to(device), labels.to(device)
            scores = model(images)
            loss = loss_fn(scores, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
            seen += len(labels)
            total += loss.item() * len(labels)
            right += (scores.argmax(1) == labels).sum().item()
            bar.set_postfix(loss=f"{total / seen:.3f}", accuracy=f"{right / seen:.1%}")
    return total / seen, right / seen


@trident.no_grad()
def test(model, loader, loss_fn, device):
    """Mean loss, labels and predictions over a data set, with dropout and batch statistics off."""
    model.eval()
    total, truth, said = 0.0, [], []
    for images, labels in loader:
        scores = model(images.to(device))
        total += loss_fn(scores, labels.to(device)).item() * len(labels)
        truth.append(labels.numpy())
        said.append(scores.argmax(1).cpu().numpy())
    truth, said = np.concatenate(truth), np.concatenate(said)
    return total / len(truth), truth, said


# ---- checkpoints --------------------------------------------------------------------------------


def save_checkpoint(path, args, epoch, model, optimizer, scheduler, history):
    """Everything the next epoch depends on. The file appears whole or not at all."""
    settings = {name: getattr(args, name) for name in SETTINGS}
    settings["root"] = str(args.root) if args.root else None
    trident.save(
        {
            "settings": settings,
            "epoch": epoch,
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "scheduler": scheduler.state_dict(),
            "generator": trident.default_generator.get_state(),
            "history": history,
        },
        path,
    )


# ---- reports ------------------------------------------------------------------------------------


def print_per_class(truth, said, classes):
    print("\ntest accuracy by class")
    for i, name in enumerate(classes):
        mine = truth == i
        if mine.any():
            right = int((said[mine] == i).sum())
            print(f"  {name:<12} {right:>5} of {mine.sum():<5} {right / mine.sum():7.1%}")


def save_curves(history, path):
    """Loss and accuracy of both parts by epoch, side by side."""
    plt = pyplot()
    figure, panels = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    epochs = range(1, len(history["train_loss"]) + 1)
    marker = "o" if len(epochs) < 5 else None
    for axes, what in zip(panels, ("loss", "accuracy")):
        for part, colour in (("train", "#8a8f98"), ("test", "#1f5fbf")):
            values = history[f"{part}_{what}"]
            axes.plot(epochs, values, color=colour, linewidth=1.6, marker=marker, label=part)
        axes.set(xlabel="epoch", title=what)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="0.92")
        axes.set_axisbelow(True)
    panels[0].set_ylim(bottom=0)
    panels[1].yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    panels[1].legend(frameon=False, loc="lower right")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def save_predictions(dataset, truth, said, classes, path, columns=8, rows=5):
    """Test images with the predicted class, mistakes first and in red with the right class."""
    plt = pyplot()
    wrong, right = np.flatnonzero(truth != said), np.flatnonzero(truth == said)
    n_wrong = min(len(wrong), max(columns * rows // 2, columns * rows - len(right)))
    n_right = min(len(right), columns * rows - n_wrong)
    chosen = np.concatenate([evenly(wrong, n_wrong), evenly(right, n_right)])
    short = [name.split(" - ")[0] for name in classes]
    gap = " " if max(map(len, short)) < 4 else "\n"  # long names take two lines
    figure, panels = plt.subplots(
        rows,
        columns,
        figsize=(1.15 * columns, (1.42 if gap == " " else 1.6) * rows + 0.4),
        layout="constrained",
    )
    for axes in panels.flat:
        axes.axis("off")
    for axes, i in zip(panels.flat, chosen):
        image = dataset[int(i)][0].numpy().transpose(1, 2, 0)
        image = (image - image.min()) / max(float(np.ptp(image)), 1e-6)
        axes.imshow(image, cmap="gray_r" if image.shape[2] == 1 else None, interpolation="nearest")
        if said[i] == truth[i]:
            axes.set_title(short[said[i]], fontsize=9, color="0.25", pad=3)
            continue
        text = f"{short[said[i]]}{gap}(is {short[truth[i]]})"
        axes.set_title(text, fontsize=9, color="#c62828", fontweight="bold", pad=3)
        axes.axis("on")
        axes.set(xticks=[], yticks=[])
        for spine in axes.spines.values():
            spine.set(color="#c62828", linewidth=2)
    figure.suptitle(
        f"What the net says of test images: {len(wrong)} of {len(truth)} wrong (red)", fontsize=11
    )
    figure.savefig(path, dpi=120)
    plt.close(figure)


def evenly(items, n):
    """``n`` of the items, spread over all of them."""
    return items[np.linspace(0, len(items) - 1, n).astype(int)] if n else items[:0]


def pyplot():
    """matplotlib for files, with no window."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


# ---- the program --------------------------------------------------------------------------------


def parse_arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", choices=("digits", "mnist", "cifar10", "folder"), default="digits"
    )
    parser.add_argument("--root", type=Path, help="folder with the files of --data")
    parser.add_argument("--size", type=int, default=32, help="side of --data folder's images")
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=0.005, help="the highest rate of the schedule")
    parser.add_argument("--width", type=int, default=32, help="channels of the first stage")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--workers", type=int, default=0, help="threads that prepare images")
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent / "out")
    parser.add_argument("--resume", type=Path, help="go on from this checkpoint, with its settings")
    parser.add_argument("--stop-after", type=int, help="end this run after so many epochs in all")
    parser.add_argument("--quick", action="store_true", help="a small net and few images, for CI")
    args = parser.parse_args()
    if args.data != "digits" and args.root is None and args.resume is None:
        parser.error(f"--data {args.data} needs --root, the folder with its files")
    return args


def make_quick(args, train, test):
    """A net and data sets so small that a run takes seconds, on the interpreter too."""
    n_train, n_test = (32, 16) if args.device == "cuda" else (640, 100)
    args.epochs, args.width = min(args.epochs, 3), 8
    args.batch_size = 16 if args.device == "cuda" else 32
    if args.device == "cuda":
        args.epochs = 1
    return tuple(
        Subset(part, np.linspace(0, len(part) - 1, min(n, len(part))).astype(int).tolist())
        for part, n in ((train, n_train), (test, n_test))
    )


def main():
    args = parse_arguments()
    checkpoint = None
    if args.resume:
        checkpoint = trident.load(args.resume)
        for name, value in checkpoint["settings"].items():
            setattr(args, name, value)
    train_set, test_set, classes, channels, side = load_data(args)
    if args.quick:
        train_set, test_set = make_quick(args, train_set, test_set)
    print(f"{args.data}: {len(train_set)} images to train on, {len(test_set)} to test on", end="")
    print(f", {channels} x {side} x {side}, {len(classes)} classes")

    # a last batch of one image has no variance for BatchNorm, so it is left out
    train_loader = DataLoader(
        train_set, args.batch_size, shuffle=True, num_workers=args.workers, seed=args.seed,
        drop_last=len(train_set) % args.batch_size == 1,
    )  # fmt: skip
    test_loader = DataLoader(test_set, max(args.batch_size, 64), num_workers=args.workers)

    trident.manual_seed(args.seed)
    model = make_model(channels, side, len(classes), args.width).to(args.device)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters on {args.device}")
    # a target of 0.91 instead of 1: the loss cannot fall below 0.5, and sure mistakes cost less
    loss_fn = nn.CrossEntropyLoss(label_smoothing=0.1)
    optimizer = optim.AdamW(model.parameters(), lr=args.lr, weight_decay=0.01)
    scheduler = optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=args.lr, epochs=args.epochs, steps_per_epoch=len(train_loader)
    )
    history = {"train_loss": [], "train_accuracy": [], "test_loss": [], "test_accuracy": []}
    first = 0
    if checkpoint is not None:
        model.load_state_dict(checkpoint["model"])
        optimizer.load_state_dict(checkpoint["optimizer"])
        scheduler.load_state_dict(checkpoint["scheduler"])
        trident.default_generator.set_state(checkpoint["generator"])
        history, first = checkpoint["history"], checkpoint["epoch"]
        train_loader.set_epoch(first)
        print(f"resumed after epoch {first} of {args.epochs}")

    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "checkpoint.safetensors"
    last = args.epochs if args.stop_after is None else min(args.epochs, args.stop_after)
    truth = said = None
    started = time.perf_counter()
    for epoch in range(first, last):
        title = f"epoch {epoch + 1:>2} of {args.epochs}"
        train_loss, train_accuracy = train_epoch(
            model, train_loader, loss_fn, optimizer, scheduler, args.device, title
        )
        test_loss, truth, said = test(model, test_loader, loss_fn, args.device)
        accuracy = float((truth == said).mean())
        for name, value in zip(history, (train_loss, train_accuracy, test_loss, accuracy)):
            history[name].append(value)
        save_checkpoint(path, args, epoch + 1, model, optimizer, scheduler, history)
        print(
            f"{title}   train loss {train_loss:.4f} accuracy {train_accuracy:6.2%}   "
            f"test loss {test_loss:.4f} accuracy {accuracy:6.2%}"
        )
    seconds = time.perf_counter() - started

    if truth is None:  # the checkpoint was complete
        _, truth, said = test(model, test_loader, loss_fn, args.device)
    print_per_class(truth, said, classes)
    accuracy = (truth == said).mean()
    print(f"\ntest accuracy {accuracy:.2%}, trained {seconds:.1f} s")
    save_curves(history, args.out / "curves.png")
    save_predictions(test_set, truth, said, classes, args.out / "predictions.png")
    print(f"pictures and checkpoint are in {args.out}")


if __name__ == "__main__":
    main()
