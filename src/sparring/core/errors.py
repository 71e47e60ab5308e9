"""The exception tree: every error that a user can meet says what came, what was needed and what to do.

::

    SparringError
    ├── InputError (ValueError)            inputs, labels, eps or targets that cannot be right
    ├── ThreatError (ValueError)           a threat model that contradicts itself, the attack or the space
    ├── VictimError (RuntimeError)         the model under test misbehaves: wrong shape, NaN, an exception inside it
    │   ├── CapabilityError                an attack needs what this victim does not offer
    │   └── BudgetError                    a remote victim's cap in queries or in money; what is paid is kept
    ├── LoadError (ValueError)             a model, picture or data set that cannot be loaded
    │   ├── FetchError                     a URL that cannot or must not be fetched
    │   ├── PictureError                   a file that is no picture, is damaged or is too large
    │   └── UnsafeFileError                a file that would execute code when it is read
    ├── UnknownNameError (KeyError)        a label, attack, model or option name that does not exist; names the close ones
    └── MissingDependencyError (ImportError)  an optional package that is absent or broken; names the install command

    SparringWarning (UserWarning)
    └── VictimWarning                      a trait of the victim that usually makes a result wrong
        └── VanishedGradientWarning        a search by gradients that had none to follow
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class SparringError(Exception):
    """Root of everything that sparring raises on purpose."""


class InputError(SparringError, ValueError):
    """Inputs, labels, eps or targets that cannot be right."""


class ThreatError(SparringError, ValueError):
    """A threat model that contradicts itself, the attack or the space."""


class VictimError(SparringError, RuntimeError):
    """The model under test misbehaves."""


class CapabilityError(VictimError):
    """An attack needs what this victim does not offer."""


class BudgetError(VictimError):
    """A remote victim's cap in queries or in money is reached; what was paid for is in its log.

    Attributes:
        queries: inputs asked so far.
        cost: what they cost, in the mapping's currency.
    """

    def __init__(self, message: str, queries: int = 0, cost: float = 0.0) -> None:
        super().__init__(message)
        self.queries, self.cost = queries, cost


class LoadError(SparringError, ValueError):
    """A model, picture or data set that cannot be loaded."""


class FetchError(LoadError):
    """A URL that cannot or must not be fetched."""


class PictureError(LoadError):
    """A file that is no picture, is damaged or is too large."""


class UnsafeFileError(LoadError):
    """A file that would execute code when it is read."""


class UnknownNameError(SparringError, KeyError):
    """A name that does not exist; the message names the close ones."""

    def __str__(self) -> str:  # KeyError would show the repr of its message
        return str(self.args[0]) if self.args else ""

    @classmethod
    def among(cls, kind: str, name: str, known: Iterable[str], hint: str = "") -> UnknownNameError:
        """Build the error for `name`, which is not one of `known`, with the close matches spelled out."""
        names = sorted(set(known))
        folded = {n.casefold(): n for n in names}
        close = [folded[n] for n in difflib.get_close_matches(name.casefold(), folded, n=4, cutoff=0.5)]
        close += [n for n in names if name and name.casefold() in n.casefold() and n not in close][:4]
        if close:
            known_text = "close matches: " + ", ".join(close)
        elif len(names) <= 12:
            known_text = "known: " + ", ".join(names)
        else:
            known_text = f"{len(names)} are known, from {names[0]!r} to {names[-1]!r}"
        return cls(f"no {kind} is called {name!r}; {known_text}." + (f" {hint}" if hint else ""))


class MissingDependencyError(SparringError, ImportError):
    """An optional package that is absent or broken; the message names the install command."""

    @classmethod
    def extra(cls, package: str, extra: str, why: str, cause: BaseException | None = None) -> MissingDependencyError:
        """Build the error for `package`, needed for `why` and installed by the extra `extra`."""
        found = f" (importing it failed: {cause})" if cause and not isinstance(cause, ModuleNotFoundError) else ""
        return cls(f"{why} needs the package {package!r}{found}. Install it with: pip install 'sparring[{extra}]'")


class SparringWarning(UserWarning):
    """Root of everything that sparring warns about."""


class VictimWarning(SparringWarning):
    """A trait of the victim that usually makes a result wrong."""


class VanishedGradientWarning(VictimWarning):
    """A search by gradients that had none to follow: what it leaves standing is no evidence."""
