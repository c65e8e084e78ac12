"""``trident.nn.functional``: layers as functions.

Most names are ops, handed through as they are. What is written out here is torch's ``inplace``
argument, resizing, and a few functions that are short in other ops.
"""

from __future__ import annotations

from typing import Any

import trident

from .. import Tensor, ops
from ..errors import missing_name, wrong

# names of torch.nn.functional that are ops of the same signature
_OPS = (
    "linear", "bilinear", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d",
    "conv_transpose3d", "unfold", "fold", "max_pool1d", "max_pool2d", "max_pool3d", "avg_pool1d",
    "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d",
    "adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d", "layer_norm", "rms_norm",
    "group_norm", "batch_norm", "instance_norm", "local_response_norm", "normalize", "sigmoid",
    "tanh", "gelu", "softplus", "softsign", "tanhshrink", "softshrink", "hardshrink", "prelu",
    "logsigmoid", "softmin", "one_hot", "pad", "cosine_similarity", "pairwise_distance", "mse_loss",
    "l1_loss", "smooth_l1_loss", "huber_loss", "binary_cross_entropy",
    "binary_cross_entropy_with_logits", "cross_entropy", "nll_loss", "kl_div", "poisson_nll_loss",
    "gaussian_nll_loss", "cosine_embedding_loss", "triplet_margin_loss", "margin_ranking_loss",
    "hinge_embedding_loss", "gumbel_softmax", "scaled_dot_product_attention",
)  # fmt: skip
for _name in _OPS:
    globals()[_name] = getattr(ops, _name)


def __getattr__(name: str) -> Any:
    raise missing_name("trident.nn.functional", name, globals())


# ---- activations --------------------------------------------------------------------------------


def _finish(function: Any, input: Tensor, inplace: bool, **attributes: Any) -> Tensor:
    """``function(input)``; with ``inplace`` the result is also written into ``input``."""
    if not inplace:
        return function(input, **attributes)
    if input.requires_grad and trident.is_grad_enabled():
        # the gradient may need the value that is overwritten, so it is taken from a copy
        return input.copy_(function(input.clone(), **attributes))
    return input.copy_(function(input, **attributes))


def relu(input: Tensor, inplace: bool = False) -> Tensor:
    """``max(x, 0)``.

    >>> trident.nn.functional.relu(trident.tensor([-1.0, 2.0])).tolist()
    [0.0, 2.0]
    """
    return input.relu_() if inplace else ops.relu(input)


def relu_(input: Tensor) -> Tensor:
    """``relu`` that overwrites its input."""
    return input.relu_()


def relu6(input: Tensor, inplace: bool = False) -> Tensor:
    """``min(max(x, 0), 6)``."""
    return _finish(ops.relu6, input, inplace)


def leaky_relu(input: Tensor, negative_slope: float = 0.01, inplace: bool = False) -> Tensor:
    """``x`` where positive, ``negative_slope * x`` elsewhere."""
    return _finish(ops.leaky_relu, input, inplace, negative_slope=negative_slope)


def elu(input: Tensor, alpha: float = 1.0, inplace: bool = False) -> Tensor:
    """``x`` where positive, ``alpha * (exp(x) - 1)`` elsewhere."""
    return _finish(ops.elu, input, inplace, alpha=alpha)


def selu(input: Tensor, inplace: bool = False) -> Tensor:
    """``scale * (max(x, 0) + min(alpha * (exp(x) - 1), 0))`` with SELU's constants."""
    return _finish(ops.selu, input, inplace)


def celu(input: Tensor, alpha: float = 1.0, inplace: bool = False) -> Tensor:
    """``max(x, 0) + min(alpha * (exp(x / alpha) - 1), 0)``."""
    return _finish(ops.celu, input, inplace, alpha=alpha)


def silu(input: Tensor, inplace: bool = False) -> Tensor:
    """``x * sigmoid(x)``."""
    return _finish(ops.silu, input, inplace)


def mish(input: Tensor, inplace: bool = False) -> Tensor:
    """``x * tanh(softplus(x))``."""
    return _finish(ops.mish, input, inplace)


def hardtanh(
    input: Tensor, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False
) -> Tensor:
    """``x`` limited to [min_val, max_val]."""
    return _finish(ops.hardtanh, input, inplace, min_val=min_val, max_val=max_val)


def hardsigmoid(input: Tensor, inplace: bool = False) -> Tensor:
    """``min(max(x + 3, 0), 6) / 6``."""
    return _finish(ops.hardsigmoid, input, inplace)


def hardswish(input: Tensor, inplace: bool = False) -> Tensor:
    """``x * min(max(x + 3, 0), 6) / 6``."""
    return _finish(ops.hardswish, input, inplace)


def threshold(input: Tensor, threshold: float, value: float, inplace: bool = False) -> Tensor:
    """``x`` where ``x > threshold``, ``value`` elsewhere."""
    return _finish(ops.threshold, input, inplace, threshold=threshold, value=value)


