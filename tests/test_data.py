"""Data loading: every batch, compared exactly, for any number and kind of workers."""

from __future__ import annotations

import gc
import multiprocessing
import threading
import time
from collections import namedtuple

import numpy as np
import pytest

import trident
from trident.utils import data as td
from trident.utils.data import DataLoader, SampleError, item_rng


class Noisy(td.Dataset):
    """Item i: noise drawn from the item's stream, and i itself. Later items come back sooner."""

    def __init__(self, n=23, shape=(2, 3), fail=None, delay=0.0):
        self.n, self.shape, self.fail, self.delay = n, shape, fail, delay

    def __len__(self):
        return self.n

    def __getitem__(self, index):
        if self.delay:
            time.sleep(self.delay * (index % 3))
        if index == self.fail:
            raise KeyError("broken file")
        return item_rng().normal(size=self.shape), index


class Stream(td.IterableDataset):
    def __init__(self, n=10, fail=None):
        self.n, self.fail = n, fail

    def __iter__(self):
        for i in range(self.n):
            if i == self.fail:
                raise ValueError("bad record")
            yield np.array([i, item_rng().integers(1000)])


def arrays(batch):
    """A batch with its tensors as numpy arrays."""
    if isinstance(batch, trident.Tensor):
        return batch.numpy()
    if isinstance(batch, dict):
        return {k: arrays(v) for k, v in batch.items()}
    if isinstance(batch, list | tuple):
        return [arrays(b) for b in batch]
    return batch


def epochs(dataset, n_epochs=2, **options):
    loader = DataLoader(dataset, **options)
    return [arrays(batch) for _ in range(n_epochs) for batch in loader]


def assert_same(a, b):
    assert len(a) == len(b)
    for x, y in zip(a, b):
        for u, v in zip(x, y):
            assert u.dtype == v.dtype
            np.testing.assert_array_equal(u, v)


def workers_alive():
    return [t.name for t in threading.enumerate() if t.name.startswith("trident-loader")]


@pytest.mark.parametrize("num_workers", [1, 2, 4])
@pytest.mark.parametrize("persistent", [False, True])
def test_threads_give_every_batch_of_the_plain_loop(num_workers, persistent):
    options = {"batch_size": 4, "shuffle": True, "seed": 5}
    data = Noisy(delay=0.001)
    plain = epochs(data, **options)
    ahead = epochs(data, **options, num_workers=num_workers, persistent_workers=persistent)
    assert_same(plain, ahead)
    orders = [np.concatenate([b[1] for b in plain[i : i + 6]]).tolist() for i in (0, 6)]
    assert orders[0] != orders[1], "epochs must differ"
    assert all(sorted(o) == list(range(23)) for o in orders)
    gc.collect()
    assert workers_alive() == []


@pytest.mark.parametrize("num_workers", [1, 2])
def test_processes_give_every_batch_of_the_plain_loop(num_workers):
    options = {"batch_size": 5, "shuffle": True, "seed": 5}
    other = {"num_workers": num_workers, "multiprocessing_context": "spawn"}
    assert_same(
        epochs(Noisy(), **options), epochs(Noisy(), **options, **other, persistent_workers=True)
    )
    gc.collect()
    assert multiprocessing.active_children() == []


def test_processes_send_tensors_of_a_collate_function():
    options = {"multiprocessing_context": "spawn", "num_workers": 1}
    (batch,) = DataLoader(Noisy(3), 3, collate_fn=total, seed=0, **options)
    assert isinstance(batch["sum"], trident.Tensor)
    assert batch["sum"].item() == 3
    assert isinstance(batch["noise"], np.ndarray)


def total(batch):
    return {"sum": trident.tensor(sum(i for _, i in batch)), "noise": batch[0][0]}


