"""What strangers bring: graphs, sounds and pictures as public reports describe them, with the right answer to each."""
