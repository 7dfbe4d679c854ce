"""The runs below a folder, found, filtered and sorted without loading torch.

A folder of many runs has an index, `.runs.sqlite`, which is made again from the folders whenever it is
missing, damaged or of another version. A run is read again when the size or the time of its record has
changed. A folder that cannot be written works without an index.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import re
import sqlite3
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from operator import eq, ge, gt, le, lt, ne
from pathlib import Path
from typing import Any

from curvact.errors import CurvactError, nearest, short
from curvact.files import atomic_write, csv_text, has_other_checksum
from curvact.lab.layout import INDEX_FILE, METRICS_FILE, RECORD_FILE, RECORD_SCHEMA, SPEC_FILE
from curvact.lab.remote import local_runs

Value = str | float | int | bool | None

VERSION = 2
"""Of what the index holds: an index of another version is made again."""

MANY = 100
"""A folder with fewer runs has no index."""

WAIT = 2.0
"""Seconds to wait for another process that writes the index; then it is left as it is."""


@dataclass(frozen=True)
class StoredRun:
    """A run below a folder.

    folder: of the run. run: its id; "" where it is not known. status: "done", "failed", "unfinished",
    or "unreadable" (`cause` says why, as it does for a failed run).
    curvature: κ of the activation as it is built. robust: robust accuracy of the last weights by the
    strongest attack that was measured, a fraction. attack: which one; it says where the images were
    not those of the test split.
    metrics: of the record. values: the spec by dotted key, and the costs.
    """

    folder: Path
    run: str
    name: str
    status: str
    cause: str
    curvature: float | None
    activation: str
    robust: float | None
    attack: str
    seed: int | None
    seconds: float | None
    metrics: Mapping[str, float]
    values: Mapping[str, Value]

    def get(self, key: str) -> Value:
        """The value of a column or of a dotted key; None where the run has none."""
        if key in COLUMNS:
            found = getattr(self, key)
            return str(found) if isinstance(found, Path) else found
        return self.metrics.get(key, self.values.get(key))

    @property
    def keys(self) -> tuple[str, ...]:
        """What the run has a value for beside the columns."""
        return (*self.metrics, *(key for key in self.values if key not in COLUMNS))


COLUMNS = (
    "run",
    "name",
    "status",
    "curvature",
    "activation",
    "robust",
    "attack",
    "seed",
    "seconds",
    "folder",
    "cause",
)
"""Names that can be filtered and sorted by beside the keys of the spec and the metrics."""


# ---- finding and reading ----


def stored_runs(folder: Path) -> list[StoredRun]:
    """Every run below a folder, or the run that the folder itself is, in the order of their paths.

    folder: a path, or a URL whose records are pulled first.
    A run whose record is damaged is among them, as "unreadable". Raises CurvactError for no folder.
    """
    folder = local_runs(folder)
    if not folder.is_dir():
        raise CurvactError(f"there is no folder {folder}")
    found = dict(_run_folders(folder))
    if len(found) < MANY:
        contents = {path: _read(folder / path) for path in found}
    else:
        contents = _through_index(folder, found)
    return [_as_run(folder / path, contents[path]) for path in sorted(contents)]


Stamp = tuple[int, int, int, int]
"""Times and sizes of what a run's entry is read from."""


def _run_folders(top: Path) -> Iterator[tuple[str, Stamp]]:
    """The folders of runs below a folder, as paths relative to it, each with its stamp."""
    waiting = [""]
    while waiting:
        place = waiting.pop()
        files: dict[str, os.DirEntry[str]] = {}
        try:
            with os.scandir(os.path.join(top, place)) as entries:
                for entry in entries:
                    if entry.name in (RECORD_FILE, SPEC_FILE, METRICS_FILE):
                        files[entry.name] = entry
                    elif not entry.name.startswith(".") and entry.is_dir(follow_symlinks=False):
                        waiting.append(os.path.join(place, entry.name))
            if RECORD_FILE in files:
                yield place, (*_stamp(files[RECORD_FILE]), 0, 0)
            elif SPEC_FILE in files:
                spec = files[SPEC_FILE]
                yield place, (*_stamp(spec), *_stamp(files.get(METRICS_FILE, spec)))
        except OSError:
            continue  # it went away, or cannot be read


