"""Yes or no as a word, as launch files get it."""

from __future__ import annotations

from vla_align_ros.errors import ConfigurationError

TRUE = ("true", "1", "yes")
FALSE = ("false", "0", "no")


def read_flag(name: str, word: str) -> bool:
    """What a word of yes or no says; a misspelt one must not switch a stop off."""
    said = word.strip().lower()
    if said not in TRUE + FALSE:
        raise ConfigurationError(
            name,
            got=repr(word),
            expected=f"{', '.join(TRUE)} or {', '.join(FALSE)}",
            fix=f"{name}:=true or {name}:=false",
        )
    return said in TRUE
