"""Plain English out of documentation markup.

Docstrings (numpydoc, Google, reST and Markdown, mixed as they are found) and .rst files become
paragraphs of whole sentences; code, doctests, tables, signatures, formulas and references go.
"""

from __future__ import annotations

import html
import inspect
import re
import unicodedata
from collections.abc import Iterator

VERSION_NOTES = {"deprecated", "versionadded", "versionchanged"}
TITLED = {"admonition", "topic"}
ADMONITIONS = VERSION_NOTES | TITLED | {
    "attention", "caution", "danger", "hint", "important", "note", "seealso", "tip", "warning",
}  # fmt: skip
DIRECTIVE = re.compile(r"\s*\.\.(?: |$)(?:(?P<name>[\w:-]+)::\s*(?P<argument>.*))?")
VERSION = re.compile(r"v?\d+(\.\w+)*\.?(\s+|$)")
BLANK = re.compile(r"\s*$")
FENCE = re.compile(r"\s*(```|~~~)")
TO_NEXT_BLANK = re.compile(r"\s*(>>>|In \[\d+\]:|\+[-=]{2,}|\|.*\||=+(\s+=+)+\s*$)")
UNDERLINE = re.compile(r"\s*([-=~^\"*#+])\1{2,}\s*$")
LABEL = re.compile(r"\s*(?P<name>[A-Z][A-Za-z]*(?: [A-Za-z]+){0,2}):\s*$")

ENTRY_SECTION = re.compile(
    r"((other|additional|optional|required|keyword|keyword-only) )*"
    r"(arg|argument|attribute|input|kwarg|output|parameter|param|return|raise|yield|warn|receive)s?"
    r"|shape"
)
DROPPED_SECTION = re.compile(
    r"references?|see also|methods?|functions|classes|adapted from|environment|usage|example usage"
)
NAME_AND_TYPE = re.compile(r"[*`\w., ]+ : .*|[*`\w.]+")
NAME_BEFORE_TEXT = re.compile(r"(?:[^\s(]+ ?\(.*?\)|[*`\w.,]+(?: [*`\w.,]+){0,2}):(?:\s+|$)")

FIELD = re.compile(
    r":(?:param|parameter|arg|type|key|keyword|returns?|rtype|raises?|var|ivar|vartype|yields?)\b[^:]*:\s*"
)
TYPED_NAME = re.compile(r"[*`]*[a-z_]\w*[*`]* \((?:[^()]|\([^()]*\))*\):(?:\s+|$)")
BULLET = re.compile(r"(?:[-*+•]|\(?\d{1,2}[.)]|\(?[a-z]\)|#\.)\s+")
TERM = re.compile(r"(?:[*`'\"[]+[^\s*`'\"]+[*`'\"\]]+)(?: ?\([^)]*\))?\s*(?:--?|—|–|:)\s+(?=\S)")
PLAIN_NAME = re.compile(r"[*`]*[a-z_][\w.]*[*`]*\s?:\s+(?=\S)")
OUTCOME = re.compile(r"(?:Returns?|Yields?|Raises?)\s*:\s*")

SYMBOLS = {
    "times": "×", "cdot": "·", "pm": "±", "leq": "≤", "le": "≤", "geq": "≥", "ge": "≥", "neq": "≠",
    "ne": "≠", "approx": "≈", "sim": "~", "in": "∈", "infty": "∞", "ldots": "...", "dots": "...",
    "cdots": "...", "to": "→", "rightarrow": "→", "lfloor": "⌊", "rfloor": "⌋", "lceil": "⌈",
    "rceil": "⌉", "sum": "∑", "prod": "∏", "partial": "∂", "nabla": "∇", "ell": "l", "log": "log",
    "exp": "exp", "min": "min", "max": "max", "sin": "sin", "cos": "cos", "tanh": "tanh",
    "ln": "ln",
}  # fmt: skip
INLINE = [
    (re.compile(r"!\[[^\]]*\]\([^)]*\)"), ""),
    (re.compile(r"\[([^\]\[]+)\]\(\s*[^)\s]*\s*\)"), r"\1"),
    (re.compile(r"`([^`<]+?)\s*<[^`>]+>`_{1,2}"), r"\1"),
    (re.compile(r"(\[#?\w+\])_(?!\w)"), r"\1"),
    (re.compile(r"\[`+~[\w.]*?(\w+)`+\]"), r"\1"),
    (re.compile(r"\[`+[~!]?([^`]+)`+\]"), r"\1"),
    (re.compile(r"`+[~!]?([^`]+?)`+_{0,2}(?!\w)"), r"\1"),
    (re.compile(r"\*\*(\S|\S.*?\S)\*\*"), r"\1"),
    (re.compile(r"(?<![\w*])\*([^\s*]|[^\s*][^*]*?[^\s*])\*(?![\w*])"), r"\1"),
    (re.compile(r"(?<!\w)\|([A-Za-z][\w ]*)\|(?!\w)"), r"\1"),
    (
        re.compile(r"</?(?:tip|br|b|i|em|strong|code|tt|p|a|ul|li|sub|sup|small)\b[^<>]*>", re.I),
        " ",
    ),
    (re.compile(r"\[!(?:TIP|NOTE|WARNING|IMPORTANT|CAUTION)\]"), ""),
    (re.compile(r"\\([*_ `|])"), r"\1"),
    (re.compile(r"\s*\(\s*\)(?=[\s.,;])(?<![\w]\(\))"), ""),
    (re.compile(r"(?<!\S):(?:class|func|meth|mod|attr|ref|obj|data|exc|term|doc):\s*(?=\w)"), ""),
    (re.compile(r"\s+"), " "),
    (re.compile(r" (?=[.,;:!?)](?:\s|$))"), ""),
]
ROLE = re.compile(r":(?P<role>[A-Za-z][\w:+.-]*):`(?P<body>[^`]*)`")
TITLE_AND_TARGET = re.compile(r"(.*?)\s*<[^<>]*>", re.DOTALL)
DOLLARS = re.compile(r"\$\$?([^$]+)\$\$?")
LATEX_FRACTION = re.compile(r"\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}")
LATEX_ROOT = re.compile(r"\\sqrt\s*\{([^{}]*)\}")
LATEX_STYLE = re.compile(
    r"\\(?:text|mathrm|mathit|mathbf|mathbb|mathcal|mathsf|texttt|textit|boldsymbol|bm|rm|bf|left|right|big|Big"
    r"|operatorname\*?|displaystyle)(?![A-Za-z])"
)
LATEX_COMMAND = re.compile(r"\\([A-Za-z]+)")

