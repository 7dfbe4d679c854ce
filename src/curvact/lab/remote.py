"""A store: the folder of a run, a sweep or a search in any file system of fsspec, such as s3://bucket/sweep.

Every process works in a local folder. The store is kept equal to it: `pull` before the work, `push`
after it. The store is the truth: what it lost or what another machine wrote replaces the local copy.

Each folder of a store has a list of its files, `.store.json`, with the sha256 and the size of each. A
push writes the list with the old and the new content of each file, then the files, a run's record last,
then the list with the new content alone. So a push that is cut off anywhere leaves files that are all
listed, and a record is never there before its weights.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import secrets
import shutil
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import Any

from curvact.errors import CurvactError
from curvact.files import atomic_write, hash_of_file, user_cache
from curvact.lab.claim import StoreWarning, Taken, claimed
from curvact.lab.layout import (
    CODE_FOLDER,
    ENVIRONMENT_FILE,
    LISTED_FILE,
    LOCK_FILE,
    METRICS_FILE,
    RECORD_FILE,
    RUNS,
    SLURM_FOLDER,
    SPEC_FILE,
    STATE_BEFORE_FILE,
    STATE_FILE,
)
from curvact.lab.urls import file_system, in_one_line, path_in, read_all, remove, upload, url_of, write

ANSWER_WITHIN = 20.0
"""Seconds in which a store has to answer its first question. [ours]"""

ATTEMPTS = 3
"""How often a push is tried before a run ends in its error. [ours]"""

OF_ZOO = "zoo:"
"""The beginning of a place that is a network of the zoo."""

Entry = tuple[str, int]
"""sha256 and size of a file's content."""


# ---- what commands ask for ----


@contextmanager
def working(place: Path) -> Iterator[tuple[Path, Store | None]]:
    """The local folder to work in, and the store to keep equal to it, for a command that writes.

    A path of this machine is given back as it is, without a store. A store is held while the command
    works: a second process that wants to write it is refused. What is known of its runs is pulled
    first; the files beside the runs are pushed at the end.
    Raises CurvactError, in one line with the URL, for a store that cannot be reached or written.
    """
    url = url_of(place)
    if url is None:
        yield place, None
        return
    store = Store(url)
    store.answer()
    with claimed(url), _by_url(store):
        store.pull(_is_light)
        store.pull_runs()
        try:
            yield store.folder, store
        except Exception:
            with suppress(CurvactError):
                store.push()
            raise
        store.push()


def local_runs(place: Path) -> Path:
    """The local folder with all records below a URL; a path of this machine as it is."""
    url = url_of(place)
    if url is None:
        return place
    store = Store(url)
    store.answer()
    store.pull(_is_light)
    if not store.pull_runs() and not any(True for _ in _files(store.folder)):
        raise CurvactError(f"{url} holds nothing: check the name, or write it with --out {url}")
    return store.folder


def is_of_zoo(place: Path) -> bool:
    """Whether the place is a network of the zoo, such as zoo:digits-resnet-relu."""
    return str(place).startswith(OF_ZOO)


def local_weights(place: Path) -> Path:
    """The local copy of a run's folder, or of a file of weights, that a URL names; a path as it is.

    "zoo:NAME" is a network of the zoo.
    """
    if is_of_zoo(place):
        from curvact.models import zoo_weights

        return zoo_weights(str(place).removeprefix(OF_ZOO))
    return _local(place, lambda name: name != STATE_FILE)


def local_spec(place: Path) -> Path:
    """The local copy of a spec's file, or of a folder that holds one, that a URL names; a path as it is."""
    return _local(place, _is_light)


def _local(place: Path, wanted: Callable[[str], bool]) -> Path:
    url = url_of(place)
    if url is None:
        return place
    path = PurePosixPath(url)
    is_file = path.suffix in (".safetensors", ".pt", ".pth", ".yaml", ".yml")
    store = Store(url.removesuffix("/" + path.name) if is_file else url)
    store.answer()
    with_it = (path.name, f"{path.stem}.json", RECORD_FILE)
    store.pull(lambda name: name in with_it or "/" in name if is_file else wanted(name))
    here = store.folder / path.name if is_file else store.folder
    if not here.exists():
        raise CurvactError(f"{url} is not there: check the name, or `curvact runs ls` the folder above it")
    return here


@contextmanager
def _by_url(store: Store) -> Iterator[None]:
    """Errors inside name the store's URL, not the local folder."""
    try:
        yield
    except CurvactError as error:
        raise type(error)(str(error).replace(str(store.folder), store.url)) from None


