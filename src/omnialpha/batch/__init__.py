"""A folder of pictures through one task: what there is to do, what is done already, and the workers that do it.

In the order of imports: `inputs`, `names`, `work`, `ledger`, `engines`, `watch`, `run`."""
