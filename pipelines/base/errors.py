"""The one exception that the user can fix, and how it is shown."""


class UserError(Exception):
    """Something outside the code is wrong: input, configuration, machine.

    The message says what was expected, what was found, and how to fix it. It is
    printed without a traceback, and the process ends with exit code 1.

    Args:
        problem: What was expected, and what was found.
        fix: What the user can do about it, as a sentence.
    """

    def __init__(self, problem: str, fix: str) -> None:
        self.problem = problem
        self.fix = fix
        # Pickling passes `args` to the constructor: a worker's error must arrive here whole.
        super().__init__(problem, fix)

    def __str__(self) -> str:
        """The message as it is printed."""
        return f"{self.problem}\n  to fix this: {self.fix}"


class GateError(UserError):
    """A quality gate refused its input; nothing after it may run.

    Args:
        gate: Name of the gate, as reports and the registry spell it.
        problem: What was measured, and the bound.
        fix: What the user can do about it, as a sentence.
    """

    def __init__(self, gate: str, problem: str, fix: str) -> None:
        self.gate = gate
        super().__init__(f"gate `{gate}` refused: {problem}", fix)
        self.args = (gate, problem, fix)