def glu(input: Tensor, dim: int = -1) -> Tensor:
    """``a * sigmoid(b)``, a and b the halves of x along ``dim``."""
    if input.shape[dim] % 2:
        raise wrong("glu", f"axis {dim} must have an even size", got=tuple(input.shape))
    a, b = input.chunk(2, dim)
    return a * ops.sigmoid(b)


def softmax(
    input: Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: Any = None
) -> Tensor:
    """``exp(x) / sum(exp(x))`` along ``dim``; ``dtype`` converts the input first."""
    return trident.softmax(input, dim=dim, dtype=dtype)


def log_softmax(
    input: Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: Any = None
) -> Tensor:
    """``log(softmax(x))`` along ``dim``, computed without overflow."""
    return ops.log_softmax(input, dim=dim, dtype=dtype)


def soft_margin_loss(
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    """``log(1 + exp(-target * input))`` with targets 1 and -1, averaged."""
    from ..ops.loss import reduced, reduction_of, same_shape

    reduction = reduction_of("soft_margin_loss", reduction, size_average, reduce)
    same_shape("soft_margin_loss", input, target)
    return reduced(-ops.logsigmoid(target * input), reduction)


# ---- dropout ------------------------------------------------------------------------------------


def dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """Zero each element with probability ``p`` in training and scale the rest by 1 / (1 - p)."""
    return _finish(ops.dropout, input, inplace and training, p=p, training=training)


def dropout1d(
    input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
) -> Tensor:
    """Zero whole channels of x (N, C, L) or (C, L)."""
    return _finish(ops.dropout1d, input, inplace and training, p=p, training=training)


def dropout2d(
    input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
) -> Tensor:
    """Zero whole channels of x (N, C, H, W) or (C, H, W)."""
    return _finish(ops.dropout2d, input, inplace and training, p=p, training=training)


def dropout3d(
    input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
) -> Tensor:
    """Zero whole channels of x (N, C, D, H, W) or (C, D, H, W)."""
    return _finish(ops.dropout3d, input, inplace and training, p=p, training=training)


def alpha_dropout(
    input: Tensor, p: float = 0.5, training: bool = False, inplace: bool = False
) -> Tensor:
    """Dropout to SELU's negative limit, scaled so that mean 0 and variance 1 stay."""
    return _finish(ops.alpha_dropout, input, inplace and training, p=p, training=training)


# ---- tables -------------------------------------------------------------------------------------


def embedding(
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Tensor:
    """Rows of ``weight`` (num, dim) at integer indices (...) -> (..., dim).

    The row ``padding_idx`` gets no gradient; rows longer than ``max_norm`` are scaled down in the
    table. ``scale_grad_by_freq`` divides gradients by how often a row occurs. ``sparse`` is
    accepted: gradients are dense.
    """
    if max_norm is not None:
        with trident.no_grad():
            rows = input.reshape(-1).unique()
            chosen = weight.detach()[rows]
            norms = ops.vector_norm(chosen, norm_type, 1, True)
            weight[rows] = ops.where(norms > max_norm, chosen * (max_norm / (norms + 1e-7)), chosen)
    return ops.embedding(input, weight, padding_idx, scale_grad_by_freq=scale_grad_by_freq)


# ---- pixels -------------------------------------------------------------------------------------


def pixel_shuffle(input: Tensor, upscale_factor: int) -> Tensor:
    """Channels to pixels: (..., C * r^2, H, W) -> (..., C, H * r, W * r)."""
    r = upscale_factor
    if input.ndim < 3 or input.shape[-3] % (r * r):
        raise wrong(
            "pixel_shuffle", f"input must be (..., C * {r * r}, H, W)", got=tuple(input.shape)
        )
    *lead, c, h, w = input.shape
    x = input.reshape(-1, c // (r * r), r, r, h, w).permute(0, 1, 4, 2, 5, 3)
    return x.reshape(*lead, c // (r * r), h * r, w * r)


def pixel_unshuffle(input: Tensor, downscale_factor: int) -> Tensor:
    """Pixels to channels: (..., C, H * r, W * r) -> (..., C * r^2, H, W)."""
    r = downscale_factor
    if input.ndim < 3 or input.shape[-1] % r or input.shape[-2] % r:
        raise wrong(
            "pixel_unshuffle", f"input must be (..., C, H * {r}, W * {r})", got=tuple(input.shape)
        )
    *lead, c, h, w = input.shape
    x = input.reshape(-1, c, h // r, r, w // r, r).permute(0, 1, 3, 5, 2, 4)
    return x.reshape(*lead, c * r * r, h // r, w // r)


# ---- resizing -----------------------------------------------------------------------------------

from ._resize import interpolate, upsample  # noqa: E402, F401
