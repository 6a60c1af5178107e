"""LLaMA-Factory's trainer with the loss of distillation in place of the model's own; all else stays as it is.

What changes: the collator adds to each training batch the teacher's distributions and the tokens' weights, and the
model's forward pass, given them, returns our loss and no logits. Evaluation is LLaMA-Factory's: eval_loss is plain
cross-entropy. A step's loss is Σ weight · loss / Σ weight over all of its micro-batches and processes, as the trainer's
own is a sum over its count of tokens.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from llamafactory.train.sft.trainer import CustomSeq2SeqTrainer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from chat.logprobs import PAD
from distill.loss import Figures, Loss, Teacher, chunked
from distill.pack import IGNORED, Pack, row_key
from distill.weights import Weights, token_weights
from recipe import UserError

Batch = dict[str, Any]
FIGURES = ("ce", "kl", "agreement", "without_teacher")


class Collator:
    """LLaMA-Factory's collator, and under `distill` what the loss needs: `ids`, `logprobs` (n, k), `tail`, `weights`
    (n,), of the batch's n labels that are not masked and that something predicts (not a row's first), row by row."""

    def __init__(self, plain: Callable[[list[Batch]], Batch], pack: Pack, k: int, weigh: Callable[..., np.ndarray]):
        self.plain, self.pack, self.k, self.weigh = plain, pack, k, weigh

    def __call__(self, features: list[Batch]) -> Batch:
        rows = [(feature["input_ids"], feature["labels"]) for feature in features]
        parts = [self.of_row(*row) for row in rows]
        columns = (torch.from_numpy(np.concatenate(column)) for column in zip(*parts, strict=True))
        distill = dict(zip(("ids", "logprobs", "tail", "weights"), columns, strict=True))
        return self.plain(features) | {"distill": distill}

    def of_row(self, input_ids: Sequence[int], labels: Sequence[int]) -> list[np.ndarray]:
        """The four columns of a row; UserError for a pack that has another number of positions for it."""
        columns = [*self.teacher(input_ids, labels), self.weigh(input_ids, labels)]
        n = sum(label != IGNORED for label in labels)
        if any(len(column) != n for column in columns):
            raise UserError(f"{self.pack.folder}: {len(columns[0])} positions of a row that has {n}; score it again")
        return [column[labels[0] != IGNORED :] for column in columns]

    def teacher(self, input_ids: Sequence[int], labels: Sequence[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The `Teacher` of a row, in numpy; nothing but −1 where the pack hasn't got it."""
        found = self.pack.get(row_key(input_ids, labels))
        if found is None:
            n = sum(label != IGNORED for label in labels)
            return np.full((n, self.k), PAD), np.zeros((n, self.k), np.float32), np.zeros(n, np.float32)
        found = found.top(self.k)
        return found.ids, found.logprobs, found.tail


class Meter:
    """Sums of the figures since they were last logged: cross-entropy, T²·D, agreeing, with a teacher, positions."""

    def __init__(self) -> None:
        self.sums = torch.zeros(5, dtype=torch.float64)

    def add(self, figures: Figures, known: torch.Tensor) -> None:
        columns = (figures.ce, figures.kl, figures.agrees, known, torch.ones_like(known))
        self.sums = self.sums.to(known.device) + torch.stack([column.double().sum() for column in columns])

    def take(self, gather: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, float]:
        """The means over all processes since the last call; `kl` and `agreement` over positions with a teacher."""
        ce, kl, agrees, known, positions = gather(self.sums[None]).sum(0).tolist()
        self.sums = torch.zeros_like(self.sums)
        values = (ce / max(positions, 1), kl / max(known, 1), agrees / max(known, 1), 1 - known / max(positions, 1))
        return dict(zip(FIGURES, values, strict=True))


