"""What a ticket is, and what every other room needs: this room imports no other."""
