"""The content of a model version as one hash, before it is logged and after.

The hash becomes a tag when the version is registered. Promotion computes it again from the
stored files, which reveals any change since to the proof, the weights or the code. What Python and
numba compile from that code is kept out of a version.
"""

import hashlib
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from pipelines.base.artifacts import sha256_file, write_text
from pipelines.base.workspace import Workspace
from pipelines.language_model.losses import LOSSES_FILE
from pipelines.registry.names import FLOW

# Where Python and numba keep what they compile.
COMPILED = "__pycache__"
# Made from the rest, so it is no part of the content.
CARD = "card"
# Signed statements about the rest.
EVIDENCE = "evidence"
# They change while the model does not; each has a tag with its own hash.
LOCK_FILE = "dvc.lock"
ENVIRONMENT_FILE = "environment.txt"
BESIDE = (f"proof/{LOCK_FILE}", f"proof/{ENVIRONMENT_FILE}")

# Proof files whose hash is a tag of the version.
RECORDED = {
    "certificate.json": "certificate_sha256",
    "evaluation.json": "evaluation_sha256",
    "params.yaml": "params_sha256",
    LOCK_FILE: "dvc_lock_sha256",
    ENVIRONMENT_FILE: "environment_sha256",
}


def origins(name: str, profile: str) -> dict[str, Path]:
    """Say where the stages made what a version carries.

    Args:
        name: `enigma-lm` or `enigma-flow`.
        profile: The profile that made it.

    Returns:
        The path in the repository of each directory or file below the version's `artifacts/`.
    """
    workspace = Workspace(profile)
    judged = workspace.report("sample_flow" if name == FLOW else "evaluate")
    found = {
        "model": workspace.language_model,
        "proof/certificate.json": workspace.report("validate") / "certificate.json",
        "proof/evaluation.json": workspace.report("evaluate") / "evaluation.json",
        "proof/training.json": workspace.language_model / "training.json",
        f"proof/{LOSSES_FILE}": judged / LOSSES_FILE,
    }
    if name == FLOW:
        found |= {
            "model": workspace.flow,
            "language_model": workspace.language_model,
            "proof/flow_training.json": workspace.flow / "flow_training.json",
            "proof/sample_flow.json": judged / "metrics.json",
        }
    return found


def origins_of(files: Iterable[str], name: str, profile: str) -> dict[str, str]:
    """Say where the stages made each file of a version.

    Args:
        files: Their paths below `artifacts/`.
        name: `enigma-lm` or `enigma-flow`.
        profile: The profile that made it.

    Returns:
        The path in the repository of each file that a stage made; the registration wrote the rest.
    """
    known, found = origins(name, profile), {}
    for file in files:
        top, _, rest = file.partition("/")
        place = known.get(file) or (known[top] / rest if top in known else None)
        if place is not None:
            found[file] = place.as_posix()
    return found


def enigma_package() -> Path:
    """Return the directory of the model library, which every version carries."""
    import enigma

    return Path(str(enigma.__file__)).resolve().parent


def write_guards(version: Path) -> None:
    """Keep compiled code out of a version: put a file where Python would make a `__pycache__`.

    MLflow loads a version of a local store where it lies. Python and numba keep what they compile
    beside the source, so the first load would add files that nobody signed. With a file of that
    name in the way, Python keeps nothing, and numba uses the user's own cache, if there is one.

    Args:
        version: A directory with the layout of a version, to write the files into.
    """
    package = enigma_package()
    below = {path.parent.relative_to(package) for path in package.rglob("*.py")}
    for folder in (version, *(version / "code" / "enigma" / name for name in below)):
        write_text(folder / COMPILED, "No compiled code is kept here: nobody signed it.\n")


@contextmanager
def no_compiled_code() -> Iterator[None]:
    """Let Python keep no compiled code meanwhile."""
    before = sys.dont_write_bytecode
    sys.dont_write_bytecode = True
    try:
        yield
    finally:
        sys.dont_write_bytecode = before


def content_to_log(
    *, code: Path, models: Mapping[str, Path], proof: Mapping[str, Path]
) -> dict[str, Path]:
    """List the files that decide how a version behaves and is judged, by their names in the hash.

    Args:
        code: The file that MLflow runs.
        models: Directory of each artifact by name.
        proof: Present path of each proof file by name.
    """
    files = {"code/pyfunc.py": code, **_sources(enigma_package())}
    files |= {f"proof/{name}": path for name, path in proof.items()}
    for name, directory in models.items():
        files |= _below(directory, name)
    return {name: path for name, path in files.items() if name not in BESIDE}


def content_of_version(version: Path, *, code_name: str) -> dict[str, Path]:
    """List the same files in a version as MLflow stores it.

    Args:
        version: Where the version was downloaded to.
        code_name: Name of the file that MLflow runs.
    """
    files = {"code/pyfunc.py": version / code_name, **_sources(version / "code" / "enigma")}
    for directory in (version / "artifacts").iterdir():
        if directory.name not in {CARD, EVIDENCE}:
            files |= _below(directory, directory.name)
    return {name: path for name, path in files.items() if path.is_file() and name not in BESIDE}


def hash_content(files: Mapping[str, Path]) -> str:
    """Return the SHA-256 of the lines `<sha256>  <name>`, sorted by name."""
    lines = (f"{sha256_file(path)}  {name}\n" for name, path in sorted(files.items()))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _sources(package: Path) -> dict[str, Path]:
    files = _below(package, "code/enigma")
    return {name: path for name, path in files.items() if path.suffix == ".py"}


def _below(directory: Path, name: str) -> dict[str, Path]:
    return {
        f"{name}/{path.relative_to(directory).as_posix()}": path
        for path in directory.rglob("*")
        if path.is_file()
    }
