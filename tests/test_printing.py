"""How tensors print: a table of expected texts, equal to what torch prints for the same values."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

import trident
from trident import dtypes
from trident.printing import format_tensor, get_printoptions, printoptions, set_printoptions

# "# expression | options", then the text: printed by torch 2.13 from the same values, apart from
# "trident." for "torch." in dtypes; the few with device or grad_fn were put together by its rules.
TABLE = """\
# np.float32(1.5)
tensor(1.5000)

# np.float32(3)
tensor(3.)

# np.float32(nan)
tensor(nan)

# np.int64(7)
tensor(7)

# np.bool_(True)
tensor(True)

# f32([[1, 2], [3, 4]])
tensor([[1., 2.],
        [3., 4.]])

# f32([1, 2.5, -3])
tensor([ 1.0000,  2.5000, -3.0000])

# f32([])
tensor([])

# np.zeros((0, 3), f32)
tensor([], size=(0, 3))

# np.zeros(0, np.int64)
tensor([], dtype=trident.int64)

# np.zeros((2, 0), np.float64)
tensor([], size=(2, 0), dtype=trident.float64)

# np.array([1, -20, 300])
tensor([  1, -20, 300])

# np.array([[True], [False]])
tensor([[ True],
        [False]])

# np.arange(3, dtype=np.int8)
tensor([0, 1, 2], dtype=trident.int8)

# np.arange(3, dtype=np.uint8)
tensor([0, 1, 2], dtype=trident.uint8)

# np.array([0.1, 1e3 / 3])
tensor([1.0000e-01, 3.3333e+02], dtype=trident.float64)

# f32([1, nan, inf, -inf])
tensor([1., nan, inf, -inf])

# f32([1.5, nan, inf, -inf, -0.0])
tensor([1.5000,    nan,    inf,   -inf, -0.0000])

# f32([nan, inf])
tensor([nan, inf])

# f32([0, -0.0])
tensor([0., -0.])

# f32([1e-5, 1])
tensor([1.0000e-05, 1.0000e+00])

# f32([1e-4, 1e-3])
tensor([1.0000e-04, 1.0000e-03])

# f32([1, 1000])
tensor([   1., 1000.])

# f32([1, 1001])
tensor([1.0000e+00, 1.0010e+03])

# f32([1.5, 1500])
tensor([   1.5000, 1500.0000])

# f32([1.5, 1501])
tensor([1.5000e+00, 1.5010e+03])

# f32([1e8])
tensor([100000000.])

# f32([2e8])
tensor([2.0000e+08])

# f32([1e10, nan, 0])
tensor([1.0000e+10,        nan, 0.0000e+00])

# f32([3e38, 1e-45])
tensor([3.0000e+38, 1.4013e-45])

# np.float16([0.5, 2.5, inf])
tensor([0.5000, 2.5000,    inf], dtype=trident.float16)

# f32([1.0, 3.14159]).astype(bf16)
tensor([1.0000, 3.1406], dtype=trident.bfloat16)

# np.arange(30)
tensor([ 0,  1,  2,  3,  4,  5,  6,  7,  8,  9, 10, 11, 12, 13, 14, 15, 16, 17,
        18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29])

# np.arange(24, dtype=f32).reshape(2, 3, 4) / 7
tensor([[[0.0000, 0.1429, 0.2857, 0.4286],
         [0.5714, 0.7143, 0.8571, 1.0000],
         [1.1429, 1.2857, 1.4286, 1.5714]],

        [[1.7143, 1.8571, 2.0000, 2.1429],
         [2.2857, 2.4286, 2.5714, 2.7143],
         [2.8571, 3.0000, 3.1429, 3.2857]]])

# np.arange(16).reshape(2, 2, 2, 2)
tensor([[[[ 0,  1],
          [ 2,  3]],

         [[ 4,  5],
          [ 6,  7]]],


        [[[ 8,  9],
          [10, 11]],

         [[12, 13],
          [14, 15]]]])

