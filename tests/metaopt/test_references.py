"""Objects by reference: files by any path, modules by name, and what is said when they cannot be had."""

import sys
from pathlib import Path

import pytest

from metaopt import references
from metaopt.errors import UserError


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A working directory of its own; what is imported from it is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]
    references._run.cache_clear()


def write(path, text):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text)
    return path


@pytest.mark.parametrize(
    "text, expected",
    [
        ("small_fc", False),
        ("digits-quick", False),
        ("mine.py", True),
        ("./mine", True),
        ("package.module", True),
        ("package:name", True),
        (3, False),
        (None, False),
    ],
)
def test_what_is_a_reference(text, expected):
    assert references.is_reference(text) == expected


@pytest.mark.parametrize(
    "reference, expected",
    [
        ("a/b.py:name", ("a/b.py", "name")),
        ("a/b.py:outer.inner", ("a/b.py", "outer.inner")),
        ("a/b.py", ("a/b.py", "")),
        ("/a b/c:d/e.py", ("/a b/c:d/e.py", "")),
        ("/a:b/c.py:name", ("/a:b/c.py", "name")),
        ("package.module:name", ("package.module", "name")),
        ("package.module", ("package.module", "")),
    ],
)
def test_a_reference_is_a_place_and_a_name(reference, expected):
    assert references.split(reference) == expected


def test_a_file_by_a_relative_or_an_absolute_path(folder, monkeypatch):
    write("sub/mine.py", "x = 3\nclass A:\n    y = 4\n")
    assert references.resolve("sub/mine.py:x") == 3
    assert references.resolve(f"{folder}/sub/mine.py:x") == 3
    assert references.resolve("sub/../sub/mine.py:A.y") == 4
    assert references.resolve("sub/mine.py", default="x") == 3
    assert references.resolve("sub/mine.py").A.y == 4  # without a name the module
    monkeypatch.setenv("HOME", str(folder / "sub"))
    assert references.resolve("~/mine.py:x") == 3


def test_a_path_may_have_spaces_and_colons():
    write("my work: one/my tasks.py", "x = 5\n")
    assert references.resolve("my work: one/my tasks.py:x") == 5
    assert references.resolve("./my work: one/my tasks.py", default="x") == 5


def test_a_file_that_was_loaded_is_one_module_however_it_is_named(folder):
    write("sub/mine.py", "class Mine:\n    pass\n")
    first = references.resolve("sub/mine.py:Mine")
    assert references.resolve(f"{folder}/sub/mine.py:Mine") is first
    assert references.resolve("./sub/mine.py").Mine is first
    assert sys.modules[first.__module__].Mine is first  # so that dataclasses and pickle find it


def test_two_files_of_one_name_are_two_modules():
    write("a/mine.py", "x = 1\n")
    write("b/mine.py", "x = 2\n")
    assert (references.resolve("a/mine.py:x"), references.resolve("b/mine.py:x")) == (1, 2)


def test_a_file_may_define_dataclasses():
    write("mine.py", "import dataclasses\n@dataclasses.dataclass\nclass A:\n    x: 'int' = 7\n")
    assert references.resolve("mine.py:A")().x == 7


def test_siblings_are_imported(folder):
    write("sub/sibling_of_mine.py", "x = 6\n")
    write("sub/mine.py", "import sibling_of_mine\nfrom sibling_of_mine import x\n")
    assert references.resolve("sub/mine.py:x") == 6
    assert sys.modules["sibling_of_mine"].__file__ == str(folder / "sub" / "sibling_of_mine.py")


def test_what_is_searched_is_where_imports_are_looked_for():
    write("elsewhere/far_away.py", "x = 8\n")
    write("mine.py", "from far_away import x\n")
    with pytest.raises(UserError, match="mine.py, line 1: ModuleNotFoundError: No module named 'far_away'"):
        references.resolve("mine.py:x")
    assert references.resolve("mine.py:x", search=["elsewhere"]) == 8  # nothing is left of the failure


def test_no_installed_module_is_shadowed(monkeypatch):
    """A file called like a module that is there is the last that an import finds."""
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    write("colorsys.py", "raise RuntimeError('not this one')\n")
    write("mine.py", "import colorsys\nx = colorsys.rgb_to_hsv(0, 0, 1)\n")
    assert references.resolve("mine.py:x") == (2 / 3, 1, 1)


def test_a_missing_file_is_named(folder):
    with pytest.raises(UserError, match=f"there is no file {folder}/sub/mine.py"):
        references.resolve("sub/mine.py:x")
    Path("sub.py").mkdir()
    with pytest.raises(UserError, match="there is no file .*/sub.py"):
        references.resolve("sub.py")


def test_a_missing_name_names_the_nearest():
    write("mine.py", "import os\nclass Task:\n    size = 1\n_hidden = 2\n")
    with pytest.raises(UserError, match="unknown name in mine.py 'Tusk'; did you mean 'Task'") as error:
        references.resolve("mine.py:Tusk")
    assert "_hidden" not in str(error.value)
    with pytest.raises(UserError, match="'sise'; did you mean 'size'"):
        references.resolve("mine.py:Task.sise")


