"""The two hubs, asked through their own libraries: what is in a repository, one file of it, where its page is.

huggingface_hub and modelscope_hub read mirrors, proxies, tokens and timeouts from the environment themselves
(HF_ENDPOINT, HF_TOKEN, HF_HUB_DOWNLOAD_TIMEOUT, MODELSCOPE_ENDPOINT or MODELSCOPE_DOMAIN, MODELSCOPE_API_TOKEN,
HTTPS_PROXY, …), most of it once, when first imported. So they are imported late, after our own defaults are set.
"""

from __future__ import annotations

import errno
import os
import re
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from recipe import UserError

TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "MODELSCOPE_API_TOKEN")
CAUSE = re.compile(r"\[Errno[^]]*\][^'\"()]*|timed out|certificate verify failed|[Cc]annot connect to proxy")
NOUNS = {"dataset": "data set", "model": "model"}


class Unreachable(Exception):
    """No answer from a hub; the text says why, in a few words."""


@dataclass(frozen=True)
class File:
    """What a file must be: its bytes, its SHA-256 where known ("" if not), else the id that git gives its content."""

    bytes: int
    sha256: str = ""
    blob: str = ""


@dataclass(frozen=True)
class Listing:
    """A repository's files by path; its `commit`, where the hub says it, and the revision to fetch them `at`."""

    commit: str | None
    at: str
    files: dict[str, File]


class Hub(Protocol):
    """A hub. `kind` is "dataset" or "model"; every method that asks raises Unreachable or a UserError of one line."""

    name: str
    branch: str  # what a repository's newest state is called there

    def page(self, kind: str, repo: str, revision: str) -> str:
        """The address where a person finds the files."""

    def listing(self, kind: str, repo: str, revision: str) -> Listing:
        """What the repository holds at a branch, tag or commit."""

    def fetch(self, kind: str, repo: str, revision: str, path: str, size: int, folder: Path) -> None:
        """One file into `folder`; what an interrupted call left there is gone on with."""


class HuggingFace:
    """huggingface.co, or the mirror that HF_ENDPOINT names."""

    name, branch = "huggingface", "main"

    def page(self, kind: str, repo: str, revision: str) -> str:
        return f"https://huggingface.co/{'datasets/' if kind == 'dataset' else ''}{repo}/tree/{revision}"

    def listing(self, kind: str, repo: str, revision: str) -> Listing:
        with self._asked(kind, repo, revision) as api:
            from huggingface_hub.constants import HF_HUB_DOWNLOAD_TIMEOUT

            info = api.repo_info(
                repo, repo_type=kind, revision=revision, files_metadata=True, timeout=HF_HUB_DOWNLOAD_TIMEOUT
            )
            files = {
                each.rfilename: File(int(each.size), each.lfs.sha256)
                if each.lfs
                else File(int(each.size), "", each.blob_id)
                for each in info.siblings
            }
            return Listing(info.sha, info.sha, files)

    def fetch(self, kind: str, repo: str, revision: str, path: str, size: int, folder: Path) -> None:
        target = folder / path
        part = target.with_name(f"{target.name}.incomplete")
        part.parent.mkdir(parents=True, exist_ok=True)
        with self._asked(kind, repo, revision) as api, open(part, "ab") as file:
            from huggingface_hub import hf_hub_url
            from huggingface_hub.file_download import http_get
            from huggingface_hub.utils import build_hf_headers

            if file.tell() > size:
                file.truncate(0)
            # hf_hub_download starts a file anew after each interruption, and deletes the old file before it has the
            # new one; the function below it resumes. No compression, as a range of it would be of other bytes.
            http_get(
                hf_hub_url(repo, path, repo_type=kind, revision=revision, endpoint=api.endpoint),
                file,
                resume_size=os.fstat(file.fileno()).st_size,
                headers=build_hf_headers() | {"Accept-Encoding": "identity"},
                expected_size=size,
                displayed_filename=path,
            )
        os.replace(part, target)

    @contextmanager
    def _asked(self, kind: str, repo: str, revision: str) -> Iterator[Any]:
        os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
        import httpx
        from huggingface_hub import HfApi, errors
        from huggingface_hub.utils import logging

        logging.set_verbosity_error()  # what it warns of is said in our one line
        with _faults(self, kind, repo, revision) as named:
            named |= {
                errors.GatedRepoError: "gated",
                errors.RepositoryNotFoundError: "repository",
                errors.RevisionNotFoundError: "revision",
                errors.OfflineModeIsEnabled: "network",
                httpx.TransportError: "network",
                errors.HFValidationError: "id",
            }
            yield HfApi()


