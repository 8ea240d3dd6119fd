"""Receives the metrics of a round. The trainer writes them to Lightning's loggers; without one they are dropped."""

from __future__ import annotations

from collections.abc import Mapping


class LogSink:
    """Receives the metrics and texts that callbacks log. This class drops them."""

    def scalars(self, scalars: Mapping[str, float], step: int) -> None:
        """Log scalars, by tag.

        Args:
            scalars: Values by tag.
            step: Their step: a round, from 1, or a node's own local steps.
        """

    def text(self, tag: str, text: str, step: int = 0) -> None:
        """Log a text.

        Args:
            tag: Its name.
            text: Markdown.
            step: Its step.
        """
