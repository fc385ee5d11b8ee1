"""Records turned into tables, charts, pages and lines on a terminal."""
