"""How a lowered graph runs: one function, plans, what repeats remembered."""
