"""The documentation that Python carries: docstrings and reference topics as clean prose.

It is real English text about real things, it is on every machine, and it needs no network and no
licence beyond Python's own. The walk is made to come out the same on every run of one Python
version: a fixed list of modules, sorted names, no default value that depends on the machine.
"""

from __future__ import annotations

import importlib
import inspect
import re
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

# Importing these has no effect beyond the import: none prints, opens a window, reads a
# configuration or changes the terminal (so no antigravity, this, idlelib, turtle, tkinter, readline,
# rlcompleter, site, distutils). Packages stand before their parts, so that a thing is known by its
# public name: asyncio.run, not asyncio.runners.run. What one Python version lacks is passed over.
MODULES = """
abc aifc argparse array ast asyncio asyncio.base_events asyncio.streams asyncio.transports atexit
audioop base64 bdb binascii bisect builtins bz2 calendar cgi chunk cmath cmd code codecs codeop
collections collections.abc colorsys compileall concurrent.futures configparser contextlib contextvars
copy copyreg csv ctypes dataclasses datetime dbm dbm.dumb decimal difflib dis doctest email
email.charset email.generator email.header email.headerregistry email.message email.parser
email.policy email.utils enum errno faulthandler filecmp fileinput fnmatch fractions ftplib functools
gc getopt getpass gettext glob graphlib gzip hashlib heapq hmac html html.parser http http.client
http.cookiejar http.cookies http.server imaplib imghdr importlib importlib.abc importlib.machinery
importlib.metadata importlib.resources importlib.util inspect io ipaddress itertools json json.decoder
json.encoder keyword linecache locale logging logging.config logging.handlers lzma mailbox mailcap
marshal math mimetypes mmap modulefinder multiprocessing multiprocessing.connection
multiprocessing.managers multiprocessing.pool multiprocessing.shared_memory netrc nntplib numbers
opcode operator optparse os os.path pathlib pdb pickle pickletools pipes pkgutil platform plistlib
poplib pprint profile pstats pty pwd py_compile pyclbr pydoc queue quopri random re reprlib resource
runpy sched secrets select selectors shelve shlex shutil signal smtplib sndhdr socket socketserver
sqlite3 ssl stat statistics string stringprep struct subprocess sunau symtable sys sysconfig syslog
tabnanny tarfile telnetlib tempfile termios textwrap threading time timeit token tokenize tomllib trace
traceback tracemalloc tty types typing unicodedata unittest unittest.mock urllib.error urllib.parse
urllib.request urllib.response urllib.robotparser uu uuid venv warnings wave weakref webbrowser
wsgiref.handlers wsgiref.headers wsgiref.simple_server wsgiref.util xdrlib xml.dom xml.dom.minidom
xml.dom.pulldom xml.etree.ElementTree xml.parsers.expat xml.sax xml.sax.handler xml.sax.saxutils
xml.sax.xmlreader xmlrpc.client xmlrpc.server zipapp zipfile zipimport zlib zoneinfo
""".split()

_FEWEST_WORDS = 3  # "Return the sum." still says something


@dataclass(frozen=True, slots=True)
class Entry:
    """One documented thing.

    name: "os.path.join"; for a topic its title. kind: function, class, method, property, module or
    topic. parent: the module or class it is in. unit: the module, top-level object or topic that it
    belongs to. call: "join(a, *p)" or "" if unknown. paragraphs: prose without markup, each on one line.
    """

    name: str
    kind: str
    parent: str
    unit: str
    call: str
    paragraphs: tuple[str, ...]


def stdlib_entries() -> list[Entry]:
    """Everything documented in MODULES, then the reference topics; the same list every time."""
    entries: list[Entry] = []
    seen: set[int] = set()
    for name in MODULES:
        module = _import(name)
        if module is not None:
            entries.extend(_module_entries(name, module, seen))
    entries.extend(_topic_entries())
    return entries


def _import(name: str) -> ModuleType | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some are deprecated, and say so
        try:
            return importlib.import_module(name)
        except ImportError:
            return None


# --- the walk ---------------------------------------------------------------------------------


