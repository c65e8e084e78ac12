"""Schedules against their formulas, whatever is stepped first, saved and resumed."""

from __future__ import annotations

import math

import pytest

import trident
from trident.optim import SGD, Adam
from trident.optim import lr_scheduler as S

BASE = (0.7, 0.3)


def optimizer(cls=SGD, **options):
    a, b = trident.zeros(1, requires_grad=True), trident.zeros(1, requires_grad=True)
    return cls([{"params": [a]}, {"params": [b], "lr": BASE[1]}], lr=BASE[0], **options)


def rates(opt):
    return [g["lr"] for g in opt.param_groups]


def cosine(base, t, period, low):
    return low + (base - low) * (1 + math.cos(math.pi * t / period)) / 2


def restarts(base, t):
    length = 3
    while t >= length:
        t, length = t - length, length * 2
    return cosine(base, t, length, 0.01)


def one_cycle(base, t):  # max_lr 2, 20 steps, 30 percent up
    top, start, end = 2.0, 2.0 / 25, 2.0 / 25 / 1e4
    if t <= 5:
        return top + (start - top) / 2 * (1 + math.cos(math.pi * t / 5))
    return end + (top - end) / 2 * (1 + math.cos(math.pi * (t - 5) / 14))


FORMULAS = {
    "StepLR": (lambda o: S.StepLR(o, 3, 0.5), lambda b, t: b * 0.5 ** (t // 3)),
    "MultiStepLR": (
        lambda o: S.MultiStepLR(o, [7, 2, 4, 4], 0.3),
        lambda b, t: b * 0.3 ** ((t >= 2) + 2 * (t >= 4) + (t >= 7)),
    ),
    "ExponentialLR": (lambda o: S.ExponentialLR(o, 0.9), lambda b, t: b * 0.9**t),
    "ConstantLR": (lambda o: S.ConstantLR(o, 0.25, 4), lambda b, t: b * (0.25 if t < 4 else 1)),
    "LinearLR": (
        lambda o: S.LinearLR(o, 0.2, 0.8, 6),
        lambda b, t: b * (0.2 + 0.6 * min(t, 6) / 6),
    ),
    "PolynomialLR": (
        lambda o: S.PolynomialLR(o, 8, 2.0),
        lambda b, t: b * (1 - min(t, 8) / 8) ** 2,
    ),
    "CosineAnnealingLR": (
        lambda o: S.CosineAnnealingLR(o, 7, 0.01),
        lambda b, t: cosine(b, t, 7, 0.01),
    ),
    "CosineAnnealingWarmRestarts": (
        lambda o: S.CosineAnnealingWarmRestarts(o, 3, 2, 0.01),
        restarts,
    ),
    "LambdaLR": (lambda o: S.LambdaLR(o, lambda t: 1 / (1 + t)), lambda b, t: b / (1 + t)),
    "MultiplicativeLR": (
        lambda o: S.MultiplicativeLR(o, lambda t: (t + 1) / (t + 2)),
        lambda b, t: b * 2 / (t + 2),
    ),
    "OneCycleLR": (
        lambda o: S.OneCycleLR(o, 2.0, total_steps=20, cycle_momentum=False),
        one_cycle,
    ),
    "SequentialLR": (
        lambda o: S.SequentialLR(
            o,
            [S.LinearLR(o, 0.1, 1.0, 4), S.CosineAnnealingLR(o, 9, 0.001), S.StepLR(o, 2, 0.5)],
            [4, 10],
        ),
        lambda b, t: (
            b * (0.1 + 0.9 * t / 4)
            if t < 4
            else cosine(b, t - 4, 9, 0.001)
            if t < 10
            else b * 0.5 ** ((t - 10) // 2)
        ),
    ),
    "ChainedScheduler": (
        lambda o: S.ChainedScheduler([S.ConstantLR(o, 0.1, 5), S.ExponentialLR(o, 0.9)]),
        lambda b, t: b * (0.1 if t < 5 else 1) * 0.9**t,
    ),
}


@pytest.mark.parametrize("name", FORMULAS)
@pytest.mark.parametrize("optimizer_steps", [False, True])
def test_rate_is_a_function_of_the_step_count(name, optimizer_steps):
    make, formula = FORMULAS[name]
    opt = optimizer()
    schedule = make(opt)
    for t in range(19):
        expected = [formula(b, t) for b in BASE]
        assert rates(opt) == pytest.approx(expected, rel=1e-12)
        assert schedule.get_last_lr() == rates(opt)
        if optimizer_steps and t % 2:
            opt.step()
        schedule.step()


@pytest.mark.parametrize("name", FORMULAS)
def test_state_dict_resumes(name):
    make, _ = FORMULAS[name]
    opt = optimizer()
    schedule = make(opt)
    for _ in range(6):
        schedule.step()
    other = optimizer()
    resumed = make(other)
    other.load_state_dict(opt.state_dict())
    resumed.load_state_dict(schedule.state_dict())
    for _ in range(8):
        schedule.step()
        resumed.step()
        assert rates(other) == rates(opt)


@pytest.mark.parametrize("name", ["StepLR", "ExponentialLR", "LinearLR", "CosineAnnealingLR"])
def test_a_rate_changed_by_hand_is_scaled_on(name):
    make, formula = FORMULAS[name]
    opt = optimizer()
    schedule = make(opt)
    schedule.step()
    for g in opt.param_groups:
        g["lr"] = 0.5 * g["lr"]
    schedule.step()
    low = 0.01 if name == "CosineAnnealingLR" else 0.0
    for base, rate in zip(BASE, rates(opt)):
        before, after = formula(base, 1), formula(base, 2)
        expected = low + (0.5 * before - low) * (after - low) / (before - low)
        assert rate == pytest.approx(expected, rel=1e-12)


def test_resuming_with_last_epoch():
    opt = optimizer()
    with pytest.raises(KeyError, match="needs 'initial_lr' in param group 0"):
        S.ExponentialLR(opt, 0.9, last_epoch=4)
    for g in opt.param_groups:
        g["initial_lr"] = 2 * g["lr"]
    schedule = S.ExponentialLR(opt, 0.9, last_epoch=4)
    assert rates(opt) == list(BASE) and schedule.last_epoch == 5
    schedule.step()
    assert rates(opt) == pytest.approx([0.9 * b for b in BASE])


def test_warm_restarts_take_fractions():
    opt = optimizer()
    schedule = S.CosineAnnealingWarmRestarts(opt, 3, 2, 0.01)
    for t in (0, 0.25, 1.75, 2.9, 3.0, 3.5, 8.75, 9.0, 10.5):
        schedule.step(t)
        assert rates(opt) == pytest.approx([restarts(b, t) for b in BASE])
    schedule.step()
    assert rates(opt) == pytest.approx([restarts(b, 11.5) for b in BASE])


@pytest.mark.parametrize("cls", [SGD, Adam])
def test_one_cycle_moves_momentum_the_other_way(cls):
    opt = optimizer(cls, **({"momentum": 0.9} if cls is SGD else {}))
    schedule = S.OneCycleLR(
        opt, [1.0, 2.0], total_steps=10, anneal_strategy="linear", pct_start=0.5
    )
    seen = []
    for _ in range(10):
        g = opt.param_groups[1]
        seen.append((g["lr"], g["momentum"] if cls is SGD else g["betas"][0]))
        schedule.step()
    up = [0.08 + (2 - 0.08) * t / 4 for t in range(5)]
    down = [2 + (0.08 / 1e4 - 2) * t / 5 for t in range(1, 6)]
    assert [lr for lr, _ in seen] == pytest.approx(up + down)
    low = [0.95 - 0.1 * t / 4 for t in range(5)] + [0.85 + 0.1 * t / 5 for t in range(1, 6)]
    assert [m for _, m in seen] == pytest.approx(low)
    with pytest.raises(ValueError, match="step 11 is past the total_steps=10"):
        schedule.step()


def test_plateau():
    opt = optimizer()
    schedule = S.ReduceLROnPlateau(opt, factor=0.1, patience=1, cooldown=1, min_lr=[0.0, 0.05])
    history = []
    for value in (1.0, 0.9, 0.95, 0.95, 0.95, 0.95, 0.95, trident.tensor(0.5), 0.6, 0.6):
        schedule.step(value)
        history.append(opt.param_groups[0]["lr"])
    a, b, c, d = 0.7, 0.07, 0.007, 0.0007
    # two steps without gain reduce; the step after a reduction is not counted
    assert history == pytest.approx([a, a, a, b, b, b, c, c, c, d])
    assert opt.param_groups[1]["lr"] == 0.05
    best = S.ReduceLROnPlateau(optimizer(), "max", patience=0, threshold=0.1, threshold_mode="abs")
    for value in (1.0, 1.05):
        best.step(value)
    assert best.get_last_lr() == pytest.approx([0.07, 0.03]) and best.best == 1.0


def test_a_schedule_written_with_get_lr():
    class Halving(S.LRScheduler):
        def get_lr(self):
            return [base / 2**self.last_epoch for base in self.base_lrs]

    opt = optimizer()
    schedule = Halving(opt)
    schedule.step()
    schedule.step()
    assert rates(opt) == [0.175, 0.075]


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda o: S.StepLR(o, 0), "step_size must be > 0; got 0"),
        (lambda o: S.LinearLR(o, start_factor=0.0), r"start_factor must lie in \(0, 1\]; got 0.0"),
        (lambda o: S.LambdaLR(o, [abs] * 3), "one value for each of the 2 param groups; got 3"),
        (lambda o: S.OneCycleLR(o, 1.0), "give total_steps, or epochs and steps_per_epoch"),
        (
            lambda o: S.SequentialLR(o, [S.StepLR(o, 1)], [3]),
            "1 schedulers need 0 milestones; got 1",
        ),
        (
            lambda o: S.SequentialLR(optimizer(), [S.StepLR(o, 1)], []),
            "belongs to another optimizer",
        ),
        (lambda o: S.ChainedScheduler([S.ReduceLROnPlateau(o)]), "whose step needs a metric"),
        (lambda o: S.ReduceLROnPlateau(o, factor=1.0), "factor must be < 1; got 1.0"),
    ],
)
def test_mistakes(make, text):
    with pytest.raises(ValueError, match=text):
        make(optimizer())


def test_missing_name():
    with pytest.raises(AttributeError, match="the nearest name it has is 'CosineAnnealingLR'"):
        S.CosineAnealingLR  # noqa: B018
