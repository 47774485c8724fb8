"""Every use of what torch does not promise to keep, in one place.

Run with torch 2.11 (CUDA 13, H100) and 2.13 (CPU). Another release may rename any of it: run the
tests of tests/model on it before the bound here, and in pyproject.toml, is raised.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._subclasses import FakeTensor

from paramgolf.errors import ParamGolfError

OLDEST, TOO_NEW = (2, 11), (2, 15)


def require_known_torch(version: str = torch.__version__) -> None:
    """Refuse a torch whose internals nobody has looked at."""
    release = tuple(int(part) for part in version.split(".")[:2])
    if not OLDEST <= release < TOO_NEW:
        raise ParamGolfError(
            "this version of torch is not known to work: parts of it that change are used",
            expected="torch>={}.{},<{}.{}".format(*OLDEST, *TOO_NEW),
            found=f"torch {version}",
            fix="install a torch of that range",
        )


def set_up_compiler(*, graphs: int, dynamic_sources: str) -> None:
    """Set what torch.compile has no argument for, for the whole process.

    A function may have `graphs` graphs. The values named by `dynamic_sources`, as compiled code
    names them, are symbols of its graphs even where all else is fixed.
    """
    # torch.compile(recompile_limit=...) is younger than 2.11
    torch._dynamo.config.recompile_limit = graphs
    # FlashAttention-3 is an autograd.Function; without this every start traces and lowers anew the
    # blocks that call it
    torch._functorch.config.autograd_cache_allow_custom_autograd_functions = True
    torch.compiler.config.dynamic_sources = dynamic_sources


def let_vary(tensor: Tensor, *dimensions: int) -> None:
    """Make these dimensions symbols of the graphs that read `tensor`, unless one must be fixed.

    torch.compile(dynamic=...) knows all or nothing.
    """
    torch._dynamo.maybe_mark_dynamic(tensor, dimensions)


def has_data(tensor: Tensor) -> bool:
    """Tell whether a tensor has data: the compiler runs operators on some that have shapes."""
    return not isinstance(tensor, FakeTensor)


def traced_number(x: Any) -> Any:
    """Return what a symbol of a graph stood for when it was traced; all else as it is."""
    return x.node.hint if isinstance(x, torch.SymInt) else x


def short_product(a: Tensor, b: Tensor, a_unit: Tensor, b_unit: Tensor, *, exact: bool) -> Tensor:
    """Return a b^T of FP8 matrices, in bfloat16; units are float32 scalars that they count in.

    Both have the inner dimension contiguous, and sizes in multiples of 16. Unless `exact`, sums are
    as the tensor cores make them, with fewer bits than float32's.
    """
    return torch._scaled_mm(
        a, b.T, a_unit, b_unit, out_dtype=torch.bfloat16, use_fast_accum=not exact
    )
