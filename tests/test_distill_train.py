"""The trainer's side of distillation: weights of tokens, the model's loss, what is refused, and real training."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from distill.loss import Loss
from distill.pack import IGNORED, Pack, row_key
from distill.settings import Distill, load_distill, read_train
from distill.train import keep_settings, open_pack
from distill.trainer import Collator, Meter, check_head, covered, distil
from distill.weights import Weights, json_values, token_weights
from preflight import REFUSED, WARNED, Recipe
from preflight.distill import check_distill
from preflight.distill import read as read_to_check
from recipe import UserError

K = 5


@pytest.fixture(scope="module")
def taught(tiny: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A pack of the first 30 rows by the tiny model with its adapter, the rows, and a distill.yaml."""
    import yaml

    from distill.score import load_rows, read_recipe, score

    root = tmp_path_factory.mktemp("taught")
    keys = {"train": tiny.recipe, "pack": f"{root}/pack", "k": K, "limit": 30, "temperature": 2.0, "alpha": 0.7}
    score(Distill(**keys, teacher=f"{tiny.root}/model", teacher_adapter=tiny.adapter))
    (root / "distill.yaml").write_text(yaml.safe_dump(keys), encoding="utf-8")
    rows = [{"input_ids": list(row.ids), "labels": list(row.labels)} for row in load_rows(read_recipe(tiny.recipe))[0]]
    return SimpleNamespace(root=root, yaml=f"{root}/distill.yaml", rows=rows, pack=Pack.open(f"{root}/pack"))


def read(path: str, overrides: Sequence[str]) -> tuple[Distill, Recipe]:
    settings = load_distill(path, overrides)
    return settings, read_train(settings.train, settings.overrides)


def padded(features: list[dict[str, Any]]) -> dict[str, Any]:
    size = max(len(feature["input_ids"]) for feature in features) + 3
    rows = [(f["input_ids"], f["labels"], [1] * len(f["labels"])) for f in features]
    columns = [
        torch.tensor([row + [fill] * (size - len(row)) for row in column])
        for column, fill in zip(zip(*rows, strict=True), (0, IGNORED, 0), strict=True)
    ]
    return dict(zip(("input_ids", "labels", "attention_mask"), columns, strict=True))


def student(tiny: SimpleNamespace) -> torch.nn.Module:
    from recipes.demo.build_model import build_model

    return build_model(tiny.tokenizer, seed=1)


def weigh(tiny: SimpleNamespace, *weights: float) -> Callable[..., np.ndarray]:
    stops = {tiny.tokenizer.eos_token_id}
    return lambda ids, labels: token_weights(ids, labels, tiny.tokenizer, stops, Weights(*weights))


# --- the weights of tokens --------------------------------------------------------------------------------------------


def shown(tokenizer: Any, text: str, weights: Weights) -> list[tuple[str, float]]:
    """Runs of characters with the same weight; an end token and a newline follow the text."""
    ids = tokenizer(f"{text}<|im_end|>\n", add_special_tokens=False)["input_ids"]
    found = token_weights([0, *ids], [IGNORED, *ids], tokenizer, {tokenizer.eos_token_id}, weights)
    assert len(found) == len(ids)
    runs: list[tuple[list[int], float]] = []
    for token, weight in zip(ids, found.tolist(), strict=True):
        if runs and runs[-1][1] == weight:
            runs[-1][0].append(token)
        else:
            runs.append(([token], weight))
    return [(tokenizer.decode(run), weight) for run, weight in runs]


def test_each_segment_has_its_weight(tiny: SimpleNamespace) -> None:
    thought = "<think>\n咳嗽🤒三周，先查胸片。\n</think>\n\n"
    answer = '结论：{"reason": "咳\\"嗽", "diseases": ["肺炎", "龘"]}。'
    runs = shown(tiny.tokenizer, thought + answer, Weights(3, 1, 0.5, 2))
    assert runs == [
        ("<think>\n", 0.5),
        ("咳嗽🤒三周，先查胸片。", 3),
        ("\n</think>\n\n", 0.5),
        *([('结论：{"reason": "', 1), ('咳\\"嗽', 2), ('", "diseases": ["', 1), ("肺炎", 2), ('", "', 1), ("龘", 2)]),
        ('"]}。', 1),
        ("<|im_end|>\n", 0.5),
    ]


