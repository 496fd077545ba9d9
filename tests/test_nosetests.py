"""The nosetests command, run as people run it: in a folder, as a process of its own."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent.parent


class Project:
    """A folder with files in it, and a command that is run there."""

    def __init__(self, folder):
        self.folder = folder

    def write(self, name, text):
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def run(self, *arguments, module="lamson.nosetests"):
        """Returns the exit code and all that was printed."""
        done = subprocess.run(
            [sys.executable, "-m", module, *arguments],
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": str(HERE), "HOME": str(self.folder)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
        )
        return done.returncode, done.stdout

    def ran(self, *arguments, **options):
        """The names of the tests that ran and passed, in order."""
        code, output = self.run("-v", *arguments, **options)
        assert code == 0, output
        # what a generator yields is shown on two lines
        return re.findall(r"^(\S+)(?: \(\S+\))?(?:\n.*)? \.\.\. (?:.*\n)?ok$", output, re.MULTILINE)


@pytest.fixture
def project(tmp_path):
    return Project(tmp_path)


def test_a_run_that_passes_exits_with_0_and_one_that_fails_with_1(project):
    project.write("tests/some_tests.py", "def test_it(): pass")
    code, output = project.run()
    assert (code, "Ran 1 test" in output, "OK" in output) == (0, True, True)

    project.write("tests/some_tests.py", "def test_it(): assert 1 == 2, 'so it is'")
    code, output = project.run()
    assert (code, "FAILED" in output) == (1, True)
    assert "so it is" in output


@pytest.mark.parametrize(
    "name",
    [
        "tests/some_tests.py",
        "tests/test_some.py",
        "tests/some_test.py",
        "tests/deep/below/some_tests.py",
        "test_here.py",
        "test/some_tests.py",
        "package_tests/some_tests.py",
    ],
)
def test_files_are_found_by_name_in_folders_that_are_no_packages(project, name):
    project.write(name, "def test_it(): pass")
    assert project.ran() == [name.removesuffix(".py").replace("/", ".") + ".test_it"]


def test_files_in_packages_are_found_and_imported_as_that(project):
    project.write("app/__init__.py", "")
    project.write("app/near/__init__.py", "")
    project.write("app/near/thing.py", "value = 42")
    project.write("app/near/thing_tests.py", "from .thing import value\ndef test_it(): assert value == 42")
    assert project.ran() == ["app.near.thing_tests.test_it"]


@pytest.mark.parametrize(
    "name", ["latest.py", "contest.py", "tests/helper.py", "folder/some_tests.py", ".hid/a_tests.py"]
)
def test_files_of_other_names_are_none(project, name):
    project.write(name, "def test_it(): assert False")
    code, output = project.run()
    assert code == 1
    assert "No tests were found in" in output
    assert "this_tests.py" in output


def test_functions_run_in_the_order_of_the_file(project):
    project.write(
        "tests/some_tests.py",
        "def test_zebra(): pass\ndef test_ape(): pass\ndef my_test(): pass\n"
        "def test_more(number=1): assert number == 1\n"
        "def contest(): assert False\ndef _test_hidden(): assert False\n",
    )
    names = ["test_zebra", "test_ape", "my_test", "test_more"]
    assert project.ran() == [f"tests.some_tests.{name}" for name in names]


def test_a_parameter_that_nobody_gives_is_an_error_and_not_passed_over(project):
    project.write("tests/some_tests.py", "def test_it(fixture): pass")
    code, output = project.run()
    assert code == 1
    assert "missing 1 required positional argument: 'fixture'" in output


def test_istest_and_nottest_overrule_names(project):
    project.write(
        "tests/some_tests.py",
        "def test_helper(): assert False\ntest_helper.__test__ = False\n"
        "def check(): pass\ncheck.__test__ = True\n"
        "class TestBase:\n    __test__ = False\n    def test_it(self): assert False\n",
    )
    assert project.ran() == ["tests.some_tests.check"]


def test_each_thing_that_a_generator_yields_is_a_test(project):
    project.write(
        "tests/some_tests.py",
        "def check(number): assert number\ndef test_all():\n    for number in (1, 2): yield check, number\n",
    )
    assert project.ran() == ["tests.some_tests.test_all:1", "tests.some_tests.test_all:2"]


@pytest.mark.parametrize(
    "setup, teardown",
    [
        ("setup", "teardown"),
        ("setup_module", "teardown_module"),
        ("setUpModule", "tearDownModule"),
        ("setup", "teardown_module"),
    ],
)
def test_setup_and_teardown_run_around_a_module(project, setup, teardown):
    project.write(
        "tests/some_tests.py",
        f"log = []\ndef {setup}(): log.append('setup')\ndef {teardown}(module): print('log:', module.log)\n"
        "def test_one(): log.append(1)\ndef test_two(): log.append(2)\n",
    )
    code, output = project.run()
    assert code == 0, output
    assert output.count("log:") == 1
    assert "log: ['setup', 1, 2]" in output


def test_a_setup_that_fails_fails_the_run(project):
    project.write("tests/some_tests.py", "def setup(): raise OSError('no luck')\ndef test_one(): assert False")
    code, output = project.run()
    assert code == 1
    assert "no luck" in output
    assert "AssertionError" not in output


def test_with_setup_runs_around_one_function(project):
    project.write(
        "tests/some_tests.py",
        "from lamson.testing import *\nlog = []\n"
        "@with_setup(lambda: log.append('in'), lambda: log.append('out'))\ndef test_one(): log.append('one')\n"
        "@with_setup(lambda: log.append('in'))\ndef test_all(): yield check, 1; yield check, 2\n"
        "def check(number): ok_(number)\n"
        "def test_two(): assert_equal(log, ['in', 'one', 'out', 'in', 'in'])\n",
    )
    assert len(project.ran()) == 4


def test_classes_of_tests_have_their_fixtures(project):
    project.write(
        "tests/some_tests.py",
        "class TestOne:\n"
        "    log = []\n"
        "    @classmethod\n    def setup_class(cls): cls.log.append('class')\n"
        "    @classmethod\n    def teardown_class(cls): print('log:', cls.log)\n"
        "    def setup(self): self.log.append('in')\n"
        "    def teardown(self): self.log.append('out')\n"
        "    def test_it(self): self.log.append('it')\n"
        "class TestTwo(TestOne):\n"
        "    log = []\n"
        "    def setup(self): self.log.append('IN')\n",
    )
    code, output = project.run()
    assert code == 0, output
    assert "log: ['class', 'in', 'it', 'out']" in output
    assert "log: ['class', 'IN', 'it', 'out']" in output


def test_unittest_runs_as_ever(project):
    project.write(
        "tests/some_tests.py",
        "import unittest\nclass Case(unittest.TestCase):\n    def test_it(self): self.assertTrue(True)\n"
        "    @unittest.skip('not now')\n    def test_not(self): assert False\n",
    )
    code, output = project.run("-v")
    assert code == 0
    assert "skipped not now" in output


def test_two_files_of_one_name_are_two_modules(project):
    project.write("tests/one/some_tests.py", "def setup(): global name; name = 1\ndef test_one(): assert name == 1")
    project.write("tests/two/some_tests.py", "def setup(): global name; name = 2\ndef test_two(): assert name == 2")
    assert project.ran() == ["tests.one.some_tests.test_one", "tests.two.some_tests.test_two"]


def test_helpers_beside_a_file_of_tests_can_be_imported(project):
    project.write("tests/helper.py", "value = 42")
    project.write("app/__init__.py", "value = 42")
    project.write("tests/some_tests.py", "import helper, app\ndef test_it(): assert helper.value == app.value")
    assert len(project.ran()) == 1


TWO_FILES = {
    "tests/one/a_tests.py": (
        "def test_a(): pass\nclass TestB:\n    def test_c(self): pass\n    def test_d(self): pass\n"
    ),
    "tests/two/e_tests.py": "def test_a(): pass\ndef test_ab(): pass\n",
}


@pytest.mark.parametrize(
    "name, expected",
    [
        ("tests/two", ["two.e_tests.test_a", "two.e_tests.test_ab"]),
        ("tests.two", ["two.e_tests.test_a", "two.e_tests.test_ab"]),
        ("tests/two/e_tests.py", ["two.e_tests.test_a", "two.e_tests.test_ab"]),
        ("./tests/two/e_tests.py", ["two.e_tests.test_a", "two.e_tests.test_ab"]),
        ("tests.two.e_tests", ["two.e_tests.test_a", "two.e_tests.test_ab"]),
        ("tests/two/e_tests.py:test_a", ["two.e_tests.test_a"]),
        ("tests.two.e_tests:test_a", ["two.e_tests.test_a"]),
        ("tests.two.e_tests.test_a", ["two.e_tests.test_a"]),
        ("tests/one/a_tests.py:TestB", ["one.a_tests.TestB.test_c", "one.a_tests.TestB.test_d"]),
        ("tests.one.a_tests:TestB.test_d", ["one.a_tests.TestB.test_d"]),
    ],
)
def test_names_choose_what_runs(project, name, expected):
    for path, text in TWO_FILES.items():
        project.write(path, text)
    assert project.ran(name) == [f"tests.{each}" for each in expected]


def test_a_module_elsewhere_on_the_import_path_can_be_named(project, tmp_path):
    (project.folder / "here").mkdir()
    project.write("elsewhere/some_tests.py", "def test_a(): pass\ndef test_b(): pass")
    project.write("here/config/__init__.py", "")
    project.write("here/config/testing.py", f"import sys; sys.path.append({str(tmp_path / 'elsewhere')!r})")
    project.folder /= "here"
    assert project.ran("some_tests:test_b") == ["some_tests.test_b"]
    assert project.ran("some_tests") == ["some_tests.test_a", "some_tests.test_b"]


@pytest.mark.parametrize(
    "name, expected",
    [
        ("tests/none_tests.py", "There is no file or folder tests/none_tests.py"),
        ("none_tests.py:test_a", "There is no file or folder none_tests.py"),
        (
            "tests/two/e_tests.py:test_z",
            "There is no test tests/two/e_tests.py:test_z; the tests there are: test_a, test_ab",
        ),
        ("nowhere", "No module named 'nowhere'"),
        ("nowhere:test_it", "No module named 'nowhere'"),
    ],
)
def test_a_name_that_nothing_has_fails_and_says_why(project, name, expected):
    for path, text in TWO_FILES.items():
        project.write(path, text)
    code, output = project.run(name)
    assert code == 1
    assert expected in output


def test_a_file_that_cannot_be_imported_fails_and_the_others_run(project):
    project.write("tests/a_tests.py", "import no_such_thing")
    project.write("tests/b_tests.py", "def test_it(): pass")
    code, output = project.run("-v")
    assert code == 1
    assert "No module named 'no_such_thing'" in output
    assert "tests.b_tests.test_it ... ok" in output


def test_a_file_that_wants_nose_is_told_what_to_write(project):
    project.write("tests/old_tests.py", "from nose.tools import *")
    assert "Write in its place: from lamson.testing import *" in project.run()[1]


def test_stop_ends_the_run_after_the_first_failure(project):
    project.write("tests/some_tests.py", "def test_a(): assert False\ndef test_b(): assert False")
    for option in ("-x", "--stop"):
        assert "Ran 1 test" in project.run(option)[1]


def test_what_a_test_prints_is_shown_when_it_fails_or_when_asked_for(project):
    project.write("tests/some_tests.py", "def test_a(): print('I was here')")
    assert "I was here" not in project.run()[1]
    assert "I was here" in project.run("-s")[1]

    project.write("tests/some_tests.py", "def test_a(): print('I was here'); assert False")
    assert "I was here" in project.run()[1]


def test_nothing_is_said_about_what_a_failing_test_did_not_print(project):
    project.write("tests/some_tests.py", "def test_a(): assert False")
    assert "captured" not in project.run()[1]


def test_a_wrong_option_exits_with_2(project):
    code, output = project.run("--with-coverage")
    assert code == 2
    assert "unrecognized arguments: --with-coverage" in output


def test_config_testing_is_loaded_first(project):
    project.write("config/__init__.py", "")
    project.write("config/testing.py", "from config import settings\nsettings.relay = 'the relay'")
    project.write("config/settings.py", "")
    project.write(
        "tests/some_tests.py", "from config.settings import relay\ndef test_it(): assert relay == 'the relay'"
    )
    assert len(project.ran()) == 1
    assert len(project.ran("tests/some_tests.py")) == 1


def test_a_config_testing_that_cannot_be_imported_fails_the_run(project):
    project.write("config/__init__.py", "")
    project.write("config/testing.py", "import no_such_thing")
    project.write("tests/some_tests.py", "def test_it(): pass")
    code, output = project.run()
    assert code == 1
    assert "Failed to import test module: config.testing" in output
    assert "No module named 'no_such_thing'" in output
    assert "Ran 1 test" in output


def test_plain_nose2_does_the_same_with_the_plugin(project):
    project.write("unittest.cfg", "[unittest]\nplugins = lamson.nosetests\n")
    project.write("config/__init__.py", "")
    project.write("config/testing.py", "ready = True")
    project.write(
        "tests/deep/some_tests.py",
        "import sys\ndef setup(): global ready; ready = True\ndef test_b(): assert ready\n"
        "def test_a(): assert sys.modules['config.testing'].ready\n",
    )
    expected = ["tests.deep.some_tests.test_b", "tests.deep.some_tests.test_a"]
    assert project.ran(module="nose2") == expected
    assert project.ran("tests/deep", module="nose2") == expected
    assert project.ran(module="lamson.nosetests") == expected


def test_nose2s_own_kinds_of_tests_still_run(project):
    project.write(
        "tests/some_tests.py",
        "from nose2.tools import params\n@params(1, 2)\ndef test_all(number): assert number\n",
    )
    assert project.ran() == ["tests.some_tests.test_all:1", "tests.some_tests.test_all:2"]