def test_augmentation_depends_on_seed_epoch_and_index_alone():
    noise = {}
    for order in (None, [3, 1], [1, 3, 2]):
        sampler = order and iter_list(order)
        for x, i in zip(
            *[c.numpy() for c in next(iter(DataLoader(Noisy(4), 4, sampler=sampler, seed=1)))]
        ):
            np.testing.assert_array_equal(noise.setdefault(int(i), x), x)
    assert len(np.unique(np.round(np.concatenate(list(noise.values())), 9))) == 4 * 6
    loader = DataLoader(Noisy(4), 4, seed=1)
    first, second = next(iter(loader))[0].numpy(), next(iter(loader))[0].numpy()
    assert not (first == second).any()
    loader.set_epoch(0)
    np.testing.assert_array_equal(next(iter(loader))[0].numpy(), first)
    assert not (next(iter(DataLoader(Noisy(4), 4, seed=2)))[0].numpy() == first).any()
    with td.item_stream(1, 0, 2):
        np.testing.assert_array_equal(item_rng().normal(size=(2, 3)), first[2])


def iter_list(items):
    class Listed(td.Sampler):
        def __iter__(self):
            return iter(items)

        def __len__(self):
            return len(items)

    return Listed()


def test_the_seed_comes_from_manual_seed_or_the_generator():
    def order(**options):
        return [i.item() for (_, i) in DataLoader(Noisy(20), shuffle=True, **options)]

    trident.manual_seed(3)
    a = order()
    before = trident.rand(2).numpy()
    trident.manual_seed(3)
    np.testing.assert_array_equal(trident.rand(2).numpy(), before)  # the loader drew nothing
    assert order() == a
    trident.manual_seed(4)
    assert order() != a
    assert order(generator=trident.Generator().manual_seed(3)) == a
    assert order(seed=3) == a


def test_item_rng_outside_of_a_loader_follows_manual_seed():
    trident.manual_seed(0)
    a = [item_rng().random() for _ in range(3)]
    trident.manual_seed(0)
    assert [item_rng().random() for _ in range(3)] == a
    assert len(set(a)) == 3


@pytest.mark.parametrize("options", [{}, {"num_workers": 2}])
def test_a_failure_names_the_sample(options):
    loader = DataLoader(Noisy(fail=9), 4, seed=0, **options)
    seen = []
    with pytest.raises(
        SampleError, match=r"sample 9 of Noisy \(epoch 0\) failed: KeyError: 'broken"
    ) as e:
        seen.extend(batch[1].numpy().tolist() for batch in loader)
    assert seen == [[0, 1, 2, 3], [4, 5, 6, 7]], "the batches before it arrive"
    assert e.value.index == 9
    assert isinstance(e.value.__cause__, KeyError)
    frames = e.value.__cause__.__traceback__
    assert frames.tb_next.tb_frame.f_code.co_name == "__getitem__"
    assert workers_alive() == []


def test_a_failure_in_a_process_names_the_sample():
    loader = DataLoader(Noisy(fail=3), 4, seed=0, num_workers=1, multiprocessing_context="spawn")
    with pytest.raises(SampleError, match="sample 3 of Noisy") as e:
        list(loader)
    assert e.value.index == 3
    assert "in __getitem__" in str(e.value.__cause__)
    assert multiprocessing.active_children() == []


def test_a_process_that_dies_is_an_error_and_not_a_hang():
    with pytest.raises(RuntimeError, match="worker process died"):
        list(DataLoader(Deadly(), num_workers=1, multiprocessing_context="spawn"))
    assert multiprocessing.active_children() == []


class Deadly(Noisy):
    def __getitem__(self, index):
        import os

        os._exit(3)


def test_processes_need_what_pickles():
    data = Noisy()
    data.hook = lambda: 0
    loader = DataLoader(data, num_workers=1, multiprocessing_context="spawn")
    with pytest.raises(TypeError, match="must be picklable"):
        next(iter(loader))
    with pytest.raises(ValueError, match="multiprocessing_context"):
        next(iter(DataLoader(Noisy(), num_workers=1, multiprocessing_context="magic")))