def _is_light(name: str) -> bool:
    """Whether a file is read where runs are listed and reported: no weights, no state."""
    return not name.endswith((".safetensors", ".pt", ".pth"))


def is_of_a_list(name: str) -> bool:
    """Whether a file of a run is pulled with every run of a sweep: few and small ones."""
    return name in (SPEC_FILE, RECORD_FILE, METRICS_FILE, ENVIRONMENT_FILE) or name.startswith(
        f"{CODE_FOLDER}/"
    )


# ---- the list of a folder's files ----


@dataclass(frozen=True)
class Listed:
    """The files of a folder, as its list has them.

    revision: a new text for each list that is written. files: what each file may hold, by its name.
    settled: False while a push is under way. pending: in the local copy, a revision that was perhaps
    written.
    """

    revision: str
    files: Mapping[str, tuple[Entry, ...]]
    settled: bool = True
    pending: str = ""

    def to_json(self) -> bytes:
        content = {
            "revision": self.revision,
            "settled": self.settled,
            "pending": self.pending,
            "files": {name: [list(entry) for entry in self.files[name]] for name in sorted(self.files)},
        }
        return json.dumps(content, indent=1).encode() + b"\n"

    @classmethod
    def from_json(cls, content: bytes, where: str) -> Listed:
        """CurvactError for a damaged list."""
        try:
            plain = json.loads(content)
            files = {
                _checked_name(name): tuple((str(digest), int(size)) for digest, size in entries)
                for name, entries in plain["files"].items()
            }
            return cls(str(plain["revision"]), files, bool(plain["settled"]), str(plain["pending"]))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            raise CurvactError(
                f"{where} is damaged: delete the folder that it is in, and run it again"
            ) from None

    def is_of(self, other: Listed) -> bool:
        """Whether the list is the one that the local copy `other` knows."""
        return self.revision in (other.revision, other.pending)


def _checked_name(name: Any) -> str:
    """A file's name inside a folder. ValueError for one that leads out of it."""
    parts = name.split("/") if isinstance(name, str) else [""]
    if any(part in ("", ".", "..") or "\\" in part or "\0" in part for part in parts):
        raise ValueError(name)
    return str(name)


def listed_in(folder: Path) -> Listed | None:
    """The list in a local folder that is the copy of a store's; None where there is none."""
    path = folder / LISTED_FILE
    try:
        return Listed.from_json(path.read_bytes(), str(path))
    except OSError:
        return None


def is_kept_elsewhere(path: Path, digest: str) -> bool:
    """Whether a file that is not here is in the store of its folder, with that sha256."""
    listed = listed_in(path.parent)
    return listed is not None and digest in {found for found, _ in listed.files.get(path.name, ())}