def _stamp(file: os.DirEntry[str]) -> tuple[int, int]:
    found = file.stat()
    return found.st_mtime_ns, found.st_size


def _read(folder: Path) -> dict[str, Any]:
    """What is known of a run, as plain data for the index."""
    record = folder / RECORD_FILE
    try:
        content = json.loads(record.read_bytes())
        if not isinstance(content, dict):
            raise TypeError
        schema = content.get("schema_version")
        if schema != RECORD_SCHEMA:
            return _unreadable(
                f"{record} has schema_version {short(repr(schema), 40)}, this version reads {RECORD_SCHEMA}: "
                "run it again"
            )
        if has_other_checksum(content):
            raise ValueError
        return _of_record(content)
    except FileNotFoundError:
        return _of_unfinished(folder)
    except OSError as error:
        return _unreadable(f"cannot read {record}: {error.strerror}")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return _unreadable(f"{record} is damaged: delete {folder} and run it again")


def _unreadable(cause: str) -> dict[str, Any]:
    return {"status": "unreadable", "cause": cause, "values": {}}


def _of_record(content: Mapping[str, Any]) -> dict[str, Any]:
    spec, metrics = content["spec"], content["metrics"]
    numbers = {str(key): float(value) for key, value in metrics.items()}
    robust, attack = _strongest(spec["evaluation"], numbers)
    values = _flat(spec)
    for key in ("epochs", "gradient_evaluations", "test_images", "max_curvature", "note"):
        values[key] = _scalar(content.get(key))
    curvature = content["max_curvature"]
    return {
        "run": str(content["run"]),
        "name": str(spec["name"]),
        "status": str(content["status"]),
        "cause": str(content.get("cause", "")),
        "curvature": None if curvature is None else float(curvature),
        "activation": str(spec["activation"]),
        "robust": robust,
        "attack": attack,
        "seed": int(spec["seed"]),
        "seconds": float(content["seconds"]),
        "metrics": numbers,
        "values": values,
    }


def _of_unfinished(folder: Path) -> dict[str, Any]:
    from curvact.lab.settings import read_plain

    try:
        spec = read_plain(folder / SPEC_FILE)
    except CurvactError as error:
        return _unreadable(str(error))
    if not isinstance(spec, dict):
        return _unreadable(f"{folder / SPEC_FILE} holds no settings")
    epochs = 0
    with suppress(OSError):
        epochs = (folder / METRICS_FILE).read_bytes().count(b"\n")
    seed = spec.get("seed", 0)
    return {
        "run": folder.name if re.fullmatch("[0-9a-f]{12}", folder.name) else "",
        "name": str(spec.get("name", "run")),
        "status": "unfinished",
        "activation": str(spec.get("activation", "relu")),
        "seed": seed if isinstance(seed, int) else None,
        "values": {**_flat(spec), "epochs": epochs},
    }


def _strongest(evaluation: Mapping[str, Any], metrics: Mapping[str, float]) -> tuple[float | None, str]:
    """The robust accuracy by the strongest attack that was measured, and that attack."""
    split = str(evaluation.get("split", "test"))
    prefix, where = ("", "") if split == "test" else (f"{split}_", f", {split}")
    parts = "+".join(map(str, evaluation.get("autoattack_parts", ())))
    for metric, attack in (("subset_robust_accuracy", parts), ("robust_accuracy", str(evaluation["attack"]))):
        if prefix + metric in metrics:
            return metrics[prefix + metric], attack + where
    return None, ""


