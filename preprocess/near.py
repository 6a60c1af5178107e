"""Near-duplicate texts: character n-grams, MinHash (rensa), banded LSH, then an exact check of every pair.

    index = Index()
    index.add(texts)                        # a stream; a text's number is its place in it, from 0
    for cluster in index.clusters(0.7):     # members, and the verified pairs that hold them together
        ...

Texts are compared by their key (`key_of`), and never changed. MinHash only proposes: a pair counts when the Jaccard
similarity of its two sets of n-grams, counted in full, reaches the threshold and, with `digits_matter`, both texts
hold the same numbers, units, signs and sides (`markers`): HBsAg(+) is no duplicate of HBsAg(-), nor 5 mg of 50 mg.
"""

from __future__ import annotations

import itertools
import os
import re
import struct
import tempfile
import unicodedata
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from difflib import SequenceMatcher
from functools import cache, lru_cache
from hashlib import blake2b
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
import opencc
from rensa import RMinHash

N = 5  # characters in a gram
SLOTS, ROWS = 128, 4  # of a signature, of a band: a pair at 0.7 shares one of the 32 bands with probability 0.9998
LOWEST = 0.7  # the threshold that the bands are laid for
MARGIN = 0.2  # the estimate from two bits a slot is off by more than this once in 40,000 pairs at 0.7
BATCH = 1 << 17  # characters, or pairs, worked on at once: the arrays stay in the processor's cache
THREADS = 2
LARGE = 64  # texts in a bucket

END = 0x10FFFF  # a noncharacter, stands after each text of a batch
_END = END.to_bytes(4, "little")
SOFT, OPEN, CLOSE, HYPHEN, LONG, MARK, WORD, SYMBOL, DIGIT, LETTER, STOP, UNSEEN = range(12)  # from MARK on, it stays
HYPHENS = "-\u2010\u2011\u2013\u2212\ufe63\uff0d"


class Fold:
    """What each code point becomes in a key; found out when it is first met, 5 bytes for each of Unicode's."""

    def __init__(self) -> None:
        self.code = np.arange(END + 1, dtype=np.uint32)
        self.kind = np.full(END + 1, UNSEEN, np.uint8)
        self.kind[END] = STOP
        self.longer: dict[str, str] = {}  # ℃ becomes °c
        self.simplified = opencc.OpenCC("t2s")
        self.lock = Lock()

    def learn(self, codes: np.ndarray) -> None:
        with self.lock:
            for code in np.unique(codes).tolist():
                folded = _folded(chr(code))
                if len(folded) == 1:
                    self.code[code] = ord(self.simplified.convert(folded) if "\u3400" <= folded < "\ua000" else folded)
                else:
                    self.longer[chr(code)] = folded
                self.kind[code] = _kind(folded) if len(folded) == 1 else LONG  # last: other threads go by it


def _folded(char: str) -> str:
    """NFKC and casefold of one character; superscripts, fractions and circled numbers stay: 10⁹ is not 109."""
    category = unicodedata.category(char)
    if char in HYPHENS:
        return "-"
    if category == "Nd":
        return str(unicodedata.decimal(char))
    if category[0] == "Z" or char in "\t\n\r":
        return " "
    if category == "No" and not "₀" <= char <= "₉":
        return char
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", char).casefold())
    return folded if len(folded) == 1 or category[0] in "LNS" else char


def _kind(char: str) -> int:
    category = unicodedata.category(char)
    if char == "-":
        return HYPHEN
    if char in "%‰/" or category in ("Sm", "So", "Sc", "No"):
        return SYMBOL
    if category == "Nd":
        return DIGIT
    if category[0] == "M" or "\u1100" <= char <= "\u11ff":  # may compose with what stands before it
        return SOFT if "\ufe00" <= char <= "\ufe0f" else MARK
    if category[0] in "LN":
        return WORD if category == "Lo" else LETTER
    return {"Ps": OPEN, "Pe": CLOSE}.get(category, SOFT)


_FOLD = Fold()


