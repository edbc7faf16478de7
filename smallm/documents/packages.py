"""Source `docs`: the documentation inside the installed machine-learning packages.

The files are parsed, never imported. A document is what a manual shows on one page: a function, or
a class with its methods, or a module's introduction, or an .rst file.
"""

from __future__ import annotations

import ast
import gc
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path

from smallm.documents import Document, Dropped
from smallm.documents.prose import paragraphs
from smallm.errors import SmallmError
from smallm.settings import CorpusSettings

PACKAGES = {
    "datasets": "datasets",
    "numpy": "numpy",
    "optuna": "optuna",
    "scipy": "scipy",
    "sklearn": "scikit-learn",
    "torch": "torch",
    "transformers": "transformers",
}
"""Import name and distribution name of each package that is read."""
SKIPPED_FOLDERS = frozenset({"test", "tests", "testing", "__pycache__"})
LEAST_CHARACTERS = 200
FILES_PER_TASK = 8

IS_DOCUMENTATION = re.compile(r"doc", re.IGNORECASE)
Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
Page = tuple[str, list[str]]
HEEDS = ()


def describe() -> str:
    """Gives one line for `smallm corpus list`."""
    return f"prose in packages: {', '.join(sorted(PACKAGES))}"


def fingerprint(settings: CorpusSettings) -> Mapping[str, str]:
    """The versions of the packages that are read."""
    found = {name: _version(distribution) for name, distribution in PACKAGES.items()}
    installed = {name: release for name, release in found.items() if release}
    if not installed:
        raise SmallmError(f"source docs: none of its packages is installed: {', '.join(PACKAGES)}")
    return installed


def read(
    settings: CorpusSettings, dropped: Dropped, *, workers: int, scratch: Path | None = None
) -> Iterator[Document]:
    """Yields the documents of all packages, by package and path."""
    return read_packages(sorted(PACKAGES), dropped, workers=workers)


def read_packages(names: Iterable[str], dropped: Dropped, *, workers: int) -> Iterator[Document]:
    """Yields the documents of packages given by import name.

    A paragraph that stands in many places, as inherited descriptions do, is kept in the first.
    """
    seen: set[str] = set()
    for identifier, prose in _pages_of_all(_files(names, dropped), dropped, workers=workers):
        fresh = list(dict.fromkeys(each for each in prose if each not in seen))
        seen.update(fresh)
        if len(fresh) < len(prose):
            dropped.add("repeated paragraph", identifier, len(prose) - len(fresh))
        if sum(map(len, fresh)) >= LEAST_CHARACTERS:
            yield Document(identifier, "docs", "\n\n".join(fresh))
        else:
            dropped.add(f"less than {LEAST_CHARACTERS} characters of prose", identifier)


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _files(names: Iterable[str], dropped: Dropped) -> list[tuple[Path, str]]:
    """Each file to read with the name that stands for it: its path from the package's parent."""
    found = []
    for name in names:
        spec = find_spec(name)
        if spec is None or not spec.submodule_search_locations:
            dropped.add("package not installed", name)
            continue
        folder = Path(spec.submodule_search_locations[0])
        for path in sorted([*folder.rglob("*.py"), *folder.rglob("*.rst")]):
            relative = path.relative_to(folder)
            if not SKIPPED_FOLDERS.intersection(relative.parts[:-1]):
                found.append((path, f"{name}/{relative.as_posix()}"))
    return found


def _pages_of_all(
    files: list[tuple[Path, str]], dropped: Dropped, *, workers: int
) -> Iterator[Page]:
    """The pages of all files in order, read by spawned processes when there are several workers."""
    if workers <= 1:
        yield from _merged(map(_pages_of_file, files), dropped)
        return
    # Syntax trees hold no cycles: without the collector, parsing takes a third less.
    with ProcessPoolExecutor(workers, get_context("spawn"), gc.disable) as pool:
        try:
            results = pool.map(_pages_of_file, files, chunksize=FILES_PER_TASK)
            yield from _merged(results, dropped)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _merged(results: Iterable[tuple[list[Page], Dropped]], dropped: Dropped) -> Iterator[Page]:
    for pages, lost in results:
        dropped.merge(lost)
        yield from pages


