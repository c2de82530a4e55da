"""The studio, all tasks on a page of this machine: `runs` and `exports` do what `page` shows."""
