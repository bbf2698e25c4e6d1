"""The settings of `method: distill`: a student trained on a teacher's predictions or on its answers. Knows no model."""

import re
from ipaddress import ip_address
from typing import ClassVar, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from hubplugin.manifest.base import Real, Settings, Text, Whole
from hubplugin.manifest.base import fault as _fault
from hubplugin.manifest.steps.training.recover import Recover

# a manifest from elsewhere names an endpoint too: it must not be able to send it HF_TOKEN or any other secret
KEY = r"TEACHER_[A-Z0-9_]+"


class Answers(Settings):
    """What a teacher is asked to answer: the rows of `data` as prompts, or the beginnings of its texts."""

    endpoint: Text | None = Field(
        default=None,
        description="The URL of an OpenAI-compatible server that is the teacher. Left out: the teacher is loaded here.",
        examples=["http://127.0.0.1:8000/v1"],
    )
    model: Text | None = Field(
        default=None, description="The teacher's name at the endpoint.", examples=["my-org/teacher"]
    )
    key: Text | None = Field(
        default=None,
        description="The name of the environment variable that holds the endpoint's API key, which begins with "
        "TEACHER_. Left out: none is sent.",
        examples=["TEACHER_API_KEY"],
    )
    max_tokens: Whole = Field(
        default=256, ge=1, le=131072, description="The greatest number of tokens of an answer.", examples=[256]
    )
    temperature: Real = Field(
        default=1.0, ge=0, le=2, description="The temperature of sampling. 0: the likeliest tokens.", examples=[0.7]
    )
    seed: Whole = Field(default=0, ge=0, description="A seed of sampling.", examples=[1])
    prompt_tokens: Whole = Field(
        default=64,
        ge=1,
        le=131072,
        description="A number of tokens of a text that its continuation is asked for. Conversations are asked whole, "
        "up to their last question.",
        examples=[64],
    )

    @field_validator("endpoint")
    @classmethod
    def _is_url(cls, value: str | None) -> str | None:
        if value is None:
            return None
        try:
            url = urlsplit(value)
            known = url.scheme in ("http", "https") and bool(url.hostname) and (url.port or 80) > 0
        except ValueError:
            known = False
        if not known:
            raise _fault("is no http URL", "write something like http://127.0.0.1:8000/v1")
        if "@" in url.netloc or url.query:  # the manifest travels into report and card
            raise _fault("carries a password or a query", "remove it, and name a variable with the key in `key:`")
        return value

    @model_validator(mode="after")
    def _fits(self) -> "Answers":
        if self.endpoint is None:
            for key in ("model", "key"):
                if getattr(self, key) is not None:
                    raise _fault("belongs to an endpoint, and none is named", "remove it, or name `endpoint:`", key)
            return self
        if self.model is None:
            raise _fault("an endpoint needs the name of a model", "write `model:` as its list of models has it")
        if self.key is not None and not re.fullmatch(KEY, self.key):
            what = "is no variable that is set for teachers alone; a key itself must not stand in a manifest"
            raise _fault(what, "write the name of a variable that begins with TEACHER_, such as TEACHER_API_KEY", "key")
        if self.key and self.endpoint.startswith("http:") and not _is_this_machine(urlsplit(self.endpoint).hostname):
            raise _fault("would be sent without encryption", "use an https endpoint", "key")
        return self


class Distill(Recover):
    """Distillation: a student trained on a teacher's predictions, or on its answers to prompts."""

    paper: ClassVar[str] = "https://arxiv.org/abs/1503.02531"

    method: Literal["distill"] = Field(description="The method of this step.", examples=["distill"])  # type: ignore[assignment]
    student: Text | None = Field(
        default=None,
        description="The model that is trained, as `model` names one. Left out: what a prune step before it leaves, or "
        "the base itself, towards another teacher.",
        examples=["my-org/small", "./small"],
    )
    teacher: Text | None = Field(
        default=None,
        description="The model that is learnt from, as `model` names one. Left out: the base.",
        examples=["my-org/large"],
    )
    answers: Answers | None = Field(
        default=None,
        description="Learn from the teacher's answers alone, as text. Left out: from its predictions of every token.",
        examples=[{"max_tokens": 256, "temperature": 0.7}],
    )
    blocks: Whole = Field(
        default=0,
        ge=0,
        le=100,
        description="A number of epochs of each block on the teacher's hidden states, of at most 65536 tokens. Only "
        "for a student with the teacher's hidden size.",
        examples=[2],
    )
    distill: Real = Field(
        default=1,
        alias="epochs",
        ge=0,
        le=100,
        description="A number of epochs on the teacher's predictions or answers.",
        examples=[3],
    )
    top_k: Whole | None = Field(
        default=None,
        ge=1,
        description="The number of the teacher's most probable tokens in the loss. The others count as one. Left out: "
        "all of the vocabulary.",
        examples=[64],
    )

    @model_validator(mode="after")
    def _combines(self) -> "Distill":
        if self.answers is None:
            return self
        for key, why in (
            ("blocks", "answers hold no hidden states"),
            ("top_k", "answers hold one token at each place, and no others' probabilities"),
        ):
            if key in self.model_fields_set and getattr(self, key):
                raise _fault(why, "remove it, or remove answers", key)
        if self.answers.endpoint and self.teacher:
            raise _fault("the teacher is the model of the endpoint", "remove one of them", "teacher")
        return self

    @property
    def reads_predictions(self) -> bool:
        """Whether the teacher's probabilities are learnt from, so that it must have the student's tokens."""
        return self.answers is None


def _is_this_machine(host: str | None) -> bool:
    try:
        return host == "localhost" or ip_address(host or "").is_loopback
    except ValueError:
        return False
