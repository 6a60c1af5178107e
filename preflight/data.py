"""The data sets of a recipe: registered, present, spelled for the template, short enough, with an end to learn.

Rows are turned into tokens by LLaMA-Factory's own converter and template, so that what is counted is what is trained.
To be quick, every text is first counted alone (by the Rust tokenizer, while LLaMA-Factory is still being imported); a
row is encoded exactly where it is near the limit, or the first of its kind.
"""

from __future__ import annotations

import contextlib
import difflib
import io
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from preflight import REFUSED, UNCHECKED, WARNED, Finding, Recipe
from preprocess.records import read_rows
from preprocess.think import has_tag, join, split
from recipe import UserError

MEDIA = ("images", "videos", "audios")
NEAR = 64  # tokens: nearer to the limit than this, a row's length is not left to a sum of parts


@dataclass(frozen=True)
class Rows:
    """The rows of one data set, as (id, row); `name` is its name in the registry, `role` its key in the recipe."""

    name: str
    role: str
    entry: dict[str, Any]
    rows: list[tuple[str, dict[str, Any]]]


@dataclass(frozen=True)
class Turn:
    """A row as LLaMA-Factory's converter gives it: its messages, the system text, the answers that are trained."""

    id: str
    system: str
    messages: list[dict[str, str]]
    answers: list[str]
    texts: int  # tokens of all texts, each counted alone


def foreign(recipe: Recipe) -> bool:
    """Whether the recipe is written for another working folder: it lies elsewhere, and its registry is not here."""
    here = Path(recipe.path).resolve().is_relative_to(Path.cwd())
    return not here and "dataset_dir" not in recipe.values and not os.path.isfile("data/dataset_info.json")


def load(recipe: Recipe) -> tuple[list[Rows], list[Finding]]:
    """Read every local JSON data set that the recipe names; what can't be read is a finding."""
    folder = str(recipe.dataset_dir or "data")
    if folder == "ONLINE" or folder.startswith("REMOTE:"):
        what = f"dataset_dir: {folder}: the data sets are on a hub"
        return [], [recipe.find(UNCHECKED, "dataset_dir", what, "download them to check them, and to train offline")]
    if foreign(recipe):
        what = "the recipe's paths do not start from this folder: its data, model and other files"
        return [], [recipe.find(UNCHECKED, "dataset_dir", what, "run from the folder that they start from")]
    tokens = os.path.expanduser(str(recipe.tokenized_path or ""))
    if recipe.tokenized_path and os.path.isdir(tokens) and os.listdir(tokens):
        what = f"tokenized_path: LLaMA-Factory trains on the token ids in {tokens}, whatever the data sets are now"
        return [], [recipe.find(UNCHECKED, "tokenized_path", what, "delete the folder where the data has changed")]
    try:
        registry = _registry(folder)
    except UserError as error:
        remedy = "`make data` writes it; dataset_dir is the folder that holds it, `.` in this repository"
        return [], [recipe.find(REFUSED, "dataset_dir", str(error), remedy)]
    sets, findings = [], []
    for role in ("dataset", "eval_dataset"):
        for name in recipe.names(role):
            try:
                sets.append(Rows(name, role, registry[name], _read(registry[name], folder)))
                findings += _check_ranking(recipe, sets[-1])
            except KeyError:
                what = f"{role}: {name} is not registered in {folder}/dataset_info.json"
                close = difflib.get_close_matches(name, registry, n=1)
                remedy = "`make data` registers it" + (f"; did you mean {close[0]}?" if close else "")
                findings.append(recipe.find(REFUSED, role, what, remedy))
            except UserError as error:
                findings.append(recipe.find(REFUSED, role, f"{role}: {name}: {error}", "mend it, or run `make data`"))
            except LookupError as error:
                what = f"{role}: {name}: {error.args[0]}"
                findings.append(recipe.find(UNCHECKED, role, what, "its rows are read when training starts"))
    return sets, findings


def _check_ranking(recipe: Recipe, part: Rows) -> Iterator[Finding]:
    ranked = recipe.values.get("stage", "sft") in ("dpo", "rm")
    if ranked != bool(part.entry.get("ranking")) and recipe.values.get("do_train"):
        kind = "pairs (chosen, rejected; ranking: true)" if ranked else "plain answers, and this set is ranked"
        what = f"{part.role}: {part.name}: stage {recipe.values.get('stage', 'sft')} needs {kind}"
        yield recipe.find(REFUSED, part.role, what, "name a data set of that kind")


class _Elsewhere(LookupError):
    """A data set that is not a local JSON file."""


