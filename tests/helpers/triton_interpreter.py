"""Triton's CPU interpreter, made four times faster.

- In each call of a function inside a kernel it replaces all operations of `triton.language` again, which takes 2 ms.
  The kernel's launch has replaced them already. Only the functions of Triton's own library need other replacements,
  once.
- It computes each sum and product of integers a second time in 64 bits, to check it in debug mode only.
- It describes the type and the shape of each intermediate result anew.
- It compares and converts types and shapes of operands in long functions. Most often nothing is to be done, because
  both operands have the same type and shape.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import triton.language as tl
from triton.language import core
from triton.language.semantic import TritonSemantic
from triton.runtime import interpreter


def make_faster() -> None:
    """Let the interpreter leave out what it need not repeat."""
    interpreter.InterpretedFunction.__call__ = make_call()
    builder = interpreter.interpreter_builder
    builder.options = dataclasses.replace(builder.options, sanitize_overflow=False)
    interpreter._get_np_dtype = find_numpy_dtype
    core.tensor.__init__ = init_tensor
    core.block_type.__init__ = init_block_type
    core.tuple.__eq__ = is_equal
    core.dtype.__eq__ = is_same_type
    core._unwrap_if_constexpr = unwrap
    interpreter._patch_attr = replace_builtin
    interpreter.InterpreterBuilder.create_expand_dims = expand_dims
    interpreter.InterpreterBuilder.create_splat = splat
    TritonSemantic.cast, TritonSemantic.broadcast_impl_value = cast, broadcast
    TritonSemantic.binary_op_type_checking_impl = convert_operands


def make_call() -> Callable:
    """`InterpretedFunction.__call__` without the repeated replacement of operations."""

    @functools.cache
    def replace_operations(function: Callable) -> None:
        if tl not in function.__globals__.values():
            interpreter._patch_lang(function)

    def call(self: interpreter.InterpretedFunction, *arguments: Any, **options: Any) -> Any:
        replace_operations(self.fn)
        try:
            return self.rewrite()(*arguments, **options)
        except Exception as error:
            raise interpreter.InterpreterError(repr(error)) from error

    return call


_find_numpy_dtype = functools.cache(interpreter._get_np_dtype)


def find_numpy_dtype(dtype: core.dtype) -> np.dtype:
    """NumPy's type for the elements of a scalar or a block."""
    scalar = dtype.scalar
    return np.dtype(np.uint64) if isinstance(scalar, core.pointer_type) else _find_numpy_dtype(scalar)


@functools.cache
def describe_block(element: str, shape: tuple[int, ...]) -> dict[str, Any]:
    """The attributes of a block type, without its element type, and those of a tensor that depend on its shape."""
    block = object.__new__(core.block_type)
    _init_block_type(block, element, list(shape))
    return vars(block) | {"shape": make_shape(shape), "of_tensor": describe_shape(shape)}


@functools.cache
def make_shape(sizes: tuple[int, ...]) -> core.tuple:
    """The shape of a block. Equal ones are the same object, which is compared in no time."""
    return core.tuple(sizes)


@functools.cache
def describe_shape(sizes: tuple[int, ...]) -> dict[str, Any]:
    """The attributes of a tensor that depend on its shape only."""
    return {"shape": core.tuple(map(core.constexpr, sizes)), "numel": core.constexpr(math.prod(sizes))}


_init_block_type, _is_equal = core.block_type.__init__, core.tuple.__eq__


def init_block_type(self: core.block_type, element_ty: core.dtype, shape: Sequence) -> None:
    is_known = isinstance(shape, core.tuple) and type(shape[0]) is int
    sizes = tuple(shape.values if is_known else core._unwrap_shape(shape))
    vars(self).update(describe_block(element_ty.name, sizes), element_ty=element_ty)


def init_tensor(self: core.tensor, handle: Any, type: core.dtype) -> None:
    self.handle, self.type, self.dtype = handle, type, type.scalar
    vars(self).update(type.of_tensor if type.is_block() else describe_shape(()))


