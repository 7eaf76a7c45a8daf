"""Settings in YAML files, read strictly: a value by its field's type, each mistake with its line.

YAML itself guesses: `no` is false, 012 is ten, 1:30 is ninety, an empty value is nothing, and the last of two equal
keys wins. None of this happens here: PyYAML gives the tree of what is written, and `values` reads each text by the
type that the field declares.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from ldm_vae.config.fields import FieldInfo, all_fields, record_fields, row_field, sections
from ldm_vae.config.names import did_you_mean
from ldm_vae.config.rules import FieldError, Origin
from ldm_vae.config.values import NONE, read_value

_PLAIN = re.compile(r"[A-Za-z0-9_./][A-Za-z0-9_./+-]*")
_TEXT = {"tag:yaml.org,2002:str", "tag:yaml.org,2002:seq", "tag:yaml.org,2002:map"}


@dataclass
class Document:
    """What a file says: values by dotted name, and the line that each is in."""

    where: str
    """What messages call the file."""
    values: dict[str, Any] = field(default_factory=dict)
    """The value of each field, by its dotted name."""
    lines: dict[str, int] = field(default_factory=dict)
    """The line that each field's value is in."""
    row: list[Document] = field(default_factory=list)
    """What each entry of the file's row of stages says."""

    @property
    def origins(self) -> dict[str, Origin]:
        """Where each value comes from: the file and the line."""
        return {name: Origin(name, self.where, line) for name, line in self.lines.items()}

    def error(self, line: int, message: str) -> ValueError:
        """Return the error about what stands in a line."""
        return ValueError(f"{self.where}, line {line}: {message}")


def read_document(path: Path, options: type, *, where: str | None = None) -> Document:
    """Read a YAML file of settings.

    Args:
        path: The file, in UTF-8 (or UTF-16 with its mark).
        options: The dataclass that the settings are for.
        where: What messages call the file, if not by its path.

    Raises:
        ValueError: In one line with the line number, for whatever isn't a setting with its value.
    """
    document = Document(where=where or str(path))
    root = _compose(_text(path, document), document)
    if not isinstance(root, MappingNode):
        raise ValueError(f"{document.where} holds no sections; it needs keys such as `model:` and `train:`")
    _read_section(root, options, section="", document=document)
    return document