def test_leaving_the_loop_early_leaves_nothing_behind():
    data = Noisy(n=1000, delay=0.001)
    for _ in DataLoader(data, 2, num_workers=4, seed=0):
        break
    assert workers_alive() == []
    it = iter(DataLoader(Stream(1000), 2, num_workers=2, seed=0))
    next(it)
    del it
    assert workers_alive() == []


def test_a_worker_that_hangs_runs_into_the_timeout():
    release = threading.Event()

    class Stuck(Noisy):
        def __getitem__(self, index):
            release.wait(20)
            return index

    with pytest.raises(
        RuntimeError, match=r"within timeout=0.05 seconds while fetching samples \[0\]"
    ):
        next(iter(DataLoader(Stuck(), num_workers=1, timeout=0.05)))
    release.set()
    for t in threading.enumerate():
        if t.name.startswith("trident-loader"):
            t.join(5)


def test_worker_init_fn_and_worker_info():
    seen = []

    def init(worker_id):
        info = td.get_worker_info()
        seen.append((worker_id, info.id, info.num_workers, info.seed))

    list(DataLoader(Noisy(4), num_workers=3, worker_init_fn=init, seed=8))
    assert sorted(seen) == [(i, i, 3, 8) for i in range(3)]

    def broken(worker_id):
        raise OSError("no disk")

    with pytest.raises(OSError, match="no disk"):
        list(DataLoader(Noisy(4), num_workers=2, worker_init_fn=broken))
    assert workers_alive() == []


@pytest.mark.parametrize("num_workers", [0, 1, 3])
def test_streams(num_workers):
    options = {"batch_size": 4, "seed": 2}
    plain = epochs(Stream(), **options)
    ahead = epochs(Stream(), **options, num_workers=num_workers)
    assert_same(plain, ahead)
    assert np.concatenate(plain[:3])[:, 0].tolist() == list(range(10))
    assert not np.array_equal(plain[0][:, 1], plain[3][:, 1]), "epochs must differ"
    kept = epochs(Stream(), 1, **options, num_workers=num_workers, drop_last=True)
    assert [len(b) for b in kept] == [4, 4]
    with pytest.raises(SampleError, match="sample 6 of Stream") as e:
        list(DataLoader(Stream(fail=6), 4, num_workers=num_workers))
    assert isinstance(e.value.__cause__, ValueError)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_tensor_dataset_batches_equal_item_by_item(num_workers):
    x = trident.tensor(np.random.default_rng(0).normal(size=(11, 3)).astype(np.float32))
    y = trident.arange(11)
    data = td.TensorDataset(x, y)
    slow = DataLoader(data, 4, shuffle=True, seed=1, collate_fn=lambda b: td.default_collate(b))
    fast = DataLoader(data, 4, shuffle=True, seed=1, num_workers=num_workers)
    assert_same([arrays(b) for b in slow], [arrays(b) for b in fast])
    part = td.Subset(td.Subset(data, [9, 7, 5, 3, 1]), [0, 2, 4])
    (batch,) = DataLoader(part, 8)
    assert batch[1].tolist() == [9, 5, 1]
    np.testing.assert_array_equal(batch[0].numpy(), x.numpy()[[9, 5, 1]])
    batch[0].zero_()
    assert (x.numpy() != 0).all(), "a batch is a copy"
    turned = td.TensorDataset(trident.tensor(np.arange(12.0).reshape(3, 4)).T)
    (batch,) = DataLoader(turned, 4)
    np.testing.assert_array_equal(batch[0].numpy(), np.arange(12.0).reshape(3, 4).T)
    with pytest.raises(SampleError, match="sample 11 of TensorDataset"):
        list(DataLoader(data, sampler=[11]))
    with pytest.raises(ValueError, match="first axis"):
        td.TensorDataset(x, y[:3])