def is_equal(self: core.tuple, other: object) -> core.constexpr:
    return core.constexpr(True) if self is other else _is_equal(self, other)


_is_same_type, _unwrap = core.dtype.__eq__, core._unwrap_if_constexpr
_cast, _broadcast = TritonSemantic.cast, TritonSemantic.broadcast_impl_value
_convert_operands = TritonSemantic.binary_op_type_checking_impl
CHECK = core.builtin(lambda _semantic: None).__code__  # around each operation: it checks that `_semantic` is there
VALUES = frozenset([core.tensor, core.dtype, int, float, bool, str, type(None)])  # no constants in them to unwrap


def is_same_type(self: core.dtype, other: object) -> bool:
    return self is other or _is_same_type(self, other)


def unwrap(value: object) -> object:
    return value if type(value) in VALUES else _unwrap(value)


def replace_builtin(scope_object: object, name: str, member: Callable, _builder: object, scope: Any) -> None:
    """`interpreter._patch_attr`: let an operation be called without `_semantic`."""
    is_checked = getattr(member, "__code__", None) is CHECK
    function, semantic = member.__wrapped__ if is_checked else member, interpreter.interpreter_semantic

    def call(*arguments: Any, **options: Any) -> Any:
        options["_semantic"] = semantic
        return function(*arguments, **options)

    scope.set_attr(scope_object, name, call)


def expand_dims(_: object, operand: interpreter.TensorHandle, axis: int) -> interpreter.TensorHandle:
    return interpreter.TensorHandle(operand.data[(slice(None),) * axis + (None,)], operand.dtype.scalar)


def splat(_: object, block: core.block_type, operand: interpreter.TensorHandle) -> interpreter.TensorHandle:
    """NumPy reads a shape that is a Triton tuple by slow calls, one for each axis."""
    value = operand.data[0] if isinstance(operand.dtype, core.block_type) else operand.data
    filled = np.full(tuple(block.shape.values), value, find_numpy_dtype(operand.dtype))
    return interpreter.TensorHandle(filled, operand.dtype.scalar)


def cast(self: TritonSemantic, operand: core.tensor, to: core.dtype, *rounding: Any, **options: Any) -> core.tensor:
    return operand if operand.dtype is to else _cast(self, operand, to, *rounding, **options)


def broadcast(self: TritonSemantic, first: core.tensor, other: core.tensor) -> tuple[core.tensor, core.tensor]:
    types = first.type, other.type
    if not (types[0].is_block() and types[1].is_block()):
        return _broadcast(self, first, other)
    if types[0].shape is types[1].shape:
        return first, other
    sizes = tuple(types[0].shape.values), tuple(types[1].shape.values)
    shape = broadcast_sizes(*sizes)
    if shape is None:
        return _broadcast(self, first, other)
    return tuple(
        operand
        if size == shape
        else self.make_tensor(
            self.builder.create_broadcast(operand.handle, shape), core.block_type(kind.scalar, make_shape(shape))
        )
        for operand, size, kind in zip((first, other), sizes, types, strict=True)
    )


@functools.cache
def broadcast_sizes(first: tuple[int, ...], other: tuple[int, ...]) -> tuple[int, ...] | None:
    """The shape of two blocks together; None if they have other numbers of axes, or sizes that do not fit."""
    fit = len(first) == len(other) and all(1 in pair or len(set(pair)) == 1 for pair in zip(first, other, strict=True))
    return tuple(map(max, first, other)) if fit else None


def convert_operands(self: TritonSemantic, first: Any, other: Any, *options: Any, **named: Any) -> tuple:
    """Two blocks of one type of numbers need no conversion, but for a division."""
    is_plain = not named.get("div_or_mod") and len(options) < 4
    is_plain = is_plain and type(first) is type(other) is core.tensor and first.dtype is other.dtype
    if is_plain and not first.dtype.is_ptr():
        return broadcast(self, first, other)
    return _convert_operands(self, first, other, *options, **named)
