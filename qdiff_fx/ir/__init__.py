"""What a graph is: facts about its nodes, the operators it is made of, and how it is edited."""
