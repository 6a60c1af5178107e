"""A local teacher reads the student's training rows, and its distributions are stored.

    make teach RECIPE=healthai_distill
    python -m distill.score recipes/healthai_distill/distill.yaml limit=100
    torchrun --nproc_per_node 4 -m distill.score recipes/healthai_distill/distill.yaml   # one on each GPU

The rows are those of LLaMA-Factory's own data set for the recipe named by `train`: its loader, its template, its
`cutoff_len`, every label that is not masked. Kill it at any instant and start it again: what is stored is not asked
again. On one process a teacher is spread over all GPUs that are there; with torchrun each process takes one GPU, every
n-th row, and a file of its own.

Where distill.yaml names `logprobs`, the answers that an API gave are aligned instead (`distill.align`).
"""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tqdm import tqdm

from chat.logprobs import PAD, Positions, Vocabulary, Writer
from distill.pack import IGNORED, SUFFIX, Meta, open_writer, read_vocabulary, row_key, stored, to_positions
from distill.settings import Distill, check_teacher, load_distill, read_train
from eval.arms import fingerprint
from eval.perplexity import BATCH_TOKENS, BLOCKS, WHOLE, batches, blocks, check_head, context_of, load_model
from eval.tokens import NEUTRAL, Arguments, load_template
from recipe import UserError, check_model, main

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# What decides which tokens are trained on stays as the recipe has it; the rest of NEUTRAL is no matter of the data.
DATA = ("val_size", "max_samples", "mix_strategy", "packing", "neat_packing", "streaming", "tokenized_path")
DATA += ("overwrite_cache", "cutoff_len", "stage")
NOT_DATA = {key: value for key, value in NEUTRAL.items() if key not in DATA}
NOT_DATA |= {"predict_with_generate": False, "quantization_bit": None, "use_cpu": True, "bf16": False, "fp16": False}
NOT_DATA |= {"pure_bf16": False}
# Of the recipe, what says how any model is read.
SHARED = ("template", "flash_attn", "trust_remote_code")


@dataclass(frozen=True)
class Row:
    """A training row as LLaMA-Factory's collator gets it, before padding; `key` is its hash."""

    key: str
    ids: tuple[int, ...]
    labels: tuple[int, ...]

    @property
    def scored(self) -> list[int]:
        """Where the labels stand that are not masked."""
        return [place for place, label in enumerate(self.labels) if label != IGNORED]


def score(settings: Distill) -> None:
    """Run distill.yaml's teacher: store what the pack does not hold yet."""
    check_teacher(settings)
    if settings.logprobs:
        from distill.align import align

        align(settings)
        return
    rank, world = take_rank()
    arguments = read_recipe(settings.train, settings.overrides)
    rows, tokenizer = load_rows(arguments, settings.limit)
    teacher = teacher_arguments(settings)
    vocabulary = read_vocabulary(tokenizer)
    size = check_tokens(teacher, arguments, vocabulary, rows)
    named = [settings.teacher, settings.teacher_adapter]
    revision = sha256("".join(fingerprint(folder) for folder in named if folder).encode()).hexdigest()
    name = " + ".join(Path(folder).resolve().name for folder in named if folder)
    name += f" ({settings.teacher_quantization_bit} bits)" * bool(settings.teacher_quantization_bit)
    meta = meta_of(arguments.data, vocabulary, name, revision, settings.k, size)
    with open_writer(Path(settings.pack) / f"{rank}{SUFFIX}", meta, vocabulary) as writer:
        known = stored(settings.pack, meta)
        print(f"{len(rows):,} rows; {sum(row.key in known for row in rows):,} are stored already")
        left = [row for row in rows if row.key not in known and int(row.key[:8], 16) % world == rank]
        if left:
            _store(writer, load_model(teacher, tokenizer), left, settings, size)


