"""Files that others' machines read: workflows, issue forms, pre-commit, the changelog."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import yaml

from hq_tokenizers import __version__
from hq_tokenizers.cli.commands import COMMANDS

ROOT = Path(__file__).resolve().parent.parent
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
FORMS = sorted(path for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml") if path.stem != "config")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
TARGETS = set(re.findall(r"^([a-z]+):.*## ", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


def load(path: Path) -> dict:
    # YAML 1.1 reads the key `on` as true.
    return {"on" if key is True else key: value for key, value in yaml.safe_load(path.read_text("utf-8")).items()}


def steps(workflow: dict) -> list[dict]:
    return [step for job in workflow["jobs"].values() for step in job["steps"]]


def test_there_is_a_workflow_each_for_tests_docs_and_releases() -> None:
    assert [path.stem for path in WORKFLOWS] == ["docs", "release", "tests"]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflow_calls_targets_that_are_there(path: Path) -> None:
    workflow = load(path)
    assert workflow["on"]
    assert workflow["permissions"] == {"contents": "read"}
    called = [step["run"].split()[:2] for step in steps(workflow) if "run" in step]
    assert called
    for program, target in called:
        assert program == "make"
        assert target in TARGETS
    for name, job in workflow["jobs"].items():
        assert set([job["needs"]] if "needs" in job else []) <= set(workflow["jobs"]), name
        assert all(("run" in step) != ("uses" in step) for step in job["steps"])


def test_workflow_tests_every_python_that_is_promised() -> None:
    promised = [c.rpartition(" ")[2] for c in PROJECT["classifiers"] if re.search(r"Python :: 3\.\d+$", c)]
    assert load(ROOT / ".github/workflows/tests.yml")["jobs"]["test"]["strategy"]["matrix"]["python"] == promised
    assert PROJECT["requires-python"] == f">={promised[0]}"


def test_releases_are_by_tags_and_without_a_password() -> None:
    text = (ROOT / ".github/workflows/release.yml").read_text(encoding="utf-8")
    release = load(ROOT / ".github/workflows/release.yml")
    assert release["on"] == {"push": {"tags": ["v*"]}}
    assert release["jobs"]["publish"]["permissions"] == {"id-token": "write"}
    assert "secrets." not in text


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_issue_form_asks_what_can_be_answered(path: Path) -> None:
    form = load(path)
    assert {"name", "description", "body"} <= set(form)
    ids = [field["id"] for field in form["body"]]
    assert len(ids) == len(set(ids))
    assert any(field.get("validations", {}).get("required") for field in form["body"])
    for command in re.findall(r"`hq-tokenizers ([a-z-]+)`", path.read_text(encoding="utf-8")):
        assert command in COMMANDS
    if path.stem == "bug":
        assert {"configuration", "environment", "report"} < set(ids)


def test_contributing_explains_every_target() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert {target for target in TARGETS if f"make {target} " in text} == TARGETS - {"help"}


def test_pre_commit_lints_as_continuous_integration_does() -> None:
    hooks = [hook["id"] for repo in load(ROOT / ".pre-commit-config.yaml")["repos"] for hook in repo["hooks"]]
    assert {"ruff-check", "ruff-format"} < set(hooks)


def test_changelog_is_by_version() -> None:
    """Keep a Changelog: unreleased first, then versions with dates, newest first, and no section twice."""
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## (.*)$", text, re.MULTILINE)
    assert headings[0] == "[Unreleased]"
    released = [re.fullmatch(r"\[(\d+)\.(\d+)\.(\d+)\] - \d{4}-\d\d-\d\d", heading) for heading in headings[1:]]
    assert all(released)
    versions = [tuple(int(part) for part in match.groups()) for match in released if match]
    assert versions == sorted(set(versions), reverse=True)
    assert not versions or tuple(int(part) for part in __version__.split(".")) >= versions[0]
    for section in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
        parts = re.findall(r"^### (.*)$", section, re.MULTILINE)
        assert parts == [p for p in ("Added", "Changed", "Deprecated", "Removed", "Fixed", "Security") if p in parts]
