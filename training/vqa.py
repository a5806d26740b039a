"""Questions about pictures beside the demonstrations, so that the language model keeps its words.

Co-training on visual question answering is what keeps most of a vision-language model's knowledge
("Knowledge Insulating Vision-Language-Action Models", arXiv 2505.23705). A data set is a folder:
`*.jsonl` files whose lines are ``{"image": "pictures/1.jpg", "question": "...", "answer": "..."}``,
with paths relative to the folder.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from training.model import VlaConfig
from vla_align_ros.contract.images import decode_compressed
from vla_align_ros.contract.processor import Processor
from vla_align_ros.errors import ConfigurationError, ContractError, DataError

IGNORED = -100
"""Label of a position that no loss is taken at."""

_ENDS = ("<|im_end|>", "</s>", "<end_of_turn>", "<eos>", "<|eot_id|>", "<|endoftext|>")
_SLOT = "{question}"


@dataclass(frozen=True, slots=True)
class VqaConfig:
    """A mixture of questions.

    path: the folder. weight: of the loss beside the action loss. batch_size: questions a step, over
    all processes. template: around the question. question_tokens, answer_tokens: lengths of the
    padded batch, BOS and end included; a longer answer is cut, a sample with a longer question is
    left out. end_token: what closes an answer; empty takes the tokenizer's usual one.
    """

    path: str
    weight: float = 1.0
    batch_size: int = 8
    template: str = "In: {question}\nOut:"
    question_tokens: int = 64
    answer_tokens: int = 32
    end_token: str = ""

    def __post_init__(self) -> None:
        """Check names and numbers; ConfigurationError names the field."""
        for name, least in (("batch_size", 1), ("question_tokens", 2), ("answer_tokens", 2)):
            value = getattr(self, name)
            if value < least:
                raise _wrong(name, value, f"{least} or more")
        if not (math.isfinite(self.weight) and self.weight > 0):
            raise _wrong("weight", self.weight, "above 0")
        if self.template.count(_SLOT) != 1:
            raise _wrong("template", repr(self.template), f"text with {_SLOT} once")


@dataclass(frozen=True, slots=True)
class VqaSample:
    """One line of a data set; `where` is its file and line for error messages."""

    image: Path
    question: str
    answer: str
    where: str


class VqaBatches:
    """Endless batches in an order that follows from the seed alone, whatever the processes are.

    Args:
        config: the mixture. processor: of the policy; its tokenizer and picture transform are used.
        seed: of the order, which is drawn anew for each pass. rank, world: this process's share.
        pieces: that a share is computed in, one after the other.

    Raises:
        DataError: no sample, a line that is none, a missing picture. ConfigurationError: a batch
            size that does not divide among the processes and pieces, or an unknown end token.
    """

    def __init__(
        self,
        config: VqaConfig,
        processor: Processor,
        *,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        pieces: int = 1,
    ) -> None:
        if config.batch_size % (world * pieces):
            expected = f"a multiple of {world} process(es) times {pieces} piece(s)"
            raise _wrong("batch_size", config.batch_size, expected)
        from tokenizers import Tokenizer

        self.config, self.processor, self.seed = config, processor, seed
        self.rank, self.world = rank, world
        self._tokenizer = Tokenizer.from_buffer(processor.tokenizer.content)
        self._end = _find_end(self._tokenizer, config.end_token)
        samples = read_samples(Path(config.path))
        self._questions = [self._ask(sample.question) for sample in samples]
        fitting = [len(ids) <= config.question_tokens for ids in self._questions]
        self.samples = [s for s, fits in zip(samples, fitting, strict=True) if fits]
        self._questions = [q for q, fits in zip(self._questions, fitting, strict=True) if fits]
        self.left_out = len(samples) - len(self.samples)
        if not self.samples:
            raise DataError(
                "No question fits",
                got=f"{len(samples)} samples, all longer than {config.question_tokens} tokens",
                expected="questions that fit vqa.question_tokens",
                fix="raise vqa.question_tokens",
            )
        self._position = 0
        self._pass, self._order = -1, np.empty(0, dtype=np.int64)

    def next(self) -> dict[str, Tensor]:
        """Return this process's share of the next batch.

        `pixel_values` (b, C, S, S) float32; `input_ids`, `attention_mask` (b, question_tokens)
        int64, right padded; `answer_tokens` (b, answer_tokens) int64; `labels`, the same with
        IGNORED at padding.
        """
        share = self.config.batch_size // self.world
        first = self._position + self.rank * share
        rows = [self._index(first + i) for i in range(share)]
        self._position += self.config.batch_size
        columns = zip(*[self._encode(row) for row in rows], strict=True)
        names = ("pixel_values", "input_ids", "attention_mask", "answer_tokens", "labels")
        return {
            name: torch.from_numpy(np.stack(column))
            for name, column in zip(names, columns, strict=True)
        }

    def state_dict(self) -> dict[str, int]:
        """Return how many samples all processes took together."""
        return {"samples": self._position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on where a run stopped, whatever the number of its processes."""
        self._position = int(state["samples"])

    def _index(self, position: int) -> int:
        passes, place = divmod(position, len(self.samples))
        if passes != self._pass:
            rng = np.random.default_rng((self.seed, passes))
            self._pass, self._order = passes, rng.permutation(len(self.samples))
        return int(self._order[place])

    def _ask(self, question: str) -> list[int]:
        text = self.config.template.replace(_SLOT, " ".join(question.split()))
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return [self.processor.tokenizer.bos_id, *ids]

    def _encode(self, row: int) -> tuple[np.ndarray[Any, Any], ...]:
        sample, question = self.samples[row], self._questions[row]
        try:
            pixels = self.processor.image_transform(decode_compressed(sample.image.read_bytes()))
        except (OSError, ContractError) as error:
            raise DataError(
                "A picture cannot be read",
                got=f"{sample.image} ({sample.where}): {error}",
                expected="one whole JPEG or PNG",
                fix="replace the picture or remove the line",
            ) from error
        words = self._tokenizer.encode(" " + sample.answer.strip(), add_special_tokens=False).ids
        answer = [*words, self._end][: self.config.answer_tokens]
        pad = self.processor.tokenizer.pad_id
        ids = _padded(question, self.config.question_tokens, pad)
        mask = _padded([1] * len(question), self.config.question_tokens, 0)
        answers = _padded(answer, self.config.answer_tokens, pad)
        return pixels, ids, mask, answers, _padded(answer, self.config.answer_tokens, IGNORED)


