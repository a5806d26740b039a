"""Hidden states of the token that names a thing, and what a picture alone tells of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor

from training.model import VlaOutput
from training.sight.attention import count_inserted, find_word, sequence_positions
from training.sight.features import run_batches, show_pictures
from training.sight.pictures import LabelledPictures
from vla_align_ros.contract.observation import Observation
from vla_align_ros.contract.processor import Processor
from vla_align_ros.errors import ConfigurationError

ASK = "pick up the {name}"
UNNAMED = "object"


def pick_tokens(model: Any, inputs: Mapping[str, Tensor], output: VlaOutput, index: int) -> Tensor:
    """Hidden states (L + 1, B, D) of the text token at `index` of input_ids, float32 on the CPU.

    The visual tokens stand between BOS and the text, so that in the network's sequence the token
    is that much further back: what the paper's own script overlooks.
    """
    assert output.hidden_states is not None
    ids, mask = inputs["input_ids"], inputs["attention_mask"].cpu()
    inserted = count_inserted(model, inputs, output.hidden_states[0].shape[1])
    queries = torch.full((len(ids), 1), index)
    rows = sequence_positions(queries, mask, inserted).squeeze(1).to(ids.device)
    batch = torch.arange(len(ids), device=ids.device)
    return torch.stack([state[batch, rows].float().cpu() for state in output.hidden_states])


def read_name_tokens(
    model: Any,
    processor: Processor,
    pictures: LabelledPictures,
    like: Observation,
    *,
    named: bool,
    size: int,
    device: torch.device,
) -> Tensor:
    """Hidden states (L + 1, n, D) of the last token of the thing's name, in the pictures' order.

    Each picture is asked "pick up the <label>", or "pick up the object" where not `named`: then
    only the picture can tell the labels apart.
    """
    order, found = [], list[Tensor]()
    for number, label in enumerate(pictures.names):
        members = np.flatnonzero(pictures.labels == number)
        order.append(members)
        word = label if named else UNNAMED
        instruction = ASK.format(name=word)
        index = find_word(processor.tokenizer, instruction, word, last=True)
        if index is None:
            raise ConfigurationError(
                "A label is no word",
                got=repr(label),
                expected="a name that stands in an instruction",
                fix="rename its folder",
            )
        shown = show_pictures(pictures.images[members], instruction, like)
        for inputs, output in run_batches(model, processor, shown, size, device):
            found.append(pick_tokens(model, inputs, output, index))
    back = torch.from_numpy(np.argsort(np.concatenate(order)))
    return torch.cat(found, dim=1)[:, back]


def choose_labels(
    pictures: LabelledPictures, wanted: Sequence[str], count: int
) -> LabelledPictures:
    """The pictures of `wanted` labels, or of `count` of them, spread evenly over their names.

    Raises:
        ConfigurationError: if a label is unknown, or there are not two of them with two pictures.
    """
    every = torch.linspace(0, len(pictures.names) - 1, min(max(count, 0), len(pictures.names)))
    chosen = wanted or [pictures.names[round(float(k))] for k in every]
    names = list(dict.fromkeys(chosen))
    unknown = [name for name in names if name not in pictures.names]
    if unknown or len(names) < 2:
        raise ConfigurationError(
            "Labels cannot be compared",
            got=", ".join(unknown or names) or "none",
            expected="two or more of " + ", ".join(pictures.names),
            fix="correct --labels or --label-count",
        )
    few = pictures.only(names)
    if min(np.bincount(few.labels, minlength=len(names))) < 2:
        raise ConfigurationError(
            "Labels cannot be compared",
            got=f"{len(few.images)} pictures of {len(names)} labels",
            expected="two pictures or more of each",
            fix="raise --per-label or --views, or leave labels out with --labels",
        )
    return few


def count_known(processor: Processor, names: Sequence[str]) -> int:
    """How many names the tokenizer tells apart: a policy's own vocabulary may lack most.

    By all that the name token has read, where unknown words in a row count as one.
    """
    read = set()
    for name in names:
        instruction = ASK.format(name=name)
        index = find_word(processor.tokenizer, instruction, name, last=True)
        if index is not None:
            ids = processor.tokenizer.encode(instruction)[0][: index + 1]
            read.add(tuple(token for token, _ in groupby(ids.tolist())))
    return len(read)
