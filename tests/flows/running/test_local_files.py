"""Texts, keys and a vocabulary that git does not track, in the checkout of a flow run."""

import json
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from flows.running.checkout import Settings, open_checkout
from flows.running.local_files import anchored_source
from flows.running.stages import repro_command
from pipelines.base.errors import UserError
from pipelines.params import load_params
from pipelines.registry.evidence.keys import own_key, trust
from tests.flows.running.conftest import git
from tests.support import REPOSITORY, change_params

pytestmark = pytest.mark.slow

SANGUO = Settings(profile="sanguo")


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("packaged:sanguo", "packaged:sanguo"),
        ("hf:owner/name/config", "hf:owner/name/config"),
        ("/data/甲.parquet", "/data/甲.parquet"),
        ("data/*.parquet", "/home/repo[[]s]itory/data/*.parquet"),
        ("data", "/home/repo[s]itory/data"),
        # These are linked into the checkout.
        ("sources", "sources"),
        ("./sources/*.jsonl", "sources/*.jsonl"),
        ("/home/repo[[]s]itory/sources/a*", "sources/a*"),
        ("sources/../data", "/home/repo[s]itory/data"),
    ],
)
def test_relative_sources_start_at_the_repository(source: str, expected: str) -> None:
    assert anchored_source(source, Path("/home/repo[s]itory")) == expected


def listing(checkout: Path) -> set[str]:
    return {
        path.relative_to(checkout / "sources").as_posix()
        for path in (checkout / "sources").rglob("*")
        if path.is_file()
    }


def test_texts_that_git_does_not_know_are_in_the_checkout(repository: Path, tmp_path: Path) -> None:
    texts = repository / "sources"
    elsewhere = tmp_path / "elsewhere"
    for path in (texts / "三国.jsonl", texts / "deep" / "a.jsonl", elsewhere / "b.jsonl"):
        path.parent.mkdir(exist_ok=True)
        path.write_text("{}\n", encoding="utf-8")
    (texts / "linked").symlink_to(elsewhere)
    (texts / "c.jsonl").symlink_to("../../elsewhere/b.jsonl")
    (texts / "deep" / "circle").symlink_to(texts)
    git(texts / "deep", "init", "--quiet")
    (texts / "deep" / "own").mkdir()
    with open_checkout(repository, SANGUO, print) as checkout:
        there = checkout.path / "sources"
        for name in ("三国.jsonl", "deep/a.jsonl", "linked/b.jsonl", "c.jsonl"):
            assert (there / name).samefile(texts / name)
            assert not (there / name).is_symlink(), "it must outlast the user's own name"
        assert not any((there / name).is_symlink() for name in ("deep", "deep/own", "linked"))
        assert (there / "deep" / "circle").samefile(there), "as `ingest` would find it"
        assert (there / "README.md").is_file()
        assert git(checkout.path, "status", "--porcelain", "sources") == ""
    shutil.rmtree(texts / "deep")
    (texts / "三国.jsonl").unlink()
    # What an earlier version of this code left.
    shutil.rmtree(there / "linked")
    (there / "linked").symlink_to(elsewhere)
    with open_checkout(repository, SANGUO, print) as checkout:
        assert listing(checkout.path) == {"README.md", "linked/b.jsonl", "c.jsonl"}
        assert not (there / "linked").is_symlink()
        assert git(checkout.path, "status", "--porcelain", "sources") == ""
    assert (elsewhere / "b.jsonl").read_text() == "{}\n"


def test_a_text_on_another_disk_is_linked_too(repository: Path) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as disk:
        text = Path(disk, "a.jsonl")
        text.write_text("{}")
        if text.stat().st_dev == repository.stat().st_dev:
            pytest.skip("one disk")
        (repository / "sources" / "disk").symlink_to(disk)
        with open_checkout(repository, SANGUO, print) as checkout:
            link = checkout.path / "sources" / "disk" / "a.jsonl"
            assert link.is_symlink()
            assert link.samefile(text)


def test_a_broken_link_is_named_before_dvc_stumbles_over_it(repository: Path) -> None:
    link = repository / "sources" / "a.jsonl"
    link.symlink_to("nowhere")
    with (
        pytest.raises(UserError, match=r"sources/a\.jsonl: No such file") as refusal,
        open_checkout(repository, SANGUO, print),
    ):
        pytest.fail("must not open")
    assert "put a file where the link points" in refusal.value.fix
    (repository / "sources" / "nowhere").touch()
    with open_checkout(repository, SANGUO, print) as checkout:
        assert (checkout.path / "sources" / "a.jsonl").samefile(link)


