"""Operators that compute nothing: the same elements in another place, shape or type."""

from __future__ import annotations

from qdiff_fx.ir.ops.operator import Channels, Kind, Layout, NoOp, Trait, rows

_RESHAPE, _PERMUTE = "aten.reshape.default", "aten.permute.default"

SAME_TENSOR = (
    *rows("alias detach lift_fresh", Kind.LAYOUT, layout=Layout.ALIAS, noop=NoOp.SAME_TYPE),
    # Torch counts these two among the pointwise ones.
    *rows("positive", Kind.LAYOUT, channels=Channels.KEPT_BY_ALL, layout=Layout.ALIAS, noop=NoOp.SAME_TYPE),
    *rows("clone", Kind.LAYOUT, channels=Channels.KEPT_BY_ALL, layout=Layout.COPY, noop=NoOp.SAME_TYPE),
    *rows("contiguous lift_fresh_copy", Kind.LAYOUT, layout=Layout.COPY, noop=NoOp.SAME_TYPE),
)

CASTS = (
    *rows(
        "to.dtype to.dtype_layout to.device _to_copy",
        Kind.LAYOUT,
        Trait.BETWEEN_SCORES,
        channels=Channels.KEPT,
        layout=Layout.CAST,
        noop=NoOp.SAME_TYPE,
    ),
    *rows(
        "to.other type_as",
        Kind.LAYOUT,
        Trait.BETWEEN_SCORES,
        channels=Channels.KEPT,
        layout=Layout.CAST,
        noop=NoOp.SAME_TYPE,
        sizes_only=("other",),
    ),
)

RESHAPES = (
    *rows("reshape", Kind.LAYOUT, Trait.BETWEEN_SCORES, Trait.MOVES_CODES, layout=Layout.RESHAPE, noop=NoOp.SAME_SHAPE),
    *rows(
        "view unflatten.int",
        Kind.LAYOUT,
        Trait.MOVES_CODES,
        layout=Layout.RESHAPE,
        noop=NoOp.SAME_SHAPE,
        canonical=_RESHAPE,
    ),
    *rows("_unsafe_view", Kind.LAYOUT, layout=Layout.RESHAPE, noop=NoOp.SAME_SHAPE, canonical=_RESHAPE),
    *rows(
        "expand flatten.using_ints squeeze.dim",
        Kind.LAYOUT,
        Trait.MOVES_CODES,
        layout=Layout.RESHAPE,
        noop=NoOp.SAME_SHAPE,
    ),
    *rows(
        "broadcast_to squeeze squeeze.dims slice.Tensor narrow",
        Kind.LAYOUT,
        layout=Layout.RESHAPE,
        noop=NoOp.SAME_SHAPE,
    ),
    *rows(
        "view_as reshape_as expand_as", Kind.LAYOUT, layout=Layout.RESHAPE, noop=NoOp.SAME_SHAPE, sizes_only=("other",)
    ),
    # Never the identity.
    *rows("unsqueeze", Kind.LAYOUT, Trait.MOVES_CODES, layout=Layout.MOVE),
)

PERMUTATIONS = (
    *rows(
        "permute",
        Kind.LAYOUT,
        Trait.BETWEEN_SCORES,
        Trait.MOVES_CODES,
        channels=Channels.PERMUTED,
        layout=Layout.PERMUTATION,
        noop=NoOp.IN_ORDER,
    ),
    *rows(
        "transpose.int",
        Kind.LAYOUT,
        Trait.MOVES_CODES,
        channels=Channels.PERMUTED,
        layout=Layout.PERMUTATION,
        canonical=_PERMUTE,
    ),
    *rows(
        "swapaxes swapdims t mT numpy_T movedim.int movedim.intlist",
        Kind.LAYOUT,
        channels=Channels.PERMUTED,
        layout=Layout.PERMUTATION,
        canonical=_PERMUTE,
    ),
)

PADDINGS = (
    *rows("pad constant_pad_nd", Kind.PADDING, channels=Channels.PADDED, layout=Layout.MOVE, noop=NoOp.NOTHING_PADDED),
    *rows(
        "reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d replication_pad3d",
        Kind.PADDING,
        channels=Channels.PADDED,
        layout=Layout.MOVE,
    ),
)

MOVES = (
    *rows("cat", Kind.LAYOUT, channels=Channels.CONCATENATED, layout=Layout.MOVE, noop=NoOp.ONE_TENSOR),
    *rows(
        """
        concat concatenate stack hstack vstack dstack column_stack
        chunk split.Tensor split.sizes split_with_sizes unsafe_chunk unsafe_split.Tensor unsafe_split_with_sizes
        tensor_split.sections tensor_split.indices hsplit.int vsplit.int unbind.int
        select.int diagonal tril triu flip fliplr flipud roll rot90 repeat tile
        repeat_interleave.self_int repeat_interleave.self_Tensor
        broadcast_tensors meshgrid meshgrid.indexing atleast_1d atleast_2d atleast_3d ravel
        moveaxis.int moveaxis.intlist
        pixel_shuffle pixel_unshuffle channel_shuffle unfold im2col col2im diag diag_embed adjoint mH matrix_H
        narrow.Tensor
        """,
        Kind.LAYOUT,
        layout=Layout.MOVE,
    ),
    *rows("as_strided view.dtype view_as_complex", Kind.LAYOUT, Trait.READS_STRIDES, layout=Layout.MOVE),
    *rows("view_as_real real imag complex polar", Kind.LAYOUT, layout=Layout.MOVE),
)

ROWS = (*SAME_TENSOR, *CASTS, *RESHAPES, *PERMUTATIONS, *PADDINGS, *MOVES)
