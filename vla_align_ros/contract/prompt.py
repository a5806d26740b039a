"""From an operator's words to token ids, the same in training and on the robot.

The ``tokenizers`` library reads the tokenizer file on first use; such a file runs nothing.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from vla_align_ros.contract.files import require_keys
from vla_align_ros.errors import ContractError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Int64Array = npt.NDArray[np.int64]

MAX_INSTRUCTION_CHARACTERS = 511
MAX_PROMPT_TOKENS = 8192
OPENVLA_PROMPT = "In: What action should the robot take to {instruction}?\nOut:"
_SLOT = "{instruction}"
_REFUSED_CATEGORIES = ("Cc", "Cf", "Cs", "Co", "Cn")
_NOT_DECODED = "\ufffd"  # what ROS and others put for bytes that are not UTF-8


def clean_instruction(text: str) -> str:
    """Bring an instruction into the form that training used.

    Unicode NFKC, lower case, blanks (new lines too) collapsed, trailing dots removed. Cleaning a
    clean instruction changes nothing.

    Raises:
        ContractError: if nothing is left, if it has 512 or more characters, or if it holds control
            or invisible characters, or one that a decoder put where bytes were no text.
    """
    if not isinstance(text, str):
        raise ContractError("instruction is no text", got=type(text).__name__, expected="str")
    _check_length(text)
    cleaned = " ".join(unicodedata.normalize("NFKC", text).split())
    refused = [
        character
        for character in cleaned
        if unicodedata.category(character) in _REFUSED_CATEGORIES or character == _NOT_DECODED
    ]
    if refused:
        raise ContractError(
            "instruction holds a control or invisible character, or bytes that are no text",
            got=ascii(refused[0]),
            expected="letters, digits, punctuation and blanks",
        )
    cleaned = " ".join(unicodedata.normalize("NFKC", cleaned.lower()).split()).rstrip(". ")
    _check_length(cleaned)
    if not cleaned:
        raise ContractError(
            "instruction is empty",
            got=ascii(text),
            expected="words such as 'put the carrot on the plate'",
        )
    return cleaned


@dataclass(frozen=True, slots=True)
class PromptTemplate:
    """Text with one ``{instruction}`` in it; the default is OpenVLA's."""

    text: str = OPENVLA_PROMPT

    def __post_init__(self) -> None:
        if not isinstance(self.text, str) or self.text.count(_SLOT) != 1:
            raise ContractError(
                "prompt template is wrong", got=repr(self.text), expected=f"text with {_SLOT} once"
            )

    def render(self, instruction: str) -> str:
        """Return the prompt for an instruction, which is cleaned first."""
        return self.text.replace(_SLOT, clean_instruction(instruction))


