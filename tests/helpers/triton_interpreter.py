"""Triton's CPU interpreter, made faster.

In each call of a function inside a kernel it replaces all operations of `triton.language` again, which takes 2 ms. The
kernel's launch has replaced them already. Only the functions of Triton's own library need other replacements, once.
"""

import functools
from collections.abc import Callable
from typing import Any

import triton.language as tl
from triton.runtime import interpreter


def replace_operations_once() -> None:
    """Let the interpreter call functions without the repeated replacement."""

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

    interpreter.InterpretedFunction.__call__ = call