def _entry(path: Path) -> Entry:
    return hash_of_file(path), path.stat().st_size


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    """The files that belong to a folder, without its runs, what is hidden, W&B's and SLURM's own, and the state
    before the last one, which the store does not need: its files have a sha256."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        parts = name.split("/")
        elsewhere = parts[0] in (RUNS, SLURM_FOLDER, "wandb", STATE_BEFORE_FILE)
        if not elsewhere and not any(part.startswith(".") for part in parts) and path.is_file():
            yield name, path


def _is_locked(folder: Path) -> bool:
    """Whether a run holds the folder now, by the lock of `curvact.lab.store.locked`."""
    try:
        descriptor = os.open(folder / LOCK_FILE, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        pass  # a file system without locks
    finally:
        os.close(descriptor)
    return False


def _order(name: str) -> tuple[int, str]:
    """The order of a push, that in which a run writes its files: so a run that finds the files of a push
    that was cut off goes on as after any other end."""
    ranks = {STATE_FILE: 3, METRICS_FILE: 4, RECORD_FILE: 5}
    is_weights = name.endswith(".safetensors") or re.fullmatch(r"(best|last|epoch-\d+)\.json", name)
    return ranks.get(name, 2 if is_weights else 1), name


# ---- a store ----


@dataclass(frozen=True)
class Store:
    """A folder of a store. It pickles: another machine has its own local folder for it.

    url: of the sweep, the search or the single run. inner: the path below it, such as runs/ID.
    """

    url: str
    inner: str = ""

    @property
    def place(self) -> str:
        """The URL of this folder."""
        return f"{self.url}/{self.inner}" if self.inner else self.url

    @property
    def folder(self) -> Path:
        """The local folder: in $CURVACT_CACHE, else in the user's cache."""
        name = PurePosixPath(self.url.partition("://")[2]).name or "store"
        return user_cache() / "stores" / sha256(self.url.encode()).hexdigest()[:12] / name / self.inner

    def below(self, *names: str) -> Store:
        """A folder inside this one."""
        return replace(self, inner="/".join((*filter(None, [self.inner]), *names)))

    def beside(self, name: str) -> Store:
        """A folder in the same folder as this one."""
        return replace(self, inner=str(PurePosixPath(self.inner).parent / name))

    def answer(self) -> None:
        """CurvactError where the store does not answer soon, or not well."""
        problems: list[BaseException] = []

        def ask() -> None:
            try:
                with in_one_line(self.place):
                    file_system(self.url)[0].exists(self._remote(LISTED_FILE))
            except BaseException as error:
                problems.append(error)

        thread = threading.Thread(target=ask, daemon=True)
        thread.start()
        thread.join(ANSWER_WITHIN)
        if thread.is_alive():
            raise CurvactError(f"{self.place} did not answer within {ANSWER_WITHIN:.0f} s: check the network")
        for problem in problems:
            raise problem

    # ---- pull ----

    def pull(self, wanted: Callable[[str], bool] = lambda name: True, *, held: bool = False) -> None:
        """Make the local folder follow the store, and bring the wanted files that are not here.

        What this machine has done since its last push stays, unless another machine has written since.
        held: the caller has locked the folder. A folder that another process has locked is left as it is:
        a run is writing it, and pushes it.
        Raises CurvactError for a file whose content is not the listed one.
        """
        if not held and _is_locked(self.folder):
            return
        for _ in range(5):
            theirs = self._listed()
            self._follow(theirs)
            if theirs is None:
                self._pull_unlisted(wanted)
                return
            bad = [name for name in self._lacking(theirs, wanted) if not self._bring(name, theirs)]
            if not bad:
                return
            again = self._listed()
            if again is not None and again.revision == theirs.revision:
                raise self._damaged(bad[0])
        raise CurvactError(f"{self.place} changes while it is read: try it again")

    def pull_runs(self) -> int:
        """Bring spec, record, metrics and environment of every run below, without weights.

        Returns how many runs there are. The weights of a finished run have to be in the store, as its
        record and the list say. Raises CurvactError where one is missing or damaged.
        """
        sizes = self._sizes()
        folders = sorted(
            {
                str(PurePosixPath(name).parent).removeprefix(".")
                for name in sizes
                if PurePosixPath(name).name in (SPEC_FILE, RECORD_FILE) and "/." not in f"/{name}"
            }
        )
        stores = [self.below(folder) if folder else self for folder in folders]
        self._forget(stores)
        lists = read_all(self.url, [store._remote(LISTED_FILE) for store in stores])
        lacking: list[tuple[Store, str]] = []
        for store, content in zip(stores, lists, strict=True):
            if content is None:
                store.pull()
                continue
            theirs = Listed.from_json(content, f"{store.place}/{LISTED_FILE}")
            if _is_locked(store.folder):
                continue
            store._follow(theirs)
            lacking += [(store, name) for name in store._lacking(theirs, is_of_a_list)]
        contents = read_all(self.url, [store._remote(name) for store, name in lacking])
        odd: set[Store] = set()
        for (store, name), content in zip(lacking, contents, strict=True):
            listed = listed_in(store.folder)
            entry = None if content is None else (sha256(content).hexdigest(), len(content))
            if content is None or listed is None or entry not in listed.files[name]:
                odd.add(store)  # it is being written, or it is damaged
            elif store not in odd:
                path = store.folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
                atomic_write(path, content)
        for store in odd:
            store.pull(is_of_a_list)
        for store, folder in zip(stores, folders, strict=True):
            store._check_weights(
                {name: sizes.get(f"{folder}/{name}".lstrip("/")) for name in _weights(store)}
            )
        return len(stores)

    def _check_weights(self, sizes: Mapping[str, int | None]) -> None:
        """CurvactError where weights that the record names are not in the store as it says."""
        listed = listed_in(self.folder)
        for name, digest in _weights(self).items():
            if (self.folder / name).is_file():
                continue  # `finished` computes its sha256
            if _is_locked(self.folder):
                continue  # it is being pushed
            known = (
                [] if listed is None else [size for sha, size in listed.files.get(name, ()) if sha == digest]
            )
            if sizes[name] is None:
                raise self._missing(name)
            if sizes[name] not in known:
                raise self._damaged(name)

    def _forget(self, stores: Sequence[Store]) -> None:
        """Remove local runs that were pushed and are no longer in the store."""
        present = {store.folder for store in stores}
        if self.folder.is_dir():
            for listed in sorted(self.folder.rglob(LISTED_FILE)):
                if listed.parent not in (*present, self.folder):
                    Store(self.url, listed.parent.relative_to(Store(self.url).folder).as_posix())._follow(
                        None
                    )

    def _listed(self) -> Listed | None:
        content = read_all(self.url, [self._remote(LISTED_FILE)])[0]
        return None if content is None else Listed.from_json(content, f"{self.place}/{LISTED_FILE}")

    def _follow(self, theirs: Listed | None) -> None:
        """Remove local files that the store's list does not know, unless they are newer than it."""
        ours = listed_in(self.folder)
        if theirs is None and (ours is None or not ours.revision):
            return  # nothing was ever pushed
        if theirs is None or ours is None or not theirs.is_of(ours):
            for name, path in sorted(_files(self.folder), key=lambda file: _order(file[0]), reverse=True):
                if theirs is None or _entry(path) not in theirs.files.get(name, ()):
                    path.unlink(missing_ok=True)
        if theirs is None:
            (self.folder / LISTED_FILE).unlink(missing_ok=True)
        else:
            self.folder.mkdir(parents=True, exist_ok=True)
            atomic_write(self.folder / LISTED_FILE, theirs.to_json())

    def _lacking(self, theirs: Listed, wanted: Callable[[str], bool]) -> list[str]:
        names = (name for name in theirs.files if wanted(name) and not (self.folder / name).is_file())
        return sorted(names, key=_order)

    def _bring(self, name: str, theirs: Listed | None) -> bool:
        """Bring a file, whole or not at all. False where its content is not a listed one."""
        path = self.folder / name
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                with in_one_line(f"{self.place}/{name}"):
                    file_system(self.url)[0].get_file(self._remote(name), str(temporary))
            except FileNotFoundError:
                if theirs is not None and not theirs.settled:
                    return True  # listed before it is written
                raise self._missing(name) from None
            if theirs is not None and _entry(temporary) not in theirs.files[name]:
                return False
            os.replace(temporary, path)
            return True
        finally:
            temporary.unlink(missing_ok=True)

    def _pull_unlisted(self, wanted: Callable[[str], bool]) -> None:
        """Bring the files of a folder that was copied there by other means: nothing is known of them."""
        names = [name for name in self._sizes() if not name.startswith((f"{RUNS}/", "."))]
        for name in sorted((name for name in names if wanted(name) and "/." not in name), key=_order):
            self._bring(_checked_name(name), None)

    def _sizes(self) -> dict[str, int]:
        """The size of every file below this folder, by its name."""
        file_system_, _ = file_system(self.url)
        top = self._remote("").rstrip("/") + "/"
        with in_one_line(self.place):
            try:
                found = file_system_.find(top.rstrip("/"), detail=True)
            except FileNotFoundError:
                found = {}
        return {
            path.lstrip("/").removeprefix(top.lstrip("/")): int(info.get("size") or 0)
            for path, info in found.items()
            if path.lstrip("/").startswith(top.lstrip("/"))
        }

    # ---- push ----

    def push(self, source: Path | None = None, *, whole: bool = False) -> None:
        """Make the store equal to the local folder: what has changed, each file whole.

        source: the folder to read, where it is not the local one: a picture of it at one time.
        whole: the local folder holds all there is, so that what is missing in it is removed from the
        store: a record first of all, other files last.
        Raises Taken where another process has written the same folder since, and CurvactError where
        the store cannot be written.
        """
        known = listed_in(self.folder) or Listed("", {})
        entries = {name: _entry(path) for name, path in _files(source or self.folder)}
        changed = [
            name
            for name in sorted(entries, key=_order)
            if not known.settled or known.files.get(name) != (entries[name],)
        ]
        gone = [name for name in known.files if whole and name not in entries]
        if not changed and not gone and known.settled:
            return
        theirs = self._listed()
        if not (theirs.is_of(known) if theirs is not None else not known.revision):
            raise Taken(f"another process has written {self.place} since: this one stops")
        if theirs is not None:
            known = theirs
        both = {name: (*known.files.get(name, ()), entries[name]) for name in changed}
        self._list(known, {**known.files, **both}, settled=False)
        if RECORD_FILE in gone:
            self._remove(RECORD_FILE)
        for name in changed:
            with in_one_line(f"{self.place}/{name}", writing=True):
                upload(self.url, (source or self.folder) / name, self._remote(name))
        for name in gone:
            if name != RECORD_FILE:
                self._remove(name)
        after = {**known.files, **{name: (entries[name],) for name in changed}}
        middle = listed_in(self.folder) or known
        self._list(middle, {name: after[name] for name in after if name not in gone}, settled=True)

    def _list(self, known: Listed, files: Mapping[str, tuple[Entry, ...]], *, settled: bool) -> None:
        """Write the list of files there, and its copy here."""
        new = Listed(secrets.token_hex(8), files, settled)
        self.folder.mkdir(parents=True, exist_ok=True)
        atomic_write(self.folder / LISTED_FILE, replace(known, pending=new.revision).to_json())
        with in_one_line(f"{self.place}/{LISTED_FILE}", writing=True):
            write(self.url, self._remote(LISTED_FILE), new.to_json())
        atomic_write(self.folder / LISTED_FILE, new.to_json())

    def _remove(self, name: str) -> None:
        with in_one_line(f"{self.place}/{name}", writing=True):
            remove(self.url, self._remote(name))

    # ---- messages ----

    def _remote(self, name: str) -> str:
        """The path of a file in its file system."""
        return path_in(self.url, self.inner, name)

    def _missing(self, name: str) -> CurvactError:
        return CurvactError(f"{self.place}/{name} is missing: delete {self.place} and run it again")

    def _damaged(self, name: str) -> CurvactError:
        return CurvactError(
            f"{self.place}/{name} is damaged (its sha256 or size is not the recorded one): "
            f"delete {self.place} and run it again"
        )


