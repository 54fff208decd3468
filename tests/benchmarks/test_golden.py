"""Fingerprints are equal if and only if the results are."""

import json

import golden
import pytest

NAMES = ["two classes", "weights"]


@pytest.fixture
def run(monkeypatch, capsys):
    """Run the script on two settings; return its exit status and what it printed."""

    def run(*arguments):
        argv = ["golden.py", "--settings", *NAMES, *map(str, arguments)]
        monkeypatch.setattr("sys.argv", argv)
        status = 0
        try:
            golden.main()
        except SystemExit as end:
            status = int(end.code)
        return status, capsys.readouterr().out

    return run


@pytest.fixture
def before(run, tmp_path):
    """Return the file of a run before a change."""
    path = tmp_path / "before.json"
    run("--write", path)
    return path


def test_fingerprints_are_reproducible():
    one, same = (golden.fingerprints(golden.SETTINGS[NAMES[0]]()) for _ in range(2))
    assert one == same
    assert one.keys() == {"network", "posterior", "history"}
    other = golden.fingerprints(golden.SETTINGS[NAMES[1]]())
    assert all(one[part] != other[part] for part in one)


def test_a_file_has_each_setting(before):
    found = json.loads(before.read_text())
    assert list(found) == NAMES
    assert found[NAMES[0]] == golden.fingerprints(golden.SETTINGS[NAMES[0]]())


def test_the_same_code_compares_equal(run, before):
    status, output = run("--compare", before)
    assert status == 0
    assert "2 of 2 settings are unchanged" in output


def test_compare_notices_other_numbers(run, before, monkeypatch):
    changed = {NAMES[1]: lambda: golden.fitted(golden.digits, lr=0.011)}
    monkeypatch.setattr(golden, "SETTINGS", golden.SETTINGS | changed)
    status, output = run("--compare", before)
    assert status == 1
    assert f"{NAMES[1]}: different network, posterior, history" in output
    assert "1 of 2 settings are unchanged" in output


def test_compare_says_which_part_is_another(run, before):
    expected = json.loads(before.read_text())
    expected[NAMES[0]]["history"] = "0" * 16
    before.write_text(json.dumps(expected))
    status, output = run("--compare", before)
    assert status == 1
    assert f"{NAMES[0]}: different history\n" in output


def test_compare_names_what_is_not_in_the_list(run, before):
    expected = json.loads(before.read_text())
    del expected[NAMES[1]]
    before.write_text(json.dumps(expected))
    status, output = run("--compare", before)
    assert status == 0
    assert f"{NAMES[1]}: not in the file to compare with" in output
