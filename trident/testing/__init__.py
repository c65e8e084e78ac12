"""The test kit: what trident tests its own ops with, for yours."""

from ..autograd import gradcheck, gradgradcheck
from .check import check_op
from .draw import Draw
from .tolerance import assert_close, tolerance

__all__ = ["Draw", "assert_close", "check_op", "gradcheck", "gradgradcheck", "tolerance"]
