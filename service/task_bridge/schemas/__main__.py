"""Write the schema files (`make schemas`)."""

from pathlib import Path

from . import format_document
from .models import build_schema_files

if __name__ == "__main__":
    for name, schema in build_schema_files().items():
        Path(__file__).with_name(f"{name}.json").write_text(format_document(schema), encoding="utf-8")
