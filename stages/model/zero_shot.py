"""Zero-shot classification: the language model's own head on the first tokens of the class names."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from safetensors import safe_open
from scipy.special import log_softmax, logsumexp
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightRenaming
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

from stages.data.labels import Labels
from stages.data.task import fill_template, parse_columns
from stages.data.tokenization import get_encoder
from stages.model.linear_reference import LinearReference
from stages.runtime.errors import type_and_first_line
from stages.runtime.files import read_json
from stages.sources.fetch import find_model_folder


class Unavailable(Exception):
    """Why a model or its class names allow no zero-shot classification: one sentence for the user."""


def find_first_tokens(tokenizer: PreTrainedTokenizerBase, template: str, classes: Sequence[str]) -> list[int]:
    """The token with which each class name begins if it continues a filled template.

    A space separates the two, unless the template ends with whitespace.

    Raises:
        Unavailable: the tokens of a filled template change if a name follows, or two names share a first token.
    """
    encoder = get_encoder(tokenizer, template)
    if encoder.added_at_end:
        raise Unavailable("the tokenizer adds a special token after the template, so no text can follow it")
    filled = fill_template(encoder.template, dict.fromkeys(parse_columns(template), "a"))
    separator = "" if filled[-1].isspace() else " "
    texts = [filled, *(filled + separator + name for name in classes)]
    batch = encoder.tokenizer(texts, split_special_tokens=True, add_special_tokens=encoder.adds_special_tokens)
    prompt, *continued = batch["input_ids"]
    tokens: dict[int, str] = {}
    for name, ids in zip(classes, continued, strict=True):
        if ids[: len(prompt)] != prompt or len(ids) == len(prompt):
            raise Unavailable(f"the template's last token changes if {name!r} follows it: end the template with a word")
        first = ids[len(prompt)]
        if first in tokens:
            shared = tokenizer.decode([first])
            raise Unavailable(f"the classes {tokens[first]!r} and {name!r} begin with the same token, {shared!r}")
        tokens[first] = name
    return list(tokens)


@dataclass(frozen=True)
class LanguageModelHead:
    """The rows of a language model's head for the first tokens of the class names.

    Attributes:
        tokens: {class: text of its token}.
        weight: fp32 [classes, hidden].
        bias: fp32 [classes].
        language_model: the model on the meta device, for what it does to the products.
    """

    tokens: dict[str, str]
    weight: torch.Tensor
    bias: torch.Tensor
    language_model: PreTrainedModel

    @classmethod
    def read(
        cls,
        classifier: PreTrainedModel,
        manifest: dict,
        tokenizer: PreTrainedTokenizerBase,
        template: str,
        labels: Labels,
    ) -> Self:
        """Read the rows from the input embedding, if the head shares its weight, or else from the checkpoint.

        Args:
            classifier: from `load_base`: transformers has not loaded the language model's head with it.

        Raises:
            Unavailable: a row may have several labels, the class names have no tokens of their own, or the model has no
                such head.
        """
        if labels.multi_label:
            raise Unavailable("a language model continues a text with one class, not with several labels")
        classes = labels.classes
        ids = find_first_tokens(tokenizer, template, classes)
        tokens = {name: str(tokenizer.decode([token])) for name, token in zip(classes, ids, strict=True)}
        folder = find_model_folder(manifest)
        config = AutoConfig.from_pretrained(folder)
        try:
            with torch.device("meta"):
                language_model = AutoModelForCausalLM.from_config(config)
            weight, bias = _read_weight_and_bias(language_model, classifier, folder, ids)
            head = cls(tokens, weight.float(), bias.float(), language_model)
            head.to_logits(np.zeros((1, len(ids))))
        except Unavailable:
            raise
        except Exception as error:  # many types: transformers has no such class, or its forward differs from all others
            reason = f"the head of the language model {manifest['name']} is not readable"
            raise Unavailable(f"{reason} ({type_and_first_line(error)})") from error
        return head

    def calibrate(self, states: np.ndarray) -> LinearReference:
        """Make the reference, with batch calibration on the states [rows, hidden] of unlabelled rows."""
        weight, bias = self.weight.double().numpy(), self.bias.double().numpy()
        log_prior = estimate_log_prior(self.to_logits(states @ weight.T + bias))
        return LinearReference(weight, bias, lambda products: (self.to_logits(products) - log_prior).argmax(axis=1))

    @torch.inference_mode()
    def to_logits(self, products: np.ndarray) -> np.ndarray:
        """Apply what the language model does to the products of its head, such as scaling and soft-capping.

        The model's own forward does it, with a backbone that returns the products and a head that changes nothing.
        Configs have several names for it, and one that is in a config may not be in use (MPT's `logit_scale`).

        Args:
            products: of states and `weight`, plus `bias`; float64 [rows, tokens].

        Returns:
            float64 [rows, tokens].
        """
        model, states = self.language_model, torch.from_numpy(products)[None]

        def return_products(*_: Any, **__: Any) -> BaseModelOutputWithPastAndCrossAttentions:
            return BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=states)

        model.get_decoder().forward = return_products  # type: ignore[method-assign]  # of this instance only
        model.set_output_embeddings(torch.nn.Identity())
        ids = torch.zeros(states.shape[:2], dtype=torch.int64)
        return model(input_ids=ids, use_cache=False).logits[0].double().numpy()


def _read_weight_and_bias(
    language_model: PreTrainedModel, classifier: PreTrainedModel, folder: Path, rows: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    head = language_model.get_output_embeddings()
    names = {id(tensor): name for name, tensor in language_model.named_parameters()}
    files = map_files(folder, language_model)
    if head.weight is language_model.get_input_embeddings().weight:
        weight = classifier.get_input_embeddings().get_parameter("weight")[list(rows)].detach().cpu()
    else:
        weight = read_rows(files, names[id(head.weight)], rows)
    if getattr(head, "bias", None) is None:
        return weight, torch.zeros(len(rows))
    return weight, read_rows(files, names[id(head.bias)], rows)


def map_files(folder: Path, model: PreTrainedModel) -> dict[str, tuple[Path, str]]:
    """{name of a parameter in the model: (file of the checkpoint, its name there)}.

    transformers 5 renames some when it loads them: GPT-NeoX's `embed_out` becomes `lm_head`.
    """
    renamings = [step for step in get_model_conversion_mapping(model) if isinstance(step, WeightRenaming)]
    if (folder / "model.safetensors").exists():  # as transformers, which looks for it first
        with safe_open(folder / "model.safetensors", "pt") as checkpoint:
            file_of_key = dict.fromkeys(checkpoint.keys(), "model.safetensors")
    else:
        file_of_key = read_json(folder / "model.safetensors.index.json")["weight_map"]
    files = {}
    for key, file in file_of_key.items():
        name = key
        for step in renamings:
            name, _ = step.rename_source_key(name)
        files[name] = folder / file, key
    return files


def read_rows(files: dict[str, tuple[Path, str]], name: str, rows: Sequence[int]) -> torch.Tensor:
    """Read rows of one parameter of a checkpoint, in its dtype, on the CPU.

    Args:
        files: from `map_files`.

    Raises:
        Unavailable: the checkpoint has no such parameter.
    """
    if name not in files:
        raise Unavailable(f"the model's files have no {name}: they hold no head of a language model")
    file, key = files[name]
    with safe_open(file, "pt") as checkpoint:
        tensor = checkpoint.get_slice(key)
        return torch.cat([tensor[row : row + 1] for row in rows])


def estimate_log_prior(logits: np.ndarray) -> np.ndarray:
    """Log of the mean probability of each class over unlabelled rows [rows, classes] -> [classes].

    Batch calibration (Zhou et al. 2023, arXiv 2309.17249) takes it off the log probabilities: a class that the model
    prefers for every text loses this advantage.
    """
    return logsumexp(log_softmax(logits, axis=1), axis=0) - np.log(len(logits))
