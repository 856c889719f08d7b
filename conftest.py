"""Read by pytest first: fixtures of tests/helpers.py are those of every test file."""

pytest_plugins = ["tests.helpers"]