def test_an_answer_alone_and_a_thought_that_is_not_closed(tiny: SimpleNamespace) -> None:
    weights = Weights(3, 1, 0.5, 2)
    assert shown(tiny.tokenizer, "去门诊。", weights) == [("去门诊。", 1), ("<|im_end|>\n", 0.5)]
    assert shown(tiny.tokenizer, "<think>\n去门诊。", weights)[1] == ("去门诊。", 3)


def test_turns_are_weighed_one_by_one(tiny: SimpleNamespace) -> None:
    turn = tiny.tokenizer("<think>\n发热\n</think>\n\n休息。<|im_end|>")["input_ids"]
    weights, stops = Weights(3, 1, 0.5), {tiny.tokenizer.eos_token_id}
    one = token_weights(turn, turn, tiny.tokenizer, stops, weights)
    gap = tiny.tokenizer("还有呢？")["input_ids"]
    ids, labels = turn + gap + turn, turn + [IGNORED] * len(gap) + turn
    assert token_weights(ids, labels, tiny.tokenizer, stops, weights).tolist() == [*one, *one]


def test_equal_weights_are_ones(tiny: SimpleNamespace) -> None:
    assert token_weights([1, 2, 3], [IGNORED, 2, 3], tiny.tokenizer, set(), Weights(2, 2, 2, 2)).tolist() == [1, 1]


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ('{"a": "咳嗽", "b": ["肺炎", 3, {"c": "d"}]}', ["咳嗽", "肺炎", "d"]),
        ('说{明}：{"a" : "x: \\"y\\""} 与 {"b": ""}', ['x: \\"y\\"', ""]),
        ('```json\n{"a":\n"第一行\n第二行"}\n```', ["第一行\n第二行"]),
        ('{"a": "没有结尾', []),
        ('{"a": {"b": "内层完整"}, "c": ', ["内层完整"]),
        ('"a": "b"', []),
        ("没有对象", []),
        ("{" * 3000, []),
    ],
)
def test_values_of_json(text: str, values: list[str]) -> None:
    assert [text[begin:end] for begin, end in json_values(text)] == values


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ((-1.0, 1.0), "weight_thought: expected a number of 0 or more"),
        ((1.0, float("nan")), "weight_answer"),
        ((0.0,) * 4, "all 0"),
    ],
)
def test_weights_that_can_not_be_meant(values: tuple[float, ...], said: str) -> None:
    with pytest.raises(UserError, match=said):
        Weights(*values)


# --- the model's loss -------------------------------------------------------------------------------------------------


def loss_and_gradients(model: torch.nn.Module, batch: dict[str, Any], **more: Any) -> tuple[torch.Tensor, list[Any]]:
    model.train()
    model.zero_grad()
    loss = model(**batch, **more).loss
    loss.backward()
    return loss.detach(), [parameter.grad.clone() for parameter in model.parameters()]


@pytest.mark.parametrize("items", [None, torch.tensor(1234)])
def test_without_alpha_it_is_the_models_own_loss(
    tiny: SimpleNamespace, taught: SimpleNamespace, items: torch.Tensor | None
) -> None:
    model = student(tiny)
    batch = Collator(padded, taught.pack, K, weigh(tiny))(taught.rows[26:34])
    distill, meter = batch.pop("distill"), Meter()
    more = {} if items is None else {"num_items_in_batch": items}
    own, gradients = loss_and_gradients(model, batch, **more)
    distil(model, Loss(alpha=0.0), meter)
    assert torch.equal(loss_and_gradients(model, batch)[0], loss_and_gradients(model, batch, distill=None)[0])
    ours, same = loss_and_gradients(model, batch | {"distill": distill}, **more)
    assert ours.item() == pytest.approx(own.item(), rel=1e-6)
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-7) for a, b in zip(gradients, same, strict=True))
    figures = meter.take(lambda sums: sums)
    n = int((batch["labels"] != IGNORED).sum())
    own_mean = own.item() * (1 if items is None else int(items) / n)
    assert figures["ce"] == pytest.approx(own_mean, rel=1e-6) and figures["kl"] > 0
    untaught = sum(label != IGNORED for row in taught.rows[30:34] for label in row["labels"])
    assert figures["without_teacher"] == pytest.approx(untaught / n)


