"""What is said before and after an answer: the emergency that a message tells of, the warnings that an answer needs.

    >>> found = emergency("我爸有高血压，今早突然嘴歪了，说话不清楚")
    >>> found.id, found.words
    ('stroke', ('嘴歪', '说话不清'))
    >>> emergency("没有胸痛，也没有出汗") is None
    True

The signs and their words are data (`emergencies.yaml`); when a sign is told of a person now is decided here, clause by
clause. It is not where the words are

    denied      没有胸痛; no chest pain, sweating or nausea
    past        三年前突然嘴歪; two years ago I passed out. 现在, 又, now … end the past
    asked       中风有哪些症状，比如口角歪斜吗; what are the signs of a stroke? A person (我爸) ends it
    supposed    如果有人胸痛大汗; if someone collapses
    a story     小说里的主角割腕了; an animal's; a figure of speech (笑死我了, dying of laughter)
    steady      胸痛三年了; on and off for months: where a sign is an emergency only when new

A case of a textbook (患者，男，65岁，突发胸痛…最可能的诊断是; a 65-year-old man presents with …) is asked, not
told. The same words without a question of an examination, as patients and bystanders write them (男，65岁，突发胸痛),
are told. In doubt a sign is told: a notice too many costs a line, one too few may cost a life.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import opencc
import yaml

from chat.wording import ASK_A_DOCTOR, NO_VISIT, PROMISE, PROMISES, any_of, close, denied, fold, promised

SIGNS = Path(__file__).with_name("emergencies.yaml")
MOST_CHARACTERS = 3_000  # that are looked at, at either end of a message
NEAR = 10  # clauses within which the parts of a sign stand
REACH = 80  # characters before a word that may deny it
CALL = {
    "zh": "请立即拨打 120，或马上去最近的急诊。",
    "en": "Call 120 now (outside mainland China, your local emergency number) or go to the nearest emergency room.",
}

_HAN = "\u3400-\u9fff"
_SIMPLIFIED = opencc.OpenCC("t2s")
_PLAIN = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | {0x3000: " ", 0x2019: "'", 0x2018: "'"}
_INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufe0f\ufeff]")


@dataclass(frozen=True)
class Sign:
    """An entry of the list; a pattern is the parts that must stand near one another."""

    id: str
    name: dict[str, str]
    do: dict[str, str]
    call: dict[str, str]
    example: dict[str, str]
    steady: bool
    patterns: tuple[tuple[re.Pattern[str], ...], ...]


@dataclass(frozen=True)
class Emergency:
    """A sign that a message tells of, and the words that say so."""

    sign: Sign
    words: tuple[str, ...]

    @property
    def id(self) -> str:
        return self.sign.id

    def notice(self, language: str = "zh") -> str:
        """What to do now, in two lines; `language` is zh or en."""
        name, call, do = (texts[language] for texts in (self.sign.name, self.sign.call, self.sign.do))
        if language == "zh":
            return f"⚠️ 这可能是急症：{name}。{call}\n在救援到来之前：{do}"
        return f"⚠️ This may be an emergency: {name}. {call}\nUntil help comes: {do}"


class Clause(NamedTuple):
    """A piece of a message between two marks; `excuse` is why its words are not told of a person now, or ""."""

    text: str
    excuse: str


def language(text: str) -> str:
    """`zh` where a Han character stands in the text, else `en`."""
    return "zh" if re.search(f"[{_HAN}]", text) else "en"


# --- the list ---------------------------------------------------------------------------------------------------------


@cache
def signs() -> tuple[Sign, ...]:
    """The signs in the order of the list: where a message shows several, the first one is told."""
    words: dict[str, str] = {}
    for name, pattern in _document()["words"].items():
        words[name] = f"(?:{_filled(pattern, words)})"
    return tuple(_sign(entry, words) for entry in _document()["signs"])


@cache
def _document() -> dict[str, Any]:
    return yaml.safe_load(SIGNS.read_text(encoding="utf-8"))


@cache
def _typos() -> tuple[tuple[re.Pattern[str], str], ...]:
    return tuple((re.compile(typo), meant) for typo, meant in _document()["typos"].items())


def _sign(entry: dict[str, Any], words: dict[str, str]) -> Sign:
    alike = {name: entry[name] for name in ("id", "name", "do", "example")}
    patterns = [_pattern(pattern, words, "") for pattern in entry["zh"]]
    patterns += [_pattern(pattern, words, "(?<![a-z])") for pattern in entry["en"]]
    call, steady = entry.get("call", CALL), entry.get("steady", False)
    return Sign(**alike, call=call, steady=steady, patterns=tuple(patterns))


def _pattern(text: str, words: dict[str, str], before: str) -> tuple[re.Pattern[str], ...]:
    return tuple(re.compile(f"{before}(?:{_filled(part, words)})") for part in text.split(" + "))


def _filled(pattern: str, words: dict[str, str]) -> str:
    return re.sub(r"<(\w+)>", lambda name: words[name[1]], pattern)


# --- clauses and what excuses them ------------------------------------------------------------------------------------

_NUMBER = r"[\d一二两三四五六七八九十几多半]{1,6}"
_SENTENCE = re.compile(r"(?<=[。！!？?\n;；])|(?<=\.)(?=\s)")
# A clause ends at a mark, at a space beside a Chinese word, and before a word that turns.
_CLAUSE = re.compile(
    rf"[，,。;；！!？?\n…~:：]+|\.(?:\s|\Z)|(?<=[{_HAN}])\s+|\s+(?=[{_HAN}])"
    r"|(?=但是?|可是|(?<![喘透熬缓])不过(?![来气去])|却|而是|而且|反而|结果|然后)"
    r"|\s(?=(?:but|although|however|because|yet|and (?:i|my|he|she|now|then|his|her))\b)"
)
_ACUTE = (  # new or worse
    r"现在|目前|眼下|正在|今[天早晚晨]|昨[天晚夜]|突[然发]|忽然|一下子|刚|这会儿|加重|越来越|半夜|分钟|小时(?!候)"
    r"|剧烈|受不了|\b(?:now|today|tonight|sudden\w*|just|worse\w*|this (?:morning|evening|afternoon)|minutes|hours?)\b"
)
_NOW = re.compile(
    rf"现在|目前|眼下|正在|今[天早晚晨]|昨[天晚夜]|刚|这会儿|加重|越来越|如今|前天|这两天|最近|复发|再次|又(?!不)"
    rf"|{_NUMBER}天"
    r"|分钟|小时(?!候)|开始|以来|一直|至今|\b(?:now|today|tonight|worse\w*|again|since|started|currently|yesterday"
    r"|minutes|hours?)\b"
)
_SUDDEN = re.compile(r"突然|忽然|一下子|\bsudden")
_PAST = re.compile(
    rf"[去前]年|{_NUMBER}个?[年月]多?(?:以|之)?前|上个?月|以前|曾经?|当年|那[年次]|小时候|年轻时|既往|过去(?=[^了]"
    rf"|\Z)(?<!晕过去)(?<!昏过去)"
    rf"|病史|家族史|[得患]过|发作过|晕倒过|19\d\d年|20[01]\d年|20\d\d年|去世|过世|死于"
    r"|\b(?:(?:years?|months?|decades?) ago|last (?:year|month|summer|winter|spring|fall)|in (?:19|20)\d\d|history of"
    r"|used to|previously|back in|when (?:i|he|she) was (?:a |\d|young|little|in )|once had|family history"
    r"|died (?:of|from)"
    r"|passed away|as a (?:child|kid|teenager))\b"
)
_ONCE = re.compile(  # a past that is over within its clause
    r"过|术|支架|史|查出|诊断|住院|有.{0,6}病|得了|\b(?:had|diagnosed|surgery|stent|history)\b"
)
_GOES_ON = re.compile(r"当时|那时|后来|之后|at the time|back then")  # of a past told before
_SUPPOSED = re.compile(
    r"如果|假如|假设|假使|万一|要是|倘若|若是|一旦|(?:遇[到见上]|碰[到见上]|看[到见])(?:有?人|别人|患者|病人|这种"
    r"|这样)(?!.{0,12}了)"
    r"|(?<!know )(?<!me )(?<!sure )(?<!wonder )(?<!wondering )(?<!see )(?<!tell )(?<!as )\bif\b"
    r"|\b(?:suppose|supposing|in case|hypothetically|imagine|when (?:someone|somebody|a person|people|a patient))\b"
)
_REAL = re.compile(r"现在|正在|已经|刚|今[天早]|了[，。！]|\b(?:now|already|just|i'm|he's|she's|is having)\b")
_ASKED = re.compile(
    r"什么是|会不会|听说|据说|话题|(?:如何|怎么)[跟和与]|聊聊?(?=[^天])|是什么(?:意思|病|原理|概念)?|有[哪什]些?么?"
    r"|哪[些几]|(?:症状|表现|征兆|前兆|信号|征象|体征|特征|后遗症)(?:是|有|包括|吗)"
    r"|(?:怎[么样]|如何|怎样)(?:才能|去|正确)?(?:地)?(?:预防|识别|判断|区分|避免|鉴别|辨别|诊断|认识|理解|记忆|急救"
    r"|自救|施救|抢救|做好|应对|提高)"
    r"|(?:急救|抢救|处理|治疗|预防|应急|施救)(?:的)?(?:方法|措施|流程|步骤|原则|要点|知识|常识|指南|正确)"
    r"|正确(?:的)?(?:做法|处理|姿势|急救)"
    r"|区别|副作用|依赖|危害|机制|机理|原理|发病率|死亡率|诊断标准|指征|适应证|病因|定义|概念|科普|为什么会(?!这样)"
    r"|为何会|为什么.{0,10}会让"
    r"|(?:会|能)(?:不会|不能)?(?:引起|导致|造成|出现|发生|有|诱发).{0,14}[吗?？]|(?:属于|算)(?:不算)?.{0,8}[吗?？]"
    r"|保存|存放|典型|常见|介绍|讲[讲解述]|解释|列[出举]|总结|翻译|论文|文章|写一?[篇份个]|课件|ppt|考试|复习|备考|刷题|期末|护考|分几[级期型类]|培训|演练"
    r"|指南|教材|课本|的人[，。？]?|一般"
    r"|\b(?:store|storage|what (?:are|is|causes?|does|do)"
    r" (?!wrong|happening|going|i do|this)|how (?:do|to|can|does|should) (?:i "
    r"|you |we |one |doctors |people |someone )?"
    r"(?:prevent|recogni\w+|tell|identify|treat|perform|diagnos\w+|avoid|differentiate|spot|do cpr|know"
    r"|help someone)|difference between|explain"
    r"|tell me about|define|why do(?:es)?|which of|how common|how (?:is|are)|essay|first aid|can (?:a|an|stress"
    r"|anxiety)|does (?:a|an)|do (?:people|patients)"
    r"|signs of|symptoms of|risk factors?|prognosis|pathophysiology|mechanism|statistics|research|typical\w*"
    r"|common(?:ly)?|presentation|explain|describe|shelf life|real thing|realistic"
    r"|(?:nursing|medical|board|my) exams?)\b"
)
_PERSON = re.compile(
    r"(?<!自)我(?!们|国|该|应|能|是学|是医|在学|在写|在准|想[了知问学咨请]|听说|看到|读到|要[了写考准]|正在[学写准]"
    r"|看书|的论文|刚学)|咱|爸|妈|爷爷|奶奶|外公|外婆|姥|爹|娘"
    r"|老公|老婆|丈夫|妻子|老伴|儿子|女儿|弟弟|妹妹|哥|姐姐?|岳|婆婆|公公|[他她]|邻居|同事|同学|室友|工友|男友|女友"
    r"|现在|正在|刚[才刚]?|今[天早晚晨]|救命|救救|快来|急急"
    r"|(?:孩子?|宝宝|娃|老人|病人|患者|有人|人|家人|家属).{0,14}了"
    r"|\b(?:i'm (?!writing|studying|preparing|curious|a (?:nurse|doctor|student|med))|i am (?!writing|studying"
    r"|a (?:nurse|doctor|student|med))|i've|i have (?!a question|an exam|to write|a test)|i feel|i took|i just"
    r"|my (?!(?:nursing |medical |board )?exam|essay|class|homework|paper|notes|book|textbook|professor|teacher)"
    r"|he|he's|she|she's|right now|help)\b"
)
_STORY = re.compile(
    r"(?:小说|电影|电视剧|剧|游戏|故事|漫画|动漫|书|歌|片子)[里中](?!院)|梦[见到里]|(?:刷到|看到|听说|看了"
    r"|看过).{0,6}(?:新闻|视频|帖子?|热搜|报道)|新闻|写.{0,4}(?:小说|剧本|故事|网文|同人)|[追看刷播][了过]?《|[男女](?:主(?!诉)|[二三]号?(?=[替为把被跟和]))|主角|角色|歌词|段子|剧情"
    r"|\b(?:pulp fiction|breaking bad|grey's anatomy"
    r"|in (?:the|a|this|my) (?:movie|novel|film|show|story|game|book|dream)|(?:movie|novel|film|game"
    r"|story) (?:where|about|i)|dream(?:t|ed)|character|protagonist|song|lyrics|the news)\b"
)
_ANIMAL = re.compile(
    r"(?:我家?的?|我们家的?|我养的?|家里?养?的?|邻居家?的?)[一两只条个]*(?:小|老|大)?(?:狗|猫|兔|仓鼠|鹦鹉|金毛"
    r"|泰迪|柯基|宠物|布偶|乌龟)(?!.{0,3}[咬抓])|(?:狗子|狗狗|猫咪|毛孩子)(?!.{0,3}[咬抓])|兽医"
    r"|\b(?:my|our|the) (?:dog|cat|puppy|kitten|pet|rabbit|hamster|parrot)\b(?! bit| scratch| attack)"
)
_FIGURE = re.compile(
    r"(?:笑|气|累|饿|吓|困|烦|急|愁|美|爱|忙|尬|羞|渴|馋|甜|萌|帅|堵|想|辣|酸|挤|丢人?|无语|尴尬|社|卷|冻"
    r"|热)死(?=[你我了人个宝啦]|\Z|[，。！])"
    r"|(?:气|吓|笑|看|愁|堵|卷|帅|美|甜|萌|急|尴尬|无聊|可爱|贵|穷|馋|香)(?:得|到|出)?(?:我|人|了)?(?:都|快|要"
    r"|差点)*(?:心梗|脑溢血|脑出血|吐血|心脏病|脑梗|中风|抽搐|抽过去|窒息|昏迷|晕过去|晕倒|休克|心肌梗[死塞]|高血压"
    r"|昏过去)(?:发作|犯)?"
    r"|(?:压力|工作|作业|房贷|生活|债|学习|业绩|考试|kpi|题|老板|消息|剧情|节奏|气氛).{0,10}(?:得|到|让|压"
    r"|逼).{0,6}(?:[喘透]不[过上]来?气|窒息|吐血|抽搐)"
    r"|[吓笑气帅美]得.{0,6}(?:心脏?|心跳|呼吸)都?(?:快|要)*(?:停|骤停|跳出来)了?"
    r"|(?:亏|[百千万]块|打折|降价|股票|基金).{0,14}心[痛疼](?:到|得).{0,6}呼吸"
    r"|累(?:到|得).{0,4}(?:断气|吐血|散架)"
    r"|吐血(?:推荐|整理|价|甩卖|安利)|跳楼(?:价|机|大甩卖|甩卖)|窒息(?:的|感十足)?(?:操作|发言|美)|心脏骤停的"
    r"|(?:作业|代码|bug|论文|题).{0,8}(?:杀|弄死)"
    r"|(?:电脑|手机|电视|服务器|系统|网络|汽车|车子|程序|代码|机器|软件|空调).{0,10}(?:中毒|瘫痪|休克|昏迷|没反应"
    r"|死机|猝死|没有反应|叫不醒|中风)|(?:病毒|木马)"
    r"|\b(?:dying (?:of|from|with) (?:laugh\w*|boredom|embarrassment|curiosity|hunger|thirst)|dying to|die (?:of"
    r"|from) (?:laugh\w*|boredom|embarrassment)|(?:nearly|almost|practically|about) (?:gave|had|having"
    r"|have).{0,10}heart attack"
    r"|(?:gave|give|giving) me a heart attack|died laughing|killing me|to die for|dying (?:over|at)"
    r"|take\w* my breath away|breathtaking|suicide squad|suicidal (?:goal|pass)|i(?:'m| am) dead|drowning in"
    r"|choked up|(?:choked|choking) (?:under|in the final|on the exam)|burning through|fits? of laughter"
    r"|have a (?:cow|fit))\b"
)
_RESOLVED = re.compile(
    r"(?:已经?|都|早就?|现在|后来|目前)(?:都|已经?|全)?.{0,4}(?:(?<![写备做拾买])好了|没事了?|恢复|痊愈|出院|康复"
    r"|好转|正常了?|不[疼痛晕喘吐]了?)|恢复得?(?:很|不错|挺|良)"
    r"|\b(?:fully |completely |have |has |i'm |he's |she's |all )(?:recovered|fine now|better now|ok now|okay now"
    r"|healed)\b|recovered (?:well|fully|completely)"
)
_RECENT = re.compile(
    r"刚|今[天早晚晨]|昨[天晚夜]|分钟|小时(?!候)|半夜"
    r"|\b(?:today|just|ago|this morning|yesterday|last night|minutes|hours?)\b"
)
_STEADY = re.compile(
    rf"(?:{_NUMBER}个?(?:年|月|(?<!一)(?<!1)(?<!一个)(?<!1个)(?:周|星期|礼拜))(?!前|大|级|.{{0,2}}[孩宝娃婴胎])|多年|长期|老毛病|慢性|有时候?|偶尔"
    rf"|时不时|经常|每次|平时|总是|老是|反复)"
    r"|\b(?:for (?:\w+ )?(?:months|weeks|years)|for (?:a|the (?:past|last)) .{0,10}(?:months?|weeks?|years?)"
    r"|chronic\w*|occasional\w*|sometimes|every time|on and off|long-?standing|whenever)\b"
)
_OWN_TIME = re.compile(  # what a length of time is said of, where it is no sign
    r"高血压|糖尿病|冠心病|心脏病|肝|肾|病史|服药|吃药|结婚|工作|戒|烟|酒|孕|岁|\b(?:diabet|hypertens|smok|married"
    r"|pregnan|asthma|medication)"
)
_VIGNETTE = re.compile(
    r"(?:患者|病人|一名|一位|某|病例|男|女)[^。]{0,12}岁|\b(?:a|an) \d{1,3}[- ]year[- ]old\b", re.DOTALL
)
_EXAM = re.compile(
    r"最可能|诊断(?:是|为|应|考虑)|首[选先]|下列|以下|哪[一]?[项种个]|选项|病例(?:分析|讨论|题)|请分析|单选|多选"
    r"|考题|[a-e][.、:)].{1,40}[b-e][.、:)]"
    r"|\b(?:most likely|which of the following|next (?:best )?step|diagnosis\?|presents? (?:with|to)"
    r"|what is the (?:diagnosis|management|treatment))\b",
    re.DOTALL,
)


def _fold(text: str) -> str:
    """What is read of a text: simplified, half-width, lower case, its usual typing mistakes mended."""
    text = _INVISIBLE.sub("", _ends(text).encode("utf-8", "replace").decode().translate(_PLAIN)).casefold()
    text = _SIMPLIFIED.convert(text)
    for typo, meant in _typos():
        text = typo.sub(meant, text)
    return text


def _clauses(text: str) -> list[Clause]:
    """The clauses of a folded text, each with its excuse."""
    if _VIGNETTE.search(text) and _EXAM.search(text) and not _PERSON.search(text):
        return []
    found: list[Clause] = []
    excuse, past = "", False
    for sentence in _SENTENCE.split(_FIGURE.sub(" ", text)):
        pieces = [piece.strip() for piece in _CLAUSE.split(sentence) if piece and piece.strip()]
        excuse = excuse if excuse in ("story", "animal") else ""
        steady = _is_steady(sentence, pieces)
        asked, told = _ASKED.search(sentence) is not None, False
        for piece in pieces:
            excuse = _excuse(piece, "past" if past and _GOES_ON.search(piece) else excuse)
            past = past or excuse == "past"
            person = _PERSON.search(piece) is not None
            told = person or (told and not _ASKED.search(piece))
            found.append(Clause(piece, excuse or "asked" * (asked and not told) or "steady" * steady))
            excuse = "" if excuse == "past" and _ONCE.search(piece) else excuse
    return _without_resolved(found)


def _excuse(piece: str, before: str) -> str:
    """The excuse that holds from this clause on: its own, or the one before it where nothing ends that."""
    if _STORY.search(piece):
        return "story"
    if _ANIMAL.search(piece):
        return "animal"
    if _SUPPOSED.search(piece) and not _REAL.search(piece):
        return "supposed"
    if _PAST.search(piece) and not _NOW.search(piece):
        return "past"
    if (before == "past" and (_NOW.search(piece) or _SUDDEN.search(piece))) or (
        before == "supposed" and _REAL.search(piece)
    ):
        return ""
    if before in ("story", "animal") and re.search(
        r"我(?!家|的|养)|孩子|醒来|\b(?:i|i'm|my (?:son|daughter|wife|husband))\b", piece
    ):
        return ""
    return before


def _is_steady(sentence: str, pieces: list[str]) -> bool:
    """Whether a sentence tells of something that lasts or comes at times, and of nothing new."""
    if re.search(_ACUTE, sentence):
        return False
    return any(_STEADY.search(piece) and not _OWN_TIME.search(piece) for piece in pieces)


def _without_resolved(clauses: list[Clause]) -> list[Clause]:
    """The clauses, those before a recovery excused, unless they tell of today or yesterday."""
    ends = [number for number, clause in enumerate(clauses) if _RESOLVED.search(clause.text)]
    if not ends or any(_RECENT.search(clause.text) for clause in clauses[: ends[-1]]):
        return clauses
    return [clause._replace(excuse="past") if i <= ends[-1] else clause for i, clause in enumerate(clauses)]


# --- what is denied ---------------------------------------------------------------------------------------------------

_IDIOM = re.compile(  # no denials
    r"不知道?(?:为[什何]么?|咋|怎么)?|不小心|不停|不断|不住|不了|不得了|不行|不舒服|不对劲|不太?好|没想到|没忍住"
    r"|没多久|没一会|没办法|没法|没人"
    r"|没有?力气?|没劲|没精神|没胃口|没有?吃|没睡|没有?(?:缓解|好转|用|效果|作用|及时)|无缘无故|无故|无比|无法"
    r"|不一会|不到|不[只仅光但]|没来得及|没事|不清|不能动?|不会(?=动|说)|不[吃喝哭]"
    r"|\b(?:not (?:sure|only|long|well|okay|getting|better|know|feeling|able)|no (?:idea|matter|one))\b|n't (?:know"
    r"|stop|tell|sure|feel|get|move|speak|talk|work|help|get up|stand|walk)\b"
)
_DENIAL = re.compile(
    r"(?:没有?(?:再|出现|发生|明显|任何|什么|伴|怎么|过)?|无(?:明显|任何|伴)?|未(?:见|有|出现|诉|再|曾|伴)?"
    r"|否认(?:有)?|不是|并非|不存在|从[未没]|也?没有?|预防|防止|避免|担心|害怕|以防|排除(?:了)?"
    r"|不像(?:是)?)[^，]{0,12}\Z"
    r"|(?:不(?:会|想|要|再|太|怎么|是很|觉得|感到)?|差点儿?|险些|怕|别|不会再?想?|不打算|不可能(?:会)?)\Z"
    r"|(?:\b(?:no|not|never|without|den(?:y|ies|ied)|none|nor|almost|nearly|prevent\w*|avoid\w*|afraid of"
    r"|worried about|risk of|fear of|ruled? out|don't have|negative for|free of|instead of)\b"
    r"|(?<!ca)(?<!wo)n't\b)[^,]{0,45}\Z"
)
_DENIED_WITHIN = re.compile(
    r"(?:不|没有?|无)(?:怎么|太|是很|再|觉得|感觉|感到|会)?(?:[疼痛压憋闷紧绞堵麻歪斜晕抽吐肿喘硬僵烧]|出血|流血)"
    r"|\b(?:isn't|aren't|doesn't|don't|didn't|not|no|without) (?:\w+ )?(?:hurt|pain|tight|droop|numb|weak|sw[eo]ll"
    r"|blue|bleed|sweat|stiff|suicid)"
)
_TURN = re.compile(
    r"(?<!没)(?<!没有)(?<!无)(?:突然|忽然|现在|刚|今天|就|还|又|后)|\b(?:now|then|suddenly)\b"
)  # a denial before it is over
_DENIED_AFTER = re.compile(
    r"[:： ]{0,2}(?:没有|无|未见|阴性|否认|\(-\))(?!缓解|好转|减轻|停|改善|消|法|力|效|用|反应|呼吸|意识|办法|人"
    r"|知觉)|(?:是|就)?没有的"
)
_LISTED = re.compile(r"(?:(?:也|和|及|或者?|以及|亦|any|or|and|nor)\s?)?\Z")  # what stands before an item of a list
_SAYS_MORE = re.compile(r"[很得]|了|厉害|严重|突然|现在|\b(?:i|i'm|is|are|my|he|she|was|has|have|started|now)\b")


def _is_denied(clause: str, start: int, end: int) -> bool:
    """Whether a clause denies the words at start:end."""
    before = _TURN.split(_IDIOM.sub("", clause[max(0, start - REACH) : start]))[-1]
    return bool(_DENIAL.search(before) or _DENIED_WITHIN.search(clause, start, end) or _DENIED_AFTER.match(clause, end))


# --- the first sign ---------------------------------------------------------------------------------------------------


def emergency(question: str) -> Emergency | None:
    """The first sign of the list that a message tells of a person now, or None."""
    clauses = _clauses(_fold(question))
    for sign in signs():
        kept = [clause.text if clause.excuse in ("", "steady" * sign.steady) else "" for clause in clauses]
        text, starts = "\n".join(kept), list(accumulate((len(item) + 1 for item in kept), initial=0))
        for pattern in sign.patterns:
            if words := _told(pattern, text, starts):
                return Emergency(sign, words)
    return None


def _told(pattern: tuple[re.Pattern[str], ...], text: str, starts: list[int]) -> tuple[str, ...]:
    """A hit of each part within NEAR clauses that start at `starts`, none of them denied; () for none."""
    parts: list[dict[int, str]] = []  # for each part: clause -> words
    for part in pattern:
        if not (hits := dict(_hits(part, text, starts))):
            return ()
        parts.append(hits)
    for first in sorted(set().union(*parts)):
        words = [next((hits[i] for i in range(first, first + NEAR) if i in hits), "") for hits in parts]
        if all(words):
            return tuple(words)
    return ()


def _hits(part: re.Pattern[str], text: str, starts: list[int]) -> Iterator[tuple[int, str]]:
    """(clause, words) of each hit that its clause, or the list that it stands in, does not deny."""
    for hit in part.finditer(text):
        place = bisect_right(starts, hit.start()) - 1
        clause, at = text[starts[place] : starts[place + 1] - 1], hit.start() - starts[place]
        if not (_is_denied(clause, at, hit.end() - starts[place]) or _in_denied_list(clause, at, place, text, starts)):
            yield place, hit[0].strip()


def _in_denied_list(clause: str, at: int, place: int, text: str, starts: list[int]) -> bool:
    """Whether the clause is an item of a list that a clause before it begins with a denial: no pain or fever."""
    while place and at < 8 and len(clause) < REACH and _LISTED.fullmatch(clause[:at]) and not _SAYS_MORE.search(clause):
        place -= 1
        clause = text[starts[place] : starts[place + 1] - 1]
        if _DENIAL.search(_IDIOM.sub("", clause[-REACH:])):
            return True
        at = 0
    return False


# --- after an answer --------------------------------------------------------------------------------------------------

_DISCLAIMER = {
    "zh": "以上内容由人工智能生成，仅供参考，不能代替医生的诊断和治疗。",
    "en": "Written by an AI, for reference only; this does not replace a doctor's diagnosis or treatment.",
}
_CHILD_DOSE = {
    "zh": "⚠️ 儿童用药剂量必须按体重和年龄计算：以上剂量未经核实，用药前请先问医生或药师。",
    "en": "⚠️ A child's dose depends on weight and age: the one above is not verified, first ask a doctor.",
}
_PROMISED = {
    "zh": "⚠️ 回答中有“{}”一类的说法：没有任何治疗能保证治愈或绝无风险，请勿轻信。",
    "en": '⚠️ The answer says "{}": no treatment can guarantee a cure or be free of risk.',
}
_STOPPED = {
    "zh": "⚠️ 不要自行停药、减量或换药，请先和开药的医生商量。",
    "en": "⚠️ Don't stop or change prescribed medicine on your own; talk to the doctor who prescribed it first.",
}
_CHILD = re.compile(
    r"孩子|宝宝|婴|幼儿|小儿|儿童|患儿|新生儿|儿子|女儿|娃|小孩|(?<!\d)(?:\d|1[0-7]"
    r"|[一二两三四五六七八九十])岁(?!以上)|个月大"
    r"|\b(?:child\w*|kids?|bab(?:y|ies)|infants?|toddlers?|newborns?|sons?|daughters?|pa?ediatric"
    r"|\d{1,3}[- ](?:month|week|day)s?[- ]old|(?<!\d)(?:\d|1[0-7])[- ]years?[- ]old)\b"
)
_DOSE = re.compile(
    r"(?:(?<!\d)\d{1,6}(?:\.\d{1,3})?|[一二两三四五六七八九十半])\s?(?:mg|毫克|mcg|μg|微克|ml|毫升|片|粒|滴|袋|支"
    r"|喷|揿|单位|iu|drops?\b|tablets?\b|capsules?\b|teaspoons?\b|tsp\b)"
    r"|0\.\d{1,3}\s?(?:g|克)"
)
_PROMISE = "|".join(
    (
        any_of([*PROMISES, "无副作用", "没有副作用", "没有任何副作用", "零副作用", "永不复发", "药到病除"]),
        r"\bguaranteed? (?:to )?(?:a )?cure|\b100 ?% (?:cure|effective|safe)|\bcompletely cure[sd]?\b"
        r"|\bpermanently cure[sd]?\b"
        r"|\bno side effects\b(?! (?:were|was|have))|\bmiracle cure|\bcures? (?:all|any|every)\b",
    )
)
_STOP = re.compile(
    r"(?:自行|自己|直接|就?可以|完全可|随时|大可|不妨)[^，。！？\n]{0,6}(?:停药|停用|停服|停掉|停止(?:服|用|使)"
    r"|减量|换药)"
    r"|(?:不[用必]|无[需须])(?:再|继续)[^，。\n]{0,3}(?:吃|服|用)[^，。\n]{0,6}药"
    r"|\b(?:you (?:can|may|should)|just|simply|go ahead and|feel free to) (?:\w+ )?(?:stop|quit"
    r"|discontinue) (?:taking |using )?"
    r"(?:your |the |this |these )?(?:\w+ )?(?:medic\w+|meds|pills?|tablets?|drugs?|insulin|warfarin|antibiotics?"
    r"|\w+(?:pril|sartan|statin|olol|pine))"
)
_WITH_DOCTOR = re.compile(r"医[生师嘱]|药师|就医|就诊|复诊|\b(?:doctor|physician|pharmacist|prescriber|gp)\b")


def notes(question: str, answer: str, scenario_id: str = "") -> list[str]:
    """The lines shown after an answer, in the question's language: the warnings that it needs, last the disclaimer.

    >>> notes("孩子3岁发烧吃多少布洛芬？", "每次5毫升。仅供参考，不能代替医生。", "pediatric")
    ['⚠️ 儿童用药剂量必须按体重和年龄计算：以上剂量未经核实，用药前请先问医生或药师。']
    """
    tongue = language(question)
    asked, text = _ends(fold(question)), _ends(fold(answer))
    lines = []
    of_a_child = scenario_id == "pediatric" or _CHILD.search(f"{asked}\n{text}")
    if of_a_child and _DOSE.search(text) and not re.search(ASK_A_DOCTOR, text):
        lines.append(_CHILD_DOSE[tongue])
    if claim := promised(f"{_PROMISE}|{PROMISE}", close(text)):
        lines.append(_PROMISED[tongue].format(claim))
    if any(_is_advised(text, hit) for hit in _STOP.finditer(text)):
        lines.append(_STOPPED[tongue])
    return lines if re.search(NO_VISIT, text) else [*lines, _DISCLAIMER[tongue]]


def _is_advised(text: str, stop: re.Match[str]) -> bool:
    """Whether an answer says to stop a medicine, and not to ask a doctor about it, nor not to."""
    sentence = re.split(r"[。！？\n]|\.\s", text[: stop.start()])[-1]
    clause = re.split("[，,；;：:]", sentence)[-1]
    after = re.split(r"[。！？\n]|\.\s", text[stop.start() :], maxsplit=1)[0]
    return not (denied(clause[-24:], after) or _WITH_DOCTOR.search(sentence + after))


def _ends(text: str) -> str:
    """A text, or the two ends of one that is too long to be read."""
    return text if len(text) <= 2 * MOST_CHARACTERS else f"{text[:MOST_CHARACTERS]}\n{text[-MOST_CHARACTERS:]}"


# --- what can't be answered -------------------------------------------------------------------------------------------

_MEDICAL = re.compile(
    r"[疼痛病药症烧咳晕吐泻血癌瘤炎医诊疗孕]|健康|身体|饮食|营养|睡|\b(?:pain|ill|sick|medic\w*|drug|fever|doctor"
    r"|health\w*|disease|symptom\w*)\b"
)
_OUT_OF_SCOPE = (  # what is asked; what it is not where this stands too; the line in both languages
    (
        r"(?:这|那)(?:张|个|份|些)(?:图|照片|片子|ct|x光|胸片|核磁|心电图|b超|皮疹照)|(?:如|附|上|下)图|(?:发|上传"
        r"|传)(?:给?你|了)?.{0,6}(?:图片?|照片|片子)|图[片中里]"
        r"|\b(?:this|attached|the following|my uploaded) (?:image|picture|photo|x-?ray|ct scan|mri|ecg|ekg|scan)\b",
        r"(?:提示|显示|报告|写着|结论|shows?|says?|report)",
        "这里看不到图片：请把检查报告上的文字或您看到的样子打出来，影像要由医生阅片。",
        "Images can't be seen here: type what the report says or what you see; a doctor has to read the image itself.",
    ),
    (
        r"(?:给我|帮我|能不能|可以|怎么|哪里|想).{0,6}(?:开|买|弄|搞|代购).{0,10}(?:处方|吗啡|芬太尼|杜冷丁|哌替啶"
        r"|唑仑|安定|佐匹克隆|唑吡坦|曲马多|可待因|羟考酮|哌甲酯|利他林|氯胺酮|迷药|麻醉药|精神药品)"
        r"|\b(?:prescribe|get|buy|sell)\b.{0,20}\b(?:prescription|morphine|fentanyl|oxycodone|xanax|alprazolam"
        r"|valium|diazepam|zolpidem|adderall|ritalin|ketamine|codeine|tramadol)\b",
        r"(?:副作用|依赖|戒|停|side effect|addict|stop)",
        "这里不能开处方，也不能提供管制药品的购买途径：请到医院由医生面诊后开具。",
        "No prescriptions can be written here and no way to controlled drugs given: please see a doctor in person.",
    ),
    (
        r"(?:开|写|出|办|伪造|弄)(?:具|一?[张份个])?.{0,5}(?:病假条|假条|病假证明|诊断证明|诊断书|伤残鉴定|伤残等级"
        r"|死亡证明|残疾证|健康证)"
        r"|\b(?:write|issue|sign|fake|give me)\b.{0,15}\b(?:sick note|doctor'?s note|medical certificate"
        r"|death certificate)\b",
        r"(?!)",
        "这里不能出具病假条、诊断证明或鉴定意见：它们只能由接诊的医疗机构或鉴定机构出具。",
        "Sick notes, certificates and expert opinions can't be issued here, only by the doctor or body that saw you.",
    ),
    (
        r"(?:打官司|起诉|索赔|赔偿(?:多少|标准|金额)|胜诉|请律师|伤残赔偿)"
        r"|\b(?:sue|lawsuit|compensation claim|malpractice)\b",
        r"(?!)",
        "这里不回答法律和赔偿问题：请咨询律师，或医疗纠纷人民调解委员会。",
        "Legal questions and claims are not answered here: please ask a lawyer.",
    ),
    (
        r"(?:写|编|改|调试)[一几]?[个段下首篇]?.{0,8}(?:代码|程序|爬虫|脚本|网页|情诗|诗|歌词|作文|情书)|(?:股票"
        r"|基金|彩票|比特币).{0,8}(?:推荐|买|涨|预测|号码)|天气(?:怎么样|如何|预报)|星座|运势"
        r"|(?:怎么|如何|教我)(?:学|用|安装).{0,4}(?:python|java|编程|excel|word|ppt|英语|吉他)"
        r"|\b(?:learn|install)\b.{0,10}\b(?:python|java|excel|programming)\b"
        r"|\b(?:write|debug)\b.{0,15}\b(?:code|program|script|python|poem|lyrics)\b|\b(?:stock|lottery"
        r"|bitcoin)\b.{0,20}\b(?:buy|tip|predict|number)|\bweather\b",
        _MEDICAL.pattern,
        "这里只回答医学和健康方面的问题。",
        "Only questions about medicine and health are answered here.",
    ),
)


def out_of_scope(question: str) -> str:
    """A line that says why a question can't be answered here, "" where it can; in doubt it can.

    >>> out_of_scope("帮我开一张病假条")
    '这里不能出具病假条、诊断证明或鉴定意见：它们只能由接诊的医疗机构或鉴定机构出具。'
    """
    text = _ends(fold(question))
    for asked, but, zh, en in _OUT_OF_SCOPE:
        if re.search(asked, text) and not re.search(but, text):
            return zh if language(question) == "zh" else en
    return ""