def distil(model: torch.nn.Module, loss: Loss, meter: Meter) -> None:
    """Make a causal language model return the loss of distillation for a batch that has `distill` in it.

    In its own forward pass, so that what wraps the model (LoRA, DDP, autocast) sees head and loss as part of it.
    """
    plain = model.forward

    @functools.wraps(plain)
    def forward(
        *args: Any,
        labels: torch.Tensor | None = None,
        distill: Mapping[str, torch.Tensor] | None = None,
        num_items_in_batch: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        if distill is None:
            return plain(*args, labels=labels, **kwargs)
        states = model.get_decoder()(*args, **kwargs, use_cache=False).last_hidden_state
        scored = labels[:, 1:] != IGNORED  # position t predicts token t + 1
        teacher, weights = Teacher(distill["ids"], distill["logprobs"], distill["tail"]), distill["weights"]
        head = model.get_output_embeddings()
        total, figures = chunked(head, states[:, :-1][scored], labels[:, 1:][scored], weights, teacher, loss)
        meter.add(figures, teacher.known())
        count = weights.sum() if num_items_in_batch is None else num_items_in_batch
        return CausalLMOutputWithPast(loss=total / count.clamp(min=torch.finfo(weights.dtype).tiny))

    model.forward = forward


def trainer_class(pack: Pack, k: int, loss: Loss, weights: Weights) -> type[CustomSeq2SeqTrainer]:
    """LLaMA-Factory's trainer for supervised fine-tuning, with this loss."""

    class DistillTrainer(CustomSeq2SeqTrainer):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.meter, tokenizer = Meter(), self.processing_class
            stops = set(self.data_collator.template.get_stop_token_ids(tokenizer))
            weigh = functools.partial(token_weights, tokenizer=tokenizer, stops=stops, weights=weights)
            self.collator = Collator(self.data_collator, pack, k, weigh)
            model = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
            check_head(model)
            if self.is_world_process_zero():
                print(covered(pack, self.train_dataset), flush=True)
            distil(model, loss, self.meter)

        def get_train_dataloader(self) -> torch.utils.data.DataLoader:
            plain, self.data_collator = self.data_collator, self.collator
            try:
                return super().get_train_dataloader()
            finally:
                self.data_collator = plain

        def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple[list[Batch], torch.Tensor | None]:
            batches, count = super().get_batch_samples(*args, **kwargs)
            if count is None:
                return batches, None
            total = sum(batch["distill"]["weights"].sum() for batch in batches).to(self.args.device)
            if self.args.average_tokens_across_devices and self.args.world_size > 1:
                total = self.accelerator.gather(total).sum()
            return batches, total

        def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
            super().log(logs | self.meter.take(self.accelerator.gather) if "loss" in logs else logs, *args, **kwargs)

    return DistillTrainer


@torch.no_grad()
def check_head(model: torch.nn.Module) -> None:
    """UserError for a model that changes its logits behind the head (scales, caps): this loss would not see it.

    Its decoder is left out, for chosen states: a quantised one must not run before training (bitsandbytes on a CPU).
    """
    decoder, head = model.get_decoder(), model.get_output_embeddings()
    kept, training = vars(decoder).get("forward"), model.training
    states = 10 * torch.randn(1, 4, model.config.get_text_config().hidden_size).to(head.weight)
    decoder.forward = lambda *_, **__: BaseModelOutputWithPast(last_hidden_state=states)
    try:
        model.eval()
        whole = model(input_ids=torch.zeros(1, 4, dtype=torch.long, device=head.weight.device)).logits
        same = torch.allclose(head(states).float(), whole.float(), rtol=1e-3, atol=1e-3)
    finally:
        model.train(training)
        del decoder.forward
        if kept is not None:
            decoder.forward = kept
    if not same:
        raise UserError(f"{type(model).__name__}: scales or caps its logits behind the head; it can't be distilled yet")


def covered(pack: Pack, rows: Any) -> str:
    """How much of a data set the pack covers, in a line; each row of it is read and checked on the way.

    UserError where the pack has none of the rows.
    """
    count = positions = taught = taught_positions = 0
    for row in rows:
        found = pack.get(row_key(row["input_ids"], row["labels"]))
        count, taught = count + 1, taught + (found is not None)
        n = sum(label != IGNORED for label in row["labels"])
        if found is not None and len(found.known) != n:
            raise UserError(f"{pack.folder}: {len(found.known)} positions of a row that has {n}; score it again")
        positions += n
        taught_positions += 0 if found is None else int(found.known.sum())
    if taught and not taught_positions:
        raise UserError(
            f"{pack.folder}: {taught:,} of the {count:,} rows are in it, and no position of them is known: their text "
            "is not what the teacher wrote; build the data without changing it (normalise), then `make teach` anew"
        )
    if not taught_positions:
        raise UserError(
            f"{pack.folder}: {len(pack):,} rows of {', '.join(pack.meta.dataset)}, none of them one of the {count:,} "
            "rows to train on; has the data changed since `make teach`? run it again, into another folder"
        )
    return (
        f"{pack.folder}: a teacher for {taught:,} of {count:,} rows, {taught_positions:,} of {positions:,} tokens; "
        "the others are learnt by cross-entropy alone"
    )
