"""A word tokenizer for policies that learn their language from the demonstrations alone."""

from __future__ import annotations

from collections.abc import Iterable

BOS, PAD, UNKNOWN = "<s>", "<pad>", "<unk>"


def build_word_tokenizer(texts: Iterable[str]) -> bytes:
    """Content of a tokenizer.json that knows every word of `texts`; others become `<unk>`.

    The vocabulary is sorted, so the same words give the same file.
    """
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.normalizers import Lowercase
    from tokenizers.pre_tokenizers import Whitespace

    splitter = Whitespace()
    words = {word for text in texts for word, _ in splitter.pre_tokenize_str(text.lower())}
    vocabulary = {word: i for i, word in enumerate([PAD, BOS, UNKNOWN, *sorted(words)])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.normalizer = Lowercase()
    tokenizer.pre_tokenizer = splitter
    tokenizer.add_special_tokens([PAD, BOS, UNKNOWN])
    return str(tokenizer.to_str(pretty=True)).encode()