class PromptTokenizer:
    """Turns instructions into token ids of a fixed length.

    Args:
        tokenizer: a ``tokenizer.json`` by path or by content; the bytes are kept as they are.
        template: around the instruction.
        max_length: tokens of every encoded prompt, padding included.
        bos_token: put first, always. pad_token: fills the right side.

    Raises:
        ContractError: if the file is no tokenizer or lacks one of the two tokens.
    """

    def __init__(
        self,
        tokenizer: bytes | str | Path,
        template: PromptTemplate | None = None,
        max_length: int = 64,
        *,
        bos_token: str = "<s>",
        pad_token: str = "<pad>",
    ) -> None:
        valid = isinstance(max_length, int) and not isinstance(max_length, bool)
        if not valid or not 2 <= max_length <= MAX_PROMPT_TOKENS:
            raise ContractError(
                "prompt length is wrong",
                got=str(max_length)[:24],
                expected=f"a whole number from 2 to {MAX_PROMPT_TOKENS}",
            )
        self.template = PromptTemplate() if template is None else template
        self.max_length = max_length
        self.bos_token, self.pad_token = bos_token, pad_token
        self.content = _read_content(tokenizer)
        self._tokenizer = _load_tokenizer(self.content)
        self._special_tokens = [
            added.content
            for added in self._tokenizer.get_added_tokens_decoder().values()
            if added.special
        ]
        self.bos_id, self.pad_id = (
            self._find(bos_token, "bos_token"),
            self._find(pad_token, "pad_token"),
        )

    @property
    def vocabulary_size(self) -> int:
        """Number of token ids, added tokens included."""
        return int(self._tokenizer.get_vocab_size())

    def encode(self, instruction: str) -> tuple[Int64Array, Int64Array]:
        """Encode an instruction: (max_length,) int64 ids, and a mask, 1 for tokens, 0 for padding.

        Raises:
            ContractError: if the instruction is refused, spells a special token (which would not
                be read as words), makes a prompt of more tokens than fit, or the tokenizer fails.
        """
        words = clean_instruction(instruction)
        spelt = [token for token in self._special_tokens if token in words]
        if spelt:
            raise ContractError("instruction spells a special token", got=spelt, expected="words")
        prompt = self.template.render(words)
        with _refuse_panics("instruction cannot be encoded by this tokenizer"):
            encoding = self._tokenizer.encode(prompt, add_special_tokens=False)
        tokens = [self.bos_id, *encoding.ids]
        if len(tokens) > self.max_length:
            raise ContractError(
                "prompt is too long",
                got=f"{len(tokens)} tokens for {prompt!r}",
                expected=f"at most {self.max_length}",
                fix="use a shorter instruction",
            )
        ids = np.full(self.max_length, self.pad_id, dtype=np.int64)
        ids[: len(tokens)] = tokens
        mask = np.zeros(self.max_length, dtype=np.int64)
        mask[: len(tokens)] = 1
        return ids, mask

    def unknown_words(self, instruction: str) -> tuple[str, ...]:
        """Return what of an instruction becomes the unknown token, each once, in order.

        Nothing where the tokenizer has no such token, as one that spells words in bytes.

        Raises:
            ContractError: if the instruction is refused or the tokenizer fails.
        """
        unknown = self._find_unknown()
        if unknown is None:
            return ()
        words = clean_instruction(instruction)
        first = self.template.text.index(_SLOT)
        with _refuse_panics("instruction cannot be encoded by this tokenizer"):
            prompt = self.template.render(words)
            encoding = self._tokenizer.encode(prompt, add_special_tokens=False)
        found = [
            prompt[start:end].strip()
            for index, (start, end) in zip(encoding.ids, encoding.offsets, strict=True)
            if index == unknown and start < first + len(words) and end > first
        ]
        return tuple(dict.fromkeys(found))

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form without the tokenizer, which has a file of its own."""
        return {
            "template": self.template.text,
            "max_length": self.max_length,
            "bos_token": self.bos_token,
            "pad_token": self.pad_token,
        }

    @classmethod
    def from_dict(cls, data: object, tokenizer: bytes | str | Path) -> PromptTokenizer:
        """Read the JSON form; ContractError if a key is missing or unknown."""
        fields = require_keys(data, ("template", "max_length", "bos_token", "pad_token"), "prompt")
        return cls(
            tokenizer,
            PromptTemplate(fields["template"]),
            fields["max_length"],
            bos_token=fields["bos_token"],
            pad_token=fields["pad_token"],
        )

    def _find_unknown(self) -> int | None:
        """Number of the token that stands for all that the vocabulary lacks."""
        model = self._tokenizer.model
        if type(model).__name__ == "Unigram":  # whose number the library does not tell
            index = json.loads(self.content)["model"].get("unk_id")
        else:
            token = getattr(model, "unk_token", None)
            index = None if token is None else self._tokenizer.token_to_id(token)
        return None if index is None else int(index)

    def _find(self, token: str, what: str) -> int:
        index = None
        if isinstance(token, str):
            with suppress(UnicodeEncodeError):  # JSON can hold half of a surrogate pair
                index = self._tokenizer.token_to_id(token)
        if index is None:
            raise ContractError(
                f"{what} is not in the vocabulary",
                got=repr(token),
                expected=f"a token such as {self._special_tokens[:8]}",
                fix=f"pass {what}=...",
            )
        return int(index)


def _check_length(text: str) -> None:
    if len(text) > MAX_INSTRUCTION_CHARACTERS:
        raise ContractError(
            "instruction is too long",
            got=f"{len(text)} characters",
            expected=f"at most {MAX_INSTRUCTION_CHARACTERS}",
        )


def _read_content(tokenizer: bytes | str | Path) -> bytes:
    if isinstance(tokenizer, bytes):
        return tokenizer
    try:
        return Path(tokenizer).read_bytes()
    except OSError as cause:
        raise ContractError(
            "tokenizer file cannot be read", got=cause, expected="a tokenizer.json"
        ) from cause


def _load_tokenizer(content: bytes) -> Tokenizer:
    from tokenizers import Tokenizer

    with _refuse_panics("tokenizer file is no tokenizer"):
        tokenizer = Tokenizer.from_buffer(content)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


@contextmanager
def _refuse_panics(summary: str) -> Iterator[None]:
    """Raise a ContractError for all that the library raises.

    That is a bare Exception for everything, and where a file leads its Rust code astray a
    PanicException, which is none.
    """
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as cause:
        raise ContractError(summary, got=cause, expected="a sound tokenizer.json") from cause