# np.arange(1001)
tensor([   0,    1,    2,  ...,  998,  999, 1000])

# np.arange(1000, dtype=f32).reshape(10, 100)[:, :40]
tensor([[  0.,   1.,   2.,   3.,   4.,   5.,   6.,   7.,   8.,   9.,  10.,  11.,
          12.,  13.,  14.,  15.,  16.,  17.,  18.,  19.,  20.,  21.,  22.,  23.,
          24.,  25.,  26.,  27.,  28.,  29.,  30.,  31.,  32.,  33.,  34.,  35.,
          36.,  37.,  38.,  39.],
        [100., 101., 102., 103., 104., 105., 106., 107., 108., 109., 110., 111.,
         112., 113., 114., 115., 116., 117., 118., 119., 120., 121., 122., 123.,
         124., 125., 126., 127., 128., 129., 130., 131., 132., 133., 134., 135.,
         136., 137., 138., 139.],
        [200., 201., 202., 203., 204., 205., 206., 207., 208., 209., 210., 211.,
         212., 213., 214., 215., 216., 217., 218., 219., 220., 221., 222., 223.,
         224., 225., 226., 227., 228., 229., 230., 231., 232., 233., 234., 235.,
         236., 237., 238., 239.],
        [300., 301., 302., 303., 304., 305., 306., 307., 308., 309., 310., 311.,
         312., 313., 314., 315., 316., 317., 318., 319., 320., 321., 322., 323.,
         324., 325., 326., 327., 328., 329., 330., 331., 332., 333., 334., 335.,
         336., 337., 338., 339.],
        [400., 401., 402., 403., 404., 405., 406., 407., 408., 409., 410., 411.,
         412., 413., 414., 415., 416., 417., 418., 419., 420., 421., 422., 423.,
         424., 425., 426., 427., 428., 429., 430., 431., 432., 433., 434., 435.,
         436., 437., 438., 439.],
        [500., 501., 502., 503., 504., 505., 506., 507., 508., 509., 510., 511.,
         512., 513., 514., 515., 516., 517., 518., 519., 520., 521., 522., 523.,
         524., 525., 526., 527., 528., 529., 530., 531., 532., 533., 534., 535.,
         536., 537., 538., 539.],
        [600., 601., 602., 603., 604., 605., 606., 607., 608., 609., 610., 611.,
         612., 613., 614., 615., 616., 617., 618., 619., 620., 621., 622., 623.,
         624., 625., 626., 627., 628., 629., 630., 631., 632., 633., 634., 635.,
         636., 637., 638., 639.],
        [700., 701., 702., 703., 704., 705., 706., 707., 708., 709., 710., 711.,
         712., 713., 714., 715., 716., 717., 718., 719., 720., 721., 722., 723.,
         724., 725., 726., 727., 728., 729., 730., 731., 732., 733., 734., 735.,
         736., 737., 738., 739.],
        [800., 801., 802., 803., 804., 805., 806., 807., 808., 809., 810., 811.,
         812., 813., 814., 815., 816., 817., 818., 819., 820., 821., 822., 823.,
         824., 825., 826., 827., 828., 829., 830., 831., 832., 833., 834., 835.,
         836., 837., 838., 839.],
        [900., 901., 902., 903., 904., 905., 906., 907., 908., 909., 910., 911.,
         912., 913., 914., 915., 916., 917., 918., 919., 920., 921., 922., 923.,
         924., 925., 926., 927., 928., 929., 930., 931., 932., 933., 934., 935.,
         936., 937., 938., 939.]])