class ModelScope:
    """modelscope.cn, or what MODELSCOPE_ENDPOINT names."""

    name, branch = "modelscope", "master"

    def page(self, kind: str, repo: str, revision: str) -> str:
        return f"https://modelscope.cn/{kind}s/{repo}/files"

    def listing(self, kind: str, repo: str, revision: str) -> Listing:
        with self._asked(kind, repo, revision) as api:
            entries = api.legacy.list_repo_files(repo, kind, revision)  # api.list_repo_files leaves the commits out
            files = {
                entry["Path"]: File(int(entry["Size"]), (entry.get("Sha256") or "").lower())
                for entry in entries
                if entry.get("Type") != "tree"
            }
            # The API names each entry's last commit, so the repository's is the newest of them.
            dated = [(entry.get("CommittedDate") or 0, entry.get("Revision") or "") for entry in entries]
            commit = max(dated, default=(0, ""))[1]
            # Fetched at the name asked for, as that is what the API is made for; the SHA-256 of the list holds it.
            return Listing(commit if re.fullmatch(r"[0-9a-f]{40}", commit) else None, revision, files)

    def fetch(self, kind: str, repo: str, revision: str, path: str, size: int, folder: Path) -> None:
        with self._asked(kind, repo, revision) as api:
            api.download_file(repo, kind, path, revision=revision, local_dir=folder, file_size=size)

    @contextmanager
    def _asked(self, kind: str, repo: str, revision: str) -> Iterator[Any]:
        os.environ.setdefault("MODELSCOPE_LOG_LEVEL", "ERROR")
        os.environ.setdefault("MODELSCOPE_DOWNLOAD_FILE_LOCK", "false")  # ours is held, and leaves nothing behind
        os.environ.setdefault("MODELSCOPE_REPO_TREE_PAGE_MAX_ATTEMPTS", "2")
        os.environ.setdefault("MODELSCOPE_DOWNLOAD_TOTAL_TIMEOUT", "86400")  # its own hour is too short for a shard
        import requests
        from modelscope_hub import HubApi, HubConfig, errors

        class Config(HubConfig):
            """Without the number that it would keep in the home folder and send along, to know the machine again."""

            def get_session_id(self) -> str:
                return uuid.uuid4().hex

        with _faults(self, kind, repo, revision) as named, warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # MODELSCOPE_DOMAIN has a new name
            named |= {
                errors.AuthenticationError: "gated",
                errors.PermissionDeniedError: "gated",
                errors.NotExistError: "repository",
                errors.InvalidParameter: "id",
                errors.NetworkError: "network",
                requests.ConnectionError: "network",
                requests.Timeout: "network",
            }
            yield HubApi(Config())


HUBS: dict[str, Hub] = {hub.name: hub for hub in (HuggingFace(), ModelScope())}


@contextmanager
def _faults(hub: Hub, kind: str, repo: str, revision: str) -> Iterator[dict[type[Exception], str]]:
    """Turn any exception of a library into one of ours; the block puts in which class means what, first match wins."""
    named: dict[type[Exception], str] = {}
    try:
        yield named
    except (UserError, Unreachable):
        raise
    except Exception as error:  # a traceback would show headers, and with them tokens
        if isinstance(error, OSError) and (error.filename or error.errno == errno.ENOSPC):
            raise  # of the disk
        status = getattr(error, "status_code", None) or getattr(getattr(error, "response", None), "status_code", None)
        fault = next((fault for cls, fault in named.items() if isinstance(error, cls)), "")
        fault = fault or {401: "gated", 403: "gated", 404: "repository"}.get(status, "")
        cause = CAUSE.search(str(error))  # the rest of the text is of the library's own parts
        reason = f"HTTP {status}" if status else scrub(cause[0] if cause else f"{type(error).__name__}: {error}")
        if fault == "network" or (status or 0) >= 429:
            raise Unreachable(reason) from None
        raise UserError(f"{hub.name}: {_text(fault, hub, kind, repo, revision, reason)}") from None


def _text(fault: str, hub: Hub, kind: str, repo: str, revision: str, reason: str) -> str:
    noun, token = NOUNS[kind], {"huggingface": "HF_TOKEN", "modelscope": "MODELSCOPE_API_TOKEN"}[hub.name]
    if fault == "gated":
        page = hub.page(kind, repo, revision)
        return f"{noun} {repo} is not open to you: accept its licence on {page}, and set {token} to a token of yours"
    if fault == "repository":
        what = f"no {noun} {repo}" + (f", or none at revision {revision}" if hub.name == "modelscope" else "")
        return f"{what}; check the id (a private one also needs {token})"
    if fault == "revision":
        return f"{noun} {repo} has no revision {revision}; name a branch, a tag or a commit as {kind}_revision"
    if fault == "id":
        return f"{repo!r} at revision {revision!r} is no name of a {noun}, expected owner/name ({reason})"
    return f"{noun} {repo} could not be asked for ({reason})"


def scrub(text: str) -> str:
    """The first line of an error, without what opens doors: tokens, passwords in addresses, signed queries."""
    for value in filter(None, map(os.environ.get, TOKENS)):
        text = text.replace(value.strip(), "***")
    text = re.sub(r"(?i)bearer\s+\S+|\bhf_\w+|\bms-[0-9a-f-]{20,}", "***", text)
    text = re.sub(r"//[^/@\s]+@", "//***@", re.sub(r"\?\S+", "?…", text))
    return next(iter(text.strip().splitlines()), "")[:200]
