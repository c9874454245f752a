"""Models on a hub: a small server on this machine is the hub, and a folder of the test its cache."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import torch

from tttstream import models
from tttstream.cli.main import main
from tttstream.errors import CheckpointError, ConfigError, OutputError
from tttstream.models.hub import parsed

hub = pytest.importorskip("huggingface_hub", reason="needs the extra hub")


class Hub(ThreadingHTTPServer):
    """What huggingface_hub asks of a hub to fetch and to put models: branches of files, kept in memory."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.repositories: dict[str, dict[str, dict[str, bytes]]] = {}  # name -> branch -> file -> content
        self.asked: list[str] = []
        self.private: dict[str, bool] = {}
        self.gated: set[str] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that disconnects is no error."""


class Answers(BaseHTTPRequestHandler):
    """The answers of `Hub`."""

    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        """Nothing on the terminal."""

    def do_HEAD(self) -> None:
        self._answer(head=True)

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer(self.rfile.read(int(self.headers.get("Content-Length", 0))))

    def _send(self, code: int, content: bytes, head: bool = False, **headers: str) -> None:
        self.send_response(code)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if not head:
            self.wfile.write(content)

    def _say(self, value: Any, code: int = 200, **headers: str) -> None:
        self._send(code, json.dumps(value).encode(), Content_Type="application/json", **headers)

    def _missing(self, what: str, head: bool = False) -> None:
        self._send(404, b"{}", head, X_Error_Code=what, X_Error_Message=f"no such thing: {what}")

    def _answer(self, body: bytes = b"", head: bool = False) -> None:
        path = unquote(urlsplit(self.path).path).strip("/").split("/")
        self.server.asked.append("/".join(path))
        if path == ["api", "repos", "create"]:
            given = json.loads(body)
            name = "/".join(filter(None, (given.get("organization"), given["name"])))
            self.server.repositories.setdefault(name, {"main": {}})
            self.server.private[name] = given.get("visibility") == "private" or bool(given.get("private"))
            return self._say({"url": f"{self.server.url}/{name}"})
        if path == ["api", "validate-yaml"]:
            return self._say({"errors": [], "warnings": []})
        api = path[:2] == ["api", "models"]
        owner, name, verb, *rest = [*(path[2:] if api else path), "", "", ""]
        repository = f"{owner}/{name}"
        if repository in self.server.gated:
            return self._send(403, b"{}", head, X_Error_Code="GatedRepo")
        if repository not in self.server.repositories:
            return self._missing("RepoNotFound", head)
        branches = self.server.repositories[repository]
        revision = rest[0] if rest else "main"
        branch = next((b for b, files in branches.items() if revision in (b, commit(files))), None)
        if verb in ("", "revision"):
            if verb == "revision" and branch is None:
                return self._missing("RevisionNotFound")
            return self._say(self._info(repository, branches[branch or "main"]))
        if branch is None:
            return self._missing("RevisionNotFound", head)
        files = branches[branch]
        if verb == "tree":
            return self._say([self._entry(file, content) for file, content in files.items()])
        if verb == "resolve":
            file = "/".join(filter(None, rest[1:]))
            if file not in files:
                return self._missing("EntryNotFound", head)
            tag = f'"{digest(files[file])}"'
            return self._send(200, files[file], head, ETag=tag, X_Repo_Commit=commit(files))
        if verb == "preupload":
            asked = json.loads(body)["files"]
            return self._say(
                {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in asked]}
            )
        if verb == "commit":
            lines = [json.loads(line) for line in body.decode().splitlines()]
            added = [line["value"] for line in lines if line["key"] == "file"]
            files |= {item["path"]: base64.b64decode(item["content"]) for item in added}
            where = f"{self.server.url}/{repository}/commit/{commit(files)}"
            return self._say({"commitUrl": where, "commitOid": commit(files), "hookOutput": ""})
        return self._missing("Unknown")

    def _info(self, repository: str, files: dict[str, bytes]) -> dict[str, Any]:
        return {
            "id": repository,
            "modelId": repository,
            "sha": commit(files),
            "siblings": [{"rfilename": file} for file in files],
            "tags": [],
            "private": False,
            "downloads": 0,
            "likes": 0,
        }

    def _entry(self, file: str, content: bytes) -> dict[str, Any]:
        return {"type": "file", "path": file, "size": len(content), "oid": digest(content)}


def digest(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


def commit(files: dict[str, bytes]) -> str:
    return digest(b"".join(name.encode() + content for name, content in sorted(files.items())))


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A local hub for huggingface_hub, and an empty cache."""
    with Hub() as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        import huggingface_hub.constants as constants

        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setenv("HF_TOKEN", "hf_of_a_test")
        monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        yield server
        server.shutdown()


def tiny(seed: int = 0) -> models.FrameModel:
    return models.build("small", seed=seed, dim=16, heads=2, depth=1, size=16, patch=8)


def files(model: models.FrameModel, folder: Path, **more: bytes) -> dict[str, bytes]:
    model.save(folder)
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} | more


def test_pushed_and_loaded(server: Hub, tmp_path: Path) -> None:
    model = tiny()
    address = models.push(model, "someone/tiny", private=True)
    assert address.startswith(f"{server.url}/someone/tiny/commit/")
    assert server.private == {"someone/tiny": True}
    there = server.repositories["someone/tiny"]["main"]
    assert sorted(there) == ["README.md", "config.json", "model.safetensors"]
    card = there["README.md"].decode()
    assert 'tttstream.models.load("hf:someone/tiny")' in card
    assert "library_name: tttstream" in card
    again = models.load("hf:someone/tiny")
    assert again.fingerprint() == model.fingerprint()
    assert (tmp_path / "cache" / "models--someone--tiny").is_dir()


