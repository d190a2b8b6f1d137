import json
import subprocess
from pathlib import Path

from selfdistill.runs.environment import describe_environment, git_commit, package_version


def test_environment_is_json_and_names_what_matters():
    environment = json.loads(json.dumps(describe_environment(device="cpu", isolation="landlock")))
    assert environment["device"] == "cpu"
    assert environment["isolation"] == "landlock"
    assert environment["versions"]["torch"] == package_version("torch")
    assert environment["versions"]["torch"][0] == "2"


def test_git_commit_tells_a_changed_file(tmp_path: Path):
    def git(*arguments: str) -> str:
        identity = ("-c", "user.name=a", "-c", "user.email=a@b.c")
        return subprocess.run(
            ["git", *identity, *arguments], cwd=tmp_path, capture_output=True, text=True
        ).stdout.strip()

    assert git_commit(tmp_path) is None  # no repository
    git("init")
    (tmp_path / "__init__.py").write_text("")
    assert git_commit(tmp_path) is None  # no commit
    git("add", ".")
    git("commit", "-m", "first")
    assert git_commit(tmp_path) == git("rev-parse", "HEAD")
    (tmp_path / "__init__.py").write_text("changed = True")
    assert git_commit(tmp_path) == git("rev-parse", "HEAD") + "+changes"
    (tmp_path / "vendored").mkdir()
    assert git_commit(tmp_path / "vendored") is None  # a folder that the repository does not hold
