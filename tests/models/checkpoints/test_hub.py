"""Pulling from a hub: a server on this machine that speaks its protocol, whole, cut off, corrupted, gated, absent."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from filelock import FileLock

from hub_server import COMMIT, ID, Hub, serve
from omnialpha.errors import InputError
from omnialpha.models.checkpoints import hub
from omnialpha.models.checkpoints.hub import Offer, Record, Ref, find, pull

REF = Ref(ID)
BIG = bytes(i * i % 251 for i in range(50_000))
FILES = {
    "README.md": b"---\nlicense: apache-2.0\n---\n# A thing\n",
    "config.json": b'{"a": 1}\n',
    "sub/weights.safetensors": BIG,
    "sub/more.safetensors": BIG[::-1],
    "old.bin": b"pickle",
    "preview.png": b"picture",
}
NEEDED = {"README.md", "config.json", "sub/weights.safetensors", "sub/more.safetensors"}


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with one repository, named by HF_ENDPOINT, and an empty store of ours."""
    monkeypatch.setenv("OMNIALPHA_HOME", str(tmp_path / "home"))
    for name in (*hub.OFFLINE, "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)  # as CI sets it; read on import
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1000)
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)
    state = Hub(FILES)
    with serve(state) as address:
        monkeypatch.setenv("HF_ENDPOINT", f"{address}/")
        yield state


def stored(folder: Path) -> set[str]:
    """Names of the repository's files in a folder, without pull.json and the folder of huggingface_hub."""
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    return {name for name in names if not name.startswith(".")} - {"pull.json"}


# ---- references ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("Qwen/Qwen-Image-Edit-2509", ("Qwen/Qwen-Image-Edit-2509", "main", "")),
        ("a/b@v1.0", ("a/b", "v1.0", "")),
        ("a/b:lora/x.safetensors", ("a/b", "main", "lora/x.safetensors")),
        ("a/b@refs/pr/3:sub", ("a/b", "refs/pr/3", "sub")),
    ],
)
def test_references(text: str, parts: tuple[str, str, str]) -> None:
    ref = Ref.parse(text)
    assert ref and (ref.id, ref.revision, ref.path) == parts
    assert str(ref) == text


@pytest.mark.parametrize("text", ["nano", "/abs/path", "./models/x", "../x/y", "a/b/c", "", "a/", "C:\\models\\x"])
def test_what_is_no_reference(text: str) -> None:
    assert Ref.parse(text) is None