def _module_entries(name: str, module: ModuleType, seen: set[int]) -> Iterator[Entry]:
    prose = clean_prose(module.__doc__)
    if prose:
        yield Entry(name, "module", name, f"module {name}", "", prose)
    members = vars(module)
    exported = members.get("__all__")
    public = exported if exported is not None else [key for key in members if not key.startswith("_")]
    for key in sorted(set(public)):
        member = members.get(key)
        if id(member) in seen or not _belongs(member, name, exported is not None):
            continue
        seen.add(id(member))
        full = key if name == "builtins" else f"{name}.{key}"
        kind = "class" if inspect.isclass(member) else "function"
        prose = clean_prose(getattr(member, "__doc__", None))
        if prose:
            yield Entry(full, kind, name, full, _call(member, full), prose)
        if inspect.isclass(member):
            yield from _class_entries(full, member)


def _belongs(member: Any, module: str, exported: bool) -> bool:
    """Whether it is a class or function of this module, and not one that another program put there."""
    if not (inspect.isclass(member) or inspect.isroutine(member)):
        return False
    home = getattr(member, "__module__", None) or module
    if home.split(".")[0] not in sys.stdlib_module_names:
        return False
    return exported or home == module or home.startswith("_") or home == "posix"


def _class_entries(full: str, owner: type) -> Iterator[Entry]:
    for key, member in sorted(vars(owner).items()):
        if key.startswith("_"):
            continue
        plain = member.__func__ if isinstance(member, staticmethod | classmethod) else member
        bound = not isinstance(member, staticmethod)
        if inspect.isroutine(plain):
            kind = "method"
        elif isinstance(plain, property) or inspect.isdatadescriptor(plain):
            kind = "property"
        else:
            continue
        prose = clean_prose(getattr(plain, "__doc__", None))
        if prose:
            name = f"{full}.{key}"
            yield Entry(name, kind, full, full, _call(plain, name, bound) if kind == "method" else "", prose)


def _call(member: Any, name: str, bound: bool = False) -> str:
    """How it is called, "" where that is unknown or depends on the machine."""
    try:
        signature = inspect.signature(member)
    except (ValueError, TypeError):
        return ""
    parameters = []
    for index, parameter in enumerate(signature.parameters.values()):
        if index == 0 and bound:
            continue
        if parameter.default is not parameter.empty and not _is_plain(parameter.default):
            return ""
        parameters.append(parameter.replace(annotation=parameter.empty))
    try:
        shown = str(signature.replace(parameters=parameters, return_annotation=signature.empty))
    except ValueError:
        return ""
    return name + shown.replace("/, ", "").replace(", /)", ")").replace("(/)", "()")


def _is_plain(value: Any) -> bool:
    # Addresses, paths and sets would differ from one machine or run to the next.
    if isinstance(value, str):
        return len(value) < 20 and not (len(value) > 1 and "/" in value)
    return value is None or type(value) in (bool, int, float, bytes) or value == ()


# --- the reference topics ---------------------------------------------------------------------

_UNDERLINE = re.compile(r"^([*=\-~^\"+])\1{2,}$")


def _topic_entries() -> Iterator[Entry]:
    try:
        from pydoc_data.topics import topics
    except ImportError:
        return
    seen: set[str] = set()
    # Short topics first: the long ones ("Compound statements") contain them again.
    for key, text in sorted(topics.items(), key=lambda item: (len(item[1]), item[0])):
        for title, body in _sections(text):
            fresh = tuple(line for line in clean_prose(body) if line not in seen)
            seen.update(fresh)
            if sum(len(line.split()) for line in fresh) >= 12:
                yield Entry(title, "topic", "the language reference", f"topic {key}", "", fresh)


def _sections(text: str) -> Iterator[tuple[str, str]]:
    """(title, body) of each underlined heading."""
    title, body = "", [""]
    lines = text.split("\n")
    for index, line in enumerate(lines):
        if index + 1 < len(lines) and line.strip() and _UNDERLINE.match(lines[index + 1]):
            if title:
                yield title, "\n".join(body)
            title, body = _plain_text(line.strip()), []
        elif not _UNDERLINE.match(line):
            body.append(line)
    if title:
        yield title, "\n".join(body)


# --- prose ------------------------------------------------------------------------------------