def _registry(folder: str) -> dict[str, Any]:
    path = os.path.join(folder, "dataset_info.json")
    try:
        with open(path, encoding="utf-8") as file:
            registry = json.load(file)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    if not isinstance(registry, dict) or not all(isinstance(entry, dict) for entry in registry.values()):
        raise UserError(f"{path}: expected an object of data sets, each an object")
    return registry


def _read(entry: dict[str, Any], folder: str) -> list[tuple[str, dict[str, Any]]]:
    if any(key in entry for key in ("hf_hub_url", "ms_hub_url", "om_hub_url", "script_url", "cloud_file_name")):
        raise _Elsewhere("is on a hub, not a local file")
    if not isinstance(entry.get("file_name"), str):
        raise UserError("its entry names no file_name")
    path = os.path.join(folder, entry["file_name"])
    if not os.path.exists(path):
        raise UserError(f"no file {path}")
    if os.path.isdir(path) or not path.endswith((".json", ".jsonl")):
        raise _Elsewhere(f"{path} is no JSON file")
    rows = [(str(row.get("id", number)), row) for number, (_, row) in enumerate(read_rows(path))]
    if not rows:
        raise UserError(f"{path} holds no rows")
    return rows


def texts_of(value: Any) -> Iterator[str]:
    """Every string inside a row."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from texts_of(item)


def count_tokens(model: str, sets: Iterable[Rows]) -> dict[str, int]:
    """Text -> number of tokens by the model's tokenizer.json; {} where there is none. Runs without the GIL."""
    path = os.path.join(os.path.expanduser(model), "tokenizer.json")
    if not os.path.isfile(path):
        return {}
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(path)
    except Exception:  # the library raises bare Exception
        return {}
    tokenizer.no_truncation()
    texts = list(dict.fromkeys(text for part in sets for _, row in part.rows for text in texts_of(row)))
    counts: dict[str, int] = {}
    for start in range(0, len(texts), 1000):
        part = texts[start : start + 1000]
        codes = tokenizer.encode_batch_fast(part, add_special_tokens=False)
        counts |= {text: len(code) for text, code in zip(part, codes, strict=True)}
    return counts


class Encoder:
    """LLaMA-Factory's tokenizer, template and converter for a recipe."""

    def __init__(self, recipe: Recipe) -> None:
        from llamafactory.data.template import TEMPLATES, get_template_and_fix_tokenizer
        from llamafactory.hparams import DataArguments, ModelArguments
        from llamafactory.model import load_tokenizer

        if recipe.template and recipe.template not in TEMPLATES:
            raise UserError(f"template: {recipe.template} is unknown to LLaMA-Factory")
        names = {field.name for field in fields(DataArguments)} - {"interleave_probs", "tokenized_path"}
        self.data = DataArguments(**{key: value for key, value in recipe.values.items() if key in names})
        model = ModelArguments(model_name_or_path=os.path.expanduser(str(recipe.model_name_or_path)))
        with contextlib.redirect_stdout(io.StringIO()):
            self.tokenizer = load_tokenizer(model)["tokenizer"]
            self.size = len(self.tokenizer)
            self.template = get_template_and_fix_tokenizer(self.tokenizer, self.data)
        self.stops = set(self.template.get_stop_token_ids(self.tokenizer))
        # With packing, LLaMA-Factory's own arguments have already taken 1 off.
        self.limit = self.data.cutoff_len - (1 if self.template.efficient_eos else 0)

    def turn(self, part: Rows, id_: str, row: dict[str, Any], counts: dict[str, int], convert: Any) -> Turn | None:
        """One row, or None where LLaMA-Factory would drop it."""
        row = convert(row)
        prompt, response = row["_prompt"], row["_response"]
        paired = part.entry.get("ranking") or "kto_tag" in part.entry.get("columns", {})
        if len(prompt) % 2 != 1 or len(response) != (2 if paired else 1):
            return None
        contents = [message["content"] for message in [*prompt, *response]]
        if not all(isinstance(content, str) for content in contents):
            return None
        answers = [message["content"] for message in response if message["content"] or not paired]
        system = row["_system"] or ""
        longest = max(answers, key=lambda answer: counts.get(answer, len(answer)))
        messages = [*prompt, {"role": "assistant", "content": longest}]
        texts = [system, *(message["content"] for message in messages)]
        return Turn(id_, system, messages, answers, sum(self._count(text, counts) for text in texts))

    def _count(self, text: str, counts: dict[str, int]) -> int:
        if text not in counts:
            counts[text] = len(self.tokenizer.encode(text, add_special_tokens=False))
        return counts[text]

    def encode(self, turn: Turn) -> tuple[list[int], list[int]]:
        """The ids of everything, and of the last answer alone."""
        pairs = self.template.encode_multiturn(self.tokenizer, turn.messages, turn.system)
        return [token for pair in pairs for ids in pair for token in ids], pairs[-1][1]

    def converter(self, name: str) -> Any:
        from llamafactory.data.converter import get_dataset_converter
        from llamafactory.data.parser import get_dataset_list

        (attributes,) = get_dataset_list([name], str(self.data.dataset_dir))
        return get_dataset_converter(attributes.formatting, attributes, self.data)


