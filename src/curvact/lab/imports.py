"""Your own code: files of Python, and installed plugins, that register names for a lab's commands.

A spec names its files in `imports`, and a command takes them with `--import`. The sha256 of a file
is part of the id of every run that it can change. A copy of it lies in the folder of the run.

The code of a folder is never run unasked: `trust_code` (`--trust-code`) runs the copies in it, and
`import_code` (`--import`) runs a file of yours, which may be the same.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
import re
import sys
import types
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, model_validator

from curvact.activations import activation_names
from curvact.attacks.registry import attack_names
from curvact.data import DATASETS, names_a_place
from curvact.errors import CurvactError, short
from curvact.files import atomic_write
from curvact.lab.layout import CODE_FOLDER
from curvact.lab.settings import Settings, Strict, read_settings
from curvact.models import MODELS
from curvact.models.named import FILES
from curvact.training import OBJECTIVES
from curvact.workers import at_start

PLUGINS = "curvact.plugins"
"""The group of entry points: each names a module, which is imported, or a function, which is called."""


class CodeWarning(UserWarning):
    """A file has changed since a run was made with it."""


class Import(Strict):
    """A file of Python that a spec needs.

    path: as the spec says it, relative to the spec's file; absolute once it was run.
    sha256: of the file, filled in when it is run. A spec that gives it accepts no other content.
    """

    path: str
    sha256: str | None = Field(None, pattern="^[0-9a-f]{64}$")

    @model_validator(mode="before")
    @classmethod
    def _from_path(cls, content: Any) -> Any:
        return {"path": content} if isinstance(content, str) else content

    @property
    def file(self) -> str:
        """The name of the file."""
        return Path(self.path).name


@dataclass(frozen=True)
class Code:
    """A file that was run in this process. changes_runs: whether a run's numbers can depend on it."""

    path: Path
    sha256: str
    source: bytes
    changes_runs: bool


_RUN: dict[str, Code] = {}
"""What was run in this process, by sha256."""

_given: ContextVar[tuple[Import, ...]] = ContextVar("given", default=())
_trusted: ContextVar[bool] = ContextVar("trusted", default=False)


def import_code(path: str | Path) -> Import:
    """Run a file of Python that registers names, here and in every worker process.

    The same content runs once. A file that the code imports from beside it has to be imported
    before it. Returns what goes into `imports` of a spec.
    Raises CurvactError in one line for a file that cannot be read or run.

    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / "mine.py"
    >>> _ = file.write_text("from curvact import activations")
    >>> import_code(file).file
    'mine.py'
    """
    path = Path(path)
    try:
        if not path.is_file():
            raise CurvactError(f"there is no file {path} of Python: give a path such as my.py")
        source = path.read_bytes()
    except OSError as error:
        raise CurvactError(f"cannot read {path}: {error.strerror}") from None
    return _run(path.absolute(), source)


@contextmanager
def given_code(paths: Iterable[str | Path], *, trust: bool = False) -> Iterator[None]:
    """Run these files, and let the specs that are read inside import them.

    trust: as in `trust_code`.
    """
    before = _given.set((*_given.get(), *(import_code(path) for path in paths)))
    try:
        with trust_code(trust or _trusted.get()):
            yield
    finally:
        _given.reset(before)


@contextmanager
def trust_code(trust: bool = True) -> Iterator[None]:
    """Inside, the code that a folder holds is run where the folder is read: it may do anything."""
    before = _trusted.set(trust)
    try:
        yield
    finally:
        _trusted.reset(before)


def load_plugins() -> dict[str, str]:
    """Import every installed plugin, an entry point of the group `curvact.plugins`, once.

    Returns the version of each plugin's distribution, by the entry point's name.
    """
    found = {}
    for point in importlib.metadata.entry_points(group=PLUGINS):
        distribution = point.dist
        version = "unknown" if distribution is None else f"{distribution.name} {distribution.version}"
        found[point.name] = version
        if point.name in _PLUGINS_RUN:
            continue
        if not _PLUGINS_RUN:
            at_start(load_plugins)
        _PLUGINS_RUN.add(point.name)
        try:
            target = point.load()
            if callable(target):
                target()
        except Exception as error:
            raise CurvactError(f"the plugin {point.name} ({version}): {_in_words(error)}") from None
    return found


_PLUGINS_RUN: set[str] = set()


def read_with_code(
    kind: type[Settings],
    path: Path,
    overrides: list[str] | None,
    *,
    name: str,
    what: str,
    writer: str,
    flat: Collection[str] = (),
) -> Settings:
    """The spec in a YAML file, or in the file of that name in a folder, after its `imports` were run.

    what: the thing that such a folder holds. writer: the command that writes it.
    overrides, flat: as in `read_settings`. Raises CurvactError in one line, as `load_imports` does
    too, and for a folder without that file.
    """
    ask = path.is_dir()
    if ask:
        path = path / name
        if not path.is_file():
            raise CurvactError(f"{path.parent} holds no {what} (no {name}): `{writer}` writes one")
    folder = path.parent
    return read_settings(
        kind, path, overrides, flat, prepare=lambda content: load_imports(content, folder, ask=ask)
    )


