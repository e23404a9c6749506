"""The bridge's variables as pydantic-settings reads them: vCenters also as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, EnvSettingsSource

from ..domain.subjects import is_vcenter_name

VCENTERS = "BRIDGE_VCENTERS"
VCENTER_NAME_RULE = "it must be letters and digits, in words joined by single underscores, at most 63 characters"
_SECRETS = ("password", "password_file")
_JSON_FORM = f'{VCENTERS}: must be a JSON object of objects, like {{"lab": {{"url": "https://…", …}}}}'


def vcenter_variable(vcenter: str, key: str) -> str:
    """Return the name of the environment variable that sets `key` of a vCenter."""
    return f"{VCENTERS}__{vcenter}__{key}".upper()


class _JsonObject(list[tuple[str, Any]]):
    """A JSON object as it is written: a key can occur twice."""


class VariablesSource(EnvSettingsSource):
    """The source of settings that reads `variables`, and reports what the JSON of `BRIDGE_VCENTERS` gives twice."""

    def __init__(self, settings_class: type[BaseSettings], variables: Mapping[str, str]) -> None:
        super().__init__(settings_class)
        self.env_vars = {name.lower(): value for name, value in variables.items()}
        self.mistakes: list[str] = []
        self.json_names: set[str] = set()

    def decode_complex_value(self, field_name: str, field: FieldInfo, value: Any) -> Any:
        """Return the keys of each vCenter by its lower-case name. No message quotes the JSON: it holds secrets."""
        if field_name != "vcenters":
            return super().decode_complex_value(field_name, field, value)
        vcenters: dict[str, dict[str, str | None]] = {}
        names: set[str] = set()
        for name, keys in self._parse_json(value):
            if name in names:
                self.mistakes.append(f"{VCENTERS}: {name!r} is given twice in its JSON; keep one")
            elif not is_vcenter_name(name.lower()):
                self.mistakes.append(f"{VCENTERS}: {name!r} can't name a vCenter: {VCENTER_NAME_RULE}")
            else:
                self.json_names.add(name.lower())
                self._add_keys(vcenters.setdefault(name.lower(), {}), name, keys)
            names.add(name)
        return {name: {key: text for key, text in keys.items() if text} for name, keys in vcenters.items()}

    def _parse_json(self, text: str) -> list[tuple[str, _JsonObject]]:
        try:
            tree = json.loads(text, object_pairs_hook=_JsonObject)
        except (ValueError, RecursionError) as error:
            self.mistakes.append(f"{_JSON_FORM}: {error}")  # the error has a position and a reason, no content
            return []
        if isinstance(tree, _JsonObject) and all(isinstance(keys, _JsonObject) for _, keys in tree):
            return tree
        self.mistakes.append(_JSON_FORM)
        return []

    def _add_keys(self, vcenter: dict[str, str | None], name: str, keys: _JsonObject) -> None:
        for key, value in keys:
            variable, lower = vcenter_variable(name, key), key.lower()
            text = value if isinstance(value, str | None) else json.dumps(value)
            if isinstance(value, list):
                self.mistakes.append(f"{variable}: must be one plain value in the JSON of {VCENTERS}")
            elif lower in vcenter:
                self.mistakes.append(f"{variable}: given twice in the JSON of {VCENTERS}; keep one")
            elif text and lower in _SECRETS and variable.lower() in self.env_vars:
                self.mistakes.append(f"{variable}: given twice, here and in the JSON of {VCENTERS}; keep one")
            else:
                vcenter[lower] = text
                continue
            vcenter.setdefault(lower, None)
