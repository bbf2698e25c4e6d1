"""The YAML in front of a card, with words as the Hub reads them. Knows YAML; no card and no field."""

import re

import yaml


class Loader(yaml.SafeLoader):
    """YAML 1.2's booleans: yes, no, on and off are words. `language: no` is Norwegian."""


Loader.yaml_implicit_resolvers = {
    letter: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:bool"]
    for letter, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"true|True|TRUE|false|False|FALSE"), list("tTfF"))
