"""The assistant in a terminal, or between pipes: questions in, answers out as they come.

In a terminal thoughts are dimmed, and hidden or shown by /thought; Ctrl-C stops an answer. Between pipes each line of
standard input is a question, and only what answers it is written. Whatever a model writes is shown and does nothing.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.control import Control
from rich.segment import ControlType
from rich.text import Text

from chat.scenarios import Scenario, by_number, find
from chat.text import visible
from recipe import UserError, atomic

if TYPE_CHECKING:
    from chat.assistant import Answer, MedicalAssistant

LINE = Control(ControlType.CARRIAGE_RETURN, (ControlType.ERASE_IN_LINE, 2))
STYLES = {"thought": "dim", "notice": "bold red", "note": "dim"}
WORDS = {
    "zh": {
        "hello": "输入问题后按回车；/help 列出命令，Ctrl-C 停止回答，Ctrl-D 结束。",
        "help": "/scenario 8     换场景（编号、id 或名称），不写则看当前场景\n"
        "/scenarios      全部场景\n"
        "/thought        显示或隐藏思考；/thought last、/thought all 展开上一次、全部\n"
        "/save [文件]    保存对话，默认 medical_conversation_<时间>.json\n"
        "/clear          忘掉上文，从头开始\n"
        "/help           这份说明\n"
        "/quit           结束，同 Ctrl-D",
        "unknown": "没有命令 {}；/help 列出全部",
        "waiting": "等待回答…",
        "thinking": "思考中… {} 字",
        "thought": "思考 {} 字，/thought last 展开",
        "taken_back": "（以上是思考）",
        "shown": "显示思考",
        "hidden": "隐藏思考",
        "no_thought": "还没有思考内容",
        "cleared": "已忘掉上文",
        "saved": "已保存 {} 轮对话：{}",
        "nothing": "还没有对话可保存",
        "exists": "{} 已存在；换一个文件名",
        "left_out": "（上下文已满，最早的 {} 轮没有带上）",
        "length": "［到 {} 个 token 被截断；-m 可加大］",
        "unclosed": "［思考没有结束，没有回答；-m 可加大，现在是 {}］",
        "interrupted": "［已停止，回答不完整］",
        "broken": "［回答中断，不完整］",
        "stop_hint": "Ctrl-D 或 /quit 结束",
        "try": "可以这样问：",
        "mind": "请注意：",
    },
    "en": {
        "hello": "Type a question. /help lists commands, Ctrl-C stops an answer, Ctrl-D ends.",
        "help": "/scenario 8     change the scenario (number, id or name); alone: the present one\n"
        "/scenarios      all of them\n"
        "/thought        show or hide thoughts; /thought last, /thought all unfold them\n"
        "/save [FILE]    save the conversation, as medical_conversation_<time>.json\n"
        "/clear          forget what was said, begin anew\n"
        "/help           this list\n"
        "/quit           end, as Ctrl-D does",
        "unknown": "no command {}; /help lists them",
        "waiting": "waiting for an answer…",
        "thinking": "thinking… {} characters",
        "thought": "thought: {} characters, /thought last unfolds it",
        "taken_back": "(so far it was the thought)",
        "shown": "thoughts are shown",
        "hidden": "thoughts are hidden",
        "no_thought": "no thought so far",
        "cleared": "what was said is forgotten",
        "saved": "saved {} turns: {}",
        "nothing": "nothing to save so far",
        "exists": "{} is there already; name another file",
        "left_out": "(the context is full: the first {} turns were left out)",
        "length": "[cut at {} tokens; -m allows more]",
        "unclosed": "[the thought did not end, there is no answer; -m allows more than {}]",
        "interrupted": "[stopped, the answer is incomplete]",
        "broken": "[broken off, the answer is incomplete]",
        "stop_hint": "Ctrl-D or /quit ends",
        "try": "You might ask:",
        "mind": "Mind:",
    },
}


def stamp() -> str:
    return datetime.now().strftime("%Y%m%d_%H%M%S")


def write_list(path: str | Path, rows: Sequence[dict[str, Any]]) -> None:
    """A JSON list, one key a line."""
    with atomic(path) as file:
        json.dump(rows, file, ensure_ascii=False, indent=2)
        file.write("\n")


class Chat:
    """One conversation; `thought` is show, hide or None: shown in a terminal alone."""

    def __init__(
        self, assistant: MedicalAssistant, scenario: Scenario, max_tokens: int, language: str, thought: str | None
    ) -> None:
        self.assistant, self.scenario, self.max_tokens = assistant, scenario, max_tokens
        self.language, self.words = language, WORDS[language]
        plain = {"highlight": False, "markup": False, "emoji": False, "soft_wrap": True}
        self.out, self.err = Console(**plain), Console(stderr=True, **plain)
        self.live = self.out.is_terminal and not self.out.is_dumb_terminal
        self.thoughts = thought == "show" if thought else self.out.is_terminal
        self.turns: list[tuple[str, Answer]] = []  # with the time of each
        self.begin = 0  # the first turn that is context
        self.saved: set[str] = set()

    # --- the conversation ---------------------------------------------------------------------------------------------

    def run(self, question: str | None, save: bool) -> int:
        """One question, or as many as come; the exit code."""
        self.assistant.load_model()
        try:
            if question is not None:
                answer = self.ask(question)
                return (
                    130 if answer and answer.finish_reason == "interrupted" else int(not answer or bool(answer.error))
                )
            return self._talk() if sys.stdin.isatty() else self._read()
        finally:
            if save and self.turns:
                self.save("")

    def _talk(self) -> int:
        with suppress(ImportError):
            import readline

            readline.parse_and_bind("set enable-bracketed-paste on")  # a paste of several lines is one question
        self.say(self.words["hello"])
        self.show_scenario()
        while True:
            try:
                line = input(f"\n[{self.scenario.number} {self._name(self.scenario)}] > ")
            except KeyboardInterrupt:
                self.out.print()
                self.say(self.words["stop_hint"])
                continue
            except EOFError:
                self.out.print()
                return 0
            try:
                if not self.heed(line):
                    return 0
            except KeyboardInterrupt:
                self.out.print()

    def _read(self) -> int:
        """The lines of a pipe; 1 where one of them got no whole answer."""
        sys.stdin.reconfigure(errors="replace")
        failed = False
        for line in sys.stdin:
            turns = len(self.turns)
            if not self.heed(line):
                break
            failed |= bool(line.strip()) and not line.strip().startswith("/") and self._failed(turns)
        return int(failed)

    def _failed(self, turns: int) -> bool:
        return len(self.turns) == turns or bool(self.turns[-1][1].error)

    def heed(self, line: str) -> bool:
        """A command or a question; False at the end."""
        line = line.strip()
        word, _, rest = line.partition(" ")
        commands = {
            "/scenario": self.choose,
            "/scenarios": self.list_scenarios,
            "/thought": self.fold,
            "/save": self.save,
            "/clear": self.clear,
            "/help": lambda _: self.say(self.words["help"]),
        }
        if word in ("/quit", "/exit"):
            return False
        try:
            if word in commands:
                commands[word](rest.strip())
            elif word.startswith("/") and word[1:].isascii() and word[1:].isalpha():
                self.complain(self.words["unknown"].format(word))
            elif line:
                self.ask(line)
        except UserError as error:
            self.complain(str(error))
        return True

    # --- asking -------------------------------------------------------------------------------------------------------

    def ask(self, question: str) -> Answer | None:
        """Show an answer as it comes; None where there is none."""
        history = [answer for _, answer in self.turns[self.begin :]]
        at, shown, failure = datetime.now().isoformat(timespec="seconds"), _Shown(self), None
        question = question.encode(errors="replace").decode()  # half a character, of a terminal that is not UTF-8
        stream = self.assistant.stream(question, self.scenario.id, self.max_tokens, history)
        try:
            shown.wait()
            for kind, text in stream:
                shown.piece(kind, text)
        except KeyboardInterrupt:
            stream.interrupt()
        except UserError as error:
            failure = error
        answer = stream.answer
        incomplete = answer.finish_reason in ("length", "unclosed", "interrupted", "broken") and not failure
        shown.end(answer, self.words[answer.finish_reason].format(self.max_tokens) if incomplete else "")
        if failure:
            self.complain(str(failure))
            return None
        if answer.left_out:
            self.say(self.words["left_out"].format(answer.left_out))
        if answer.error:
            self.complain(answer.error)
        self.turns.append((at, answer))
        return answer

    # --- commands -----------------------------------------------------------------------------------------------------

    def choose(self, name: str) -> None:
        """Change the scenario; what was said stays the context."""
        if name:
            self.scenario = find(self.assistant.scenarios, name)
        self.show_scenario()

    def show_scenario(self) -> None:
        one = self.scenario
        lines = [f"{one.number} {one.zh} {one.en} · {one.specialty}", self.words["try"]]
        lines += [f"  {question}" for question in one.questions]
        if one.notes:
            lines += [self.words["mind"], *(f"  {note}" for note in one.notes)]
        self.say("\n".join(lines))

    def list_scenarios(self, _: str) -> None:
        for one in by_number(self.assistant.scenarios):
            self.say(f"{'*' if one is self.scenario else ' '}{one.number:>3} {one.id:<14} {one.zh} {one.en}")

    def fold(self, what: str) -> None:
        """Show or hide thoughts from now on, or show those of the last answer or of all."""
        thoughts = [answer.thought for _, answer in self.turns if answer.thought]
        if what in ("last", "all"):
            for thought in thoughts[-1:] if what == "last" else thoughts:
                self.out.print(Text(visible(thought), style="dim"))
            if not thoughts:
                self.say(self.words["no_thought"])
            return
        self.thoughts = not self.thoughts
        self.say(self.words["shown" if self.thoughts else "hidden"])

    def clear(self, _: str) -> None:
        self.begin = len(self.turns)
        self.say(self.words["cleared"])

    def save(self, name: str) -> None:
        """Write all turns, those before /clear too; a file that this conversation did not write stays as it is."""
        if not self.turns:
            self.say(self.words["nothing"])
            return
        path = name or f"medical_conversation_{stamp()}.json"
        if Path(path).exists() and path not in self.saved:
            raise UserError(self.words["exists"].format(path))
        write_list(path, [_row(at, answer) for at, answer in self.turns])
        self.saved.add(path)
        self.say(self.words["saved"].format(len(self.turns), path))

    # --- words --------------------------------------------------------------------------------------------------------

    def say(self, text: str) -> None:
        """Our own words: dimmed in a terminal; between pipes on standard error, off the answers."""
        (self.out if self.out.is_terminal else self.err).print(Text(visible(text), style="dim"))

    def complain(self, text: str) -> None:
        self.err.print(Text(visible(" ".join(text.split())), style="red"))

    def _name(self, scenario: Scenario) -> str:
        return scenario.zh if self.language == "zh" else scenario.en


class _Shown:
    """What of an answer stands on the screen; between pipes nothing but the notice does before the answer is whole."""

    def __init__(self, chat: Chat) -> None:
        self.chat, self.kind, self.answered, self.hidden = chat, "", False, 0
        self.passing = False  # whether the line that the cursor is in goes when something comes
        self.fresh = True  # whether that line is empty but for it

    def wait(self) -> None:
        """A line that goes when something comes."""
        self._pass(self.chat.words["waiting"])

    def piece(self, kind: str, text: str) -> None:
        """Show a piece as it comes."""
        if kind == "thought" and not self.chat.thoughts:
            self.hidden += len(text)
            self._pass(self.chat.words["thinking"].format(self.hidden))
        elif kind == "notice" or (kind != "note" and self.chat.out.is_terminal):
            self._show(kind, text)
        if kind == "notice":
            self.wait()

    def end(self, answer: Answer, mark: str) -> None:
        """Show what is still missing: between pipes all, or an answer that looked like a thought; then that it is
        incomplete, and the notes."""
        self._wipe()
        if answer.answer and not self.answered:
            if self.chat.thoughts and answer.thought and not self.chat.out.is_terminal:
                self._show("thought", answer.thought)
            self._show("answer", answer.answer)
        if mark:
            self._close()
            self.chat.say(mark)
        for note in answer.notes:
            self._show("note", note)
        self._close()

    def _show(self, kind: str, text: str) -> None:
        self._wipe()
        out = self.chat.out
        if kind == "taken_back":
            out.print()
            self.chat.say(self.chat.words["taken_back"])
            self.kind, self.answered, self.fresh = "", False, True
            return
        if self.kind and (kind != self.kind or kind == "note"):
            out.print("" if self.fresh else "\n")
        if self.hidden and kind == "answer" and out.is_terminal and not self.answered:
            self.chat.say(self.chat.words["thought"].format(self.hidden))
        self.kind, self.fresh = kind, False
        self.answered |= kind == "answer"
        out.print(Text(visible(text), style=STYLES.get(kind, "")), end="")

    def _pass(self, text: str) -> None:
        if self.chat.live:
            self._wipe()
            self._close()
            self.chat.out.print(Text(text, style="dim"), end="")
            self.passing = True

    def _close(self) -> None:
        """End the line that something stands in."""
        if not self.fresh:
            self.chat.out.print()
            self.fresh = True

    def _wipe(self) -> None:
        if self.passing:
            self.chat.out.control(LINE)
            self.passing = False


def _row(at: str, answer: Answer) -> dict[str, Any]:
    row = {"timestamp": at, "scenario": answer.scenario, "question": answer.question, "response": str(answer)}
    row |= {"answer": answer.answer, "thought": answer.thought, "finish_reason": answer.finish_reason}
    return row | ({"error": answer.error} if answer.error else {})
