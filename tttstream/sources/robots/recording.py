"""ROS 2 bags as files: one .mcap, or a folder of them; their topics, and the messages of one in order."""

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
    """What readers raise for a damaged or cut-off file."""
    found: list[type[Exception]] = [McapError, OSError, ValueError, EOFError, KeyError, IndexError, struct.error]
    found += [RuntimeError, TypeError, AssertionError]  # of lz4, and of lengths that make no sense
    try:
        from zstandard import ZstdError
    except ImportError:
        return tuple(found)
    return (*found, ZstdError)


DAMAGE = _damage()


@dataclass(frozen=True)
class Topic:
    """kind: of its messages, such as sensor_msgs/msg/Image. count: of them."""

    name: str
    kind: str
    count: int


class Stamped(NamedTuple):
    """A message with its times in nanoseconds: `log` when it was written down, `header` what its header says, 0 where
    it has none."""

    log: int
    header: int
    message: Any


class Recording:
    """A bag. truncated: set where a file is damaged or cut off; why: what is wrong with it.

    Raises SourceError for what is no bag, and for one in sqlite3 files.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.files = [path] if os.path.isfile(path) else listed(path, BAG)
        old = [file for file in self.files or listed(path, SQLITE) if file.suffix.lower() in SQLITE]
        if old:
            made = old[0].with_suffix(".mcap").name
            raise SourceError(
                f"{old[0].name} is a bag in sqlite3, and mcap is read here: `mcap convert {old[0].name} {made}` makes "
                "one of it"
            )
        self.truncated, self.why = False, ""
        self._summaries = [self._summary(file) for file in self.files]
        self.topics = self._topics()

    def _summary(self, file: Path) -> Any:
        """The index at the end of a file; None where it has none, as after a crash."""
        try:
            with open(file, "rb") as stream:
                summary = make_reader(stream).get_summary()
        except DAMAGE as error:
            with open(file, "rb") as stream:
                if stream.read(5) != b"\x89MCAP":
                    raise SourceError(f"{file.name} is no bag in mcap: it does not begin as one") from error
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
        """The topic of that name, or the only one of these kinds. what: it is asked for, for messages.

        Raises SourceError where there is none, several, or one of another kind.
        """
        fitting = [topic for topic in self.topics.values() if topic.kind in kinds]
        known = ", ".join(f"{topic.name} ({topic.kind})" for topic in fitting or self.topics.values()) or "no topic"
        if name is None:
            if len(fitting) != 1:
                raise SourceError(f"{self.path.name}: which topic has the {what}? It holds {known}")
            topic = fitting[0]
        elif name not in self.topics:
            raise SourceError(f"{self.path.name} has no topic {name}; it holds {known}")
        else:
            topic = self.topics[name]
        if topic.kind not in kinds:
            raise SourceError(
                f"{topic.name} of {self.path.name} is {topic.kind}, which has no {what} here; see {known}"
            )
        if not topic.count:
            raise SourceError(f"{topic.name} of {self.path.name} has no message")
        return topic

    def last(self, topic: str) -> int | None:
        """When the last message of a topic was written, in nanoseconds; None where that takes reading it all."""
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
        """The messages of a topic by the time at which they were written, from number `skip` on; None for one that
        cannot be decoded. Ends where the bag breaks off, and notes it."""
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
        """The messages of one file as they stand there, with its number; of all topics for None."""
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
    """The time in a message's header in nanoseconds, 0 where it has none."""
    stamp = getattr(getattr(message, "header", None), "stamp", None)
    return 0 if stamp is None else int(stamp.sec) * 1_000_000_000 + int(stamp.nanosec)


def _said(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
