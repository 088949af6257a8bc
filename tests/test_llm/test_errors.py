"""The error tree: one root, stable codes, and whether a retry can help."""

from __future__ import annotations

import copy
import inspect
import pickle

import pytest

from llm import errors
from llm.errors import (
    ERROR_CODES,
    BadRequest,
    ConfigurationError,
    LLMError,
    ModelNotFound,
    NoModel,
    RateLimited,
)

TREE = [
    cls for _, cls in inspect.getmembers(errors, inspect.isclass) if issubclass(cls, LLMError)
]  # fmt: skip


def test_every_error_is_an_llm_error_with_a_code_of_its_own() -> None:
    codes = [cls.code for cls in TREE]
    assert len(set(codes)) == len(codes) == 18
    assert sorted(codes) == sorted(ERROR_CODES)


def test_the_picture_at_the_top_of_the_file_shows_every_class_and_whether_to_retry() -> None:
    assert errors.__doc__ is not None
    for cls in TREE:
        (line,) = [
            each
            for each in errors.__doc__.splitlines()
            if each.split("-- ")[-1].split()[:1] == [cls.__name__]
        ]
        if "(" in line:
            assert ("never retried" in line) is not cls.retryable, cls


@pytest.mark.parametrize("cls", TREE)
def test_an_error_keeps_its_message_and_survives_being_copied_and_pickled(cls: type[LLMError]) -> None:
    error = cls("the model is gone")
    for twin in (copy.copy(error), pickle.loads(pickle.dumps(error))):
        assert (type(twin), str(twin)) == (cls, "the model is gone")


def test_a_rate_limit_says_how_long_to_wait_and_whether_waiting_helps() -> None:
    error = RateLimited("slow down", retry_after=2.5)
    assert (error.retry_after, error.quota) == (2.5, False)
    assert RateLimited("paid out", quota=True).quota
    assert pickle.loads(pickle.dumps(error)).retry_after == 2.5


def test_what_is_a_special_case_of_what() -> None:
    assert issubclass(ModelNotFound, BadRequest)
    assert issubclass(NoModel, ConfigurationError)
    assert not issubclass(LLMError, OSError | ValueError | TimeoutError)
