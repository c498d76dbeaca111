"""When the gradient of the tied embedding of `wiki-zh` is sent, and what waits with it.

    OMP_NUM_THREADS=1 python -m benchmarks.training.buckets      # about half a minute

DDP sends gradients in buckets, in the order in which they were complete in its first backward pass.
One gloo rank takes three steps; a hook sees what each bucket of the third holds.
"""

import tempfile

import torch
import torch.distributed
from torch.nn.parallel import DistributedDataParallel

from benchmarks.record import row, write
from enigma.configuration_enigma import EnigmaConfig
from enigma.modeling_enigma import EnigmaForCausalLM
from pipelines.params import load_params

PROFILE, LENGTH, STEPS, MIB = "wiki-zh", 16, 3, 2**20
CAPS_MIB = (25, 8)
"""The most that a bucket holds but for its last gradient; DDP's default, and a third of it."""


def buckets(
    model: torch.nn.Module, tied: torch.nn.Parameter, cap_mib: int
) -> list[tuple[float, bool]]:
    """Return the MiB of each bucket in the order of sending, and whether it holds the embedding."""
    sent: list[tuple[float, bool]] = []

    def hook(
        _: None,
        bucket: torch.distributed.GradBucket,  # type: ignore[name-defined]  # of c10d
    ) -> torch.futures.Future[torch.Tensor]:
        holds = any(parameter is tied for parameter in bucket.parameters())
        sent.append((bucket.buffer().nbytes / MIB, holds))
        done: torch.futures.Future[torch.Tensor] = torch.futures.Future()
        done.set_result(bucket.buffer())
        return done

    parallel = DistributedDataParallel(model, bucket_cap_mb=cap_mib)
    parallel.register_comm_hook(None, hook)
    ids_BL = torch.randint(5, 900, (1, LENGTH))
    for _ in range(STEPS):
        sent.clear()
        parallel(input_ids=ids_BL, labels=ids_BL).loss.backward()
    return sent


def main() -> None:
    """Look, print and write."""
    settings = load_params().profiles[PROFILE].model.model_dump(mode="json")
    rows = []
    with tempfile.TemporaryDirectory() as directory:
        torch.distributed.init_process_group(
            "gloo", init_method=f"file://{directory}/meet", rank=0, world_size=1
        )
        for cap_mib in CAPS_MIB:
            model = EnigmaForCausalLM(EnigmaConfig(max_len=LENGTH, **settings, memory="plain"))
            tied = model.get_input_embeddings().weight
            sent = buckets(model.train(), tied, cap_mib)
            (place,) = (number for number, (_, holds) in enumerate(sent, start=1) if holds)
            name = f"buckets of {cap_mib} MiB"
            rows += [
                row(f"{name}: all gradients", sum(size for size, _ in sent), "MiB"),
                row(f"{name}: number", len(sent), ""),
                row(f"{name}: that of the tied embedding comes as number", place, ""),
                row(f"{name}: holds", sent[place - 1][0], "MiB"),
                row(f"{name}: of which the embedding", tied.nbytes / MIB, "MiB"),
            ]
        torch.distributed.destroy_process_group()
    write("buckets", rows)


if __name__ == "__main__":
    main()
