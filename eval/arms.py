"""The models that are compared: a base, adapters on it, models of their own, servers elsewhere.

    arms: [base, tuned=saves/medcot, full=saves/assistant_full, teacher=https://api.deepseek.com/v1#deepseek-chat]

The first is what the others are compared with. `base` alone is serve.yaml's model without its adapter; a folder with an
`adapter_config.json` is an adapter on it; a folder with a `config.json` is a model; an address ends in `#model`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from preprocess.records import sha256_file
from recipe import UserError

# Names of figures, which stand beside the arms' names in metrics.json.
TAKEN = {"ratio", "ratios", "samples", "tokens", "share", "per_sample", "bits_per_byte", "bits_per_character"}
TAKEN |= {"segments", "without", "ids_sha256", "rows", "context", "windowed", "skipped", "not_scored", "train"}
TAKEN |= {"prompts", "counts", "intervals", "changes"}
WHOLE, EDGE = 1 << 30, 1 << 20  # bytes: files up to so much are hashed whole, of others so much at either end


@dataclass(frozen=True)
class Arm:
    """One model: `kind` is base, adapter, model or server; `place` the folder or address; `model` a server's name."""

    name: str
    kind: str
    place: str = ""
    model: str = ""

    @property
    def overrides(self) -> list[str]:
        """What serve.yaml needs to serve this arm."""
        if self.kind == "model":
            return [f"model_name_or_path={self.place}", "adapter_name_or_path=null"]
        return [f"adapter_name_or_path={self.place or 'null'}"]


def read_arms(arms: Sequence[str]) -> list[Arm]:
    """The arms of a recipe, in order; UserError for one that is no folder of a model and no address."""
    read = [_arm(*map(str.strip, arm.partition("=")[::2])) for arm in arms]
    if len({arm.name for arm in read}) < len(read) or len(read) < 2:
        raise UserError(f"arms: expected two or more, each with a name of its own, got {', '.join(arms) or 'none'}")
    return read


def _arm(name: str, place: str) -> Arm:
    if not re.fullmatch(r"[\w-]+", name):
        raise UserError(f"arms: {name!r} is no name; expected letters, digits, - and _, as in tuned=saves/medcot")
    if name in TAKEN:
        raise UserError(f"arms: {name!r} is the name of a figure; take another one")
    if not place:
        return Arm(name, "base")
    if place.startswith(("http://", "https://")):
        url, _, model = place.partition("#")
        if not model:
            raise UserError(f"arms: {name}: expected the address and the model, as in {name}={url}#model")
        return Arm(name, "server", url, model)
    for kind, file in (("adapter", "adapter_config.json"), ("model", "config.json")):
        if (Path(place) / file).is_file():
            return Arm(name, kind, place)
    raise UserError(f"arms: {name}: {place} has no adapter_config.json and no config.json; train it first")


def weights_of(arm: Arm, base: str) -> str:
    """What tells an arm's weights from others: a fingerprint, or a server's own name for them. `base` is the folder, or
    the name on a hub, of the model that adapters are put on."""
    if arm.kind == "server":
        return arm.model
    place = arm.place or base
    return fingerprint(place) if Path(place).is_dir() else place


def fingerprint(folder: str) -> str:
    """SHA-256, in hex, that tells the weights in a folder from others: of each file the size, and all of it or, where
    it is big, both ends. Raises UserError where there are none."""
    files = sorted(path for path in Path(folder).glob("*") if path.suffix in (".safetensors", ".bin"))
    if not files:
        raise UserError(f"{folder}: no weights in it; expected a model or a trained LoRA adapter (`make train`)")
    digest = sha256()
    for path in files:
        digest.update(f"{path.name} {path.stat().st_size} {_content(path)}\n".encode())
    return digest.hexdigest()


def _content(path: Path) -> str:
    if path.stat().st_size <= WHOLE:
        return sha256_file(path)
    with open(path, "rb") as file:
        begin = file.read(EDGE)
        file.seek(-EDGE, 2)
        return sha256(begin + file.read(EDGE)).hexdigest()
