"""What others' libraries are told about this one. Nothing here is imported before they are."""
