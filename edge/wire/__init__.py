"""What central and a node say to each other: topics, messages, and their bytes."""