def _store(writer: Writer, model: PreTrainedModel, rows: list[Row], settings: Distill, size: int) -> None:
    """Score and store, batch by batch, and say how fast, and what the teacher thinks of the labels."""
    found, start = [], time.perf_counter()
    try:
        with tqdm(total=len(rows), desc=Path(writer.path).stem, unit=" rows", disable=None) as progress:
            for batch in distributions(model, rows, settings.k, size, settings.batch_tokens):
                writer.append_all(batch)
                found += [one.chosen_logprob[one.ids[:, 0] != PAD] for _, one in batch]
                progress.update(len(batch))
    except torch.OutOfMemoryError:
        raise UserError(f"{settings.teacher}: more than the GPU's memory; lower batch_tokens") from None
    seconds, read, own = time.perf_counter() - start, sum(len(row.ids) for row in rows), np.concatenate(found)
    print(f"{len(rows):,} rows, {read:,} tokens, {len(own):,} of them with a distribution (k = {settings.k})")
    print(f"{seconds:.1f} s, {read / seconds:,.0f} tokens a second", end="; ")
    print(f"the teacher's perplexity of the labels is {np.exp(-own.mean(dtype=np.float64)):.3f}")
    print(f"  -> {settings.pack}")


def take_rank() -> tuple[int, int]:
    """(rank, of how many), as torchrun says it; then this process is one on its own, and sees one GPU alone.

    Nothing is shared but the folder, so no process waits for another.
    """
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    told = {name: os.environ.pop(name, "") for name in names}
    rank, local, world = (int(told[name] or default) for name, default in zip(names, (0, 0, 1), strict=False))
    if world > 1:
        seen = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
        os.environ["CUDA_VISIBLE_DEVICES"] = seen[local % len(seen)] if seen else str(local)
    return rank, world


def read_recipe(train: str, overrides: Sequence[str] = ()) -> Arguments:
    """Parse a training recipe with LLaMA-Factory's own classes; what decides about the data stays as it is.

    Raises UserError where LLaMA-Factory refuses it, and for stages and packing for which there are no distributions.
    """
    from llamafactory.hparams import get_train_args

    recipe = read_train(train, overrides)
    check_model(train, str(recipe.model_name_or_path or ""))
    if recipe.stage not in (None, "sft"):
        raise UserError(f"{recipe.place('stage')}: stage {recipe.stage!r}; distributions are for stage: sft")
    if packed := next((key for key in ("packing", "neat_packing") if recipe.values.get(key)), ""):
        raise UserError(f"{recipe.place(packed)}: {packed}: rows that are packed can't be told apart; set it to false")
    if other := next((key for key in ("train_on_prompt", "streaming") if recipe.values.get(key)), ""):
        raise UserError(f"{recipe.place(other)}: {other}: `make distill` would refuse it; set it to false first")
    try:
        return Arguments(*get_train_args(recipe.values | NOT_DATA | {"output_dir": tempfile.gettempdir()})[:4])
    except (ValueError, TypeError, AssertionError) as error:
        raise UserError(f"{train}: LLaMA-Factory refuses it: {str(error).splitlines()[0]}") from None


def load_rows(arguments: Arguments, limit: int = 0) -> tuple[list[Row], PreTrainedTokenizerBase]:
    """LLaMA-Factory's training set of a recipe, equal rows once, and the tokenizer; the first `limit` rows (0: all)."""
    from llamafactory.data import get_dataset

    named = ", ".join(arguments.data.dataset)
    rows: dict[str, Row] = {}
    try:
        module, template = load_template(arguments)
        with contextlib.redirect_stdout(io.StringIO()):
            found = get_dataset(template, arguments.model, arguments.data, arguments.training, "sft", **module)
        for row in islice(found["train_dataset"], limit or None):
            if any(row.get(kind) for kind in ("images", "videos", "audios")):
                raise UserError(f"{named}: a row has images, video or sound; only text can be scored yet")
            key = row_key(row["input_ids"], row["labels"])
            rows[key] = Row(key, tuple(row["input_ids"]), tuple(row["labels"]))
    except (ValueError, RuntimeError) as error:
        raise UserError(f"{named}: LLaMA-Factory does not read it: {str(error).splitlines()[0]}") from None
    if not (kept := [row for row in rows.values() if any(row.scored)]):
        raise UserError(
            f"{named}: no row has a response that is trained on; is cutoff_len {arguments.data.cutoff_len}?"
        )
    return kept, module["tokenizer"]


def meta_of(
    data: Any,
    vocabulary: Vocabulary,
    teacher: str = "",
    revision: str = "",
    k: int = 0,
    size: int = 0,
    temperature: float = 1.0,
) -> Meta:
    """A pack's header from LLaMA-Factory's data arguments; without a teacher, what `distill.pack.check` expects."""
    dataset = tuple(data.dataset)
    return Meta(
        vocabulary.fingerprint, data.template, data.cutoff_len, dataset, teacher, revision, temperature, k, size
    )


