"""Old records are read as the event they have become: a step a version, from one wire form to the next."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from outbox.errors import CatalogError, ConfigurationError, UndecodableRecord
from outbox.record import wire_type

Fields = dict[str, Any]
"""A payload as the wire has it: names are aliases, a UUID, Decimal or date is text."""

Step = Callable[[Fields], Fields]


@runtime_checkable
class Upcastable(Protocol):
    """What a serializer needs besides, so that its old payloads can be raised to a newer version."""

    def fields(self, payload: bytes) -> Fields:
        """The fields of `payload`, whatever class wrote it. Raises UndecodableRecord."""
        ...

    def payload(self, fields: Fields) -> bytes:
        """The bytes that `deserialize` reads as these fields. Raises TypeError or ValueError."""
        ...


@dataclass(frozen=True, slots=True)
class Versions:
    """The name and version of one event class, and the steps that lead to it from older ones."""

    name: str
    newest: int
    steps: dict[int, Step]
    """By the version that they raise by one."""

    def add(self, from_version: int, step: Step) -> None:
        """Raises ConfigurationError for a version that is not below the class's, CatalogError for a second
        step from the same version."""
        what = getattr(step, "__qualname__", repr(step))
        given: object = from_version
        if isinstance(given, bool) or not isinstance(given, int) or given < 1:
            raise ConfigurationError(
                f"{what}: from_version is {given!r}; it is the version that the step reads, from 1 on"
            )
        if from_version >= self.newest:
            raise ConfigurationError(
                f"{what} reads {wire_type(self.name, from_version)}, but the class is version {self.newest}; "
                f"raise the class's version to {from_version + 1} first, or correct from_version"
            )
        if from_version in self.steps:
            raise CatalogError(
                f"{wire_type(self.name, from_version)} has an upcast already; {what} cannot be a second one"
            )
        self.steps[from_version] = step

    def older(self) -> list[int]:
        """The versions below the class's that can be read. Raises CatalogError where a step is missing."""
        if not self.steps:
            return []
        oldest = min(self.steps)
        for version in range(oldest, self.newest):
            if version not in self.steps:
                raise CatalogError(
                    f"{wire_type(self.name, oldest)} has an upcast, but from version {version} to "
                    f"{version + 1} none leads on to {wire_type(self.name, self.newest)}; add one with "
                    f"upcast(from_version={version})"
                )
        return list(range(oldest, self.newest))

    def raise_to_newest(self, written: int, payload: bytes, serializer: Upcastable) -> bytes:
        """`payload` of version `written` as the newest version has it. Raises UndecodableRecord."""
        fields = serializer.fields(payload)
        version = written
        try:
            for version in range(written, self.newest):
                fields = self.steps[version](fields)
                if not isinstance(fields, dict):
                    raise TypeError(
                        f"it returned a {type(fields).__name__} instead of the next form's fields"
                    )
            return serializer.payload(fields)
        except Exception as error:
            raise UndecodableRecord(
                f"the upcast of {wire_type(self.name, version)} failed with {type(error).__name__}: {error}"
            ) from error


def parse(type_: str) -> tuple[str, int] | None:
    """`order.placed.v2` → name and version; None for what is no wire type."""
    name, found, version = type_.rpartition(".v")
    if not (found and name and version.isascii() and version.isdigit()) or len(version) > 9:
        return None
    return name, int(version)


def is_newer(type_: str, known: Mapping[str, int]) -> int | None:
    """The newest known version of the same name, if `type_` is a later one."""
    parsed = parse(type_)
    if parsed is None:
        return None
    newest = known.get(parsed[0])
    return newest if newest is not None and parsed[1] > newest else None
