import pytest

from fastmpi.ops.threads import thread_count


def test_asked_for_then_environment_then_processors(monkeypatch):
    monkeypatch.setenv("FASTMPI_NUM_THREADS", "3")
    assert thread_count(5) == 5
    assert thread_count() == 3
    monkeypatch.delenv("FASTMPI_NUM_THREADS")
    assert 1 <= thread_count() <= 16


@pytest.mark.parametrize("wish", ["0", "-1", "two", "", "1.5"])
def test_nonsense_in_the_environment_is_named(monkeypatch, wish):
    monkeypatch.setenv("FASTMPI_NUM_THREADS", wish)
    with pytest.raises(ValueError, match="FASTMPI_NUM_THREADS must be a positive number"):
        thread_count()


def test_no_threads_is_an_error():
    with pytest.raises(ValueError, match="num_threads must be at least 1"):
        thread_count(0)
