"""One exception tree, so that a caller can catch the package and a user reads what to do next.

The tree::

    Exception
    └── VlaAlignError            anything that this package refuses, on purpose
        ├── ConfigurationError   an option, parameter or file of the user's is wrong
        ├── ContractError        a value breaks the contract of training and robot
        │   ├── NormalizationError   statistics are missing or do not fit the value
        │   └── NonFiniteError   a model answered with NaN or infinity
        ├── BundleError          a policy bundle is incomplete, altered or not one of ours
        ├── BackendError         an inference engine cannot load or run the graph as asked
        ├── SafetyError          a safety limit is missing or makes no sense
        ├── OperatorError        a policy node does not hear or do what a person asks of it
        ├── SimulationError      the simulated scene cannot do what was asked
        ├── DataError            a data set is missing, incomplete or inconsistent
        ├── TrainingError        a training run cannot start, resume or go on
        └── ExportError          a trained policy cannot be exported or fails its proof
"""

from __future__ import annotations

__all__ = [
    "BackendError",
    "BundleError",
    "ConfigurationError",
    "ContractError",
    "DataError",
    "ExportError",
    "NonFiniteError",
    "NormalizationError",
    "OperatorError",
    "SafetyError",
    "SimulationError",
    "TrainingError",
    "VlaAlignError",
]


class VlaAlignError(Exception):
    """Base of every deliberate refusal: a summary, what was got, what was expected, how to fix it.

    Args:
        summary: one clause that says what went wrong.
        got: the offending value, as text or any object.
        expected: what would have been accepted.
        fix: the next thing to do.
    """

    def __init__(
        self,
        summary: str = "",
        *,
        got: object = None,
        expected: object = None,
        fix: str | None = None,
    ) -> None:
        self.summary = summary
        self.got = got
        self.expected = expected
        self.fix = fix
        details = [
            f"{label} {value}"
            for label, value in (("got", got), ("expected", expected))
            if value is not None
        ]
        if fix is not None:
            details.append(f"fix: {fix}")
        message = "; ".join(details)
        text = f"{summary}: {message}" if summary and message else summary or message
        # Half of a surrogate pair, of JSON or a file's name, can be neither logged nor published.
        super().__init__(text.encode(errors="backslashreplace").decode())


class ConfigurationError(VlaAlignError):
    """An option, a parameter or a configuration file of the user's is wrong."""


class ContractError(VlaAlignError):
    """A value breaks the contract that training and robot share."""


class NormalizationError(ContractError):
    """Statistics are missing, or do not fit the value to be normalised."""


class NonFiniteError(ContractError):
    """A model answered with NaN or infinity; nothing of that answer may be executed."""


class BundleError(VlaAlignError):
    """A policy bundle is incomplete, altered, or not a bundle of this package."""


class BackendError(VlaAlignError):
    """An inference engine cannot load or run the graph as it was asked to."""


class SafetyError(VlaAlignError):
    """A safety limit is missing or makes no sense."""


class OperatorError(VlaAlignError):
    """A policy node does not hear, or does not do, what a person asks of it."""


class SimulationError(VlaAlignError):
    """The simulated scene cannot do what was asked."""


class DataError(VlaAlignError):
    """A data set is missing, incomplete or inconsistent."""


class TrainingError(VlaAlignError):
    """A training run cannot start, resume or go on."""


class ExportError(VlaAlignError):
    """A trained policy cannot be exported, or fails its proof."""