def keys_of(texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """The keys of `texts` as code points, END after each, and the places of the ENDs.

    Width, case, traditional forms, white space and punctuation don't count. Signs, comparators, superscripts and what
    stands between two digits do; between two Latin letters one space stays. A hyphen stays where it is a sign.
    """
    joined = chr(END).join(texts) + chr(END)
    if joined.count(chr(END)) != len(texts):
        return keys_of([text.replace(chr(END), "") for text in texts])
    points, kinds = _points(joined)
    if (kinds == MARK).any():
        joined = unicodedata.normalize("NFC", joined)
        points, kinds = _points(joined)
    if (long := points[kinds == LONG]).size:
        for char in map(chr, np.unique(long).tolist()):
            joined = joined.replace(char, _FOLD.longer[char])
        points, kinds = _points(joined)
    codes = _FOLD.code.take(points)
    _settle_hyphens(kinds)
    kept = np.flatnonzero(kinds >= MARK)
    after = np.flatnonzero(np.diff(kept) > 1) + 1
    left, right, between = kinds[kept[after - 1]], kinds[kept[after]], kept[after] - 1
    letters = (left == LETTER) & (right == LETTER)
    codes[between[letters]] = ord(" ")
    kinds[between[letters | ((left == DIGIT) & (right == DIGIT))]] = SYMBOL
    codes = codes.take(np.flatnonzero(kinds >= MARK))
    return codes, np.flatnonzero(codes == END)


def _points(joined: str) -> tuple[np.ndarray, np.ndarray]:
    points = np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.intp)
    kinds = _FOLD.kind.take(points)
    if (new := points[kinds == UNSEEN]).size:
        _FOLD.learn(new)
        kinds = _FOLD.kind.take(points)
    return points, kinds


def _settle_hyphens(kinds: np.ndarray) -> None:
    """A hyphen is a sign in brackets, at a word's end, before a number; inside a word or a range it is punctuation."""
    place = np.flatnonzero(kinds == HYPHEN)
    left, right = kinds[place - 1], kinds[place + 1]
    word_left, word_right = (np.isin(side, (WORD, DIGIT, LETTER)) for side in (left, right))
    sign = (left == OPEN) | (right == CLOSE) | (word_left & ~word_right & (right != HYPHEN))
    negative = (right == DIGIT) & (~word_left | (left == WORD))
    kinds[place] = np.where(sign | negative, SYMBOL, SOFT)


def as_text(codes: np.ndarray) -> list[str]:
    """The keys that `keys_of` gave, as strings."""
    return codes.tobytes().decode("utf-32-le", "surrogatepass").split(chr(END))[:-1]


def key_of(text: str) -> str:
    """The comparison key of one text; it may be empty."""
    return as_text(keys_of([text])[0])[0]


