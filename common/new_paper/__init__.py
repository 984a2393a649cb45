"""``nox -s new-paper -- <slug>``: a room, a notebook and a test file, red only where the author must write."""