def read_samples(folder: Path) -> list[VqaSample]:
    """Read every line of the folder's `*.jsonl`, files by name; DataError names a wrong line."""
    samples = []
    for path in sorted(folder.glob("*.jsonl")):
        # Not splitlines: a JSON text may hold other ends of lines, such as U+2028, as they are.
        for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
            if line.strip():
                samples.append(_read_line(folder, line, f"{path.name} line {number}"))
    if not samples:
        raise DataError(
            "No questions",
            got=f"{folder} without a line in a *.jsonl file",
            expected='lines such as {"image": "a.jpg", "question": "...", "answer": "..."}',
            fix="correct vqa.path",
        )
    missing = sorted({str(s.image) for s in samples if not s.image.is_file()})
    if missing:
        raise DataError(
            "Pictures are missing",
            got=f"{len(missing)} of them, such as {missing[0]}",
            expected=f"every named picture below {folder}",
            fix="copy the pictures, or remove the lines that name them",
        )
    return samples


def fingerprint_samples(samples: Sequence[VqaSample], folder: Path) -> str:
    """sha256 over all questions, answers, and the pictures' names and sizes, in order."""
    digest = hashlib.sha256()
    for sample in samples:
        picture = (os.path.relpath(sample.image, folder), sample.image.stat().st_size)
        digest.update(json.dumps([sample.question, sample.answer, *picture]).encode() + b"\n")
    return digest.hexdigest()


def vqa_loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Return the mean cross-entropy of the answers' tokens, given picture and question.

    The mean over an answer's own tokens, then over the answers: pieces of a batch add up to it.

    model: a PrismaticVLA (or its wrapper) with a vocabulary output; batch: of `VqaBatches.next`.
    """
    output = model(
        batch["pixel_values"],
        batch["input_ids"],
        batch["attention_mask"],
        answer_tokens=batch["answer_tokens"],
        output_hidden_states=False,
    )
    labels = batch["labels"]
    logits = output.logits.float().transpose(1, 2)
    errors = nn.functional.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="none")
    return (errors.sum(dim=1) / (labels != IGNORED).sum(dim=1).clamp(min=1)).mean()


def with_vocabulary_head(config: VlaConfig) -> VlaConfig:
    """Return `config` with the LLM's vocabulary output kept, which answering needs."""
    return dataclasses.replace(config, llm=dataclasses.replace(config.llm, keep_lm_head=True))


def _read_line(folder: Path, line: str, where: str) -> VqaSample:
    keys = ("image", "question", "answer")
    try:
        values = json.loads(line)
    except ValueError:
        values = None
    found = [values.get(key) for key in keys] if isinstance(values, dict) else []
    texts = [text for text in found if isinstance(text, str) and text.strip()]
    if len(texts) != len(keys):
        raise DataError(
            "A line is no question",
            got=f"{where}: {line[:120]}",
            expected="a JSON object with texts for " + ", ".join(keys),
            fix="correct the line",
        )
    return VqaSample(folder / texts[0], texts[1], texts[2], where)


def _find_end(tokenizer: Any, name: str) -> int:
    for candidate in (name,) if name else _ENDS:
        index = tokenizer.token_to_id(candidate)
        if index is not None:
            return int(index)
    raise _wrong("end_token", repr(name), "a token of the policy's tokenizer, such as </s>")


def _padded(values: list[int], length: int, fill: int) -> np.ndarray[Any, Any]:
    row = np.full(length, fill, dtype=np.int64)
    row[: len(values)] = values
    return row


def _wrong(name: str, got: object, expected: str) -> ConfigurationError:
    return ConfigurationError(
        f"Wrong value for vqa.{name}", got=got, expected=expected, fix="correct --set"
    )
