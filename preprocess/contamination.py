"""Training texts that hold an evaluation item: which item, and how much of it.

    guard = Guard({"cmexam.json": questions, "val": held_out}, ordinary=training_texts)
    hit = guard.check(text)     # Hit(file="cmexam.json", number=17, coverage=0.97, run="患者男45岁因反复上腹痛…")

Compared are runs of characters of the comparison key (`near.key_of`), in Chinese and English alike: of
13; where an item has fewer than 100 characters of its own, of 5 in a Chinese item, of 10 in another.
Its own are those in runs that few items and few `ordinary` texts hold; the rest is boilerplate
(近14天无高风险地区旅居史) and proves nothing, but of an item that is short or mostly boilerplate it must stand
around them. An item without any of its own must be in the text whole; one of fewer than 13 characters,
or one that many ordinary texts hold (What is the most likely diagnosis?), must be the whole text.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from preprocess.near import END, as_text, batches, in_order, keys_of, windows, within

SHORT, MIDDLE, LONG = 13, 30, 100  # characters of an item
RUN, HAN_RUN, LATIN_RUN = 13, 5, 10
COVERAGE = {RUN: 0.65, HAN_RUN: 0.75, LATIN_RUN: 0.65}  # at 3 % of characters edited, 1 item in 200 holds less
COVERAGE_MIDDLE, COVERAGE_SHORT = 0.6, 0.75  # of what has less than MIDDLE, and less than SHORT, of its own
WHOLE = 0.75  # of an item's runs: who holds so many holds the item
FEWEST = 0.3  # of an item's own runs: who holds fewer is not compared
COMMON, COMMON_SHARE = 5, 0.002  # boilerplate is in more texts than this, and in a larger share of them


class Hit(NamedTuple):
    """An evaluation item in a text: its file and its number there (from 0), the share of its own characters that the
    text holds, and the longest run of its key that the text holds."""

    file: str
    number: int
    coverage: float
    run: str


class Guard:
    """Evaluation items, by the runs of characters that are their own: up to 100 bytes a character, 150 in the making.

    `ordinary` are texts among which boilerplate shows, best the training texts themselves.
    """

    def __init__(self, eval_texts: Mapping[str, Iterable[str]], ordinary: Iterable[str] = ()) -> None:
        self.places: dict[str, tuple[str, int]] = {}  # by key: the same item twice is one
        for file, texts in eval_texts.items():
            keys = (key for batch in batches(texts) for key in as_text(keys_of(batch)[0]))
            for number, key in enumerate(keys):
                self.places.setdefault(key, (file, number))
        self.places.pop("", None)
        self.keys = list(self.places)
        self._texts: dict[tuple[str, int], str] = {}
        self._runs = _tables(self.keys, ordinary)

    def check(self, text: str) -> Hit | None:
        """The item that `text` holds the most of, or None."""
        return self._check([text])[0]

    def text_of(self, hit: Hit) -> str:
        """The comparison key of the item that was hit."""
        if not self._texts:
            self._texts = {place: key for key, place in self.places.items()}
        return self._texts[hit.file, hit.number]

    def check_all(self, texts: Iterable[str]) -> Iterator[Hit | None]:
        """The same for many texts, in order, a batch at a time."""
        for hits in in_order(self._check, batches(texts)):
            yield from hits

    def _check(self, texts: list[str]) -> list[Hit | None]:
        codes, ends = keys_of(texts)
        keys = as_text(codes)
        hits = [Hit(*self.places[key], 1.0, key) if key in self.places else None for key in keys]
        sums = windows(codes, *COVERAGE)
        for runs in self._runs:
            for text, item in runs.candidates(sums[runs.n], ends):
                coverage, longest = runs.compare(keys[text], item)
                best = hits[text]
                if coverage and (best is None or coverage > best.coverage):
                    hits[text] = Hit(*self.places[self.keys[item]], coverage, longest)
        return hits


class _Runs:
    """The runs of `n` characters in items; after `settle`, those alone that are some item's own."""

    def __init__(self, n: int, keys: list[str]) -> None:
        self.n, self.keys = n, keys
        codes, ends = _joined(keys)
        sums = windows(codes, n)[n]
        self.hashes, self.runs = np.unique(within(sums, ends, n), return_inverse=True)
        counts = np.maximum(np.diff(ends, prepend=-1) - n, 0)
        self.begins = np.concatenate(([0], np.cumsum(counts)))
        owner = np.repeat(np.arange(len(keys)), counts)
        self.run, self.item = _divided(self.runs * len(keys) + owner, len(keys))
        self.met = np.bincount(self.run, minlength=len(self.hashes))  # in how many texts
        self.leaks = np.zeros(len(keys), int)  # how many texts hold nearly all of an item
        self.met_leaking = self.met.copy()  # in how many texts, those counted that hold nearly all of an item
        self._make_anchors()
        self._make_sieve()

    def _make_sieve(self) -> None:
        """By the upper bits of a hash, whether it may be known: turns away most of what is not by one look."""
        bits = (32 * len(self.hashes)).bit_length()
        self.shift = np.uint64(64 - bits)
        self.sieve = np.zeros(1 << bits, bool)
        self.sieve[self.hashes >> self.shift] = True

    def find(self, sums: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The known runs in texts: text and run, each pair once."""
        place = np.flatnonzero(self.sieve.take((sums >> self.shift).view(np.int64)))
        run = np.searchsorted(self.hashes, sums[place])
        known = self.hashes.take(run, mode="clip") == sums[place]
        text = np.repeat(np.arange(len(ends)), np.diff(np.searchsorted(place[known], ends), prepend=0))
        return _divided(text * len(self.hashes) + run[known], len(self.hashes))

    def meet(self, sums: np.ndarray, ends: np.ndarray) -> None:
        """Count the runs in ordinary texts. Where one holds nearly all of an item, that is a leak, and the item's runs
        are not counted: what leaks ten times over must not pass for boilerplate."""
        text, run = self.find(sums, ends)
        place, owner = _expanded(self.anchor_starts, run)
        pairs, held = np.unique(text[owner] * len(self.keys) + self.anchor_items[place], return_counts=True)
        near, item = np.divmod(pairs, max(len(self.keys), 1))
        enough = held >= self.anchors_needed[item]
        near, item = near[enough], item[enough]
        place, pair = _expanded(self.item_starts, item)
        known = text * len(self.hashes) + run  # sorted, as `find` gives them
        wanted = near[pair] * len(self.hashes) + self.item_runs[place]
        at = np.searchsorted(known, wanted)
        found = known.take(at, mode="clip") == wanted if len(known) else np.zeros(len(wanted), bool)
        leaks = np.bincount(pair[found], minlength=len(item)) >= WHOLE * np.diff(self.begins)[item]
        self.leaks += np.bincount(item[leaks], minlength=len(self.keys))
        counts = np.ones(len(run), bool)
        counts[at[found & leaks[pair]]] = False
        self.met += np.bincount(run[counts], minlength=len(self.hashes))
        self.met_leaking += np.bincount(run, minlength=len(self.hashes))

    def settle_boilerplate(self, limit: float) -> None:
        """An item that is a common phrase and a few words of its own is held by many texts without a leak: there its
        rarest run is in few of them. Its runs count as all others do."""
        rarest = np.full(len(self.keys), np.iinfo(int).max)
        np.minimum.at(rarest, self.item, self.met_leaking[self.run])
        run = self.run[((self.leaks > limit) & (rarest <= limit))[self.item]]
        self.met[run] = self.met_leaking[run]

    def _make_anchors(self) -> None:
        """Of each item so many of its rarest runs that who holds WHOLE of it holds some of these: whoever holds fewer
        need not be compared, however much boilerplate they share."""
        order = np.lexsort((self.met[self.run], self.item))
        item = self.item[order]
        self.item_runs = self.run[order]
        self.item_starts = np.searchsorted(item, np.arange(len(self.keys) + 1))
        rank = np.arange(len(item)) - self.item_starts[item]
        sizes = np.diff(self.item_starts)
        spare = np.floor(sizes - WHOLE * np.diff(self.begins)).astype(int)  # so many may be missing
        chosen = np.minimum(2 * spare + 1, sizes)
        self.anchors_needed = np.maximum(chosen - spare, 1)
        anchors = rank < chosen[item]
        run, by_run = self.item_runs[anchors], np.argsort(self.item_runs[anchors], kind="stable")
        self.anchor_items = item[anchors][by_run]
        self.anchor_starts = np.searchsorted(run[by_run], np.arange(len(self.hashes) + 1))

    def own(self, limit: float) -> list[np.ndarray]:
        """Of each item, which of its characters stand in a run that at most `limit` texts hold."""
        rare, bounds = (self.met <= limit)[self.runs], itertools.pairwise(self.begins.tolist())
        return [
            np.convolve(rare[begin:end], np.ones(self.n, int)) > 0 if begin < end else np.zeros(len(key), bool)
            for key, (begin, end) in zip(self.keys, bounds, strict=True)
        ]

    def settle(self, chosen: np.ndarray, limit: float) -> None:
        """Keep the runs of the chosen items that at most `limit` texts hold; of an item without, its rarest, unless
        the whole of it is in so many texts."""
        self.masks = self.own(limit)
        self.sizes = np.array([mask.sum() for mask in self.masks])
        self.needed = np.select(
            [self.sizes < SHORT, self.sizes < MIDDLE], [COVERAGE_SHORT, COVERAGE_MIDDLE], COVERAGE[self.n]
        )
        rarest = np.full(len(self.keys), np.iinfo(int).max)
        np.minimum.at(rarest, self.item, self.met[self.run])
        highest = np.where(self.leaks > limit, limit, np.maximum(rarest, limit))
        keep = (self.met[self.run] <= highest[self.item]) & chosen[self.item]
        used, run = np.unique(self.run[keep], return_inverse=True)
        self.hashes, self.item = self.hashes[used], self.item[keep]
        self.starts = np.searchsorted(run, np.arange(len(used) + 1))
        self.counts = np.bincount(self.item, minlength=len(self.keys))
        self._make_sieve()
        del self.runs, self.run, self.met, self.met_leaking, self.begins
        del self.item_runs, self.item_starts, self.anchor_items, self.anchor_starts, self.anchors_needed

    def candidates(self, sums: np.ndarray, ends: np.ndarray) -> Iterator[tuple[int, int]]:
        """Text and item, where the text holds enough of the item's own runs to cover what it takes."""
        text, run = self.find(sums, ends)
        place, owner = _expanded(self.starts, run)
        pair, held = np.unique(text[owner] * len(self.keys) + self.item[place], return_counts=True)
        text, item = np.divmod(pair, len(self.keys))
        enough = (held >= FEWEST * self.counts[item]) & (held * self.n >= self.needed[item] * self.sizes[item])
        return zip(text[enough].tolist(), item[enough].tolist(), strict=True)

    def compare(self, text: str, item: int) -> tuple[float, str]:
        """The share of the item's own characters that one place of the text holds, 0 where too little; the longest run.

        Of an item that has little of its own, the rest must stand there, too.
        """
        key, mask, needed = self.keys[item], self.masks[item], self.needed[item]
        if key in text or not self.sizes[item]:
            return (1.0, key) if key in text else (0.0, "")
        begin, end, at = _longest_run(key, text, self.n)
        longest, slack = key[begin:end], len(key) // 4 + self.n
        place = text[max(at - begin - slack, 0) : at - begin + len(key) + slack]
        held = np.zeros(len(key), bool)
        for begin, end in _common_runs(key, place, self.n):
            held[begin:end] = True
        coverage = float((held & mask).sum() / self.sizes[item])
        whole = self.n == RUN or held.mean() >= needed
        return (coverage, longest) if coverage >= needed and whole else (0.0, "")


def _tables(keys: list[str], ordinary: Iterable[str]) -> list[_Runs]:
    """Per length of runs, what is the own of the items that are compared by it."""
    kinds = {RUN: keys, HAN_RUN: [key if _is_han(key) else "" for key in keys]}
    kinds[LATIN_RUN] = ["" if _is_han(key) else key for key in keys]
    tables = [_Runs(n, [key if len(key) >= SHORT else "" for key in kind]) for n, kind in kinds.items()]
    met = len(keys)
    for texts in batches(ordinary):
        codes, ends = keys_of(texts)
        met += len(texts)
        sums = windows(codes, *COVERAGE)
        for runs in tables:
            runs.meet(sums[runs.n], ends)
    limit = max(COMMON, COMMON_SHARE * met)
    for runs in tables:
        runs.settle_boilerplate(limit)
    long = np.array([mask.sum() >= LONG for mask in tables[0].own(limit)], bool)
    for runs in tables:
        runs.settle(long if runs.n == RUN else ~long, limit)
    return [runs for runs in tables if len(runs.hashes)]


def _is_han(key: str) -> bool:
    return 2 * sum("\u3400" <= char <= "\u9fff" or char >= "\U00020000" for char in key) >= len(key)


def _joined(keys: list[str]) -> tuple[np.ndarray, np.ndarray]:
    codes = np.frombuffer("".join(key + chr(END) for key in keys).encode("utf-32-le", "surrogatepass"), np.uint32)
    return codes, np.flatnonzero(codes == END)


def _divided(pairs: np.ndarray, by: int) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of numbers, each once, from where they stand as one: high · by + low."""
    pairs = np.sort(pairs)
    return np.divmod(pairs[np.concatenate(([True], pairs[1:] != pairs[:-1]))[: len(pairs)]], max(by, 1))


def _expanded(starts: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All places of the given rows, one row after the other, and for each the number of its row among `rows`."""
    counts = starts[rows + 1] - starts[rows]
    place = np.arange(counts.sum()) + np.repeat(starts[rows] - np.cumsum(counts) + counts, counts)
    return place, np.repeat(np.arange(len(rows)), counts)


def _longest_run(key: str, text: str, n: int) -> tuple[int, int, int]:
    """The longest run of `key` in `text` and where it stands there; what is shorter than 1.5 · n counts if nothing is
    longer."""
    for step in (n // 2, 1):
        best = (0, 0, 0)
        for begin in range(0, len(key) - n + 1, step):
            if begin >= best[1] and (at := text.find(key[begin : begin + n])) >= 0:
                end, back = _extent(key, text, begin, at)
                best = max(best, (begin - back, end, at - back), key=lambda run: run[1] - run[0])
        if best[1]:
            return best
    return 0, 0, 0


def _extent(key: str, text: str, begin: int, at: int) -> tuple[int, int]:
    """How far `key` and `text` go together from these places: to which character of `key`, and how many back."""
    end = begin + _shared(key[begin:], text[at : at + len(key) - begin])
    return end, _shared(key[:begin][::-1], text[max(at - begin, 0) : at][::-1])


def _shared(one: str, other: str) -> int:
    """The length of what both begin with."""
    return bisect.bisect_left(
        range(min(len(one), len(other))), True, key=lambda size: one[: size + 1] != other[: size + 1]
    )


def _common_runs(key: str, text: str, n: int) -> Iterator[tuple[int, int]]:
    """What of `key` stands in `text` in runs of at least `n` characters, each as long as where it first stands."""
    begin = 0
    while begin + n <= len(key):
        at = text.find(key[begin : begin + n])
        if at < 0:
            begin += 1
            continue
        end, _ = _extent(key, text, begin, at)
        yield begin, end
        begin = end - n + 1
