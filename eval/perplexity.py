"""Perplexity of the response, before and after, on the very token ids that LLaMA-Factory trains on.

LLaMA-Factory's own loader, template and tokenizer make the ids and the labels; base and tuned model score the same
ids, the model loaded once (adapter off, adapter on). Scored: the response up to and with its end token, never the
prompt, the padding, or the newline that some templates put after the end token.

    perplexity = exp(Σ NLL / Σ tokens)      natural log, fp32 log-softmax, sums in float64

Each token belongs to one segment, by its characters: `think`, `answer`, `markup` (the tags, their white space, and a
token that straddles a boundary) or `end`; the segments' NLLs add up to the whole.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tqdm import tqdm

from preprocess.records import read_rows
from preprocess.register import dataset_file
from preprocess.think import spans
from recipe import UserError, check_model, read_yaml

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SEGMENTS = ("think", "markup", "answer", "end")
IGNORED = -100

# What a training recipe says beyond model, template and data does not concern the score.
NEUTRAL = {
    "do_train": False,
    "do_eval": False,
    "do_predict": False,
    "eval_strategy": "no",
    "eval_dataset": None,
    "val_size": 0.0,
    "max_samples": None,
    "packing": False,
    "neat_packing": False,
    "streaming": False,
    "tokenized_path": None,
    "overwrite_cache": True,
    "adapter_name_or_path": None,
    "use_unsloth": False,
    "use_unsloth_gc": False,
    "enable_liger_kernel": False,
    "deepspeed": None,
    "resume_from_checkpoint": None,
    "load_best_model_at_end": False,
    "plot_loss": False,
    "report_to": "none",
    "use_swanlab": False,
    # Nothing is cut: a row longer than the model's context is listed, not shortened.
    "cutoff_len": 1_000_000,
}


@dataclass(frozen=True)
class Row:
    """A tokenised conversation. Tokens `start` up to `end` are scored; `segments` names the segment of each."""

    id: str
    ids: tuple[int, ...]
    start: int
    end: int
    segments: tuple[str, ...]


@dataclass(frozen=True)
class Arguments:
    """LLaMA-Factory's parsed arguments of a training recipe, made neutral for scoring."""

    model: Any
    data: Any
    training: Any
    finetuning: Any


def read_arguments(train: str, dataset: str) -> Arguments:
    """Parse a training recipe with LLaMA-Factory's own classes, `dataset` in the place of its training data."""
    from llamafactory.hparams import get_train_args

    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")
    values, _ = read_yaml(train)
    check_model(train, str(values.get("model_name_or_path", "")))
    values = values | NEUTRAL | {"dataset": dataset, "output_dir": tempfile.gettempdir()}
    try:
        model, data, training, finetuning, _ = get_train_args(values)
    except (ValueError, TypeError) as error:
        raise UserError(f"{train}: LLaMA-Factory refuses it: {str(error).splitlines()[0]}") from None
    return Arguments(model, data, training, finetuning)


def load_rows(arguments: Arguments, limit: int = 0) -> tuple[list[Row], PreTrainedTokenizerBase]:
    """Tokenise the data set through LLaMA-Factory; every row of the file is there, or UserError says which is not."""
    from llamafactory.data import get_dataset, get_template_and_fix_tokenizer
    from llamafactory.model import load_tokenizer

    module = load_tokenizer(arguments.model)
    tokenizer = module["tokenizer"]
    template = get_template_and_fix_tokenizer(tokenizer, arguments.data)
    names = _row_ids(arguments.data)
    with contextlib.redirect_stdout(io.StringIO()):
        dataset = get_dataset(
            template, arguments.model, arguments.data, arguments.training, stage=arguments.finetuning.stage, **module
        )["train_dataset"]
    if len(dataset) != len(names):
        raise UserError(
            f"{arguments.data.dataset[0]}: {len(names)} rows in the file, {len(dataset)} left by LLaMA-Factory; "
            "expected a text prompt and a text response in every row"
        )
    stops = set(template.get_stop_token_ids(tokenizer))
    rows = zip(names, dataset["input_ids"], dataset["labels"], strict=True)
    return [to_row(name, ids, labels, tokenizer, stops) for name, ids, labels in list(rows)[: limit or None]], tokenizer