def grams(codes: np.ndarray, ends: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """The 64-bit hashes of all runs of `n` characters in keys, text after text, and where each text's begin.

    Two different runs of a pair of texts share a hash by chance less than once in 10¹² pairs of texts.
    """
    hashes = windows(codes, n)[n]
    hashes ^= hashes >> np.uint64(32)
    hashes *= np.uint64(0xD6E8FEB86659FD93)
    hashes ^= hashes >> np.uint64(29)
    return within(hashes, ends, n), np.concatenate(([0], np.cumsum(np.maximum(np.diff(ends, prepend=-1) - n, 0))))


def windows(codes: np.ndarray, *sizes: int) -> dict[int, np.ndarray]:
    """Per size, the sum of each so many neighbours, each times a factor of its own; of many, from sums of N."""
    values = codes.astype(np.uint64)
    sums: dict[int, np.ndarray] = {}
    for n in sorted({*range(N, max(sizes) + 1, N), *sizes}):
        parts = [(sums[(n - 1) // N * N], 0), (sums[N], n - N)] if n > N else [(values, place) for place in range(n)]
        length = max(len(values) - n + 1, 0)
        sums[n] = np.zeros(length, np.uint64)
        for (part, place), factor in zip(parts, _factors(n), strict=False):
            sums[n] += part[place : place + length] * factor
    return sums


def within(sums: np.ndarray, ends: np.ndarray, n: int) -> np.ndarray:
    """Of the windows of `n` characters, those that lie inside a text."""
    bounds = itertools.pairwise([-1, *ends.tolist()])
    return np.concatenate([sums[:0], *(sums[before + 1 : end - n + 1] for before, end in bounds if end - before > n)])


@cache
def _factors(n: int) -> np.ndarray:
    return np.random.default_rng(n).integers(1 << 63, size=n, dtype=np.uint64) * np.uint64(2) + np.uint64(1)


# What must be equal in two texts, besides: numbers with their units, grades, signs and sides.

_UNITS = {
    "kg": "公斤 千克 kilogram kilograms", "g": "克 gram grams", "mg": "毫克 milligram milligrams",
    "ug": "μg mcg 微克 microgram micrograms", "ng": "", "pg": "", "l": "升 liter liters litre litres", "dl": "",
    "ml": "毫升 cc", "ul": "μl 微升", "mol": "", "mmol": "", "umol": "μmol", "nmol": "", "pmol": "", "miu": "",
    "iu": "u 单位 unit units", "m": "米", "cm": "厘米 公分", "mm": "毫米", "um": "μm 微米", "mmhg": "", "kpa": "",
    "%": "percent", "‰": "", "°c": "摄氏度", "°f": "", "°": "度 degree degrees", "bpm": "", "倍": "fold times",
    "万": "", "亿": "", "s": "秒 秒钟 sec second seconds", "min": "分 分钟 minute minutes",
    "h": "小时 hr hrs hour hours", "d": "天 日 day days",
    "周": "星期 wk week weeks", "月": "个月 mo month months", "年": "y yr year years",
    "岁": "周岁 yo year_old years_old", "次": "", "片": "tab tablet tablets", "粒": "capsule capsules", "支": "",
    "级": "", "期": "", "型": "", "类": "",
}  # fmt: skip
_UNIT = {word.replace("_", " "): unit for unit, words in _UNITS.items() for word in [unit, *words.split()]}
_SIGN = {"阳性": "+", "positive": "+", "阴性": "-", "negative": "-", "left": "左", "right": "右"}
_SIGN |= {"每天": "每日", "daily": "每日", "每星期": "每周", "weekly": "每周", "monthly": "每月"}
_ROMAN = {
    roman: str(value) for value, roman in enumerate(["i", "ii", "iii", "iv", "v", "vi", "vii", "viii", "ix", "x"], 1)
}
_NUMERALS = str.maketrans("一二两三四五六七八九", "1223456789")
_WORDS = "|".join(sorted(_UNIT, key=len, reverse=True))
_HAN = "".join(word for word in _UNIT if len(word) == 1 and word > "一")
# Each pattern begins with one set of characters, or with literals: so that `re` can skip to where one stands.
_NUMBER = re.compile(
    rf"[0-9一二两三四五六七八九十](?:(?<=[0-9])[0-9]*(?:\.[0-9]+)*[⁰¹²³⁴-⁹⁻]*|[一二两三四五六七八九十]*(?=[{_HAN}]|个月|小时))"
    rf"(?:/?(?:(?:{_WORDS})(?![a-zμ])|(?:{_WORDS})(?<=[一-鿿])))*"
)
_SIGNS = re.compile(
    r"阳性|阴性|positive|negative|\+\+*|-(?:(?<![0-9]-)|(?![0-9]))|±|<|>|≤|≥|↑|↓|左(?!右)|右(?<!左右)|left|right"
    r"|每日|每天|每晚|每周|每星期|每月|每年|daily|weekly|monthly"
)
_ROMANS = re.compile(
    r"(i(?<![a-z]i)(?:i|ii|v|x)|v(?<![a-z]v)i{1,3}|[ivx](?<![a-z][ivx])(?=[级期型度类]))([级期型度类]?)(?![a-z])"
)
_PARTS = re.compile(r"([0-9.⁰¹²³⁴-⁹⁻]+|[一二两三四五六七八九十]+)(.*)")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")


def markers(key: str) -> list[str]:
    """What two near-duplicates must have in common, sorted: `5mg`, `3d` (of 三天, 3天, 3 days), `+` (of 阳性, (+))."""
    key = _THOUSANDS.sub("", key) if "," in key else key
    numbers = map(_number, _NUMBER.findall(key))
    signs = (_SIGN.get(sign, sign) for sign in _SIGNS.findall(key))
    return sorted([*numbers, *signs, *(_ROMAN[roman] + _UNIT.get(unit, "") for roman, unit in _ROMANS.findall(key))])


@lru_cache(1 << 16)
def _number(text: str) -> str:
    """3, or 三, or 十二, with its units."""
    number, units = _PARTS.fullmatch(text).groups()
    if "十" in number:
        tens, _, ones = number.partition("十")
        number = (tens or "一") + (ones or "0")
    return number.translate(_NUMERALS) + "/".join(_UNIT.get(unit, unit) for unit in units.split("/"))


# What turns around what is said, in Chinese by the character, in English by the word.
POLARITY = re.compile("[无不未非没否勿禁忌慎升降增减高低误错]")
POLAR_WORDS = re.compile(
    r"\b(?:no|not|without|never|denies|except|least|incorrect|contraindicated|increased?|decreased?|high|low|elevated"
    r"|reduced)\b"
)
FLIP = 6  # characters: what was put in or left out is looked at up to this length
WORDS_FLIP = 16  # characters by which two English texts may differ in length


def are_opposed(one: str, other: str) -> bool:
    """Whether two texts differ in a few characters that turn what is said around: 无 for 有, 升 for 降, not, without.

    >>> are_opposed("患者无发热，血钾升高", "患者有发热，血钾升高"), are_opposed("要查什么？", "要查些什么？")
    (True, False)
    """
    keys = key_of(one), key_of(other)
    words = [Counter(POLAR_WORDS.findall(key)) for key in keys]
    if words[0] != words[1] and abs(len(keys[0]) - len(keys[1])) <= WORDS_FLIP:
        return True
    for what, a, b, c, d in SequenceMatcher(None, *keys, autojunk=False).get_opcodes():
        parts = keys[0][a:b], keys[1][c:d]
        turns = [Counter(POLARITY.findall(part)) for part in parts]
        if what != "equal" and max(map(len, parts)) <= FLIP and turns[0] != turns[1]:
            return True
    return False


# The index


class Pair(NamedTuple):
    """Two texts by number, the lower first, and the Jaccard similarity of their sets of n-grams."""

    first: int
    second: int
    jaccard: float


class Cluster(NamedTuple):
    """Texts connected by verified pairs. Of the pairs, those are kept that connect: one fewer than members."""

    members: tuple[int, ...]
    pairs: tuple[Pair, ...]


class Index:
    """Texts by number, and the clusters of near-duplicates among them.

    Memory: 184 bytes a text (`BYTES`), whatever its length: 32 band keys of 4 bytes, 256 bits of the signature, the
    sum of its grams' hashes, the hash of its markers, its place. The keys themselves, 4 bytes a character, wait for
    the check in an unnamed file in `folder` (the system's temporary one). The result depends on the texts and their
    order alone. Time grows with the number of texts, but with the square of how many of them are mostly the same
    boilerplate and hold the same markers.
    """

    BYTES = 4 * SLOTS // ROWS + 2 * SLOTS // 8 + 3 * 8

    def __init__(self, digits_matter: bool = True, folder: str | None = None) -> None:
        self.digits_matter = digits_matter
        self._spool = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - it lives as long as the index
        self._ends = _Column([np.array([-1])])  # of each key in the spool, in characters
        self._sums = _Column([np.zeros(0, np.uint64)])  # of each key's gram hashes: equal keys have equal ones
        self._bits = _Column([np.zeros((0, 2, SLOTS // 64), np.uint64)])  # the lowest two of each slot
        self._bands = [_Column([np.zeros(0, np.uint32)]) for _ in range(SLOTS // ROWS)]
        self._marks = np.zeros(0, np.uint64)  # hashes of the markers; 0 until one is needed

    def __len__(self) -> int:
        return len(self._sums.whole())

    def add(self, texts: Iterable[str]) -> None:
        """Take in texts; they get the next numbers, in order."""
        for codes, ends, sums, bits, bands in in_order(_digest, batches(texts)):
            for column, keys in zip(self._bands, bands, strict=True):
                column.append(keys)
            self._bits.append(bits)
            self._sums.append(sums)
            self._ends.append(self._ends.last() + 1 + ends)
            self._spool.write(codes)

    def clusters(self, threshold: float = 0.7) -> list[Cluster]:
        """Clusters in the order of their first members; `threshold` is from 0.7 to 1."""
        if not LOWEST <= threshold <= 1:
            raise ValueError(f"threshold: expected {LOWEST} to 1, got {threshold}")
        self._spool.flush()
        self._marks = np.concatenate([self._marks, np.zeros(len(self) - len(self._marks), np.uint64)])
        forest = Forest(len(self))
        pairs = []
        for first, second in self._candidates(forest, threshold):
            for one, other, jaccard in self._counted(first, second):
                if jaccard >= threshold and forest.join(one, other):
                    pairs.append(Pair(one, other, jaccard))
        return _clusters(forest, pairs)

    def jaccards(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """The Jaccard similarity of pairs of texts, their sets of n-grams counted in full; a key that is shorter than
        a gram is a set of one."""
        numbers, places = np.unique(np.concatenate([first, second]), return_inverse=True)
        sets, sizes = _gram_sets([self._key(number) for number in numbers.tolist()])
        one, other = places[: len(first)], places[len(first) :]
        pairs = np.concatenate([_ragged(sets, sizes, side) for side in (one, other)])
        pairs.sort()
        common = np.bincount(pairs[1:][pairs[1:] == pairs[:-1]] >> np.uint64(32), minlength=len(first))
        return common / (sizes[one] + sizes[other] - common)

    def surplus(self, cluster: Cluster, rank: Callable[[int], Any], threshold: float = 0.7) -> list[tuple[int, Pair]]:
        """What to drop of a cluster: the number, and the pair with what is kept in its place.

        By `rank`, lowest first, a text is kept unless it is as near as `threshold` to one that is kept already: of a
        chain of near-duplicates, the ends that are unlike each other both stay.
        """
        kept: list[int] = []
        dropped = []
        for number in sorted(cluster.members, key=lambda number: (rank(number), number)):
            like = self.jaccards(np.array(kept, int), np.full(len(kept), number))
            if len(like) and like.max() >= threshold:
                low, high = sorted((number, kept[like.argmax()]))
                dropped.append((number, Pair(low, high, float(like.max()))))
            else:
                kept.append(number)
        return dropped

    def _counted(self, first: np.ndarray, second: np.ndarray) -> Iterator[tuple[int, int, float]]:
        """Pairs with their Jaccard similarity, counted as many at a time as make up a batch."""
        sizes = np.diff(self._ends.whole())
        cuts = np.flatnonzero(np.diff(np.cumsum(sizes[first] + sizes[second]) // BATCH)) + 1
        for one, other in zip(np.split(first, cuts), np.split(second, cuts), strict=True):
            yield from zip(one.tolist(), other.tolist(), self.jaccards(one, other).tolist(), strict=True)

    def _key(self, number: int) -> bytes:
        before, end = self._ends.whole()[number : number + 2].tolist()
        return os.pread(self._spool.fileno(), 4 * (end - before - 1), 4 * (before + 1))

    def _candidates(self, forest: Forest, threshold: float) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Pairs worth counting in full, the lower number first; each is proposed once."""
        lengths = np.diff(self._ends.whole()) - 1
        filled = np.flatnonzero(lengths > 0)
        for first, second in _pairs(*_buckets(filled, self._sums.whole()[filled]), forest):
            yield first, second
        single = filled[forest.roots(filled) == filled]
        for done, band in enumerate(self._bands):
            buckets = self._by_markers(*_buckets(single, band.whole()[single]))
            for first, second in _pairs(*buckets, forest):
                near = self._differing_slots(first, second) <= SLOTS * 3 / 4 * (1 - threshold + MARGIN)
                first, second = first[near], second[near]
                known = np.zeros(len(first), bool)
                for earlier in self._bands[:done]:
                    known |= earlier.whole()[first] == earlier.whole()[second]
                first, second = first[~known], second[~known]
                if self.digits_matter:
                    same = self._marks_of(first) == self._marks_of(second)
                    first, second = first[same], second[same]
                yield first, second

    def _differing_slots(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """In how many slots the low bits differ: on average, 3/4 of the slots that differ."""
        bits = self._bits.whole()
        unlike = bits[first] ^ bits[second]
        return np.bitwise_count(unlike[:, 0] | unlike[:, 1]).sum(axis=1, dtype=np.int16)

    def _by_markers(self, members: np.ndarray, begins: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, ...]:
        """Large buckets taken apart by markers: forms that differ in numbers alone would be counted all by all."""
        large = ends - begins > LARGE
        if not (self.digits_matter and large.any()):
            return members, begins, ends
        marks = np.zeros(len(members), np.uint64)
        marks[large] = self._marks_of(members[large])
        order = np.lexsort((members, marks, begins))
        return _runs(members[order], begins[order], marks[order])

    def _marks_of(self, numbers: np.ndarray) -> np.ndarray:
        for number in np.unique(numbers[self._marks[numbers] == 0]).tolist():
            found = "\0".join(markers(self._key(number).decode("utf-32-le", "surrogatepass")))
            self._marks[number] = int.from_bytes(blake2b(found.encode(), digest_size=8).digest()) | 1
        return self._marks[numbers]


class Forest:
    """Union-find over numbers; the root of a tree is its lowest number."""

    def __init__(self, size: int) -> None:
        self.parent = np.arange(size)

    def root(self, number: int) -> int:
        while (parent := int(self.parent[number])) != number:
            self.parent[number] = self.parent[parent]
            number = parent
        return number

    def roots(self, numbers: np.ndarray) -> np.ndarray:
        roots = self.parent[numbers]
        while ((above := self.parent[roots]) != roots).any():
            roots = above
        return roots

    def join(self, first: int, second: int) -> bool:
        """Connect two numbers; False where they were already."""
        low, high = sorted((self.root(first), self.root(second)))
        self.parent[high] = low
        return low < high


class _Column:
    """An array that grows by parts, kept as parts until it is read."""

    def __init__(self, parts: list[np.ndarray]) -> None:
        self.parts = parts

    def append(self, part: np.ndarray) -> None:
        self.parts.append(part)

    def last(self) -> int:
        return int(self.parts[-1][-1])

    def whole(self) -> np.ndarray:
        if len(self.parts) > 1:
            self.parts = [np.concatenate(self.parts)]
        return self.parts[0]


def batches(texts: Iterable[str]) -> Iterator[list[str]]:
    batch, size = [], 0
    for text in texts:
        batch.append(text)
        size += len(text) + 1
        if size >= BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def in_order(work: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
    """Like map, in THREADS threads: most of the work is numpy's and rensa's, which let go of the interpreter."""
    with ThreadPoolExecutor(THREADS) as pool:
        waiting: deque[Future] = deque()
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) > THREADS:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _digest(texts: list[str]) -> tuple[np.ndarray, ...]:
    """Of a batch: the keys, their ends, the sums of their grams, the low bits and the band keys of their signatures."""
    codes, ends = keys_of(texts)
    hashes, begins = grams(*_padded(codes, ends), N)
    rows = RMinHash.digest_matrix_from_flat_token_hashes(hashes, begins.astype(np.uint64), SLOTS, 0).to_rows()
    packed = b"".join(itertools.starmap(struct.Struct(f"{SLOTS}I").pack, rows))
    signatures = np.frombuffer(packed, np.uint32).reshape(-1, SLOTS)
    return codes, ends, np.add.reduceat(hashes, begins[:-1]), _low_bits(signatures), _band_keys(signatures)


def _padded(codes: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Keys shorter than a gram, filled up to one with NUL, which no key holds."""
    missing = np.maximum(N + 1 - np.diff(ends, prepend=-1), 0)
    return (
        (np.insert(codes, np.repeat(ends, missing), 0), ends + np.cumsum(missing)) if missing.any() else (codes, ends)
    )


def _band_keys(signatures: np.ndarray) -> np.ndarray:
    """One key of 32 bits a band and text, band after band; two different bands share one by chance in 4·10⁹."""
    keys = np.zeros((SLOTS // ROWS, len(signatures)), np.uint64)
    for row, factor in enumerate(_factors(ROWS)):
        keys += signatures[:, row::ROWS].T * factor
    return (keys >> np.uint64(32)).astype(np.uint32)


def _low_bits(signatures: np.ndarray) -> np.ndarray:
    planes = np.stack([signatures & 1, signatures & 2], axis=1).astype(bool)
    return np.packbits(planes, axis=2).view(np.uint64)


def _gram_sets(keys: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """The distinct grams of each key as small integers, key after key, and how many each has."""
    codes = np.frombuffer(b"".join(key + _END for key in keys), np.uint32)
    hashes, begins = grams(*_padded(codes, np.flatnonzero(codes == END)), N)
    _, ids = np.unique(hashes, return_inverse=True)
    owner = np.repeat(np.arange(len(keys), dtype=np.uint64), np.diff(begins))
    owned = owner << np.uint64(32) | ids.astype(np.uint64)
    owned.sort()
    owned = owned[np.concatenate(([True], owned[1:] != owned[:-1]))[: len(owned)]]
    return owned & np.uint64(0xFFFFFFFF), np.bincount(owned >> np.uint64(32), minlength=len(keys))


def _ragged(values: np.ndarray, sizes: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The `values` of the chosen rows, each value under its place in `rows` in the upper 32 bits."""
    begins = np.cumsum(sizes) - sizes
    picked = sizes[rows]
    place = np.arange(picked.sum()) + np.repeat(begins[rows] - (np.cumsum(picked) - picked), picked)
    return np.repeat(np.arange(len(rows), dtype=np.uint64), picked) << np.uint64(32) | values[place]


def _buckets(numbers: np.ndarray, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Those of `numbers` that share their key with another, bucket after bucket; where each one's begins and ends."""
    order = np.argsort(keys, kind="stable")
    return _runs(numbers[order], keys[order])


def _runs(members: np.ndarray, *keys: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The same of members that are sorted by `keys` already."""
    new = np.concatenate(([True], np.any([key[1:] != key[:-1] for key in keys], axis=0)))[: len(members)]
    sizes = np.diff(np.flatnonzero(new), append=len(members))
    members, sizes = members[np.repeat(sizes, sizes) > 1], sizes[sizes > 1]
    ends = np.cumsum(sizes)
    return members, np.repeat(ends - sizes, sizes), np.repeat(ends, sizes)


def _pairs(
    members: np.ndarray, begins: np.ndarray, ends: np.ndarray, forest: Forest
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """All pairs within buckets that the forest has not connected yet: neighbours first, then ever further apart."""
    place, step = np.arange(len(members)), 1
    while True:
        roots = forest.roots(members)
        changes = np.cumsum(np.diff(roots, prepend=roots[:1]) != 0)
        loose = changes[ends[place] - 1] > changes[begins[place]]
        place = place[loose & (place + step < ends[place])]
        if not len(place):
            return
        alive = np.zeros(len(members), bool)
        alive[begins[place]] = True
        alive = alive[begins]
        gone = np.cumsum(~alive)
        place, begins, ends = place - gone[place], (begins - gone[begins])[alive], (ends - gone[ends - 1])[alive]
        members = members[alive]
        wide = max(1, BATCH // len(place))
        partner = place[:, None] + np.arange(step, step + wide)
        row, column = np.nonzero(partner < ends[place][:, None])
        first, second = members[place[row]], members[partner[row, column]]
        apart = forest.roots(first) != forest.roots(second)
        yield first[apart], second[apart]
        step += wide


def _clusters(forest: Forest, pairs: list[Pair]) -> list[Cluster]:
    found: dict[int, list[Pair]] = {}
    for pair in sorted(pairs):
        found.setdefault(forest.root(pair.first), []).append(pair)
    return [
        Cluster(tuple(sorted({number for pair in pairs for number in pair[:2]})), tuple(pairs))
        for _, pairs in sorted(found.items())
    ]
