"""The token ids that are scored: LLaMA-Factory's own loader, template and tokenizer make them, once for all arms.

A row is one conversation. Scored is its response up to and with the first end token behind it, never the prompt, the
padding, or the newline that some templates put after the end token. Each scored token belongs to one segment, by its
characters: `think`, `answer`, `markup` (the tags, their white space, and a token that straddles a boundary) or `end`.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import heapq
import io
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from preprocess.records import read_rows, to_json
from preprocess.register import dataset_file, read_registry
from preprocess.think import spans
from recipe import UserError, check_model, read_yaml

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SEGMENTS = ("think", "markup", "answer", "end")
IGNORED = -100

# What a training recipe says beyond model, template and data does not concern the score.
NEUTRAL = {
    "stage": "sft",
    "do_train": False,
    "do_eval": False,
    "do_predict": False,
    "eval_strategy": "no",
    "eval_dataset": None,
    "val_size": 0.0,
    "max_samples": None,
    "mix_strategy": "concat",
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
    # Nothing is cut: a row longer than the model's context is scored in windows.
    "cutoff_len": 1_000_000,
}


@dataclass(frozen=True)
class Row:
    """A tokenised conversation. Tokens `start` up to `end` are scored; `segments` names the segment of each.

    `bytes` (UTF-8) and `characters` are those of the response's text, without the end token.
    """

    id: str
    ids: tuple[int, ...]
    start: int
    end: int
    segments: tuple[str, ...]
    bytes: int
    characters: int


@dataclass(frozen=True)
class Arguments:
    """LLaMA-Factory's parsed arguments of a training recipe, made neutral for scoring."""

    model: Any
    data: Any
    training: Any
    finetuning: Any


def read_arguments(train: str, dataset: str = "", model: str = "") -> Arguments:
    """Parse a training recipe with LLaMA-Factory's own classes.

    `dataset` takes the place of its training data; `model`, a folder, that of its model, in the precision it has there.
    """
    import torch
    from llamafactory.hparams import get_train_args

    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")
    values, _ = read_yaml(train)
    check_model(train, str(values.get("model_name_or_path", "")))
    length = values.get("cutoff_len")
    values |= NEUTRAL | {"output_dir": tempfile.gettempdir()}
    if not torch.cuda.is_available():  # what was trained on a GPU can be scored without one
        values |= {"bf16": False, "fp16": False, "pure_bf16": False, "use_cpu": True}
    values |= {"dataset": dataset} if dataset else {}
    values |= {"model_name_or_path": model, "quantization_bit": None} if model else {}
    try:
        arguments = Arguments(*get_train_args(values)[:4])
    except (ValueError, TypeError) as error:
        raise UserError(f"{train}: LLaMA-Factory refuses it: {str(error).splitlines()[0]}") from None
    if length:
        arguments.model.model_max_length = length  # with rope_scaling the positions are stretched as in training
    return arguments


def load_template(arguments: Arguments) -> tuple[dict[str, Any], Any]:
    """LLaMA-Factory's tokenizer (and processor), by name, and its template with that tokenizer's end tokens."""
    from llamafactory.data import get_template_and_fix_tokenizer
    from llamafactory.model import load_tokenizer

    try:
        module = load_tokenizer(arguments.model)
    except OSError:
        raise UserError(f"{arguments.model.model_name_or_path}: no tokenizer that can be loaded in it") from None
    return module, get_template_and_fix_tokenizer(module["tokenizer"], arguments.data)