@pytest.mark.parametrize(
    "text, message",
    [
        ("x = 1\ny = (\n", "mine.py, line 2: SyntaxError: "),
        ("x = 1\n\n\ndef f():\n    pass\n  y = 2\n", "mine.py, line 6: IndentationError: "),
        ("x = 1\ny = x + 'a'\n", "mine.py, line 2: TypeError: unsupported operand"),
        ("def f():\n    return 1 / 0\n\nf()\n", "mine.py, line 2: ZeroDivisionError: division by zero"),
        ("import json\njson.loads('{')\n", "mine.py, line 2: JSONDecodeError: "),  # the line here, not in json
    ],
)
def test_an_error_in_a_file_has_its_line(text, message):
    write("mine.py", text)
    with pytest.raises(UserError, match=message):
        references.resolve("mine.py:x")
    write("mine.py", "x = 9\n")  # mended, and read again
    assert references.resolve("mine.py:x") == 9


def test_an_error_of_ours_in_a_file_is_said_as_it_is():
    write("mine.py", "from metaopt.errors import UserError\nraise UserError('rates must be above 0')\n")
    with pytest.raises(UserError, match="^rates must be above 0$"):
        references.resolve("mine.py:x")


def test_modules_and_what_is_in_them(folder):
    write("my_package/__init__.py", "x = 1\n")
    write("my_package/my_module.py", "y = 2\nclass A:\n    z = 3\n")
    assert references.resolve("my_package.my_module:y") == 2
    assert references.resolve("my_package.my_module:A.z") == 3
    assert references.resolve("my_package.my_module").y == 2
    assert references.resolve("my_package.my_module", default="y") == 2
    assert references.resolve("my_package:x") == 1
    assert references.resolve("my_package.my_module.y") == 2  # a dot does for the colon
    with pytest.raises(UserError, match="unknown name in my_package.my_module 'B'"):
        references.resolve("my_package.my_module:B")


def test_modules_that_cannot_be_had():
    write("fails_at_once.py", "import no_such_thing_at_all\n")
    write("raises_at_once.py", "1 / 0\n")
    for reference, message in [
        ("no_such_package.module:x", "'no_such_package', which cannot be found: install it, .*or give a file"),
        ("fails_at_once:x", "cannot be imported: No module named 'no_such_thing_at_all'"),
        ("raises_at_once:x", "cannot be imported: ZeroDivisionError: division by zero"),
        ("json.no_such_module", "cannot be found: "),
        ("no good:x", "write path/to/file.py:name, package.module:name or package.module"),
        ("sub/mine:x", "write path/to/file.py:name, package.module:name or package.module"),
    ]:
        with pytest.raises(UserError, match=message):
            references.resolve(reference)


def test_an_absolute_reference_holds_in_any_folder(folder, monkeypatch):
    write("sub/mine.py", "x = 3\n")
    reference = references.absolute("sub/mine.py:x")
    assert reference == f"{folder}/sub/mine.py:x" and references.absolute(reference) == reference
    assert references.absolute("package.module:name") == "package.module:name"
    monkeypatch.chdir("/")
    assert references.resolve(reference) == 3


def test_where_a_reference_leads(folder):
    write("sub/mine.py", "x = 3\n")
    write("a_package/inner/module.py", "y = 2\n")
    write("a_package/inner/__init__.py", "")
    write("a_package/__init__.py", "")
    write("alone.py", "z = 1\n")
    assert references.file_of("sub/mine.py:x") == folder / "sub" / "mine.py"
    assert references.folder_of("sub/mine.py:x") == folder / "sub"
    assert references.file_of("a_package.inner.module:y") == folder / "a_package" / "inner" / "module.py"
    assert references.folder_of("a_package.inner.module:y") == folder  # of the topmost package
    assert references.folder_of("alone:z") == folder
    with pytest.raises(UserError, match="'sys:path' is in no file"):
        references.file_of("sys:path")


def test_files_with_siblings_of_one_name_import_their_own(tmp_path, monkeypatch):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "helper_of_a_test.py").write_text(f"name = {folder!r}\n")
        (tmp_path / folder / "user.py").write_text("from helper_of_a_test import name\n")
    (tmp_path / "helper_of_a_test.py").write_text("name = 'that of the working directory'\n")
    monkeypatch.chdir(tmp_path)
    assert [references.resolve(f"./{folder}/user.py:name") for folder in ("a", "b", "a")] == ["a", "b", "a"]


@pytest.mark.parametrize(
    "text, message",
    [
        ("import sys; sys.exit(0)", "user.py, line 1: SystemExit: 0"),
        ("from metaopt import references; references.resolve(__file__ + ':x')", "user.py refers to itself"),
    ],
)
def test_a_file_that_ends_or_repeats_itself_is_named(tmp_path, text, message):
    (tmp_path / "user.py").write_text(text)
    with pytest.raises(UserError, match=message):
        references.resolve(f"{tmp_path}/user.py:x")
