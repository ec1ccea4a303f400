"""What the user chooses; one layer each."""
