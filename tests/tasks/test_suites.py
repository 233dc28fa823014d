"""Sets of tasks: by name, by reference, or the tasks themselves."""

import pytest

from metaopt.errors import UserError
from metaopt.evaluation import heldout
from tasks import Lasso, Quadratic, suites

MINE = """
from tasks import Lasso, Quadratic

easy = Quadratic(dim=2, name="easy")
pair = [easy, Lasso(name="sparse")]
number = 3

class Mine(Quadratic):
    pass

def several():
    return "quadratics", easy, pair
"""


def names(tasks):
    return [task.name for task in suites.build(tasks)]


def test_suites_are_disjoint_by_code():
    trained_on = [task.traits() for task in suites.images_small()]
    for task in suites.heldout_small():
        assert heldout.novelty(task.traits(), trained_on), f"{task.name} is not held out"
    for task in suites.images_small():
        assert heldout.novelty(task.traits(), trained_on) == ()


@pytest.mark.parametrize("name", sorted(suites.SUITES))
def test_tasks_of_a_suite_have_names_of_their_own(name):
    assert names(name) and len(set(names(name))) == len(names(name))
    assert suites.build(name) == suites.SUITES[name]()


def test_a_task_stands_for_itself():
    task = Quadratic(dim=3)
    assert suites.build(task) == suites.build([task]) == suites.build(lambda: task) == (task,)
    assert suites.build(Quadratic) == (Quadratic(),)  # a class that needs no arguments


def test_names_and_tasks_go_together():
    assert names(("lasso", Quadratic(name="q"), [Lasso(name="l"), "digits"])) == ["lasso", "q", "l", "digits-mlp"]
    assert suites.build(()) == ()


def test_references(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(MINE)
    assert names(f"{path}:easy") == ["easy"] and names(f"{path}:pair") == ["easy", "sparse"]
    assert names(f"{path}:Mine") == ["quadratic"] and type(suites.build(f"{path}:Mine")[0]).__name__ == "Mine"
    assert names(f"{path}:several") == ["quadratic", "easy", "easy", "sparse"]
    assert names(["digits", f"{path}:easy"]) == ["digits-mlp", "easy"]
    assert names("tasks.suites:lasso") == ["lasso"]
    with pytest.raises(UserError, match="did you mean 'easy'"):
        suites.build(f"{path}:eazy")
    with pytest.raises(UserError, match="int is no task: it lacks .*solved_by"):
        suites.build(f"{path}:number")


def test_an_unknown_suite_names_the_nearest():
    with pytest.raises(UserError, match="unknown suite 'heldout-smal'; did you mean 'heldout-small'"):
        suites.build("heldout-smal")


def test_what_is_no_task_is_told_what_it_lacks():
    class Half:
        name, solved_by = "half", ("optimizer",)

        def sample(self, key):
            return ()

        def init(self, task_params, key):
            return ()

    with pytest.raises(UserError, match="Half is no task: it lacks traits, start, step, solution, evaluate"):
        suites.build(Half())
