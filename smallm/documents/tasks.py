"""A corpus as tasks that machines can read apart: one for each dump file, else one for each source.

Read one after another they give the documents of `source(...).read`, with the same ids.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

from smallm.documents import Document, Draft, Dropped, mixture, paths, source
from smallm.settings import CorpusSettings


@dataclass(frozen=True)
class Task:
    """Some of a corpus: its settings, and what its names lack beside those of the whole."""

    settings: CorpusSettings
    folder: str = ""
    """Where the file lies below the corpus' path."""
    part: str | None = None
    """The part of a mixture."""

    def read(self, dropped: Dropped) -> Iterator[Document | Draft]:
        """Yields the documents of this task, on a machine of its own."""
        for item in source(self.settings.source).read(self.settings, dropped, workers=1):
            name = str(PurePosixPath(self.folder) / item.id) if self.folder else item.id
            if self.part is None:
                yield replace(item, id=name)
            else:
                yield replace(item, id=f"{self.part}/{name}", source=self.part)

    def named(self, dropped: Dropped) -> Dropped:
        """What was dropped, as reading the whole corpus would name it."""
        dropped = dropped.below(self.folder) if self.folder else dropped
        return dropped if self.part is None else dropped.under(self.part)


def tasks(settings: CorpusSettings, dropped: Dropped) -> list[Task]:
    """The tasks of a corpus in its order; what is no file to read is counted now."""
    if settings.source == "mixture":
        return [
            replace(task, part=part.name)
            for part in mixture.parts(settings)
            for task in tasks(part.settings, dropped)
        ]
    if settings.path is None:
        return [Task(settings)]
    root = paths.root_of(settings)
    found = []
    for path in paths.files_below(root, dropped):
        folder = str(PurePosixPath(paths.name_of(path, root)).parent)
        own = settings.model_copy(update={"path": str(path)})
        found.append(Task(own, "" if folder == "." else folder))
    return found
