"""Other ways to run the same networks."""
