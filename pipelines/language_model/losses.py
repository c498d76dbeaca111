"""The loss of a model on each item of an evaluation set, for paired comparisons.

The differences item by item tell two models apart far better than two totals do, since
a text that is hard for one is hard for both. So `evaluate` and `sample_flow` write a
parquet file with one row per item; a registered version carries it as evidence.

    document    id of the document in which the item begins
    units       characters or dimensions in the item
    loss_nats   sum over the item; lower is better
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.base.errors import UserError
from pipelines.data.order import Indices
from pipelines.data.shards import ShardReader

LOSSES_FILE = "losses.parquet"
SCHEMA = pa.schema(
    [("document", pa.string()), ("units", pa.float64()), ("loss_nats", pa.float64())]
)

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Losses:
    """The losses of the items of an evaluation set, in order.

    Args:
        document: N ids of documents.
        units: (N,) float64, positive in sum.
        loss_nats: (N,) float64.
    """

    document: npt.NDArray[np.object_]
    units: Floats
    loss_nats: Floats

    def write(self, path: Path) -> None:
        """Write the file by an atomic rename."""
        columns = [list(self.document), self.units, self.loss_nats]
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.partial")
        pq.write_table(pa.table(columns, schema=SCHEMA), partial)
        partial.replace(path)

    @classmethod
    def read(cls, path: Path) -> "Losses":
        """Read what `write` wrote.

        Raises:
            UserError: If the file is missing, is something else, or holds no finite losses.
        """
        try:
            table = pq.read_table(path, schema=SCHEMA)
        except (FileNotFoundError, pa.ArrowException) as error:
            raise UserError(
                f"expected losses in {path}, got: {error}", "run `dvc repro`, which makes it"
            ) from None
        losses = cls(
            np.array(table["document"].to_pylist(), dtype=object),
            table["units"].to_numpy(),
            table["loss_nats"].to_numpy(),
        )
        if not (np.isfinite(losses.loss_nats).all() and losses.units.sum() > 0):
            raise UserError(
                f"{path}: expected finite losses of at least one item, got {len(table)} rows",
                "run `dvc repro`; a loss that is not finite means a broken model",
            )
        return losses


def documents_of(reader: ShardReader, indices: Indices) -> npt.NDArray[np.object_]:
    """Find the document in which each sequence begins.

    Args:
        reader: The split.
        indices: (N,) sequences.
    """
    documents = reader.documents()
    source = reader.sequences()["source_sequence"].to_numpy()[indices]
    starts = documents["start_token"].to_numpy()
    row = np.searchsorted(starts, source * reader.sequence_length, side="right") - 1
    return np.array([documents["id"][number].as_py() for number in row], dtype=object)


def evaluation_set_sha256(reader: ShardReader, indices: Indices) -> str:
    """Identify an evaluation set by the hash of its tokens, in order."""
    return hashlib.sha256(reader.gather(indices).tobytes()).hexdigest()


def losses_of(reader: ShardReader, indices: Indices, nll_nats_N: Floats) -> Losses:
    """Pair the loss of each sequence with the characters of its source text.

    Args:
        reader: The split.
        indices: (N,) sequences.
        nll_nats_N: The loss of each, without the charge for [UNK], which is the same for all
            models.
    """
    characters = reader.sequences().take(indices)["characters"].to_numpy()
    return Losses(documents_of(reader, indices), characters.astype(np.float64), nll_nats_N)
