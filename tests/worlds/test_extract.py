"""Which part of an answer is the program."""

from selfdistill.worlds.extract import extract_code, fenced_blocks


def test_the_longest_block_wins_whatever_its_tag():
    answer = "Try\n```\nx = 1\n```\nor better\n```Python3\nx = 1\ny = 2\n```\nor\n```text\nhi\n```\n"
    assert fenced_blocks(answer) == ["x = 1", "x = 1\ny = 2", "hi"]
    assert extract_code(answer) == "x = 1\ny = 2"


def test_of_equal_blocks_the_first():
    assert extract_code("```\na\n```\n```\nb\n```") == "a"


def test_without_a_closed_block_there_is_none():
    assert extract_code("") is None
    assert extract_code("x = 1") is None
    assert extract_code("```python\nx = 1") is None
    assert extract_code("```python\n\n```") is None
    assert extract_code("Use ```x = 1``` here") is None


def test_a_block_cut_off_does_not_hide_a_whole_one():
    assert extract_code("```\na = 1\n```\nlonger:\n```python\na = 1\nb = 2\nc =") == "a = 1"


def test_a_fence_may_close_at_the_end_of_a_line():
    assert extract_code("```python\nx = 1\ny = 2```") == "x = 1\ny = 2"


def test_longer_fences_hold_shorter_ones():
    assert extract_code("````python\ns = '''\n```\n'''\n````") == "s = '''\n```\n'''"


def test_the_indentation_of_a_fence_is_not_the_program_s():
    assert extract_code("1. so:\n   ```python\n   if x:\n       y\n   ```") == "if x:\n    y"


def test_line_numbers_survive_blank_lines():
    assert extract_code("```python\n\nx = 1\n\ny = 2\n```") == "\nx = 1\n\ny = 2"


def test_windows_line_ends():
    assert extract_code("```python\r\nx = 1\r\n```\r\n") == "x = 1"