def _weights(store: Store) -> dict[str, str]:
    """The sha256 of the weights by name, as the local copy of a record has them."""
    try:
        content = json.loads((store.folder / RECORD_FILE).read_bytes())
        return {_checked_name(name): str(digest) for name, digest in content["files"].items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return {}  # who reads the record says what is wrong with it


# ---- pushing beside a run ----


class Pushes:
    """Pushes a run's folder in a thread of its own, while the run goes on.

    A push that takes longer than an epoch is followed by one of the newest epoch. A store that cannot
    be written for now is a warning: the next epoch tries again.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self._wake = threading.Condition()
        self._next: Path | None = None
        self._ended = False
        self._taken: Taken | None = None
        self._clear()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def soon(self) -> None:
        """Push the folder as it is now. Raises Taken where another process writes the same run."""
        if self._taken is not None:
            raise self._taken
        picture = _picture(self.store.folder)
        with self._wake:
            before, self._next = self._next, picture
            self._wake.notify()
        if before is not None:
            shutil.rmtree(before, ignore_errors=True)

    def close(self) -> None:
        """Wait for what is under way, then push the folder as it is. Raises CurvactError where that fails."""
        with self._wake:
            self._ended = True
            self._wake.notify()
        self._thread.join()
        self._clear()
        if self._taken is not None:
            raise self._taken
        for attempt in range(1, ATTEMPTS + 1):
            try:
                self.store.push(whole=True)
                return
            except Taken:
                raise
            except CurvactError as error:
                if attempt == ATTEMPTS:
                    raise CurvactError(
                        f"{error}; the run is whole in {self.store.folder}, and --resume on this machine pushes it"
                    ) from None
                time.sleep(attempt)

    def abandon(self) -> None:
        """Begin no further push, and wait a little for the one that is under way."""
        with self._wake:
            self._ended = True
            self._wake.notify()
        self._thread.join(ANSWER_WITHIN)

    def _work(self) -> None:
        while True:
            with self._wake:
                while self._next is None and not self._ended:
                    self._wake.wait()
                picture, self._next = self._next, None
            if picture is None or self._ended:
                return
            try:
                self.store.push(picture, whole=True)
            except Taken as error:
                self._taken = error
                return
            except (CurvactError, OSError) as error:
                warnings.warn(
                    f"{error}; the run goes on, and the next epoch is pushed", StoreWarning, stacklevel=1
                )
            finally:
                shutil.rmtree(picture, ignore_errors=True)

    def _clear(self) -> None:
        for picture in self.store.folder.glob(".push-*"):
            shutil.rmtree(picture, ignore_errors=True)


def _picture(folder: Path) -> Path:
    """A folder with the files as they are now. Links suffice: a run replaces its files and never changes
    them. Logs in folders of their own grow, and are copied."""
    picture = folder / f".push-{secrets.token_hex(6)}"
    for name, path in _files(folder):
        target = picture / name
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            if "/" in name:
                raise OSError
            os.link(path, target)
        except OSError:
            shutil.copyfile(path, target)
    return picture
