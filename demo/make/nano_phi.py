"""Make `assets/nano-phi`: a byte-level tokenizer and a tiny Phi, pretrained on texts of the toy world.

    python demo/make/nano_phi.py

Run it after everyday_nli.py: the texts have none of the premises of that data set.
"""

import os
from pathlib import Path

os.environ["RAYON_NUM_THREADS"] = (
    "1"  # set before the import of tokenizers: merges with equal counts then have a fixed order
)
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import pandas as pd
import torch
from everyday_nli import ANSWERS, pretraining_texts
from everyday_nli import FOLDER as DATA_FOLDER
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn.functional import cross_entropy
from tqdm import tqdm
from transformers import PhiConfig, PhiForCausalLM, PreTrainedTokenizerFast

FOLDER = Path(__file__).parent.parent / "assets" / "nano-phi"
SEED = 2024
END = "<|endoftext|>"
VOCABULARY = 1000
LENGTH = 256
STEPS, BATCH, WARMUP = 1000, 32, 50
MUON_RATE, ADAM_RATE = 0.02, 3e-3  # in as many steps, Muon learned more than AdamW
# Most other words are random. Without this weight, as many texts did not teach the model what an answer depends on.
ANSWER_WEIGHT = 20
CHUNK = 50  # steps; texts are sorted by length only within a chunk, so simple texts come first
IGNORE_INDEX = -100  # label of padding


def make_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer, which encodes any text. Like phi-2's, it has an end token and no pad token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END,
        eos_token=END,
        unk_token=END,
        padding_side="right",
        model_max_length=LENGTH,
    )


def make_model(tokenizer: PreTrainedTokenizerFast) -> PhiForCausalLM:
    """A model of phi-2's architecture with about a million weights. Its hidden size is two NF4 blocks of 64."""
    config = PhiConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        hidden_act="gelu_new",
        max_position_embeddings=LENGTH,
        partial_rotary_factor=0.4,
        resid_pdrop=0.1,
        layer_norm_eps=1e-5,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return PhiForCausalLM(config)


