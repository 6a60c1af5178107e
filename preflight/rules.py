"""Combinations that LLaMA-Factory 0.9.5 accepts and that are wrong or useless, each with its reason and remedy.

A rule is data: the keys it concerns (the first one given is its place), when it holds, why, and what to do.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from preflight import REFUSED, WARNED, Finding, Recipe


@dataclass(frozen=True)
class Machine:
    """What the rules need to know about where they run, and about the model folder."""

    gpu: bool = False
    avx512_bf16: bool = False  # bitsandbytes' CPU kernels repack the weights at an evaluation there
    cards: int = 0
    model_type: str = ""  # config.json's
    quantised: bool = False  # the folder holds quantised weights
    zero: int = 0  # ZeRO stage of the DeepSpeed file


class Rule(NamedTuple):
    keys: str
    when: Callable[[Recipe, Machine], object]
    what: str
    remedy: str
    grade: str = REFUSED


def hub(model: object) -> bool:
    """Whether a model is named by its hub id, not as a folder."""
    text = str(model or "")
    ours = text.startswith((".", "/", "~", "models/", "saves/"))
    return text.count("/") == 1 and not ours and not os.path.isdir(text)


def trackers(r: Recipe) -> set[str]:
    return set(r.report_to) if isinstance(r.report_to, list) else {str(r.report_to)}


def evaluates(r: Recipe) -> bool:
    return str(r.eval_strategy or "no") not in ("no", "False")


def installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def unsloth(r: Recipe) -> bool:
    return bool(r.use_unsloth)


def packs(r: Recipe) -> bool:
    return bool(r.packing or r.neat_packing)


# Model types with an Unsloth path of their own (unsloth 2026.10.7); others fall back, with a warning in the log only.
UNSLOTH_TYPES = {
    *("llama", "mistral", "qwen2", "qwen3", "qwen3_moe", "gemma", "gemma2", "gemma3", "gemma3_text", "gemma4"),
    *("granite", "cohere", "falcon_h1", "gpt_oss"),
}

RULES = [
    # Unsloth
    Rule(
        "neat_packing",
        lambda r, m: unsloth(r) and r.neat_packing,
        "Unsloth with neat_packing: it drops the mask that keeps packed rows apart, and cuts ids but not labels",
        "delete neat_packing; or delete use_unsloth, and add enable_liger_kernel: true",
    ),
    Rule(
        "packing",
        lambda r, m: unsloth(r) and r.packing and not r.neat_packing,
        "Unsloth with packing: packed rows are longer than its max_seq_length, so ids are cut and labels are not",
        "delete packing, and write train_sampling_strategy: group_by_length",
    ),
    Rule(
        "quantization_bit",
        lambda r, m: unsloth(r) and r.quantization_bit == 8,
        "Unsloth with quantization_bit 8: the 8 is not passed on, and the model is loaded in 16 bit",
        "write quantization_bit: 4, or delete use_unsloth",
    ),
    Rule(
        "model_name_or_path",
        lambda r, m: unsloth(r) and r.quantization_bit == 4 and hub(r.model_name_or_path),
        "Unsloth in 4 bit with a hub id: it silently loads a pre-quantised repository of its own, of another revision",
        "download the model and name its folder",
    ),
    Rule(
        "cutoff_len",
        lambda r, m: unsloth(r) and r.cutoff_len % 8,
        "Unsloth with a cutoff_len that is no multiple of 8: rows are padded past it and then cut",
        "write a multiple of 8, e.g. 2048",
    ),
    Rule(
        "enable_liger_kernel use_liger_kernel",
        lambda r, m: unsloth(r) and (r.enable_liger_kernel or r.use_liger_kernel),
        "Unsloth with Liger: Unsloth's kernels replace Liger's",
        "keep one of use_unsloth and enable_liger_kernel",
    ),
    Rule(
        "deepspeed",
        lambda r, m: unsloth(r) and r.deepspeed,
        "Unsloth with DeepSpeed: ZeRO-3 fails, and the others are not supported either",
        "delete use_unsloth and add enable_liger_kernel: true",
    ),
    Rule(
        "fsdp",
        lambda r, m: unsloth(r) and (r.fsdp or os.environ.get("ACCELERATE_USE_FSDP") == "true"),
        "Unsloth with FSDP: it can't shard Unsloth's model",
        "delete use_unsloth and add enable_liger_kernel: true",
    ),
    Rule(
        "use_unsloth",
        lambda r, m: (
            unsloth(r) and (m.cards > 1 or os.environ.get("FORCE_TORCHRUN", "0").lower() in ("1", "true", "y"))
        ),
        "Unsloth on several cards through LLaMA-Factory is not supported",
        "CUDA_VISIBLE_DEVICES=0 for one card; for several: use_unsloth=false enable_liger_kernel=true",
        WARNED,
    ),
    Rule(
        "use_unsloth_gc",
        lambda r, m: unsloth(r) and r.use_unsloth_gc,
        "Unsloth with use_unsloth_gc: Unsloth is always given its own checkpointing",
        "delete use_unsloth_gc",
    ),
    Rule(
        "disable_gradient_checkpointing",
        lambda r, m: unsloth(r) and r.disable_gradient_checkpointing,
        "Unsloth with disable_gradient_checkpointing: it is not heeded, Unsloth is always given its own",
        "delete disable_gradient_checkpointing",
    ),
    Rule(
        "use_dft_loss use_eaft_loss use_asft_loss",
        lambda r, m: unsloth(r) and (r.use_dft_loss or r.use_eaft_loss or r.use_asft_loss),
        "Unsloth with a loss that needs whole logits: its fused loss is off, and memory grows by tokens x vocabulary",
        "delete use_unsloth, or the loss",
    ),
    Rule(
        "compute_accuracy",
        lambda r, m: unsloth(r) and r.compute_accuracy,
        "Unsloth with compute_accuracy: whole logits at every evaluation",
        "delete compute_accuracy",
    ),
    Rule(
        "predict_with_generate",
        lambda r, m: unsloth(r) and r.predict_with_generate,
        "Unsloth with predict_with_generate: the model is not put into its inference mode in a training run",
        "generate afterwards: make predict",
    ),
    Rule(
        "use_unsloth",
        lambda r, m: unsloth(r) and r.export_dir,
        "use_unsloth in an export: its adapter can't be merged here, the export aborts",
        "delete use_unsloth from the export",
    ),
    Rule(
        "use_unsloth",
        lambda r, m: unsloth(r) and m.model_type and m.model_type not in UNSLOTH_TYPES,
        "Unsloth has no path for this model type: it falls back to plain PEFT with no more than a warning in the log",
        "delete use_unsloth",
    ),
    Rule(
        "pissa_init",
        lambda r, m: unsloth(r) and r.pissa_init,
        "Unsloth with pissa_init: the initialisation is silently ignored",
        "delete pissa_init, or use_unsloth",
    ),
    Rule(
        "quantization_type double_quantization quantization_method",
        lambda r, m: (
            unsloth(r)
            and (r.quantization_type != "nf4" or r.double_quantization is False or r.quantization_method != "bnb")
        ),
        "Unsloth ignores quantization_type, quantization_method and double_quantization: it is always NF4, doubled",
        "delete the key, or use_unsloth",
    ),
    Rule(
        "model_revision",
        lambda r, m: unsloth(r) and r.model_revision not in (None, "main"),
        "Unsloth ignores model_revision",
        "download that revision and name its folder",
    ),
    Rule(
        "lora_dropout",
        lambda r, m: unsloth(r) and r.lora_dropout,
        "Unsloth with lora_dropout above 0: its fast LoRA kernels are off",
        "write lora_dropout: 0.0",
        WARNED,
    ),
    # Packing
    Rule(
        "packing",
        lambda r, m: r.packing and not r.neat_packing and r.stage == "sft",
        "packing without neat_packing: each row is trained with the rows before it in its context",
        "write neat_packing: true, or delete packing",
    ),
    Rule(
        "cutoff_len",
        lambda r, m: r.neat_packing and r.flash_attn != "fa2" and r.cutoff_len % 8,
        "neat_packing without FlashAttention-2: a cutoff_len that is no multiple of 8 crashes at the first step",
        "write a multiple of 8, e.g. 4096",
    ),
    Rule(
        "per_device_train_batch_size",
        lambda r, m: r.neat_packing and r.flash_attn == "fa2" and r.per_device_train_batch_size != 1,
        "neat_packing with fa2 takes one packed row a micro-batch",
        "write per_device_train_batch_size: 1 and put the tokens into cutoff_len",
    ),
    Rule(
        "per_device_eval_batch_size eval_strategy neat_packing",
        lambda r, m: (
            r.neat_packing
            and r.flash_attn == "fa2"
            and (evaluates(r) or r.do_eval)
            and r.per_device_eval_batch_size != 1
        ),
        "neat_packing with fa2 packs the evaluation set too, one row a micro-batch; the default is 8",
        "write per_device_eval_batch_size: 1",
    ),
    Rule(
        "train_sampling_strategy",
        lambda r, m: packs(r) and r.train_sampling_strategy == "group_by_length",
        "packed rows are all of one length: group_by_length does nothing",
        "delete train_sampling_strategy",
        WARNED,
    ),
    Rule(
        "include_num_input_tokens_seen",
        lambda r, m: r.neat_packing and r.include_num_input_tokens_seen == "non_padding" and r.flash_attn == "fa2",
        "neat_packing with fa2 has no attention mask to count tokens by: non_padding fails at the first step",
        "write include_num_input_tokens_seen: all",
    ),
    Rule(
        "include_num_input_tokens_seen",
        lambda r, m: r.neat_packing and r.include_num_input_tokens_seen == "non_padding" and r.flash_attn != "fa2",
        "neat_packing with non_padding: the token count is nonsense",
        "write include_num_input_tokens_seen: all",
        WARNED,
    ),
    # Attention and kernels
    Rule(
        "flash_attn",
        lambda r, m: r.flash_attn == "fa2" and not installed("flash_attn") and not r.use_v1_kernels,
        "flash_attn: fa2 without the package flash-attn: LLaMA-Factory only warns, and goes on with another attention",
        "write flash_attn: sdpa, or install flash-attn",
    ),
    Rule(
        "flash_attn",
        lambda r, m: r.flash_attn == "fa3",
        "flash_attn: fa3 is accepted as a word and then raises NotImplementedError",
        "write flash_attn: fa2 or sdpa",
    ),
    Rule(
        "use_liger_kernel",
        lambda r, m: r.enable_liger_kernel and r.use_liger_kernel,
        "enable_liger_kernel and use_liger_kernel would patch the model twice",
        "delete use_liger_kernel",
    ),
    Rule(
        "use_unsloth_gc",
        lambda r, m: r.use_unsloth_gc and r.disable_gradient_checkpointing,
        "use_unsloth_gc with disable_gradient_checkpointing: nothing is checkpointed",
        "delete one of them",
    ),
    Rule(
        "shift_attn",
        lambda r, m: r.shift_attn and m.model_type and m.model_type != "llama",
        "shift_attn is for Llama only; for others it is ignored with a warning",
        "delete shift_attn",
    ),
    # Quantisation and adapters
    Rule(
        "use_dora",
        lambda r, m: r.use_dora and (r.quantization_bit or m.quantised),
        "use_dora on a quantised model: LLaMA-Factory 0.9.5 always refuses it",
        "delete use_dora, or quantization_bit",
    ),
    Rule(
        "pissa_init",
        lambda r, m: r.pissa_init and r.quantization_bit,
        "pissa_init on a quantised model raises",
        "delete pissa_init, or quantization_bit",
    ),
    Rule(
        "quantization_bit",
        lambda r, m: r.quantization_bit and r.finetuning_type not in ("lora", "oft"),
        "quantization_bit needs finetuning_type lora or oft: quantised weights can't be trained",
        "delete quantization_bit for full tuning, or write finetuning_type: lora",
    ),
    Rule(
        "quantization_bit",
        lambda r, m: r.quantization_bit and r.quantization_method == "bnb" and r.quantization_bit not in (4, 8),
        "bitsandbytes has 4 and 8 bits",
        "write quantization_bit: 4",
    ),
    Rule(
        "quantization_bit",
        lambda r, m: r.quantization_bit and m.quantised,
        "the model folder is quantised already: quantization_bit has no effect",
        "delete quantization_bit, or name the 16-bit model",
        WARNED,
    ),
    Rule(
        "quantization_bit",
        lambda r, m: r.export_dir and r.quantization_bit,
        "an export merges into 16-bit weights: quantization_bit does not belong there",
        "delete quantization_bit",
    ),
    Rule(
        "export_dir",
        lambda r, m: (
            r.export_dir
            and any(
                os.path.realpath(str(r.export_dir)) == os.path.realpath(folder)
                for folder in [str(r.model_name_or_path or ""), *r.names("adapter_name_or_path")]
            )
        ),
        "export_dir is the model's or the adapter's own folder: the export would overwrite it",
        "name a new folder",
    ),
    Rule(
        "output_dir",
        lambda r, m: (
            r.do_train
            and r.output_dir
            and any(
                os.path.realpath(str(r.output_dir)) == os.path.realpath(folder)
                for folder in [str(r.model_name_or_path or ""), *r.names("adapter_name_or_path")]
            )
        ),
        "output_dir is the model's or the adapter's own folder: the run would write over it",
        "name a folder of its own, saves/…",
    ),
    Rule(
        "quantization_device_map",
        lambda r, m: r.do_train and r.quantization_device_map == "auto",
        "quantization_device_map: auto is for inference",
        "delete it",
    ),
    Rule(
        "create_new_adapter",
        lambda r, m: r.create_new_adapter and r.quantization_bit,
        "create_new_adapter on a quantised model: LLaMA-Factory refuses it",
        "delete create_new_adapter: the adapter is trained on; or export the first adapter and start from that model",
    ),
    Rule(
        "adapter_name_or_path",
        lambda r, m: r.quantization_bit and len(r.names("adapter_name_or_path")) > 1,
        "a quantised model takes one adapter",
        "export the first adapters and name the merged model",
    ),
    Rule(
        "adapter_name_or_path",
        lambda r, m: r.adapter_name_or_path and r.finetuning_type != "lora",
        "adapter_name_or_path needs finetuning_type: lora",
        "delete adapter_name_or_path, or write finetuning_type: lora",
    ),
    Rule(
        "resize_vocab",
        lambda r, m: r.resize_vocab and r.quantization_bit,
        "resize_vocab on a quantised model raises",
        "delete resize_vocab, or quantization_bit",
    ),
    Rule(
        "lora_rank lora_alpha lora_dropout lora_target use_rslora",
        lambda r, m: r.finetuning_type == "full" and any(k in r.values for k in ("lora_rank", "lora_alpha")),
        "lora_* keys have no effect with finetuning_type: full",
        "leave them if this is an override of a LoRA recipe",
        WARNED,
    ),
    Rule(
        "learning_rate",
        lambda r, m: (
            r.do_train and r.finetuning_type == "full" and r.stage == "sft" and r.learning_rate > 5e-4 and not r.use_cpu
        ),
        "a learning rate above 5e-4 in full tuning usually destroys what the model knows",
        "write about 1.0e-5",
        WARNED,
    ),
    Rule(
        "learning_rate",
        lambda r, m: r.do_train and r.stage in ("dpo", "kto") and r.learning_rate > 5e-5,
        "a learning rate above 5e-5 is far above what preference training bears",
        "write about 5.0e-6",
        WARNED,
    ),
    Rule(
        "learning_rate",
        lambda r, m: r.do_train and r.learning_rate > 5e-3,
        "a learning rate above 5e-3 diverges with nearly every model",
        "write about 1.0e-4 for LoRA, 1.0e-5 for full tuning",
        WARNED,
    ),
    Rule(
        "lora_rank lora_alpha lora_dropout lora_target use_rslora",
        lambda r, m: (
            r.do_train
            and r.adapter_name_or_path
            and not r.create_new_adapter
            and any(key in r.values for key in ("lora_rank", "lora_alpha", "lora_dropout", "lora_target", "use_rslora"))
        ),
        "lora_* keys beside adapter_name_or_path have no effect: the adapter that is trained on brings its own",
        "delete them",
        WARNED,
    ),
    Rule(
        "ref_model adapter_name_or_path",
        lambda r, m: (
            r.stage in ("dpo", "kto")
            and r.finetuning_type == "lora"
            and r.adapter_name_or_path
            and not (r.ref_model or r.create_new_adapter or r.pref_loss in ("orpo", "simpo"))
        ),
        "preferences on top of an adapter, without ref_model: the reference is the raw base, not the tuned model",
        "write ref_model: the base, and ref_model_adapters: the same adapter",
    ),
    # Losses
    Rule(
        "use_asft_loss",
        lambda r, m: r.use_asft_loss and r.finetuning_type == "lora" and not r.ref_model,
        "use_asft_loss with LoRA and no ref_model fails with a TypeError at the first step",
        "name ref_model, or delete use_asft_loss",
    ),
    Rule(
        "use_dft_loss use_eaft_loss use_asft_loss",
        lambda r, m: sum(map(bool, (r.use_dft_loss, r.use_eaft_loss, r.use_asft_loss))) > 1,
        "only one of use_dft_loss, use_eaft_loss and use_asft_loss is taken",
        "keep one",
    ),
    Rule(
        "train_on_prompt",
        lambda r, m: r.train_on_prompt and r.stage == "sft",
        "train_on_prompt: the questions are learnt as well as the answers",
        "delete it unless that is meant",
        WARNED,
    ),
    Rule(
        "mask_history",
        lambda r, m: r.train_on_prompt and r.mask_history,
        "train_on_prompt and mask_history exclude each other",
        "keep one",
    ),
    Rule(
        "ignore_pad_token_for_loss",
        lambda r, m: r.ignore_pad_token_for_loss is False,
        "ignore_pad_token_for_loss: false puts the padding into the loss",
        "delete it",
    ),
    # Data
    Rule(
        "streaming",
        lambda r, m: r.streaming and (r.max_steps or -1) < 1,
        "streaming needs max_steps: the length of the data is not known",
        "write max_steps, or delete streaming",
    ),
    Rule(
        "val_size",
        lambda r, m: r.streaming and 0 < (r.val_size or 0) < 1,
        "streaming needs a whole number of rows as val_size",
        "write e.g. val_size: 500",
    ),
    Rule(
        "max_samples",
        lambda r, m: r.streaming and r.max_samples,
        "max_samples with streaming is refused",
        "delete one of them",
    ),
    Rule(
        "val_size",
        lambda r, m: r.val_size == 1,
        "val_size: 1 is taken as all of the rows, not as one",
        "write a share below 1, or 2 rows and more",
    ),
    Rule(
        "val_size",
        lambda r, m: r.eval_dataset and (r.val_size or 0) > 0,
        "val_size and eval_dataset exclude each other",
        "keep eval_dataset, and delete val_size",
    ),
    Rule(
        "eval_strategy do_eval do_predict load_best_model_at_end",
        lambda r, m: (evaluates(r) or r.do_eval or r.do_predict) and not r.eval_dataset and not r.val_size,
        "an evaluation is asked for, and there is nothing to evaluate on",
        "name eval_dataset, or write val_size: 0.05",
    ),
    Rule(
        "eval_dataset",
        lambda r, m: r.do_train and set(r.names("dataset")) & set(r.names("eval_dataset")),
        "the same data set is trained and evaluated on: its loss says nothing about new questions",
        "name a held-out set (make data writes one), or use val_size",
        WARNED,
    ),
    Rule(
        "eval_dataset val_size",
        lambda r, m: r.do_train and (r.eval_dataset or r.val_size) and not evaluates(r) and not r.do_eval,
        "there is an evaluation set, and no evaluation is asked for",
        "write eval_strategy: steps and eval_steps, or do_eval: true",
        WARNED,
    ),
    Rule(
        "interleave_probs",
        lambda r, m: r.interleave_probs and r.mix_strategy == "concat",
        "interleave_probs has no meaning with mix_strategy: concat",
        "write mix_strategy: interleave_under or interleave_over",
    ),
    Rule(
        "dataset",
        lambda r, m: r.do_train and not r.dataset,
        "no data set is named",
        "write dataset: <name in dataset_info.json>",
    ),
    Rule(
        "template",
        lambda r, m: r.stage != "pt" and (r.do_train or r.export_dir) and not r.template,
        "no template is named: LLaMA-Factory guesses one from the tokenizer",
        "write template: qwen3, deepseekr1, qwen …",
        WARNED,
    ),
    # Training
    Rule(
        "do_train",
        lambda r, m: "output_dir" in r.values and not (r.do_train or r.do_eval or r.do_predict or evaluates(r)),
        "none of do_train, do_eval and do_predict is true: the run would load the model and end",
        "write do_train: true",
    ),
    Rule(
        "fp16 bf16",
        lambda r, m: r.fp16 and r.bf16,
        "fp16 and bf16 exclude each other",
        "keep bf16: true",
    ),
    Rule(
        "bf16 quantization_bit",
        lambda r, m: r.do_train and not (r.bf16 or r.fp16 or r.pure_bf16 or r.use_cpu or r.fp8 or r.deepspeed),
        "neither bf16 nor fp16: the run computes in fp32, several times slower and larger",
        "write bf16: true",
        WARNED,
    ),
    Rule(
        "pure_bf16",
        lambda r, m: r.pure_bf16 and r.quantization_bit,
        "pure_bf16 keeps the LoRA weights in bf16, where small updates are lost, to save a few hundred MB",
        "write bf16: true",
        WARNED,
    ),
    Rule(
        "pure_bf16",
        lambda r, m: r.pure_bf16 and m.zero == 3,
        "pure_bf16 is incompatible with ZeRO-3",
        "write bf16: true",
    ),
    Rule(
        "warmup_steps",
        lambda r, m: r.warmup_ratio and r.warmup_steps,
        "warmup_ratio and warmup_steps: only one of them counts",
        "keep warmup_steps (below 1 it is a share of the steps)",
    ),
    Rule(
        "load_best_model_at_end",
        lambda r, m: r.load_best_model_at_end and str(r.eval_strategy) != str(r.save_strategy) != "best",
        "load_best_model_at_end needs equal eval_strategy and save_strategy",
        "write both as steps, with save_steps a multiple of eval_steps",
    ),
    Rule(
        "load_best_model_at_end",
        lambda r, m: (
            r.load_best_model_at_end
            and str(r.eval_strategy) == str(r.save_strategy) == "steps"
            and (r.eval_steps or r.logging_steps or 1) >= 1
            and (r.save_steps or 500) % (r.eval_steps or r.logging_steps or 1)
        ),
        "load_best_model_at_end needs save_steps to be a multiple of eval_steps",
        "write save_steps as a multiple of eval_steps",
    ),
    Rule(
        "predict_with_generate",
        lambda r, m: r.predict_with_generate and (r.compute_accuracy or m.zero == 3),
        "predict_with_generate goes with neither compute_accuracy nor ZeRO-3",
        "delete predict_with_generate; make predict asks the tuned model afterwards",
    ),
    Rule(
        "predict_with_generate",
        lambda r, m: r.predict_with_generate and not all(map(installed, ("jieba", "nltk", "rouge_chinese"))),
        "predict_with_generate needs jieba, nltk and rouge_chinese, which the tested set leaves out",
        "delete predict_with_generate and use make predict, or install them",
        WARNED,
    ),
    Rule(
        "eval_strategy",
        lambda r, m: r.use_cpu and m.avx512_bf16 and r.quantization_bit == 4 and r.do_train and evaluates(r),
        "on a CPU with AVX512-BF16 an evaluation in the middle repacks bitsandbytes' weights, and training then fails",
        'write eval_strategy: "no" and do_eval: true, which evaluates at the end',
    ),
    Rule(
        "overwrite_output_dir",
        lambda r, m: r.overwrite_output_dir and r.do_train,
        "overwrite_output_dir: true switches resuming off: the same command starts over",
        "delete it; to start over once, give it as an override",
        WARNED,
    ),
    Rule(
        "save_only_model",
        lambda r, m: r.save_only_model and r.do_train and r.save_strategy not in ("no", False),
        "save_only_model: checkpoints lack the optimiser, and a resumed run goes on with a fresh one without a word",
        "delete it, unless the run is short",
        WARNED,
    ),
    Rule(
        "save_strategy",
        lambda r, m: r.do_train and r.save_strategy == "no" and not r.overwrite_output_dir,
        "nothing is saved before the end: an interrupted run starts from nothing",
        "write save_steps: 100",
        WARNED,
    ),
    Rule(
        "report_to",
        lambda r, m: {"wandb", "all"} & trackers(r) and not wandb_ready(),
        "report_to: wandb without a key and without a terminal aborts the run",
        "WANDB_MODE=offline (make sets it), or wandb login, or report_to=none",
        WARNED,
    ),
    Rule(
        "report_to use_swanlab",
        lambda r, m: r.use_swanlab and r.swanlab_mode != "local" and not swanlab_ready(),
        "use_swanlab in cloud mode without a login: the run would wait for a key",
        "swanlab_mode=local, or swanlab login, or SWANLAB_API_KEY in the environment",
    ),
    Rule(
        "push_to_hub",
        lambda r, m: r.push_to_hub,
        "push_to_hub uploads the adapter; one trained on patients' records may hold them",
        "delete it unless that is meant",
        WARNED,
    ),
    # Several cards and machines
    Rule(
        "deepspeed",
        lambda r, m: (
            r.deepspeed and os.environ.get("FORCE_TORCHRUN", "0").lower() not in ("1", "true", "y") and m.cards < 2
        ),
        "DeepSpeed is started through torchrun",
        "FORCE_TORCHRUN=1 before the command",
        WARNED,
    ),
    Rule(
        "enable_liger_kernel",
        lambda r, m: r.enable_liger_kernel and m.zero == 3,
        "Liger's fused loss fails under ZeRO-3, which has the head's weights on other cards (Liger-Kernel #1048)",
        "write enable_liger_kernel: false, or use ZeRO-2 or DDP",
    ),
    Rule(
        "ray_num_workers",
        lambda r, m: "ray_num_workers" in r.values and not uses_ray(),
        "ray_num_workers without USE_RAY=1 is ignored",
        "USE_RAY=1 before the command, or delete it",
        WARNED,
    ),
    Rule(
        "ray_num_workers",
        lambda r, m: uses_ray() and not m.cards and not ray_elsewhere(r),
        "Ray without a GPU: LLaMA-Factory takes each CPU for a device, asks 10 CPUs for each, and waits for ever",
        "start it where the GPUs are, or without USE_RAY",
    ),
    Rule(
        "ray_init_kwargs ray_num_workers",
        lambda r, m: uses_ray() and m.cards and not ray_elsewhere(r) and ray_cpus(r) < 10 * m.cards,
        "LLaMA-Factory asks Ray for 10 CPUs for every GPU of the machine; with fewer it waits for ever without a word",
        "ray_init_kwargs='{\"num_cpus\": N}' with N = 10 for each GPU, whatever there really is",
    ),
    Rule(
        "dataset_dir output_dir model_name_or_path",
        lambda r, m: (
            uses_ray() and not all(os.path.isabs(str(getattr(r, key))) for key in ("dataset_dir", "output_dir"))
        ),
        "Ray's workers start in another folder: relative paths are not found there",
        "give dataset_dir, output_dir and model_name_or_path as absolute paths",
    ),
    Rule(
        "use_swanlab report_to",
        lambda r, m: r.use_swanlab and "swanlab" in trackers(r),
        "use_swanlab and report_to: swanlab would log twice",
        "write report_to: none",
        WARNED,
    ),
]


def uses_ray() -> bool:
    return os.environ.get("USE_RAY", "0").lower() in ("1", "true", "y")


def ray_elsewhere(r: Recipe) -> bool:
    """Whether Ray joins a cluster that is already there, whose size is not known here."""
    given = r.ray_init_kwargs if isinstance(r.ray_init_kwargs, dict) else {}
    return "address" in given or bool(os.environ.get("RAY_ADDRESS"))


def ray_cpus(r: Recipe) -> int:
    """The CPUs that a local Ray would offer: what is asked for, or the machine's."""
    given = r.ray_init_kwargs if isinstance(r.ray_init_kwargs, dict) else {}
    return int(given.get("num_cpus", os.cpu_count() or 1))


