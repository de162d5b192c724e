"""The whole job in one call: from a source to a saved folder."""