def _row_ids(data: Any) -> list[str]:
    file = dataset_file(data.dataset[0], data.dataset_dir)
    return [str(row.get("id", number)) for number, (_, row) in enumerate(read_rows(str(file)))]


def to_row(name: str, ids: list[int], labels: list[int], tokenizer: PreTrainedTokenizerBase, stops: set[int]) -> Row:
    """One row from LLaMA-Factory's ids and labels; UserError where its response isn't one stretch with an end token."""
    scored = [i for i, label in enumerate(labels) if label != IGNORED]
    ends = [i for i in scored if ids[i] in stops]
    if not ends or scored != list(range(scored[0], scored[-1] + 1)):
        raise UserError(f"row {name}: expected one response that closes with an end token; is it one turn, uncut?")
    start, end = scored[0], ends[-1] + 1
    if tokenizer.decode(ids[end : scored[-1] + 1]).strip():
        raise UserError(f"row {name}: text after the end token; expected one turn")
    text = tokenizer.decode(ids[start:end], clean_up_tokenization_spaces=False)
    again = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    if again["input_ids"] != list(ids[start:end]):
        raise UserError(f"row {name}: this tokenizer does not read its own text back; segments can't be told apart")
    tail = len(tokenizer.decode([ids[end - 1]]))
    return Row(name, tuple(ids), start, end, (*segments(text[:-tail], again["offset_mapping"][:-1]), "end"))


def segments(text: str, offsets: list[tuple[int, int]]) -> tuple[str, ...]:
    """The segment of each token of a response from its character offsets; a token across a boundary is markup."""
    think, answer = spans(text)

    def segment(begin: int, end: int) -> str:
        for name, span in (("think", think), ("answer", answer)):
            if span.start <= begin and end <= span.stop and begin < end:
                return name
        return "markup"

    return tuple(segment(begin, end) for begin, end in offsets)


def ids_hash(rows: list[Row]) -> str:
    """SHA-256 over the ids and the scored stretch of all rows: two scores with the same hash are comparable."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(repr((row.ids, row.start, row.end, row.segments)).encode())
    return digest.hexdigest()


def load_model(arguments: Arguments, tokenizer: PreTrainedTokenizerBase, adapter: str) -> PreTrainedModel:
    """The recipe's model as it was loaded for training (4-bit included), with the LoRA adapter beside it."""
    from llamafactory.model import load_model as load
    from peft import PeftModel

    if not (Path(adapter) / "adapter_config.json").is_file():
        raise UserError(f"{adapter}: no adapter_config.json in it; expected a trained LoRA adapter (`make train`)")
    model = load(tokenizer, arguments.model, arguments.finetuning, is_trainable=False)
    return PeftModel.from_pretrained(model, adapter).eval()


def token_nll(model: PreTrainedModel, rows: list[Row], batch_size: int = 8, label: str = "") -> list[np.ndarray]:
    """−log p of every scored token, in nats: one float64 array a row, in the order of `rows`.

    Rows are sorted by length, padded on the right, and only the scored positions go through the language-model head.
    """
    result: list[np.ndarray] = [np.empty(0)] * len(rows)
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i].ids))
    with tqdm(total=len(rows), desc=label, unit=" rows", disable=None) as progress:
        for begin in range(0, len(order), batch_size):
            batch = order[begin : begin + batch_size]
            for index, nll in zip(batch, _batch_nll(model, [rows[i] for i in batch]), strict=True):
                result[index] = nll
            progress.update(len(batch))
    return result