_SIGNATURE = re.compile(r"^[\w.]+\(.*?\)\s*(?:(?P<mark>-+>|=>|--?|:)\s*(?P<rest>.*))?$")
_BULLET = re.compile(r"^\s*([*\-+]|\d+[.)])\s+")
_NO_PROSE = re.compile(
    r"^\s*(>>>|\.\.\.|\.\. |\||\+[-=]|@|def |class |import |from \w+ import)|::=|={3}|-{4}|\*{4}"
)
_WORD = re.compile(r"^[(\"'\[<*]*[A-Za-z][A-Za-z'\-]*[)\"'\].,;:!?>*]*$")
_MARKUP = (
    (re.compile(r":[a-z:]+:`[~!]?([^`<]+?)(?:\s*<[^>]*>)?`"), r"\1"),
    (re.compile(r"``([^`]+)``"), r"\1"),
    (re.compile(r"`([^`']+)[`']"), r"\1"),
    (re.compile(r"\*\*(\w[^*]*)\*\*"), r"\1"),
    (re.compile(r"(?<!\w)\*(\w[\w ]*)\*(?!\w)"), r"\1"),
    (re.compile(r"\s+"), " "),
)
_ASCII = str.maketrans("\u2018\u2019\u201c\u201d\u2013\u2014", "''\"\"--")


def clean_prose(doc: object) -> tuple[str, ...]:
    """The prose paragraphs of a docstring, each on one line; () if there is none worth keeping.

    Left out: a first line that only repeats the signature, examples, tables, code.
    """
    if not isinstance(doc, str):
        return ()
    lines = inspect.cleandoc(doc).split("\n")
    while lines and (not lines[0].strip() or _SIGNATURE.match(lines[0])):
        signature = _SIGNATURE.match(lines.pop(0))
        said = _said_after(signature) if signature else ""
        if said:
            lines.insert(0, said)
            break
    paragraphs = _drop_dangling(list(_blocks(lines)))
    if sum(len(text.split()) for text in paragraphs) < _FEWEST_WORDS:
        return ()
    return tuple(paragraphs)


def _said_after(signature: re.Match[str]) -> str:
    """What a signature line says beside the signature: "D.pop(k) -> v, remove the key and return"."""
    rest = signature["rest"] or ""
    if signature["mark"] and signature["mark"].endswith(">"):
        rest = re.split(r"[,.] +", rest, maxsplit=1)[-1] if re.search(r"[,.] ", rest) else ""
    return rest[:1].upper() + rest[1:] if len(rest.split()) >= _FEWEST_WORDS else ""


def _blocks(lines: list[str]) -> Iterator[str]:
    """Prose paragraphs as one line each, and "" in the place of a block that is no prose."""
    block: list[str] = []
    after_colons = False
    for line in [*lines, ""]:
        if line.strip() and not (block and _BULLET.match(line)):
            block.append(line)
            continue
        if block:
            yield "" if after_colons and block[0].startswith(" ") else _prose(block)
            after_colons = block[-1].rstrip().endswith("::")
        block = [line] if line.strip() else []


def _prose(block: list[str]) -> str:
    if any(_NO_PROSE.search(line) for line in block):
        return ""
    text = _plain_text(" ".join(block))
    words = text.split()
    if sum(1 for word in words if _WORD.match(word)) < 0.7 * len(words) or len(words) < 3:
        return ""
    if not text.rstrip(")\"'").endswith((".", "!", "?", ":")):
        text = text.rstrip(",;") + "."
    return text[0].upper() + text[1:] if text.split()[0].isalpha() else text


def _plain_text(text: str) -> str:
    text = _BULLET.sub("", text).translate(_ASCII).replace("\u2026", "...").replace("::", ":")
    for pattern, replacement in _MARKUP:
        text = pattern.sub(replacement, text)
    return text.strip()


def _drop_dangling(paragraphs: list[str]) -> list[str]:
    """Without the gaps; "For example:" before a gap goes too, or ends in a full stop if it says more."""
    kept = []
    for index, text in enumerate(paragraphs):
        announced = index + 1 < len(paragraphs) and paragraphs[index + 1]
        if text.endswith(":") and not announced:
            text = "" if len(text.split()) < 6 else text.rstrip(":") + "."
        if text:
            kept.append(text)
    return kept
