"""Operators over whole tensors: reductions, look-ups of elements, tensors made of nothing, sizes, assertions."""

from __future__ import annotations

from qdiff_fx.ir.ops.operator import Kind, Trait, rows

REDUCTIONS = rows(
    """
    sum sum.dim_IntList mean mean.dim prod prod.dim_int amax amin aminmax max max.dim min min.dim argmax argmin
    var var.dim var.correction std std.dim std.correction var_mean.dim var_mean.correction std_mean.correction
    any any.dim any.dims all all.dim all.dims logsumexp cumsum cumprod cummax cummin count_nonzero
    count_nonzero.dim_IntList nansum nanmean median median.dim diff sum_to_size cdist pairwise_distance
    """,
    Kind.REDUCTION,
)

INDEXING = (
    *rows("index_select", Kind.INDEXING, Trait.READS_FLOAT32),
    *rows(
        """
        index.Tensor index_put index_add index_fill.int_Scalar index_fill.int_Tensor gather take take_along_dim
        scatter.src scatter.value scatter_add masked_select nonzero argwhere
        slice_scatter select_scatter copy fill.Scalar fill.Tensor
        embedding one_hot bucketize.Tensor bucketize.Scalar searchsorted.Tensor
        sort sort.stable argsort argsort.stable topk
        """,
        Kind.INDEXING,
    ),
)

CREATION = (
    *rows(
        "zeros ones full arange arange.start arange.start_step linspace eye eye.m scalar_tensor tril_indices "
        "triu_indices",
        Kind.CREATION,
    ),
    *rows("zeros_like ones_like full_like new_zeros new_ones new_full", Kind.CREATION, sizes_only=("self",)),
    # They hand out memory as they find it.
    *rows("empty_like new_empty", Kind.CREATION, sizes_only=("self",), stored=False),
    *rows("empty.memory_format empty_permuted empty_strided new_empty_strided", Kind.CREATION, stored=False),
)

RANDOM = rows(
    "rand randn randint randint.low rand_like randn_like randint_like randint_like.low_dtype bernoulli bernoulli.p",
    Kind.RANDOM,
)

SIZES = rows("sym_size.int sym_numel sym_stride.int size.int numel dim item", Kind.SIZE)

ASSERTIONS = rows(
    "_assert_tensor_metadata _assert_async _assert_async.msg _assert_scalar sym_constrain_range "
    "sym_constrain_range_for_size",
    Kind.ASSERTION,
    stored=False,
)

ROWS = (*REDUCTIONS, *INDEXING, *CREATION, *RANDOM, *SIZES, *ASSERTIONS)
