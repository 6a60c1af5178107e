"""A tiny random Qwen2 model and its byte-level BPE tokenizer, from the sample records, in seconds.

    python -m recipes.demo.build_model data/demo/base/train.json data/demo/train.json models/demo/random

The tokenizer treats `<think>` and `</think>` as Qwen3's does: single tokens, not special, so that decoding keeps them.
"""

from __future__ import annotations

import json
import sys

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from recipe import one_line_errors, read_text

VOCABULARY = 2048
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
THINK = ["<think>", "</think>"]
# How text is cut before merging: letters with the newline after them, up to three digits, punctuation, white space.
# "assistant\n" is then one token, and a lone "\n" stands only beside the thought's tags: a tiny model, which would
# otherwise open one thought after the other, can tell the two apart.
SPLIT = r"\p{L}+\n?|\p{N}{1,3}|[^\s\p{L}\p{N}]+|\s+"
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def build_tokenizer(texts: list[str], vocabulary: int = VOCABULARY) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with ChatML tokens, of `vocabulary` entries or fewer."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - len(SPECIAL) - len(THINK),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in THINK])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def build_model(tokenizer: PreTrainedTokenizerFast, seed: int = 42) -> Qwen2ForCausalLM:
    """A random Qwen2 of 1.1 million parameters; every width is a multiple of 32, as bitsandbytes needs."""
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=-(-len(tokenizer) // 64) * 64,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=8192,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )
    return Qwen2ForCausalLM(config)


def main(files: list[str], folder: str) -> None:
    """Build both from alpaca files and save them to `folder`."""
    rows = [row for file in files for row in json.loads(read_text(file))]
    tokenizer = build_tokenizer([f"user\n{row['instruction']}assistant\n{row['output']}" for row in rows])
    model = build_model(tokenizer)
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
    print(f"{folder}: {model.num_parameters():,} parameters, {len(tokenizer):,} tokens")


if __name__ == "__main__":
    with one_line_errors():
        main(sys.argv[1:-1], sys.argv[-1])