def test_evaluation_is_as_it_was(tiny: SimpleNamespace, taught: SimpleNamespace) -> None:
    model, batch = student(tiny).eval(), padded(taught.rows[:3])
    before = model(**batch)
    distil(model, Loss(), Meter())
    after = model(**batch)
    assert torch.equal(before.loss, after.loss) and torch.equal(before.logits, after.logits)


def test_the_distribution_at_a_position_is_of_its_token(tiny: SimpleNamespace, taught: SimpleNamespace) -> None:
    """The teacher's own model agrees with its pack everywhere, and is as far from it as fp16 rounding is."""
    from peft import PeftModel

    from recipes.demo.build_model import build_model

    model = PeftModel.from_pretrained(build_model(tiny.tokenizer), tiny.adapter)
    batch, meter = Collator(padded, taught.pack, K, weigh(tiny))(taught.rows[:6]), Meter()
    distil(model.get_base_model(), Loss(alpha=1.0, temperature=1.0), meter)
    with torch.no_grad():
        assert model(**batch).loss < 1e-5
    assert meter.take(lambda sums: sums)["agreement"] > 0.99


def test_weights_scale_nothing_and_shift_everything(tiny: SimpleNamespace, taught: SimpleNamespace) -> None:
    model, found = student(tiny), []
    distil(model, Loss(), Meter())
    for weights in ((3, 1, 0.5, 1), (6, 2, 1, 2), (1, 1, 3, 1)):
        batch = Collator(padded, taught.pack, K, weigh(tiny, *weights))(taught.rows[:4])
        found.append(loss_and_gradients(model, batch)[0].item())
    assert found[0] == pytest.approx(found[1], rel=1e-6) and abs(found[0] - found[2]) > 1e-4


def test_a_batch_whose_weights_are_all_0_is_a_loss_of_0(tiny: SimpleNamespace, taught: SimpleNamespace) -> None:
    model = student(tiny)
    distil(model, Loss(), Meter())
    batch = Collator(padded, taught.pack, K, weigh(tiny, 0, 0, 0, 1))(taught.rows[:2])
    loss, gradients = loss_and_gradients(model, batch)
    assert loss == 0 and not any(gradient.any() for gradient in gradients)


def test_fewer_alternatives_than_stored_put_the_rest_into_the_tail(
    tiny: SimpleNamespace, taught: SimpleNamespace
) -> None:
    row = taught.rows[0]
    ids, logprobs, tail = Collator(padded, taught.pack, 2, weigh(tiny)).teacher(row["input_ids"], row["labels"])
    whole = taught.pack.get(row_key(row["input_ids"], row["labels"]))
    assert np.array_equal(ids, whole.ids[:, :2]) and np.array_equal(logprobs, whole.logprobs[:, :2])
    assert np.allclose(np.exp(tail) + np.exp(logprobs).sum(1), np.exp(whole.tail) + np.exp(whole.logprobs).sum(1))


def test_models_that_change_their_logits_behind_the_head(tiny: SimpleNamespace) -> None:
    from transformers import Gemma2Config, Gemma2ForCausalLM

    check_head(tiny.model)
    assert not tiny.model.training and "forward" not in vars(tiny.model.get_decoder())
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    capped = Gemma2ForCausalLM(Gemma2Config(vocab_size=64, head_dim=16, num_key_value_heads=1, **sizes))
    with pytest.raises(UserError, match="Gemma2ForCausalLM: scales or caps its logits"):
        check_head(capped)


# --- what is refused --------------------------------------------------------------------------------------------------


