"""A small learned algorithm of every kind, each with a task that it solves and a recipe of seconds."""
