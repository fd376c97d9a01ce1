"""The Python functions behind the commands: readers, engines and analyses joined, one result each."""
