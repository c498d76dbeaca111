"""The content hash is the same before and after MLflow stores a version, and covers all of it."""

from pathlib import Path

import pytest

from pipelines.registry.content import content_of_version, content_to_log, hash_content
from pipelines.registry.names import CODE, LM
from pipelines.registry.versions import downloaded
from pipelines.tracking.store import connect


def test_the_stored_version_has_the_registered_hash(store: Path) -> None:
    with downloaded(connect(), LM, "1") as version:
        files = content_of_version(version.directory, code_name=CODE[LM].name)
        assert hash_content(files) == version.tags["content_sha256"]
        assert {
            "code/pyfunc.py",
            "code/enigma/language_model/word_pieces.py",
            "model/model.safetensors",
        } <= set(files)
        assert not {name for name in files if name.startswith("card/")}


@pytest.mark.parametrize(
    ("file", "counts"),
    [("params.yaml", True), ("dvc.lock", False), ("environment.txt", False)],
)
def test_the_lock_and_the_environment_do_not_count(tmp_path: Path, file: str, counts: bool) -> None:
    def content(text: str) -> str:
        (tmp_path / file).write_text(text, encoding="utf-8")
        proof = {file: tmp_path / file}
        return hash_content(content_to_log(code=CODE[LM], models={}, proof=proof))

    assert (content("one") != content("two")) is counts