# np.arange(2000, dtype=f32).reshape(40, 50)
tensor([[0.0000e+00, 1.0000e+00, 2.0000e+00,  ..., 4.7000e+01, 4.8000e+01,
         4.9000e+01],
        [5.0000e+01, 5.1000e+01, 5.2000e+01,  ..., 9.7000e+01, 9.8000e+01,
         9.9000e+01],
        [1.0000e+02, 1.0100e+02, 1.0200e+02,  ..., 1.4700e+02, 1.4800e+02,
         1.4900e+02],
        ...,
        [1.8500e+03, 1.8510e+03, 1.8520e+03,  ..., 1.8970e+03, 1.8980e+03,
         1.8990e+03],
        [1.9000e+03, 1.9010e+03, 1.9020e+03,  ..., 1.9470e+03, 1.9480e+03,
         1.9490e+03],
        [1.9500e+03, 1.9510e+03, 1.9520e+03,  ..., 1.9970e+03, 1.9980e+03,
         1.9990e+03]])

# np.arange(4000).reshape(10, 20, 20)
tensor([[[   0,    1,    2,  ...,   17,   18,   19],
         [  20,   21,   22,  ...,   37,   38,   39],
         [  40,   41,   42,  ...,   57,   58,   59],
         ...,
         [ 340,  341,  342,  ...,  357,  358,  359],
         [ 360,  361,  362,  ...,  377,  378,  379],
         [ 380,  381,  382,  ...,  397,  398,  399]],

        [[ 400,  401,  402,  ...,  417,  418,  419],
         [ 420,  421,  422,  ...,  437,  438,  439],
         [ 440,  441,  442,  ...,  457,  458,  459],
         ...,
         [ 740,  741,  742,  ...,  757,  758,  759],
         [ 760,  761,  762,  ...,  777,  778,  779],
         [ 780,  781,  782,  ...,  797,  798,  799]],

        [[ 800,  801,  802,  ...,  817,  818,  819],
         [ 820,  821,  822,  ...,  837,  838,  839],
         [ 840,  841,  842,  ...,  857,  858,  859],
         ...,
         [1140, 1141, 1142,  ..., 1157, 1158, 1159],
         [1160, 1161, 1162,  ..., 1177, 1178, 1179],
         [1180, 1181, 1182,  ..., 1197, 1198, 1199]],

        ...,

        [[2800, 2801, 2802,  ..., 2817, 2818, 2819],
         [2820, 2821, 2822,  ..., 2837, 2838, 2839],
         [2840, 2841, 2842,  ..., 2857, 2858, 2859],
         ...,
         [3140, 3141, 3142,  ..., 3157, 3158, 3159],
         [3160, 3161, 3162,  ..., 3177, 3178, 3179],
         [3180, 3181, 3182,  ..., 3197, 3198, 3199]],

        [[3200, 3201, 3202,  ..., 3217, 3218, 3219],
         [3220, 3221, 3222,  ..., 3237, 3238, 3239],
         [3240, 3241, 3242,  ..., 3257, 3258, 3259],
         ...,
         [3540, 3541, 3542,  ..., 3557, 3558, 3559],
         [3560, 3561, 3562,  ..., 3577, 3578, 3579],
         [3580, 3581, 3582,  ..., 3597, 3598, 3599]],

        [[3600, 3601, 3602,  ..., 3617, 3618, 3619],
         [3620, 3621, 3622,  ..., 3637, 3638, 3639],
         [3640, 3641, 3642,  ..., 3657, 3658, 3659],
         ...,
         [3940, 3941, 3942,  ..., 3957, 3958, 3959],
         [3960, 3961, 3962,  ..., 3977, 3978, 3979],
         [3980, 3981, 3982,  ..., 3997, 3998, 3999]]])

# f32([1, 2]) | requires_grad=True
tensor([1., 2.], requires_grad=True)

# f32([1, 2]) | grad_fn='AddBackward'
tensor([1., 2.], grad_fn=<AddBackward>)

# f32([1, 2]) | device='cuda:0'
tensor([1., 2.], device='cuda:0')

# np.float64(1) / 3 * np.ones((1, 7)) | requires_grad=True, device='cuda:0'
tensor([[0.3333, 0.3333, 0.3333, 0.3333, 0.3333, 0.3333, 0.3333]],
       device='cuda:0', dtype=trident.float64, requires_grad=True)

