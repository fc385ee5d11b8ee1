"""The ticket, and what every other package here needs; this one imports none of them."""