def wandb_ready() -> bool:
    """Whether a wandb run can start: offline or disabled, a key in the environment, or a login on this machine."""
    if os.environ.get("WANDB_MODE", "").lower() in ("offline", "disabled", "dryrun") or os.environ.get("WANDB_API_KEY"):
        return True
    return _netrc_has("wandb.ai") or os.environ.get("WANDB_DISABLED", "").lower() == "true"


def swanlab_ready() -> bool:
    folder = os.environ.get("SWANLAB_SAVE_DIR", os.path.expanduser("~/.swanlab"))
    return bool(os.environ.get("SWANLAB_API_KEY")) or os.path.exists(os.path.join(folder, ".netrc"))


def _netrc_has(host: str) -> bool:
    try:
        with open(os.environ.get("NETRC", os.path.expanduser("~/.netrc")), encoding="utf-8") as file:
            return host in file.read()
    except (OSError, UnicodeDecodeError):
        return False


def check_rules(recipe: Recipe, machine: Machine) -> Iterator[Finding]:
    """The rules that hold. A recipe with a value of the wrong type is checked as far as its rules can be read."""
    for rule in RULES:
        try:
            holds = rule.when(recipe, machine)
        except (TypeError, ValueError, AttributeError):
            continue
        if holds:
            yield recipe.find(rule.grade, rule.keys, rule.what, rule.remedy)
