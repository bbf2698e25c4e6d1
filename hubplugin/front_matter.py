"""The YAML in front of a card, with words as the Hub reads them. Knows YAML; no field of it."""

import re

import yaml

HEAD = re.compile(r"---[ \t]*\r?\n.*?\n---[ \t]*(\n|$)", re.DOTALL)  # from the first line of a card


class Loader(yaml.SafeLoader):
    """YAML 1.2's booleans: yes, no, on and off are words. `language: no` is Norwegian."""


Loader.yaml_implicit_resolvers = {
    letter: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:bool"]
    for letter, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"true|True|TRUE|false|False|FALSE"), list("tTfF"))


def behind(text: str) -> str:
    """A card's text without the YAML in front of it."""
    head = HEAD.match(text)
    return text[head.end() :] if head else text