def test_default_collate():
    Pair = namedtuple("Pair", "a b")
    batch = td.default_collate(
        [
            {"x": np.float32([1, 2]), "y": 1, "z": (1.5, "s"), "p": Pair(True, np.int32(3))},
            {"x": np.float32([3, 4]), "y": 2, "z": (2.0, "t"), "p": Pair(False, np.int32(4))},
        ]
    )
    assert batch["x"].dtype is trident.float32
    assert batch["x"].tolist() == [[1, 2], [3, 4]]
    assert batch["y"].dtype is trident.int64
    assert batch["y"].tolist() == [1, 2]
    assert batch["z"][0].dtype is trident.float64
    assert batch["z"][0].tolist() == [1.5, 2.0]
    assert batch["z"][1] == ["s", "t"]
    assert isinstance(batch["p"], Pair)
    assert batch["p"].a.dtype is trident.bool
    assert batch["p"].b.dtype is trident.int32
    tensors = td.default_collate([trident.ones(2), trident.zeros(2)])
    assert tensors.tolist() == [[1, 1], [0, 0]]
    with pytest.raises(ValueError, match=r"equal shapes.*\['x'\].*\(2,\); got \(3,\) in sample 1"):
        td.default_collate([{"x": np.zeros(2)}, {"x": np.zeros(3)}])
    with pytest.raises(ValueError, match="same keys"):
        td.default_collate([{"x": 1}, {"y": 1}])
    with pytest.raises(ValueError, match="same length"):
        td.default_collate([(1,), (1, 2)])
    with pytest.raises(TypeError, match=r"\[1\]; got NoneType"):
        td.default_collate([(1, None)])
    with pytest.raises(SampleError, match=r"collating samples \[0, 1\]"):
        list(DataLoader([np.zeros(2), np.zeros(3)], 2))


def test_rows_of_numpy_collate_as_hugging_face_gives_them():
    rows = [
        {"pixels": np.full((2, 2), i, np.uint8), "label": np.int64(i), "text": str(i)}
        for i in range(3)
    ]
    (batch,) = DataLoader(rows, 3)
    assert batch["pixels"].dtype is trident.uint8
    assert batch["label"].tolist() == [0, 1, 2]
    assert batch["text"] == ["0", "1", "2"]


def test_without_batching():
    samples = list(DataLoader(Noisy(3), batch_size=None, seed=0))
    assert [i for _, i in samples] == [0, 1, 2]
    assert samples[0][0].shape == (2, 3)
    assert [s.tolist()[0] for s in DataLoader(Stream(3), batch_size=None)] == [0, 1, 2]
    assert list(DataLoader(range(3), batch_size=None, collate_fn=lambda i: i * 2)) == [0, 2, 4]


def test_collate_functions_may_draw():
    def jitter(batch):
        return item_rng().random(3)

    a, b = (
        np.stack(list(DataLoader(range(6), 2, collate_fn=jitter, seed=3, num_workers=n)))
        for n in (0, 2)
    )
    np.testing.assert_array_equal(a, b)
    assert len(np.unique(a)) == 9


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("n", [0, 1, 7, 8])
def test_lengths(n, drop_last):
    loader = DataLoader(range(n), 4, drop_last=drop_last)
    batches = [b.tolist() for b in loader]
    expected = [list(range(i, min(i + 4, n))) for i in range(0, n, 4)]
    if drop_last and n % 4:
        expected = expected[:-1]
    assert batches == expected
    assert len(loader) == len(expected)
    assert len(DataLoader(range(n), batch_size=None)) == n


