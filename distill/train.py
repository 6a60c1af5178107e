"""LLaMA-Factory's training with the loss of distillation: stored distributions of a teacher beside the labels.

    make distill RECIPE=healthai_distill
    python -m distill.train recipes/healthai_distill/distill.yaml alpha=0.7 learning_rate=1e-5

distill.yaml names the LLaMA-Factory recipe, the teacher's pack and the loss (`distill.settings`). An override of a key
that distill.yaml has is its own, any other is LLaMA-Factory's. Several GPUs, or FORCE_TORCHRUN=1 with NPROC_PER_NODE,
are used as `llamafactory-cli train` uses them; a second call goes on from the last checkpoint. Logged beside `loss`:
`ce`, `kl` (T² times the divergence), `agreement` (share of positions where the student's likeliest token is the
teacher's) and `without_teacher`, the share of positions that are learnt by cross-entropy alone.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from distill.loss import Loss
from distill.pack import Pack, check, read_vocabulary
from distill.settings import Distill, load_distill, read_train
from distill.weights import Weights
from preflight import Recipe
from recipe import UserError, atomic, check_model, main, read_text

# Keys that LLaMA-Factory would take, and why the loss can't be had with them.
REFUSED = {
    "packing": "rows that are packed can't be told apart",
    "neat_packing": "rows that are packed can't be told apart",
    "streaming": "the rows can't be held against the pack before training starts",
    "train_on_prompt": "what a prompt says is not the teacher's to predict; responses alone are distilled",
    "use_unsloth": "its model computes the loss itself, and was not shown to give the states that this one needs",
    "enable_liger_kernel": "it computes the loss itself, and was not shown to give the states that this one needs",
    "use_liger_kernel": "it computes the loss itself, and was not shown to give the states that this one needs",
    "deepspeed": "a head that is spread over processes was not shown to work; DDP does",
    "fsdp": "a head that is spread over processes was not shown to work; DDP does",
    "use_ray": "its workers would not have this loss",
    "use_mca": "it is another trainer",
    "use_hyper_parallel": "it is another trainer",
    "use_kt": "it is another trainer",
    "moe_aux_loss_coef": "it would be left out of the loss",
    "use_dft_loss": "it is another loss",
    "use_eaft_loss": "it is another loss",
    "use_asft_loss": "it is another loss",
    "label_smoothing_factor": "the teacher's distribution takes the place of smoothed labels",
}


def loss_of(settings: Distill, asked: float = 1.0) -> Loss:
    """The loss of a distill.yaml, for a teacher that was asked at temperature `asked`."""
    return Loss(settings.temperature, settings.alpha, settings.direction, settings.tail, asked)


def weights_of(settings: Distill) -> Weights:
    """The weights of a distill.yaml."""
    return Weights(settings.weight_thought, settings.weight_answer, settings.weight_markup, settings.weight_json)


def open_pack(settings: Distill, recipe: Recipe) -> Pack:
    """The pack, held against the recipe; UserError names the first thing that can't be, or doesn't belong together."""
    from distill.score import meta_of
    from preflight.data import Encoder

    loss_of(settings), weights_of(settings)
    if settings.k < 1:
        raise UserError(f"k: expected 1 or more of the stored tokens, got {settings.k}")
    if recipe.values.get("stage", "sft") != "sft":
        raise UserError(f"{recipe.place('stage')}: stage {recipe.stage}: only sft is distilled; write stage: sft")
    for key, why in REFUSED.items():
        if recipe.values.get(key) not in (None, False, "", 0):
            raise UserError(f"{recipe.place(key)}: {key}: {why}; add {key}=null to distill.yaml's overrides")
    pack, model = Pack.open(settings.pack), str(recipe.model_name_or_path or "")
    check_model(recipe.place("model_name_or_path"), model)
    try:
        encoder = Encoder(recipe)
    except OSError:
        raise UserError(f"{model}: no tokenizer that can be loaded in it; put the model's folder there") from None
    expected = meta_of(encoder.data, read_vocabulary(encoder.tokenizer), k=settings.k, size=head_size(recipe))
    check(pack.meta, replace(expected, temperature=pack.meta.temperature), settings.pack)
    return pack


def head_size(recipe: Recipe) -> int:
    """How many tokens the student's head has logits for, by its config.json; 0 where there is none here."""
    path = Path(os.path.expanduser(str(recipe.model_name_or_path))) / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        return int(config.get("text_config", config)["vocab_size"])
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return 0


def keep_settings(settings: Distill, recipe: Recipe, pack: Pack) -> None:
    """Leave what the loss hangs on beside the checkpoints; UserError where those that are there had something else."""
    folder = Path(str(recipe.values.get("output_dir") or "saves"))
    path = folder / "distill.json"
    now = settings.of_training() | {"rows": len(pack), "teacher": f"{pack.meta.teacher} {pack.meta.revision[:12]}"}
    now |= {"asked": pack.meta.temperature}
    goes_on = any(folder.glob("checkpoint-*")) and not recipe.values.get("overwrite_output_dir")
    if goes_on and not path.is_file():
        raise UserError(
            f"{folder}: the checkpoints there were trained without a teacher; name another output_dir (and run_name)"
        )
    if goes_on:
        before = json.loads(read_text(path))
        if changed := next((key for key in now if before.get(key) != now[key]), ""):
            raise UserError(
                f"{path}: the checkpoints were trained with {changed} {before.get(changed)}, now it is {now[changed]}; "
                "bring it back, or train into another output_dir (and run_name)"
            )
    if os.environ.get("LOCAL_RANK", "0") == "0":
        with atomic(path) as file:
            file.write(json.dumps(now, indent=1) + "\n")


def train(settings: Distill) -> None:
    """LLaMA-Factory's own run, with this loss in its trainer; on several GPUs, in a process for each."""
    recipe = read_train(settings.train, settings.overrides)
    if (count := processes()) > 1:
        _spread(count)
    pack = open_pack(settings, recipe)
    keep_settings(settings, recipe, pack)
    from llamafactory.train.sft import workflow
    from llamafactory.train.tuner import run_exp

    from distill.trainer import trainer_class

    loss = loss_of(settings, pack.meta.temperature)
    workflow.CustomSeq2SeqTrainer = trainer_class(pack, settings.k, loss, weights_of(settings))
    run_exp(recipe.values)


def processes() -> int:
    """How many processes LLaMA-Factory would start for a training: 1 in one that it has started."""
    from llamafactory.extras.misc import get_device_count, is_env_enabled

    if "LOCAL_RANK" in os.environ:
        return 1
    count = get_device_count()
    return int(os.environ.get("NPROC_PER_NODE", count)) if count > 1 or is_env_enabled("FORCE_TORCHRUN") else 1


def _spread(count: int) -> NoReturn:
    """Go on as torchrun, with the same command line in each process."""
    named = {"nnodes": "NNODES", "node_rank": "NODE_RANK", "master_addr": "MASTER_ADDR", "master_port": "MASTER_PORT"}
    given = [f"--{key}={os.environ[name]}" for key, name in named.items() if name in os.environ]
    command = ["torch.distributed.run", f"--nproc_per_node={count}", *(given or ["--standalone"])]
    os.execv(sys.executable, [sys.executable, "-m", *command, "-m", "distill.train", *sys.argv[1:]])


if __name__ == "__main__":
    main(Distill, train, __doc__, load_distill)
