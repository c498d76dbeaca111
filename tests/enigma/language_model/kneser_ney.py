"""Kneser-Ney smoothing from its definition, with dictionaries: what the memory must equal."""

from collections import Counter, defaultdict


class KneserNey:
    """Modified interpolated Kneser-Ney of texts, lists of classes.

    A start of a text is a left neighbour of its own. `without` is an n-gram occurrence to leave
    out, as (text, place of its last token): that token is then not counted as a target.
    """

    def __init__(self, texts, num_classes, order, discounts=None, without=None):
        self.num_classes, self.order = num_classes, order
        occurrences = [Counter() for _ in range(order + 1)]
        left = [defaultdict(set) for _ in range(order + 1)]
        for t, text in enumerate(texts):
            for end in range(len(text)):
                if (t, end) == without:
                    continue
                for k in range(1, min(order, end + 1) + 1):
                    start = end - k + 1
                    gram = tuple(text[start : end + 1])
                    occurrences[k][gram] += 1
                    left[k][gram].add(text[start - 1] if start else (t, "start"))
        self.counts = [Counter() for _ in range(order + 1)]
        for k in range(1, order + 1):
            for gram, number in occurrences[k].items():
                self.counts[k][gram] = number if k == order else len(left[k][gram])
        self.discounts = discounts or [self._discounts(k) for k in range(1, order + 1)]
        self.follow = defaultdict(dict)
        for k in range(1, order + 1):
            for gram, number in self.counts[k].items():
                self.follow[gram[:-1]][gram[-1]] = number

    def _discounts(self, k):
        n = [sum(c == number for c in self.counts[k].values()) for number in (1, 2, 3, 4)]
        if 0 in n:
            return [0.5, 1.0, 1.5]
        y = n[0] / (n[0] + 2 * n[1])
        found = [i - (i + 1) * y * n[i] / n[i - 1] for i in (1, 2, 3)]
        return found if min(found) >= 0 else [0.5, 1.0, 1.5]

    def probability(self, context, token):
        """p(token | the last order - 1 tokens of the context)."""
        context = tuple(context)[max(0, len(context) - self.order + 1) :]
        p = 1 / self.num_classes
        for length in range(len(context) + 1):
            seen = context[len(context) - length :]
            follow = self.follow.get(seen)
            if not follow:
                continue
            total = sum(follow.values())
            discounted = {w: c - self.discounts[length][min(c, 3) - 1] for w, c in follow.items()}
            rest = total - sum(discounted.values())
            p = (discounted.get(token, 0.0) + rest * p) / total
        return p