def load_imports(content: Mapping[str, Any], folder: Path, *, ask: bool) -> dict[str, Any]:
    """Settings whose `imports` were run. With those given on the command line, unless `ask`.

    folder: relative paths begin there. ask: it is the folder of a run or a sweep, whose code runs
    only if it is trusted. Raises CurvactError in one line for code that is missing, that has
    changed, or that is not trusted.
    """
    known = content.get("imports") or []
    if not isinstance(known, (list, tuple)):
        raise CurvactError(f"imports={short(repr(known))}: must be a list of files, such as [my.py]")
    wanted = [_plain_import(item) for item in known]
    done = [_of_folder(item, folder) if ask else _of_spec(item, folder) for item in wanted]
    rest = {key: value for key, value in content.items() if key != "imports"}
    if not ask:
        done += [item for item in _given.get() if item.sha256 not in {d.sha256 for d in done}]
        rest = _run_networks(rest, folder, done)
    _check_names(done)
    return {**rest, "imports": [item.model_dump() for item in done]} if done else rest


def network_name(text: str, folder: Path) -> tuple[str, Import | None]:
    """A network's name, and the import that it needs: `path/my.py:Net` is `my.py:Net` of that file."""
    match = _OF_A_FILE.fullmatch(text)
    if match is None:
        return text, None
    path = found_from(folder, match["file"])
    given = next((i for i in _given.get() if i.file == match["file"]), None)
    needed = given if given is not None and not path.is_file() else import_code(path)
    return f"{path.name}:{match['name']}{match['rest']}", needed


_OF_A_FILE = re.compile(r"(?P<file>[^:]+\.py):(?P<name>[A-Za-z_]\w*)(?P<rest>.*)", re.DOTALL)


_PATHS = (
    *("init_from", "init_from.path", "helper", "helper.path", "activation_from.path"),
    *("data", "data.name", "data.extra"),
)
"""The settings that are paths, beside networks and imports."""
_INSIDE = (*_PATHS, "model.name")


def found_from(folder: Path, path: str) -> Path:
    """The path as a spec in that folder means it: from there, or from the working directory where
    only that has it, as a setting on the command line does.
    """
    there, here = folder / Path(path).expanduser(), Path(path).expanduser()
    return here if not there.exists() and here.exists() else there


def _path_from(folder: Path, key: str, path: str) -> str:
    """A setting that is a path, from the spec's folder. A name of a data set stays, and so does what
    the working directory has.
    """
    if key in ("data", "data.name") and (not names_a_place(path) or path.startswith("hf:")):
        return path
    found = found_from(folder, path)
    if os.path.abspath(found) == os.path.abspath(Path(path).expanduser()):
        return os.path.expanduser(path)
    return os.path.abspath(found)


def _run_networks(content: Any, folder: Path, done: list[Import], key: str = "") -> Any:
    """The settings with every network by the name of its file, which is run and added to `done`.

    Other paths begin at the folder.
    """
    if key in _PATHS and isinstance(content, str):
        return _path_from(folder, key, content)
    if isinstance(content, dict):
        return {
            k: _run_networks(v, folder, done, f"{key}.{k}" if f"{key}.{k}" in _INSIDE else k)
            for k, v in content.items()
        }
    if isinstance(content, list):
        return [_run_networks(value, folder, done, key) for value in content]
    if key not in ("model", "model.name") or not isinstance(content, str):
        return content
    name, needed = network_name(content, folder)
    if needed is not None and needed.sha256 not in {item.sha256 for item in done}:
        done.append(needed)
    return name


def hashes(imports: Any) -> dict[str, str]:
    """The name of each file in `imports`, checked or plain, by its sha256."""
    items = [item if isinstance(item, Import) else _plain_import(item) for item in imports or ()]
    return {str(item.sha256): item.file for item in items}


def _plain_import(item: Any) -> Import:
    try:
        return Import.model_validate(item)
    except ValidationError:
        raise CurvactError(f"imports holds {short(repr(item))}: must be files, such as [my.py]") from None


def check_loaded(imports: Any) -> None:
    """CurvactError where an import of a spec was not run in this process."""
    for sha256, file in hashes(imports).items():
        if sha256 not in _RUN:
            raise CurvactError(
                f"it needs the code {file}: read it with read_spec or read_sweep, or call import_code first"
            )


def changing_runs(imports: Iterable[Import], model: str = "") -> tuple[Import, ...]:
    """Those on which a run's numbers can depend: not files that only add questions and engines.

    model: the name of its network, which may be one of a file.
    """
    return tuple(
        i
        for i in imports
        if i.sha256 not in _RUN or _RUN[str(i.sha256)].changes_runs or model.startswith(f"{i.file}:")
    )


def copy_code(imports: Iterable[Import], folder: Path) -> None:
    """Write a copy of each file into the folder of a run or a sweep."""
    for item in imports:
        (folder / CODE_FOLDER).mkdir(parents=True, exist_ok=True)
        atomic_write(folder / CODE_FOLDER / item.file, _RUN[str(item.sha256)].source)