def _flat(content: Mapping[str, Any], before: str = "") -> dict[str, Value]:
    """Nested settings by dotted key. A list is a text with commas."""
    found: dict[str, Value] = {}
    for key, value in content.items():
        kind = type(value)
        if kind in _PLAIN:
            found[before + key] = value
        elif kind is dict:
            found |= _flat(value, f"{before}{key}.")
        else:
            found[before + key] = _scalar(value)
    return found


_PLAIN = frozenset((str, int, float, bool, type(None)))


def _scalar(value: Any) -> Value:
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    if isinstance(value, list) and all(isinstance(item, (str, bool, int, float)) for item in value):
        return ", ".join(map(str, value))
    return json.dumps(value, sort_keys=True, default=str)


def _as_run(folder: Path, content: Mapping[str, Any]) -> StoredRun:
    known = content.get
    return StoredRun(
        folder,
        known("run", ""),
        known("name", ""),
        known("status", ""),
        known("cause", ""),
        known("curvature"),
        known("activation", ""),
        known("robust"),
        known("attack", ""),
        known("seed"),
        known("seconds"),
        known("metrics", {}),
        known("values", {}),
    )


# ---- the index ----


def _through_index(folder: Path, found: Mapping[str, Stamp]) -> dict[str, dict[str, Any]]:
    """The content of every run, from the index where it is still true, else from its folder."""
    path = folder / INDEX_FILE
    known = _Known()
    with suppress(sqlite3.Error, ValueError, TypeError, KeyError):  # missing, damaged or locked
        known = _known(path)
    contents, news = {}, []
    for place, stamp in found.items():
        if place in known.contents and known.stamps[place] == stamp:
            contents[place] = known.contents[place]
        else:
            contents[place] = _read(folder / place)
            news.append(place)
    gone = [place for place in known.contents if place not in found]
    if news or gone:
        rows = [(place, *found[place], *known.packed(place, contents[place])) for place in news]
        _write(path, rows, known.bases, gone, fresh=not known.contents)
    return contents


class _Known:
    """What an index holds. bases: values that the runs beside each other share, by their hash."""

    def __init__(self) -> None:
        self.stamps: dict[str, Stamp] = {}
        self.contents: dict[str, dict[str, Any]] = {}
        self.bases: dict[str, dict[str, Value]] = {}
        self.beside: dict[str, str] = {}

    def packed(self, place: str, content: Mapping[str, Any]) -> tuple[str, str]:
        """The hash of the base of a run, and the rest of its content as JSON."""
        values, parent = content["values"], os.path.dirname(place)
        if parent not in self.beside:
            self.beside[parent] = _hash(values)
            self.bases[self.beside[parent]] = values
        base = self.bases[self.beside[parent]]
        rest = {
            **content,
            "values": {k: v for k, v in values.items() if k not in base or not _same(base[k], v)},
            "without": [k for k in base if k not in values],
        }
        return self.beside[parent], json.dumps(rest)

    def add(self, place: str, stamp: Stamp, base: str, text: str) -> None:
        """Raises TypeError or KeyError where the index is damaged."""
        content = json.loads(text)
        values = {**self.bases[base], **content["values"]}
        for key in content.pop("without"):
            del values[key]
        content["values"] = values
        self.stamps[place], self.contents[place] = stamp, content
        self.beside.setdefault(os.path.dirname(place), base)


def _same(a: Value, b: Value) -> bool:
    return type(a) is type(b) and a == b


def _connect(path: Path, mode: str) -> sqlite3.Connection:
    uri = f"{path.absolute().as_uri()}?mode={mode}"
    return sqlite3.connect(uri, uri=True, timeout=WAIT, isolation_level=None)