# np.zeros((0, 2), np.int32) | device='cuda:0'
tensor([], device='cuda:0', size=(0, 2), dtype=trident.int32)

# f32([0.123456789, 1]) | precision=2
tensor([0.12, 1.00])

# f32([0.5, 1]) | sci_mode=True
tensor([5.0000e-01, 1.0000e+00])

# f32([1e-9, 1]) | sci_mode=False
tensor([0.0000, 1.0000])

# np.arange(9) | threshold=5, edgeitems=1
tensor([0,  ..., 8])

# np.arange(20) | linewidth=30
tensor([ 0,  1,  2,  3,  4,
         5,  6,  7,  8,  9,
        10, 11, 12, 13, 14,
        15, 16, 17, 18, 19])

# f32([1 / 3]).repeat(1200) | profile='short'
tensor([0.33, 0.33,  ..., 0.33, 0.33])
"""

NAMES = {
    "np": np,
    "nan": np.nan,
    "inf": np.inf,
    "f32": np.float32,
    "bf16": ml_dtypes.bfloat16,
}


def cases():
    for block in TABLE.strip().split("\n# "):
        head, text = block.removeprefix("# ").split("\n", 1)
        expression, _, options = head.partition(" | ")
        yield pytest.param(expression, options, text.strip("\n"), id=head)


@pytest.mark.parametrize("expression, options, expected", list(cases()))
def test_table(expression, options, expected):
    array = np.asarray(eval(expression, NAMES))
    given = eval(f"dict({options})")
    facts = {k: given.pop(k) for k in ("device", "requires_grad", "grad_fn") if k in given}
    with printoptions(profile="default"):
        set_printoptions(**given)
        assert format_tensor(array, dtype=dtypes.from_numpy(array.dtype), **facts) == expected


def test_tensors_print_by_it():
    assert repr(trident.tensor([[1.0, 2.0], [3.0, 4.0]])) == "tensor([[1., 2.],\n        [3., 4.]])"
    x = trident.tensor([0.5], requires_grad=True)
    assert repr(x) == "tensor([0.5000], requires_grad=True)"
    assert repr(x + 1).startswith("tensor([1.5000], grad_fn=<Add")
    assert (
        str(trident.zeros(2, 0, dtype=trident.int32))
        == "tensor([], size=(2, 0), dtype=trident.int32)"
    )
    assert f"{trident.tensor(2.5):.2f}" == "2.50"


def test_strides_do_not_matter():
    a = np.arange(24.0).reshape(2, 3, 4)
    for view in (a.transpose(2, 0, 1), a[:, ::-2], np.broadcast_to(a[:1], (3, 3, 4))):
        one = format_tensor(view, dtype=dtypes.float64)
        assert one == format_tensor(view.copy(), dtype=dtypes.float64)


def test_the_default_dtype_needs_no_suffix():
    trident.set_default_dtype(trident.float64)
    try:
        assert format_tensor(np.ones(1), dtype=dtypes.float64) == "tensor([1.])"
        assert "float32" in format_tensor(np.ones(1, np.float32), dtype=dtypes.float32)
    finally:
        trident.set_default_dtype(trident.float32)


def test_a_big_tensor_prints_only_its_edges():
    text = format_tensor(np.broadcast_to(np.float32(1), (10**6, 10**6)), dtype=dtypes.float32)
    assert text.count("1.") == 36
    assert text.count("...") == 7


def test_options():
    before = get_printoptions()
    with printoptions(precision=1, edgeitems=9):
        assert get_printoptions() == {**before, "precision": 1, "edgeitems": 9}
        set_printoptions(profile="full", linewidth=100)
        assert get_printoptions()["threshold"] == float("inf")
        assert get_printoptions()["linewidth"] == 100
    assert get_printoptions() == before
    with pytest.raises(ValueError, match="'default', 'short', 'full'; got 'long'"):
        set_printoptions(profile="long")
    assert get_printoptions() == before
