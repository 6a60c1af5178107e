"""Perplexity of the response, before and after, on the very token ids that LLaMA-Factory trains on.

Every arm scores the same ids (`eval.tokens`): the base loaded once, adapters put on it one after the other, models of
their own loaded alone.

    perplexity = exp(Σ NLL / Σ tokens)      natural log, logits in fp32, log-sum-exp and sums in float64

`per_sample` has the two other means that are called perplexity, over rows: `geometric` exp(mean of NLL/tokens), what
a trainer's loss gives at batch size 1, and `arithmetic`, the mean of exp(NLL/tokens). Bits per byte (UTF-8) and per
character are of the response's text: its end token counts neither above nor below the line.

A row longer than the smallest context of all arms is scored in windows of that length, half a window apart: each
token in the first window that holds it, so that it sees all tokens before it, or at least half a context of them.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tqdm import tqdm

from eval.arms import Arm
from eval.statistics import ROUNDS, paired_ratio, sign_test
from eval.tokens import SEGMENTS, Arguments, Row, check_same, ids_hash, load_rows, read_arguments
from recipe import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

BATCH_TOKENS = {"cpu": 4096, "cuda": 16_384}  # padded tokens a batch
# Logits at a time, (tokens, vocabulary): few enough for a processor's cache (16 MiB), enough for a GPU (256 MiB).
BLOCKS = {"cpu": (1024, 4096), "cuda": (4096, 16_384)}
WHOLE = 1 << 25  # logits at a time where the head is no plain matrix and is asked for whole rows: 128 MiB

Window = tuple[int, int, int]


def windows(row: Row, context: int) -> list[Window]:
    """(begin, first, last): tokens `first` up to `last` of a row are scored, each seeing those from `begin` on.

    One for a row of which the model can read all; else one each `context // 2` tokens, of `context` tokens read.
    """
    found, begin, first = [], 0, row.start
    while first < row.end:
        last = min(row.end, begin + context + 1)  # `context` tokens predict the one after them, too
        if last > first:
            found.append((begin, first, last))
            first = last
        begin += max(1, context // 2)
    return found


def token_nll(
    model: PreTrainedModel, rows: list[Row], batch_tokens: int = 0, context: int = 1 << 30, label: str = ""
) -> list[np.ndarray]:
    """−log p of every scored token, in nats: one float64 array a row, in the order of `rows`.

    Rows are sorted by length and padded on the right, up to `batch_tokens` tokens a batch with the padding (0: by the
    device); only scored positions go through the language-model head.
    """
    check_head(model, rows[0])
    budget = batch_tokens or BATCH_TOKENS.get(model.device.type, BATCH_TOKENS["cuda"])
    pieces = [(index, window) for index, row in enumerate(rows) for window in windows(row, context)]
    result = [np.empty(row.end - row.start) for row in rows]
    with tqdm(total=len(pieces), desc=label, unit=" rows", disable=None) as progress:
        for batch in batches(pieces, budget):
            scores = _batch_nll(model, [(rows[index], window) for index, window in batch])
            for (index, (_, first, last)), nll in zip(batch, scores, strict=True):
                start = rows[index].start
                result[index][first - start : last - start] = nll
            progress.update(len(batch))
    return result


def batches(pieces: list[tuple[int, Window]], budget: int) -> Iterator[list[tuple[int, Window]]]:
    """Pieces by length, the longest first, as many as fit into `budget` padded tokens; one that is longer stands alone.

    A batch that does not fit into memory so fails at once.
    """
    batch: list[tuple[int, Window]] = []
    for piece in sorted(pieces, key=lambda piece: -_length(piece[1])):
        if batch and (len(batch) + 1) * _length(batch[0][1]) > budget:
            yield batch
            batch = []
        batch.append(piece)
    if batch:
        yield batch


def _length(window: Window) -> int:
    begin, _, last = window
    return last - 1 - begin  # the last token is predicted, not read


@torch.inference_mode()
def _batch_nll(model: PreTrainedModel, batch: list[tuple[Row, Window]]) -> list[np.ndarray]:
    ids = torch.zeros(len(batch), max(_length(window) for _, window in batch), dtype=torch.long)
    scored, targets = torch.zeros_like(ids, dtype=torch.bool), []
    for line, (row, window) in enumerate(batch):
        begin, first, last = window
        ids[line, : _length(window)] = torch.tensor(row.ids[begin : last - 1])
        scored[line, first - 1 - begin : last - 1 - begin] = True  # position t predicts token t + 1
        targets += row.ids[first:last]
    # No mask: what is padded stands behind, where a causal model does not look.
    hidden = model.get_decoder()(input_ids=ids.to(model.device), use_cache=False).last_hidden_state
    hidden = hidden[scored.to(hidden.device)]
    nll = head_nll(model.get_output_embeddings(), hidden, torch.tensor(targets, device=hidden.device))
    return np.split(nll.cpu().numpy(), np.cumsum([last - first for _, (_, first, last) in batch])[:-1])


def head_nll(head: torch.nn.Module, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """−log p, float64 (n,), of `targets` (n,) from hidden states (n, width), in blocks of the logits.

    A head that is a plain matrix is taken apart by its rows, too. One that isn't (a LoRA on it, a copy trained beside
    it, weights kept elsewhere) is asked for whole logits.
    """
    plain = type(head) is torch.nn.Linear and head.weight.device == hidden.device
    height, width = BLOCKS.get(hidden.device.type, BLOCKS["cuda"])
    buffer = torch.empty(height * width, device=hidden.device) if plain else None
    height = height if plain else max(1, WHOLE // head.out_features)
    nll = []
    for states, wanted in zip(hidden.split(height), targets.split(height), strict=True):
        found, totals = torch.zeros(len(wanted), device=hidden.device), []
        for logits in blocks(head, states, width, buffer):
            there = logits.gather(-1, wanted.clamp(0, logits.shape[-1] - 1)[:, None])[:, 0]
            found = torch.where((wanted >= 0) & (wanted < logits.shape[-1]), there, found)
            wanted = wanted - logits.shape[-1]
            peak = logits.amax(-1)
            totals.append(logits.sub_(peak[:, None]).exp_().sum(-1).log_().add_(peak))
        nll.append(torch.stack(totals).double().logsumexp(0) - found.double())
    return torch.cat(nll)


def blocks(
    head: torch.nn.Module, states: torch.Tensor, width: int, buffer: torch.Tensor | None
) -> Iterator[torch.Tensor]:
    """fp32 logits (n, vocabulary), or (n, `width`) a block: each in the same buffer, which saves the page faults."""
    if buffer is None:
        yield head(states).float()
        return
    for part, weight in enumerate(head.weight.split(width)):
        logits = buffer[: len(states) * len(weight)].view(len(states), len(weight))
        if weight.dtype == torch.float32:
            torch.mm(states, weight.T, out=logits)
        else:
            logits.copy_(states @ weight.T)
        yield logits if head.bias is None else logits.add_(head.bias[part * width :][: len(weight)])


@torch.inference_mode()
def check_head(model: PreTrainedModel, row: Row) -> None:
    """UserError for a model that scales or caps its logits behind the head, which `head_nll` would not see."""
    ids = torch.tensor([row.ids[:8]], device=model.device)
    whole = model(input_ids=ids, use_cache=False).logits.float()
    hidden = model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state
    if not torch.allclose(model.get_output_embeddings()(hidden).float(), whole, rtol=1e-3, atol=1e-3):
        raise UserError(f"{type(model).__name__}: it scales or caps its logits behind the head; it can't be scored yet")


def score(
    train: str, arms: Sequence[Arm], rows: list[Row], tokenizer: PreTrainedTokenizerBase, batch_tokens: int = 0
) -> tuple[dict[str, list[np.ndarray]], int]:
    """`token_nll` of the same rows by each arm, and the context (tokens) of the windows, the smallest of all arms.

    One model is in memory at a time: the recipe's, as it is loaded for training (4-bit included) and with one adapter
    after the other, then each model of its own.
    """
    settings = {arm.name: read_arguments(train, model=arm.place if arm.kind == "model" else "") for arm in arms}
    context = min(map(context_of, settings.values()))
    found: dict[str, list[np.ndarray]] = {}
    model, place = None, ""
    for arm in sorted(arms, key=lambda arm: arm.kind == "model"):
        if model is None or arm.kind == "model":
            model = None  # frees the one before
            _free()
            model, place = load_model(settings[arm.name], tokenizer), settings[arm.name].model.model_name_or_path
            _check_vocabulary(arm, model, rows)
        with _adapted(model, arm, place):
            try:
                found[arm.name] = token_nll(model, rows, batch_tokens, context, f"{arm.name:8}")
            except torch.OutOfMemoryError:
                raise UserError(f"{arm.name}: more than the GPU's memory; lower batch_tokens") from None
    model = None
    _free()
    return {arm.name: found[arm.name] for arm in arms}, context


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def context_of(arguments: Arguments) -> int:
    """How many tokens the model reads at once."""
    from llamafactory.model import load_config

    config = load_config(arguments.model).get_text_config()
    return getattr(config, "max_position_embeddings", None) or 1 << 30


def load_model(arguments: Arguments, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """The model of a recipe as LLaMA-Factory loads it, without an adapter."""
    from llamafactory.model import load_model as load

    return load(tokenizer, arguments.model, arguments.finetuning, is_trainable=False)


def _check_vocabulary(arm: Arm, model: PreTrainedModel, rows: list[Row]) -> None:
    highest, size = max(max(row.ids) for row in rows), model.get_input_embeddings().weight.shape[0]
    if highest >= size:
        raise UserError(f"{arm.name}: `vocab_size` of its model is {size}, but token {highest} stands in the rows")


@contextmanager
def _adapted(model: PreTrainedModel, arm: Arm, place: str) -> Iterator[None]:
    """Put an arm's adapter into the layers of the model, and take it out again."""
    from peft import PeftModel

    if arm.kind != "adapter":
        yield
        return
    before = dict(model.named_modules())
    try:
        tuned = PeftModel.from_pretrained(model, arm.place).eval()
    except (RuntimeError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{arm.name}: {arm.place} does not fit {place}; was it trained on it? ({reason})") from None
    yield
    tuned.unload()
    del model.peft_config  # else the next adapter is taken for a second one beside it
    for name, module in before.items():  # unload leaves the adapter's own copies of embeddings and head in the model
        if name and model.get_submodule(name) is not module:
            model.set_submodule(name, module)


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


def compared(nll: dict[str, np.ndarray], tokens: np.ndarray, rounds: int = ROUNDS) -> dict[str, Any]:
    """Perplexity by arm, and what each arm's is to the first's, from ΣNLL a row by arm and tokens a row.

    {arm: perplexity …, "tokens", "ratio": second arm / first, "ratios": {arm: {"value", "low", "high", "improved",
    "worse": rows, "p": sign test}}}. A row without tokens here is neither improved nor worse.
    """
    first, *others = nll
    ratios = {}
    for arm in others:
        improved, worse = int((nll[arm] < nll[first]).sum()), int((nll[arm] > nll[first]).sum())
        ends = paired_ratio(nll[first], nll[arm], tokens, rounds) or dict.fromkeys(("value", "low", "high"))
        ratios[arm] = ends | {"improved": improved, "worse": worse, "p": sign_test(improved, worse)}
    second = ratios[others[0]] if others else None
    return {
        **{arm: perplexity(values, tokens) for arm, values in nll.items()},
        "tokens": int(tokens.sum()),
        "ratio": second and {end: second[end] for end in ("value", "low", "high")},
        "ratios": ratios,
    }


def figures(rows: list[Row], nll: dict[str, list[np.ndarray]], rounds: int = ROUNDS) -> dict[str, Any]:
    """Every figure of a set of rows from its tokens' NLL by arm; `compare` says which."""
    tokens, table = token_counts(rows), {arm: sums(rows, values) for arm, values in nll.items()}
    whole = {arm: parts["all"] for arm, parts in table.items()}
    text = {arm: (parts["all"] - parts["end"]).sum() / math.log(2) for arm, parts in table.items()}
    means = {arm: values / tokens["all"] for arm, values in whole.items()}
    sizes = {"byte": sum(row.bytes for row in rows), "character": sum(row.characters for row in rows)}
    segments = {
        name: compared({arm: parts[name] for arm, parts in table.items()}, tokens[name], rounds)
        | {"share": float(tokens[name].sum() / tokens["all"].sum())}
        for name in SEGMENTS
        if tokens[name].sum()
    }
    return compared(whole, tokens["all"], rounds) | {
        "samples": len(rows),
        "per_sample": {
            "geometric": {arm: float(np.exp(mean.mean())) for arm, mean in means.items()},
            "arithmetic": {arm: float(np.exp(mean).mean()) for arm, mean in means.items()},
        },
        **{f"bits_per_{unit}": {arm: float(text[arm] / size) for arm in nll} for unit, size in sizes.items()},
        "segments": segments,
        "without": {
            name: [row.id for row, n in zip(rows, tokens[name], strict=True) if not n] for name in ("think", "answer")
        },
        "ids_sha256": ids_hash(rows),
        "rows": [
            {
                "id": row.id,
                "tokens": int(tokens["all"][i]),
                "nll": {arm: float(values[i]) for arm, values in whole.items()},
                "segments": {
                    name: {"tokens": int(tokens[name][i])} | {arm: float(table[arm][name][i]) for arm in table}
                    for name in SEGMENTS
                    if tokens[name][i]
                },
            }
            for i, row in enumerate(rows)
        ],
    }


def compare(
    train: str,
    arms: Sequence[Arm],
    dataset: str,
    batch_tokens: int = 0,
    limit: int = 0,
    train_rows: bool = True,
    rounds: int = ROUNDS,
) -> dict[str, Any]:
    """Score all arms on one data set; the `perplexity` part of metrics.json.

    {arm: perplexity …, "samples", "tokens", "ratio", "ratios": see `compared`,
     "per_sample": {"geometric": {arm: …}, "arithmetic": {arm: …}},
     "bits_per_byte": {arm: …}, "bits_per_character": {arm: …},
     "windowed", "skipped": ids, "context": tokens, "not_scored": {arm: why},
     "segments": {name: perplexity …, "tokens", "share": of all tokens, "ratio", "ratios"},
     "without": {"think": ids, "answer": ids}, "ids_sha256",
     "train": {arm: perplexity …, "samples", "tokens"}, of as many rows of the training set; or {"not_scored": why}
     "rows": [{"id", "tokens", "nll": {arm: nats}, "segments": {name: {"tokens", arm: nats …}}}]}

    `limit` takes the first rows (0: all), `train_rows` false leaves the training set out. Raises UserError for arms
    that are not comparable: whose tokenizer gives other ids, or that score every row exactly alike.
    """
    scored = [arm for arm in arms if arm.kind != "server"]
    if not scored:
        raise UserError("arms: none is a folder; a server tells no log-probabilities of a given text")
    rows, tokenizer = load_rows(read_arguments(train, dataset), limit)
    for arm in scored:
        if arm.place and (Path(arm.place) / "tokenizer_config.json").is_file():
            check_same(arm.name, rows, load_rows(read_arguments(train, dataset, arm.place), limit)[0])
    seen, why = _training_rows(train, len(rows)) if train_rows else ([], "switched off")
    nll, context = score(train, scored, rows + seen, tokenizer, batch_tokens)
    for one, other in combinations(nll, 2):
        if all(map(np.array_equal, nll[one], nll[other])):
            raise UserError(f"arms: {one} and {other} score every row exactly alike; are they the same weights?")
    return figures(rows, {arm: values[: len(rows)] for arm, values in nll.items()}, rounds) | {
        "context": context,
        "windowed": [row.id for row in rows if row.end - 1 > context],
        "skipped": [],
        "not_scored": {
            arm.name: "a server tells no log-probabilities of a given text" for arm in arms if arm.kind == "server"
        },
        "train": _gap(seen, {arm: values[len(rows) :] for arm, values in nll.items()}) if seen else {"not_scored": why},
    }


def _training_rows(train: str, count: int) -> tuple[list[Row], str]:
    """A sample of the recipe's training rows, or none and why: what was trained on need not be scorable."""
    try:
        return load_rows(read_arguments(train), sample=count)[0], ""
    except UserError as error:
        return [], str(error)


def _gap(rows: list[Row], nll: dict[str, list[np.ndarray]]) -> dict[str, Any]:
    tokens = token_counts(rows)["all"]
    values = {arm: perplexity(sums(rows, values)["all"], tokens) for arm, values in nll.items()}
    return values | {"samples": len(rows), "tokens": int(tokens.sum())}