def _known(path: Path) -> _Known:
    known = _Known()
    with closing(_connect(path, "ro")) as index:
        if index.execute("PRAGMA user_version").fetchone() != (VERSION,):
            return known
        index.execute("BEGIN")  # both tables as they are at one time
        bases = index.execute("SELECT hash, content FROM bases").fetchall()
        rows = index.execute(
            "SELECT place, time, size, time2, size2, base, content, checksum FROM runs"
        ).fetchall()
    known.bases = {name: dict(json.loads(content)) for name, content in bases}
    if any(name != _hash(base) for name, base in known.bases.items()):
        raise ValueError("a damaged base")
    for *row, checksum in rows:
        if checksum != _checksum(row):
            raise ValueError("a damaged row")
        place, time, size, time2, size2, base, content = row
        known.add(place, (time, size, time2, size2), base, content)
    return known


def _checksum(row: Sequence[object]) -> int:
    return zlib.crc32(repr(tuple(row)).encode())


def _hash(base: Mapping[str, Value]) -> str:
    return hashlib.sha256(json.dumps(base, sort_keys=True).encode()).hexdigest()


def _write(
    path: Path,
    rows: Sequence[tuple[Any, ...]],
    bases: Mapping[str, Mapping[str, Value]],
    gone: Sequence[str],
    *,
    fresh: bool,
) -> None:
    """Bring the index up to date. fresh: make it again."""
    for _ in range(2):
        try:
            with closing(_connect(path, "rwc")) as index:
                index.execute("BEGIN IMMEDIATE")
                if fresh or index.execute("PRAGMA user_version").fetchone() != (VERSION,):
                    index.execute("DROP TABLE IF EXISTS runs")
                    index.execute("DROP TABLE IF EXISTS bases")
                    index.execute("CREATE TABLE bases (hash TEXT PRIMARY KEY, content TEXT)")
                    index.execute(
                        "CREATE TABLE runs (place TEXT PRIMARY KEY, time INTEGER, size INTEGER, "
                        "time2 INTEGER, size2 INTEGER, base TEXT, content TEXT, checksum INTEGER)"
                    )
                    index.execute(f"PRAGMA user_version = {VERSION}")
                shared = [(name, json.dumps(values)) for name, values in bases.items()]
                index.executemany("INSERT OR IGNORE INTO bases VALUES (?, ?)", shared)
                checked = [(*row, _checksum(row)) for row in rows]
                index.executemany("INSERT OR REPLACE INTO runs VALUES (?, ?, ?, ?, ?, ?, ?, ?)", checked)
                index.executemany("DELETE FROM runs WHERE place = ?", [(place,) for place in gone])
                index.execute("COMMIT")
            return
        except sqlite3.OperationalError:
            return  # a folder that cannot be written, a full disk, or another process
        except sqlite3.DatabaseError:
            with suppress(OSError):
                path.unlink()


# ---- filtering and sorting ----

_CONDITION = re.compile(r"\s*(?P<key>[^=<>!\s]+)\s*(?P<operator><=|>=|!=|=|<|>)(?P<value>.*)", re.DOTALL)
_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {"=": eq, "!=": ne, "<": lt, "<=": le, ">": gt, ">=": ge}


def selected(
    runs: Sequence[StoredRun], where: Sequence[str] = (), sort: str | None = None
) -> list[StoredRun]:
    """The runs that meet every condition, sorted.

    where: conditions such as "training.objective=trades", "curvature>4", "status!=done". A name meets a
    text with arguments too: trades is trades(beta=6). A radius may be written 8/255.
    sort: a key; with - before it the highest first. Runs without a value come last.
    Raises CurvactError for a condition that cannot be read, and for a key that no run has.
    """
    if not runs:
        return []
    tests = [_condition(text, runs) for text in where]
    kept = [run for run in runs if all(test(run) for test in tests)]
    if sort is None:
        return kept
    down, key = sort.startswith("-"), sort.removeprefix("-")
    _check_key("--sort", key, runs)
    with_value = [(run.get(key), run) for run in kept]
    known = [(value, run) for value, run in with_value if not _missing(value)]
    known.sort(key=lambda pair: _order(pair[0]), reverse=down)
    return [run for _, run in known] + [run for value, run in with_value if _missing(value)]


