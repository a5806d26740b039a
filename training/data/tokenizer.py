"""A word tokenizer for policies that learn their language from the demonstrations alone."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable

from vla_align_ros.contract.prompt import clean_instruction
from vla_align_ros.errors import ContractError

BOS, PAD, UNKNOWN = "<s>", "<pad>", "<unk>"


def build_word_tokenizer(texts: Iterable[str]) -> bytes:
    """Content of a tokenizer.json that knows every word of `texts`; others become `<unk>`.

    A policy reads instructions cleaned, so the words are those of the cleaned texts. Those of the
    texts as written stand before them, sorted: no number changes that an earlier run learnt by. The
    same words give the same file.
    """
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.normalizers import Lowercase
    from tokenizers.pre_tokenizers import Whitespace

    splitter = Whitespace()
    written, cleaned = set[str](), set[str]()
    for text in texts:
        written |= {word for word, _ in splitter.pre_tokenize_str(text.lower())}
        with contextlib.suppress(ContractError):  # nobody can say such a text, nor learn from it
            cleaned |= {word for word, _ in splitter.pre_tokenize_str(clean_instruction(text))}
    words = [PAD, BOS, UNKNOWN, *sorted(written), *sorted(cleaned - written)]
    vocabulary = {word: i for i, word in enumerate(words)}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.normalizer = Lowercase()
    tokenizer.pre_tokenizer = splitter
    tokenizer.add_special_tokens([PAD, BOS, UNKNOWN])
    return str(tokenizer.to_str(pretty=True)).encode()