@torch.inference_mode()
def _batch_nll(model: PreTrainedModel, rows: list[Row]) -> Iterator[np.ndarray]:
    device = next(model.parameters()).device
    width = max(len(row.ids) for row in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long, device=device)
    mask, scored = torch.zeros_like(ids), torch.zeros_like(ids, dtype=torch.bool)
    for i, row in enumerate(rows):
        ids[i, : len(row.ids)] = torch.tensor(row.ids, device=device)
        mask[i, : len(row.ids)] = 1
        scored[i, row.start - 1 : row.end - 1] = True  # position t predicts token t + 1

    def only_scored(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return (inputs[0][scored].unsqueeze(0), *inputs[1:])

    hook = model.get_output_embeddings().register_forward_pre_hook(only_scored)
    try:
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[0].float()
    finally:
        hook.remove()
    targets = ids[:, 1:][scored[:, :-1]]
    nll = logits.logsumexp(-1) - logits.gather(-1, targets[:, None])[:, 0]
    return iter(np.split(nll.double().cpu().numpy(), np.cumsum([row.end - row.start for row in rows])[:-1]))


def sums(rows: list[Row], nll: list[np.ndarray]) -> dict[str, np.ndarray]:
    """ΣNLL of each row, float64, by segment and under `all`; the segments add up to `all`."""
    return _by_segment(rows, nll)


def token_counts(rows: list[Row]) -> dict[str, np.ndarray]:
    """Scored tokens of each row, by segment and under `all`."""
    return _by_segment(rows, [np.ones(row.end - row.start) for row in rows])


def _by_segment(rows: list[Row], values: list[np.ndarray]) -> dict[str, np.ndarray]:
    names = [np.array(row.segments) for row in rows]
    table = {s: np.array([v[n == s].sum() for n, v in zip(names, values, strict=True)]) for s in SEGMENTS}
    return table | {"all": sum(table.values())}


def perplexity(nll: np.ndarray, tokens: np.ndarray) -> float:
    """exp(ΣNLL / Σtokens) over rows."""
    return float(np.exp(nll.sum() / tokens.sum()))


def paired_ratio(
    base: np.ndarray, tuned: np.ndarray, tokens: np.ndarray, rounds: int = 10_000, seed: int = 0
) -> dict[str, float]:
    """Perplexity after / before with its 95 % percentile bootstrap interval, rows resampled, both arms together.

    exp(Σ(NLL_tuned − NLL_base) / Σtokens); an interval wholly below 1 says the tuned model fits better.
    """
    difference = tuned - base
    draws = np.random.default_rng(seed).multinomial(len(tokens), np.full(len(tokens), 1 / len(tokens)), size=rounds)
    with np.errstate(invalid="ignore", divide="ignore"):
        low, high = np.nanpercentile(np.exp((draws @ difference) / (draws @ tokens)), [2.5, 97.5])
    value = np.exp(difference.sum() / tokens.sum())
    return {"value": float(value), "low": float(low), "high": float(high)}


def compare(train: str, adapter: str, dataset: str, batch_size: int, rounds: int, limit: int = 0) -> dict[str, Any]:
    """Score base and tuned model on one data set; the `perplexity` part of metrics.json, with a line a row.

    Rows longer than the model's context are left out and listed under `skipped`.
    """
    arguments = read_arguments(train, dataset)
    rows, tokenizer = load_rows(arguments, limit)
    model = load_model(arguments, tokenizer, adapter)
    context = getattr(model.config, "max_position_embeddings", None) or max(len(row.ids) for row in rows)
    skipped = [row.id for row in rows if len(row.ids) > context]
    rows = [row for row in rows if len(row.ids) <= context]
    if not rows:
        raise UserError(f"{dataset}: no row fits the model's context of {context} tokens")
    with model.disable_adapter():
        base = sums(rows, token_nll(model, rows, batch_size, "base "))
    tuned = sums(rows, token_nll(model, rows, batch_size, "tuned"))
    if np.array_equal(base["all"], tuned["all"]):
        raise UserError(f"{adapter}: the adapter changes no score; was it trained for this base model?")
    tokens = token_counts(rows)
    parts = {
        name: {
            "base": perplexity(base[name], tokens[name]),
            "tuned": perplexity(tuned[name], tokens[name]),
            "ratio": paired_ratio(base[name], tuned[name], tokens[name], rounds),
            "tokens": int(tokens[name].sum()),
        }
        for name in ("all", *SEGMENTS)
        if tokens[name].sum()
    }
    per_row = [
        {"id": row.id, "tokens": int(n), "nll_base": float(b), "nll_tuned": float(t)}
        for row, n, b, t in zip(rows, tokens["all"], base["all"], tuned["all"], strict=True)
    ]
    return parts.pop("all") | {
        "samples": len(rows),
        "improved": int((tuned["all"] < base["all"]).sum()),
        "skipped": skipped,
        "segments": parts,
        "ids_sha256": ids_hash(rows),
        "rows": per_row,
    }