def test_coverage_is_counted(taught: SimpleNamespace) -> None:
    said = covered(taught.pack, taught.rows)
    assert f"a teacher for 30 of {len(taught.rows)} rows" in said
    with pytest.raises(UserError, match=r"30 rows of tiny_train, none of them one of the 4 rows to train on"):
        covered(taught.pack, taught.rows[-4:])


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("packing=true", "packing: rows that are packed can't be told apart"),
        ("neat_packing=true", "neat_packing: rows that are packed"),
        ("use_unsloth=true", "use_unsloth: its model computes the loss itself"),
        ("enable_liger_kernel=true", "enable_liger_kernel: it computes the loss itself"),
        ("train_on_prompt=true", "train_on_prompt: what a prompt says is not the teacher"),
        ("label_smoothing_factor=0.1", "label_smoothing_factor: the teacher's distribution takes"),
        ("stage=pt", "stage pt: only sft is distilled"),
        ("template=qwen", r"was made with template qwen3, here it is qwen"),
        ("cutoff_len=256", r"was made with cutoff_len 512, here it is 256"),
        ("dataset=tiny_eval", r"was made with dataset tiny_train, here it is tiny_eval"),
        ("k=6", r"stores k = 5 tokens a position, 6 are asked for"),
        ("k=0", "k: expected 1 or more of the stored tokens, got 0"),
        ("alpha=2", "alpha: expected the share of the teacher"),
        ("tail=drop", "tail: expected one of"),
        ("weight_json=-1", "weight_json: expected a number of 0 or more"),
    ],
)
def test_what_does_not_go_is_refused_in_one_line(taught: SimpleNamespace, override: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as refused:
        open_pack(*read(taught.yaml, [override]))
    assert "\n" not in str(refused.value)


def test_a_rows_first_token_is_predicted_by_nothing(tiny: SimpleNamespace, taught: SimpleNamespace) -> None:
    """Its place in the teacher's columns and in the weights was given to the next row's."""
    first, second = (dict(row) for row in taught.rows[:2])
    labels = [*first["input_ids"][: len(first["labels"])]]
    whole = {"input_ids": first["input_ids"], "labels": labels}
    collator = Collator(padded, taught.pack, K, weigh(tiny, 3.0, 1.0, 0.5, 1.0))
    batch = collator([whole, second])["distill"]
    alone = collator([second])["distill"]
    n = len(labels) - 1
    assert len(batch["weights"]) == n + len(alone["weights"])
    assert all(torch.equal(batch[name][n:], alone[name]) for name in alone)


def test_a_pack_with_other_positions_is_refused(tiny: SimpleNamespace, taught: SimpleNamespace) -> None:
    row = taught.rows[0]
    found = taught.pack.get(row_key(row["input_ids"], row["labels"]))
    short = type(found)(found.ids[:-2], found.logprobs[:-2], found.tail[:-2], found.known[:-2])
    pack = SimpleNamespace(folder="pack", get=lambda _: short)
    with pytest.raises(UserError, match=r"pack: \d+ positions of a row that has \d+; score it again"):
        Collator(padded, pack, K, weigh(tiny, 1, 1, 1, 1))([row])
    with pytest.raises(UserError, match=r"pack: \d+ positions of a row"):
        covered(pack, [row])


def test_a_checkpoint_of_another_loss_is_not_gone_on_from(taught: SimpleNamespace, tmp_path: Path) -> None:
    def keep(*overrides: str) -> None:
        keep_settings(*read(taught.yaml, [f"output_dir={tmp_path}/saves", *overrides]), taught.pack)

    keep("alpha=0.3")
    keep("alpha=0.4")  # nothing was trained yet
    (tmp_path / "saves/checkpoint-3").mkdir()
    keep("alpha=0.4")
    told = tmp_path / "saves/distill.json"
    plain = told.read_text(encoding="utf-8")
    told.unlink()
    with pytest.raises(UserError, match=r"saves: the checkpoints there were trained without a teacher; name another"):
        keep("alpha=0.4")
    told.write_text(plain.replace('"asked": 1.0', '"asked": 3.0'), encoding="utf-8")
    with pytest.raises(UserError, match=r"were trained with asked 3\.0, now it is 1\.0"):
        keep("alpha=0.4")
    told.write_text(plain, encoding="utf-8")
    with pytest.raises(UserError, match=r"distill.json: the checkpoints were trained with alpha 0.4, now it is 0.5; "):
        keep("alpha=0.5")
    keep("alpha=0.5", "overwrite_output_dir=true")


def test_ids_that_the_students_head_lacks_are_refused(
    tiny: SimpleNamespace, taught: SimpleNamespace, tmp_path: Path
) -> None:
    for file in (tiny.root / "model").iterdir():
        (tmp_path / file.name).symlink_to(file)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").write_text(json.dumps(config | {"vocab_size": config["vocab_size"] - 64}))
    with pytest.raises(UserError, match=r"has ids up to \d+, the student's are below \d+"):
        open_pack(*read(taught.yaml, [f"model_name_or_path={tmp_path}"]))


def test_another_tokenizer_is_refused(tiny: SimpleNamespace, taught: SimpleNamespace, tmp_path: Path) -> None:
    from recipes.demo.build_model import build_model, build_tokenizer

    other = build_tokenizer(["别的文字，别的词表。another one"], 300)
    other.save_pretrained(tmp_path)
    build_model(other).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"was made with tokenizer [0-9a-f]{12}, here it is [0-9a-f]{12}"):
        open_pack(*read(taught.yaml, [f"model_name_or_path={tmp_path}"]))