def teacher_arguments(settings: Distill) -> Arguments:
    """LLaMA-Factory's arguments of the teacher, for inference: its folder, bits, adapter; the dtype is its own."""
    from llamafactory.hparams import get_infer_args

    if not (Path(settings.teacher) / "config.json").is_file():
        raise UserError(f"teacher: no model in {settings.teacher}; name a folder with a config.json")
    given = read_train(settings.train, settings.overrides).values
    values = {key: given[key] for key in SHARED if key in given}
    values |= {"model_name_or_path": settings.teacher, "adapter_name_or_path": settings.teacher_adapter or None}
    values |= {"quantization_bit": settings.teacher_quantization_bit or None, "finetuning_type": "lora"}
    try:
        model, data, finetuning, _ = get_infer_args(values)
    except (ValueError, TypeError) as error:
        raise UserError(f"teacher: LLaMA-Factory refuses it: {str(error).splitlines()[0]}") from None
    return Arguments(model, data, None, finetuning)


def check_tokens(teacher: Arguments, student: Arguments, vocabulary: Vocabulary, rows: Sequence[Row]) -> int:
    """How many ids teacher and student share: distributions are over those.

    Raises UserError where a token of the rows is another one to the teacher, or a row is longer than what it can read.
    """
    from llamafactory.model import load_config, load_tokenizer

    place = teacher.model.model_name_or_path
    try:
        theirs = read_vocabulary(load_tokenizer(teacher.model)["tokenizer"])
    except OSError:
        raise UserError(f"teacher: no tokenizer in {place}; copy the model's own into it") from None
    used = {token for row in rows for token in row.ids}
    size = min(load_config(one.model).get_text_config().vocab_size for one in (teacher, student))
    if theirs.fingerprint != vocabulary.fingerprint:
        ours, same = ({number: data for data, number in one.ids.items()} for one in (vocabulary, theirs))
        shared = sum(ours.get(token, 0) == same.get(token, 1) for token in used)
        if shared < len(used):
            raise UserError(
                f"teacher: {shared / len(used):.1%} of the {len(used):,} tokens in the rows are the same ones in "
                f"its {theirs} and the student's {vocabulary}; name a teacher with the student's tokenizer"
            )
    if max(used) >= size:
        raise UserError(f"teacher: token {max(used)} stands in the rows, but its vocabulary is {size}")
    context, longest = context_of(teacher), max(len(row.ids) for row in rows)
    if longest > context:
        raise UserError(f"teacher: {place} reads {context} tokens, a row has {longest}; lower the recipe's cutoff_len")
    return size


def distributions(
    model: PreTrainedModel, rows: Sequence[Row], k: int = 20, vocabulary: int = 0, batch_tokens: int = 0
) -> Iterator[list[tuple[str, Positions]]]:
    """The k likeliest tokens of each label of `rows`, batch by batch, the longest rows first: [(key, positions)].

    Over the first `vocabulary` tokens (0: all). Rows are padded on the right, up to `batch_tokens` a batch (0: by the
    device); only positions that predict a label go through the language-model head. Raises UserError for NaN.
    """
    check_head(model, rows[0])
    size = vocabulary or model.get_output_embeddings().weight.shape[0]
    if k > size:
        raise UserError(f"k: {k} tokens a position are asked for, but the vocabulary has {size}")
    budget = batch_tokens or BATCH_TOKENS.get(model.device.type, BATCH_TOKENS["cuda"])
    # The last token that is predicted need not be read.
    pieces = [(number, (0, 0, max(2, row.scored[-1] + 1))) for number, row in enumerate(rows)]
    for batch in batches(pieces, budget):
        yield _score(model, [rows[number] for number, _ in batch], k, size)


