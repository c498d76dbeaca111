"""Sequences whose every answer depends on all that came before.

A task draws inputs and answers of any length. The answer at token t is a function of the tokens
up to t that no bounded number of them decides.

* `a5`, `s5`: the tokens are permutations of 5 things, the answer is the product so far: the word
  problem of the alternating and of the symmetric group. Both are complete for NC1, and attention
  layers of a fixed depth stay in TC0 (Merrill et al., "The Illusion of State", 2024).
* `flip-flop`: write, ignore and read, each followed by a bit; the answer to "read" is the bit of
  the last "write" (Liu et al., "Exposing Attention Glitches with Flip-Flop Language Modeling",
  2023).
* `machine`: the historical Enigma with three of five rotors and a plugboard of ten pairs. The text
  starts with the key (rotors, their start positions, the plugboard); the answer to a letter is its
  cipher.

Legend: B texts, L tokens.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import combinations, permutations, product
from typing import NamedTuple

import torch
from torch import Tensor

NO_ANSWER = -100
TRAINED_LENGTH = 64


class Texts(NamedTuple):
    """Inputs and answers.

    Attributes:
        ids_BL: int64, in [0, number of tokens).
        answers_BL: int64, `NO_ANSWER` where none is asked for.
    """

    ids_BL: Tensor
    answers_BL: Tensor


class Level(NamedTuple):
    """How hard a text is.

    Attributes:
        length: in answers or tokens.
        kinds: how many different permutations it draws from; None for all.
    """

    length: int
    kinds: int | None = None


class Task(ABC):
    """A kind of sequence.

    Attributes:
        num_tokens: how many different tokens there are; answers are tokens too.
        steps: of training.
        levels: of training, from the easiest on.
    """

    num_tokens: int
    steps: int
    levels: tuple[Level, ...] = (Level(TRAINED_LENGTH),)

    @abstractmethod
    def draw(self, texts: int, level: Level, generator: torch.Generator) -> Texts:
        """Draw texts of a level."""


class WordProblem(Task):
    """Products of permutations of 5 things.

    Training starts with short products of two permutations that generate the group: to follow
    their state a model must find the group, and to read one permutation more is little to learn.

    Args:
        even: only even permutations, A5; else all, S5.
    """

    FIRST_LENGTH, MIDDLE_LENGTH = 4, 19

    def __init__(self, *, even: bool) -> None:
        elements = [p for p in permutations(range(5)) if not (even and _is_odd(p))]
        number = {p: i for i, p in enumerate(elements)}
        self._product = torch.tensor(
            [number[tuple(a[b[k]] for k in range(5))] for a, b in product(elements, repeat=2)]
        ).view(len(elements), len(elements))
        self.num_tokens = len(elements)
        self.steps = 2000 if even else 4000  # S5 has four times the products to learn
        pairs = combinations(range(self.num_tokens), 2)
        first = next(pair for pair in pairs if self._generated(pair) == self.num_tokens)
        self._order = torch.tensor([*first, *(set(range(self.num_tokens)) - {*first})])
        self.levels = (
            *(
                Level(length, len(first))
                for length in _grown(self.FIRST_LENGTH, self.MIDDLE_LENGTH)
            ),
            *(Level(self.MIDDLE_LENGTH, kinds) for kinds in _doubled(4, self.num_tokens)),
            *(Level(length) for length in _grown(28, TRAINED_LENGTH)),
        )

    def _generated(self, numbers: Sequence[int]) -> int:
        """Return how many permutations are products of these."""
        found, waiting = {0}, [0]  # 0 is the identity
        while waiting:
            state = waiting.pop()
            new = {int(self._product[number, state]) for number in numbers} - found
            found |= new
            waiting += new
        return len(found)

    def draw(self, texts: int, level: Level, generator: torch.Generator) -> Texts:
        """Draw texts of `length` permutations; see the base class."""
        size = (texts, level.length)
        kinds = level.kinds or self.num_tokens
        ids_BL = self._order[torch.randint(kinds, size, generator=generator)]
        state_B, states = torch.zeros(texts, dtype=torch.long), []
        for id_B in ids_BL.unbind(1):
            state_B = self._product[id_B, state_B]
            states.append(state_B)
        return Texts(ids_BL, torch.stack(states, dim=1))


def _grown(first: int, last: int) -> list[int]:
    """Return lengths that grow by half."""
    lengths = [first]
    while lengths[-1] < last:
        lengths.append(min(last, lengths[-1] * 3 // 2))
    return lengths


def _doubled(first: int, last: int) -> list[int]:
    numbers = [first]
    while numbers[-1] < last:
        numbers.append(min(last, 2 * numbers[-1]))
    return numbers


def _is_odd(permutation: tuple[int, ...]) -> bool:
    pairs = ((i, j) for i in range(5) for j in range(i + 1, 5))
    return sum(permutation[i] > permutation[j] for i, j in pairs) % 2 == 1


class FlipFlop(Task):
    """Instructions, each followed by a bit; a text starts with a write."""

    BITS, WRITE, IGNORE, READ = 2, 2, 3, 4
    steps = 3000
    num_tokens = 5

    def __init__(self, ignored: float = 0.8) -> None:
        self.ignored = ignored

    def draw(self, texts: int, level: Level, generator: torch.Generator) -> Texts:
        """Draw texts of `length` tokens, two for an instruction; see the base class."""
        size = (texts, level.length // 2)
        chance = torch.rand(size, generator=generator)
        does = torch.full(size, self.IGNORE)
        does[chance > self.ignored] = self.WRITE
        does[chance > (1 + self.ignored) / 2] = self.READ
        does[:, 0] = self.WRITE
        bits = torch.randint(self.BITS, size, generator=generator)
        place = torch.arange(size[1]).expand(size)
        last_write = torch.where(does == self.WRITE, place, 0).cummax(dim=1).values
        bits = torch.where(does == self.READ, bits.gather(1, last_write), bits)
        answers = torch.where(does == self.READ, bits, NO_ANSWER)
        nothing = torch.full(size, NO_ANSWER)
        return Texts(
            torch.stack((does, bits), dim=2).flatten(1),
            torch.stack((answers, nothing), dim=2).flatten(1),
        )


class EnigmaMachine(Task):
    """The machine of 1938 with reflector B, rotors I to V and ten plugs.

    Wirings and notches: Rijmenants, "Technical Details of the Enigma Machine"; the middle rotor
    steps twice, as the machine's did.
    """

    LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    ROTORS = (
        ("EKMFLGDQVZNTOWYHXUSPAIBRCJ", "Q"),
        ("AJDKSIRUXBLHWTMCQGZNPYFVOE", "E"),
        ("BDFHJLCPRTXVZNYEIWGAKMUSQO", "V"),
        ("ESOVPZJAYQUIRHXLNFTGKDCMWB", "J"),
        ("VZBRGITYUPSDNHLXAWMJQOFECK", "Z"),
    )
    REFLECTOR = "YRUHQSLDPXNGOKMIEBFZCWVJAT"
    PLUGS = 10
    steps = 1000
    num_tokens = len(LETTERS) + len(ROTORS)

    def __init__(self) -> None:
        self._wiring = torch.tensor([self._numbers(wiring) for wiring, _ in self.ROTORS])
        self._back = self._wiring.argsort(dim=1)
        self._notch = torch.tensor([self._numbers(notch)[0] for _, notch in self.ROTORS])
        self._reflector = torch.tensor(self._numbers(self.REFLECTOR))

    @classmethod
    def _numbers(cls, letters: str) -> list[int]:
        return [cls.LETTERS.index(letter) for letter in letters]

    def draw(self, texts: int, level: Level, generator: torch.Generator) -> Texts:
        """Draw a key and `length` letters for each text; see the base class."""
        letters = len(self.LETTERS)

        def shuffled(n: int) -> Tensor:
            return torch.rand(texts, n, generator=generator).argsort(dim=1)

        rotors_B3 = shuffled(len(self.ROTORS))[:, :3]
        places_B3 = torch.randint(letters, (texts, 3), generator=generator)
        plugs_B2P = shuffled(letters)[:, : 2 * self.PLUGS]
        plain_BL = torch.randint(letters, (texts, level.length), generator=generator)
        cipher_BL = self.encipher(plain_BL, rotors_B3, places_B3, plugs_B2P)
        key = torch.cat((rotors_B3 + letters, places_B3, plugs_B2P), dim=1)
        return Texts(
            torch.cat((key, plain_BL), dim=1),
            torch.cat((torch.full_like(key, NO_ANSWER), cipher_BL), dim=1),
        )

    def encipher(
        self, text_BL: Tensor, rotors_B3: Tensor, places_B3: Tensor, plugs_B2P: Tensor
    ) -> Tensor:
        """Encipher letters; the same key deciphers.

        Args:
            text_BL: int64, letters from 0.
            rotors_B3: left, middle and right rotor, from 0.
            places_B3: where they stand before the first letter.
            plugs_B2P: letters that are swapped with their neighbour, pair after pair.
        """
        board_BA = torch.arange(len(self.LETTERS)).repeat(len(text_BL), 1)
        pairs = plugs_B2P.unflatten(1, (-1, 2))  # type: ignore[no-untyped-call]
        board_BA.scatter_(1, plugs_B2P, pairs.flip(2).flatten(1))
        left, middle, right = places_B3.unbind(1)
        notch = self._notch[rotors_B3]
        cipher = []
        for letter in text_BL.unbind(1):
            at_notch = middle == notch[:, 1]
            middle = (middle + (at_notch | (right == notch[:, 2])).long()) % len(self.LETTERS)
            left = (left + at_notch.long()) % len(self.LETTERS)
            right = (right + 1) % len(self.LETTERS)
            places = (left, middle, right)
            x = board_BA.gather(1, letter.unsqueeze(1)).squeeze(1)
            for number in (2, 1, 0):
                x = self._through(self._wiring, rotors_B3[:, number], places[number], x)
            x = self._reflector[x]
            for number in (0, 1, 2):
                x = self._through(self._back, rotors_B3[:, number], places[number], x)
            cipher.append(board_BA.gather(1, x.unsqueeze(1)).squeeze(1))
        return torch.stack(cipher, dim=1)

    def _through(self, wiring: Tensor, rotor_B: Tensor, place_B: Tensor, x_B: Tensor) -> Tensor:
        letters = len(self.LETTERS)
        return (wiring[rotor_B, (x_B + place_B) % letters] - place_B) % letters


TASKS: dict[str, Task] = {
    "a5": WordProblem(even=True),
    "s5": WordProblem(even=False),
    "flip-flop": FlipFlop(),
    "machine": EnigmaMachine(),
}