def test_where_models_are_stored(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OMNIALPHA_HOME", str(tmp_path))
    assert Ref("a/b", "refs/pr/3").folder == tmp_path / "models" / "a--b" / "refs--pr--3"
    monkeypatch.delenv("OMNIALPHA_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert hub.home() == tmp_path / "cache" / "omnialpha"


# ---- a whole pull ----------------------------------------------------------------------------------------------


def test_a_pull_stores_what_is_needed_and_shows_the_licence_before(server: Hub) -> None:
    offers: list[Offer] = []

    def agree(offer: Offer) -> bool:
        assert not server.gets("config.json"), "nothing is downloaded before the licence is agreed to"
        offers.append(offer)
        return True

    folder = pull(REF, agree=agree)
    assert stored(folder) == NEEDED
    assert all((folder / name).read_bytes() == FILES[name] for name in NEEDED)
    size = sum(len(FILES[name]) for name in NEEDED)
    assert [(o.id, o.license, o.size, o.missing, o.folder) for o in offers] == [
        (ID, "apache-2.0", size, size, str(folder))
    ]
    record = Record.read(folder)
    assert record and (record.id, record.commit, record.license) == (ID, COMMIT, "apache-2.0")
    assert find(REF) == folder and find(Ref(ID, path="sub")) == folder / "sub"
    assert hub.origin(folder) == (ID, "apache-2.0")


def test_what_is_here_is_neither_downloaded_nor_asked_about_again(server: Hub) -> None:
    pull(REF)
    server.requests.clear()
    pull(REF, agree=lambda offer: pytest.fail("there is nothing to agree to"))
    assert not [url for _, url, _ in server.requests if "/cdn/" in url]
    (REF.folder / "pull.json").write_text("{")  # without the record the files are known by their bytes
    pull(REF)
    assert not [url for _, url, _ in server.requests if "/cdn/" in url]
    assert Record.read(REF.folder).verified.keys() == NEEDED  # type: ignore[union-attr]


def test_a_new_version_replaces_only_what_changed(server: Hub) -> None:
    folder = pull(REF)
    server.commit, server.files["config.json"] = COMMIT[::-1], b'{"a": 2}\n'
    server.requests.clear()
    assert pull(REF) == folder
    assert [url for _, url, _ in server.requests if "/cdn/" in url] == ["/cdn/config.json"]
    assert (folder / "config.json").read_bytes() == b'{"a": 2}\n'
    assert Record.read(folder).commit == COMMIT[::-1]  # type: ignore[union-attr]


def test_a_part_of_a_repository(server: Hub) -> None:
    both = {name for name in NEEDED if "/" in name}
    for path, names in (("sub/more.safetensors", {"sub/more.safetensors"}), ("sub", both)):
        folder = pull(Ref(ID, path=path))
        assert stored(folder) == names | {"README.md"}
    with pytest.raises(InputError, match=r"someone/thing is stored in .* without config.json: run `omnialpha pull"):
        find(Ref(ID, path="config.json"))
    with pytest.raises(InputError, match="someone/thing at main has no nothing/here"):
        pull(Ref(ID, path="nothing/here"))


def test_what_was_pulled_before_is_kept_up_to_date(server: Hub) -> None:
    pull(Ref(ID, path="config.json"))
    server.commit, server.files["config.json"] = COMMIT[::-1], b'{"a": 3}\n'
    folder = pull(Ref(ID, path="sub/more.safetensors"))
    assert (folder / "config.json").read_bytes() == b'{"a": 3}\n'
    assert find(Ref(ID, path="config.json")) == folder / "config.json"


def test_a_licence_that_is_refused(server: Hub) -> None:
    server.card = {"license": "other", "license_name": "strict-1.0"}
    with pytest.raises(InputError, match="not downloaded: its licence, strict-1.0, was not agreed to"):
        pull(REF, agree=lambda offer: False)
    assert not REF.folder.exists()


# ---- cut off, damaged, full ------------------------------------------------------------------------------------


def test_a_pull_that_was_cut_off_goes_on_after_the_files_that_are_whole(server: Hub) -> None:
    server.cut = 20_000
    with pytest.raises(InputError, match="the download of someone/thing from .* broke off .*: run it again"):
        pull(REF)
    assert not stored(REF.folder) & {"sub/weights.safetensors", "sub/more.safetensors"}, "a part is no file"
    with pytest.raises(InputError, match="stored without .*, as its download was not finished: run `omnialpha"):
        find(REF)
    record = Record.read(REF.folder)
    assert record and record.wanted == sorted(NEEDED)

    server.cut = None
    server.requests.clear()
    offers: list[Offer] = []
    pull(REF, agree=lambda offer: not offers.append(offer))
    assert offers[0].missing == sum(len(FILES[name]) for name in NEEDED - record.verified.keys())
    assert not [name for name in record.verified if server.gets(name)], "what was whole does not come again"
    assert all((REF.folder / name).read_bytes() == FILES[name] for name in NEEDED)
    assert stored(REF.folder) == NEEDED and find(REF) == REF.folder


def test_a_killed_process_goes_on(server: Hub, tmp_path: Path) -> None:
    """One that dies in the middle of a file leaves nothing that passes for it."""
    code = (
        "import os, huggingface_hub\n"
        "from omnialpha.models.checkpoints.hub import Ref, pull\n"
        "true = huggingface_hub.hf_hub_download\n"
        "def die(id, name, **named):\n"
        "    import huggingface_hub.file_download as module\n"
        "    if name.endswith('.safetensors'):\n"
        "        def http_get(url, file, **rest):\n"
        "            file.write(bytes(9000)); file.flush(); os._exit(9)\n"
        "        module.http_get = http_get\n"
        "    return true(id, name, **named)\n"
        "huggingface_hub.hf_hub_download = die\n"
        f"pull(Ref({ID!r}))\n"
    )
    environment = os.environ | {"HF_HUB_OFFLINE": "0", "HF_HUB_CACHE": str(tmp_path / "hf")}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 9
    with pytest.raises(InputError, match="its download was not finished"):
        find(REF)
    assert stored(pull(REF)) == NEEDED
    assert all((REF.folder / name).read_bytes() == FILES[name] for name in NEEDED)


def test_a_connection_that_breaks_is_taken_up_where_it_stopped(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within one run, by huggingface_hub."""
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: setattr(server, "cut", None))
    server.cut = 20_000
    pull(REF)
    ranges = [row.get("Range") for name in NEEDED if "/" in name for row in server.gets(name)]
    assert len([row for row in ranges if row]) == 1 and stored(REF.folder) == NEEDED


@pytest.mark.parametrize("name", ["sub/weights.safetensors", "config.json"])
def test_a_damaged_file_is_refused(name: str, server: Hub) -> None:
    server.stated[name] = "0" * (64 if "/" in name else 40)
    with pytest.raises(InputError, match=rf"{name} arrived damaged \(.*, should be \w+:0000.*run it again"):
        pull(REF)
    assert not (REF.folder / name).exists()
    server.stated.clear()
    assert (pull(REF) / name).read_bytes() == FILES[name]


def test_a_full_disk_is_noticed_before(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("omnialpha.models.checkpoints.hub.shutil.disk_usage", lambda path: SimpleNamespace(free=50_000))
    with pytest.raises(InputError, match="0.0 GB are free there: make room, or set OMNIALPHA_HOME"):
        pull(REF)
    assert not server.gets("config.json")


def test_two_pulls_at_once(server: Hub) -> None:
    REF.folder.mkdir(parents=True)
    with FileLock(REF.folder / ".lock"), pytest.raises(InputError, match="being pulled by another process"):
        pull(REF)


@pytest.mark.parametrize("name", ["../outside.json", "/etc/x.json", "a/../../x.json", "a\\..\\x.json"])
def test_names_that_leave_the_folder(name: str, server: Hub) -> None:
    server.files = {name: b"{}"}
    with pytest.raises(InputError, match="cannot be downloaded: Invalid filename"):
        pull(REF)


# ---- refused, absent, offline ----------------------------------------------------------------------------------


def test_a_gated_repository(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    server.token = "secret"
    page = f"{hub.endpoint()}/{ID}"
    with pytest.raises(InputError, match=f"is gated: accept its licence at {page} and set HF_TOKEN"):
        pull(REF)
    server.refusal = (403, "")
    with pytest.raises(InputError, match=f"{page} refuses access .403.: accept its licence there and set HF_TOKEN"):
        pull(REF)
    monkeypatch.setenv("HF_TOKEN", "secret")
    pull(REF)
    assert stored(REF.folder) == NEEDED
    assert all("Authorization" not in headers for headers in server.gets("sub/weights.safetensors")), (
        "the token is for the hub, not for the host that large files come from"
    )


def test_unknown_ids_and_revisions(server: Hub) -> None:
    with pytest.raises(InputError, match="someone/else does not exist, or is private: check the id, or set HF_TOKEN"):
        pull(Ref("someone/else"))
    with pytest.raises(InputError, match="someone/thing has no revision 'v9'"):
        pull(Ref(ID, "v9"))


def test_no_server(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(InputError, match="from http://127.0.0.1:9 broke off .*: run it again"):
        pull(REF)


@pytest.mark.parametrize("way", ["argument", *hub.OFFLINE])
def test_offline_never_asks_and_says_what_is_missing(way: str, server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    offline, by = way == "argument", "--offline" if way == "argument" else way
    with monkeypatch.context() as patch:
        if not offline:
            patch.setenv(way, "1")
        with pytest.raises(InputError, match=f"someone/thing is neither a folder nor a stored model, and {by} forbids"):
            pull(REF, offline=offline)
    assert not server.requests
    pull(REF)
    server.requests.clear()
    if not offline:
        monkeypatch.setenv(way, "1")
    assert pull(REF, offline=offline) == REF.folder
    (REF.folder / "config.json").unlink()
    with pytest.raises(InputError, match=f"stored without config.json, .* and {by} forbids the network"):
        pull(REF, offline=offline)
    assert not server.requests


def test_what_diffusers_has_stored_is_found(server: Hub, tmp_path: Path) -> None:
    cached = tmp_path / "hf" / "models--someone--thing"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text(COMMIT)
    (cached / "snapshots" / COMMIT / "vae").mkdir(parents=True)
    assert find(REF) == cached / "snapshots" / COMMIT
    assert hub.origin(find(REF)) == (ID, None)
    assert not server.requests
