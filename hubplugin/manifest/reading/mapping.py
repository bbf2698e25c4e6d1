"""A manifest given as a Python mapping: the YAML that says the same, which reports and cards hold.

Knows Python's own values and paths. Knows nothing of what a manifest may say.
"""

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

import yaml

from hubplugin.errors import ManifestError
from hubplugin.manifest.reading import yaml_file
from hubplugin.manifest.reading.yaml_file import YamlFile

PLACE = "manifest (mapping)"  # in place of a path, in errors
WIDTH = 100  # letters of a line, as in the manifests that people write


class _Dumper(yaml.SafeDumper):
    """SafeDumper that also takes paths and any mapping, and writes a value again where it stands twice."""

    def represent_data(self, data: Any) -> yaml.Node:
        if isinstance(data, Mapping):
            data = dict(data)
        elif isinstance(data, PurePath):
            data = str(data)
        elif isinstance(data, str):
            data = str.__str__(data)  # an enumeration's value
        return super().represent_data(data)

    def ignore_aliases(self, data: Any) -> bool:
        return True


def read(values: Mapping[str, Any]) -> YamlFile:
    """The mapping as YAML, in the order of its keys, and what that says. Raises ManifestError for other values."""
    try:
        text = yaml.dump(
            dict(values), Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=None, width=WIDTH
        )
    except (yaml.YAMLError, RecursionError) as error:
        raise ManifestError(PLACE, _cause(error), "use text, numbers, True, False, lists and mappings") from error
    return yaml_file.parse(text.encode("utf-8", "replace"), PLACE)


def _cause(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "holds itself, or is nested too deeply"
    value = error.args[-1]  # of a RepresenterError: what it cannot write
    return f"holds a value of the type {type(value).__name__}, which YAML has no word for"
