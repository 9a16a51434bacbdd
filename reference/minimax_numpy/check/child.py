"""One graded function in a process of its own: load a submission, call the function on each case, write the answers.

It is run by its path, imports nothing of this package, and sees no right answer. To the submission the packages of
this project are not there: whatever is taken from them refuses to be called, and their files cannot be opened. This
stops shortcuts and survives accidents; it is no jail for malice.
"""

import contextlib
import importlib.abc
import importlib.machinery
import json
import os
import pickle
import sys
import types
from collections.abc import Iterable, Mapping
from typing import Any, BinaryIO

import numpy as np

PACKAGES = {"minimax_numpy", "minimax_torch"}
FORBIDDEN = {
    "subprocess.Popen",
    "os.system",
    "os.fork",
    "os.forkpty",
    "os.exec",
    "os.posix_spawn",
    "os.spawn",
    "os.kill",
}
FORBIDDEN |= {"os.killpg", "os.link", "os.symlink", "os.rename", "ctypes.dlopen", "socket.connect", "socket.bind"}


class Refused(ImportError):
    """The submission reached for the reference."""


def refuse(name: str):
    """Say what was reached for, and what to do instead."""
    raise Refused(f"it uses {name}, and the reference is not there while grading; write the function yourself")


class Tripwire(types.ModuleType):
    """Stands where the reference would be: names may be taken from it, so that a task that needs none is not hurt."""

    __path__: list[str] = []

    def __getattr__(self, name: str):
        if name == "__all__":  # import *
            refuse(self.__name__)
        if name.startswith("__"):
            raise AttributeError(name)
        return Tripwire(f"{self.__name__}.{name}")

    def __call__(self, *_, **__):
        refuse(self.__name__)


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds a tripwire under the names of the packages."""

    def find_spec(self, name, path=None, target=None):
        return importlib.machinery.ModuleSpec(name, self) if name.partition(".")[0] in PACKAGES else None

    def create_module(self, spec):
        return Tripwire(spec.name)

    def exec_module(self, module):
        pass


def guard(event: str, arguments: tuple) -> None:
    """An audit hook, which no Python code can take off again."""
    if event == "open" and isinstance(arguments[0], str | bytes | os.PathLike):
        folders = os.path.realpath(os.fsdecode(arguments[0])).split(os.sep)
        if PACKAGES.intersection(folders):
            refuse(f"a file of {PACKAGES.intersection(folders).pop()}")
    elif event in FORBIDDEN:
        raise PermissionError(f"{event} is not allowed while grading")


def attempt(function: Any, arguments: Mapping[str, Any]) -> tuple[list[np.ndarray] | None, str | None]:
    """Call a function on copies of its arguments: its answers as arrays, or the trouble that it had."""
    given = [x.copy() if isinstance(x, np.ndarray) else x for x in arguments.values()]
    try:
        with np.errstate(all="ignore"):
            answer = function(*given)
        if answer is None:
            return None, "it returns None; is there a return?"
        arrays = [np.asarray(x) for x in (answer if isinstance(answer, tuple | list) else (answer,))]
    except NotImplementedError:
        return None, "it is still the stub"
    except Refused as error:
        return None, str(error)
    except (Exception, SystemExit) as error:
        return None, f"it fails with {type(error).__name__}: {(str(error).splitlines() or ['no message'])[0][:300]}"
    for name, after, before in zip(arguments, given, arguments.values(), strict=True):
        if isinstance(before, np.ndarray) and not np.array_equal(after, before, equal_nan=before.dtype.kind == "f"):
            return None, f"it changes its argument {name} in place, which the caller still needs; make a copy"
    if any(x.dtype.kind not in "biuf" for x in arrays):
        return None, "it returns something other than arrays of real numbers"
    return arrays, None


def write(file: BinaryIO, trouble: str | None = None, arrays: Iterable[np.ndarray] = ()) -> None:
    """One record: a line of JSON with types and shapes, then the numbers; nothing in it can be executed."""
    arrays = list(arrays)
    header = {"trouble": trouble, "arrays": [[x.dtype.str, list(x.shape)] for x in arrays]}
    file.write(json.dumps(header).encode() + b"\n" + b"".join(x.tobytes() for x in arrays))
    file.flush()


def limit(megabytes: int) -> None:
    """Bound memory and what may be written, where the system can."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (megabytes * 2**20,) * 2)
        resource.setrlimit(resource.RLIMIT_FSIZE, (64 * 2**20,) * 2)


def main(answers: str) -> None:
    """Write a record for the import, then one for each case as it is done: what came before an end still counts."""
    task = pickle.load(sys.stdin.buffer)  # from the grader
    with open(answers, "wb") as file:
        silence = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(silence, stream)
        limit(task["megabytes"])
        sys.meta_path.insert(0, Finder())
        sys.addaudithook(guard)
        submission, trouble = load(task["source"], task["file"])
        write(file, trouble)
        function = submission.get(task["function"])
        for arguments in () if trouble else task["cases"]:
            absent = None if callable(function) else f"there is no function {task['function']} in the file"
            arrays, trouble = (None, absent) if absent else attempt(function, arguments)
            write(file, trouble, arrays or ())


def load(source: str, name: str) -> tuple[dict[str, Any], str | None]:
    """Run a submission's file; its names, and the trouble that it had."""
    submission = sys.modules["submission"] = types.ModuleType("submission")
    try:
        exec(compile(source, name, "exec"), submission.__dict__)
    except BaseException as error:
        told = (str(error).splitlines() or ["no message"])[0][:300]
        return {}, told if isinstance(error, Refused) else f"{type(error).__name__}: {told}"
    return vars(submission), None


if __name__ == "__main__":
    main(sys.argv[1])
