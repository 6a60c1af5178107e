"""The assistant against real servers: asked from Python, from a pipe, in a terminal, and when things go wrong."""

from __future__ import annotations

import fcntl
import io
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from chat.assistant import SERVE, Answer, MedicalAssistant, main
from chat.scenarios import read_scenarios
from chat.stream import Piece, Splitter
from preprocess import think
from recipe import UserError
from tests.conftest import ROOT
from tests.teacher import Teacher, teacher

KEY = "sk-planted-0123456789"
SCENARIOS = str(ROOT / "recipes/assistant/scenarios.yaml")
ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@pytest.fixture(scope="module")
def server() -> Iterator[Teacher]:
    with teacher(style="cot", keep=4) as running:
        yield running


@pytest.fixture(autouse=True)
def _no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.chdir(ROOT)


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "chat.assistant", "--scenarios", SCENARIOS, "--serve", f"{ROOT}/{SERVE}", *arguments]


def environment(**more: str) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "LANG": "C.UTF-8", "COLUMNS": "80"} | more


def run(*arguments: str, text: str = "", cwd: Path = ROOT, **more: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, between pipes."""
    return subprocess.run(
        command(*arguments), input=text, capture_output=True, text=True, cwd=cwd, env=environment(**more), check=False
    )


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., Any]:
    """The same in this process, a second faster: `called(*arguments, text="").returncode`."""

    def _called(*arguments: str, text: str = "") -> SimpleNamespace:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", command(*arguments)[2:])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
        capfd.readouterr()
        code: Any = 0
        try:
            main()
        except SystemExit as ended:
            code = ended.code
        written = capfd.readouterr()
        told = f"{code}\n" if isinstance(code, str) else ""  # which Python itself prints
        return SimpleNamespace(returncode=1 if told else code or 0, stdout=written.out, stderr=written.err + told)

    return _called


# --- thought and answer, as they stream -------------------------------------------------------------------------------

TEXTS = [
    "<think>\n先看体温，38.5 < 39。\n\n再看精神。\n</think>\n\n多喝水。\n\n两天不退就诊。\n",
    "先看体温。\n</think>\n\n多喝水。",
    "您好。\n<think>\n先看体温。\n</think>\n\n多喝水。",
    "< Thinking >先看体温</ thinking >\r\n多喝水。",
    "多喝水，CRP <8 mg/L 时 <b>不必</b>用药 <",
    "<think>\n先看体温",
    "<think>a<think>b</think>多喝水。",
    "<think>\n\n</think>\n\n多喝水。",
    "   \n ",
]


def joined(pieces: list[Piece]) -> tuple[str, str]:
    shown = {"thought": "", "answer": ""}
    for kind, text in pieces:
        if kind == "taken_back":
            shown = {"thought": shown["answer"], "answer": ""}
        else:
            shown[kind] += text
    return shown["thought"], shown["answer"]


@pytest.mark.parametrize("text", TEXTS)
def test_however_a_stream_is_cut_it_is_split_as_the_whole(text: str) -> None:
    parts = think.split(text)
    for size in range(1, len(text) + 1):
        splitter, pieces = Splitter(), []
        for begin in range(0, len(text), size):
            pieces += splitter.feed(text[begin : begin + size])
        pieces += splitter.end()
        assert joined(pieces) == (parts.think, parts.answer) and splitter.raw == text


def test_a_thought_that_the_prompt_opened_streams_as_one_the_next_time() -> None:
    first, second = Splitter(), Splitter(inside=True)
    assert [piece.kind for piece in first.feed(TEXTS[1])] == ["answer", "taken_back", "answer"] and first.unopened
    assert list(second.feed(TEXTS[1])) == [Piece("thought", "先看体温。"), Piece("answer", "多喝水。")]
    third = Splitter(inside=True)
    assert list(third.feed(TEXTS[3])) == [Piece("thought", "先看体温"), Piece("answer", "多喝水。")]
    assert second.unopened and not third.unopened


# --- asked from Python ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("thought", ["reasoning_content", "reasoning", "inline", "closing", "none"])
def test_streamed_or_not_it_is_the_same_answer(server: Teacher, thought: str) -> None:
    server.set(style="cot", thought=thought)
    with MedicalAssistant(server.base_url) as assistant:
        whole = assistant.ask_question("腹痛三天，怎么办？", "treatment")
        for _ in range(2):  # the second time it is known whether only a closing tag comes
            stream = assistant.stream("腹痛三天，怎么办？", "treatment")
            pieces = list(stream)
            assert stream.answer == whole
            model = [piece for piece in pieces if piece.kind != "note"]
            assert joined(model) == (whole.thought, whole.answer)
        assert not any(piece.kind == "taken_back" for piece in pieces)
    assert bool(whole.thought) == (thought != "none") and whole.finish_reason == "stop"
    assert str(whole) == "\n\n".join([whole.answer, *whole.notes]) and whole.notes
    assert [piece.text for piece in pieces if piece.kind == "note"] == list(whole.notes)


def test_a_scenario_is_its_prompt_and_history_comes_without_thoughts(server: Teacher) -> None:
    server.set(style="cot", thought="inline", keep=4)
    prompts = {one.id: one.prompt for one in read_scenarios(SCENARIOS).values()}
    with MedicalAssistant(server.base_url) as assistant:
        first = assistant.ask_question("孩子发热，怎么护理？", "pediatrics", max_tokens=300)
        lost = Answer("没有回答的问题", "pediatric", "", finish_reason="broken")
        assistant.ask_question("要去医院吗？", 9, history=[first, lost])
    one, two = server.stats()["bodies"][-2:]
    assert first.scenario == "pediatric" and first.thought
    assert one["messages"][0] == {"role": "system", "content": prompts["pediatric"]} and one["max_tokens"] == 300
    assert two["messages"] == [
        {"role": "system", "content": prompts["geriatric"]},
        {"role": "user", "content": "孩子发热，怎么护理？"},
        {"role": "assistant", "content": first.answer},
        {"role": "user", "content": "要去医院吗？"},
    ]
    assert two["max_tokens"] == 512


def test_what_no_longer_fits_is_left_out_oldest_first(server: Teacher) -> None:
    server.set(style="cot", keep=4)
    turns = [Answer(f"第{i}问" + "热" * 100, "diagnosis", f"第{i}答" + "水" * 100) for i in range(20)]
    with MedicalAssistant(server.base_url, context=2000) as assistant:
        answer = assistant.ask_question("然后呢？", max_tokens=512, history=turns)
        sent = server.stats()["bodies"][-1]["messages"]
        kept = (len(sent) - 2) // 2
        assert 3 <= kept < 20 and answer.left_out == 20 - kept
        assert [message["content"] for message in sent[1:3]] == [turns[-kept].question, turns[-kept].answer]
        with pytest.raises(UserError, match=r"about 6,001 tokens long: with max_tokens=512 the context of 2,000"):
            assistant.ask_question("热" * 6000)
        with pytest.raises(UserError, match="the question is empty"):
            assistant.ask_question(" \n")


def test_an_emergency_comes_before_the_server_is_asked() -> None:
    assistant = MedicalAssistant("http://127.0.0.1:9/v1", model="none")
    pieces = iter(assistant.stream("胸痛一小时，大汗淋漓"))
    kind, text = next(pieces)
    assert kind == "notice" and "120" in text
    with pytest.raises(UserError, match=r"127\.0\.0\.1:9/v1: .*see that the server runs"):
        next(pieces)
    assert next(iter(assistant.stream("胸痛一小时，大汗淋漓。" + "热" * 40_000))).kind == "notice"


def test_several_at_once(server: Teacher) -> None:
    server.set(style="cot", thought="inline")
    questions = [f"第{i}天咳嗽，怎么办？" for i in range(12)]
    with (
        teacher(style="cot", models="other") as second,
        MedicalAssistant(server.base_url) as one,
        MedicalAssistant(second.base_url) as two,
        ThreadPoolExecutor(6) as pool,
    ):
        here = pool.map(one.ask_question, questions)
        there = pool.map(lambda text: [*two.stream(text)], questions)
        assert (one.model, two.model) == ("teacher", "other")
        assert [answer.question for answer in here] == questions and all(list(there))


@pytest.mark.parametrize("leak", [False, True])
def test_a_wrong_key_is_told_in_the_servers_words(
    monkeypatch: pytest.MonkeyPatch, called: Callable[..., Any], leak: bool
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with teacher(key="right-key-0123456789", leak=leak) as server:
        assistant = MedicalAssistant(server.base_url, model="teacher")
        for ask in (
            assistant.ask_question,
            lambda text: list(assistant.stream(text)),
            lambda _: assistant._only_model(),
        ):
            with pytest.raises(
                UserError, match=r"HTTP 401, Incorrect API key.*set a valid key in \$OPENAI_API_KEY"
            ) as e:
                ask("发热")
            assert KEY not in str(e.value)
        result = called("--base-url", server.base_url, "-q", "发热")
        assert result.returncode == 1 and "Incorrect API key" in result.stderr and not result.stdout
        assert KEY not in result.stderr and len(result.stderr.splitlines()) == 1


def test_of_several_models_one_must_be_named() -> None:
    with teacher(models="alpha,beta") as server:
        with pytest.raises(UserError, match=r"which model\? it has alpha, beta; name one by --model"):
            MedicalAssistant(server.base_url).load_model()
        assert MedicalAssistant(server.base_url, model="beta").ask_question("发热").answer


def test_a_server_that_breaks_off_leaves_what_came(server: Teacher) -> None:
    with teacher(style="cot", thought="inline", faults=1.0, kinds="cut", max_faults=99) as broken:
        assistant = MedicalAssistant(broken.base_url)
        stream = assistant.stream("咳嗽三周，怎么办？")
        pieces = list(stream)
        answer = stream.answer
        assert answer.finish_reason == "broken" and broken.base_url in answer.error and "\n" not in answer.error
        assert answer.thought and joined([p for p in pieces if p.kind != "note"])[0] == answer.thought
        broken.set(style="cot", faults=0.0)
        assert assistant.ask_question("咳嗽三周，怎么办？").finish_reason == "stop"


@pytest.mark.parametrize("kind", ["html", "empty", "error", "type"])
def test_what_is_no_stream_is_an_error_and_no_answer(kind: str) -> None:
    with teacher(faults=1.0, kinds=kind, max_faults=99) as server:
        assistant = MedicalAssistant(server.base_url, model="teacher")
        stream = assistant.stream("发热")
        try:
            list(stream)
        except UserError as error:
            assert server.base_url in str(error) and "\n" not in str(error)
        else:
            assert kind == "type" and stream.answer.finish_reason == "stop"


def test_a_cut_thought_is_no_answer(server: Teacher) -> None:
    server.set(style="cot", thought="inline")
    with MedicalAssistant(server.base_url) as assistant:
        stream = assistant.stream("咳嗽三周，怎么办？", max_tokens=12)
        list(stream)
        assert stream.answer.finish_reason == "length" and stream.answer.thought and not stream.answer.answer
        assert stream.answer.notes == ()


# --- checkpoints ------------------------------------------------------------------------------------------------------


def test_a_folder_is_an_adapter_a_model_or_refused(tmp_path: Path, write: Callable[..., str]) -> None:
    serve = write("serve.yaml", f"model_name_or_path: {tmp_path}/base\nadapter_name_or_path: {tmp_path}/adapter\n")
    with pytest.raises(UserError, match=r"serve\.yaml: no folder .*/adapter; train it first"):
        MedicalAssistant(serve=serve)
    write("base/config.json", {"max_position_embeddings": 1024})
    write("base/model.safetensors", b"12")
    write("adapter/adapter_config.json", {"base_model_name_or_path": "Qwen/Nowhere"})
    with pytest.raises(UserError, match="adapter: no weights in it"):
        MedicalAssistant(serve=serve)
    write("adapter/adapter_model.safetensors", b"1")
    own = MedicalAssistant(serve=serve)
    assert own._overrides == [f"model_name_or_path={tmp_path}/base", f"adapter_name_or_path={tmp_path}/adapter"]
    assert own.context == 1024 and own.model.startswith("adapter-")
    write("other/config.json", {})
    write("other/model.safetensors", b"1")
    merged = MedicalAssistant(f"{tmp_path}/other", serve=serve)
    assert merged._overrides == [f"model_name_or_path={tmp_path}/other", "adapter_name_or_path=null"]
    write("adapter/adapter_config.json", {"base_model_name_or_path": f"{tmp_path}/other"})
    assert MedicalAssistant(serve=serve)._overrides[0] == f"model_name_or_path={tmp_path}/other"
    for checkpoint, message in (("nowhere", "no folder nowhere"), (str(tmp_path), "no adapter_config.json and no")):
        with pytest.raises(UserError, match=f"checkpoint: .*{message}"):
            MedicalAssistant(checkpoint, serve=serve)


def test_new_weights_in_the_same_folder_are_another_model(tmp_path: Path, write: Callable[..., str]) -> None:
    serve = write("serve.yaml", "model_name_or_path: x\n")
    write("m/config.json", {})
    write("m/model.safetensors", b"1")
    before = MedicalAssistant(f"{tmp_path}/m", serve=serve).model
    write("m/model.safetensors", b"12")
    assert MedicalAssistant(f"{tmp_path}/m", serve=serve).model != before


# --- batches ----------------------------------------------------------------------------------------------------------

ROWS = [
    {"question": "孩子三岁发热，怎么护理？", "scenario": "pediatrics", "max_tokens": 900},
    {"question": "咳嗽三周。"},
    {"question": "Chest pain for an hour, sweating", "scenario": "5"},
    {"question": "咳嗽三周。"},
]


def results(folder: Path) -> list[dict]:
    (path,) = folder.glob("batch_results_*.json")
    assert re.fullmatch(r"batch_results_\d{8}_\d{6}\.json", path.name)
    return json.loads(path.read_text(encoding="utf-8"))


def test_a_batch_has_the_references_form(
    server: Teacher, tmp_path: Path, write: Callable[..., str], called: Callable[..., Any]
) -> None:
    server.set(style="cot", thought="reasoning_content", keep=4)
    result = called("--base-url", server.base_url, "-b", write("in.json", ROWS), "-m", "700")
    assert result.returncode == 0, result.stderr
    rows = results(tmp_path)
    assert [row["question"] for row in rows] == [row["question"] for row in ROWS]
    assert [row["scenario"] for row in rows] == ["pediatric", "diagnosis", "emergency", "diagnosis"]
    assert all(row["answer"] in row["response"] and row["thought"] for row in rows)
    assert "120" in rows[2]["response"].split(rows[2]["answer"])[0]  # the warning, before the answer
    assert sorted(body["max_tokens"] for body in server.stats()["bodies"]) == [700, 700, 700, 900]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "发热", "scenario": "dentistry"}, "item 2: unknown scenario 'dentistry'; expected one of 1 diag"),
        ({"question": "发热", "max_tokens": 0}, "item 2: max_tokens: expected a whole number of 1 or more, got 0"),
        ({"question": ["发热"]}, "item 2: .*question"),
        ({"scenario": "diagnosis"}, "item 2: .*question"),
    ],
)
def test_a_wrong_row_is_refused_with_its_place_before_any_is_asked(
    server: Teacher, tmp_path: Path, write: Callable[..., str], called: Callable[..., Any], row: dict, message: str
) -> None:
    server.reset()
    result = called("--base-url", server.base_url, "-b", write("in.json", [ROWS[0], row]))
    assert result.returncode == 1 and re.search(rf"in\.json: {message}", result.stderr)
    assert len(result.stderr.splitlines()) == 1 and not list(tmp_path.glob("batch_*")) and not server.stats()["answers"]


@pytest.mark.slow
def test_a_batch_that_is_killed_goes_on(tmp_path: Path, write: Callable[..., str]) -> None:
    path = write("in.json", [{"question": f"第{i}天咳嗽，怎么办？", "scenario": i % 10 + 1} for i in range(60)])
    with teacher(style="cot", latency=0.5) as server:
        for _ in range(2):
            process = subprocess.Popen(
                command("--base-url", server.base_url, "-b", path),
                cwd=tmp_path,
                env=environment(),
                stderr=subprocess.DEVNULL,
            )
            before = server.stats()["answers"]
            while server.stats()["answers"] < before + 10:
                time.sleep(0.02)
            process.kill()
            process.wait()
        assert not list(tmp_path.glob("batch_*"))
        result = run("--base-url", server.base_url, "-b", path, cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        stats = server.stats()
    rows = results(tmp_path)
    assert [row["question"] for row in rows] == [f"第{i}天咳嗽，怎么办？" for i in range(60)]
    assert all(row["answer"] for row in rows)
    assert stats["answers"] <= 60 + 2 * 16  # what was in flight at each kill, and nothing else, was asked again


def test_failed_ones_are_marked_counted_and_asked_again(
    tmp_path: Path, write: Callable[..., str], called: Callable[..., Any]
) -> None:
    path = write("in.json", ROWS)
    with teacher(style="cot", refuses="max_tokens") as server:
        result = called("--base-url", server.base_url, "-b", path)
        assert result.returncode == 1 and "0 answers, 0 cut at max_tokens, 4 failed" in result.stdout
        assert "4 of 4 questions have no answer; the same command asks them again" in result.stderr
        (first,) = tmp_path.glob("batch_results_*.json")
        rows = json.loads(first.read_text(encoding="utf-8"))
        assert all(row["finish_reason"] == "failed" and "does not support max_tokens" in row["error"] for row in rows)
        assert rows[0]["response"] == "" and "120" in rows[2]["response"]  # the warning needs no model
        first.unlink()
        server.set(refuses="")
        assert called("--base-url", server.base_url, "-b", path).returncode == 0
        assert all(row["answer"] and "error" not in row for row in results(tmp_path))


# --- the command line, between pipes ----------------------------------------------------------------------------------


def test_a_pipe_gets_plain_text_and_answers_alone(server: Teacher, called: Callable[..., Any]) -> None:
    server.set(style="cot", thought="closing")
    result = run("--base-url", server.base_url, text="咳嗽三周，怎么办？\n\n/scenario 8\n孩子发热，怎么护理？\n")
    assert result.returncode == 0 and not ANSI.search(result.stdout + result.stderr)
    assert result.stdout.count("建议到门诊进一步检查") == 2 and "先看" not in result.stdout
    assert "儿科咨询" in result.stderr
    once = called("--base-url", server.base_url, "-q", "咳嗽三周，怎么办？", "--thought", "show")
    assert "先看" in once.stdout and once.stdout.index("先看") < once.stdout.index("建议到门诊")


def test_hostile_text_is_inert_in_a_pipe_too(server: Teacher, called: Callable[..., Any]) -> None:
    server.set(style="echo", thought="none")
    hostile = "清屏\x1b[2J标题\x1b]0;坏\x07\u202e倒\x9b31m覆盖\r改"
    result = called("--base-url", server.base_url, "-q", hostile)
    assert "清屏⟨U+001B⟩[2J标题⟨U+001B⟩]0;坏⟨U+0007⟩⟨U+202E⟩倒⟨U+009B⟩31m覆盖⟨U+000D⟩改" in result.stdout


def test_lines_without_an_answer_make_the_exit_code_1(server: Teacher, called: Callable[..., Any]) -> None:
    server.set(style="cot")
    result = called(
        "--base-url", server.base_url, text="/frob\n咳嗽三周，怎么办？\n" + "热" * 40_000 + "\n头晕怎么办？\n"
    )
    assert result.returncode == 1 and result.stdout.count("建议到门诊") == 2
    assert "no command /frob" in result.stderr and "tokens long" in result.stderr


def test_the_history_has_the_references_form(server: Teacher, tmp_path: Path, called: Callable[..., Any]) -> None:
    server.set(style="cot", thought="inline")
    called("--base-url", server.base_url, "--save-history", text="咳嗽三周。\n/clear\n/scenario 3\n怎样预防？\n")
    (path,) = tmp_path.glob("medical_conversation_*.json")
    rows = json.loads(path.read_text(encoding="utf-8"))
    assert [(row["scenario"], row["question"]) for row in rows] == [
        ("diagnosis", "咳嗽三周。"),
        ("prevention", "怎样预防？"),
    ]
    assert list(rows[0])[:4] == ["timestamp", "scenario", "question", "response"] and rows[0]["thought"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-s", "dentistry"], "error: unknown scenario 'dentistry'; expected one of 1 diagnosis"),
        (["-c", "saves/nowhere"], "error: checkpoint: no folder saves/nowhere"),
        (["--base-url", "127.0.0.1:8000"], "expected one like https://"),
        (["-c", "x", "--base-url", "y"], "name -c or --base-url, not both"),
        (["--scenarios", "nowhere.yaml"], "error: nowhere.yaml: no such file"),
        (["-m", "0"], "expected 1 or more"),
    ],
)
def test_a_wrong_command_is_one_line(
    server: Teacher, called: Callable[..., Any], arguments: list[str], message: str
) -> None:
    given = arguments if {"-c", "--base-url"} & set(arguments) else ["--base-url", server.base_url, *arguments]
    result = called(*given, "-q", "发热")
    assert (
        result.returncode in (1, 2) and message in result.stderr.splitlines()[-1] and "Traceback" not in result.stderr
    )


# --- a terminal -------------------------------------------------------------------------------------------------------


class Terminal:
    """A program in a terminal of its own, 80 columns wide."""

    def __init__(self, *arguments: str, **more: str) -> None:
        self.pid, self.descriptor = pty.fork()
        if not self.pid:
            values = environment(TERM="xterm-256color", **more)
            values.pop("COLUMNS")
            os.execvpe(sys.executable, command(*arguments), values)
        fcntl.ioctl(self.descriptor, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 80, 0, 0))
        self.text, self.seen = "", 0

    def until(self, pattern: str, seconds: float = 15.0) -> str:
        """What is written from where the last one ended, up to and with `pattern`."""
        deadline, raw = time.monotonic() + seconds, b""
        while not (found := re.compile(pattern).search(self.text, self.seen)):
            ready = select.select([self.descriptor], [], [], max(0.0, deadline - time.monotonic()))[0]
            assert ready, f"no {pattern!r} in {self.text[self.seen :]!r}"
            try:
                raw += os.read(self.descriptor, 65536)
            except OSError:
                raise AssertionError(f"it ended: {self.text[self.seen :]!r}") from None
            text = raw.decode(errors="ignore")
            if text.encode() == raw:
                self.text, raw = self.text + text, b""
        begin, self.seen = self.seen, found.end()
        return self.text[begin : self.seen]

    def send(self, text: str) -> None:
        os.write(self.descriptor, text.encode())

    def wait(self, seconds: float = 10.0) -> int:
        """The exit code, after reading what is left."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if select.select([self.descriptor], [], [], 0.05)[0]:
                with suppress(OSError):
                    self.text += os.read(self.descriptor, 65536).decode(errors="replace")
            done, status = os.waitpid(self.pid, os.WNOHANG)
            if done:
                return os.waitstatus_to_exitcode(status)
        raise AssertionError("it does not end")


@contextmanager
def terminal(*arguments: str, **more: str) -> Iterator[Terminal]:
    one = Terminal(*arguments, **more)
    try:
        yield one
    finally:
        with suppress(ProcessLookupError, ChildProcessError):
            os.kill(one.pid, signal.SIGKILL)
            os.waitpid(one.pid, 0)
        os.close(one.descriptor)


def test_a_conversation(server: Teacher) -> None:
    server.set(style="cot", thought="inline", keep=4)
    with terminal("--base-url", server.base_url, LANG="zh_CN.UTF-8") as one:
        one.until(r"\[1 症状诊断\] > ")
        one.send("腹痛怎么办？\n")
        shown = one.until(r"\[1 症状诊断\] > ")
        assert re.search(
            r"\x1b\[2m先看“腹痛怎么办”(?!.*\x1b\[0m“).*\x1b\[0m\r\n\r\n“腹痛怎么办”提示[^\x1b]*检查。", shown, re.DOTALL
        )
        one.send("/thought\n")
        one.until(r"隐藏思考[^>]*> ")
        one.send("/scenario 儿科咨询\n")
        one.until(r"\[8 儿科咨询\] > ")
        one.send("孩子发热，怎么护理？\n")
        shown = one.until(r"\[8 儿科咨询\] > ")
        assert re.search(r"思考 \d+ 字，/thought last 展开", shown) and "先看" not in shown
        one.send("/thought last\n")
        assert "先看" in one.until(r"\[8 儿科咨询\] > ")
        one.send("/frob\n")
        one.until("没有命令 /frob")
        one.send("/quit\n")
        assert one.wait() == 0
    sent = server.stats()["bodies"][-1]["messages"]
    assert [message["role"] for message in sent] == ["system", "user", "assistant", "user"]
    assert "先看" not in sent[2]["content"] and "<think>" not in sent[2]["content"]


@pytest.mark.slow
def test_a_hidden_thought_does_not_wipe_the_warning(server: Teacher) -> None:
    server.set(style="cot", thought="inline")
    with terminal("--base-url", server.base_url, "--thought", "hide") as one:
        one.until("> ")
        one.send("胸痛一小时，大汗淋漓\n")
        shown = one.until(r"thought: \d+ characters")
        assert re.search(r"120[^\x1b]*\x1b\[0m\r\n", shown) and not re.search(r"120[^\n]*\r\x1b\[2K", shown)


def test_ctrl_c_stops_the_answer_and_not_the_program(
    server: Teacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    server.set(style="cot", thought="none", latency=2.0, keep=4)
    with terminal("--base-url", server.base_url) as one:
        one.until("> ")
        one.send("咳嗽三周，痰中带血，怎么办？\n")
        one.until("提示")
        one.send("\x03")
        one.until(r"\[stopped, the answer is incomplete\]")
        one.until("> ")
        time.sleep(0.3)  # until it waits for a key
        one.send("\x03")
        one.until("Ctrl-D or /quit ends")
        one.until("> ")
        time.sleep(0.3)
        one.send("半句")
        one.until("半句")
        one.send("\x03")
        one.until("> ")
        server.set(style="cot", thought="none", keep=4)
        one.send("头晕怎么办？\n")
        one.until("建议到门诊")
        one.send("/save\n")
        one.until(r"medical_conversation_\d+_\d+\.json")
        one.until(r"diagnosis\] > ")
        one.send("\x04")
        assert one.wait() == 0
    (path,) = tmp_path.glob("medical_conversation_*.json")
    first, second = json.loads(path.read_text(encoding="utf-8"))
    assert first["finish_reason"] == "interrupted" and first["answer"] and second["finish_reason"] == "stop"
    assert second["question"] == "头晕怎么办？"
    assert server.stats()["bodies"][-1]["messages"][2] == {"role": "assistant", "content": first["answer"]}


@pytest.mark.slow
def test_a_server_that_dies_leaves_the_session_usable() -> None:
    with teacher(style="cot", thought="none", latency=4.0) as server, terminal("--base-url", server.base_url) as one:
        one.until("> ")
        one.send("咳嗽三周，痰中带血，怎么办？\n")
        one.until("提示")
        os.kill(server.pid, signal.SIGKILL)
        one.until(r"\[broken off, the answer is incomplete\]")
        one.until(re.escape(server.base_url))
        one.until("> ")
        one.send("还在吗？\n")
        one.until("see that the server runs")
        one.send("/help\n")
        one.until(r"/scenarios")
        one.until(r"diagnosis\] > ")
        one.send("\x04")
        assert one.wait() == 0


@pytest.mark.slow
def test_hostile_text_is_inert_in_a_terminal(server: Teacher) -> None:
    server.set(style="echo", thought="none")
    with terminal("--base-url", server.base_url, "-q", "清屏\x1b[2J\x1b]0;坏\x07\u202e倒[red]字[/red]:smile:") as one:
        shown = one.until(r"倒\[red\]字\[/red\]:smile:")
        assert "\x1b[2J" not in shown and "\x07" not in shown and "\u202e" not in shown and "⟨U+001B⟩[2J" in shown
        assert one.wait() == 0


@pytest.mark.slow
def test_a_paste_of_several_lines_is_one_question(server: Teacher) -> None:
    server.set(style="echo", thought="none", keep=4)
    lines = "第一行：发热\n\n第三行：咳嗽" + "很久" * 3000
    with terminal("--base-url", server.base_url) as one:
        one.until(r"\x1b\[\?2004h")  # the terminal is told that pastes are to be marked
        one.send(f"\x1b[200~{lines}\x1b[201~")
        one.until("很久" * 5)
        one.send("\n")
        one.until(r"AI|人工智能")
    assert server.stats()["bodies"][-1]["messages"][-1]["content"] == lines


def test_menus_fit_80_columns() -> None:
    from rich.cells import cell_len

    from chat.terminal import WORDS

    for words in WORDS.values():
        for text in words.values():
            assert all(cell_len(line.format(99_999, "")) <= 80 for line in text.splitlines()), text


# --- the real thing ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_tiny_model_talks(tiny: SimpleNamespace, tmp_path: Path) -> None:
    values = yaml.safe_load((ROOT / "recipes/demo/serve.yaml").read_text(encoding="utf-8"))
    values |= {"model_name_or_path": f"{tiny.root}/model", "adapter_name_or_path": tiny.adapter}
    (tmp_path / "serve.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    before = threading.active_count()
    with MedicalAssistant(tiny.adapter, serve=f"{tmp_path}/serve.yaml", scenarios=SCENARIOS) as assistant:
        url = assistant._settings.base_url
        whole = assistant.ask_question("孩子发热，怎么护理？", "pediatric", max_tokens=24)
        stream = assistant.stream("孩子发热，怎么护理？", "pediatric", max_tokens=24, history=[whole])
        assert list(stream) and whole.finish_reason == stream.answer.finish_reason == "length"
        rows = [{"question": "咳嗽三周。", "scenario": 1, "max_tokens": 8}, {"question": "头晕", "max_tokens": 8}]
        answers = assistant.ask_batch(rows, f"{tmp_path}/journal.jsonl")
        assert [answer.question for answer in answers] == ["咳嗽三周。", "头晕"] and not any(a.error for a in answers)
    assert threading.active_count() <= before + 1
    import socket

    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", int(url.split(":")[2].split("/")[0])))
    again = MedicalAssistant(tiny.adapter, serve=f"{tmp_path}/serve.yaml", scenarios=SCENARIOS)
    assert [one.answer for one in again.ask_batch(rows, f"{tmp_path}/journal.jsonl")] == [one.answer for one in answers]
    assert again._api is None  # all was answered: no server was started
