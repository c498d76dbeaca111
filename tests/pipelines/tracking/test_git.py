"""The state of the code and the files of a commit, from a real git repository."""

import hashlib
import json
import subprocess
from pathlib import Path

import pytest

from pipelines.tracking.git import GitFiles, GitState, git_output, git_refusal


def git(directory: Path, *arguments: str) -> None:
    who = ("-c", "user.name=t", "-c", "user.email=t@example.org")
    subprocess.run(["git", "-C", str(directory), *who, *arguments], check=True, capture_output=True)


def test_the_state_names_the_commit_and_says_whether_files_differ(tmp_path: Path) -> None:
    assert GitState.read(tmp_path) == GitState("unknown", "unknown")
    git(tmp_path, "init", "--quiet")
    assert GitState.read(tmp_path) == GitState("unknown", "unknown")
    (tmp_path / "a.txt").write_text("one")
    git(tmp_path, "add", "a.txt")
    git(tmp_path, "commit", "--quiet", "-m", "one")
    (tmp_path / "untracked.txt").write_text("x")
    clean = GitState.read(tmp_path)
    assert len(clean.commit) == 40
    assert clean.dirty == "false"
    (tmp_path / "a.txt").write_text("two")
    assert GitState.read(tmp_path) == GitState(clean.commit, "true")


def md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def test_a_commit_hashes_files_and_directories_as_dvc_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    git(tmp_path, "init", "--quiet")
    (tmp_path / "code" / "__pycache__").mkdir(parents=True)
    for name in ("code/b.py", "code/a.py", "code/__pycache__/a.pyc"):
        (tmp_path / name).write_text(name)
    git(tmp_path, "add", "--all")
    git(tmp_path, "commit", "--quiet", "-m", "the subject\n\nand a body")
    (tmp_path / "code" / "a.py").write_text("changed after the commit")
    files = GitFiles(GitState.read().commit)
    assert files.subject() == "the subject"
    assert files.md5("code/a.py") == md5(b"code/a.py")
    listing = [{"md5": md5(f"code/{n}.py".encode()), "relpath": f"{n}.py"} for n in "ab"]
    assert files.md5("code") == md5(json.dumps(listing).encode()) + ".dir"
    assert files.md5("nothing") is None
    assert GitFiles("0" * 40).subject() is None
    assert git_output("no-such-command") is None


def test_git_says_itself_why_it_names_no_commit_and_its_advice_helps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "gitconfig"))
    repository = tmp_path / "repository"
    repository.mkdir()
    assert "not a git repository" in git_refusal(tmp_path)[0]
    git(repository, "init", "--quiet")
    assert "git commit" in git_refusal(repository)[1]
    git(repository, "commit", "--quiet", "--allow-empty", "-m", "one")
    # Git's own switch for its tests.
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    assert not GitState.read(repository).known
    problem, fix = git_refusal(repository)
    assert "dubious ownership" in problem
    subprocess.run(fix.split("`")[1].split(), check=True)
    assert GitState.read(repository).known