def batches(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Batches of texts of similar length, as (input ids, labels). Each text ends with the end token."""
    rows = [[*ids, tokenizer.eos_token_id] for ids in tokenizer(texts)["input_ids"]]
    tensors = []
    for chunk in (rows[i : i + CHUNK * BATCH] for i in range(0, len(rows), CHUNK * BATCH)):
        chunk.sort(key=len)
        parts = [chunk[i : i + BATCH] for i in range(0, len(chunk), BATCH)]
        tensors += [pad(parts[i], tokenizer.eos_token_id) for i in torch.randperm(len(parts)).tolist()]
    return tensors


def pad(rows: list[list[int]], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pad rows of token ids on the right -> (input ids, labels that ignore the padding)."""
    length = max(map(len, rows))
    ids = torch.tensor([row + [pad_id] * (length - len(row)) for row in rows])
    ends = torch.tensor([len(row) for row in rows])
    return ids, ids.masked_fill(torch.arange(length) >= ends[:, None], IGNORE_INDEX)


def next_token_loss(logits: torch.Tensor, labels: torch.Tensor, answers: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of the next token; the first token of an answer has the weight ANSWER_WEIGHT."""
    targets = labels[:, 1:].flatten()
    losses = cross_entropy(logits[:, :-1].flatten(0, 1), targets, ignore_index=IGNORE_INDEX, reduction="none")
    weights = (targets != IGNORE_INDEX) + (ANSWER_WEIGHT - 1.0) * torch.isin(targets, answers)
    return (losses * weights).sum() / weights.sum()


def pretrain(model: PhiForCausalLM, data: list[tuple[torch.Tensor, torch.Tensor]], answers: torch.Tensor) -> float:
    """Train for one epoch of next-token prediction -> share of right answers in the last 50 steps."""
    model.eval()  # no dropout: the model sees no text twice
    matrices = [p for name, p in model.named_parameters() if ".layers." in name and p.ndim == 2]
    others = [p for name, p in model.named_parameters() if not (".layers." in name and p.ndim == 2)]
    optimizers = [
        torch.optim.Muon(matrices, lr=MUON_RATE, weight_decay=0.0),
        torch.optim.AdamW(others, lr=ADAM_RATE, betas=(0.9, 0.98), weight_decay=0.0),
    ]

    def rate(step: int) -> float:
        return min((step + 1) / WARMUP, (len(data) - step) / (len(data) - WARMUP))

    schedules = [torch.optim.lr_scheduler.LambdaLR(optimizer, rate) for optimizer in optimizers]
    right = []
    for ids, labels in (progress := tqdm(data, desc="pretraining", unit="step")):
        logits = model(input_ids=ids).logits
        next_token_loss(logits, labels, answers).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for stepper in (*optimizers, *schedules):
            stepper.step()
        model.zero_grad(set_to_none=True)
        is_answer = torch.isin(labels[:, 1:], answers)
        right.append((logits[:, :-1][is_answer].argmax(-1) == labels[:, 1:][is_answer]).float())
        if len(right) % 50 == 0:
            progress.set_postfix(answers_right=f"{torch.cat(right[-50:]).mean():.3f}")
    return torch.cat(right[-50:]).mean().item()


def card(model: PhiForCausalLM, tokenizer: PreTrainedTokenizerFast, right: float) -> str:
    """The text of the model card."""
    c = model.config
    shape = f"{c.num_hidden_layers} layers, hidden size {c.hidden_size}, {c.num_attention_heads} heads"
    return f"""# nano-phi

A Phi language model (`PhiForCausalLM`) of {model.num_parameters():,} weights: phi-2's architecture, shrunk so
that a pipeline made for phi-2 runs on a CPU in a minute. It knows one toy world of everyday scenes and nothing
else; it is of no use outside tests and demonstrations.

- Shape: {shape}, MLP {c.intermediate_size}, context {LENGTH}, float16 weights.
- Tokenizer: byte-level BPE, {len(tokenizer)} tokens; an end token and, like phi-2's, no padding token.
- Made by `demo/make/nano_phi.py`, seed and all: next-token prediction on {STEPS * BATCH:,} texts of the world,
  each seen once.
- The texts: a scene and remarks on it, each answered "Yes.", "Maybe." or "No.", half of them under headings
  such as "Scene:", "Remark:", "Answer:"; and some premises and hypotheses in the classifier's template without
  any answer. The answers count {ANSWER_WEIGHT} times in the loss.
  So the model has met the relation that `everyday-nli` asks about, though never in its template or with its
  labels, as a large model meets it in its textbooks. Fine-tuning teaches it the task's form more than the
  relation. No premise of `everyday-nli` is in the texts.
- At the end of pretraining it answers {right:.0%} of the remarks rightly.
- Licence: MIT, as the rest of this project.
"""


def main() -> None:
    """Make the texts, the tokenizer and the model, pretrain it, save all."""
    torch.set_num_threads(2)  # a fixed number, since sums depend on it
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(SEED)
    splits = [pd.read_parquet(path) for path in sorted(DATA_FOLDER.glob("*.parquet"))]
    texts = list(pretraining_texts(SEED, STEPS * BATCH, set(pd.concat(splits).premise)))
    tokenizer = make_tokenizer(texts)
    model = make_model(tokenizer)
    answers = tokenizer([f" {answer}" for answer in ANSWERS.values()])["input_ids"]
    assert all(len(ids) == 2 for ids in answers), "an answer is a word and a full stop"
    right = pretrain(model, batches(tokenizer, texts), torch.tensor([ids[0] for ids in answers]))
    model.half().save_pretrained(FOLDER)
    tokenizer.save_pretrained(FOLDER)
    (FOLDER / "README.md").write_text(card(model, tokenizer, right), encoding="utf-8")
    print(f"{FOLDER.name}: {model.num_parameters():,} weights, {len(tokenizer)} tokens, {right:.3f} of answers right")


if __name__ == "__main__":
    main()