@torch.inference_mode()
def _score(model: PreTrainedModel, rows: list[Row], k: int, size: int) -> list[tuple[str, Positions]]:
    places = [[place for place in row.scored if place] for row in rows]  # nothing predicts a row's first token
    ids = torch.zeros(len(rows), max(1, max(place[-1] for place in places)), dtype=torch.long)
    wanted = torch.zeros_like(ids, dtype=torch.bool)
    for line, (row, place) in enumerate(zip(rows, places, strict=True)):
        ids[line, : place[-1]] = torch.tensor(row.ids[: place[-1]])
        wanted[line, torch.tensor(place) - 1] = True
    # No mask: what is padded stands behind, where a causal model does not look.
    hidden = model.get_decoder()(input_ids=ids.to(model.device), use_cache=False).last_hidden_state
    hidden = hidden[wanted.to(hidden.device)]
    labels = [[row.labels[place] for place in found] for row, found in zip(rows, places, strict=True)]
    targets = torch.tensor([label for found in labels for label in found], device=hidden.device)
    found = [each.cpu().numpy() for each in head_top(model.get_output_embeddings(), hidden, targets, k, size)]
    ends = np.cumsum([len(place) for place in places])[:-1]
    parts = zip(*(np.split(each, ends) for each in found), strict=True)
    return [(row.key, _positions(row, *part)) for row, part in zip(rows, parts, strict=True)]


def _positions(row: Row, ids: np.ndarray, logprobs: np.ndarray, tail: np.ndarray, chosen: np.ndarray) -> Positions:
    if np.isnan(logprobs).any() or np.isnan(tail).any():
        raise UserError(f"teacher: NaN in its log-probabilities of row {row.key[:12]}; load it in another precision")
    labels = np.array([row.labels[place] for place in row.scored])
    if row.scored[0] == 0:  # a first row that says nothing
        ids = np.concatenate([np.full_like(ids[:1], PAD), ids])
        logprobs = np.concatenate([np.full_like(logprobs[:1], -np.inf), logprobs])
        tail, chosen = np.append(0, tail), np.append(-np.inf, chosen)
    return to_positions(ids, logprobs, tail, labels, chosen)


def head_top(
    head: torch.nn.Module, hidden: torch.Tensor, targets: torch.Tensor, k: int, size: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """From hidden states (n, width): ids (n, k) and log p (n, k) of the k likeliest of the first `size` tokens, log of
    the mass of all others (n,), log p of `targets` (n,); float64, the largest first.

    In blocks of the logits, as `eval.perplexity.head_nll`. The tail is summed from its own parts, not as what is left
    of 1, so it is exact however small.
    """
    plain = type(head) is torch.nn.Linear and head.weight.device == hidden.device
    height, width = BLOCKS.get(hidden.device.type, BLOCKS["cuda"])
    buffer = torch.empty(height * width, device=hidden.device) if plain else None
    height = height if plain else max(1, WHOLE // head.out_features)
    found = []
    for states, wanted in zip(hidden.split(height), targets.split(height), strict=True):
        best = torch.empty(len(states), 0, device=hidden.device)
        ids, label, others, begin = best.long(), best.new_zeros(len(states)), [], 0
        for logits in blocks(head, states, width, buffer):
            logits = logits[:, : size - begin]
            if not logits.shape[1]:
                break
            inside = (wanted >= begin) & (wanted < begin + logits.shape[1])
            there = (wanted - begin).clamp(0, logits.shape[1] - 1)
            label = torch.where(inside, logits.gather(1, there[:, None])[:, 0], label)
            values, places = logits.topk(min(k, logits.shape[1]))
            others.append(_log_sum(logits.scatter_(1, places, -torch.inf), values[:, -1:]))
            values, places = torch.cat([best, values], 1), torch.cat([ids, places + begin], 1)
            best, ids, begin = values, places, begin + logits.shape[1]
            if values.shape[1] > k:
                best, order = values.topk(k)
                ids = places.gather(1, order)
                others.append(_log_sum(values.scatter_(1, order, -torch.inf), best[:, -1:]))
        best, order = best.sort(descending=True)
        ids = ids.gather(1, order)
        tail = torch.stack(others).double().logsumexp(0)
        total = torch.cat([best.double(), tail[:, None]], 1).logsumexp(1)
        found.append((ids, best - total[:, None], tail - total, label - total))
    return tuple(torch.cat(parts) for parts in zip(*found, strict=True))


def _log_sum(logits: torch.Tensor, peak: torch.Tensor) -> torch.Tensor:
    """log Σ exp over the last axis of logits (n, m) that are at most `peak` (n, 1); they are overwritten."""
    peak = peak.clamp_min(torch.finfo(logits.dtype).min)
    return logits.sub_(peak).exp_().sum(-1).log_().add_(peak[:, 0])


if __name__ == "__main__":
    main(Distill, score, __doc__, load_distill)
