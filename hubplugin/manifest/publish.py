"""The settings of `publish:`: repos, branches and tags as patterns, and who may see what is published.

Knows names as the Hub takes them. Knows no Hub and no model.
"""

import re
from typing import Literal

from pydantic import Field, StrictBool, field_validator, model_validator

from hubplugin.manifest.base import Settings, Text
from hubplugin.manifest.base import fault as _fault

MAIN = "main"
VARIANT = "{variant}"


def fill(pattern: str, model: str, variant: str) -> str:
    """The name that a pattern of `publish:` means for one variant."""
    return pattern.replace("{model}", model).replace(VARIANT, variant)


def is_ref(name: str) -> bool:
    """Whether the Hub takes a name for a branch or a tag: git's rules, and nothing that reads as a commit."""
    wrong = r"\.\.|//|/\.|\.lock(/|$)|[./]$|^refs/|^HEAD$|^[0-9a-f]{7,40}$"
    return bool(re.fullmatch(r"\w[\w./+-]{0,199}", name, re.ASCII)) and not re.search(wrong, name)


class Sign(Settings):
    """A signature of what is published, in model.sig."""

    key: Text = Field(
        description="The file of a private key, relative to the manifest: PEM, of an elliptic curve (P-256, P-384 or "
        "P-521). It never leaves this machine. Of an encrypted one the password is taken from the environment variable "
        "HUBPLUGIN_SIGNING_PASSWORD.",
        examples=["../keys/signing.pem"],
    )


class Publish(Settings):
    """Where variants are published."""

    repo: str = Field(
        description="The repo of each variant, in quotes. `{model}` and `{variant}` are filled in.",
        examples=["owner/{model}-{variant}"],
    )
    branch: Text | None = Field(
        default=None,
        description="The branch of each variant, in quotes, filled in like repo. With `{variant}` in it, all variants "
        "may go to one repo. The Hub shows and searches the card of main alone. Left out: main.",
        examples=["{variant}"],
    )
    tag: Text | None = Field(
        default=None,
        description="A tag for what is published, in quotes, filled in like repo. A tag that is there never moves: "
        "publishing other files under it is refused. Left out: no tag.",
        examples=["v1.0"],
    )
    pull_request: StrictBool = Field(
        default=False,
        description="Open a pull request in each repo, which must be there, in place of a commit to main: for repos of "
        "others. Published again, an open one is updated.",
        examples=[True],
    )
    private: StrictBool = Field(default=True, description="Create private repos.", examples=[False])
    gated: Literal["auto", "manual"] | None = Field(
        default=None,
        description="The gate of the repos: auto lets in whoever asks, manual whom you accept. A gate that is there is "
        "never loosened. Left out: auto where the base is gated, else none.",
        examples=["manual"],
    )
    collection: Text | None = Field(
        default=None,
        max_length=59,
        description="The title of a collection of all variants. Left out: no collection.",
        examples=["My models, compressed"],
    )
    sign: Sign | None = Field(
        default=None,
        description="A private key that what is published is signed with, in the format of OpenSSF's model-signing: "
        "all files but the card, in model.sig. Signatures by a certificate or an identity (keyless) are not made. Left "
        "out: nothing is signed.",
        examples=[{"key": "../keys/signing.pem"}],
    )
    accept_license: StrictBool = Field(
        default=False,
        description="Accept the licence of a gated base, or of one that binds derivatives.",
        examples=[True],
    )
    accept_private_base: StrictBool = Field(
        default=False,
        description="Accept that public variants show what is made from a private base.",
        examples=[True],
    )

    @field_validator("repo")
    @classmethod
    def _is_repo(cls, value: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", fill(value, "m", "v"), re.ASCII):
            raise _fault(f"{value!r} is no repo on the Hub", 'write it as "owner/{model}-{variant}"')
        return value

    @field_validator("branch", "tag")
    @classmethod
    def _is_ref(cls, value: str | None) -> str | None:
        if value is not None and not is_ref(fill(value, "m", "v")):
            raise _fault(f"{value!r} is no name that git takes", 'write it as "{variant}" or "v1.0"')
        return value

    @model_validator(mode="after")
    def _fit_together(self) -> "Publish":
        for_each = VARIANT in self.repo.split("/")[1]
        if not for_each and VARIANT not in (self.branch or ""):
            what = "without {variant} every variant would go to the same repo"
            raise _fault(what, 'write it as "owner/{model}-{variant}", or add branch: "{variant}"', "repo")
        if self.tag and not for_each and VARIANT not in self.tag:
            what = "without {variant} every variant would have the same tag, in one repo"
            raise _fault(what, 'write it as "{variant}-v1.0"', "tag")
        if self.tag and self.tag == (self.branch or MAIN):
            what = "a tag and a branch of one name: which of them a revision means, clients decide differently"
            raise _fault(what, f'use another tag, such as "{self.tag}-v1.0"', "tag")
        if self.pull_request:
            for key, (what, fix) in _NOT_PULLED.items():
                if getattr(self, key) is not None:
                    raise _fault(what, fix, key)
        return self


# what a pull request cannot come with
_NOT_PULLED = {
    "branch": ("a pull request goes to main", "remove branch, or pull_request"),
    "tag": ("what a pull request holds is not published before its repo's owner merges it", "remove tag; tag it then"),
    "gated": ("only a repo's owner can gate it, and a pull request is for repos of others", "remove gated"),
    "collection": ("a collection is made under the name of a repo's owner, here of others", "remove collection"),
}
