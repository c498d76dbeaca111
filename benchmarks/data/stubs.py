"""Measure the search for near duplicates among stubs of one template, just below the bound.

`python -m benchmarks.data.stubs [--counts 2000 4000 8000 16000 30000]` prints the processor
time, the work, and how many copies of stubs are found, with 1, 3 and 5 % of the characters
edited. The work must be linear in the number of stubs.
"""

import argparse
import random
import time

from benchmarks.data.in_memory import join_texts
from pipelines.data.cleaning.clusters import Clusters
from pipelines.data.text.arrays import text_array
from pipelines.params import load_params

COUNTS = (2000, 4000, 8000, 16_000, 30_000)
TEMPLATE, OWN = 330, 170  # characters; the Jaccard similarity of two stubs is 0.49
EDITED = (0.01, 0.03, 0.05)
# One stub in so many has a copy of each kind.
COPIED = 20


def _prose(generator: random.Random, characters: int) -> list[str]:
    return [chr(generator.randrange(0x4E00, 0x9F00)) for _ in range(characters)]


def _edited(text: str, share: float, generator: random.Random) -> str:
    characters = list(text)
    for index in generator.sample(range(len(text)), round(share * len(text))):
        characters[index] = _prose(generator, 1)[0]
    return "".join(characters)


def measure(count: int) -> None:
    """Print one line for a number of stubs."""
    generator = random.Random(count)
    template = _prose(generator, TEMPLATE)
    texts = ["".join(template + _prose(generator, OWN)) for _ in range(count)]
    copies = [(kind, generator.randrange(count)) for kind in EDITED for _ in range(count // COPIED)]
    texts += [_edited(texts[stub], share, generator) for share, stub in copies]
    order = generator.sample(range(len(texts)), len(texts))
    place = {text: position for position, text in enumerate(order)}
    clusters = Clusters(len(texts))
    params = load_params().profile.clean.near_duplicates
    array = text_array([texts[text] for text in order])
    start = time.process_time()
    counts = join_texts(array, params, clusters)
    seconds = time.process_time() - start
    found = dict.fromkeys(EDITED, 0)
    for number, (share, stub) in enumerate(copies):
        same = clusters.find(place[stub]) == clusters.find(place[count + number])
        found[share] += same
    recall = ", ".join(f"{found[share] / (count // COPIED):.3f}" for share in EDITED)
    print(
        f"{len(texts):>6} documents: {seconds:5.1f} s, {counts.compared / len(texts):.1f} pairs of "
        f"signatures and {counts.verified / len(texts):.1f} of texts each; recall {recall}",
        flush=True,
    )


def main() -> None:
    """Measure every number of stubs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--counts", type=int, nargs="+", default=COUNTS)
    for count in parser.parse_args().counts:
        measure(count)


if __name__ == "__main__":
    main()
