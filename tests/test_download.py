"""The real huggingface_hub and modelscope_hub against a server on this machine that answers as the hubs do."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from preprocess import hubs
from preprocess.download import Download, download, read_lock, select
from recipe import UserError, load
from tests.conftest import ROOT

REPO, MODEL = "owner/records", "owner/model"
FIRST, SECOND = "1" * 40, "2" * 40
TOKEN = "hf_secret0123456789"
DATA = "咳嗽三周".encode() * 999
KEY = f"huggingface/datasets/{REPO}"


@dataclass
class Server:
    """Repositories by (kind, id) as {commit: {path: bytes}}, the newest last; what was asked; how to misbehave."""

    repos: dict[tuple[str, str], dict[str, dict[str, bytes]]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    tokens: list[str | None] = field(default_factory=list)
    ranges: list[str | None] = field(default_factory=list)
    status: int = 0  # of every answer, with `error` as the hub's own word for it
    error: str = ""
    hide_hashes: bool = False  # as for files outside LFS
    names_only: bool = False  # a commit is no revision
    stall_after: int = 0  # bytes, after which a body hangs
    stalled: threading.Event = field(default_factory=threading.Event)
    url: str = ""

    def at(self, kind: str, repo: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        commits = self.repos.get((kind, repo), {})
        commit = list(commits)[-1] if commits and revision in ("main", "master") else revision
        taken = commit in commits and (revision != commit or not self.names_only)
        return (commit, commits[commit]) if taken else None


def handler(server: Server) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None: ...

        def do_GET(self) -> None:
            url = urlsplit(self.path)
            query = {key: values[0] for key, values in parse_qs(url.query).items()}
            server.asked.append(unquote(url.path))
            server.tokens.append(self.headers.get("Authorization"))
            if server.status:
                return self.send(b"{}", server.status, {"X-Error-Code": server.error})
            words = unquote(url.path).strip("/").split("/")
            if words[:2] == ["api", "v1"]:
                return self.modelscope(words[2:], query)
            if words[0] == "api":
                return self.info(words[1][:-1], "/".join(words[2:4]), words[5])
            kind = "dataset" if words[0] == "datasets" else "model"
            words = words[1:] if kind == "dataset" else words
            return self.file(kind, "/".join(words[:2]), words[3], "/".join(words[4:]))

        def info(self, kind: str, repo: str, revision: str) -> None:
            if (kind, repo) not in server.repos:
                return self.send(b"{}", 401, {"X-Error-Code": "RepoNotFound"})
            if not (found := server.at(kind, repo, revision)):
                return self.send(b"{}", 404, {"X-Error-Code": "RevisionNotFound"})
            siblings = []
            for name, body in found[1].items():
                blob = hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()
                sibling = {"rfilename": name, "size": len(body), "blobId": blob}
                if not server.hide_hashes:
                    sibling["lfs"] = {"sha256": sha256(body), "size": len(body), "pointerSize": 130}
                siblings.append(sibling)
            self.send(json.dumps({"id": repo, "sha": found[0], "siblings": siblings}).encode())

        def modelscope(self, words: list[str], query: dict[str, str]) -> None:
            kind, repo = words[0][:-1], "/".join(words[1:3])
            if not (found := server.at(kind, repo, query.get("Revision", ""))):
                return self.send(b'{"Code": 404, "Message": "not found"}', 404)
            if "FilePath" in query:
                return self.file(kind, repo, query["Revision"], query["FilePath"])
            files = [
                {"Path": name, "Type": "blob", "Size": len(body), "Sha256": sha256(body), "Revision": found[0]}
                for name, body in found[1].items()
            ]
            self.send(json.dumps({"Code": 200, "Data": {"Files": files}}).encode())

        def file(self, kind: str, repo: str, revision: str, name: str) -> None:
            found = server.at(kind, repo, revision)
            body = found[1][name]
            wanted = self.headers.get("Range")
            server.ranges.append(wanted)
            start = int(wanted.removeprefix("bytes=").split("-")[0]) if wanted else 0
            headers = {"ETag": f'"{sha256(body)}"', "X-Repo-Commit": found[0]}
            if wanted:
                headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
            self.send(body[start:], 206 if wanted else 200, headers)

        def send(self, body: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
                self.send_header(name, value)
            self.end_headers()
            if server.stall_after and len(body) > server.stall_after:
                self.wfile.write(body[: server.stall_after])
                self.wfile.flush()
                server.stalled.wait(20)
                self.close_connection = True
            else:
                self.wfile.write(body)

    return Handler


def sha256(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A hub with a data set of two files and a model, which both libraries ask in this process."""
    from huggingface_hub import constants

    server = Server()
    server.repos["dataset", REPO] = {FIRST: {"a.json": DATA, "b.json": b"[]"}}
    server.repos["model", MODEL] = {
        FIRST: {
            "config.json": b"{}", "tokenizer_config.json": b"{}", "model.safetensors": b"w" * 5000,
            "pytorch_model.bin": b"w" * 5000, "original/consolidated.00.pth": b"w", ".gitattributes": b"",
        }
    }  # fmt: skip
    http = ThreadingHTTPServer(("127.0.0.1", 0), handler(server))
    http.daemon_threads = True
    server.url = f"http://127.0.0.1:{http.server_port}"
    threading.Thread(target=http.serve_forever, args=(0.02,), daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", *hubs.TOKENS):
        monkeypatch.delenv(name, raising=False)
    home = {"MODELSCOPE_HOME": "home", "MODELSCOPE_CACHE": "cache"}
    for name, value in {**{k: str(tmp_path / v) for k, v in home.items()}, "MODELSCOPE_ENDPOINT": server.url}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield server
    server.stalled.set()
    http.shutdown()
    http.server_close()


@pytest.fixture
def want(tmp_path: Path) -> SimpleNamespace:
    """Settings for the data set in a fresh folder, and its places."""

    def settings(**keys: object) -> Download:
        defaults = {"lock": str(tmp_path / "download.lock.json"), "dataset": REPO, "data_dir": str(tmp_path / "raw")}
        return Download(**(defaults | {"files": ["a.json"]} | keys))

    return SimpleNamespace(settings=settings, lock=tmp_path / "download.lock.json", a=tmp_path / "raw/a.json")


def fails(settings: Download) -> str:
    with pytest.raises(UserError) as error:
        download(settings)
    assert "\n" not in str(error.value)
    return str(error.value)


def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.mark.parametrize("hub", ["huggingface", "modelscope"])
def test_the_first_download_writes_the_lock_and_the_second_asks_nothing(
    server: Server, want: SimpleNamespace, hub: str, capsys: pytest.CaptureFixture
) -> None:
    download(want.settings(hub=hub))
    assert sorted(os.listdir(want.lock.parent)) == ["download.lock.json", "raw"]  # no cache, no number kept for anyone
    assert want.a.read_bytes() == DATA and sorted(os.listdir(want.a.parent)) == ["a.json"]
    assert json.loads(want.lock.read_text()) == {
        f"{hub}/datasets/{REPO}": {
            "commit": FIRST,
            "files": {"a.json": {"bytes": len(DATA), "sha256": sha256(DATA)}},
            "revision": "main" if hub == "huggingface" else "master",
        }
    }
    assert f"commit {FIRST}" in capsys.readouterr().out and server.asked
    server.asked.clear()
    server.status = 500
    download(want.settings(hub=hub))
    assert not server.asked and "nothing fetched" in capsys.readouterr().out


def test_the_lock_holds_the_commit_when_the_hub_moves_on(server: Server, want: SimpleNamespace) -> None:
    download(want.settings())
    server.repos["dataset", REPO][SECOND] = {"a.json": b"newer", "b.json": b"newer"}
    want.a.unlink()
    download(want.settings(files=["a.json", "b.json"]))
    assert want.a.read_bytes() == DATA and want.a.with_name("b.json").read_bytes() == b"[]"
    assert "asked for is v2" in fails(want.settings(dataset_revision="v2"))
    download(want.settings(update=True))
    assert want.a.read_bytes() == b"newer" and read_lock(str(want.lock))[KEY].commit == SECOND


@pytest.mark.parametrize("hub", ["huggingface", "modelscope"])
@pytest.mark.parametrize("hide", [False, True])
def test_a_file_that_changed_at_the_same_commit_is_refused_and_nothing_is_lost(
    server: Server, want: SimpleNamespace, hub: str, hide: bool
) -> None:
    both = want.settings(hub=hub, files=["a.json", "b.json"])
    download(both)
    lock = want.lock.read_text()
    want.a.with_name("b.json").unlink()
    server.repos["dataset", REPO][FIRST] = {"a.json": b"x" * len(DATA), "b.json": b"{}"}
    server.hide_hashes = hide
    message = fails(both)
    first = DATA if hub == "modelscope" or not hide else b"[]"  # seen in the list, or only when it was fetched
    got = b"x" * len(DATA) if first == DATA else b"{}"
    assert f"expected sha256 {sha256(first)}, got {sha256(got)}" in message and "update=true" in message
    assert want.a.read_bytes() == DATA and want.lock.read_text() == lock
    assert not want.a.with_name("b.json").exists()


def test_a_file_of_the_users_own_is_never_overwritten(server: Server, want: SimpleNamespace) -> None:
    want.a.parent.mkdir()
    want.a.write_bytes(b"mine")
    assert f"{want.a}: expected {len(DATA):,} bytes, got 4" in fails(want.settings())
    assert want.a.read_bytes() == b"mine" and not want.lock.exists()
    want.a.write_bytes(DATA)  # the hub's: taken as it is, found out by SHA-256 or by git's own id
    download(want.settings())
    server.hide_hashes = True
    want.lock.unlink()
    download(want.settings())
    assert not server.ranges
    want.a.write_bytes(b"x" * len(DATA))
    assert f"expected sha256 {sha256(DATA)}, got " in fails(want.settings())
    want.lock.unlink()
    assert "expected git blob" in fails(want.settings())


def test_of_a_model_the_weights_come_once(server: Server, want: SimpleNamespace, tmp_path: Path) -> None:
    settings = want.settings(model=MODEL, model_dir=str(tmp_path / "m"), only="model")
    download(settings)
    assert sorted(os.listdir(tmp_path / "m")) == ["config.json", "model.safetensors", "tokenizer_config.json"]
    assert select("model", ["a.bin", "b/c.onnx", "config.json"]) == ["a.bin", "config.json"]
    assert select("dataset", [".gitattributes", "b.bin", "a.json"]) == ["a.json", "b.bin"]


def test_without_a_network_the_line_says_what_to_put_where_and_the_command_then_takes_it(
    server: Server,
    want: SimpleNamespace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    offline(monkeypatch)
    settings = want.settings(model=MODEL, model_dir=str(tmp_path / "m"), dataset_modelscope="other/records")
    message = fails(settings)
    for words in (
        "no network (HF_HUB_OFFLINE is set): put a.json of https://huggingface.co/datasets/owner/records/tree/main",
        "(or https://modelscope.cn/datasets/other/records/files) into", str(want.a.parent),
        "put every file of https://huggingface.co/owner/model/tree/main", "then the same command checks",
    ):  # fmt: skip
        assert words in message
    want.a.parent.mkdir()
    want.a.write_bytes(DATA)
    (tmp_path / "m").mkdir()
    (tmp_path / "m/config.json").write_text("{}")
    assert "put tokenizer_config.json, *.safetensors" in fails(settings)  # the data set is taken all the same
    assert read_lock(str(want.lock))[KEY].commit is None and "put there by hand" in capsys.readouterr().out
    for name in ("tokenizer_config.json", "model.safetensors"):
        (tmp_path / "m" / name).write_bytes(server.repos["model", MODEL][FIRST][name])
    download(settings)
    assert len(read_lock(str(want.lock))) == 2 and not server.asked
    want.a.write_bytes(b"x" * len(DATA))
    assert "expected sha256" in fails(settings)
    want.a.unlink()
    monkeypatch.delenv("HF_HUB_OFFLINE")
    download(settings)  # and with a network, what was put there by hand gets its commit
    assert read_lock(str(want.lock))[KEY].commit == FIRST and want.a.read_bytes() == DATA


def test_the_lock_and_the_files_carried_over_are_checked_offline(
    server: Server, want: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    download(want.settings())
    offline(monkeypatch)
    server.asked.clear()
    download(want.settings())
    carried = want.a.rename(want.a.with_name("elsewhere"))
    assert f"/tree/{FIRST} (or " in fails(want.settings())
    carried.rename(want.a)
    want.a.with_name("b.json").write_bytes(b"[]")
    assert "no entry for b.json" in fails(want.settings(files=["a.json", "b.json"]))
    assert "update=true needs huggingface" in fails(want.settings(update=True))
    assert not server.asked


@pytest.mark.parametrize(
    "keys, message",
    [
        ({"dataset": "owner/none"}, "no data set owner/none; check the id"),
        ({"dataset": "owner/none", "hub": "modelscope"}, "no data set owner/none, or none at revision master"),
        ({"dataset": "not an id"}, "is no name of a data set"),
        ({"dataset_revision": "v9"}, "has no revision v9"),
        ({"files": ["aa.json"]}, f"no file aa.json at commit {FIRST}; there are: a.json"),
        ({"files": ["../a.json"]}, "no path inside a folder"),
        ({"hub": "none"}, "hub: expected one of huggingface, modelscope"),
        ({"only": "model"}, "nothing to fetch: no model is named"),
        ({"data_dir": ""}, "data_dir is missing"),
        ({"dataset": "", "dataset_modelscope": "a/b"}, "a/b is named for modelscope only; add hub=modelscope"),
        ({"lock": "none/lock.json"}, "lock: no folder none"),
    ],
)
def test_a_mistake_is_one_line(server: Server, want: SimpleNamespace, keys: dict, message: str) -> None:
    assert message in fails(want.settings(**keys))
    assert not want.lock.exists() and not server.ranges


@pytest.mark.parametrize("hub, name", [("huggingface", "HF_TOKEN"), ("modelscope", "MODELSCOPE_API_TOKEN")])
def test_a_gated_repository_and_a_token_that_is_never_shown(
    server: Server, want: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, hub: str, name: str
) -> None:
    monkeypatch.setenv(name, TOKEN)
    server.status, server.error = 403, "GatedRepo"
    message = fails(want.settings(hub=hub))
    assert f"accept its licence on https://{hub}" in message and f"set {name}" in message
    assert server.tokens[-1] == f"Bearer {TOKEN}" and TOKEN not in message
    monkeypatch.setenv(name, f"{TOKEN}\nx")  # the libraries' own words for this one name the header
    assert TOKEN not in fails(want.settings(hub=hub))
    monkeypatch.setenv(name, TOKEN)
    server.status, server.error = 400, ""
    assert "HTTP 400" in fails(want.settings(hub=hub))


def test_scrubbing() -> None:
    text = f"GET https://me:pass@mirror/x?Signature=abc Bearer {TOKEN} failed\nmore"
    assert hubs.scrub(text) == "GET https://***@mirror/x?… *** failed"


@pytest.mark.parametrize("hub", ["huggingface", "modelscope"])
def test_a_disk_without_room_is_one_line_before_anything_is_fetched(
    server: Server, want: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, hub: str
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=len(DATA) - 1))
    assert "11,988 bytes to fetch, 11,987 bytes free" in fails(want.settings(hub=hub))
    assert not server.ranges


@pytest.mark.parametrize("commit", ["/tmp/victim", "../../victim", "main", 7])
def test_a_commit_that_is_none_names_no_folder(server: Server, want: SimpleNamespace, commit: object) -> None:
    victim = want.lock.parent / "victim"
    victim.mkdir()
    (victim / "a.json").write_text("mine")
    value = str(victim) if commit == "/tmp/victim" else commit
    file = {"bytes": 1, "sha256": "0" * 64}
    want.lock.write_text(json.dumps({KEY: {"revision": "main", "commit": value, "files": {"a.json": file}}}))
    with pytest.raises(UserError, match=r"no lock of ours .*commit: expected 40 hex digits"):
        download(want.settings())
    assert (victim / "a.json").read_text() == "mine"


def test_a_hub_whose_commit_is_a_path_is_not_believed(
    server: Server, want: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    victim = want.lock.parent / "victim"
    victim.mkdir()
    listing = hubs.Listing(str(victim), "main", {"a.json": hubs.File(1, "0" * 64)})
    monkeypatch.setattr(hubs.HuggingFace, "listing", lambda *_: listing)
    assert "no commit" in fails(want.settings()) and victim.is_dir() and not server.ranges


def test_a_lock_that_is_none(server: Server, want: SimpleNamespace) -> None:
    for text in ("{", "[]", '{"a": {}}', '{"a": {"files": {"x": {"bytes": 1, "sha256": "0"}}, "commit": "c"}}'):
        want.lock.write_text(text)
        assert "no lock of ours" in fails(want.settings())
    want.lock.write_text(
        '{"a": {"revision": "", "commit": null, "files": {"../x": {"bytes": 1, "sha256": "%s"}}}}' % ("0" * 64)
    )
    assert "no path inside a folder" in fails(want.settings())


def test_what_an_earlier_call_left_is_gone_on_with_on_modelscope(server: Server, want: SimpleNamespace) -> None:
    half = want.a.parent / ".download" / FIRST / "a.json.incomplete"
    half.parent.mkdir(parents=True)
    half.write_bytes(DATA[:5000])
    download(want.settings(hub="modelscope"))
    assert want.a.read_bytes() == DATA and server.ranges == ["bytes=5000-"]


def test_a_modelscope_that_knows_only_branches_is_held_by_the_hashes(server: Server, want: SimpleNamespace) -> None:
    server.names_only = True
    download(want.settings(hub="modelscope"))
    want.a.unlink()
    download(want.settings(hub="modelscope"))
    server.repos["dataset", REPO][SECOND] = {"a.json": b"newer"}
    want.a.unlink()
    assert f"expected sha256 {sha256(DATA)}, got {sha256(b'newer')}" in fails(want.settings(hub="modelscope"))


def test_a_connection_that_breaks_off(server: Server, want: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(*_: object) -> None:
        raise hubs.Unreachable("timed out")

    monkeypatch.setattr(hubs.HUBS["huggingface"], "fetch", fetch)
    assert "a.json: broke off (timed out); the same command goes on" in fails(want.settings())


def test_a_model_put_there_by_hand_needs_the_weights_that_its_index_names(
    server: Server, want: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offline(monkeypatch)
    (tmp_path / "m").mkdir()
    index = tmp_path / "m/model.safetensors.index.json"
    for path in (index, index.with_name("config.json"), index.with_name("tokenizer_config.json")):
        path.write_text('{"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}')
    index.with_name("1.safetensors").write_bytes(b"w")
    settings = want.settings(model=MODEL, model_dir=str(tmp_path / "m"), only="model")
    assert "put 2.safetensors of https://" in fails(settings)
    index.write_text("[]")
    assert "no index of weights" in fails(settings)


def test_a_staged_file_that_went_bad_is_thrown_away(server: Server, want: SimpleNamespace) -> None:
    half = want.a.parent / ".download" / FIRST / "a.json.incomplete"
    half.parent.mkdir(parents=True)
    half.write_bytes(b"x" * 5000)
    assert f"expected sha256 {sha256(DATA)}" in fails(want.settings())
    download(want.settings())
    assert want.a.read_bytes() == DATA and server.ranges == ["bytes=5000-", None]


def run(folder: Path, server: Server, **environment: str) -> subprocess.Popen:
    """The command as a user calls it, in a folder of its own, with nothing imported or set before."""
    (folder / "download.yaml").write_text(f"lock: lock.json\ndataset: {REPO}\nfiles: [a.json]\ndata_dir: raw\n")
    names = {"HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_DISABLE_TELEMETRY"}
    variables = {name: value for name, value in os.environ.items() if name not in names}
    variables |= {"HF_ENDPOINT": server.url, "HF_HOME": str(folder / "home"), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "preprocess.download", "download.yaml"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, cwd=folder, env=variables | environment, text=True, **pipes)


def test_killed_and_called_again_it_goes_on_by_a_range(server: Server, tmp_path: Path) -> None:
    body = os.urandom(1 << 20) * 12  # the library writes 10 MB at a time
    server.repos["dataset", REPO] = {FIRST: {"a.json": body}}
    server.stall_after = 11 << 20
    first = run(tmp_path, server)
    half = tmp_path / "raw/.download" / FIRST / "a.json.incomplete"
    until = time.monotonic() + 20
    while not (half.exists() and half.stat().st_size >= 10 << 20) and time.monotonic() < until:
        time.sleep(0.01)
    first.kill()
    first.communicate()
    assert half.stat().st_size == 10 << 20 and not (tmp_path / "raw/a.json").exists()
    server.stall_after = 0
    again = run(tmp_path, server, HF_TOKEN=TOKEN)
    out, err = again.communicate(timeout=60)
    assert again.returncode == 0 and "1 file, 12.6 MB, 1 fetched -> raw" in out and TOKEN not in out + err
    assert (tmp_path / "raw/a.json").read_bytes() == body and server.ranges[-1] == f"bytes={10 << 20}-"
    assert not any("harness" in path or "telemetry" in path for path in server.asked)


def test_nobody_answers_and_nothing_heavy_is_imported(server: Server, tmp_path: Path) -> None:
    server.url = "http://127.0.0.1:9"
    done = run(tmp_path, server)
    out, err = done.communicate(timeout=60)
    assert done.returncode == 1 and not out and "Traceback" not in err
    assert err.startswith("error: no network ([Errno 111] Connection refused): put ") and err.count("\n") == 1
    code = "import preprocess.download, sys; print([m for m in ('torch', 'datasets', 'httpx') if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True) == "[]\n"


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*/download.yaml")), ids=lambda path: path.parent.name)
def test_a_recipes_folders_are_those_that_it_trains_with(path: Path) -> None:
    settings = load(Download, str(path))
    train = load_plain(path.with_name("train.yaml"))
    assert settings.lock == f"recipes/{path.parent.name}/download.lock.json"
    assert settings.model_dir == train["model_name_or_path"]
    data = path.with_name("data.yaml")
    if data.exists() and settings.files:
        assert load_plain(data)["input"] == f"{settings.data_dir}/{settings.files[0]}"


def load_plain(path: Path) -> dict:
    import yaml

    return yaml.safe_load(path.read_text(encoding="utf-8"))
