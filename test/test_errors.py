"""One tree of errors, each with one message that says what to do."""

from __future__ import annotations

import pickle

import pytest

from vla_align_ros import errors


def test_message_says_what_was_got_what_was_expected_and_how_to_mend_it():
    error = errors.BundleError(
        "bundle exists", got="/tmp/x", expected="a new path", fix="remove it"
    )
    assert str(error) == "bundle exists: got /tmp/x; expected a new path; fix: remove it"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"got": 0}, "got 0"),
        ({"got": "", "fix": "give a name"}, "got ; fix: give a name"),
        ({"expected": ["a"]}, "expected ['a']"),
    ],
)
def test_message_leaves_out_what_is_not_known(arguments, text):
    assert str(errors.VlaAlignError(**arguments)) == text
    assert str(errors.VlaAlignError("it broke", **arguments)) == f"it broke: {text}"


def test_message_can_be_logged_and_published_whatever_text_a_file_brought():
    text = str(errors.BundleError("it is \udcff", got="\ud800", fix="grüße"))
    assert text.encode().decode() == "it is \\udcff: got \\ud800; fix: grüße"


@pytest.mark.parametrize("name", errors.__all__)
def test_every_error_is_one_of_ours_and_survives_another_process(name):
    error = getattr(errors, name)("it broke", got=1, expected=2, fix="mend it")
    assert isinstance(error, errors.VlaAlignError)
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), copy.fix) == (type(error), str(error), "mend it")


def test_docstring_draws_every_public_error():
    assert all(f"── {name} " in errors.__doc__ for name in errors.__all__)
    public = {name for name, value in vars(errors).items() if isinstance(value, type)}
    assert public == set(errors.__all__)


def test_normalisation_errors_are_contract_errors():
    assert issubclass(errors.NormalizationError, errors.ContractError)
    assert issubclass(errors.NonFiniteError, errors.ContractError)
