"""If Git does not work in a folder, compare, sweep and verify report why, in Git's own words."""

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


def run_tool(tool, folder, **env):
    """Run a tool that fails in this folder, and return its error."""
    (process,) = run_in_each([f"tools.{tool.split()[0]}"], [folder], TOOLS[tool], **env).values()
    assert process.stdout == ""
    return error_line(process)


@pytest.mark.parametrize("tool", TOOLS)
def test_a_repository_of_another_user_is_reported_with_gits_remedy(repository, tool):
    """This happens in a container whose user does not own the mounted folder."""
    line = run_tool(tool, repository, GIT_TEST_ASSUME_DIFFERENT_OWNER="1")
    assert f"detected dubious ownership in repository at '{repository}'" in line
    assert line.endswith(f"git config --global --add safe.directory {repository}")


@pytest.mark.parametrize("tool", TOOLS)
def test_a_machine_without_git_is_reported(repository, tmp_path, tool):
    assert run_tool(tool, repository, PATH=str(tmp_path)) == "error: git: not found; install it, or put it on PATH"