def test_revisions(server: Hub, tmp_path: Path) -> None:
    first, second = files(tiny(1), tmp_path / "a"), files(tiny(2), tmp_path / "b")
    server.repositories["someone/tiny"] = {"main": first, "v2": second}
    assert models.load("hf:someone/tiny").fingerprint() == tiny(1).fingerprint()
    assert models.load("hf:someone/tiny@v2").fingerprint() == tiny(2).fingerprint()
    assert models.load(f"hf:someone/tiny@{commit(second)}").fingerprint() == tiny(2).fingerprint()
    with pytest.raises(CheckpointError, match="someone/tiny has no revision v3"):
        models.load("hf:someone/tiny@v3")


def test_only_necessary_files_are_fetched_and_the_cache_suffices_without_a_hub(
    server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.repositories["someone/tiny"] = {"main": files(tiny(), tmp_path / "a", **{"optimizer.pt": b"x" * 100})}
    models.load("hf:someone/tiny")
    assert not any("optimizer.pt" in path for path in server.asked)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:1")  # no server is there
    assert models.load("hf:someone/tiny").fingerprint() == tiny().fingerprint()
    with pytest.raises(
        CheckpointError,
        match=r"hf:someone/other@v1 is not in the cache .*cache and cannot be fetched .*"
        r"run `hf download someone/other config\.json model\.safetensors --revision v1` where",
    ):
        models.load("hf:someone/other@v1")
    with pytest.raises(OutputError, match="someone/tiny cannot be put on http"):
        models.push(tiny(), "someone/tiny")


def test_a_changed_branch_is_fetched_again(server: Hub, tmp_path: Path) -> None:
    server.repositories["someone/tiny"] = {"main": files(tiny(1), tmp_path / "a")}
    models.load("hf:someone/tiny")
    server.repositories["someone/tiny"]["main"] = files(tiny(2), tmp_path / "b")
    assert models.load("hf:someone/tiny").fingerprint() == tiny(2).fingerprint()


def test_pickles_are_refused(server: Hub, tmp_path: Path) -> None:
    config = files(tiny(), tmp_path / "a")["config.json"]
    server.repositories["someone/old"] = {"main": {"config.json": config, "pytorch_model.bin": b"\x80\x04."}}
    with pytest.raises(CheckpointError, match=r"no model\.safetensors; it has pytorch_model\.bin, and pickles are not"):
        models.load("hf:someone/old")
    assert not any("resolve" in path and "pytorch_model.bin" in path for path in server.asked)
    server.repositories["someone/text"] = {"main": {"README.md": b"hello"}}
    with pytest.raises(CheckpointError, match=r"has no config\.json and no model\.safetensors; is it a model"):
        models.load("hf:someone/text")


def test_models_that_do_not_exist(server: Hub) -> None:
    with pytest.raises(CheckpointError, match="there is no someone/none on http"):
        models.load("hf:someone/none")
    server.gated.add("someone/closed")
    with pytest.raises(CheckpointError, match="someone/closed needs access rights"):
        models.load("hf:someone/closed")


@pytest.mark.parametrize("name", ["hf:", "hf:alone", "hf:a/b/c", "hf:a/b@", "hf:a b/c"])
def test_names_that_are_none(name: str) -> None:
    with pytest.raises(ConfigError, match="is no model of a hub"):
        models.load(name)


def test_names_that_huggingface_hub_refuses(server: Hub) -> None:
    with pytest.raises(CheckpointError, match="cannot be fetched"):
        models.load("hf:../b")


def test_memories_of_another_network(server: Hub) -> None:
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten())
    x = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    model = models.insert(network, "0", "gru", dim=4, example=x).eval()
    models.push(model, "someone/gru")
    card = server.repositories["someone/gru"]["main"]["README.md"].decode()
    assert 'tttstream.models.inserted.load("hf:someone/gru", network)' in card
    assert "--model" not in card
    again = models.inserted.load("hf:someone/gru", network)
    assert again.fingerprint() == model.fingerprint()
    with pytest.raises(CheckpointError, match=r"inserted\.load\(folder, network\)"):
        models.load("hf:someone/gru")


def test_names() -> None:
    assert parsed("hf:a/b-c.d") == ("a/b-c.d", None)
    assert parsed("hf:a/b@refs/pr/1") == ("a/b", "refs/pr/1")


def test_command(server: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "model"
    tiny().save(folder)
    (folder / "card.md").write_text("# A small one\n")
    assert main(["push", str(folder), "someone/tiny"]) == 0
    assert "`tttstream watch VIDEO --model hf:someone/tiny` shows what it does" in capsys.readouterr().out
    assert server.repositories["someone/tiny"]["main"]["README.md"] == b"# A small one\n"
    assert main(["push", str(folder), "tiny"]) == 2
    assert "is no model of a hub" in capsys.readouterr().err
    assert main(["push", str(tmp_path / "none"), "someone/tiny"]) == 2
    assert models.load("hf:someone/tiny").fingerprint() == tiny().fingerprint()


def test_a_command_contacts_the_hub_once(server: Hub, tmp_path: Path) -> None:
    server.repositories["someone/tiny"] = {"main": files(tiny(), tmp_path / "a")}
    models.load("hf:someone/tiny")
    server.asked.clear()
    models.load("hf:someone/tiny")
    once = list(server.asked)
    server.asked.clear()
    watch = ["watch", "walk", "--model", "hf:someone/tiny", "--max-frames", "2", "--no-overlay"]
    assert main([*watch, "--out", str(tmp_path / "out")]) == 0
    assert server.asked == once
