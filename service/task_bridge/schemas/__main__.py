"""Writes the schema files anew: `make schemas`."""

from pathlib import Path

from . import written
from .models import schema_files

if __name__ == "__main__":
    for name, schema in schema_files().items():
        Path(__file__).with_name(f"{name}.json").write_text(written(schema), encoding="utf-8")
