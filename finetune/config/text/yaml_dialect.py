"""YAML as configs have it: 3e-4 is a number, dates and ranges are text, no key is there twice."""

import re
from collections.abc import Hashable
from typing import Any

import yaml

from finetune.errors import ConfigError


class _UniqueKeys(yaml.constructor.BaseConstructor):
    """Constructor that rejects duplicate keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """Return a mapping; raise ``ConfigError`` for a key that is there twice."""
        keys: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                continue  # rejected below, with its position
            if key in keys:
                line = key_node.start_mark.line + 1
                raise ConfigError(f"duplicate key '{key}' in line {line}. Keep one.")
            keys.add(key)
        return super().construct_mapping(node, deep)


class TextLoader(_UniqueKeys, yaml.BaseLoader):
    """YAML loader that reads each value as text."""


class ConfigLoader(_UniqueKeys, yaml.SafeLoader):
    """YAML loader that reads 3e-4 as a number."""

    def construct_date(self, node: yaml.ScalarNode) -> str:
        """Return a date as text: no key takes a date, and a run may be named 2026-01-31."""
        return str(self.construct_scalar(node))

    def construct_int(self, node: yaml.ScalarNode) -> int | str:
        """Return 1:30 as text: it is a range and not 90, as in base 60."""
        return node.value if ":" in node.value else self.construct_yaml_int(node)

    def construct_float(self, node: yaml.ScalarNode) -> float | str:
        """Return 0:1.5 as text, as ``construct_int`` does."""
        return node.value if ":" in node.value else self.construct_yaml_float(node)


class ConfigDumper(yaml.SafeDumper):
    """YAML dumper that quotes strings which ``ConfigLoader`` would read as numbers."""


for _yaml in (ConfigLoader, ConfigDumper):
    _yaml.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
        list("-+0123456789."),
    )
ConfigLoader.add_constructor("tag:yaml.org,2002:timestamp", ConfigLoader.construct_date)
ConfigLoader.add_constructor("tag:yaml.org,2002:int", ConfigLoader.construct_int)
ConfigLoader.add_constructor("tag:yaml.org,2002:float", ConfigLoader.construct_float)
