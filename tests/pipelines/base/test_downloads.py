"""Packaged files: found without an import, and a missing one says what to install."""

import sys

import pytest

from pipelines.base.downloads import packaged_file
from pipelines.base.errors import UserError


def test_packaged_data_is_found_without_being_imported() -> None:
    packaged_file("cn_clip", "clip", "vocab.txt")
    assert "cn_clip" not in sys.modules


@pytest.mark.parametrize("package", ["no_such_package", "cn_clip"])
def test_missing_packaged_data_says_what_to_install(package: str) -> None:
    with pytest.raises(UserError, match="requirements-data"):
        packaged_file(package, "no", "such.file")