SENTENCE_END = re.compile(
    r"(?<=[.!?])(?<!\be\.g\.)(?<!\bi\.e\.)(?<!\bcf\.)(?<!\bvs\.)(?<!\b[A-Z]\.)\s+(?=[A-Z\"'(`])"
)
ENDED = re.compile(r"[.!?][)\"'”]*$")
RESIDUE = re.compile(
    r"[{}\\`|$^]|::|\w://|www\.|\]\(|<\w|\w>|->|=>|==|>>|\*\*|\b_|__|\w\(\w*=|\+\+|#|;$|[-=~]{3}|%[sd]"
    r"|[\ud800-\udfff]"
)
BOILERPLATE = re.compile(
    r"copyright|all rights reserved|licen[sc]ed under|without warrant|redistribution and use"
    r"|permission is hereby|file is (?:auto)?generated|do not (?:edit|modify) (?:it|this file)",
    re.IGNORECASE,
)
OPERATOR = re.compile(r"[=<>+*]")
MOST_OPERATORS = 2
LEAST_LETTERS = 0.8
LEAST_WORDS = 4


def paragraphs(markup: str) -> list[str]:
    """The paragraphs of whole English sentences in a docstring or .rst text, each on one line."""
    lines = inspect.cleandoc(markup).splitlines()
    found = []
    for name, body in _sections(list(_without_blocks(lines))):
        if not DROPPED_SECTION.fullmatch(name):
            body = _without_entry_heads(body) if ENTRY_SECTION.fullmatch(name) else body
            found += [_sentences(_plain(each)) for each in _joined(body)]
    return [each for each in found if len(each.split()) >= LEAST_WORDS]


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _end_of_body(lines: list[str], start: int) -> int:
    """The first line after `start` that is neither blank nor deeper than it."""
    depth = _indent(lines[start])
    for index in range(start + 1, len(lines)):
        if lines[index].strip() and _indent(lines[index]) <= depth:
            return index
    return len(lines)


def _end_of_run(lines: list[str], start: int, end: re.Pattern[str]) -> int:
    for index in range(start + 1, len(lines)):
        if end.match(lines[index]):
            return index
    return len(lines)


def _without_blocks(lines: list[str]) -> Iterator[str]:
    """The lines without code, doctests, tables and directives; admonitions lose their head only."""
    index = 0
    while index < len(lines):
        line = lines[index]
        if FENCE.match(line):
            index = _end_of_run(lines, index, FENCE) + 1
        elif TO_NEXT_BLANK.match(line):
            index = _end_of_run(lines, index, BLANK)
        elif directive := DIRECTIVE.match(line):
            end = _end_of_body(lines, index)
            if directive["name"] in ADMONITIONS:
                yield from _admonition(directive, lines[index + 1 : end])
            index = end
        elif line.rstrip().endswith("::"):
            yield line.rstrip()[:-1]
            index = _end_of_body(lines, index)
        else:
            yield line.replace("> ", "", 1) if line.lstrip().startswith("> ") else line
            index += 1
            continue
        yield ""


