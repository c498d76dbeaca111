"""The Jaccard similarity by its definition, for the tests of its fast versions."""


def true_jaccard(a: str, b: str, length: int) -> float:
    """By Python sets of the shingles themselves."""
    sets = [
        {text[i : i + length] for i in range(max(1, len(text) - length + 1))} for text in (a, b)
    ]
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])
