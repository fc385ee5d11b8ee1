"""From a recipe to a record: experiments, checks, grids of runs, and the processes that run them."""
