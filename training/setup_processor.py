"""Builds the contract that training and robot share, from the data and for the network."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from training.config import RunConfig
from training.data.sources import Source, policy_spec
from training.data.statistics import dataset_statistics
from training.data.tokenizer import BOS, PAD, build_word_tokenizer
from training.model.checkpoint import holds_model
from training.model.openvla import build_openvla_tokenizer, find_folder, read_image_transform
from training.model.pixels import build_image_transform
from training.model.tokenizers import build_student_tokenizer
from vla_align_ros.contract.images import ImageTransform
from vla_align_ros.contract.normalize import Normalizer
from vla_align_ros.contract.processor import Processor
from vla_align_ros.contract.prompt import PromptTemplate, PromptTokenizer
from vla_align_ros.contract.spec import StateSpec
from vla_align_ros.errors import ConfigurationError

PROMPT = "{instruction}"
PROMPT_TOKENS = 16
PROCESSOR_FOLDER = "processor"  # of a run


def build_processor(
    config: RunConfig, sources: Sequence[Source], cache: Path | None = None
) -> Processor:
    """The processor of a run: statistics of its data; words and pixels as the network knows them.

    Of a run, of an OpenVLA checkpoint and of a pretrained language model the tokenizer is its own;
    a model from scratch gets the words of the data.
    """
    transform = find_transform(config)
    spec = policy_spec(
        sources,
        config.data,
        horizon=config.model.head.horizon,
        with_state=config.model.state is not None,
        committed=config.model.head.committed,
    )
    _check_state(config, spec.state)
    statistics = dataset_statistics(sources, config.data, cache_dir=cache)
    normalizers = {"action": Normalizer("quantile", statistics["action"])}
    if spec.state is not None:
        normalizers["state"] = Normalizer("quantile", statistics["state"])
    return Processor(spec, transform, normalizers, _build_tokenizer(config, sources))


def find_transform(config: RunConfig) -> ImageTransform:
    """How the student sees a picture: as its base does, else as its towers want it.

    Raises ConfigurationError if the data's pictures do not fit the towers.
    """
    _check_image_size(config)
    if holds_model(config.base):  # its towers go on seeing what they learnt to see
        return dataclasses.replace(_load_base(config).image_transform, crop=config.data.crop)
    if config.base is not None:
        return read_image_transform(find_folder(config.base), crop=config.data.crop)
    return build_image_transform(config.model.vision, crop=config.data.crop)


def _build_tokenizer(config: RunConfig, sources: Sequence[Source]) -> PromptTokenizer:
    if holds_model(config.base):  # whatever the new data say, its words stay the same tokens
        return _load_base(config).tokenizer
    if config.base is not None:
        return build_openvla_tokenizer(find_folder(config.base))
    if config.model.llm.pretrained is not None:
        return build_student_tokenizer(config.model.llm)
    words = build_word_tokenizer(task for source in sources for task in source.reader.tasks)
    return PromptTokenizer(
        words, PromptTemplate(PROMPT), PROMPT_TOKENS, bos_token=BOS, pad_token=PAD
    )


def _load_base(config: RunConfig) -> Processor:
    """The processor of the run that this one starts from."""
    return Processor.load(Path(str(config.base)).expanduser() / PROCESSOR_FOLDER)


def _check_state(config: RunConfig, state: StateSpec | None) -> None:
    """A network that learnt what each number of the state means can be told nothing else."""
    if not holds_model(config.base):
        return
    known = _load_base(config).spec.state
    if state != known:
        names = [", ".join(part.names) if part is not None else "none" for part in (state, known)]
        raise ConfigurationError(
            "The state is not the one of the run to start from",
            got=names[0],
            expected=names[1],
            fix="choose the feature that has it by --set data.state_key=NAME, or leave --base out",
        )


def _check_image_size(config: RunConfig) -> None:
    towers = sorted({tower.image_size for tower in config.model.vision})
    if towers != [config.data.image_size]:
        raise ConfigurationError(
            "The pictures do not fit the vision tower",
            got=f"data.image_size {config.data.image_size} px",
            expected=f"the towers' {towers} px",
            fix=f"--set data.image_size={towers[0]}"
            if len(towers) == 1
            else "give all the same size in the recipe",
        )
