"""Keep one base in memory, for a program that builds many models around the same frozen weights."""

import contextlib
import copy
import gc
from collections.abc import Callable, Hashable, Iterator
from typing import TypeVar, cast

import bitsandbytes as bnb
import torch
from transformers import PreTrainedConfig, PreTrainedModel

ModelT = TypeVar("ModelT", bound=torch.nn.Module)


class BaseCache:
    """Holds at most one base, and the checksums of its weights from when it was loaded."""

    def __init__(self) -> None:
        self.key: object = None
        self.model: PreTrainedModel | None = None
        self.checksums: list[Hashable] = []

    def share_model(self, key: object, load: Callable[[], PreTrainedModel]) -> PreTrainedModel:
        """Return a new model around the weights of the base with this key. `load` reads a base with another key."""
        if self.model is None or key != self.key:
            self._drop()
            self.model = load()
            self.key, self.checksums = key, compute_checksums(self.model)
        return copy_sharing_weights(self.model)

    def share_equal_model(self, config: PreTrainedConfig) -> PreTrainedModel | None:
        """Return a new model around the weights. None if a model has changed them, or if they need another config."""
        if self.model is None or compute_checksums(self.model) != self.checksums:
            return None
        configs = [other.to_dict() for other in (config, self.model.config)]
        for key in ("_name_or_path", "quantization_config"):  # where it was read from, and how it was loaded
            for values in configs:
                values.pop(key, None)
        return copy_sharing_weights(self.model) if configs[0] == configs[1] else None

    def check(self) -> None:
        """Raise RuntimeError if a model has changed the shared weights. The next model loads them again."""
        if self.model is not None and compute_checksums(self.model) != self.checksums:
            self._drop()
            raise RuntimeError("the weights of the cached base have changed while a model used them")

    def _drop(self) -> None:
        if self.model is not None:
            self.key = self.model = None
            gc.collect()  # a 4-bit weight and its layer refer to each other; the next base needs the memory


_cache: BaseCache | None = None


@contextlib.contextmanager
def cache_base() -> Iterator[BaseCache]:
    """Within this block `share_model` loads a base once for all models with an equal key.

    A block inside another one uses its cache: `train_qlora` in a sweep.
    """
    global _cache
    outer, _cache = _cache, _cache or BaseCache()
    try:
        yield _cache
    finally:
        _cache = outer


def is_caching() -> bool:
    """Whether a `cache_base()` is open."""
    return _cache is not None


def share_model(key: object, load: Callable[[], PreTrainedModel]) -> PreTrainedModel:
    """Call `load`; or, within `cache_base()`, return a model around the weights that an earlier call has loaded.

    Args:
        key: equal for equal models.
    """
    return _cache.share_model(key, load) if _cache else load()


def copy_sharing_weights(model: ModelT) -> ModelT:
    """Copy a model's modules, hooks, buffers and config; share its frozen parameters.

    A copy needs no memory of the device. PEFT and the fused layers change only the modules of the copy.
    """
    shared = [*model.parameters(), *_quant_states(model)]
    return copy.deepcopy(model, {id(tensor_or_state): tensor_or_state for tensor_or_state in shared})


def compute_checksums(model: torch.nn.Module) -> list[Hashable]:
    """Dtype, shape and exclusive or of the bits of each parameter, and of the scales of those in 4 bits."""
    tensors = [*model.parameters(), *(state.absmax for state in _quant_states(model))]
    return [(tensor.dtype, tensor.shape, torch.hash_tensor(tensor.detach()).item()) for tensor in tensors]


def _quant_states(model: torch.nn.Module) -> list[bnb.functional.QuantState]:
    layers = [module for module in model.modules() if isinstance(module, bnb.nn.Linear4bit)]
    weights = [cast(bnb.nn.Params4bit, layer.weight) for layer in layers]
    pairs = [(layer.quant_state, weight.quant_state) for layer, weight in zip(layers, weights, strict=True)]
    return [state for pair in pairs for state in pair if state is not None]