def _missing(value: Value) -> bool:
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


def _order(value: Value) -> tuple[bool, float, str]:
    number = isinstance(value, (int, float))
    return (
        not number,
        float(value) if isinstance(value, (int, float)) else 0.0,
        "" if number else str(value),
    )


def _condition(text: str, runs: Sequence[StoredRun]) -> Callable[[StoredRun], bool]:
    match = _CONDITION.fullmatch(text)
    if match is None:
        raise CurvactError(f"--where {text!r}: write it as key=value; operators are = != < <= > >=")
    key, sign, wanted = match["key"], match["operator"], match["value"].strip()
    _check_key("--where", key, runs)
    compare, number = _OPERATORS[sign], _number(wanted)
    if number is None and sign not in ("=", "!="):
        raise CurvactError(f"--where {text!r}: {wanted!r} is no number; {sign} compares numbers")

    def test(run: StoredRun) -> bool:
        value = run.get(key)
        if isinstance(value, bool) or value is None:
            return compare({True: "true", False: "false", None: "null"}[value], wanted)
        if isinstance(value, (int, float)):
            same = number is not None and math.isclose(value, number, rel_tol=1e-9)
            if sign in ("=", "!="):
                return same == (sign == "=")
            return (same and "=" in sign) or (not same and number is not None and compare(value, number))
        if sign in ("=", "!="):
            return (wanted in (value, value.partition("(")[0])) == (sign == "=")
        return False

    return test


def _number(text: str) -> float | None:
    try:
        over, slash, under = text.partition("/")
        value = float(over) / float(under) if slash else float(text)
    except (ValueError, ZeroDivisionError):
        return None
    return None if math.isnan(value) else value


def _check_key(option: str, key: str, runs: Sequence[StoredRun]) -> None:
    if key in COLUMNS or any(key in run.values or key in run.metrics for run in runs):
        return
    keys = {*COLUMNS, *(key for run in runs for key in run.keys)}
    raise CurvactError(
        f"{option} {short(key, 80)}: no run has this key{nearest(key, keys)}; `curvact runs show` lists them"
    )


# ---- files ----


def export_runs(runs: Sequence[StoredRun], path: Path) -> None:
    """Write the runs to a .csv, .json or .parquet, a row each: the columns, then every key that a run has.

    Raises CurvactError for another ending, for a Parquet file without pyarrow, and for a file that
    cannot be written.
    """
    keys = list(dict.fromkeys(key for run in runs for key in run.keys))
    rows = [{key: run.get(key) for key in (*COLUMNS, *keys)} for run in runs]
    if path.suffix == ".csv":
        heads = [*COLUMNS, *keys]
        atomic_write(path, csv_text([heads, *([row[key] for key in heads] for row in rows)]))
    elif path.suffix == ".json":
        plain = [{key: _plain(value) for key, value in row.items()} for row in rows]
        atomic_write(path, json.dumps(plain, indent=1, ensure_ascii=False) + "\n")
    elif path.suffix == ".parquet":
        _write_parquet(rows, [*COLUMNS, *keys], path)
    else:
        raise CurvactError(f"--out {path}: the name must end in .csv, .json or .parquet")


def _plain(value: Value) -> Value:
    """JSON has no infinity and no NaN."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _write_parquet(rows: Sequence[Mapping[str, Value]], keys: Sequence[str], path: Path) -> None:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise CurvactError("a Parquet file needs pyarrow: pip install 'curvact[parquet]'") from None
    columns: dict[str, Any] = {}
    for key in keys:
        values = [row[key] for row in rows]
        kinds = {type(value) for value in values if value is not None}
        if kinds <= {int, float} and float in kinds:
            values = [None if value is None else float(value) for value in values]
        elif len(kinds) > 1:
            values = [None if value is None else str(value) for value in values]
        columns[key] = values
    stream = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns), stream)
    atomic_write(path, stream.getvalue())
