"""Git that can't be asked: compare, sweep and verify say why, in Git's own words."""

import subprocess

import pytest
from helpers.stages import error_line, run_in_each

TOOLS = {"compare": ["HEAD"], "compare --all": ["--all"], "sweep": ["-S", "seed=1"], "verify": []}


@pytest.fixture
def repository(tmp_path):
    """A DVC repository with one commit."""
    folder = tmp_path / "repository"
    (folder / ".dvc").mkdir(parents=True)
    (folder / ".dvc/config").touch()
    (folder / "dvc.yaml").write_text("stages: {}\n")
    for command in (["init", "--quiet"], ["add", "--all"], ["commit", "--quiet", "--message", "as it is"]):
        author = ["-c", "user.name=test", "-c", "user.email=test"]
        subprocess.run(["git", *author, *command], cwd=folder, check=True)
    return folder


def refusal(tool, folder, **env):
    """The one line that a tool says in a folder."""
    (done,) = run_in_each([f"tools.{tool.split()[0]}"], [folder], TOOLS[tool], **env).values()
    assert done.stdout == ""
    return error_line(done)


@pytest.mark.parametrize("tool", TOOLS)
def test_a_repository_of_another_user_is_said_with_gits_remedy(repository, tool):
    """As in a container whose user does not own the mounted folder."""
    line = refusal(tool, repository, GIT_TEST_ASSUME_DIFFERENT_OWNER="1")
    assert f"detected dubious ownership in repository at '{repository}'" in line
    assert line.endswith(f"git config --global --add safe.directory {repository}")


@pytest.mark.parametrize("tool", TOOLS)
def test_a_machine_without_git_is_said(repository, tmp_path, tool):
    assert refusal(tool, repository, PATH=str(tmp_path)) == "error: git: not found; install it, or put it on PATH"