def _admonition(directive: re.Match[str], body: list[str]) -> Iterator[str]:
    argument = "" if directive["name"] in TITLED else directive["argument"]
    if directive["name"] in VERSION_NOTES:
        argument = VERSION.sub("", argument, count=1)
    margin = " " * _indent(directive[0])
    yield ""
    for line in _without_blocks(inspect.cleandoc("\n".join([argument, *body])).splitlines()):
        yield margin + line


def _sections(lines: list[str]) -> Iterator[tuple[str, list[str]]]:
    """Each section's name in lower case and its lines; text under no heading has the name ''.

    A section begins with an underlined heading, or with `Name:` over an indented body, at whose
    end it ends.
    """
    name, label_indent = "", -1
    body: list[str] = []
    for index, line in enumerate(lines):
        following = lines[index + 1] if index + 1 < len(lines) else ""
        if UNDERLINE.match(line):
            continue
        label = LABEL.match(line)
        if line.strip() and UNDERLINE.match(following):
            yield name, body
            name, label_indent, body = line.strip().lower(), -1, []
        elif label and _indent(following) > _indent(line):
            yield name, body
            name, label_indent, body = label["name"].lower(), _indent(line), []
        elif line.strip() and _indent(line) <= label_indent:
            yield name, body
            name, label_indent, body = "", -1, [line]
        else:
            body.append(line)
    yield name, body


def _without_entry_heads(lines: list[str]) -> list[str]:
    """The descriptions of a table of parameters, without names and types, each a paragraph."""
    base = min((_indent(line) for line in lines if line.strip()), default=0)
    found = []
    for line in lines:
        head = line.strip()
        if not head or _indent(line) > base:
            found.append(line)
        elif before := NAME_BEFORE_TEXT.match(head):
            found += ["", head[before.end() :]]
        else:
            found.append(line)
    return found


def _joined(lines: list[str]) -> Iterator[str]:
    """Wrapped lines as one line per paragraph, list item or reST field."""
    current: list[str] = []
    depth = 0
    for line in [*lines, ""]:
        text = line.strip()
        marker = BULLET.match(text) or FIELD.match(text) or TYPED_NAME.match(text)
        deeper = _indent(line) > depth
        if deeper and len(current) == 1 and NAME_AND_TYPE.fullmatch(current[0]):
            current = []
        introduced = deeper and bool(current) and current[-1].endswith(":")
        if current and (not text or marker or introduced or _indent(line) < depth):
            yield " ".join(current)
            current = []
        if text:
            current.append(text[marker.end() :] if marker else text)
            depth = _indent(line)


def _plain(text: str) -> str:
    """A paragraph without inline markup."""
    for prefix in (TERM, PLAIN_NAME, OUTCOME):
        text = prefix.sub("", text, count=1)
    if text[:1].islower():
        return ""
    text = DOLLARS.sub(lambda match: _formula(match[1]), ROLE.sub(_role, text))
    for pattern, replacement in INLINE:
        text = pattern.sub(replacement, text)
    return html.unescape(text).strip()


def _role(match: re.Match[str]) -> str:
    body = match["body"]
    if match["role"] == "math":
        return _formula(body)
    titled = TITLE_AND_TARGET.fullmatch(body)
    if titled and titled[1]:
        return titled[1]
    return body.rsplit(".", 1)[-1] if body.startswith("~") else body.lstrip("!")


def _formula(latex: str) -> str:
    """A short formula as a person would type it; what stays LaTeX makes its sentence go later."""
    latex = LATEX_FRACTION.sub(r"\1 / \2", latex)
    latex = LATEX_ROOT.sub(r"sqrt(\1)", latex)
    latex = LATEX_STYLE.sub("", latex)
    latex = LATEX_COMMAND.sub(_symbol, latex)
    latex = re.sub(r"\\[,;:! ]|~", " ", latex).replace("\\_", "_")
    return re.sub(r"\{([^{}]*)\}", r"\1", latex).replace("^", "**") if "\\" not in latex else latex


def _symbol(match: re.Match[str]) -> str:
    name = match[1]
    if name in SYMBOLS:
        return SYMBOLS[name]
    kind = "CAPITAL" if name[0].isupper() else "SMALL"
    try:
        return unicodedata.lookup(f"GREEK {kind} LETTER {name.replace('lambda', 'lamda')}")
    except KeyError:
        return match[0]


def _sentences(text: str) -> str:
    """The whole sentences of a paragraph without code or markup; nothing if it is no prose."""
    if BOILERPLATE.search(text):
        return ""
    return " ".join(each for each in SENTENCE_END.split(text) if _is_sentence(each))


def _is_sentence(text: str) -> bool:
    return (
        bool(ENDED.search(text))
        and text.lstrip("\"'(")[:1].isalnum()
        and text.count("(") == text.count(")")
        and sum(map(str.isalpha, text)) + text.count(" ") >= LEAST_LETTERS * len(text)
        and len(OPERATOR.findall(text)) <= MOST_OPERATORS
        and not RESIDUE.search(text)
    )
