"""Pulling from a hub: a server on this machine that speaks its protocol, whole, cut off, corrupted, gated, absent."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from filelock import FileLock

from hub_server import COMMIT, ID, Hub, serve
from omnialpha.errors import InputError
from omnialpha.models.checkpoints import hub
from omnialpha.models.checkpoints.hub import Offer, Record, Ref, find, pull
from omnialpha.models.checkpoints.transfer import Item

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
    """Names of the repository's files in a folder, without ours."""
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    return names - {"pull.json", ".lock"}


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
    seen: dict[str, int] = {}

    def agree(offer: Offer) -> bool:
        assert not server.gets("config.json"), "nothing is downloaded before the licence is agreed to"
        offers.append(offer)
        return True

    folder = pull(REF, agree=agree, watch=lambda file, size: seen.update({file: seen.get(file, 0) + size}))
    assert stored(folder) == NEEDED
    assert all((folder / name).read_bytes() == FILES[name] for name in NEEDED)
    size = sum(len(FILES[name]) for name in NEEDED)
    assert [(o.id, o.license, o.size, o.missing, o.folder) for o in offers] == [
        (ID, "apache-2.0", size, size, str(folder))
    ]
    assert seen == {name: len(FILES[name]) for name in NEEDED}
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
    pull(REF, agree=lambda offer: pytest.fail("there is nothing to agree to"))
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


def test_a_pull_that_was_cut_off_goes_on_where_it_stopped(server: Hub) -> None:
    server.cut = 20_000
    with pytest.raises(InputError, match="the download of someone/thing from .* broke off .*: run it again"):
        pull(REF)
    part = next(REF.folder.rglob("*.part"))
    kept = part.stat().st_size
    name = "sub/weights.safetensors" if "weights" in part.name else "sub/more.safetensors"
    assert 19_000 <= kept <= 20_000 and part.read_bytes() == FILES[name][:kept]
    with pytest.raises(InputError, match="stored without sub/.*, as its download was not finished: run `omnialpha"):
        find(REF)

    server.cut = None
    server.requests.clear()
    offers: list[Offer] = []
    pull(REF, agree=lambda offer: not offers.append(offer))
    assert [headers.get("Range") for headers in server.gets(name)] == [f"bytes={kept}-"]
    assert offers[0].size - offers[0].missing >= kept
    assert all((REF.folder / name).read_bytes() == FILES[name] for name in NEEDED)
    assert stored(REF.folder) == NEEDED and find(REF) == REF.folder


def test_a_server_without_ranges_sends_the_whole_file(server: Hub) -> None:
    server.cut = 20_000
    with pytest.raises(InputError, match="broke off"):
        pull(REF)
    server.cut, server.ranges = None, False
    counted: dict[str, int] = {}
    pull(REF, watch=lambda file, size: counted.update({file: counted.get(file, 0) + size}))
    assert all((REF.folder / name).read_bytes() == FILES[name] for name in NEEDED)
    part = "sub/weights.safetensors"  # the first of the two: what was kept is taken back before it comes again
    assert 29_000 <= counted[part] <= 31_000


def test_an_interrupted_process_leaves_its_part(server: Hub) -> None:
    def stop(file: str, size: int) -> None:
        if file == "sub/weights.safetensors" and any(path.stat().st_size > 5000 for path in REF.folder.rglob("*.part")):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pull(REF, watch=stop)
    kept = next(REF.folder.rglob("*.part")).stat().st_size
    assert kept > 5000
    server.requests.clear()
    pull(REF)
    assert server.gets("sub/weights.safetensors")[0]["Range"] == f"bytes={kept}-"
    assert (REF.folder / "sub/weights.safetensors").read_bytes() == BIG


def test_a_corrupted_file_is_not_kept(server: Hub) -> None:
    server.stated["sub/weights.safetensors"] = "0" * 64
    with pytest.raises(
        InputError, match=r"weights.safetensors arrived damaged \(sha256:.*, should be sha256:0000.*run it again"
    ):
        pull(REF)
    assert not (REF.folder / "sub/weights.safetensors").exists() and not list(REF.folder.rglob("*.part"))
    server.stated.clear()
    assert (pull(REF) / "sub/weights.safetensors").read_bytes() == BIG


def test_a_part_that_was_damaged_on_disk_is_found_out(server: Hub) -> None:
    server.cut = 20_000
    with pytest.raises(InputError, match="broke off"):
        pull(REF)
    part = next(REF.folder.rglob("*.part"))
    part.write_bytes(b"\xff" + part.read_bytes()[1:])
    server.cut = None
    with pytest.raises(InputError, match="arrived damaged"):
        pull(REF)
    pull(REF)
    assert all((REF.folder / name).read_bytes() == FILES[name] for name in NEEDED)


def test_a_part_that_is_longer_than_its_file_is_begun_anew(server: Hub) -> None:
    part = Item("sub/weights.safetensors", len(BIG), f"sha256:{hashlib.sha256(BIG).hexdigest()}").part(REF.folder)
    part.parent.mkdir(parents=True)
    part.write_bytes(BIG + b"more")
    offers: list[Offer] = []
    assert (pull(REF, agree=lambda offer: not offers.append(offer)) / "sub/weights.safetensors").read_bytes() == BIG
    assert offers[0].missing == offers[0].size and not part.exists()


def test_a_small_file_is_verified_too(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    true = Hub.info

    def lie(self: Hub) -> dict[str, Any]:
        told = true(self)
        told["siblings"][1]["blobId"] = "f" * 40
        return told

    monkeypatch.setattr(Hub, "info", lie)
    with pytest.raises(InputError, match="config.json arrived damaged .git:.* should be git:ffff"):
        pull(REF)


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
def test_names_that_leave_the_folder(name: str) -> None:
    with pytest.raises(InputError, match="outside its folder"):
        Item.of(SimpleNamespace(rfilename=name, size=1, blob_id="0", lfs=None))


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
