"""Reads ROS 2 bags: one .mcap file or a folder of them, their topics, and the messages of a topic in order."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tttstream.errors import DependencyError, SourceError
from tttstream.sources.listing import listed
from tttstream.sources.robots.paths import BAG, SQLITE

try:
    from mcap.exceptions import McapError
    from mcap.reader import McapReader, NonSeekingReader, make_reader
    from mcap_ros2.decoder import DecoderFactory
except ImportError as error:
    raise DependencyError("reading ROS 2 bags needs mcap-ros2-support: pip install 'tttstream[robots]'") from error

if TYPE_CHECKING:
    from mcap.records import Channel, Message, Schema


def _damage() -> tuple[type[Exception], ...]:
    """The exceptions that readers raise for a damaged or cut-off file."""
    found: list[type[Exception]] = [McapError, OSError, ValueError, EOFError, KeyError, IndexError, struct.error]
    found += [RuntimeError, TypeError, AssertionError]  # from lz4, and from invalid lengths
    try:
        from zstandard import ZstdError
    except ImportError:
        return tuple(found)
    return (*found, ZstdError)


DAMAGE = _damage()


@dataclass(frozen=True)
class Topic:
    """kind: the type of its messages, such as sensor_msgs/msg/Image. count: the number of messages."""

    name: str
    kind: str
    count: int


class Stamped(NamedTuple):
    """A message with its times in nanoseconds: `log` of the recording, `header` from its header, 0 if it has none."""

    log: int
    header: int
    message: Any


class Recording:
    """A bag. truncated: true if a file is damaged or cut off; why: the reason. Raises SourceError if the path is no
    bag, and for a bag in sqlite3 files.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.files = [path] if os.path.isfile(path) else listed(path, BAG)
        old = [file for file in self.files or listed(path, SQLITE) if file.suffix.lower() in SQLITE]
        if old:
            made = old[0].with_suffix(".mcap").name
            raise SourceError(
                f"{old[0].name} is a bag in sqlite3, which cannot be read: `mcap convert {old[0].name} {made}` "
                "converts it"
            )
        self.truncated, self.why = False, ""
        self._summaries = [self._summary(file) for file in self.files]
        self.topics = self._topics()

    def _summary(self, file: Path) -> Any:
        """The index at the end of a file; None if it has none, for example after a crash."""
        try:
            with open(file, "rb") as stream:
                summary = make_reader(stream).get_summary()
        except DAMAGE as error:
            with open(file, "rb") as stream:
                if stream.read(5) != b"\x89MCAP":
                    raise SourceError(f"{file.name} is no bag in mcap: its first bytes are wrong") from error
            self._note(file, f"it has no index ({_said(error)})")
            return None
        if summary is None or summary.statistics is None:
            return None
        return summary

    def _topics(self) -> dict[str, Topic]:
        counts: dict[str, int] = {}
        kinds: dict[str, str] = {}
        for file, summary in zip(self.files, self._summaries, strict=True):
            if summary is None:
                for _, schema, channel, _ in self._raw(file, None):
                    kinds[channel.topic] = "" if schema is None else schema.name
                    counts[channel.topic] = counts.get(channel.topic, 0) + 1
                continue
            for number, channel in summary.channels.items():
                schema = summary.schemas.get(channel.schema_id)
                kinds.setdefault(channel.topic, "" if schema is None else schema.name)
                count = summary.statistics.channel_message_counts.get(number, 0)
                counts[channel.topic] = counts.get(channel.topic, 0) + count
        return {name: Topic(name, kinds[name], counts[name]) for name in sorted(kinds)}

    def find(self, name: str | None, kinds: frozenset[str], what: str) -> Topic:
        """The topic with this name, or the only one of these kinds. what: its content, for error messages. Raises
        SourceError if there is none, several, or one of another kind.
        """
        fitting = [topic for topic in self.topics.values() if topic.kind in kinds]
        known = ", ".join(f"{topic.name} ({topic.kind})" for topic in fitting or self.topics.values()) or "no topic"
        if name is None:
            if len(fitting) != 1:
                raise SourceError(f"{self.path.name}: which topic has the {what}? It contains {known}")
            topic = fitting[0]
        elif name not in self.topics:
            raise SourceError(f"{self.path.name} has no topic {name}; it contains {known}")
        else:
            topic = self.topics[name]
        if topic.kind not in kinds:
            raise SourceError(
                f"{topic.name} of {self.path.name} is {topic.kind}, which has no {what}; it contains {known}"
            )
        if not topic.count:
            raise SourceError(f"{topic.name} of {self.path.name} has no message")
        return topic

    def last(self, topic: str) -> int | None:
        """The time of the last message of a topic in nanoseconds; None if finding it requires reading the whole bag."""
        for file, summary in zip(self.files[::-1], self._summaries[::-1], strict=True):
            if summary is None:
                return None
            with open(file, "rb") as stream:
                try:
                    found = next(make_reader(stream).iter_messages(topics=[topic], reverse=True), None)
                except DAMAGE:
                    return None
            if found is not None:
                return found[2].log_time
        return None

    def messages(self, topic: str, skip: int = 0) -> Iterator[Stamped | None]:
        """The messages of a topic in the order of recording, from number `skip` on; None for one that cannot be
        decoded. If the bag is cut off, the messages end there, and `truncated` is set."""
        decoders: dict[tuple[int, int], Callable[[bytes], Any]] = {}
        for file in self.files:
            for number, schema, channel, message in self._raw(file, topic):
                if skip:
                    skip -= 1
                    continue
                decode = decoders.get((number, channel.id))
                if decode is None:
                    decode = DecoderFactory().decoder_for(channel.message_encoding, schema)
                    if decode is None:
                        raise SourceError(
                            f"{channel.topic} is written as {channel.message_encoding} with a schema in "
                            f"{'none' if schema is None else schema.encoding}, expected cdr with ros2msg, as ROS 2 does"
                        )
                    decoders[number, channel.id] = decode
                try:
                    found = decode(message.data)
                except DAMAGE:
                    yield None
                    continue
                yield Stamped(message.log_time, _header(found), found)

    def _raw(self, file: Path, topic: str | None) -> Iterator[tuple[int, Schema | None, Channel, Message]]:
        """The encoded messages of one file, with its number; of all topics for None."""
        number = self.files.index(file)
        topics = None if topic is None else [topic]
        with open(file, "rb") as stream:
            reader: McapReader
            whole = self._summaries[number] is not None
            reader = make_reader(stream, validate_crcs=True) if whole else NonSeekingReader(stream, validate_crcs=True)
            messages = reader.iter_messages(topics=topics, log_time_order=whole)
            while True:
                try:
                    found = next(messages, None)
                except DAMAGE as error:
                    self._note(file, _said(error))
                    return
                if found is None:
                    return
                yield number, *found

    def _note(self, file: Path, why: str) -> None:
        self.truncated, self.why = True, self.why or f"{file.name} is damaged or cut off: {why}"


def _header(message: Any) -> int:
    """The time in the header of a message in nanoseconds, 0 if it has none."""
    stamp = getattr(getattr(message, "header", None), "stamp", None)
    return 0 if stamp is None else int(stamp.sec) * 1_000_000_000 + int(stamp.nanosec)


def _said(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