def _pages_of_file(file: tuple[Path, str]) -> tuple[list[Page], Dropped]:
    """The pages of one file as paragraphs, each page with a name unique in its file."""
    path, name = file
    dropped = Dropped()
    times: Counter[str] = Counter()
    pages = []
    try:
        texts = list(_texts(path))
    except OSError as error:
        dropped.add("unreadable file", f"{name}: {error.strerror}")
        return [], dropped
    except (SyntaxError, ValueError, RecursionError) as error:
        dropped.add("file that does not parse", f"{name}: {type(error).__name__}: {error}")
        return [], dropped
    for label, docstrings in texts:
        if not docstrings:
            continue
        times[label] += 1
        place = f"{name}:{label}".removesuffix(":")
        identifier = place if times[label] == 1 else f"{place}#{times[label]}"
        pages.append((identifier, [each for text in docstrings for each in paragraphs(text)]))
    return pages, dropped


def _texts(path: Path) -> Iterator[Page]:
    """The raw documentation in a file, by the name of what it describes."""
    if path.suffix == ".rst":
        yield "", [path.read_text(encoding="utf-8")]
        return
    source = path.read_bytes()
    if b'"""' not in source and b"'''" not in source:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        tree = ast.parse(source)
    yield "", _docstring(tree)
    for statement in _flat(tree.body):
        if isinstance(statement, Definition):
            yield statement.name, list(_docstrings(statement))
        elif isinstance(statement, ast.Expr | ast.Assign | ast.AnnAssign) and statement.value:
            yield from _attached(statement)


def _docstring(node: Definition | ast.Module) -> list[str]:
    text = ast.get_docstring(node, clean=False)
    return [text] if text else []


def _flat(statements: Iterable[ast.AST]) -> Iterator[ast.AST]:
    """The statements, and those inside their `if`, `try`, `with` and loops; not in definitions."""
    for statement in statements:
        yield statement
        if not isinstance(statement, Definition):
            for part in ("body", "handlers", "orelse", "finalbody"):
                inner = getattr(statement, part, [])
                yield from _flat(inner if isinstance(inner, list) else [])


def _docstrings(node: Definition) -> Iterator[str]:
    """The docstrings of a definition and of all inside it, after what its decorators say."""
    for decorator in node.decorator_list:
        yield from _documentation(decorator)
    yield from _docstring(node)
    for statement in _flat(node.body):
        if isinstance(statement, Definition):
            yield from _docstrings(statement)


def _attached(statement: ast.Expr | ast.Assign | ast.AnnAssign) -> Iterator[Page]:
    """Documentation given by a call, `add_docstr(torch.abs, "...")`, or by a name that says so."""
    value = statement.value
    if value is None:
        return
    if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
        label = statement.targets[0].id
        if IS_DOCUMENTATION.search(label):
            yield label, _long_strings(value)
            return
    if isinstance(value, ast.Call) and (found := _documentation(value)):
        names = [each for each in _strings(value) if each.isidentifier()]
        yield ".".join(names) or ast.unparse(value.args[0]), found


def _documentation(node: ast.expr) -> list[str]:
    """The texts in a call of a function that is named as a maker of documentation."""
    if isinstance(node, ast.Call) and IS_DOCUMENTATION.search(ast.unparse(node.func)):
        return _long_strings(node)
    return []


def _long_strings(node: ast.AST) -> list[str]:
    return [each for each in _strings(node) if "\n" in each]


def _strings(node: ast.AST) -> list[str]:
    """The string constants inside an expression, as they stand in the file."""
    found = [
        each
        for each in ast.walk(node)
        if isinstance(each, ast.Constant) and isinstance(each.value, str)
    ]
    found.sort(key=lambda each: (each.lineno, each.col_offset))
    return [str(each.value) for each in found]
