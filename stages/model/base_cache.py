"""A base kept in memory, for a program that builds many models around the same frozen weights."""

import contextlib
import copy
from collections.abc import Callable, Hashable, Iterator

import bitsandbytes as bnb
import torch


class BaseCache:
    """At most one base, and what its weights summed up to when it was read."""

    def __init__(self) -> None:
        self.key, self.model, self.sums = None, None, []

    def share_model(self, key: object, load: Callable[[], torch.nn.Module]) -> torch.nn.Module:
        """A model of its own around the weights of the base of this key; read by `load` where another is kept."""
        if key != self.key:
            self.key = self.model = None  # before the other takes its memory
            self.model = load()
            self.key, self.sums = key, checksums(self.model)
        return copy_sharing_weights(self.model)

    def check(self) -> None:
        """Raise RuntimeError where a model that shares the weights has changed them; the next one gets them anew."""
        if self.model is not None and checksums(self.model) != self.sums:
            self.key = self.model = None
            raise RuntimeError("the weights of the kept base have changed while a model used them")


_kept: BaseCache | None = None


@contextlib.contextmanager
def cache_base() -> Iterator[BaseCache]:
    """Within this block a base is read once for all models that are asked of `share_model` by an equal key."""
    global _kept
    _kept = BaseCache()
    try:
        yield _kept
    finally:
        _kept = None


def share_model(key: object, load: Callable[[], torch.nn.Module]) -> torch.nn.Module:
    """What `load` gives; within `cache_base()` a model around the weights that an earlier call has loaded.

    Args:
        key: equal where the models are.
    """
    return _kept.share_model(key, load) if _kept else load()


def copy_sharing_weights(model: torch.nn.Module) -> torch.nn.Module:
    """A copy of a model that shares its frozen parameters and has all else for itself: modules, hooks, buffers, config.

    So a copy takes no memory of the device, and PEFT and the fused layers change the copy's modules alone.
    """
    shared = [*model.parameters(), *_quant_states(model)]
    return copy.deepcopy(model, {id(thing): thing for thing in shared})


def checksums(model: torch.nn.Module) -> list[Hashable]:
    """Of each parameter, and of the scales of those in 4 bits: dtype, shape and the exclusive or of its bits."""
    tensors = [*model.parameters(), *(state.absmax for state in _quant_states(model))]
    return [(tensor.dtype, tensor.shape, torch.hash_tensor(tensor.detach()).item()) for tensor in tensors]


def _quant_states(model):
    layers = [module for module in model.modules() if isinstance(module, bnb.nn.Linear4bit)]
    return [state for layer in layers for state in (layer.quant_state, layer.weight.quant_state) if state is not None]