def test_overrides_go_where_they_belong(taught: SimpleNamespace) -> None:
    settings, recipe = read(taught.yaml, ["alpha=0.1", "learning_rate=1e-5", "overrides=[use_unsloth=false]"])
    assert settings.alpha == 0.1 and settings.overrides == ["use_unsloth=false", "learning_rate=1e-5"]
    assert recipe.values["learning_rate"] == 1e-5 and recipe.values["use_unsloth"] is False
    assert open_pack(settings, recipe).meta.k == K


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("alhpa=0.7", "override 'alhpa=0.7': no key of distill.yaml, nor of LLaMA-Factory; did you mean alpha?"),
        ("learning_rat=1", "override 'learning_rat=1': no key .*; did you mean learning_rate?"),
        ("pack=", "distill.yaml: pack: name the folder"),
        ("overrides=[qqqqqq=1]", "override 'qqqqqq=1': .*; distill.train --help and .* list them"),
    ],
)
def test_a_key_of_neither_file(taught: SimpleNamespace, override: str, message: str) -> None:
    for reader in (read, read_to_check):
        with pytest.raises(UserError, match=message):
            reader(taught.yaml, [override])


def test_the_check_holds_the_first_rows_against_the_pack(taught: SimpleNamespace, tmp_path: Path) -> None:
    (part,) = check_distill(read_to_check(taught.yaml, ["tail=renormalise"]))
    assert part.grade == WARNED and re.search(r"a teacher for 30 of the first \d\d rows", part.what)
    whole = ["tail=renormalise", "max_samples=20"]
    assert list(check_distill(read_to_check(taught.yaml, whole))) == []
    rows = [{"instruction": "膝盖疼", "input": "", "output": "休息。"}]
    (tmp_path / "other.json").write_text(json.dumps(rows), encoding="utf-8")
    (tmp_path / "dataset_info.json").write_text(json.dumps({"tiny_train": {"file_name": "other.json"}}))
    (part,) = check_distill(read_to_check(taught.yaml, ["tail=renormalise", f"dataset_dir={tmp_path}"]))
    assert part.grade == WARNED and "its 30 rows know nothing of the first 1 to train on" in part.what


def test_a_model_that_is_not_there_and_a_damaged_row_are_findings(taught: SimpleNamespace, tmp_path: Path) -> None:
    (part,) = check_distill(read_to_check(taught.yaml, ["tail=renormalise", "model_name_or_path=/nope"]))
    assert part.grade == REFUSED and "no folder /nope" in part.what
    (file,) = Path(taught.pack.folder).iterdir()
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / file.name).write_bytes(data)
    (part,) = check_distill(read_to_check(taught.yaml, ["tail=renormalise", f"pack={tmp_path}"]))
    assert part.grade == REFUSED and "is damaged" in part.what


def test_a_distill_yaml_is_no_recipe(taught: SimpleNamespace) -> None:
    with pytest.raises(UserError, match=r"is a distill\.yaml itself"):
        read(taught.yaml, [f"train={taught.yaml}"])


def test_rows_of_which_no_position_is_known(taught: SimpleNamespace) -> None:
    found = taught.pack.get(row_key(taught.rows[0]["input_ids"], taught.rows[0]["labels"]))
    nothing = type(found)(found.ids, found.logprobs, found.tail, np.zeros_like(found.known))
    pack = SimpleNamespace(folder="pack", get=lambda _: nothing)
    with pytest.raises(UserError, match="1 of the 1 rows are in it, and no position of them is known"):
        covered(pack, taught.rows[:1])
