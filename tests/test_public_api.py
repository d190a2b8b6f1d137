"""What users import is a promise: it is listed once, all of it exists, and nothing else slips out."""

import selfdistill


def test_every_public_name_exists_once():
    names = list(getattr(selfdistill, "__all__", []))
    assert len(names) == len(set(names))
    assert not [name for name in names if not hasattr(selfdistill, name)]


def test_the_surface_stays_small_enough_to_know():
    assert len(getattr(selfdistill, "__all__", [])) <= 40


def test_every_public_class_and_function_is_documented():
    public = [getattr(selfdistill, name) for name in getattr(selfdistill, "__all__", [])]
    assert not [item for item in public if callable(item) and not item.__doc__]