def load_rows(arguments: Arguments, limit: int = 0, sample: int = 0) -> tuple[list[Row], PreTrainedTokenizerBase]:
    """Tokenise the data set through LLaMA-Factory: all of it, the first `limit` rows, or `sample` rows.

    A sample are the rows whose ids have the smallest SHA-256: the same ones each time. UserError names a row that
    can't be scored; none is left out.
    """
    from llamafactory.data import get_dataset

    module, template = load_template(arguments)
    tokenizer = module["tokenizer"]
    named = ", ".join(arguments.data.dataset)
    with tempfile.TemporaryDirectory() as folder:
        model, data = copy.copy(arguments.model), copy.copy(arguments.data)
        model.cache_dir = folder
        names = _write_chosen(data, Path(folder), limit, sample)
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                dataset = get_dataset(template, model, data, arguments.training, arguments.finetuning.stage, **module)
            dataset = dataset["train_dataset"]
            table = list(zip(dataset["input_ids"], dataset["labels"], strict=True))
        except (ValueError, RuntimeError) as error:
            raise UserError(f"{named}: LLaMA-Factory does not read it: {str(error).splitlines()[0]}") from None
    if len(table) != len(names):
        raise UserError(
            f"{named}: {len(names)} rows, {len(table)} left by LLaMA-Factory; "
            "expected a text prompt and a text response in every row"
        )
    stops = set(template.get_stop_token_ids(tokenizer))
    return [to_row(name, *row, tokenizer, stops) for name, row in zip(names, table, strict=True)], tokenizer


def _write_chosen(data: Any, folder: Path, limit: int, sample: int) -> list[str]:
    """Write the chosen rows to a registry of their own, point `data` to it, and return the rows' ids in order."""
    rows: Any = _named_rows(data)
    if sample:
        rows = heapq.nsmallest(sample, rows, key=lambda row: hashlib.sha256(row[1].encode()).digest())
        rows.sort(key=lambda row: data.dataset.index(row[0]))
    rows = list(islice(rows, limit or None))
    if not rows:
        raise UserError(f"{', '.join(data.dataset)}: no rows")
    given, registry = read_registry(data.dataset_dir), {}
    for number, name in enumerate(dict.fromkeys(row[0] for row in rows)):
        registry[name] = given[name] | {"file_name": f"{number}.json", "num_samples": None}
        chosen = [row for of, _, row in rows if of == name]
        (folder / f"{number}.json").write_text(to_json(chosen), encoding="utf-8")
    (folder / "dataset_info.json").write_text(to_json(registry), encoding="utf-8")
    data.dataset, data.dataset_dir = list(registry), str(folder)
    return [name for _, name, _ in rows]


def _named_rows(data: Any) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for name in data.dataset:
        for number, (_, row) in enumerate(read_rows(str(dataset_file(name, data.dataset_dir)))):
            yield name, str(row.get("id", number)), row


def to_row(
    name: str, ids: Sequence[int], labels: Sequence[int], tokenizer: PreTrainedTokenizerBase, stops: set[int]
) -> Row:
    """One row from LLaMA-Factory's ids and labels; UserError where its response isn't one stretch with an end token."""
    scored = [i for i, label in enumerate(labels) if label != IGNORED]
    ends = [i for i in scored if ids[i] in stops]
    if not ends or scored[0] == 0 or scored != list(range(scored[0], scored[-1] + 1)):
        raise UserError(
            f"row {name}: expected a prompt and one response that closes with an end token; is it one turn, uncut?"
        )
    start, end = scored[0], ends[-1] + 1
    if tokenizer.decode(ids[end : scored[-1] + 1]).strip():
        raise UserError(f"row {name}: text after the end token; expected one turn")
    text = tokenizer.decode(ids[start:end], clean_up_tokenization_spaces=False)
    again = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    if again["input_ids"] != list(ids[start:end]):
        raise UserError(f"row {name}: this tokenizer does not read its own text back; segments can't be told apart")
    text = text[: -len(tokenizer.decode([ids[end - 1]]))]
    parts = (*segments(text, again["offset_mapping"][:-1]), "end")
    return Row(name, tuple(ids), start, end, parts, len(text.encode()), len(text))


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


def check_same(arm: str, rows: list[Row], others: list[Row]) -> None:
    """UserError names the first row and field in which an arm's own tokenizer or template gives something else."""
    for row, other in zip(rows, others, strict=True):
        for field in ("ids", "start", "end", "segments"):
            mine, theirs = getattr(row, field), getattr(other, field)
            if mine != theirs:
                sizes = f"{len(mine)} and {len(theirs)} tokens" if isinstance(mine, tuple) else f"{mine} and {theirs}"
                raise UserError(
                    f"{arm}: row {row.id}: its own tokenizer gives other `{field}` than the recipe's ({sizes}): their "
                    "perplexities can't be compared; leave this arm out, or mend the tokenizer in its folder"
                )