@pytest.mark.parametrize("name", ["deep/a.jsonl", "linked/a.jsonl"])
def test_dvc_notices_a_changed_text_below_a_folder(
    repository: Path, tmp_path: Path, name: str
) -> None:
    (tmp_path / "elsewhere").mkdir()
    (repository / "sources" / "deep").mkdir()
    (repository / "sources" / "linked").symlink_to(tmp_path / "elsewhere")
    text = repository / "sources" / name
    text.write_text("old")
    stage = "stages: {read: {cmd: echo ran, deps: [sources]}}\n"
    (repository / "dvc.yaml").write_text(stage)
    git(repository, "add", "dvc.yaml")

    def output() -> str:
        with open_checkout(repository, SANGUO, print) as checkout:
            return checkout.run("dvc", "repro")

    assert "Running stage 'read'" in output()
    assert "Running stage" not in output()
    text.write_text("new")
    assert "Running stage 'read'" in output()
    # As an editor saves: another file of the same name.
    text.with_name("new").write_text("newer")
    text.with_name("new").replace(text)
    assert "Running stage 'read'" in output()
    text.unlink()
    assert "Running stage 'read'" in output()


@pytest.mark.parametrize("source", ["sources", "sources/*.jsonl"])
def test_a_run_that_puts_a_bad_file_aside_ends_and_leaves_the_users_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    repository = tmp_path / "enigma"
    subprocess.run(["git", "clone", "--quiet", str(REPOSITORY), str(repository)], check=True)
    # The code of the checkout, as a worker has it.
    monkeypatch.delenv("PYTHONPATH", raising=False)
    change_params(
        repository / "params.yaml", {"ingest.source": source, "ingest.on_bad_file": "quarantine"}
    )
    good, bad = (repository / "sources" / name for name in ("good.jsonl", "bad.jsonl"))
    good.write_text(json.dumps({"id": "1", "text": "分久必合"}), encoding="utf-8")
    bad.write_text("[")

    def run() -> list[str]:
        with open_checkout(repository, SANGUO, print) as checkout:
            checkout.run(*repro_command("ingest"))
            text = (checkout.path / "data" / "sanguo" / "raw" / "manifest.json").read_text()
        return [entry["name"] for entry in json.loads(text)["quarantined"]]

    assert run() == ["bad.jsonl"]
    # The result stays the same as long as the file does.
    assert run() == ["bad.jsonl"]
    assert bad.read_text() == "["
    assert not (repository / "sources" / "quarantine").exists()
    bad.write_text(json.dumps({"id": "2", "text": "合久必分"}), encoding="utf-8")
    assert run() == []


def test_keys_and_a_vocabulary_are_the_repositorys(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("own.txt", "shared.txt"):
        (repository / name).write_text("[PAD]\n")
    git(repository, "add", "shared.txt")
    values = {".signing.key": "keys/mine.pem", "tokenize.vocabulary": "own.txt"}
    change_params(repository / "params.yaml", values)
    with open_checkout(repository, SANGUO, print) as checkout:
        monkeypatch.chdir(checkout.path)
        made = own_key().public_key.keyid
        assert (repository / "keys" / "mine.pem").is_file()
        assert load_params().profile.tokenize.vocabulary == str(repository / "own.txt")
    public = subprocess.run(
        ["openssl", "pkey", "-pubout", "-in", "keys/mine.pem"],
        cwd=repository, check=True, capture_output=True,
    )  # fmt: skip
    (repository / "keys" / "friend.pem").write_bytes(public.stdout)
    values = {
        ".signing.key": None,
        ".signing.trusted_keys": ["keys/friend.pem", "~/friend.pem"],
        "tokenize.vocabulary": "shared.txt",
    }
    change_params(repository / "params.yaml", values)
    monkeypatch.setenv("HOME", str(repository / "keys"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(repository / "none"))
    with open_checkout(repository, SANGUO, print):
        assert list(trust().keys) == [made]
        params = load_params()
        assert params.signing.key is None
        assert params.signing.trusted_keys[1] == "~/friend.pem"
        assert params.profile.tokenize.vocabulary == "shared.txt", "`tokenize` depends on the name"