def test_wrong_arguments():
    for options, text in [
        ({"num_workers": -1}, "num_workers"),
        ({"batch_size": 0}, "batch_size"),
        ({"sampler": [0], "shuffle": True}, "sampler excludes"),
        ({"batch_sampler": [[0]], "batch_size": 2}, "batch_sampler excludes"),
        ({"batch_size": None, "drop_last": True}, "drop_last"),
        ({"persistent_workers": True}, "persistent_workers"),
        ({"prefetch_factor": 0}, "prefetch_factor"),
        ({"timeout": -1}, "timeout"),
    ]:
        with pytest.raises(ValueError, match=text):
            DataLoader([1, 2], **options)
    with pytest.raises(ValueError, match="IterableDataset"):
        DataLoader(Stream(), shuffle=True)
    with pytest.raises(TypeError):
        len(DataLoader(Stream()))


def test_batch_sampler():
    loader = DataLoader(range(9), batch_sampler=[[8, 0], [3]])
    assert [b.tolist() for b in loader] == [[8, 0], [3]]
    assert len(loader) == 2


def test_samplers():
    trident.manual_seed(0)
    draws = list(td.RandomSampler(range(5), replacement=True, num_samples=1000))
    counts = np.bincount(draws, minlength=5)
    assert counts.sum() == 1000
    assert counts.min() > 140  # 200 +- 4.7 sigma
    assert sorted(td.RandomSampler(range(5), num_samples=10)) == sorted([*range(5)] * 2)
    assert len(td.RandomSampler(range(5), num_samples=7)) == 7
    assert list(td.RandomSampler([])) == []
    g = trident.Generator().manual_seed(1)
    a, b = (list(td.RandomSampler(range(50), generator=g)) for _ in range(2))
    g.manual_seed(1)
    assert list(td.RandomSampler(range(50), generator=g)) == a != b
    assert sorted(td.SubsetRandomSampler(list("xyz"))) == ["x", "y", "z"]
    weighted = td.WeightedRandomSampler([0.0, 1.0, 3.0], 2000)
    share = np.bincount(list(weighted), minlength=3) / 2000
    np.testing.assert_allclose(share, [0, 0.25, 0.75], atol=0.05)
    assert sorted(td.WeightedRandomSampler([1, 0, 5], 2, replacement=False)) == [0, 2]
    for bad in (
        lambda: td.WeightedRandomSampler([1, -1], 2),
        lambda: td.WeightedRandomSampler([1, np.nan], 2),
        lambda: td.WeightedRandomSampler([1, 0], 2, replacement=False),
        lambda: td.RandomSampler([1], num_samples=0),
        lambda: td.BatchSampler([1], 0, False),
    ):
        with pytest.raises(ValueError, match="must"):
            bad()


def test_random_split():
    parts = td.random_split(
        range(10), [0.5, 0.25, 0.25], generator=trident.Generator().manual_seed(0)
    )
    assert [len(p) for p in parts] == [6, 2, 2]
    assert sorted(i for p in parts for i in p) == list(range(10))
    again = td.random_split(range(10), [6, 2, 2], generator=trident.Generator().manual_seed(0))
    assert [p.indices for p in again] == [p.indices for p in parts]
    trident.manual_seed(0)
    one, two = (td.random_split(range(30), [20, 10])[0].indices for _ in range(2))
    assert one != two
    assert [len(p) for p in td.random_split(range(1), [1, 0])] == [1, 0]
    with pytest.raises(ValueError, match="sum to 10"):
        td.random_split(range(10), [5, 4])
    with pytest.raises(ValueError, match="negative"):
        td.random_split(range(10), [11, -1])


def test_concat():
    both = td.Subset(range(10, 13), [0, 1, 2]) + td.Subset(range(20, 22), [0, 1])
    assert [both[i] for i in range(len(both))] == [10, 11, 12, 20, 21]
    assert both[-1] == 21
    assert [b.tolist() for b in DataLoader(both, 3)] == [[10, 11, 12], [20, 21]]
    with pytest.raises(IndexError, match="ConcatDataset"):
        both[5]
    with pytest.raises(ValueError, match="empty"):
        td.ConcatDataset([])
    with pytest.raises(TypeError, match="Stream"):
        td.ConcatDataset([Stream()])