def check_rows(recipe: Recipe, encoder: Encoder, part: Rows, counts: dict[str, int]) -> tuple[list[int], list[Finding]]:
    """The lengths of a data set's rows in tokens, end token included, and what is wrong with them."""
    if any(key in part.entry.get("columns", {}) for key in MEDIA):
        what = f"{part.role}: {part.name} has pictures or sound"
        return [], [recipe.find(UNCHECKED, part.role, what, "its lengths are not counted here")]
    rows = part.rows[: recipe.max_samples] if isinstance(recipe.max_samples, int) else part.rows
    turns, dropped = [], []
    convert = encoder.converter(part.name)
    blank = dict.fromkeys(key for _, row in part.rows for key in row)  # `datasets` fills a missing key with null
    for id_, row in rows:
        try:
            turn = encoder.turn(part, id_, blank | row, counts, convert)
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            what = f"{part.role}: {part.name}: row {id_}: {type(error).__name__} {error} in LLaMA-Factory's converter"
            remedy = "the columns of its entry in dataset_info.json and the row's keys must agree"
            return [], [recipe.find(REFUSED, part.role, what, remedy)]
        (turns if turn else dropped).append(turn or id_)
    findings = []
    if dropped:
        what = f"{part.role}: {part.name}: LLaMA-Factory would drop {_some(dropped, len(rows))}"
        remedy = "each row needs a text prompt and a text response (chosen and rejected, where ranked)"
        findings.append(recipe.find(REFUSED, part.role, what, remedy))
    if not turns:
        return [], findings
    findings += check_spelling(recipe, encoder, part, turns)
    lengths = measure(encoder, turns)
    if cut := [turn.id for turn, length in zip(turns, lengths, strict=True) if length > encoder.limit]:
        longest = -(-max(lengths) // 8) * 8 + 8
        what = f"{part.role}: {part.name}: longer than cutoff_len {recipe.cutoff_len}, {_some(cut, len(turns))}"
        what += " would lose the end of the question or of the answer"
        remedy = f"write cutoff_len: {longest}, or take these rows out"
        findings.append(Finding(REFUSED, recipe.place("cutoff_len", part.role), what, remedy))
    findings += check_end(recipe, encoder, part, turns[0])
    return lengths, findings


def measure(encoder: Encoder, turns: list[Turn]) -> list[int]:
    """Tokens of each row: exact near the limit, for dialogues and for the first of a kind; else text by text."""
    overhead: dict[tuple[bool, bool], int] = {}
    lengths = []
    for turn in turns:
        key = (bool(turn.system), has_tag(turn.messages[-1]["content"]))
        if len(turn.messages) > 2 or key not in overhead or turn.texts + overhead[key] > encoder.limit - NEAR:
            length = len(encoder.encode(turn)[0])
            overhead.setdefault(key, length - turn.texts)
        else:
            length = turn.texts + overhead[key]
        lengths.append(length)
    return lengths


def check_spelling(recipe: Recipe, encoder: Encoder, part: Rows, turns: list[Turn]) -> Iterator[Finding]:
    """Thoughts in the exact spelling that a reasoning template looks for, and in all rows or none."""
    from llamafactory.data.template import ReasoningTemplate

    answers = [(turn.id, answer) for turn in turns for answer in turn.answers]
    thinking = [(id_, answer) for id_, answer in answers if has_tag(answer)]
    reasoning = isinstance(encoder.template, ReasoningTemplate)
    if wrong := [id_ for id_, answer in thinking if not _exact(answer)]:
        what = f"{part.role}: {part.name}: the thought is not written <think>\\n…\\n</think>\\n\\n… in "
        what += _some(wrong, len(turns))
        remedy = "`make data` writes that spelling, which the templates recognise and the models were trained on"
        yield recipe.find(REFUSED if reasoning else WARNED, part.role, what, remedy)
    if empty := [id_ for id_, answer in answers if not split(answer).answer.strip()]:
        what = f"{part.role}: {part.name}: no answer in {_some(empty, len(turns))}"
        yield recipe.find(REFUSED, part.role, what, "take these rows out")
    if reasoning and thinking and recipe.values.get("enable_thinking", True) is False:
        what = f"enable_thinking: false removes the thought of {_some([id_ for id_, _ in thinking], len(turns))}"
        yield recipe.find(REFUSED, "enable_thinking", what, "delete enable_thinking")
    without = len(answers) - len(thinking)
    if reasoning and thinking and without:
        what = f"{part.role}: {part.name}: {without} of {len(answers)} answers have no thought, "
        what += f"and {recipe.template} teaches an empty one for them"
        yield recipe.find(
            WARNED, part.role, what, "keep one kind, or write enable_thinking: null to leave it out of the loss"
        )


def _exact(answer: str) -> bool:
    parts = split(answer)
    try:
        return not parts.fault and join(parts.think, parts.answer) == answer
    except ValueError:
        return False


def check_end(recipe: Recipe, encoder: Encoder, part: Rows, turn: Turn) -> Iterator[Finding]:
    """The end token is in the loss: without it the model never learns to stop."""
    _, answer = encoder.encode(turn)
    if not encoder.template.efficient_eos and not encoder.stops & set(answer[-3:]):
        what = (
            f"template: {recipe.template}: no end token at the end of the trained answer ({part.name}: row {turn.id})"
        )
        yield recipe.find(REFUSED, "template", what, "name the model's own template")


def check_overlap(recipe: Recipe, sets: list[Rows]) -> Iterator[Finding]:
    """Questions of the evaluation set that are trained on."""
    if not recipe.do_train:
        return
    seen = {key for part in sets if part.role == "dataset" for _, row in part.rows if (key := _question(part, row))}
    for part in sets:
        if part.role == "dataset" or part.name in recipe.names("dataset"):
            continue
        if both := [id_ for id_, row in part.rows if _question(part, row) in seen]:
            what = f"eval_dataset: {part.name}: in the training data too are {_some(both, len(part.rows))}"
            yield recipe.find(WARNED, "eval_dataset", what, "`make data` holds questions out by their hash")


def _question(part: Rows, row: dict[str, Any]) -> str:
    columns = part.entry.get("columns", {"prompt": "instruction", "query": "input"})
    if "messages" in columns or part.entry.get("formatting", "alpaca") != "alpaca":
        turns = row.get(columns.get("messages", "conversations"))
        return "\n".join(texts_of(turns[:1])) if isinstance(turns, list) else ""
    return "\n".join(str(row.get(columns.get(key)) or "") for key in ("prompt", "query")).strip()


def check_template(recipe: Recipe, encoder: Encoder, vocabulary: int) -> Iterator[Finding]:
    """The template's tokens are the model's, and the model's own chat template gives the same prompt."""
    if recipe.resize_vocab or recipe.default_system:
        return
    if len(encoder.tokenizer) > encoder.size:
        what = f"template: {recipe.template} adds tokens that the model has never seen"
        yield recipe.find(REFUSED, "template", what, "name the model's own template")
        return
    if vocabulary and encoder.size > vocabulary:
        what = f"the tokenizer has {encoder.size:,} tokens and the model {vocabulary:,}: they don't belong together"
        yield recipe.find(REFUSED, "model_name_or_path", what, "download the model folder again, whole")
        return
    own, theirs = _own_prompt(encoder), _their_prompt(encoder)
    if own and not theirs.startswith(own.rstrip()) and not own.startswith(theirs.rstrip()):
        what = f"template: {recipe.template} writes {theirs[-60:]!r} before the answer, the model's own chat template"
        what += f" {own[-60:]!r}: other servers would ask it otherwise than it was trained"
        yield recipe.find(WARNED, "template", what, "name the model's own template")


def _their_prompt(encoder: Encoder) -> str:
    messages = [{"role": "user", "content": "问"}, {"role": "assistant", "content": "<think>\n想\n</think>\n\n答"}]
    return encoder.tokenizer.decode(encoder.template.encode_oneturn(encoder.tokenizer, messages)[0])


def _own_prompt(encoder: Encoder) -> str:
    if not encoder.tokenizer.chat_template:
        return ""
    try:
        return encoder.tokenizer.apply_chat_template(
            [{"role": "user", "content": "问"}], tokenize=False, add_generation_prompt=True
        )
    except Exception:  # a chat template is any Jinja program
        return ""


def _some(ids: list[str], total: int) -> str:
    shown = ", ".join(dict.fromkeys(ids[:5]))
    return f"{len(ids)} of {total} rows ({shown}{', …' if len(ids) > 5 else ''})"