def code_run() -> dict[str, Code]:
    """What was run in this process, by sha256."""
    return dict(_RUN)


def code_hashes() -> dict[str, str]:
    """The sha256 of each file run in this process that a number can depend on, by its name."""
    return {code.path.name: code.sha256 for code in _RUN.values() if code.changes_runs}


def _of_spec(item: Import, folder: Path) -> Import:
    path = folder / Path(item.path).expanduser()
    if item.sha256 in _RUN:
        return item
    try:
        source = path.read_bytes() if path.is_file() else None
    except OSError as error:
        raise CurvactError(f"imports: cannot read {path}: {error.strerror}") from None
    if source is None:
        raise CurvactError(f"imports: there is no file {path}")
    sha256 = hashlib.sha256(source).hexdigest()
    if item.sha256 not in (None, sha256):
        raise CurvactError(
            f"imports: {path} has changed: its sha256 is {sha256[:12]}…, the spec has {str(item.sha256)[:12]}…"
        )
    return _run(path.absolute(), source)


def _of_folder(item: Import, folder: Path) -> Import:
    if item.sha256 in _RUN:
        return item
    copy = folder / CODE_FOLDER / item.file
    if not _trusted.get():
        other = next(
            (
                f" {c.path}, which was run here, is another version."
                for c in _RUN.values()
                if c.path.name == item.file
            ),
            "",
        )
        raise CurvactError(
            f"{folder} needs the code {item.file}: --trust-code runs the copy in {copy.parent}, which may "
            f"do anything; --import FILE runs yours, if it is the same (in Python with curvact.lab.trust_code(), or "
            f"curvact.lab.import_code(FILE)).{other}"
        )
    try:
        source = copy.read_bytes()
    except OSError as error:
        raise CurvactError(f"cannot read {copy}, the code of {folder}: {error.strerror}") from None
    if hashlib.sha256(source).hexdigest() != item.sha256:
        raise CurvactError(f"{copy} is not the code that {folder} was made with: its sha256 differs")
    original = Path(item.path)
    if original.is_absolute() and original.is_file() and original.read_bytes() != source:
        warnings.warn(
            f"{original} has changed since {folder} was made: the copy in it is used",
            CodeWarning,
            stacklevel=2,
        )
    _run(copy.absolute(), source)
    return item


def _check_names(imports: list[Import]) -> None:
    names = [item.file for item in imports]
    for name in names:
        if names.count(name) > 1:
            raise CurvactError(f"imports names two files {name}: give one of them another name")


def _run(path: Path, source: bytes) -> Import:
    sha256 = hashlib.sha256(source).hexdigest()
    if sha256 not in _RUN:
        if path.name in FILES:
            raise CurvactError(
                f"another {path.name} was run in this process already: one process knows one file of a name"
            )
        _run_here(path, source, sha256)
        at_start(_run_here, path, source, sha256)
    return Import(path=str(path), sha256=sha256)


def _run_here(path: Path, source: bytes, sha256: str) -> None:
    """Run the file as a module whose name depends on its content, so that workers know its classes."""
    name = f"curvact_code_{path.stem}_{sha256[:12]}"
    module = types.ModuleType(name)
    module.__file__ = str(path)
    before, others = _names_of_runs(), _other_names()
    sys.modules[name] = module
    try:
        exec(compile(source, str(path), "exec"), module.__dict__)
    except Exception as error:
        del sys.modules[name]
        raise CurvactError(f"{path}: {_in_words(error, str(path))}") from None
    except SystemExit:
        del sys.modules[name]
        raise CurvactError(f"{path}: it ends the process: leave out sys.exit") from None
    only_others = _names_of_runs() == before and _other_names() != others
    FILES[path.name] = module
    _RUN[sha256] = Code(path, sha256, source, changes_runs=not only_others)
    if path.stem not in sys.modules and importlib.util.find_spec(path.stem) is None:
        sys.modules[path.stem] = module  # for a file that is imported after it


def _names_of_runs() -> set[str]:
    return {*activation_names(), *MODELS, *OBJECTIVES, *attack_names(), *DATASETS}


def _other_names() -> set[str]:
    from curvact.lab.engines import ENGINES
    from curvact.lab.statistics import QUESTIONS

    return {*QUESTIONS, *ENGINES}


def _in_words(error: Exception, path: str = "") -> str:
    """The error in one line, with the line of the file that it came from."""
    words = " ".join(str(error).split())[:300]
    line = error.lineno if isinstance(error, SyntaxError) else None
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == path:
            line = trace.tb_lineno
        trace = trace.tb_next
    kind = "" if isinstance(error, CurvactError) else f"{type(error).__name__}: "
    if (
        isinstance(error, ModuleNotFoundError)
        and (beside := Path(path).with_name(f"{error.name}.py")).is_file()
    ):
        words += f"; import {beside.name} too, and before it"
    return f"{kind}{words}" + (f" (line {line})" if line else "")