def _text(path: Path, document: Document) -> str:
    content = path.read_bytes()
    utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return content.decode("utf-16" if utf16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise document.error(line, "this is not UTF-8 text; save the file as UTF-8") from None


def _compose(text: str, document: Document) -> Node | None:
    """The tree of what is written, without any value read."""
    try:
        return yaml.compose(text, Loader=yaml.BaseLoader)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise document.error(line, f"the character {chr(int(error.character))!a} can't stand in YAML") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = " ".join(part for part in (error.context, error.problem) if part)
        if (
            isinstance(error, yaml.composer.ComposerError)
            and error.context == "expected a single document in the stream"
        ):
            problem = "a second document begins here; a file holds one"
        raise document.error(mark.line + 1 if mark else 1, f"this is no YAML: {problem}") from None
    except RecursionError:
        raise ValueError(f"{document.where} is nested too deep to be settings") from None


def _read_section(node: MappingNode, options: type, *, section: str, document: Document) -> None:
    known = {part.name: part for part in sections(options)}
    seen: dict[str, int] = {}
    for key_node, value_node in node.value:
        key, line = _key(key_node, document), key_node.start_mark.line + 1
        name = f"{section}.{key}" if section else key
        if key in seen:
            raise document.error(line, f"'{name}' stands in line {seen[key]} already; a key is given once")
        seen[key] = line
        if key in known and key and not section:
            if not isinstance(value_node, MappingNode):
                raise document.error(line, f"'{key}' is a section; it needs keys under it")
            _check_tag(value_node, document)
            _read_section(value_node, options, section=key, document=document)
        elif key == row_field(options) and not section:
            document.row = _read_row(value_node, options, name=key, where=document.where)
        elif (info := all_fields(options).get(name)) is not None and (section or "." not in key):
            document.lines[name] = line
            try:
                document.values[name] = _read_node(value_node, info, document)
            except FieldError as error:
                raise ValueError(error.told(document.origins)) from None
        else:
            raise document.error(line, f"unknown key '{name}'{_hint(key, options, section=section)}")


def _read_row(node: Node, options: type, *, name: str, where: str) -> list[Document]:
    """Read a list whose entries have sections of their own."""
    row = []
    for entry in node.value if isinstance(node, SequenceNode) else [node]:
        document = Document(where=where)
        _check_tag(entry, document)
        if not isinstance(entry, MappingNode):
            line = entry.start_mark.line + 1
            raise document.error(line, f"'{name}' is a list of parts, each with sections, as in `- train: {{...}}`")
        _read_section(entry, options, section="", document=document)
        if document.row:
            raise document.error(entry.start_mark.line + 1, f"'{name}' stands within '{name}'; put all into one list")
        row.append(document)
    return row


def _key(node: Node, document: Document) -> str:
    line = node.start_mark.line + 1
    if not isinstance(node, ScalarNode):
        raise document.error(line, "a key must be a word")
    _check_tag(node, document)
    if node.value == "<<" and node.style is None:
        raise document.error(line, "a merge (<<) is not read; write its keys out")
    return node.value


def _hint(key: str, options: type, *, section: str) -> str:
    """End of the message about an unknown key: where it belongs, or what is like it."""
    names = all_fields(options)
    full = next((name for name in names if key in (name, name.rpartition(".")[2])), None)
    if full is not None:
        parent, _, leaf = full.rpartition(".")
        return f"; write '{leaf}:' under '{parent}:'" if parent else f"; write '{leaf}:' without a section"
    known = [name.rpartition(".")[2] for name in names if name.rpartition(".")[0] == section]
    if not section:
        known += [part.name for part in sections(options) if part.name]
        known += [row] if (row := row_field(options)) else []
    return did_you_mean(key, known, otherwise="keys")


def _check_tag(node: Node, document: Document) -> None:
    if node.tag not in _TEXT:
        raise document.error(node.start_mark.line + 1, f"the tag {node.tag} is not read; write the value alone")


def _read_node(node: Node, info: FieldInfo, document: Document) -> Any:
    _check_tag(node, document)
    if isinstance(node, MappingNode):
        if info.record is None:
            raise FieldError(f"<{info.name}> is a setting without keys of its own; give it a value")
        return _read_record(node, info, document)
    if isinstance(node, ScalarNode):
        return _read_scalar(node, info, document)
    assert isinstance(node, SequenceNode)
    if not info.many:
        raise FieldError(f"<{info.name}> is a list; it takes one value")
    entries = []
    for entry in node.value:
        _check_tag(entry, document)
        if not isinstance(entry, ScalarNode):
            raise FieldError(f"<{info.name}> is a list within a list; it takes a list such as [a, b]")
        entries.append(_read_text(entry, info))
    return entries


def _read_record(node: MappingNode, info: FieldInfo, document: Document) -> dict[str, Any]:
    """Read a value that has parts, such as a ramp."""
    parts = record_fields(info)
    values: dict[str, Any] = {}
    for key_node, value_node in node.value:
        key, line = _key(key_node, document), key_node.start_mark.line + 1
        if key not in parts:
            raise FieldError(f"<{info.name}> has no '{key}'{did_you_mean(key, parts, otherwise='it has')}")
        if key in values:
            raise FieldError(f"<{info.name}> has '{key}' twice")
        document.lines[parts[key].name] = line
        values[key] = _read_node(value_node, parts[key], document)
    return values


def read_record(text: str, info: FieldInfo) -> dict[str, Any]:
    """Return the parts of a value that stand in one text: `{start: 0, end: 1, to_step: 1000}`.

    Raises:
        ValueError: The text is none.
    """
    document = Document(where="what was typed")
    node = _compose(text, document)
    if not isinstance(node, MappingNode):
        raise FieldError(f"<{info.name}> is '{text}'; write its parts in braces")
    return _read_record(node, info, document)


def _read_scalar(node: ScalarNode, info: FieldInfo, document: Document) -> Any:
    if info.many:
        if info.optional and node.style is None and node.value in NONE:
            return None
        raise FieldError(f"<{info.name}> is '{node.value}'; it must be a list, such as [{node.value or 'a, b'}]")
    return _read_text(node, info)


def _read_text(node: ScalarNode, info: FieldInfo) -> Any:
    if node.style is None and node.value == "":
        none = "null for nothing" if info.optional and not info.many else "a value"
        raise FieldError(f"<{info.name}> has no value; write {none}, or leave the line out")
    if node.style is None and node.start_mark.line != node.end_mark.line:
        raise FieldError(f"<{info.name}> goes over several lines; put it into one, or in quotes")
    return read_value(node.value, info, quoted=node.style is not None)


# Writing


def write_document(values: dict[str, Any]) -> str:
    """Return settings as YAML, nested by section, in a notation that `read_document` reads back."""
    return "".join(_lines(values, indent=""))


def _lines(values: dict[str, Any], *, indent: str) -> Iterator[str]:
    for name, value in values.items():
        if isinstance(value, list) and any(isinstance(entry, dict) for entry in value):
            yield f"{indent}{name}:\n"
            for entry in value:
                first, *rest = list(_lines(entry, indent=f"{indent}    ")) or [f"{indent}    {{}}\n"]
                yield from (f"{indent}  - {first.lstrip()}", *rest)
        elif isinstance(value, dict):
            yield f"{indent}{name}:\n"
            yield from _lines(value, indent=f"{indent}  ")
        else:
            yield f"{indent}{name}: {shown_value(value)}\n"


def shown_value(value: Any) -> str:
    """Return a value as it is written in a file."""
    if isinstance(value, list):
        return f"[{', '.join(shown_value(entry) for entry in value)}]"
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    if _PLAIN.fullmatch(value) and value not in NONE:
        return str(value)
    return yaml.dump(str(value), default_style='"', allow_unicode=True, width=float("inf")).rstrip("\n")
